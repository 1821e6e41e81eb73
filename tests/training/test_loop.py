"""The loop: exact resume, checkpoints, refusal to overwrite; the optimisers."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training.loop import LoopConfig, Task, fit, lr_share, rng_of, seed_step
from training.optimiser import build_optimiser, orthogonalise


class LineTask(Task):
    """Fits a 32x32 linear map; small enough for many steps in a second."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        self.network: nn.Module = nn.Linear(32, 32)
        self.others = {}
        self.seen: list[int] = []

    def sample(self, index: int) -> dict[str, np.ndarray]:
        self.seen.append(index)
        x = rng_of(0, index).normal(size=32).astype(np.float32)
        return {"x": x, "y": x[::-1].copy()}

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        return (self.network(batch["x"]) - batch["y"]).square().mean(), {}


class DroppingTask(LineTask):
    """The same with dropout, so that what torch draws counts."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Dropout(0.2), self.network)


def config(run: Path, steps: int, **changes: object) -> LoopConfig:
    options = {
        "run": run,
        "steps": steps,
        "batch_size": 4,
        "lr": 1e-2,
        "warmup": 5,
        "workers": 0,
        "precision": "fp32",
        "device": "cpu",
        "schedule": "flat",
        "grid_steps": 1000,
        "channels_last": False,
    }
    return LoopConfig.model_validate(options | changes)


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_training_lowers_the_loss(tmp_path: Path, optimiser: str) -> None:
    task = LineTask()
    before = task.loss({k: torch.from_numpy(v)[None] for k, v in task.sample(999).items()}, 0)[0].item()
    network = fit(task, config(tmp_path, 150, optimiser=optimiser, ema=0.9), {})
    x = torch.from_numpy(rng_of(0, 999).normal(size=32).astype(np.float32))
    assert (network(x) - x.flip(0)).square().mean().item() < 0.3 * before


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_stopped_and_resumed_run_equals_an_unbroken_one(tmp_path: Path, optimiser: str) -> None:
    whole = fit(DroppingTask(), config(tmp_path / "whole", 40, optimiser=optimiser), {})

    class Stopped(DroppingTask):
        def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
            if step == 20:
                raise KeyboardInterrupt
            return super().loss(batch, step)

    with pytest.raises(KeyboardInterrupt):
        fit(Stopped(), config(tmp_path / "cut", 40, optimiser=optimiser, checkpoint_minutes=1e-9), {})
    second = DroppingTask()
    resumed = fit(second, config(tmp_path / "cut", 40, optimiser=optimiser), {}, resume=True)
    assert second.seen[0] == 20 * 4
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_torch_draws_depends_on_seed_step_and_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(seed: int, step: int, rank: str) -> float:
        monkeypatch.setenv("RANK", rank)
        seed_step(seed, step)
        return float(torch.rand(()))

    first = [drawn(seed, step, rank) for seed in (0, 1) for step in (0, 1) for rank in "01"]
    assert len(set(first)) == 8
    assert first == [drawn(seed, step, rank) for seed in (0, 1) for step in (0, 1) for rank in "01"]


@pytest.mark.gpu
def test_what_a_gpu_draws_depends_on_the_step_too() -> None:
    drawn = []
    for step in (0, 1, 0):
        seed_step(0, step)
        drawn.append(float(torch.rand((), device="cuda")))
    assert drawn[0] == drawn[2] != drawn[1]


def test_time_ends_a_run_and_its_schedule(tmp_path: Path) -> None:
    timed = config(tmp_path, 1_000_000, minutes=0.02)
    assert lr_share(100, timed, 0.5) == 1 and lr_share(100, timed, 1.2) == pytest.approx(0.02)
    fit(LineTask(), timed, {})
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)  # noqa: TID251 tensors only
    assert 1.2 <= state["seconds"] < 10 and 0 < state["step"] < 1_000_000


def test_an_existing_checkpoint_is_not_overwritten(tmp_path: Path) -> None:
    fit(LineTask(), config(tmp_path, 2), {})
    with pytest.raises(FileExistsError, match="--resume"):
        fit(LineTask(), config(tmp_path, 2), {})


def test_the_schedules_rise_and_fall(tmp_path: Path) -> None:
    flat, cosine = config(tmp_path, 105), config(tmp_path, 105, schedule="cosine")
    assert (
        lr_share(0, flat) == pytest.approx(0.2)
        and lr_share(60, flat) == 1
        and lr_share(105, flat) == pytest.approx(0.02)
    )
    assert lr_share(55, cosine) == pytest.approx(0.51) and lr_share(105, cosine) == pytest.approx(0.02)


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    values = torch.linalg.svdvals(orthogonalise(torch.randn(64, 200, generator=torch.Generator().manual_seed(0))))
    assert values.min() > 0.5 and values.max() < 1.4


def test_vectors_are_not_decayed() -> None:
    optimiser = build_optimiser(nn.Linear(4, 4), "adamw", 1e-3, 0.1)
    assert {(p.ndim, g["weight_decay"]) for g in optimiser.param_groups for p in g["params"]} == {(2, 0.1), (1, 0.0)}


TWO = """
import sys
import os
import subprocess
import sys
from pathlib import Path
import torch
from tests.training.test_loop import LineTask, config
from training import parallel
from training.loop import train

network = train(LineTask, config(Path(sys.argv[1]), 30, optimiser="muon"), {})
if parallel.rank() == 0:
    torch.save(network.state_dict(), sys.argv[2])
"""


def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    (tmp_path / "two.py").write_text(TWO)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    root = Path(__file__).parents[2]
    subprocess.run(
        [*launch, str(tmp_path / "two.py"), str(tmp_path / "run"), str(tmp_path / "two.pt")],
        check=True,
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        timeout=120,
    )
    two = torch.load(tmp_path / "two.pt", weights_only=True)  # noqa: TID251 tensors only
    one = fit(LineTask(), config(tmp_path / "one", 30, optimiser="muon"), {}).state_dict()
    start = LineTask().network.state_dict()
    for name, wanted in one.items():
        assert torch.allclose(two[name], wanted, atol=2e-3)  # bfloat16 steps of summed gradients
        assert not torch.allclose(start[name], wanted, atol=2e-2)
