"""Whole pictures as inputs: boxes from a file, lines per face, resume, hostile files."""

import errno
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from skimage import data

from pipeline.cli import main
from pipeline.config import ConfigError, load_chain
from pipeline.engine import Request, run
from pipeline.output import OutputError
from pipeline.planning import InputError
from pipeline.restorer import Restorer
from pipeline.sources.boxes import BoxFile
from pipeline.sources.frames import restore_frames
from pipeline.verify import verify
from tests.pipeline.conftest import colour, huge_png, png, thumbnail, tree

BOXES: dict[str, Any] = {
    "version": 1,
    "name": "frames",
    "stages": [{"stage": "detect", "backend": "boxes"}, {"stage": "resample", "size": 32}],
}
FACE = (180.0, 70.0, 90.0, 110.0)  # of the astronaut


def lines(output: Path) -> list[dict[str, Any]]:
    """The journal, in its order."""
    text = (output / "_run" / "journal.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def by_face(output: Path) -> dict[tuple[str, int | None], dict[str, Any]]:
    """The journal by input and face."""
    found = lines(output)
    indexed = {(line["input"], line.get("face")): line for line in found}
    assert len(indexed) == len(found), "more than one line for a face or an input"
    return indexed


def frame(index: int, size: tuple[int, int] = (60, 80)) -> np.ndarray:
    """A noise picture with a face in each of three places."""
    picture = colour(index, size)
    for k, x in enumerate((2, 28, 54)):
        picture[10:34, x : x + 24] = thumbnail(index * 3 + k, (24, 24))
    return picture


@pytest.fixture
def frames(tmp_path: Path) -> tuple[Path, Path]:
    """Twelve frames of three faces in two folders, and the file of their boxes."""
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    rows = ["Image,X,Y,W,H,score"]
    for i in range(12):
        name = f"sub/f{i:02d}.png" if i % 2 else f"f{i:02d}.png"
        (folder / name).write_bytes(png(frame(i)))
        rows += [f"{name},{x},10,24,24,0.9" for x in (2, 28, 54)]
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("\n".join(rows) + "\n")
    return folder, boxes


def test_each_face_has_its_line_its_files_and_its_place(
    frames: tuple[Path, Path], tmp_path: Path, restore: Callable[..., int]
) -> None:
    folder, boxes = frames
    out = tmp_path / "out"
    assert restore(folder, out, BOXES, boxes=boxes, workers=1) == 0
    found = lines(out)
    assert [(r["input"], r.get("face")) for r in found[:8]] == [
        ("f00.png", None), ("f00.png", 0), ("f00.png", 1), ("f00.png", 2), ("f02.png", None), ("f02.png", 0),
        ("f02.png", 1), ("f02.png", 2),
    ]  # fmt: skip
    whole, face = by_face(out)["sub/f01.png", None], by_face(out)["sub/f01.png", 1]
    assert (whole["faces"], whole["status"], whole["face_statuses"]) == (3, "ok", {"ok": 3})
    assert face["output"] == "restored/sub/f01/face_001.png" and face["box_xywh_px"] == [28, 10, 24, 24]
    assert face["frame_size"] == [60, 80] and face["input_sha256"] == whole["input_sha256"]
    cut = np.asarray(Image.open(out / "thumbnails/sub/f01/face_001.png"))
    assert np.array_equal(cut, frame(1)[10:34, 28:52]), "a box of a size that is kept is cut without resampling"
    corner = np.array(face["to_source"]) @ (-0.5, -0.5, 1)
    assert np.allclose(corner, (27.5, 9.5)), "pixels of the output lead back into the frame"
    summary = json.loads((out / "_run" / "run.json").read_text())
    assert summary["counts"] == {"ok": 12} and summary["face_counts"] == {"ok": 36}
    assert verify(out) == 0


def test_the_faces_are_the_same_whatever_batch_and_workers_and_a_killed_run_goes_on(
    frames: tuple[Path, Path], tmp_path: Path, restore: Callable[..., int]
) -> None:
    folder, boxes = frames
    assert restore(folder, tmp_path / "a", BOXES, boxes=boxes, workers=1, batch_size=16) == 0
    assert restore(folder, tmp_path / "b", BOXES, boxes=boxes, workers=2, batch_size=5) == 0
    assert tree(tmp_path / "a") == tree(tmp_path / "b")
    order = [[(r["input"], r.get("face")) for r in lines(tmp_path / k)] for k in "ab"]
    assert order[0] == order[1]

    out = tmp_path / "killed"
    request = Request((str(folder),), out, BOXES, boxes=boxes, workers=1, batch_size=2)
    for count in (1, 20):
        process = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(run(request)))
        process.start()
        journal = out / "_run" / "journal.jsonl"
        while process.is_alive() and not (journal.exists() and journal.read_bytes().count(b"\n") >= count):
            time.sleep(0.001)
        process.kill()
        process.join()
    assert run(request) == 0
    assert tree(out) == tree(tmp_path / "a")
    assert [(r["input"], r.get("face")) for r in lines(out)] == order[0]


def test_only_what_is_proven_is_kept(frames: tuple[Path, Path], tmp_path: Path, restore: Callable[..., int]) -> None:
    folder, boxes = frames
    out = tmp_path / "out"
    restore(folder, out, BOXES, boxes=boxes, workers=1)
    first = tree(out)
    (out / "restored/f00/face_002.png").write_bytes(b"changed")
    (out / "thumbnails/f02/face_000.png").unlink()
    assert restore(folder, out, BOXES, boxes=boxes, workers=1) == 0
    assert tree(out) == first
    assert json.loads((out / "_run" / "run.json").read_text())["kept_from_earlier_run"] == 10
    boxes.write_text(boxes.read_text().replace("f04.png,54,10,24,24,0.9\n", ""))
    assert restore(folder, out, BOXES, boxes=boxes, workers=1) == 0
    assert json.loads((out / "_run" / "run.json").read_text())["kept_from_earlier_run"] == 11
    gone = {k for k in first if "/f04/face_002." in k}
    assert gone and tree(out) == {k: v for k, v in first.items() if k not in gone}, "what is no face any more is gone"
    assert ("f04.png", 2) not in by_face(out)
    (out / "restored/f00/face_001.png").write_bytes(first["restored/f00/face_000.png"])
    assert verify(out) == 1


def test_an_older_face_that_cannot_be_removed_fails_its_picture(
    frames: tuple[Path, Path], tmp_path: Path, restore: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder, boxes), out, unlink = frames, tmp_path / "out", Path.unlink
    restore(folder, out, BOXES, boxes=boxes, workers=1)
    old = out / "restored" / "f00" / "face_002.png"

    def guarded(path: Path, missing_ok: bool = False) -> None:
        if path == old:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", guarded)
    boxes.write_text(boxes.read_text().replace("f00.png,54,10,24,24,0.9\n", ""))
    assert restore(folder, out, BOXES, boxes=boxes, workers=1) == 1
    line = by_face(out)["f00.png", None]
    assert line["status"] == "failed" and line["error"] == f"cannot be removed: {old}: Permission denied"
    assert json.loads((out / "_run" / "run.json").read_text())["counts"] == {"failed": 1, "ok": 11}


def test_error_asks_for_proof_of_every_face(
    frames: tuple[Path, Path], tmp_path: Path, restore: Callable[..., int]
) -> None:
    (folder, boxes), out = frames, tmp_path / "out"
    listed = boxes.read_text()
    boxes.write_text(listed.replace("f00.png,2,10,", "f00.png,900,10,", 1))  # its face 0 fails, the others are there
    assert restore(folder, out, BOXES, boxes=boxes, workers=1) == 1
    assert restore(folder, out, BOXES, boxes=boxes, workers=1, on_exists="error") == 1, "its own are no obstacle"
    first, journal = tree(out), lines(out)
    face = out / "restored/f00/face_002.png"
    face.write_bytes(b"changed")
    with pytest.raises(OutputError, match=r"exist already.*\n  restored/f00$"):
        restore(folder, out, BOXES, boxes=boxes, workers=1, on_exists="error")
    face.write_bytes(first["restored/f00/face_002.png"])
    boxes.write_text(listed)
    with pytest.raises(OutputError, match=r"exist already.*\n  restored/f00$"):
        restore(folder, out, BOXES, boxes=boxes, workers=1, on_exists="error")
    assert tree(out) == first and lines(out) == journal


def test_a_frame_that_cannot_be_read_any_more_keeps_no_faces_of_its_record_and_all_others(
    frames: tuple[Path, Path], tmp_path: Path, restore: Callable[..., int]
) -> None:
    (folder, boxes), out = frames, tmp_path / "out"
    restore(folder, out, BOXES, boxes=boxes, workers=1)
    first = tree(out)
    (folder / "f00.png").write_bytes(b"")
    (folder / "f02.png").write_bytes(b"")
    (out / "restored/f02/face_001.png").write_bytes(b"mine")
    assert restore(folder, out, BOXES, boxes=boxes, workers=1, on_exists="skip") == 1
    assert json.loads((out / "_run" / "run.json").read_text())["counts"] == {"corrupt": 1, "ok": 10, "skipped": 1}
    assert by_face(out)["f00.png", None]["status"] == "corrupt"
    left = tree(out)
    assert left["restored/f02/face_001.png"] == b"mine" and not any("/f00/" in path for path in left)
    assert {k: v for k, v in left.items() if "/f02/" not in k} == {
        k: v for k, v in first.items() if "/f00/" not in k and "/f02/" not in k
    }


def test_a_run_is_verified_from_any_folder(
    frames: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "chain.yaml").write_text(yaml.safe_dump(BOXES))
    monkeypatch.chdir(tmp_path)
    said = ["restore", "-i", "in", "-o", "out", "-c", "chain.yaml", "--boxes", frames[1].name, "--workers", "1"]
    assert main(said) == 0
    monkeypatch.chdir(frames[0])
    assert verify(tmp_path / "out") == 0


def test_a_box_outside_its_picture_or_without_sense_is_a_counted_error(
    frames: tuple[Path, Path], tmp_path: Path, restore: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, boxes = frames
    with open(boxes, "a") as file:
        file.write("f00.png,500,10,24,24,0.9\nf02.png,ten,10,24,24,0.9\nf04.png,1,1,-3,nan,0.9\nf06.png,70,10,24,24,\n")
        file.write("elsewhere.png,1,1,9,9,\n,1,1,9,9,\n../../etc/passwd,1,1,9,9,\n")
    out = tmp_path / "out"
    assert restore(folder, out, BOXES, boxes=boxes, workers=1) == 1
    found = by_face(out)
    outside, word, negative = (found[f"f0{i}.png", 3] for i in (0, 2, 4))
    assert outside["status"] == "failed" and "lies outside the 80x60 px picture" in outside["error"]
    assert "x = 'ten' is no number" in word["error"] and "h = 'nan' is no finite number" in negative["error"]
    assert found["f00.png", None]["status"] == "failed" and "1 of 4 faces failed" in found["f00.png", None]["error"]
    assert found["f00.png", 0]["status"] == "ok", "the other faces of the frame are restored"
    assert found["f06.png", 3]["status"] == "failed", "10 of 24 px inside are less than half"
    said = capsys.readouterr().err
    assert "2 picture(s) are not among the inputs, 1 row(s) name none" in said and "../../etc/passwd" in said
    assert json.loads((out / "_run" / "run.json").read_text())["boxes_without_input"] == 3
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out", "boxes.csv"}, "nothing was written elsewhere"


def test_a_frame_without_faces_is_one_line(
    frames: tuple[Path, Path], tmp_path: Path, restore: Callable[..., int]
) -> None:
    folder, boxes = frames
    (folder / "nobody.png").write_bytes(png(colour(3, (40, 50))))
    out = tmp_path / "out"
    assert restore(folder, out, BOXES, boxes=boxes, workers=1) == 0
    (line,) = [r for r in lines(out) if r["input"] == "nobody.png"]
    assert (line["status"], line["faces"], line["output"]) == ("no_face", 0, None) and "no face" in line["reason"]
    assert not (out / "restored" / "nobody").exists() and verify(out) == 0


def test_what_is_not_chosen_is_named_with_its_reason(
    frames: tuple[Path, Path], tmp_path: Path, restore: Callable[..., int]
) -> None:
    folder, boxes = frames
    rows = "f00.png,2,10,24,24,0.9\nf00.png,28,10,20,20,0.9\nf00.png,54,10,8,8,0.9\nf00.png,60,12,24,14,0.2\n"
    boxes.write_text("image,x,y,w,h,score\n" + rows)
    out = tmp_path / "out"
    chosen = ("stages.0.select=largest", "stages.0.score=0.5", "stages.0.min_px=10")
    assert restore(folder / "f00.png", out, BOXES, boxes=boxes, workers=1, overrides=chosen) == 0
    line = by_face(out)["f00.png", None]
    reasons = {tuple(d["box_xywh_px"]): d["reason"] for d in line["dropped"]}
    assert reasons == {
        (28, 10, 20, 20): "not the largest", (54, 10, 8, 8): "8.0 px is under min_px 10",
        (60, 12, 24, 14): "score 0.200 is under 0.5",
    }  # fmt: skip
    assert line["faces"] == 1 and line["dropped"][0]["score"] == 0.9


@pytest.mark.parametrize("kind", ["list", "mapping", "lines", "pairs"])
def test_boxes_come_as_json_too(kind: str, tmp_path: Path) -> None:
    rows = [{"image": "a\\b.png", "x": 1, "y": 2, "w": 3, "h": 4.5, "camera": "7"}, {"image": "./c.png", "x": 1}]
    path = tmp_path / ("boxes.jsonl" if kind == "lines" else "boxes.json")
    texts = {
        "list": json.dumps(rows),
        "lines": "\n".join(map(json.dumps, rows)),
        "mapping": json.dumps({"a\\b.png": [rows[0]], "./c.png": [rows[1]]}),
        "pairs": json.dumps({"a/b.png": [[1, 2, 3, 4.5]], "c.png": [[1]]}),
    }
    path.write_text(texts[kind])
    boxes = BoxFile(path)
    (sound,) = boxes.of("a/b.png")
    (broken,) = boxes.of("c.png")
    assert sound.box_xywh_px == (1, 2, 3, 4.5) and sound.error is None
    assert broken.error is not None and "y = 'None' is no number" in broken.error
    assert boxes.unused(["a/b.png"]) == ["c.png"] and boxes.of("nothing") == []


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("b.csv", "image,x,y\n", "lacks the columns w, h"),
        ("b.json", "[[[", "Expecting value"),
        ("b.json", '"text"', "expected a list"),
        ("b.json", "[1]", "expected objects"),
        ("b.json", "[" * 100_000, "recursion|Expecting"),
        ("missing.csv", None, "No such file"),
    ],
)
def test_a_file_that_holds_no_boxes_is_refused(name: str, text: str | None, said: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=said):
        BoxFile(tmp_path / name)


def test_hostile_files_are_accounted_for_and_nothing_escapes(
    frames: tuple[Path, Path], tmp_path: Path, restore: Callable[..., int]
) -> None:
    folder, boxes = frames
    (folder / "bomb.png").write_bytes(huge_png(30_000))
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.jpg").write_text("no picture")
    (folder / "x..png").write_bytes(png(frame(1)))
    (folder / "a..b.png").write_bytes(png(frame(1)))
    (folder / "face_000.png").write_bytes(png(frame(1)))
    (folder / "small.png").write_bytes(png(colour(0, (5, 5))))
    (folder / "truncated.png").write_bytes(png(frame(2))[:900])
    listed = folder / "list.txt"
    listed.write_text("../../../etc/passwd\nf00.png\n")
    before = {p.name for p in tmp_path.iterdir()}
    out = tmp_path / "out"
    started = time.monotonic()
    assert restore(folder, out, BOXES, boxes=boxes, workers=2) == 1
    assert time.monotonic() - started < 60
    statuses = {name: line["status"] for (name, face), line in by_face(out).items() if face is None}
    assert {k: v for k, v in statuses.items() if not k.startswith(("f0", "f1", "sub/"))} == {
        "bomb.png": "unsupported", "empty.png": "corrupt", "text.jpg": "corrupt", "x..png": "no_face",
        "a..b.png": "no_face", "face_000.png": "no_face", "small.png": "unsupported", "truncated.png": "corrupt",
    }  # fmt: skip
    assert restore(listed, tmp_path / "listed", BOXES, boxes=boxes, workers=1) == 1
    assert {p.name for p in tmp_path.iterdir()} == before | {"out", "listed"}


def test_a_face_too_small_in_its_frame_is_not_decidable_however_large_it_was_cut(
    tmp_path: Path, restore: Callable[..., int]
) -> None:
    folder, boxes = tmp_path / "in", tmp_path / "boxes.csv"
    folder.mkdir()
    (folder / "f.png").write_bytes(png(frame(1)))
    boxes.write_text("image,x,y,w,h\nf.png,2,10,11,11\nf.png,28,10,13,13\n")
    assert restore(folder, tmp_path / "out", BOXES, boxes=boxes, workers=1) == 0
    small, large = (by_face(tmp_path / "out")["f.png", face] for face in (0, 1))
    assert (small["status"], small["verdict"]) == ("review", "not_decidable")
    assert small["reason"] == "too small: 11 px a side, under 12" and large["status"] == "ok"


def test_names_made_of_dots_are_restored_under_names_that_lead_nowhere(
    tmp_path: Path, restore: Callable[..., int]
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    rows = ["image,x,y,w,h"]
    for name in ("...png", "..png"):
        (folder / name).write_bytes(png(frame(1)))
        rows.append(f"{name},2,10,24,24")
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("\n".join(rows) + "\n")
    given = folder / "list.txt"
    given.write_text("...png\n..png\n")
    assert restore(given, out, BOXES, boxes=boxes, workers=1) == 0
    written = {r["output"] for r in lines(out) if r.get("face") == 0}
    assert len(written) == 2 and all(".." not in Path(p).parts and (out / p).is_file() for p in written)
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out", "boxes.csv"}
    assert verify(out) == 0


def test_an_input_named_as_the_face_of_another_is_refused_by_chains_that_find_faces(
    tmp_path: Path, restore: Callable[..., int]
) -> None:
    folder = tmp_path / "in"
    (folder / "a").mkdir(parents=True)
    for name in ("a.png", "a/face_000.png", "a/face_x.png"):
        (folder / name).write_bytes(png(frame(1)))
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("image,x,y,w,h\na.png,2,10,24,24\n")
    with pytest.raises(InputError, match="overwrite each other") as refused:
        restore(folder, tmp_path / "out", BOXES, boxes=boxes, workers=1)
    (named,) = [line.split(" and ") for line in str(refused.value).splitlines() if line.startswith("  ")]
    assert sorted(Path(name.strip()).name for name in named) == ["a.png", "face_000.png"]
    assert not (tmp_path / "out").exists()
    assert restore(folder, tmp_path / "crops", workers=1) == 0  # crops have one face each, at their own names


def test_chains_that_cannot_work_are_refused_before_anything_is_read(
    frames: tuple[Path, Path], tmp_path: Path, restore: Callable[..., int]
) -> None:
    folder, boxes = frames
    late = {**BOXES, "stages": [{"stage": "resample"}, {"stage": "detect"}]}
    with pytest.raises(ConfigError, match=r"stages\[1\].*must be the first stage"):
        load_chain(late)
    with pytest.raises(ConfigError, match="only a chain that begins with"):
        load_chain({"version": 1, "name": "x", "stages": [{"stage": "resample"}], "video": {"every": 2}})
    with pytest.raises(ConfigError, match="name their file with --boxes"):
        restore(folder, tmp_path / "out", BOXES)
    with pytest.raises(ConfigError, match="does not read boxes"):
        restore(folder, tmp_path / "out", {**BOXES, "stages": [{"stage": "resample"}]}, boxes=boxes)
    with pytest.raises(ConfigError, match="a mask belongs to one face crop"):
        restore(folder, tmp_path / "out", BOXES, boxes=boxes, mask=folder)
    assert not (tmp_path / "out").exists()


def test_a_worker_that_dies_on_a_frame_costs_only_that_frame(
    frames: tuple[Path, Path], tmp_path: Path, restore: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    from pipeline.worker import Worker

    whole = Worker._load_frame

    def deadly(self: Worker, task: Any, *rest: Any) -> Any:
        if task.name == "f04.png":
            os._exit(9)
        return whole(self, task, *rest)

    monkeypatch.setattr(Worker, "_load_frame", deadly)
    folder, boxes = frames
    assert restore(folder, tmp_path / "out", BOXES, boxes=boxes, workers=2) == 1
    found = by_face(tmp_path / "out")
    assert {n for (n, face), r in found.items() if face is None and r["status"] != "ok"} == {"f04.png"}
    assert "worker process died" in found["f04.png", None]["error"] and found["f04.png", None]["faces"] == 0


@pytest.mark.slow
def test_the_face_of_a_photograph_is_found_and_restored(tmp_path: Path, restore: Callable[..., int]) -> None:
    pytest.importorskip("onnxruntime")
    try:
        chain = load_chain("configs/frames_restore.yaml")
    except ConfigError as error:
        pytest.skip(str(error))
    (tmp_path / "in").mkdir()
    Image.fromarray(data.astronaut()).save(tmp_path / "in" / "a.png")
    Image.fromarray(data.coffee()).save(tmp_path / "in" / "b.png")
    try:
        code = restore(tmp_path / "in", tmp_path / "out", chain.resolved(), workers=1)
    except ConfigError as error:
        pytest.skip(str(error))
    found = by_face(tmp_path / "out")
    assert code == 0 and found["b.png", None]["status"] == "no_face"
    face = found["a.png", 0]
    x, y, w, h = face["box_xywh_px"]
    assert face["status"] == "ok" and abs(x + w / 2 - 225) < 15 and abs(y + h / 2 - 125) < 20
    points = np.array(face["landmarks_px"]) @ np.array(face["to_source"])[:, :2].T + np.array(face["to_source"])[:, 2]
    eyes = points[36:48].mean(0)
    assert np.allclose(eyes, np.array(face["points_px"])[:2].mean(0), atol=8), "landmarks lead back to the eyes"
    html = (tmp_path / "out" / "_run" / "report.html").read_text()
    assert "a.png, face 0" in html and "b.png" in html
    assert verify(tmp_path / "out") == 0


def test_the_report_shows_what_was_dropped_and_the_picture_with_its_faces_put_back(
    frames: tuple[Path, Path], tmp_path: Path, restore: Callable[..., int]
) -> None:
    folder, boxes = frames
    assert restore(folder, tmp_path / "plain", BOXES, boxes=boxes, workers=1) == 0
    html = (tmp_path / "plain" / "_run" / "report.html").read_text()
    assert "<b>f00.png, face 0</b>" in html and "<b>f00.png</b>" not in html and "found and dropped" not in html
    assert restore(folder, tmp_path / "put", PASTE, boxes=boxes, workers=1) == 0
    html = (tmp_path / "put" / "_run" / "report.html").read_text()
    assert "<b>f00.png</b>" in html and 'href="../restored/f00.png"' in html
    largest = {**BOXES, "stages": [{**BOXES["stages"][0], "select": "largest"}, BOXES["stages"][1]]}
    assert restore(folder, tmp_path / "one", largest, boxes=boxes, workers=1) == 0
    html = (tmp_path / "one" / "_run" / "report.html").read_text()
    assert html.count("2 found and dropped: ") == 12


PASTE: dict[str, Any] = {**BOXES, "stages": [*BOXES["stages"], {"stage": "paste", "feather": 0.1}]}


def test_faces_are_put_back_into_their_picture(
    frames: tuple[Path, Path], tmp_path: Path, restore: Callable[..., int]
) -> None:
    folder, boxes = frames
    (folder / "grey.png").write_bytes(png(np.repeat(frame(3)[..., :1], 3, 2)))
    boxes.write_text(boxes.read_text() + "grey.png,2,10,24,24,1\nf02.png,900,10,24,24,1\n")
    out = tmp_path / "out"
    assert restore(folder, out, PASTE, boxes=boxes, workers=1) == 1
    found = by_face(out)
    whole = found["f00.png", None]
    assert whole["output"] == "restored/f00.png" and set(whole["files_sha256"]) == {"image"}
    picture = np.asarray(Image.open(out / whole["output"]))
    assert picture.shape == (60, 80, 3)
    assert np.abs(picture.astype(int) - frame(0)).mean() < 2 and not np.array_equal(picture, frame(0))
    assert np.array_equal(picture[40:], frame(0)[40:]), "nothing changes where no face is"
    assert Image.open(out / "restored/grey.png").mode == "L"
    assert found["f02.png", None]["output"] is None, "a picture with a failed face is not passed off as done"
    assert verify(out) == 0
    assert restore(folder / "f00.png", tmp_path / "again", PASTE, boxes=boxes, workers=1) == 0
    assert (tmp_path / "again/restored/f00.png").read_bytes() == (out / "restored/f00.png").read_bytes()
    (out / "restored/f04.png").write_bytes(b"changed")
    assert verify(out) == 1
    restore(folder, out, BOXES, boxes=boxes, workers=1)
    assert not (out / "restored/f04.png").exists(), "a chain without paste leaves no frames of an earlier one"


def test_python_gives_what_the_command_line_gives(
    frames: tuple[Path, Path], tmp_path: Path, restore: Callable[..., int]
) -> None:
    folder, boxes = frames
    restore(folder / "f00.png", tmp_path / "out", PASTE, boxes=boxes, workers=1)
    restorer = Restorer.from_config(PASTE, device="cpu")
    given = [
        [(2.0, 10.0, 24.0, 24.0), (28.0, 10.0, 24.0, 24.0), (54.0, 10.0, 24.0, 24.0)],
        [(900.0, 1.0, 5.0, 5.0)],
        [],
    ]
    first, outside, nothing = restore_frames(restorer, [folder / "f00.png", frame(0), tmp_path / "no.png"], given)
    assert first.image is not None and first.status == "ok"
    assert np.array_equal(first.image, np.asarray(Image.open(tmp_path / "out/restored/f00.png")))
    for result in first.faces:
        assert result.origin is not None and result.image is not None
        path = tmp_path / f"out/restored/f00/face_{result.origin.index:03d}.png"
        assert np.array_equal(result.image, np.asarray(Image.open(path)))
    assert (outside.status, outside.image, len(outside.faces)) == ("failed", None, 1)
    assert nothing.status == "failed" and "not there" in (nothing.error or "")
    with pytest.raises(ConfigError, match="restore_frames"):
        restorer.restore([frame(0)])
    with pytest.raises(ValueError, match="expected 1 lists"):
        restore_frames(restorer, [frame(0)], [])
