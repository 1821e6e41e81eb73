"""An output that cannot be written: a typed word, no torn file, and the same tree once there is room. What stands in
the way of one output costs that one only."""

import errno
import json
import multiprocessing
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.engine import Request, run
from pipeline.output import OutputError, OutputLock, OutputLostError
from tests.pipeline.conftest import RESAMPLE, records, tree

LARGE = {**RESAMPLE, "stages": [{"stage": "resample", "size": 128}]}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system of its own with the given options; needs the right to do so."""
    made = tmp_path / "disk"
    made.mkdir()

    def mount(options: str) -> Path:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(made)], capture_output=True)
        if done.returncode:
            pytest.skip(f"no right to mount a file system here: {done.stderr.decode().strip()}")
        return made

    yield mount
    subprocess.run(["umount", str(made)], capture_output=True)


def sound(output: Path) -> None:
    """Nothing torn: every picture decodes, no temporary file is left, every record tells the truth."""
    for path in output.rglob("*.png"):
        Image.open(path).load()
    assert not [p for p in output.rglob("*") if p.name.startswith(".revisage-")]
    for line in (output / "_run" / "journal.jsonl").read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            record = json.loads(line)
            assert record["output"] is None or (output / record["output"]).is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_is_a_typed_error_and_the_run_goes_on_when_there_is_room(
    folder: Path, tmp_path: Path, restore: Callable[..., int], small_disk: Callable[[str], Path], workers: int
) -> None:
    disk = small_disk("size=400k")
    with pytest.raises(OutputLostError, match="No space left on device"):
        restore(folder, disk / "out", LARGE, workers=workers)
    done = len(list((disk / "out" / "restored").rglob("*.png")))
    assert 0 < done < 40
    sound(disk / "out")
    subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
    assert restore(folder, disk / "out", LARGE, workers=workers) == 0
    assert restore(folder, tmp_path / "whole", LARGE, workers=1) == 0
    assert tree(disk / "out") == tree(tmp_path / "whole")
    sound(disk / "out")


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a tmpfs")
def test_a_read_only_output_is_refused_before_any_work(
    folder: Path, restore: Callable[..., int], small_disk: Callable[[str], Path]
) -> None:
    disk = small_disk("size=1m")
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(OutputError, match="cannot be written: Read-only file system"):
        restore(folder, disk / "out", workers=1)
    assert not list(disk.iterdir())


def test_a_limit_on_the_size_of_files_is_told_and_leaves_no_torn_file(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, 12_000))
        try:
            code = run(Request((str(folder),), out, LARGE, workers=1))
        except OutputLostError:
            code = 77
        os._exit(code)

    process = multiprocessing.get_context("fork").Process(target=limited)
    process.start()
    process.join()
    assert process.exitcode == 77, "the journal could not grow"
    sound(out)
    assert run(Request((str(folder),), out, LARGE, workers=1)) == 0
    assert len(records(out)) == 40


def test_a_disk_that_fills_while_a_large_picture_is_edited_ends_the_run(
    folder: Path, tmp_path: Path, restore: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("pipeline.worker.LARGE_PIXELS", 100)
    monkeypatch.setattr("pipeline.large.editor_of", lambda chain: object())
    monkeypatch.setattr("pipeline.large.edit_picture", full)
    with pytest.raises(OutputLostError, match="No space left on device"):
        restore(folder, tmp_path / "out", LARGE, workers=1)


def test_a_second_run_into_the_same_output_is_refused_while_the_first_is_at_work(
    folder: Path, tmp_path: Path, restore: Callable[..., int]
) -> None:
    out = tmp_path / "out"
    ready, done = multiprocessing.Event(), multiprocessing.Event()

    def hold() -> None:
        lock = OutputLock(out / "_run" / "lock")
        ready.set()
        done.wait(60)
        lock.release()

    process: Any = multiprocessing.get_context("fork").Process(target=hold)
    process.start()
    assert ready.wait(60)
    with pytest.raises(OutputError, match=f"another run is at work in .*process {process.pid}"):
        restore(folder, out, workers=1)
    assert not (out / "restored").exists()
    done.set()
    process.join()
    assert restore(folder, out, workers=1) == 0


@pytest.mark.parametrize("workers", [1, 2])
def test_what_lies_in_the_place_of_an_output_fails_that_item_and_no_other(
    folder: Path, tmp_path: Path, restore: Callable[..., int], workers: int
) -> None:
    out = tmp_path / "out"
    occupied, closed = out / "restored" / "face00.png", out / "restored" / "sub"
    occupied.mkdir(parents=True)
    closed.write_bytes(b"a file in the place of a folder")
    assert restore(folder, out, workers=workers) == 1
    found = records(out)
    assert found["face00.png"]["error"] == f"cannot be written: {occupied}: Is a directory"
    assert found["sub/face01.png"]["error"] == f"cannot be written: {closed}: File exists"
    assert {r["status"] for n, r in found.items() if n == "face00.png" or n.startswith("sub/")} == {"failed"}
    assert json.loads((out / "_run" / "run.json").read_text())["counts"] == {"failed": 21, "ok": 19}
    assert len(tree(out)) == 20 and occupied.is_dir()


def close(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nobody write into a folder; its mode would not keep root from it, whom tests may run as."""

    def guarded(whole: Callable[..., Any]) -> Callable[..., Any]:
        def called(path: Path, *rest: Any, **options: Any) -> Any:
            if path.parent == folder and (rest or path.exists()):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
            return whole(path, *rest, **options)

        return called

    for name in ("write_bytes", "unlink"):
        monkeypatch.setattr(Path, name, guarded(getattr(Path, name)))


def test_a_folder_that_cannot_be_written_fails_what_belongs_there_and_no_other(
    folder: Path, tmp_path: Path, restore: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    restore(folder, out, workers=1)
    close(out / "restored" / "sub", monkeypatch)
    assert restore(folder, out, LARGE, workers=1) == 1
    found, path = records(out), out / "restored" / "sub" / "face01.png"
    denied = f"{path}: Permission denied"
    assert found["sub/face01.png"]["error"] == f"cannot be written: {denied}; cannot be removed: {denied}"
    assert {n for n, r in found.items() if r["status"] == "failed"} == {n for n in found if n.startswith("sub/")}
    assert json.loads((out / "_run" / "run.json").read_text())["counts"] == {"failed": 20, "ok": 20}


def test_an_older_file_that_cannot_be_removed_fails_its_item(
    folder: Path, tmp_path: Path, restore: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, out = folder / "face00.png", tmp_path / "out"
    restore(picture, out, RESAMPLE | {"marking": {"sidecar": True}}, workers=1)
    close(out / "sidecars", monkeypatch)
    assert restore(picture, out, LARGE, workers=1) == 1
    record = records(out)["face00.png"]
    assert record["status"] == "failed" and record["output"] is None
    assert record["error"] == f"cannot be removed: {out / 'sidecars' / 'face00.json'}: Permission denied"
    assert set(tree(out)) == {"sidecars/face00.json"}, "what was made beside it is gone again"
