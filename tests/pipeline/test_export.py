"""`export`: the ONNX graph gives the answers of `restore`, says what it expects, or is not written."""

import json
import sys
from pathlib import Path
from unittest.mock import MagicMock

import cv2
import numpy as np
import pytest
import torch
from skimage import data

from pipeline import cli, export
from pipeline.restorer import Restorer
from stages.networks.prouigan import ProUiganNet
from stages.weights import read_card
from tests.pipeline.conftest import colour, shipped_chain
from tests.tiny import TINY

pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

FACES = [cv2.resize(face, (16, 16), interpolation=cv2.INTER_AREA) for face in data.lfw_subset()[[3, 40, 77]]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shipped_chain() is None:
        pytest.skip("the shipped weights are not here")
    folder = tmp_path_factory.mktemp("onnx")
    assert cli.main(["export", "prouigan_128", "-o", str(folder)]) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("fidelity", [0.0, 1.0])
@pytest.mark.parametrize("masked", [False, True])
def test_graph_restores_as_the_chain_does(exported: Path, fidelity: float, masked: bool) -> None:
    thumbnails = [np.dstack([(f * 255).round().astype(np.uint8)] * 3) for f in FACES] + [
        colour(1)
    ]  # grey ones, and one in colour
    mask = np.zeros((16, 16), np.float32)
    mask[9:14, 3:13] = 1
    chain = Restorer.from_config("configs/cctv_restore.yaml", device="cpu", precision="fp32", fidelity=fidelity)
    wanted = chain.restore(thumbnails, masks=[mask if masked else None] * 4)
    session = onnxruntime.InferenceSession(exported / "prouigan_128.onnx", providers=["CPUExecutionProvider"])
    given = np.full(4, masked, np.float32)
    fed = {
        "thumbnail": (np.stack(thumbnails) / 255).astype(np.float32).transpose(0, 3, 1, 2),
        "mask": mask[None, None] * given[:, None, None, None],
        "mask_given": given,
        "fidelity": np.full(4, fidelity, np.float32),
    }
    image, uncertainty, occlusion, landmarks, score, _ = session.run(None, fed)
    for i in range(3):  # the fourth is no face, and `restore` hands out nothing
        found = np.rint(image[i].transpose(1, 2, 0) * 255)
        ours = wanted[i].image
        assert ours is not None and wanted[i].uncertainty is not None and wanted[i].occlusion is not None
        assert np.abs(found - (ours[..., None] if ours.ndim == 2 else ours)).max() <= 1
        assert np.abs(uncertainty[i, 0] - wanted[i].uncertainty).max() < 1e-3
        assert np.abs(occlusion[i, 0] - wanted[i].occlusion).max() < 1e-3
        assert np.abs(landmarks[i] - wanted[i].landmarks).max() < 0.01
    assert np.array_equal(image[0, 0], image[0, 1]), "grey in, grey out"
    assert not np.array_equal(image[3, 0], image[3, 1])
    assert ((score > 0) & (score < 1)).all()


def test_what_stands_beside_the_graph_is_true(exported: Path) -> None:
    said = json.loads((exported / "prouigan_128.json").read_text(encoding="utf-8"))
    content = (exported / "prouigan_128.onnx").read_bytes()
    assert said["onnx_sha256"] == export.hashlib.sha256(content).hexdigest()
    assert said["weights_sha256"] == read_card("prouigan_128").sha256
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == list(said["inputs"])
    assert [o.name for o in session.get_outputs()] == list(said["outputs"])
    for values, texts in ((session.get_inputs(), said["inputs"]), (session.get_outputs(), said["outputs"])):
        for value in values:
            shape = ", ".join(["B", *(str(n) for n in value.shape[1:])])
            assert texts[value.name].startswith(f"({shape}{',' if len(value.shape) == 1 else ''})")
    assert 0 <= said["parity"]["largest_absolute_difference"]["image"] < 1e-4


def test_what_holds_no_restorer_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if shipped_chain() is None:
        pytest.skip("the shipped weights are not here")
    assert cli.main(["export", "attributes", "-o", str(tmp_path / "out")]) == 1
    assert "only the restorer" in capsys.readouterr().err
    assert cli.main(["export", "prouigan_12", "-o", str(tmp_path / "out")]) == 1
    assert "prouigan_128" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_graph_of_other_answers_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Astray:
        def run(self, names: None, fed: dict[str, np.ndarray]) -> list[np.ndarray]:
            with torch.inference_mode():
                answers = export.RestorerGraph(network)(*(torch.from_numpy(v) for v in fed.values()))
            return [a.numpy() + 0.01 for a in answers]

    network = ProUiganNet(**TINY).eval()
    monkeypatch.setattr(export, "load_network", lambda *_: network)
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: MagicMock())
    monkeypatch.setattr(onnxruntime, "InferenceSession", lambda *_, **__: Astray())
    with pytest.raises(export.ExportError, match="image differs"):
        export.export("prouigan_128", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert cli.main(["export", "-o", str(tmp_path)]) == 2
    assert "revisage[export]" in capsys.readouterr().err
