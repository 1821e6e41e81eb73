"""The readers against made-up and damaged input: a fixed number of cases each, and nothing but the typed answers."""

import io
import json
import struct
import warnings
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.config import ConfigError, VideoConfig, apply_override, load_chain, parse_yaml
from pipeline.images import FORMATS, ImageError, Limits, read_mask, read_picture
from pipeline.journal import Journal, line_of, read_records
from pipeline.planning import InputError, InputSet
from pipeline.sources.boxes import BoxFile
from pipeline.sources.video import Video

CASES = 200
LIMITS = Limits(max_pixels=200_000)
fixed = settings(
    max_examples=CASES, derandomize=True, database=None, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


@lru_cache
def sound(kind: str) -> bytes:
    """A small sound picture file of a format; ";16" after it: with 16 bits a channel."""
    if kind.endswith(";16"):
        pixels = np.random.default_rng(0).integers(0, 65536, (20, 17, 4), dtype=np.uint16)
        return cv2.imencode({"PNG;16": ".png", "TIFF;16": ".tif"}[kind], pixels)[1].tobytes()
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 17, 3), dtype=np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def read(data: bytes) -> None:
    """What the readers make of bytes: pixels of the promised kind, or a typed refusal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata; only the answer counts here
        try:
            picture = read_picture(data, "x.png", LIMITS)
        except ImageError as error:
            assert error.status in ("corrupt", "unsupported", "failed") and str(error)
            return
        pixels = picture.pixels
        assert pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype in (np.uint8, np.uint16)
        assert 12 <= min(pixels.shape[:2]) and pixels.shape[0] * pixels.shape[1] <= LIMITS.max_pixels
        try:
            assert read_mask(data).dtype == np.float32
        except ImageError:
            pass


@fixed
@given(st.binary(max_size=400))
def test_bytes_without_sense_are_a_typed_refusal(data: bytes) -> None:
    read(data)


@fixed
@given(
    kind=st.sampled_from((*FORMATS, "PNG;16", "TIFF;16")),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=12),
    cut=st.floats(0, 1),
)
def test_a_damaged_picture_is_read_or_refused(kind: str, edits: list[tuple[float, int]], cut: float) -> None:
    data = bytearray(sound(kind))
    for place, value in edits:
        data[int(place * len(data))] = value
    read(bytes(data))
    read(bytes(data[: int(cut * len(data))]))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@fixed
@given(
    width=st.one_of(st.integers(0, 40), st.sampled_from([2**16, 2**31 - 1, 2**32 - 1])),
    height=st.one_of(st.integers(0, 40), st.sampled_from([2**16, 2**31 - 1])),
    depth=st.integers(0, 255), colour=st.integers(0, 8), interlace=st.integers(0, 2),
    extra=st.lists(st.tuples(st.sampled_from([b"tRNS", b"PLTE", b"iCCP", b"eXIf", b"zTXt", b"acTL", b"fcTL", b"gAMA"]),
                             st.binary(max_size=60)), max_size=3),
    rows=st.binary(max_size=300),
)  # fmt: skip
def test_a_png_of_any_header_is_read_or_refused(
    width: int, height: int, depth: int, colour: int, interlace: int, extra: list[tuple[bytes, bytes]], rows: bytes
) -> None:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    body = b"".join(chunk(kind, data) for kind, data in extra) + chunk(b"IDAT", zlib.compress(rows))
    read(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b""))


def test_a_png_that_unpacks_to_gigabytes_is_refused_by_its_header_and_a_lying_one_stops_at_its_size() -> None:
    rows = zlib.compress(bytes(50_000_000), 9)
    for side in (20_000, 20):
        header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
        if side == 20:
            assert read_picture(data, "x.png", LIMITS).pixels.shape == (20, 20, 3)
        else:
            with pytest.raises(ImageError, match="over the limit") as caught:
                read_picture(data, "x.png", LIMITS)
            assert caught.value.status == "unsupported"


plain: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = ["version", "name", "seed", "stages", "verdict", "video", "profile", "marking", "signing", "cluster"]


@fixed
@given(st.text(max_size=200))
def test_a_text_is_yaml_or_a_config_error(text: str) -> None:
    try:
        parse_yaml(text, "x.yaml")
    except ConfigError as error:
        assert all(problem.startswith("x.yaml: ") for problem in error.problems)


@fixed
@given(document=st.dictionaries(st.sampled_from(NAMES), plain, max_size=8), options=st.dictionaries(
    st.sampled_from(["stage", "size", "method", "weights", "fidelity", "black", "clip"]), plain, max_size=4),
    stage=st.sampled_from(["resample", "levels", "aspect", "degrade", "nothing"]))  # fmt: skip
def test_a_document_is_a_chain_or_a_config_error(document: Any, options: Any, stage: str) -> None:
    for chain in (document, {"version": 1, "name": "x", "stages": [options | {"stage": stage}]} | document):
        try:
            config = load_chain(chain, check_weights=False)
        except ConfigError as error:
            assert error.problems
        else:
            assert load_chain(config.resolved(), check_weights=False).digest() == config.digest()


@fixed
@given(document=plain, text=st.text(max_size=30))
def test_an_override_is_carried_out_or_a_config_error(document: Any, text: str) -> None:
    try:
        apply_override(document, text)
    except ConfigError as error:
        assert error.problems


@pytest.mark.parametrize(
    "text",
    ["!!python/object/apply:os.system ['true']", "a: &a [*a]", "a: &a [x]\nb: &b [*a,*a,*a]\nc: [*b,*b,*b]", "{" * 3000,
     "a: 2001-99-99", "? [1]\n: 2", "\x00", "version: 1\nversion: 1"],
)  # fmt: skip
def test_known_traps_of_yaml_are_answered(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError):
        load_chain(tmp_path / "x.yaml")


@fixed
@given(st.lists(st.binary(max_size=60).map(lambda b: b.replace(b"\n", b" ")), max_size=6),
       st.sampled_from([b"", b"\n"]))  # fmt: skip
def test_a_damaged_journal_opens_and_keeps_its_sound_lines(
    tmp_path_factory: pytest.TempPathFactory, junk: list[bytes], end: bytes
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    sound_lines = [line_of({"input": f"{i}.png", "status": "ok", "key": "k"}) for i in range(3)]
    lines = [line for i, line in enumerate(sound_lines) for line in (line, *[j + b"\n" for j in junk[i::3]])]
    path.write_bytes(b"".join(lines) + b'{"input": "torn' + end)
    assert [r["input"] for r in read_records(path) if r["input"] in ("0.png", "1.png", "2.png")] == [
        "0.png", "1.png", "2.png",
    ]  # fmt: skip
    with Journal(path) as journal:
        assert [journal.find(f"{i}.png") for i in range(3)] == [json.loads(line) for line in sound_lines]
        journal.append({"input": "3.png", "status": "ok"})
    with Journal(path) as journal:
        assert journal.find("3.png") == {"input": "3.png", "status": "ok"}


@fixed
@given(
    st.lists(plain, max_size=4),
    st.sampled_from(["input", "face", "faces"]),
)
def test_a_line_of_any_values_is_found_again_or_passed_over(
    tmp_path_factory: pytest.TempPathFactory, values: list[Any], key: str
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    rows = [{"input": "a.png", "status": "ok", key: value} for value in values]
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    assert all(isinstance(record.get("input"), str) for record in read_records(path))
    with Journal(path) as journal:
        found = journal.find("a.png")
        assert found is None or found["input"] == "a.png"
        assert found is not None or key != "faces" or not values or not isinstance(values[-1], int)
        if found is not None:
            list(journal.faces(found))


@fixed
@given(st.binary(max_size=200), st.sampled_from(["boxes.csv", "boxes.json"]), plain)
def test_a_file_of_boxes_is_read_or_a_typed_refusal(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str, value: Any
) -> None:
    path = tmp_path_factory.mktemp("boxes") / name
    row = {"image": "a.png", "x": value, "y": 1, "w": 5, "h": 5}
    for content in (data, json.dumps([row]).encode(), f"image,x,y,w,h\na.png,{yaml.safe_dump(value)},1,5,5\n".encode()):
        path.write_bytes(content)
        try:
            boxes = BoxFile(path)
        except ValueError as error:
            assert type(error).__module__.startswith("pipeline") and str(error)
        else:
            assert all(np.isfinite(box.box_xywh_px).all() or box.error for box in boxes.of("a.png") or [])


@lru_cache
def sound_video(container: str, codec: str) -> bytes:
    """A small sound video of six frames, 48 x 32."""
    av = pytest.importorskip("av", reason="needs the extra video")
    buffer, rng = io.BytesIO(), np.random.default_rng(0)
    with av.open(buffer, "w", format=container) as made:
        stream = made.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for _ in range(6):
            pixels = rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)
            made.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        made.mux(stream.encode(None))
    return buffer.getvalue()


@fixed
@given(
    st.sampled_from([("matroska", "mpeg4"), ("mp4", "mpeg4"), ("avi", "mpeg4"), ("mpegts", "mpeg2video")]),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=12),
    st.floats(0, 1), st.booleans(),
)  # fmt: skip
def test_a_damaged_video_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, kind: tuple[str, str], edits: list[tuple[float, int]], cut: float,
    whole: bool,
) -> None:  # fmt: skip
    data = bytearray(sound_video(*kind))
    for place, value in edits:
        data[int(place * len(data))] = value
    path = tmp_path_factory.mktemp("video") / "a.mkv"
    path.write_bytes(data if whole else data[: int(cut * len(data))])
    count = 0
    try:
        for frame in Video(str(path), VideoConfig(max_frames=50), LIMITS):
            pixels, count = frame.picture.pixels, count + 1
            assert pixels.dtype == np.uint8 and pixels.shape[2] == 3
            assert pixels.shape[0] * pixels.shape[1] <= LIMITS.max_pixels
    except ImageError as error:
        assert error.status in ("corrupt", "unsupported") and str(error)
    assert count <= 50
    assert count == 6 or edits or not whole


@fixed
@given(st.one_of(st.binary(max_size=200), st.text(st.characters(codec="utf-8"), max_size=100).map(str.encode)))
def test_a_list_of_inputs_is_read_or_a_typed_refusal(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("list")
    (folder / "inputs.txt").write_bytes(data)
    lines = [line for line in data.removeprefix(b"\xef\xbb\xbf").replace(b"\r", b"\n").split(b"\n") if line]
    inputs = InputSet((str(folder / "inputs.txt"),), folder / "out")
    try:
        tasks = list(inputs.tasks())
    except InputError as error:
        assert b"\0" in data and "NUL" in str(error)
        return
    assert len(tasks) == len(lines)
    for task in tasks:
        inside = (folder / "out" / f"restored/{task.target}.png").resolve()
        assert inside.is_relative_to((folder / "out").resolve())
