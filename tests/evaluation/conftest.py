"""What the evaluation tests share: a tiny restorer with its chain, and a tiny ONNX embedder."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stages.networks.prouigan import ProUiganNet
from stages.weights import save_weights


@pytest.fixture
def tiny_chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A chain whose restorer is a small network with seeded random weights."""
    size = {
        "widths": (16, 16, 16), "blocks": (1, 0, 0), "dilations": ((1,), (1,), (1,)), "landmark_width": 16,
        "landmark_dilations": ((1,), (1,), (1,)), "attention_width": 16, "heads": 2, "detail_width": 16,
    }  # fmt: skip
    torch.manual_seed(0)
    network = ProUiganNet(**size)  # type: ignore[arg-type]
    for parameter in network.parameters():  # heads start at zero, which would show bicubic alone
        parameter.data += 0.05 * torch.randn_like(parameter)
    monkeypatch.setenv("REVISAGE_WEIGHTS", str(tmp_path))
    card = {
        "architecture": "prouigan", "arguments": size, "input": {}, "data": {}, "recipe": {}, "metrics": [],
        "licence": "none", "limits": "none",
    }  # fmt: skip
    save_weights("prouigan_128", network, card, torch.float32)
    chain = tmp_path / "chain.yaml"
    chain.write_text(
        "version: 1\nname: tiny\nstages:\n  - stage: prouigan\n    fidelity: 0.25\n"
        "verdict: {max_occluded_fraction: 1, min_face_score: 0, min_consistency_db: 0}\n"
    )
    return chain


def _field(number: int, value: int | bytes | str) -> bytes:
    """One protobuf field: a varint below 128, or bytes below 16 KiB."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    data = value.encode() if isinstance(value, str) else value
    return bytes([number << 3 | 2, len(data) & 0x7F | 0x80, len(data) >> 7]) + data


def _onnx(height: int | str, width: int | str, flat: bool, square: bool) -> bytes:
    """A network that gives the mean colour, (B, 3), or (B, 3, 1, 1) where not `flat`; ONNX's protobuf by hand.

    `square`: of the picture times itself, so that it runs on square pictures alone.
    """

    def tensor(name: str, shape: list[int | str]) -> bytes:
        dims = b"".join(_field(1, _field(1, s) if isinstance(s, int) else _field(2, s)) for s in shape)
        return _field(1, name) + _field(2, _field(1, _field(1, 1) + _field(2, dims)))

    def node(operator: str, sources: str, target: str) -> bytes:
        return _field(1, b"".join(_field(1, s) for s in sources) + _field(2, target) + _field(4, operator))

    last = "z" if flat else "y"
    nodes = node("MatMul", "xx", "s") if square else b""
    nodes += node("GlobalAveragePool", "s" if square else "x", "y") + (node("Flatten", "y", "z") if flat else b"")
    shape: list[int | str] = ["batch", 3] if flat else ["batch", 3, 1, 1]
    graph = nodes + _field(2, "tiny") + _field(11, tensor("x", ["batch", 3, height, width]))
    return _field(1, 8) + _field(7, graph + _field(12, tensor(last, shape))) + _field(8, _field(1, "") + _field(2, 13))


@pytest.fixture
def tiny_onnx(tmp_path: Path) -> Callable[..., Path]:
    """Writes an ONNX embedder by mean colour: `tiny_onnx(height, width, flat=True)` gives its path.

    A side that is a name may have any length.
    """

    def write(height: int | str = 112, width: int | str = 112, flat: bool = True, square: bool = False) -> Path:
        path = tmp_path / f"colour_{height}x{width}_{flat}.onnx"
        path.write_bytes(_onnx(height, width, flat, square))
        return path

    return write
