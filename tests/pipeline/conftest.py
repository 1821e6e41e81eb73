"""Inputs and runs for the tests of the pipeline."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from pipeline.config import ConfigError, load_chain
from pipeline.engine import Request, run
from stages.resample import Resample

RESAMPLE: dict[str, Any] = {"version": 1, "name": "plain", "stages": [{"stage": "resample", "size": 32}]}


def colour(seed: int, size: tuple[int, int] = (16, 16)) -> np.ndarray:
    """A coloured noise picture, (H, W, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def png(pixels: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", **options)
    return buffer.getvalue()


def huge_png(side: int) -> bytes:
    """A valid black PNG of side x side pixels, one bit each: small on disk."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def records(output: Path) -> dict[str, dict[str, Any]]:
    """The journal by input."""
    lines = (output / "_run" / "journal.jsonl").read_text(encoding="utf-8").splitlines()
    found = [json.loads(line) for line in lines]
    assert len({r["input"] for r in found}) == len(found), "more than one line for an input"
    return {r["input"]: r for r in found}


def tree(output: Path) -> dict[str, bytes]:
    """Every file a run made but its records, by relative path."""
    return {
        p.relative_to(output).as_posix(): p.read_bytes()
        for p in sorted(output.rglob("*"))
        if p.is_file() and p.relative_to(output).parts[0] != "_run"
    }


def shipped_chain() -> str | None:
    """The shipped chain where its weights are there."""
    try:
        load_chain("configs/cctv_restore.yaml")
    except ConfigError:
        return None
    return "configs/cctv_restore.yaml"


@pytest.fixture(params=["resample", "shipped"])
def chain(request: pytest.FixtureRequest) -> str | dict[str, Any]:
    """The chains that the promises of the pipeline are checked with."""
    if request.param == "resample":
        return RESAMPLE
    shipped = shipped_chain()
    if shipped is None:
        pytest.skip("the shipped weights are not here")
    return shipped


@pytest.fixture
def masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets `resample` pass for a stage that reads given masks."""
    monkeypatch.setattr(Resample, "reads", Resample.reads | {"given_mask"})


@pytest.fixture
def restore(tmp_path: Path) -> Callable[..., int]:
    """Runs a request; `restore(folder, output, chain, ...)` gives the exit code."""

    def call(inputs: Path | str, output: Path, config: str | dict[str, Any] = RESAMPLE, **options: Any) -> int:
        return run(Request(inputs=(str(inputs),), output=output, config=config, **options))

    return call


def write_sound(path: Path) -> None:
    """A container with a moment of silence and no picture; needs PyAV."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 8000
        container.mux(stream.encode(samples))
        container.mux(stream.encode(None))


def thumbnail(index: int, size: tuple[int, int] = (16, 16), grey: bool = False) -> np.ndarray:
    """One of a hundred faces as a CCTV thumbnail, (H, W, 3) uint8; tinted like skin unless `grey`."""
    small = Image.fromarray((data.lfw_subset()[index % 100] * 255).astype(np.uint8))
    pixels = np.asarray(small.resize((size[1], size[0]), Image.Resampling.BOX), np.float32)
    tint = np.ones(3) if grey else np.array([1.0, 0.82, 0.7]) * (1 - index // 100 * 0.02)
    return (pixels[..., None] * tint).round().astype(np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty small faces of two sizes in two folders, some grey, some not square."""
    made = tmp_path / "in"
    (made / "sub").mkdir(parents=True)
    for i in range(40):
        pixels = thumbnail(i, (16, 16) if i % 3 else (20, 18), grey=i % 5 == 0)
        (made / ("sub" if i % 2 else ".") / f"face{i:02d}.png").write_bytes(png(pixels))
    return made
