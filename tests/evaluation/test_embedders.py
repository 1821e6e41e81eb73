"""Templates, the ONNX embedder's checks, and the classifier of covered faces."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evaluation import embedders
from evaluation.faces import thumbnail

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


def test_the_cover_classifier_learns_an_obvious_cover_and_is_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    bare = list(rng.integers(90, 160, (60, 32, 32, 3), dtype=np.uint8))
    covered = [image.copy() for image in bare]
    for image in covered:
        image[18:] = 235
    network = embedders.cover_classifier(covered[:50], bare[:50], 16, tmp_path, steps=60)
    assert embedders.called_covered(network, covered[50:], 16).mean() > 0.8
    assert embedders.called_covered(network, bare[50:], 16).mean() < 0.2
    kept = list(tmp_path.iterdir())
    again = embedders.cover_classifier(covered[:50], bare[:50], 16, tmp_path, steps=60)
    assert list(tmp_path.iterdir()) == kept and len(kept) == 1
    small = [thumbnail(image) for image in covered]
    np.testing.assert_array_equal(
        embedders.called_covered(network, small, 16), embedders.called_covered(again, small, 16)
    )
