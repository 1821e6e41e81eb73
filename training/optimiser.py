"""Optimisers: AdamW, and Muon for convolution and matrix weights (Jordan et al. 2024)."""

from typing import Any

import torch
from torch import Tensor, nn

from training import parallel

# Coefficients of the quintic Newton-Schulz step published with Muon: they drive all singular values to about 1.
_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrix to `matrix` (M, N), approximately, by Newton-Schulz iterations in bfloat16."""
    a, b, c = _QUINTIC
    x = matrix.bfloat16()
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum with an orthogonalised update for weights of at least `smallest` rows and columns; AdamW for the rest.

    Convolution kernels are treated as (outputs, inputs * kh * kw) matrices. The update of a matrix is scaled by
    0.2 * sqrt(max(rows, columns)), which makes its root mean square that of an Adam step, so one learning rate serves
    both (Liu et al. 2025, "Muon is scalable for LLM training", eq. 4).
    """

    def __init__(
        self,
        parameters: list[dict[str, Any]],
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        smallest: int = 16,
    ) -> None:
        super().__init__(
            parameters,
            {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "betas": betas, "smallest": smallest},
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # closures are not needed here
        matrices: list[tuple[Tensor, Tensor, float]] = []  # parameter, direction, rate
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                p.mul_(1 - group["lr"] * group["weight_decay"])
                if p.ndim >= 2 and min(p.shape[0], p[0].numel()) >= group["smallest"]:
                    matrices.append((p, self._direction(p.grad, state, group["momentum"]), group["lr"]))
                else:
                    p.add_(self._adam(p.grad, state, group["betas"]), alpha=-group["lr"])
        # Orthogonalising is the costly part: processes that train together share it, largest matrices first.
        matrices.sort(key=lambda m: m[1].numel(), reverse=True)
        for i, (_, direction, _) in enumerate(matrices):
            if i % parallel.world() == parallel.rank():
                direction.copy_(orthogonalise(direction).mul_(0.2 * max(direction.shape) ** 0.5))
            else:
                direction.zero_()
        parallel.add_up(direction for _, direction, _ in matrices)
        for p, direction, rate in matrices:
            p.add_(direction.view(p.shape), alpha=-rate)

    @staticmethod
    def _direction(grad: Tensor, state: dict[str, Any], momentum: float) -> Tensor:
        """Nesterov momentum as a (rows, columns) matrix."""
        buffer = state.setdefault("momentum", torch.zeros_like(grad))
        buffer.lerp_(grad, 1 - momentum)
        return grad.lerp(buffer, momentum).reshape(grad.shape[0], -1)

    @staticmethod
    def _adam(grad: Tensor, state: dict[str, Any], betas: tuple[float, float]) -> Tensor:
        mean = state.setdefault("mean", torch.zeros_like(grad))
        square = state.setdefault("square", torch.zeros_like(grad))
        state["step"] = state.get("step", 0) + 1
        mean.lerp_(grad, 1 - betas[0])
        square.lerp_(grad.square(), 1 - betas[1])
        corrected = mean / (1 - betas[0] ** state["step"])
        return corrected / ((square / (1 - betas[1] ** state["step"])).sqrt() + 1e-8)


def build_optimiser(network: nn.Module, name: str, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """The named optimiser over the trainable parameters; vectors (biases, norms) are not decayed.

    Every group carries `base_lr`, the rate that the schedule scales.
    """
    trainable = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay, "base_lr": lr},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0, "base_lr": lr},
    ]
    if name == "muon":
        return Muon(groups, lr, weight_decay)
    return torch.optim.AdamW(groups, lr, (0.9, 0.99))
