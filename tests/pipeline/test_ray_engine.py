"""The Ray engine gives what the local one gives, byte for byte: on a disk, in a store, and when a worker is killed."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.engine import Request, run
from pipeline.output import OutputError
from pipeline.storage import RemoteFolder, is_url
from tests.pipeline.conftest import RESAMPLE, huge_png, png, records, thumbnail, tree, write_sound

SMALL_BLOCKS = {**RESAMPLE, "cluster": {"rows_per_task": 4}}
TIMINGS = ("seconds",)


@pytest.fixture(scope="module")
def store() -> Iterator[bool]:
    """An S3 server on this machine, found through the environment, also by workers started later; False without."""
    try:
        import fsspec
        import s3fs  # noqa: F401
        from moto.server import ThreadedMotoServer
    except ImportError:
        yield False
        return
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for key, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():  # fmt: skip
            patch.setenv(key, value)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        yield True
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    server.stop()


@pytest.fixture(scope="module")
def cluster(store: bool) -> Iterator[Any]:
    """A Ray of two workers for the tests of this file: starting it takes longer than all of them."""
    ray = pytest.importorskip("ray", reason='the extra "cluster" is not installed')
    from pipeline.ray_engine import _ray

    _ray()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


@pytest.fixture
def hostile(folder: Path) -> Path:
    """The forty faces, and files that are none."""
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("no picture")
    (folder / "wall.png").write_bytes(huge_png(20_000))
    (folder / "cut.png").write_bytes(png(thumbnail(1))[:90])
    os.symlink("/etc/passwd", folder / "outside.png")
    os.mkfifo(folder / "pipe.png")
    return folder


def lines(output: Path) -> list[dict[str, Any]]:
    """The journal as it stands, without what a clock decides."""
    return [{k: v for k, v in record.items() if k not in TIMINGS} for record in records(output).values()]


def children_named(start: str) -> list[int]:
    """Processes whose title begins with `start`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                title = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if title.startswith(start.encode()):
                found.append(int(entry.name))
    return found


def test_the_tree_and_the_journal_are_those_of_the_local_engine(
    hostile: Path, tmp_path: Path, restore: Callable[..., int], cluster: Any
) -> None:
    assert restore(hostile, tmp_path / "local", RESAMPLE, workers=1) == 1
    assert restore(hostile, tmp_path / "ray", SMALL_BLOCKS, engine="ray", workers=2) == 1
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")
    assert lines(tmp_path / "ray") == lines(tmp_path / "local")
    assert {r["status"] for r in lines(tmp_path / "ray")} == {"ok", "corrupt", "unsupported"}
    assert restore(hostile, tmp_path / "ray", RESAMPLE, workers=1) == 1
    summary = json.loads((tmp_path / "ray" / "_run" / "run.json").read_text())
    assert summary["kept_from_earlier_run"] == 40, "the one engine takes the other's results for its own"


def test_hostile_frames_and_videos_end_alike_through_both_engines(
    tmp_path: Path, restore: Callable[..., int], cluster: Any
) -> None:
    pytest.importorskip("av", reason='the extra "video" is not installed')
    folder, boxes = tmp_path / "in", tmp_path / "boxes.csv"
    folder.mkdir()
    for name in ("f.png", "a..b.png"):
        (folder / name).write_bytes(png(thumbnail(1, (60, 80))))
    (folder / "wall.png").write_bytes(huge_png(30_000))
    (folder / "torn.mkv").write_bytes(b"\x1a\x45\xdf\xa3" + bytes(400))
    (folder / "empty.mp4").write_bytes(b"")
    write_sound(folder / "sound.mp4")
    rows = ["image,x,y,w,h", "f.png,2,10,24,24", "f.png,500,10,24,24", "a..b.png,28,10,24,24"]
    boxes.write_text("\n".join([*rows, "../../etc/passwd,1,1,9,9"]) + "\n")
    chain = {"version": 1, "name": "f", "stages": [{"stage": "detect", "backend": "boxes"}, {"stage": "resample"}]}
    before = {p.name for p in tmp_path.iterdir()}
    assert restore(folder, tmp_path / "local", chain, boxes=boxes, workers=1) == 1
    assert restore(folder, tmp_path / "ray", chain, boxes=boxes, engine="ray", workers=2) == 1
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")

    def journal(output: Path) -> list[dict[str, Any]]:
        text = (output / "_run" / "journal.jsonl").read_text(encoding="utf-8")
        return [{k: v for k, v in json.loads(line).items() if k not in TIMINGS} for line in text.splitlines()]

    found = journal(tmp_path / "ray")
    assert found == journal(tmp_path / "local")
    assert {r["input"] for r in found} == {p.name for p in folder.iterdir()}
    assert {p.name for p in tmp_path.iterdir()} == before | {"local", "ray"}


def test_a_killed_worker_changes_nothing(
    folder: Path, tmp_path: Path, restore: Callable[..., int], cluster: Any
) -> None:
    for i in range(100):
        (folder / f"more{i}.png").write_bytes(png(thumbnail(100 + i)))
    assert restore(folder, tmp_path / "whole", RESAMPLE, workers=1) == 0
    out, killed = tmp_path / "out", []

    def kill() -> None:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            if (out / "restored").exists() and len(list((out / "restored").rglob("*.png"))) > 20:
                victims = children_named("ray::MapWorker")
                for pid in victims[:1]:
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                if killed:
                    return
            time.sleep(0.005)

    hunter = threading.Thread(target=kill)
    hunter.start()
    code = run(Request((str(folder),), out, SMALL_BLOCKS, engine="ray", workers=1))
    hunter.join()
    assert killed, "no worker was found to kill"
    assert code == 0
    assert tree(out) == tree(tmp_path / "whole")
    assert lines(out) == lines(tmp_path / "whole")


def test_an_input_that_kills_every_worker_fails_alone(
    folder: Path, tmp_path: Path, restore: Callable[..., int], cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline import ray_engine

    class Deadly(ray_engine.Actor):
        def __init__(self, request: Any, job: Any) -> None:
            from stages.resample import Resample  # of the worker's process, not of this one

            whole = Resample.__call__

            def deadly(self: Any, batch: Any) -> Any:
                if "face02.png" in batch.sources:
                    os._exit(9)
                return whole(self, batch)

            Resample.__call__ = deadly  # type: ignore[method-assign]
            super().__init__(request, job)

    monkeypatch.setattr(ray_engine, "Actor", Deadly)
    for path in sorted(folder.rglob("*.png"))[8:]:
        path.unlink()
    names = {p.relative_to(folder).as_posix() for p in folder.rglob("*.png")}
    assert "face02.png" in names
    assert restore(folder, tmp_path / "out", SMALL_BLOCKS, engine="ray", workers=1) == 1
    found = records(tmp_path / "out")
    assert set(found) == names
    assert {n for n, r in found.items() if r["status"] != "ok"} == {"face02.png"}
    assert "worker process died" in found["face02.png"]["error"]


# Stores


@pytest.fixture
def bucket(store: bool) -> str:
    """A new bucket of the server on this machine."""
    if not store:
        pytest.skip("s3fs, or moto and its server, are not installed")
    import fsspec

    name = f"faces-{time.monotonic_ns()}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"


def fetched(url: str, folder: Path) -> Path:
    """A copy on this disk of what lies under a URL."""
    import fsspec

    fsspec.filesystem("s3").invalidate_cache()
    fsspec.filesystem("s3").get(url, str(folder), recursive=True)
    return folder


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_from_a_store_into_a_store_gives_the_same_tree_and_resumes(
    folder: Path,
    tmp_path: Path,
    restore: Callable[..., int],
    bucket: str,
    request: pytest.FixtureRequest,
    engine: str,
) -> None:
    import fsspec

    if engine == "ray":
        request.getfixturevalue("cluster")
    (folder / "bad.png").write_bytes(b"")
    assert restore(folder, tmp_path / "local", RESAMPLE, workers=1) == 1
    fsspec.filesystem("s3").put(str(folder), f"{bucket}/in", recursive=True)
    out = f"{bucket}/out {engine}"
    given = Request((f"{bucket}/in",), Path(), SMALL_BLOCKS, engine=engine, workers=1, remote=out)  # type: ignore[arg-type]
    assert run(given) == 1
    copy = fetched(out, tmp_path / "copy")
    assert tree(copy) == tree(tmp_path / "local")
    assert [{**r, "error": None} for r in lines(copy)] == [{**r, "error": None} for r in lines(tmp_path / "local")]
    assert (copy / "_run" / "report.html").is_file() and not (copy / "_run" / "lock").exists()
    assert (copy / "_run" / "report.html").read_text().count("data:image/png;base64,") == 80
    if engine == "ray":
        return
    assert run(given) == 1
    again = fetched(out, tmp_path / "again")
    assert json.loads((again / "_run" / "run.json").read_text())["kept_from_earlier_run"] == 40
    assert tree(again) == tree(copy)


def test_a_store_is_locked_while_a_run_is_at_work_and_a_dead_runs_lock_is_taken(
    folder: Path, bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = RemoteFolder(f"{bucket}/out", tmp_path)
    first.lock()
    with pytest.raises(OutputError, match=f"another run is at work in {bucket}/out"):
        run(Request((str(folder),), Path(), RESAMPLE, workers=1, remote=f"{bucket}/out"))
    monkeypatch.setattr("pipeline.storage.LOCK_STALE_S", -1.0)
    second = RemoteFolder(f"{bucket}/out", tmp_path)
    second.lock()
    with pytest.raises(OutputError, match="another run has taken over"):
        first.publish(final=True)
    second.unlock()
    assert run(Request((str(folder),), Path(), RESAMPLE, workers=1, remote=f"{bucket}/out")) == 0


def test_a_store_that_is_not_there_is_told_in_a_word(folder: Path, bucket: str) -> None:
    with pytest.raises(OutputError, match="nowhere"):
        run(Request((str(folder),), Path(), RESAMPLE, workers=1, remote="s3://nowhere/out"))
    with pytest.raises(OutputError, match="no such object, folder or glob"):
        run(Request((f"{bucket}/nothing",), Path(), RESAMPLE, workers=1, remote=f"{bucket}/out"))
    with pytest.raises(OutputError, match="gopher"):
        run(Request((str(folder),), Path(), RESAMPLE, workers=1, remote="gopher://x/out"))


def test_the_report_of_a_run_into_a_store_is_named_where_it_lies(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fsspec = pytest.importorskip("fsspec", reason='the extra "cluster" is not installed')
    assert run(Request((str(folder),), Path(), RESAMPLE, workers=1, remote="memory://report/x/")) == 0
    assert "report: memory://report/x/_run/report.html" in capsys.readouterr().err
    assert fsspec.filesystem("memory").exists("/report/x/_run/report.html")


def test_nothing_leaves_the_folder_of_a_store(tmp_path: Path) -> None:
    pytest.importorskip("fsspec", reason='the extra "cluster" is not installed')
    remote = RemoteFolder("memory://out", tmp_path)
    for path in ("../x.png", "/etc/x.png", "a/../../x", "a//b"):
        with pytest.raises(OutputError, match="not a plain path"):
            remote.write(path, b"")
    remote.write("restored/a.png", b"1")
    assert remote.read("restored/a.png") == b"1" and remote.exists("restored/a.png")
    remote.remove("restored/a.png")
    assert remote.read("restored/a.png") is None and remote.names("restored") in ([], ["a.png"][:0])
    assert is_url("s3://b/x") and not is_url("/a/b") and not is_url("a:b")


def test_without_the_extra_the_engine_says_what_to_install(
    folder: Path, tmp_path: Path, restore: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(OutputError, match=r"pip install .*cluster"):
        restore(folder, tmp_path / "out", engine="ray")
