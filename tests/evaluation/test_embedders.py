"""Templates, and the ONNX embedder's checks."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evaluation import embedders

MODEL = Path(__file__).resolve().parents[3] / "shared" / "data" / "mobilefacenet_casia.onnx"


@pytest.mark.parametrize("template", embedders.TEMPLATES)
def test_points_land_on_the_template(template: str) -> None:
    points, (height, width) = embedders.TEMPLATES[template]
    picture = np.zeros((128, 128, 3), np.uint8)
    source = points * 1.1 + (3, 5)
    for x, y in np.round(source).astype(int):
        picture[y - 1 : y + 2, x - 1 : x + 2] = 255
    crop = embedders.crop_to_template(picture, source, embedders.TEMPLATES[template])
    assert crop.shape == (height, width, 3)
    for x, y in np.round(points).astype(int):
        assert crop[y - 1 : y + 2, x - 1 : x + 2].max() > 200


def test_wrong_files_and_templates_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    with pytest.raises(FileNotFoundError, match=r"none\.onnx does not exist"):
        embedders.OnnxEmbedder(tmp_path / "none.onnx")
    (tmp_path / "some.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match="unknown template 'square'"):
        embedders.OnnxEmbedder(tmp_path / "some.onnx", "square")


def test_a_network_that_does_not_run_on_its_template_is_refused(tiny_onnx: Callable[..., Path]) -> None:
    pytest.importorskip("onnxruntime")
    path = tiny_onnx("h", "w", square=True)
    assert embedders.OnnxEmbedder(path, "arcface-112").size == 3
    with pytest.raises(ValueError, match=r"colour_hxw_True\.onnx does not run on \[64, 3, 112, 96\]: "):
        embedders.OnnxEmbedder(path, "sphereface-112x96")


@pytest.mark.skipif(not MODEL.is_file(), reason="needs the evaluation embedder of the development data")
def test_the_evaluation_embedder_gives_unit_rows_that_do_not_depend_on_company() -> None:
    pytest.importorskip("onnxruntime")
    embedder = embedders.OnnxEmbedder(MODEL, threads=1)
    images = list(np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), dtype=np.uint8))
    points = [embedders.TEMPLATES["sphereface-112x96"][0]] * 3
    rows = embedder(images, points)
    assert rows.shape == (3, 128)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(embedder(images[:1], points[:1]), rows[:1], atol=1e-4)
    with pytest.raises(ValueError, match="the template arcface-112 gives"):
        embedders.OnnxEmbedder(MODEL, "arcface-112")
