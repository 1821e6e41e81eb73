"""Runs as a user starts them: same tree whatever the company, resume, locks, names, records."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.cli import main
from pipeline.config import ConfigError
from pipeline.engine import Prepared, Request, run
from pipeline.images import sha256
from pipeline.journal import Journal
from pipeline.output import OutputError, OutputFolder, OutputLock, OutputLostError
from pipeline.planning import InputError, name_hash, target_of
from pipeline.verify import verify
from stages.resample import Resample
from tests.pipeline.conftest import RESAMPLE, colour, png, records, thumbnail, tree

ROOT = Path(__file__).parents[2]


def command(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "run_pipeline.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        **options,
    )


def test_the_tree_is_the_same_whatever_batch_order_and_workers(
    folder: Path, tmp_path: Path, restore: Callable[..., int], chain: Any
) -> None:
    assert restore(folder, tmp_path / "a", chain, workers=1, batch_size=16) == 0
    assert restore(folder, tmp_path / "b", chain, workers=1, batch_size=3) == 0
    assert restore(folder, tmp_path / "c", chain, workers=3, batch_size=8) == 0
    listed = tmp_path / "in" / "list.txt"
    paths = sorted((p.relative_to(folder).as_posix() for p in folder.rglob("*.png")), reverse=True)
    listed.write_text("\n".join(paths))
    assert restore(listed, tmp_path / "d", chain, workers=2) == 0
    expected = tree(tmp_path / "a")
    assert sum(path.startswith("restored/") for path in expected) >= 20
    for other in "bcd":
        assert tree(tmp_path / other) == expected, other
    assert list(records(tmp_path / "a")) == list(records(tmp_path / "c")), "the journal stands in input order"


def started(request: Request) -> Any:
    """A run in a process of its own, as `sys.exit(run(request))` would start it."""
    process = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(run(request)))
    process.start()
    return process


def wait_for_lines(output: Path, count: int, process: Any) -> None:
    """Until the journal has `count` lines or the run has ended."""
    journal = output / "_run" / "journal.jsonl"
    while process.is_alive() and not (journal.exists() and journal.read_bytes().count(b"\n") >= count):
        time.sleep(0.002)


def test_a_killed_run_continues_to_the_same_tree(
    folder: Path, tmp_path: Path, restore: Callable[..., int], chain: Any
) -> None:
    more = 160 if chain is RESAMPLE else 40
    for i in range(more):
        (folder / f"more{i}.png").write_bytes(png(thumbnail(100 + i)))
    restore(folder, tmp_path / "whole", chain, workers=1)
    expected, out = tree(tmp_path / "whole"), tmp_path / "killed"
    request = Request((str(folder),), out, chain, workers=2, batch_size=4)
    for lines in (1, more // 2, more):
        process = started(request)
        wait_for_lines(out, lines, process)
        process.kill()
        process.join()
    with open(out / "_run" / "journal.jsonl", "ab") as torn:
        torn.write(b'{"input": "half a li')
    (out / "restored" / ".revisage-1-1").write_bytes(b"left by a killed run")
    victim = next(path for path in tree(out) if path.startswith("restored/") and path.endswith(".png"))
    (out / victim).write_bytes(b"")  # an empty file must not count as done
    assert run(request) == 0
    assert tree(out) == expected
    assert list(records(out)) == list(records(tmp_path / "whole"))


def test_ctrl_c_ends_cleanly_and_the_next_run_goes_on(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for i in range(1500):
        (folder / f"{i}.png").write_bytes(png(colour(i % 7)))
    process = started(Request((str(folder),), out, RESAMPLE, workers=2, batch_size=4))
    wait_for_lines(out, 1, process)
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 1
    summary = json.loads((out / "_run" / "run.json").read_text())
    assert summary["interrupted"] and summary["not_reached"] > 0
    done = records(out)
    assert 0 < len(done) < 1540
    assert all((out / r["output"]).is_file() for r in done.values())
    assert run(Request((str(folder),), out, RESAMPLE, workers=2)) == 0
    assert json.loads((out / "_run" / "run.json").read_text())["kept_from_earlier_run"] == len(done)


def test_resume_skips_only_what_is_proven(folder: Path, tmp_path: Path, restore: Callable[..., int]) -> None:
    out = tmp_path / "out"
    restore(folder, out, workers=1)
    first = tree(out)
    before = {p: p.stat().st_mtime_ns for p in (out / "restored").rglob("*.png")}
    changed = out / "restored" / "face00.png"
    changed.write_bytes(b"not what was written")
    (out / "restored" / "face02.png").unlink()
    (folder / "face04.png").write_bytes(png(colour(999)))
    restore(folder, out, workers=1)
    touched = {p.name for p, t in before.items() if p.stat().st_mtime_ns != t}
    assert touched == {"face00.png", "face02.png", "face04.png"}
    now = tree(out)
    assert {k: v for k, v in now.items() if "face04" not in k} == {k: v for k, v in first.items() if "face04" not in k}
    assert json.loads((out / "_run" / "run.json").read_text())["kept_from_earlier_run"] == 37


def test_doing_everything_again_leaves_nothing_of_the_run_before(
    folder: Path, tmp_path: Path, restore: Callable[..., int]
) -> None:
    picture, out = folder / "face00.png", tmp_path / "out"
    restore(picture, out, RESAMPLE | {"marking": {"sidecar": True}}, workers=1)
    assert "sidecars/face00.json" in tree(out)
    assert restore(picture, out, workers=1, resume=False) == 0
    assert set(tree(out)) == {"restored/face00.png"} and verify(out) == 0
    assert json.loads((out / "_run" / "run.json").read_text())["kept_from_earlier_run"] == 0


def test_another_chain_does_the_work_again(folder: Path, tmp_path: Path, restore: Callable[..., int]) -> None:
    out = tmp_path / "out"
    restore(folder, out, workers=1)
    restore(folder, out, workers=1, overrides=("stages.0.size=40",))
    assert Image.open(out / "restored" / "face01.png" if (out / "restored" / "face01.png").exists() else
                      out / "restored" / "sub" / "face01.png").size == (40, 40)  # fmt: skip


def test_an_output_whose_input_has_gone_bad_is_removed(
    folder: Path, tmp_path: Path, restore: Callable[..., int]
) -> None:
    out = tmp_path / "out"
    restore(folder, out, workers=1)
    (folder / "face00.png").write_bytes(b"bad now")
    assert restore(folder, out, workers=1) == 1
    assert not (out / "restored" / "face00.png").exists()
    assert records(out)["face00.png"]["status"] == "corrupt"


def test_existing_files_are_skipped_or_refused_when_asked(
    folder: Path, tmp_path: Path, restore: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (out / "restored").mkdir(parents=True)
    (out / "restored" / "face00.png").write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"exist already.*\n.*face00"):
        restore(folder, out, workers=1, on_exists="error")
    assert restore(folder, out, workers=1, on_exists="skip") == 0
    assert (out / "restored" / "face00.png").read_bytes() == b"mine"
    assert "face00.png" not in records(out)
    for made, kept in ((39, 0), (0, 39)):
        summary, said = json.loads((out / "_run" / "run.json").read_text()), capsys.readouterr().err
        assert summary["counts"] == {"ok": 39, "skipped": 1} and "ok 39, skipped 1" in said
        assert summary["kept_from_earlier_run"] == kept and (summary["faces_per_second"] > 0) == bool(made)
        assert restore(folder, out, workers=1, on_exists="skip") == 0
    assert restore(folder, out, workers=1) == 0
    assert (out / "restored" / "face00.png").read_bytes() != b"mine"
    assert restore(folder, out, workers=1, on_exists="error") == 0, "its own results are no obstacle"


@pytest.mark.parametrize("change", ["input", "bad input", "mask", "output", "chain", "no resume"])
@pytest.mark.usefixtures("masked")
def test_error_refuses_an_output_that_is_not_proven_to_come_from_the_input_as_it_is(
    folder: Path, tmp_path: Path, restore: Callable[..., int], change: str
) -> None:
    picture, out, mask, options = folder / "face00.png", tmp_path / "out", tmp_path / "mask.png", {"on_exists": "error"}
    mask.write_bytes(png(np.full((8, 8), 255, np.uint8)))
    assert restore(picture, out, workers=1, mask=mask) == 0
    assert restore(picture, out, workers=1, mask=mask, **options) == 0, "its own results are no obstacle"
    if change == "chain":
        options |= {"overrides": ("stages.0.size=40",)}
    elif change == "no resume":
        options |= {"resume": False}
    else:
        changed = {"output": out / "restored" / "face00.png", "mask": mask}.get(change, picture)
        changed.write_bytes(b"bad now" if change == "bad input" else png(np.zeros((16, 16), np.uint8)))
    before, journal = tree(out), (out / "_run" / "journal.jsonl").read_bytes()
    with pytest.raises(OutputError, match=r"exist already.*\n.*restored/face00"):
        restore(picture, out, workers=1, mask=mask, **options)
    assert tree(out) == before and (out / "_run" / "journal.jsonl").read_bytes() == journal


def test_what_cannot_be_read_any_more_keeps_no_output_of_its_record_and_any_other(
    folder: Path, tmp_path: Path, restore: Callable[..., int]
) -> None:
    out = tmp_path / "out"
    restore(folder, out, workers=1)
    (folder / "face00.png").write_bytes(b"")
    (folder / "face02.png").write_bytes(b"")
    (out / "restored" / "face02.png").write_bytes(b"mine")
    assert restore(folder, out, workers=1, on_exists="skip") == 1
    assert records(out)["face00.png"]["status"] == "corrupt" and not (out / "restored" / "face00.png").exists()
    assert (out / "restored" / "face02.png").read_bytes() == b"mine"
    assert json.loads((out / "_run" / "run.json").read_text())["counts"] == {"corrupt": 1, "ok": 38, "skipped": 1}


@pytest.mark.parametrize("on_exists", ["skip", "overwrite", "error"])
def test_a_result_that_cannot_be_written_whole_leaves_nothing(
    folder: Path, tmp_path: Path, restore: Callable[..., int], monkeypatch: pytest.MonkeyPatch, on_exists: str
) -> None:
    write = OutputFolder.write

    def fails(self: OutputFolder, relative: str, data: bytes) -> None:
        if relative.startswith("priors/"):
            raise OSError(36, "File name too long")
        write(self, relative, data)

    monkeypatch.setattr(OutputFolder, "write", fails)
    monkeypatch.setattr(Resample, "writes", Resample.writes | {"landmarks"})
    out = tmp_path / "out"
    assert restore(folder / "face00.png", out, workers=1, save_priors=True, on_exists=on_exists) == 1
    assert records(out)["face00.png"]["status"] == "failed" and not tree(out)


def test_two_runs_cannot_share_an_output(folder: Path, tmp_path: Path, restore: Callable[..., int]) -> None:
    lock = OutputLock(tmp_path / "out" / "_run" / "lock")
    with pytest.raises(OutputError, match=f"another run is at work in .*process {os.getpid()}"):
        restore(folder, tmp_path / "out", workers=1)
    lock.release()
    assert restore(folder, tmp_path / "out", workers=1) == 0


def test_colliding_names_are_refused_before_anything_is_written(tmp_path: Path, restore: Callable[..., int]) -> None:
    for names in (["x.jpg", "x.jpg.png"], ["Straße.png", "STRASSE.png"], ["e\u0301.png", "\u00e9.png"]):
        folder = tmp_path / sha256(names[0].encode())[:6]
        folder.mkdir()
        for name in names:
            (folder / name).write_bytes(png(colour(0)))
        if len(list(folder.iterdir())) < 2:
            continue  # this file system takes the two names for one
        with pytest.raises(InputError, match="overwrite each other"):
            restore(folder, tmp_path / "out", workers=1)
    assert not (tmp_path / "out").exists()


def test_a_picture_that_is_named_twice_is_taken_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, linked, listed = tmp_path / "out", tmp_path / "linked", folder / "list.txt"
    linked.symlink_to(folder)
    listed.write_text("face00.png\nface00.png\n")
    twice = (folder / "sub" / "face01.png", folder, folder / "face00.png", linked / "face02.png", listed)
    assert run(Request(tuple(map(str, twice)), out, RESAMPLE, workers=1)) == 0
    assert list(records(out))[0] == "face01.png" and len(records(out)) == 40
    assert json.loads((out / "_run" / "run.json").read_text())["inputs"] == 40
    assert "5 inputs were named more than once, and are taken once each" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "face00.png").write_bytes((folder / "face00.png").read_bytes())
    with pytest.raises(InputError, match="overwrite each other"):
        run(Request((str(folder), str(tmp_path / "other")), out, RESAMPLE, workers=1))


def test_long_names_are_cut_the_same_way_every_time() -> None:
    name = "d/" + "\U0001f3a5" * 62 + "a.jpg"  # 253 bytes
    target = target_of(name)
    assert target == target_of(name) and len(target.rpartition("/")[2].encode()) + 4 <= 255
    assert target_of("a/b.PNG") == "a/b" and target_of("a/b.jpg") == "a/b.jpg" and target_of(".png") == ".png"
    assert target_of("n" * 251 + ".png") == "n" * 251


def test_a_name_of_255_bytes_and_one_that_is_no_unicode_are_restored(
    tmp_path: Path, restore: Callable[..., int]
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    (folder / ("n" * 251 + ".jpg")).write_bytes(png(colour(0)))
    with open(os.fsencode(folder) + b"/caf\xe9.png", "wb") as file:
        file.write(png(colour(1)))
    assert restore(folder, out, workers=1) == 0
    assert len(tree(out)) == 2 and (out / "_run" / "report.html").is_file()


@pytest.mark.usefixtures("masked")
@pytest.mark.parametrize("inner", ["output", "input"])
def test_an_output_inside_the_input_or_around_it_is_not_read_again(
    folder: Path, tmp_path: Path, restore: Callable[..., int], inner: str
) -> None:
    out = folder / "out" if inner == "output" else tmp_path
    for _ in range(2):
        assert restore(folder, out, workers=1) == 0
        assert len(records(out)) == 40
    (folder / "list.txt").write_text(f"face00.png\n{out}/restored/face00.png.png\n")
    before = tree(out)
    for given in (out / "restored", out / "restored" / "face00.png", folder / "list.txt"):
        with pytest.raises(InputError, match="part of the output"):
            restore(given, out, workers=1)
    (out / "occlusion").mkdir()
    with pytest.raises(InputError, match="--mask .*part of the output"):
        restore(folder / "face00.png", out, workers=1, mask=out / "occlusion")
    assert tree(out) == before


def test_an_output_folder_that_is_the_input_folder_is_refused(
    folder: Path, tmp_path: Path, restore: Callable[..., int]
) -> None:
    linked, before = tmp_path / "linked", sorted(folder.rglob("*"))
    linked.symlink_to(folder)
    for given, out in ((folder, folder), (linked, folder), (folder, linked)):
        with pytest.raises(InputError, match=f"{given}: the output folder is the input folder; choose another one"):
            restore(given, out, workers=1)
    assert sorted(folder.rglob("*")) == before


def test_pictures_of_ones_own_that_lie_where_an_output_might_stay(folder: Path, restore: Callable[..., int]) -> None:
    mine = folder / "thumbnails" / "face00.png"
    mine.parent.mkdir()
    mine.write_bytes(b"an original")
    for _ in range(2):
        assert restore(folder / "face00.png", folder, workers=1, on_exists="overwrite", resume=False) == 0
        assert mine.read_bytes() == b"an original"


def test_files_globs_and_lists_are_inputs(folder: Path, tmp_path: Path, restore: Callable[..., int]) -> None:
    restore(folder / "face00.png", tmp_path / "file", workers=1)
    assert set(records(tmp_path / "file")) == {"face00.png"}
    restore(f"{folder}/**/face0*.png", tmp_path / "glob", workers=1)
    assert set(records(tmp_path / "glob")) == {
        f"face0{i}.png" if i % 2 == 0 else f"sub/face0{i}.png" for i in range(10)
    }
    (tmp_path / "elsewhere.txt").write_text(f"{folder}/face00.png\n{folder}/sub/face01.png\n")
    restore(tmp_path / "elsewhere.txt", tmp_path / "list", workers=1)
    assert set(records(tmp_path / "list")) == {"in/face00.png", "in/sub/face01.png"}
    with pytest.raises(InputError, match="no such file"):
        restore(tmp_path / "nothing", tmp_path / "x", workers=1)


def test_nothing_to_do_is_not_success(tmp_path: Path, restore: Callable[..., int]) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "readme.md").write_text("no picture")
    assert restore(tmp_path / "in", tmp_path / "out") == 4


def test_fail_fast_begins_nothing_after_a_failure(folder: Path, tmp_path: Path, restore: Callable[..., int]) -> None:
    (folder / "aaa.png").write_bytes(b"")
    assert restore(folder, tmp_path / "out", workers=1, batch_size=1, fail_fast=True) == 1
    assert list(records(tmp_path / "out")) == ["aaa.png"]


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(Request((str(folder),), tmp_path / "out", RESAMPLE), dry_run=True) == 0
    printed = capsys.readouterr().out
    assert (
        "stages[0] resample: size=32" in printed
        and str(tmp_path / "out" / "restored" / "sub" / "face01.png") in printed
    )
    assert not (tmp_path / "out").exists()


def test_bad_configuration_touches_nothing(folder: Path, tmp_path: Path, restore: Callable[..., int]) -> None:
    with pytest.raises(ConfigError):
        restore(folder, tmp_path / "out", RESAMPLE, overrides=("stages.0.sise=3",))
    assert not (tmp_path / "out").exists()


def test_outputs_carry_their_record_and_no_time(
    folder: Path, tmp_path: Path, restore: Callable[..., int], chain: Any
) -> None:
    out = tmp_path / "out"
    restore(folder, out, chain, workers=1)
    record = next(r for r in records(out).values() if r["output"])
    text = Image.open(out / record["output"]).text  # type: ignore[attr-defined]
    short = json.loads(text["Revisage"])
    assert short["input_sha256"] == record["input_sha256"] and short["verdict"] == record["verdict"]
    expected = "compositeWithTrainedAlgorithmicMedia" if isinstance(chain, str) else "algorithmicallyEnhanced"
    assert f"http://cv.iptc.org/newscodes/digitalsourcetype/{expected}" in text["XML:com.adobe.xmp"]
    assert ("Not for identification" in text["Disclaimer"]) == isinstance(chain, str)
    assert record["output_sha256"] == sha256((out / record["output"]).read_bytes())


def test_verify_finds_a_changed_output(folder: Path, tmp_path: Path, restore: Callable[..., int], chain: Any) -> None:
    out = tmp_path / "out"
    restore(folder, out, chain, workers=1)
    assert verify(out) == 0 and verify(out, sample=5) == 0
    victim = next(r["output"] for r in records(out).values() if r["output"])
    data = bytearray((out / victim).read_bytes())
    data[-20] ^= 1
    (out / victim).write_bytes(data)
    assert verify(out) == 1


def test_verify_makes_again_only_what_the_last_run_made(
    folder: Path, tmp_path: Path, restore: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    other = {"version": 1, "name": "larger", "stages": [{"stage": "resample", "size": 48}]}
    restore(folder, out, workers=1)
    restore(folder / "face00.png", out, other, workers=1)
    assert verify(out) == 0
    said = capsys.readouterr().out
    assert "40 records checked, 1 made again" in said and "39 of an earlier run with another chain" in said
    victim = out / records(out)["face02.png"]["output"]
    victim.write_bytes(victim.read_bytes()[:-1])
    assert verify(out) == 1, "its files are checked all the same"


def test_verify_names_the_inputs_that_are_gone_and_is_not_content_when_all_are(
    folder: Path, tmp_path: Path, restore: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    out, moved = tmp_path / "out", tmp_path / "moved"
    (folder / "bad.png").write_bytes(b"")
    restore(folder, out, workers=1)
    (folder / "face00.png").unlink()
    capsys.readouterr()
    assert verify(out) == 0
    said = capsys.readouterr().out
    assert "face00.png: the input is not there any more\n" in said and "1 inputs no longer there" in said
    folder.rename(moved)
    assert verify(out) == 1
    said = capsys.readouterr().out
    assert said.count("the input is not there any more\n") == 40  # of the empty file there was nothing to hash
    assert "none of the inputs is there any more, so no output was made again; name their folder with -i" in said
    assert verify(out, inputs=[str(moved)]) == 0


def test_verify_finds_the_inputs_of_every_run_into_one_output(
    folder: Path, tmp_path: Path, restore: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for name in ("other", "third"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.png").write_bytes(png(colour(1)))
    for given in (folder / "face00.png", tmp_path / "other", tmp_path / "third", tmp_path / "third"):
        assert restore(given, out, workers=1) == 0
    capsys.readouterr()
    assert verify(out) == 0
    assert "3 records checked, 3 made again, 0 inputs no longer there" in capsys.readouterr().out
    said = json.loads((out / "_run" / "run.json").read_text())
    assert said["input_roots"] == [str(tmp_path / "third")]
    assert said["earlier_input_roots"] == [str(tmp_path / "other"), str(folder)]


def test_verify_finds_planted_files_changed_inputs_and_damaged_records(
    folder: Path, tmp_path: Path, restore: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    restore(folder, out, workers=1)
    planted = out / "restored" / "sub" / "planted.png"
    planted.write_bytes(png(colour(1)))
    assert verify(out) == 1 and "restored/sub/planted.png is not in the journal" in capsys.readouterr().out
    planted.unlink()
    original = (folder / "face00.png").read_bytes()
    (folder / "face00.png").write_bytes(png(colour(2)))
    assert verify(out) == 1 and "face00.png has the SHA-256" in capsys.readouterr().out
    (folder / "face00.png").write_bytes(original)
    assert verify(out) == 0
    journal = out / "_run" / "journal.jsonl"
    lines = journal.read_text().splitlines()
    journal.write_text("\n".join([json.dumps({"input": "face00.png", "status": "ok"}), *lines[1:]]) + "\n")
    assert verify(out) == 1 and "line of face00.png is damaged" in capsys.readouterr().out
    for text in ("{}", "[]", "no JSON", '{"chain": {}}'):
        (out / "_run" / "run.json").write_text(text)
        with pytest.raises(OutputError, match="damaged"):
            verify(out)


def test_verify_finds_forged_records_and_lines_left_out(
    folder: Path, tmp_path: Path, restore: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    (folder / "bad.png").write_bytes(b"not a picture")
    restore(folder, out, workers=1)
    assert verify(out) == 0
    run_file, journal = out / "_run" / "run.json", out / "_run" / "journal.jsonl"
    run, honest = json.loads(run_file.read_text()), journal.read_bytes()
    lines = [json.loads(line) for line in honest.splitlines()]
    for name, key, lie in (
        ("face00.png", "verdict", "not_decidable"), ("face00.png", "reason", "too dark"),
        ("face01.png", "seed", 3), ("bad.png", "error", "it was fine"), ("bad.png", "status", "no_face"),
    ):  # fmt: skip
        forged = [line | {key: lie} if line["input"].endswith(name) else line for line in lines]
        journal.write_text("".join(json.dumps(line) + "\n" for line in forged))
        run_file.write_text(json.dumps(run | {"journal_sha256": sha256(journal.read_bytes())}))
        capsys.readouterr()
        assert verify(out) == 1 and f"made again, {key} is" in capsys.readouterr().out
    run_file.write_text(json.dumps(run))
    journal.write_bytes(honest)
    assert verify(out) == 0
    journal.write_bytes(b"\n".join(honest.splitlines()[1:]) + b"\n")
    gone = lines[0]["output"]
    if gone:
        (out / gone).unlink()
    capsys.readouterr()
    assert verify(out) == 1 and "the journal is not the one of run.json" in capsys.readouterr().out


def test_empty_places_and_words_for_numbers_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, reason in (
        (["-i", "", "-o", "x"], "--input: is empty"),
        (["-i", "x", "-o", " "], "--output: is empty"),
        (["-i", "x", "-o", "x", "-w", "half"], "half: expected a number from 0"),
        (["-i", "x", "-o", "x", "--workers", "two"], "two: expected a whole number"),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["restore", *arguments])
        assert caught.value.code == 2 and reason in capsys.readouterr().err


def test_a_url_of_this_machine_is_a_path(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    assert main(["restore", "-i", f"file://{folder}", "-o", f"file://{out}", "-c", "bicubic", "--workers", "1"]) == 0
    assert (out / "restored" / "face00.png").is_file() and (out / "_run" / "report.html").is_file()


@pytest.mark.usefixtures("masked")
def test_a_folder_of_masks_that_fits_no_input_is_refused(
    folder: Path, tmp_path: Path, restore: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    (masks / "other.png").write_bytes(png(np.zeros((8, 8), np.uint8)))
    with pytest.raises(InputError, match="no mask of any input"):
        restore(folder, tmp_path / "out", mask=masks)
    assert not (tmp_path / "out").exists()
    (masks / "face00.png").write_bytes(png(np.zeros((8, 8), np.uint8)))
    assert restore(folder, tmp_path / "out", workers=1, mask=masks) == 0
    assert "39 of 40 inputs have no mask" in capsys.readouterr().err


@pytest.mark.usefixtures("masked")
def test_a_given_mask_is_noted_and_part_of_the_key(folder: Path, tmp_path: Path, restore: Callable[..., int]) -> None:
    masks = tmp_path / "masks"
    (masks / "sub").mkdir(parents=True)
    (masks / "sub" / "face01.png").write_bytes(png(np.full((8, 8), 255, np.uint8)))
    out = tmp_path / "out"
    restore(folder, out, workers=1, mask=masks)
    found = records(out)
    assert found["sub/face01.png"]["notes"]["given_mask"] and "given_mask" not in found["face00.png"]["notes"]
    (masks / "sub" / "face01.png").write_bytes(png(np.zeros((8, 8), np.uint8)))
    restore(folder, out, workers=1, mask=masks)
    assert json.loads((out / "_run" / "run.json").read_text())["kept_from_earlier_run"] == 39
    (masks / "face00.png").write_bytes(b"no mask")
    assert restore(folder, out, workers=1, mask=masks) == 1
    assert "mask" in records(out)["face00.png"]["error"]


@pytest.mark.usefixtures("masked")
def test_a_mask_of_another_shape_fails_its_input_alone(
    folder: Path, tmp_path: Path, restore: Callable[..., int]
) -> None:
    masks, out = tmp_path / "masks", tmp_path / "out"
    (masks / "sub").mkdir(parents=True)
    for name, shape in (("face00", (16, 32)), ("sub/face01", (32, 16)), ("face04", (64, 64)), ("face06", (40, 36))):
        (masks / f"{name}.png").write_bytes(png(np.full(shape, 255, np.uint8)))
    assert restore(folder, out, workers=1, mask=masks) == 1
    found = records(out)
    assert {name for name, record in found.items() if record["status"] != "ok"} == {"face00.png", "sub/face01.png"}
    assert found["face00.png"]["status"] == "failed" and found["face00.png"]["output"] is None
    expected = "the mask face00.png: mask of 32x16 px: expected the shape of the picture, 18x20 px"
    assert found["face00.png"]["error"].startswith(expected)
    assert found["face04.png"]["notes"]["given_mask"] and found["face06.png"]["notes"]["given_mask"]


def test_options_that_no_stage_can_follow_are_refused_together(
    folder: Path, tmp_path: Path, restore: Callable[..., int]
) -> None:
    (tmp_path / "mask.png").write_bytes(png(np.full((8, 8), 255, np.uint8)))
    with pytest.raises(ConfigError) as caught:
        restore(folder, tmp_path / "out", mask=tmp_path / "mask.png", save_priors=True, boxes=tmp_path / "boxes.csv")
    mask, priors, boxes = caught.value.problems
    assert mask == f"--mask {tmp_path / 'mask.png'}: no stage of config reads a mask"
    assert priors.startswith("--save-priors: no stage of config writes any of landmarks, ")
    assert "does not read boxes" in boxes and not (tmp_path / "out").exists()


@pytest.mark.usefixtures("masked")
def test_a_run_with_masks_is_verified_from_any_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mask.png").write_bytes(png(np.full((8, 8), 255, np.uint8)))
    monkeypatch.chdir(tmp_path)
    said = ["restore", "-i", "in/face00.png", "-o", "out", "-c", "bicubic", "--mask", "mask.png", "--workers", "1"]
    assert main(said) == 0
    monkeypatch.chdir(folder)
    assert verify(tmp_path / "out") == 0


def test_workers_that_build_their_chain_themselves_take_the_batch_size_of_the_run(
    folder: Path, tmp_path: Path, restore: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Stopped(Exception):
        pass

    def pool(count: int, make: Callable[[], Any], *_: Any) -> None:
        made.append(make())
        raise Stopped

    monkeypatch.setattr("pipeline.engine.BATCH_SIZE", {"cpu": 7})
    monkeypatch.setattr(Prepared, "forks", False)
    monkeypatch.setattr("pipeline.engine.Pool", pool)
    with pytest.raises(Stopped):
        restore(folder, tmp_path / "out", workers=2)
    assert made[0].restorer.batch_size == 7


def test_the_journal_finds_the_latest_line_with_24_bytes_for_each(tmp_path: Path) -> None:
    names = [f"face{i}.png" for i in range(300)]
    with Journal(tmp_path / "journal.jsonl") as journal:
        for round_ in range(2):
            for name in reversed(names):
                journal.append({"input": name, "status": "ok", "round": round_})
    with Journal(tmp_path / "journal.jsonl") as journal:
        assert {(journal.find(name) or {}).get("round") for name in names} == {1} and journal.find("other") is None
        held = [v for v in vars(journal).values() if isinstance(v, array | np.ndarray)]
        assert sum(len(values) * values.itemsize for values in held) == 24 * 600
        journal.append({"input": names[0], "status": "ok", "round": 2})
        journal.compact([name_hash(name) for name in names[:2]])
        assert (journal.find(names[0]) or {}).get("round") == 2
    order = [json.loads(line)["input"] for line in (tmp_path / "journal.jsonl").read_bytes().splitlines()]
    assert order == [*reversed(names[2:]), *names[:2]]


def test_a_torn_last_line_of_the_journal_is_dropped_with_a_word(
    folder: Path, tmp_path: Path, restore: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    journal = tmp_path / "out" / "_run" / "journal.jsonl"
    restore(folder / "face00.png", tmp_path / "out", workers=1)
    whole, _ = journal.read_bytes(), capsys.readouterr()
    for left, kept in ((b"", 1), (b'{"input": "face00.p', 1), (whole[:-20], 0)):
        journal.write_bytes(whole + left if kept else left)
        restore(folder / "face00.png", tmp_path / "out", workers=1)
        assert (f"{journal}: the last line was cut off" in capsys.readouterr().err) == bool(left)
        assert json.loads((tmp_path / "out" / "_run" / "run.json").read_text())["kept_from_earlier_run"] == kept


def test_a_worker_that_dies_costs_only_the_culprit(
    folder: Path, tmp_path: Path, restore: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.worker import Worker

    whole = Worker._load

    def deadly(self: Worker, task: Any, *rest: Any, **options: Any) -> Any:
        if task.name == "face00.png":
            os._exit(9)
        return whole(self, task, *rest, **options)

    monkeypatch.setattr(Worker, "_load", deadly)
    assert restore(folder, tmp_path / "out", workers=2, batch_size=4) == 1
    found = records(tmp_path / "out")
    assert len(found) == 40
    assert {n for n, r in found.items() if r["status"] != "ok"} == {"face00.png"}
    assert "worker process died" in found["face00.png"]["error"]


def test_a_full_disk_ends_the_run_with_a_clear_word(
    folder: Path, tmp_path: Path, restore: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    def full(self: Path, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    for workers in (1, 2):
        with pytest.raises(OutputLostError, match="No space left on device; mend that and run the same command again"):
            restore(folder, tmp_path / "out", workers=workers)


def test_writes_never_leave_the_output(tmp_path: Path) -> None:
    output = OutputFolder(tmp_path / "out")
    for path in ("../x.png", "/etc/x.png", "a/../../x", "a//b", "a\0b"):
        with pytest.raises(OutputError, match="not a plain path"):
            output.write(path, b"")
    (tmp_path / "out").mkdir()
    os.symlink(tmp_path, tmp_path / "out" / "restored")
    with pytest.raises(OutputError, match="leads out of"):
        output.write("restored/x.png", b"")


def test_a_failing_batch_is_tried_face_by_face_and_nan_again_in_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.restorer import Restorer
    from stages.resample import Resample

    def moody(self: Resample, batch: Any) -> Any:
        values = batch.image.mean((1, 2, 3))
        if bool((values < 0.01).any()):
            raise RuntimeError("cannot stand black")
        spoilt = torch.where((values > 0.99) & (self.precision == "bf16"), torch.nan, 1.0)
        return batch.replace(image=batch.image * spoilt[:, None, None, None])

    monkeypatch.setattr(Resample, "__call__", moody)
    pictures = [np.full((16, 16), v, np.uint8) for v in (0, 100, 255)]
    black, middle, white = Restorer.from_config(RESAMPLE, precision="bf16", device="cpu").restore(pictures)
    assert black.status == "failed" and "stages[0] (resample): RuntimeError: cannot stand black" in (black.error or "")
    assert middle.status == "ok" and white.status == "ok" and white.notes["redone_in"] == "fp32"
    assert Restorer.from_config(RESAMPLE, precision="fp32", device="cpu").restore(pictures)[2].status == "ok"


def test_help_is_fast_and_imports_no_torch() -> None:
    code = "import sys, pipeline.cli; pipeline.cli.build_parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_wrong_usage_gives_exit_code_2(folder: Path, tmp_path: Path) -> None:
    assert command("restore", "-i", folder).returncode == 2
    assert command("restore", "-i", folder, "-o", tmp_path / "o", "--engine", "mars").returncode == 2
    wrong = command(
        "restore", "-i", folder, "-o", tmp_path / "o", "-c", "configs/bicubic.yaml", "--set", "stages.0.sise=3"
    )
    assert wrong.returncode == 2 and 'did you mean "size"' in wrong.stderr and "Traceback" not in wrong.stderr
    assert not (tmp_path / "o").exists()


def test_train_hands_over_to_the_script_of_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import training.train_identity

    config, calls = tmp_path / "t.yaml", []
    config.write_text("task: identity\n")

    def fake(path: Path, resume: bool, dry_run: bool) -> torch.nn.Module:
        calls.append((path, resume, dry_run))
        return torch.nn.Identity()

    monkeypatch.setattr(training.train_identity, "main", fake)
    assert main(["train", "-c", str(config), "--dry-run"]) == 0
    assert calls == [(config, False, True)]


def test_an_unknown_training_task_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.yaml").write_text("task: os\n")
    assert main(["train", "-c", str(tmp_path / "t.yaml")]) == 2
    said = capsys.readouterr().err
    assert "task = 'os': expected one of " in said and "face_parser, identity, prouigan" in said


def test_doctor_says_what_works(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline import doctor

    monkeypatch.setattr(doctor, "why_unavailable", lambda name: "not today" if name == "dlib" else None)
    monkeypatch.setattr(doctor, "_why_basicsr", lambda: None)
    monkeypatch.setattr(doctor, "load_chain", lambda _: (_ for _ in ()).throw(ConfigError(["chain.yaml: broken"])))
    assert main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "optional dlib: not usable (not today)" in printed and "optional none: usable" in printed
    assert "default chain: NOT OK: chain.yaml: broken" in printed


def test_the_journal_says_what_each_stage_of_a_chain_made(
    folder: Path, tmp_path: Path, restore: Callable[..., int]
) -> None:
    one, other = RESAMPLE["stages"][0] | {"size": 48}, RESAMPLE["stages"][0] | {"size": 24}
    restore(folder, tmp_path / "two", RESAMPLE | {"stages": [one, other]}, workers=1)
    restore(folder, tmp_path / "one", RESAMPLE | {"stages": [one]}, workers=1)
    alone = records(tmp_path / "one")
    for name, record in records(tmp_path / "two").items():
        first, second = record["notes"]["stages"]
        assert first["stage"] == "resample" and max(first["size_px"]) == 48 and max(second["size_px"]) == 24
        outputs = tmp_path / "one" / alone[name]["output"], tmp_path / "two" / record["output"]
        for made, picture in zip((first, second), outputs, strict=True):
            pixels = np.asarray(Image.open(picture).convert("RGB"))
            assert made["size_px"] == [pixels.shape[0], pixels.shape[1]]
            assert made["pixels_sha256"] == sha256(pixels.tobytes())
        assert "stages" not in alone[name]["notes"]


def test_a_folder_that_cannot_be_read_is_an_item_that_failed(
    folder: Path, tmp_path: Path, restore: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, scan = folder / "closed", os.scandir
    closed.mkdir()

    def guarded(path: Any) -> Any:
        if Path(os.fsdecode(path)) == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert restore(folder, tmp_path / "out", workers=1) == 1
    line = records(tmp_path / "out")["closed"]
    assert line["status"] == "unsupported" and "a folder that cannot be read: Permission denied" in line["error"]
    with pytest.raises(InputError, match="closed: Permission denied"):
        restore(closed, tmp_path / "other", workers=1)
