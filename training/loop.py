"""The training loop every network shares: exact resume, EMA, checkpoints, sample grids, TensorBoard.

A task says what to train; the loop says when. Sample number i of a run is always the same sample (its random numbers
come from the run's seed and i), and what torch draws at a step (dropout) comes from the seed, the step and the process;
so a run that was stopped and resumed does what an unbroken run would have done.
"""

import copy
import hashlib
import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
import yaml
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from stages.precision import Precision, fastest_precision
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
    precision: Literal["auto", "bf16", "fp32"] = "auto"  # auto: what the device computes fastest
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

    def resolved_precision(self) -> Precision:
        return fastest_precision(self.resolved_device()) if self.precision == "auto" else self.precision

    def autocast(self) -> torch.autocast:
        """Context in which networks of the run compute."""
        return torch.autocast(self.resolved_device().type, torch.bfloat16, enabled=self.resolved_precision() == "bf16")

    def teacher(self, name: str, kind: type[NetworkT]) -> NetworkT:
        """The frozen network of card `name`, on the device and in the precision of the run; raises as `network_of`."""
        dtype = torch.bfloat16 if self.resolved_precision() == "bf16" else torch.float32
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


class _Run:
    """What is trained and how far it has come, as in a checkpoint: the network, its EMA, `others`, both optimisers."""

    def __init__(self, task: Task, config: LoopConfig) -> None:
        self.task, self.config, self.device = task, config, config.resolved_device()
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.network = task.network.to(self.device).to(memory_format=layout)
        self.optimiser = build_optimiser(self.network, config.optimiser, config.lr, config.weight_decay)
        self.others = nn.ModuleDict(task.others).to(self.device).to(memory_format=layout)
        self.other_optimiser = (
            torch.optim.AdamW(self.others.parameters(), config.lr, (0.5, 0.99), weight_decay=0) if task.others else None
        )
        self.ema = {k: v.detach().clone().float() for k, v in self.network.state_dict().items()}
        self.step, self.seconds = 0, 0.0

    @property
    def done(self) -> bool:
        """Whether the steps or the minutes are used up."""
        config = self.config
        return self.step == config.steps or (config.minutes is not None and self.seconds >= 60 * config.minutes)

    def load(self, checkpoint: Path) -> None:
        state = torch.load(checkpoint, map_location=self.device, weights_only=True)  # noqa: TID251 tensors only
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        if self.other_optimiser is not None and "others" in state:
            self.others.load_state_dict(state["others"])
            self.other_optimiser.load_state_dict(state["other_optimiser"])
        self.ema, self.step, self.seconds = state["ema"], state["step"], state.get("seconds", 0.0)

    def save(self, checkpoint: Path) -> None:
        state = {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "ema": self.ema,
            "step": self.step,
            "seconds": self.seconds,
        }
        if self.other_optimiser is not None:
            state |= {"others": self.others.state_dict(), "other_optimiser": self.other_optimiser.state_dict()}
        with whole_file(checkpoint) as file:
            torch.save(state, file)

    def averaged(self) -> nn.Module:
        """A copy of the network with the EMA's weights."""
        network = copy.deepcopy(self.network)
        network.load_state_dict(self.ema)
        return network.eval()

    def learn(self, batch: dict[str, Tensor]) -> dict[str, Tensor | float]:
        """One step of everything on a batch; returns what is worth logging."""
        batch = {k: v.to(self.device, non_blocking=True) for k, v in batch.items()}
        seed_step(self.config.seed, self.step)
        share = lr_share(self.step, self.config, self.seconds)
        parts = self._update_network(batch, share) | self._update_others(batch, share)
        self.step += 1
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            own = self.network.state_dict()
            torch._foreach_lerp_([self.ema[k] for k in self.ema], [own[k].float() for k in self.ema], 1 - decay)
        return parts

    def _update_network(self, batch: dict[str, Tensor], share: float) -> dict[str, Tensor | float]:
        for group in self.optimiser.param_groups:
            group["lr"] = group["base_lr"] * share
        with self.config.autocast():
            loss, parts = self.task.loss(batch, self.step)
        loss.backward()
        parallel.average_gradients(self.network.parameters())
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip)
        if torch.isfinite(norm):
            self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return {"loss": loss.detach(), "norm": norm, **parts}

    def _update_others(self, batch: dict[str, Tensor], share: float) -> dict[str, Tensor | float]:
        if self.other_optimiser is None:
            return {}
        for group in self.other_optimiser.param_groups:
            group["lr"] = (self.config.other_lr or self.config.lr) * share
        with self.config.autocast():
            found = self.task.other_loss(batch, self.step)
        if found is None:
            return {}
        loss, parts = found
        loss.backward()
        parallel.average_gradients(self.others.parameters())
        self.other_optimiser.step()
        self.other_optimiser.zero_grad(set_to_none=True)
        return parts


class _Log:
    """What a run says of itself while it goes on: `log.jsonl`, TensorBoard and the grids in its folder."""

    def __init__(self, run: _Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.run, self.folder = run, run.config.run
        self.writer = SummaryWriter(str(self.folder / "tensorboard"), filename_suffix=f".{parallel.rank()}")
        self.pending: list[dict[str, Tensor | float]] = []  # parts of the steps since the last line
        self.since = time.monotonic()

    def training(self) -> None:
        """A line with the means of the pending steps."""
        run, batch_size = self.run, self.run.config.batch_size
        keys = sorted({k for p in self.pending for k in p})
        means = {k: float(np.mean([float(p[k]) for p in self.pending if k in p])) for k in keys}
        speed = len(self.pending) * batch_size / (time.monotonic() - self.since)
        line = {
            "step": run.step,
            "samples": run.step * batch_size,
            "lr": run.optimiser.param_groups[0]["lr"],
            "per_second": round(speed, 1),
        }
        self._write(line | {k: round(v, 5) for k, v in means.items()}, "training", means)
        self.say(f"step {run.step:,}: loss {means['loss']:.4f}, {speed:.1f} samples a second")
        self.pending, self.since = [], time.monotonic()

    def validation(self) -> None:
        """A line with the figures of the EMA network, and its grid."""
        run, threads = self.run, torch.get_num_threads()
        torch.set_num_threads(threads * parallel.world())  # the other processes wait
        network = run.averaged()
        figures, picture = run.task.validate(network), run.task.grid(network)
        torch.set_num_threads(threads)
        if picture is not None:
            Image.fromarray(picture).save(self.folder / f"grid_{run.step:07d}.png")
        samples = run.step * run.config.batch_size
        line = {"step": run.step, "samples": samples, "time": round(time.time()), "validation": figures}
        self._write(line, "validation", figures)
        self.since = time.monotonic()

    def say(self, words: str) -> None:
        """A line of progress, on standard error."""
        print(f"{self.folder.name}: {words}", file=sys.stderr, flush=True)

    def _write(self, line: dict[str, Any], section: str, figures: dict[str, float]) -> None:
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        for key, value in figures.items():
            self.writer.add_scalar(f"{section}/{key}", value, self.run.step)


def fit(task: Task, config: LoopConfig, record: dict[str, Any], resume: bool = False) -> nn.Module:
    """Train until `config.steps` or `config.minutes`; returns the EMA network.

    Args:
        record: the resolved configuration, kept beside the checkpoints.
        resume: go on from `run/checkpoint.pt` if it is there. Without it a run folder that holds one is refused.

    Raises:
        FileExistsError: the run folder holds a checkpoint and `resume` is False.
        TrainingError: the batch does not divide by the number of processes (training.parallel).
    """
    if config.batch_size % parallel.world():
        raise TrainingError(f"batch_size = {config.batch_size}: must divide by the {parallel.world()} processes")
    checkpoint, first = _checkpoint(config, resume), parallel.rank() == 0
    config.run.mkdir(parents=True, exist_ok=True)
    run = _Run(task, config)
    if checkpoint.exists():
        run.load(checkpoint)
    if first:
        sets, counts = np.unique(task.trained_sets(), return_counts=True)
        record = record | {"counts": dict(zip(sets.tolist(), counts.tolist(), strict=True))}
        (config.run / "config.yaml").write_text(yaml.safe_dump(record, sort_keys=False), encoding="utf-8")
    loader = DataLoader(
        _Samples(task.sample, run.step * config.batch_size, config.steps * config.batch_size),
        batch_size=config.batch_size // parallel.world(),
        num_workers=config.workers,
        prefetch_factor=4 if config.workers else None,
    )
    log = _Log(run)
    last_save = last_step = time.monotonic()
    for batch in loader:
        now = time.monotonic()
        # Of the first process, else the processes' learning rates would differ.
        run.seconds, last_step = parallel.of_the_first(run.seconds + now - last_step), now
        parts = run.learn(batch)
        if first:
            log.pending.append(parts)
            if run.step % config.log_steps == 0 or run.done:
                log.training()
            if run.step % config.grid_steps == 0 or run.done:
                log.validation()
            if time.monotonic() - last_save > config.checkpoint_minutes * 60 or run.done:
                run.save(checkpoint)
                last_save = time.monotonic()
        if run.done:
            break
    if first:
        log.say(f"{run.step:,} steps, {run.step * config.batch_size:,} samples; {config.run}")
    log.writer.close()
    return run.averaged()
