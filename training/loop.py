"""The training loop every network shares: exact resume, EMA, checkpoints, sample grids, TensorBoard.

A task says what to train; the loop says when. Sample number i of a run is always the same sample (its random numbers
come from the run's seed and i), and what torch draws at a step (dropout) comes from the seed, the step and the process;
so a run that was stopped and resumed does what an unbroken run would have done.
"""

import copy
import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import yaml
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from stages.weights import load_network
from training import parallel
from training.config import TrainingError
from training.files import whole_file
from training.optimiser import build_optimiser

NetworkT = TypeVar("NetworkT", bound=nn.Module)
CPU = torch.device("cpu")


class LoopConfig(BaseModel):
    """Options of the loop."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: Path  # folder for checkpoints, grids and logs
    steps: int = Field(gt=0)
    minutes: float | None = Field(default=None, gt=0)  # of training at most; the schedule keeps to it
    batch_size: int = Field(default=32, gt=0)
    lr: float = Field(default=4e-4, gt=0)
    other_lr: float | None = Field(default=None, gt=0)  # of the critics (AdamW); None: as `lr`
    optimiser: Literal["adamw", "muon"] = "adamw"
    weight_decay: float = Field(default=1e-4, ge=0)
    warmup: int = Field(default=200, ge=0)  # steps of linear rise
    final_lr: float = Field(default=0.02, ge=0, le=1)  # share of lr left at the end of the schedule
    schedule: Literal["cosine", "flat"] = "cosine"  # flat: constant, then linear to final_lr over the last quarter
    ema: float = Field(default=0.999, ge=0, lt=1)
    clip: float = Field(default=1.0, gt=0)  # gradient norm
    checkpoint_minutes: float = Field(default=4.0, gt=0)
    grid_steps: int = Field(default=500, gt=0)
    log_steps: int = Field(default=50, gt=0)
    workers: int = Field(default=1, ge=0)  # loader processes
    seed: int = 0
    precision: Literal["bf16", "fp32"] = "bf16"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    channels_last: bool = True

    def after(self, weights: str) -> "LoopConfig":
        """The same options with a seed for a run that goes on from weights of that SHA-256.

        With the seed they were trained with it would begin with samples they know: six runs in a row that did so left a
        restorer .36 dB better, and .9 dB under covers, on those samples than on others of the same faces.
        """
        mixed = hashlib.sha256(f"{self.seed} {weights}".encode()).digest()
        return self.model_copy(update={"seed": int.from_bytes(mixed[:4], "big")})

    def resolved_device(self) -> torch.device:
        wanted = ("cuda" if torch.cuda.is_available() else "cpu") if self.device == "auto" else self.device
        return torch.device(wanted)

    def teacher(self, name: str, kind: type[NetworkT]) -> NetworkT:
        """The frozen network of card `name`, on the device and in the precision of the run; raises as `network_of`."""
        dtype = torch.bfloat16 if self.precision == "bf16" else torch.float32
        return network_of(name, kind, self.resolved_device(), dtype)


def network_of(
    name: str, kind: type[NetworkT], device: torch.device = CPU, dtype: torch.dtype = torch.float32
) -> NetworkT:
    """The frozen network of card `name`.

    Raises:
        TrainingError: the card holds another network than a `kind`. WeightsError: as `load_network`.
    """
    network = load_network(name, device, dtype)
    if not isinstance(network, kind):
        raise TrainingError(f"{name} holds a {type(network).__name__}; a {kind.__name__} is needed here")
    return network


class Task(ABC):
    """What is trained.

    Attributes:
        network: the network whose EMA is kept and saved.
        others: further trained networks (discriminators), checkpointed with their own optimiser.
    """

    network: nn.Module
    others: dict[str, nn.Module]

    def trained_sets(self) -> np.ndarray:
        """The set of each face that is trained on: (N,) strings. Their counts go into the record, and onto the card."""
        return np.zeros(0, str)

    @abstractmethod
    def sample(self, index: int) -> dict[str, np.ndarray]:
        """Training sample number `index`; the same index always gives the same sample."""

    @abstractmethod
    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Loss of `network` on a batch and the parts of it worth logging (detached tensors or floats)."""

    def other_loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor | float]] | None:
        """Loss of `others` on the same batch, after `network` was updated; None where there is none."""
        return None

    def grid(self, network: nn.Module) -> np.ndarray | None:
        """A picture (H, W, 3) uint8 of what the network does on fixed validation samples."""
        return None

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Validation figures of the network."""
        return {}


class _Samples(Dataset[dict[str, np.ndarray]]):
    """This process's samples of a run: every `world`-th one."""

    def __init__(self, sample: Callable[[int], dict[str, np.ndarray]], first: int, end: int) -> None:
        self.sample, self.indices = sample, range(first + parallel.rank(), end, parallel.world())

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self.sample(self.indices[index])


def rng_of(seed: int, index: int) -> np.random.Generator:
    """The random numbers of sample `index` of a run."""
    return np.random.default_rng([seed, index])


def seed_step(seed: int, step: int) -> None:
    """Set the random numbers that torch draws at `step` of a run, on every device; each process has its own."""
    torch.manual_seed(int(np.random.default_rng([seed, step, parallel.rank()]).integers(2**63)))


def lr_share(step: int, config: LoopConfig, seconds: float = 0.0) -> float:
    """Share of the full learning rate at `step`, after `seconds` of training."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    done = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    if config.minutes is not None:
        done = max(done, min(1.0, seconds / (60 * config.minutes)))
    if config.schedule == "cosine":
        return config.final_lr + (1 - config.final_lr) * 0.5 * (1 + float(np.cos(np.pi * done)))
    return 1.0 if done < 0.75 else config.final_lr + (1 - config.final_lr) * (1 - done) / 0.25


def _write_grid(path: Path, picture: np.ndarray) -> None:
    from PIL import Image

    Image.fromarray(picture).save(path)


def train(build: Callable[[], Task], config: LoopConfig, record: dict[str, Any], resume: bool = False) -> nn.Module:
    """`fit` what `build` makes, together with the other processes where torchrun started several."""
    _checkpoint(config, resume)  # before faces are packed for nothing
    with parallel.joined():
        with parallel.first_alone():  # it packs the faces and labels them
            task = build()
        return fit(task, config, record, resume)


def _checkpoint(config: LoopConfig, resume: bool) -> Path:
    """Where the run's checkpoint is, or will be. Raises `FileExistsError`: it is there, and `resume` is False."""
    path = config.run / "checkpoint.pt"
    if path.exists() and not resume:
        raise FileExistsError(f"{path} exists; go on with --resume, or name another run folder")
    return path


def fit(task: Task, config: LoopConfig, record: dict[str, Any], resume: bool = False) -> nn.Module:
    """Train until `config.steps` or `config.minutes`; returns the EMA network.

    Args:
        record: the resolved configuration, kept beside the checkpoints.
        resume: go on from `run/checkpoint.pt` if it is there. Without it a run folder that holds one is refused.

    Raises:
        FileExistsError: the run folder holds a checkpoint and `resume` is False.
        TrainingError: the batch does not divide by the number of processes (training.parallel).
    """
    from torch.utils.tensorboard import SummaryWriter

    if config.batch_size % parallel.world():
        raise TrainingError(f"batch_size = {config.batch_size}: must divide by the {parallel.world()} processes")
    device, first = config.resolved_device(), parallel.rank() == 0
    checkpoint = _checkpoint(config, resume)
    config.run.mkdir(parents=True, exist_ok=True)
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    network = task.network.to(device).to(memory_format=layout)
    optimiser = build_optimiser(network, config.optimiser, config.lr, config.weight_decay)
    others = nn.ModuleDict(task.others).to(device).to(memory_format=layout)
    other_optimiser = (
        torch.optim.AdamW(others.parameters(), config.lr, (0.5, 0.99), weight_decay=0) if len(others) else None
    )
    ema = {k: v.detach().clone().float() for k, v in network.state_dict().items()}
    step, seconds = 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)  # noqa: TID251 tensors only
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        if other_optimiser is not None and "others" in state:
            others.load_state_dict(state["others"])
            other_optimiser.load_state_dict(state["other_optimiser"])
        ema, step, seconds = state["ema"], state["step"], state.get("seconds", 0.0)
    if first:
        sets, counts = np.unique(task.trained_sets(), return_counts=True)
        record = record | {"counts": dict(zip(sets.tolist(), counts.tolist(), strict=True))}
        (config.run / "config.yaml").write_text(yaml.safe_dump(record, sort_keys=False), encoding="utf-8")
    loader = DataLoader(
        _Samples(task.sample, step * config.batch_size, config.steps * config.batch_size),
        batch_size=config.batch_size // parallel.world(),
        num_workers=config.workers,
        prefetch_factor=4 if config.workers else None,
    )

    def save() -> None:
        state = {
            "network": network.state_dict(),
            "optimiser": optimiser.state_dict(),
            "ema": ema,
            "step": step,
            "seconds": seconds,
        }
        if other_optimiser is not None:
            state |= {"others": others.state_dict(), "other_optimiser": other_optimiser.state_dict()}
        with whole_file(checkpoint) as file:
            torch.save(state, file)

    def ema_network() -> nn.Module:
        averaged = copy.deepcopy(network)
        averaged.load_state_dict(ema)
        return averaged.eval()

    threads = torch.get_num_threads()

    def report(seen: int) -> None:
        torch.set_num_threads(threads * parallel.world())  # the other processes wait
        kept = ema_network()
        figures = task.validate(kept)
        picture = task.grid(kept)
        torch.set_num_threads(threads)
        if picture is not None:
            _write_grid(config.run / f"grid_{step:07d}.png", picture)
        for key, value in figures.items():
            writer.add_scalar(f"validation/{key}", value, step)
        with (config.run / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(
                json.dumps({"step": step, "samples": seen, "time": round(time.time()), "validation": figures}) + "\n"
            )

    writer = SummaryWriter(str(config.run / "tensorboard"), filename_suffix=f".{parallel.rank()}")
    last_save, last_log = time.monotonic(), time.monotonic()
    sums: dict[str, float] = {}
    pending: list[dict[str, Tensor | float]] = []
    last_step = time.monotonic()
    for batch in loader:
        now = time.monotonic()
        seconds = parallel.of_the_first(seconds + now - last_step)  # else the processes' learning rates would differ
        last_step = now
        last = step + 1 == config.steps or (config.minutes is not None and seconds >= 60 * config.minutes)
        batch = {k: v.to(device, non_blocking=True) for k, v in batch.items()}
        seed_step(config.seed, step)
        share = lr_share(step, config, seconds)
        for group in optimiser.param_groups:
            group["lr"] = group["base_lr"] * share
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss, parts = task.loss(batch, step)
        loss.backward()
        parallel.average_gradients(network.parameters())
        norm = torch.nn.utils.clip_grad_norm_(network.parameters(), config.clip)
        if torch.isfinite(norm):
            optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        if other_optimiser is not None:
            for group in other_optimiser.param_groups:
                group["lr"] = (config.other_lr or config.lr) * share
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                other = task.other_loss(batch, step)
            if other is not None:
                other[0].backward()
                parallel.average_gradients(others.parameters())
                other_optimiser.step()
                other_optimiser.zero_grad(set_to_none=True)
                parts = {**parts, **other[1]}
        step += 1
        decay = min(config.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            own = network.state_dict()
            torch._foreach_lerp_([ema[k] for k in ema], [own[k].float() for k in ema], 1 - decay)
        if not first:
            if last:
                break
            continue
        pending.append({"loss": loss.detach(), "norm": norm, **parts})
        if step % config.log_steps == 0 or last:
            keys = sorted({k for p in pending for k in p})
            sums = {k: float(np.mean([float(p[k]) for p in pending if k in p])) for k in keys}
            speed = len(pending) * config.batch_size / (time.monotonic() - last_log)
            line = {
                "step": step,
                "samples": step * config.batch_size,
                "lr": optimiser.param_groups[0]["lr"],
                "per_second": round(speed, 1),
            }
            with (config.run / "log.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line | {k: round(v, 5) for k, v in sums.items()}) + "\n")
            for key, value in sums.items():
                writer.add_scalar(f"training/{key}", value, step)
            pending, last_log = [], time.monotonic()
        if step % config.grid_steps == 0 or last:
            report(step * config.batch_size)
            last_log = time.monotonic()
        if time.monotonic() - last_save > config.checkpoint_minutes * 60 or last:
            save()
            last_save = time.monotonic()
        if last:
            break
    writer.close()
    return ema_network()
