"""Grow a trained restorer into a wider or deeper one that starts by doing exactly what the trained one does.

After Net2Net (Chen, Goodfellow and Shlens, ICLR 2016), without its copied units: channels that are new in a residual
stream start at 0, since whatever writes to the stream writes 0 to them; what reads them has random weights, so that
gradients reach the writers from the first step on. New units inside a block are random, and what reads them starts at
0. New blocks are identities as every `ResidualBlock` is at its start.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from training.config import TrainingError

# Layers whose outputs are added to a residual stream, or handed to one.
WRITERS = ("stem", "carry", "second", "out", "image_forward.3", "landmark_forward.3", "prior_in", "up", "landmark_mix",
           "landmark_stem", "landmark_carry")  # fmt: skip
# Root-mean-square norms over a stream: the new channels, 0 at the start, lower the mean square.
NORMS = ("query_norm", "key_norm", "image_forward.0", "landmark_forward.0")


def grow(network: nn.Module, trained: Mapping[str, Tensor]) -> None:
    """Load the weights of a smaller restorer into `network`, which then gives that restorer's answers.

    Args:
        network: freshly made, at least as wide and as deep as the trained one everywhere.
        trained: its state.

    Raises:
        TrainingError: something of the trained network has no place in the new one.
    """
    state = network.state_dict()
    for name, old in trained.items():
        new = state.get(name)
        if new is None or new.ndim != old.ndim or any(n < o for n, o in zip(new.shape, old.shape, strict=True)):
            place = "none" if new is None else tuple(new.shape)
            raise TrainingError(f"{name}: {tuple(old.shape)} does not fit into {place}: a network can only grow")
        layer = name.rpartition(".")[0]
        silent = layer.endswith(WRITERS) or name.endswith("place")  # position codes are added to the stream too
        grown = torch.zeros_like(new) if silent else new.clone()
        scale = (old.shape[0] / new.shape[0]) ** 0.5 if layer.endswith(NORMS) else 1.0
        grown[tuple(slice(n) for n in old.shape)] = old.to(new.dtype) * scale
        state[name] = grown
    network.load_state_dict(state)
