"""Thumbnails, work counts and watching processes; no timing is asserted."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation import benchmark, endurance, memory, restore_command, scaling
from evaluation.faces import example_faces
from evaluation.operations import operations


def test_thumbnails_are_seeded_distinct_and_16_px(tmp_path: Path) -> None:
    restore_command.make_thumbnails(tmp_path / "a", 12)
    restore_command.make_thumbnails(tmp_path / "b", 12)
    files = sorted((tmp_path / "a").iterdir())
    contents = [f.read_bytes() for f in files]
    assert len(files) == 12 and len(set(contents)) == 12
    assert contents == [f.read_bytes() for f in sorted((tmp_path / "b").iterdir())]
    assert all(Image.open(f).size == (16, 16) for f in files)


def test_the_astronaut_fills_the_canonical_frame() -> None:
    face = example_faces()[0]
    assert face.shape == (128, 128, 3)
    mouth, cheek = face[90:98, 50:78].astype(float), face[75:85, 40:50].astype(float)
    assert np.std(mouth) > np.std(cheek)  # teeth and lips against skin


def test_the_peak_is_a_positive_rate() -> None:
    assert benchmark.convolution_peak(torch.float32, torch.device("cpu"), seconds=0.01) > 1e8


def test_work_is_counted_under_inference_mode_too() -> None:
    layer, x = torch.nn.Conv2d(8, 16, 3, padding=1), torch.randn(2, 8, 10, 10)

    @torch.inference_mode()
    def call() -> torch.Tensor:
        return layer(x)

    assert operations(call) == 2 * 9 * 8 * 16 * 100 * 2


def test_statuses_are_counted_from_the_journal(tmp_path: Path) -> None:
    (tmp_path / "_run").mkdir()
    lines = [json.dumps({"status": s}) for s in ("ok", "ok", "corrupt")]
    (tmp_path / "_run" / "journal.jsonl").write_text("\n".join(lines) + "\n")
    assert restore_command.journal_statuses(tmp_path) == {"ok": 2, "corrupt": 1}


def test_tables_show_every_run() -> None:
    speed = benchmark.Speed("bf16", 2000, 40.0, 50.0, {"ok": 2000}, 80.0, 2.5, 200.0, 400.0, 0.5, 0.31)
    assert "| bf16 | 2000 | 40.0 | 50.0 | 80.0 | 2.50 | 200 | 400 | 50% | 31% |" in benchmark.table([speed])
    peaks = [memory.Peak(200, 9, 700.0, 690.0, {}), memory.Peak(20000, 400, 2100.0, 900.0, {})]
    assert memory.table(peaks).count("pass") == 1 and "**FAIL**" in memory.table(peaks)


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc")
def test_watching_sees_the_memory_of_a_child_and_its_exit_code() -> None:
    hold = "import time; block = bytearray(120 << 20); time.sleep(0.6); raise SystemExit(3)"
    parent = f"import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', {hold!r}]).returncode)"
    code, seconds, tree, single = restore_command.watch([sys.executable, "-c", parent])
    assert code == 3 and seconds > 0.5 and tree > 120 and single > 120


def test_a_killed_command_is_started_again_until_it_ends_by_itself(tmp_path: Path) -> None:
    worker = (  # one line of the journal every 20 ms up to 150, with a file for each; goes on where it was stopped
        "import pathlib, sys, time; out = pathlib.Path(sys.argv[1]); run = out / '_run'\n"
        "run.mkdir(parents=True, exist_ok=True)\n"
        "journal = run / 'journal.jsonl'; done = journal.read_text().count('\\n') if journal.exists() else 0\n"
        "for i in range(done, 150):\n"
        "    (out / f'{i}.txt').write_text(str(i)); open(journal, 'a').write('{}\\n'); time.sleep(0.02)\n"
    )
    lines = endurance.run_killed([sys.executable, "-c", worker, str(tmp_path)], tmp_path, 3, 0.6)
    assert len(lines) == 3 and lines == sorted(lines) and lines[-1] < 150
    found = restore_command.tree_hashes(tmp_path)
    assert set(found) == {f"{i}.txt" for i in range(150)} and len(set(found.values())) == 150
    with pytest.raises(RuntimeError, match="exit code 3"):
        endurance.run_killed([sys.executable, "-c", "raise SystemExit(3)"], tmp_path, 0, 1)


def test_endurance_names_every_bar_that_is_missed() -> None:
    good = endurance.Endurance(10, 1.0, 10.0, 11.0, 100.0, 109.0, {"ok": 10}, 10, 0.1, 1.0, 4.0, 1, 5, 2, True)
    assert good.problems() == [] and "the same files" in endurance.table(good)
    assert replace(good, report_seconds=None).problems() == []
    bad = replace(good, large_mib=111.0, inputs=9, journal_seconds=6.0, report_seconds=6.0, short_rate=12.0, same=False)
    assert [p.split()[0] for p in bad.problems()] == ["the", "memory", "reading", "opening", "10.0", "the"]
    assert "**other files**" in endurance.table(bad)


def test_two_workers_are_held_against_one_of_the_same_engine() -> None:
    measured = ("local", 1, 100.0), ("local", 2, 55.0), ("ray", 2, 50.0)
    runs = [scaling.Run(engine, workers, seconds, same=True) for engine, workers, seconds in measured]
    assert scaling.speedups(runs) == {"local": pytest.approx(100 / 55)} and scaling.problems(runs, 2) == []
    runs.append(scaling.Run("ray", 1, 80.0, False))
    found = scaling.problems(runs, 2)
    assert len(found) == 2 and "other files" in found[0] and "1.60" in found[1]
    assert len(scaling.problems(runs, 1)) == 1  # one core: no bar
    assert "| local | 2 | 55.0 | 2.0 | 1.82 |" in scaling.table(runs, 110)
