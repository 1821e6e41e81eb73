"""Ctrl-C and `--fail-fast`: the batch in the network is finished, what only waits is done by the next run."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import engine
from pipeline.engine import Prepared, Request
from pipeline.pool import Pool
from pipeline.restorer import Restorer
from pipeline.verify import verify
from pipeline.worker import Job, Outcome, Worker
from tests.pipeline.conftest import colour, png, records, tree
from tests.pipeline.test_sources_frames import BOXES, by_face, frame

BATCH, INPUTS = 4, 200  # more than two workers hold, which is 84 each at most


def interrupt(marker: Path) -> bool:
    """Press Ctrl-C for the process that started the run, where nobody has yet; whether it was done here."""
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return False
    parent = multiprocessing.parent_process()
    os.kill(os.getpid() if parent is None else parent.pid, signal.SIGINT)
    return True


class Patient(Worker):
    """A worker whose network interrupts the run where nothing else does, and ends no batch before the stop is seen."""

    def process(self, tasks: Any, stopped: Callable[[], bool]) -> Iterator[Outcome]:  # type: ignore[override]
        run, marker = self.restorer.run, Path(self.job.output).with_name("interrupted")

        def network(*arguments: Any, **options: Any) -> Any:
            interrupt(marker)
            deadline = time.monotonic() + 60
            while not stopped():
                assert time.monotonic() < deadline, "the stop does not reach a worker at work"
                time.sleep(0.001)
            return run(*arguments, **options)

        self.restorer.run = network  # type: ignore[method-assign]
        return super().process(tasks, stopped)


def respawn_patient(request: Request, job: Job) -> Worker:
    """What a fresh process begins with."""
    return Patient(whole_respawn(request, job).restorer, job)


whole_respawn = engine.respawn


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Faces of one size, and a last input that fails as soon as it is read."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "zzz.png").write_bytes(b"")
    for i in range(INPUTS - 1):
        (folder / f"face{i:03d}.png").write_bytes(png(colour(i)))
    return folder


@pytest.mark.parametrize(
    ("workers", "start", "way"),
    [
        (1, "fork", "ctrl-c"),
        (1, "fork", "fail-fast"),
        (2, "fork", "ctrl-c"),
        (2, "fork", "fail-fast"),
        (2, "spawn", "ctrl-c"),
    ],
)
def test_a_stop_costs_each_worker_the_batch_in_its_network_and_the_next_run_does_the_rest(
    many: Path, tmp_path: Path, restore: Callable[..., int], workers: int, start: str, way: str
) -> None:
    out, fail_fast = tmp_path / "out", way == "fail-fast"
    if fail_fast:
        (many / "aaa.png").write_bytes(b"")
        (tmp_path / "interrupted").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Prepared, "make_worker", lambda self: Patient(self.restorer, self.job))
        patch.setattr(Prepared, "forks", start == "fork")
        patch.setattr("pipeline.pool.context", lambda _: multiprocessing.get_context(start))
        patch.setattr(engine, "respawn", respawn_patient)
        assert restore(many, out, workers=workers, batch_size=BATCH, fail_fast=fail_fast) == 1
    stopped, done = json.loads((out / "_run" / "run.json").read_text()), records(out)
    assert 0 < len(done) <= fail_fast + workers * BATCH and "zzz.png" not in done
    assert set(tree(out)) == {r["output"] for r in done.values()} - {None}
    assert sum(stopped["counts"].values()) == len(done)
    assert stopped["not_reached"] == INPUTS + fail_fast - len(done)
    assert stopped["interrupted"] != fail_fast
    assert verify(out) == 0

    assert restore(many, out, workers=2, batch_size=BATCH) == 1
    assert json.loads((out / "_run" / "run.json").read_text())["kept_from_earlier_run"] == len(done) - fail_fast
    assert restore(many, tmp_path / "whole", workers=1) == 1
    assert tree(out) == tree(tmp_path / "whole") and list(records(out)) == list(records(tmp_path / "whole"))


def test_what_a_worker_that_died_held_is_not_given_out_again_after_a_stop(
    many: Path, tmp_path: Path, restore: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Deadly(Patient):
        def process(self, tasks: Any, stopped: Callable[[], bool]) -> Iterator[Outcome]:  # type: ignore[override]
            def network(*_: Any, **__: Any) -> None:
                while not interrupt(tmp_path / "interrupted") and not stopped():
                    time.sleep(0.001)
                os._exit(9)

            self.restorer.run = network  # type: ignore[method-assign,assignment]
            return Worker.process(self, tasks, stopped)

    begun, start = [], Pool._start
    monkeypatch.setattr(Prepared, "make_worker", lambda self: Deadly(self.restorer, self.job))
    monkeypatch.setattr(Pool, "_start", lambda self: begun.append(1) or start(self))
    assert restore(many, tmp_path / "out", workers=2, batch_size=BATCH) == 1
    assert len(begun) == 2 and not records(tmp_path / "out") and verify(tmp_path / "out") == 4
    assert json.loads((tmp_path / "out" / "_run" / "run.json").read_text())["not_reached"] == INPUTS


def after(calls: int, whole: Callable[..., Any], marker: Path) -> tuple[Callable[..., Any], list[int]]:
    """`whole`, interrupting the run at its call number `calls`, and the calls so far."""
    made: list[int] = []

    def called(*arguments: Any, **options: Any) -> Any:
        made.append(1)
        if len(made) == calls:
            interrupt(marker)
        return whole(*arguments, **options)

    return called, made


def test_large_pictures_that_wait_are_not_begun_after_a_stop(
    many: Path, tmp_path: Path, restore: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, load = [], Worker._load

    def noted(self: Worker, *arguments: Any, alone: bool = False) -> Any:
        begun.extend([1] * alone)
        return load(self, *arguments, alone)

    monkeypatch.setattr("pipeline.worker.LARGE_PIXELS", 1)
    monkeypatch.setattr(Worker, "_load", noted)
    monkeypatch.setattr(Restorer, "run", after(1, Restorer.run, tmp_path / "interrupted")[0])
    assert restore(many, tmp_path / "out", workers=1, batch_size=BATCH) == 1
    assert len(begun) == 1 and list(records(tmp_path / "out")) == ["face000.png"]


@pytest.fixture
def frames(tmp_path: Path) -> tuple[Path, Path]:
    """Six frames of three faces, and the file of their boxes."""
    folder, boxes = tmp_path / "in", tmp_path / "boxes.csv"
    folder.mkdir()
    rows = ["image,x,y,w,h"]
    for i in range(6):
        (folder / f"f{i}.png").write_bytes(png(frame(i)))
        rows += [f"f{i}.png,{x},10,24,24" for x in (2, 28, 54)]
    boxes.write_text("\n".join(rows))
    return folder, boxes


@pytest.mark.parametrize("on_exists", ["skip", "overwrite", "error"])
def test_a_frame_of_which_a_face_still_waits_keeps_none_of_its_faces(
    frames: tuple[Path, Path], tmp_path: Path, restore: Callable[..., int], on_exists: str
) -> None:
    (folder, boxes), out = frames, tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:  # the fifth batch of two: last face of frame 2, first of frame 3
        patch.setattr(Restorer, "run", after(5, Restorer.run, tmp_path / "interrupted")[0])
        assert restore(folder, out, BOXES, boxes=boxes, workers=1, batch_size=2) == 1
    assert set(by_face(out)) == {(f"f{i}.png", face) for i in range(3) for face in (None, 0, 1, 2)}
    assert json.loads((out / "_run" / "run.json").read_text())["counts"] == {"ok": 3}
    assert verify(out) == 0, "no file is there that the journal does not know"

    assert restore(folder, out, BOXES, boxes=boxes, workers=1, batch_size=2, on_exists=on_exists) == 0
    summary = json.loads((out / "_run" / "run.json").read_text())
    assert summary["counts"] == {"ok": 6} and summary["kept_from_earlier_run"] == 3
    restore(folder, tmp_path / "whole", BOXES, boxes=boxes, workers=1)
    assert tree(out) == tree(tmp_path / "whole")


def test_a_stop_among_faces_that_replace_earlier_ones_leaves_files_and_journal_in_agreement(
    frames: tuple[Path, Path], tmp_path: Path, restore: Callable[..., int]
) -> None:
    (folder, boxes), out, larger = frames, tmp_path / "out", ("stages.1.size=40",)
    listed = boxes.read_text()
    boxes.write_text(listed.replace("f3.png,28,10,24,24\nf3.png,54,10,24,24\n", ""))
    restore(folder, out, BOXES, boxes=boxes, workers=1)
    boxes.write_text(listed)
    with pytest.MonkeyPatch.context() as patch:  # the eleventh face is the second of frame 3
        patch.setattr(Restorer, "run", after(11, Restorer.run, tmp_path / "interrupted")[0])
        assert restore(folder, out, BOXES, boxes=boxes, workers=1, batch_size=1, overrides=larger) == 1
    found = by_face(out)
    assert ("f3.png", 0) in found and ("f3.png", 1) not in found, "its earlier line counts one face"
    assert verify(out) == 0
    assert restore(folder, out, BOXES, boxes=boxes, workers=1, overrides=larger) == 0
    restore(folder, tmp_path / "whole", BOXES, boxes=boxes, workers=1, overrides=larger)
    assert tree(out) == tree(tmp_path / "whole") and verify(out) == 0


def test_a_stop_while_everything_is_done_again_leaves_files_and_journal_in_agreement(
    frames: tuple[Path, Path], tmp_path: Path, restore: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder, boxes), out = frames, tmp_path / "out"
    restore(folder, out, BOXES, boxes=boxes, workers=1)
    first = tree(out)
    with pytest.MonkeyPatch.context() as patch:  # as above: the first face of frame 3 is made, the others wait
        patch.setattr(Restorer, "run", after(5, Restorer.run, tmp_path / "interrupted")[0])
        assert restore(folder, out, BOXES, boxes=boxes, workers=1, batch_size=2, resume=False) == 1
    assert "3 of 6 inputs not reached; the same command without --no-resume goes on" in capsys.readouterr().err
    summary = json.loads((out / "_run" / "run.json").read_text())
    assert summary["not_reached"] == 3 and summary["kept_from_earlier_run"] == 0
    assert tree(out) == first and verify(out) == 0


def test_a_video_is_left_at_the_frame_of_the_stop_and_done_anew(tmp_path: Path, restore: Callable[..., int]) -> None:
    pytest.importorskip("av", reason='the extra "video" is not installed')
    from pipeline.sources import video
    from tests.pipeline.test_sources_video import TRACKS, boxes_of, scene, write_video

    folder, boxes, out = tmp_path / "in", tmp_path / "boxes.csv", tmp_path / "out"
    folder.mkdir()
    write_video(folder / "v.mkv", [scene(i) for i in range(10)])
    boxes_of(boxes, "v.mkv", range(10))
    with pytest.MonkeyPatch.context() as patch:
        find, calls = after(3, video.find, tmp_path / "interrupted")
        patch.setattr(video, "find", find)
        assert restore(folder, out, TRACKS, boxes=boxes, workers=1) == 1
    assert len(calls) == 3 and not by_face(out) and not tree(out)
    assert json.loads((out / "_run" / "run.json").read_text())["not_reached"] == 1
    assert restore(folder, out, TRACKS, boxes=boxes, workers=1, on_exists="error") == 0
    assert by_face(out)["v.mkv", None]["faces"] == 2
