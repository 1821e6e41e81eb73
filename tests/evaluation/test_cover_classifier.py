"""The classifier of covered faces: it learns an obvious cover, and is kept."""

from pathlib import Path

import numpy as np

from evaluation.cover_classifier import called_covered, cover_classifier
from evaluation.faces import thumbnail


def test_the_cover_classifier_learns_an_obvious_cover_and_is_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    bare = list(rng.integers(90, 160, (60, 32, 32, 3), dtype=np.uint8))
    covered = [image.copy() for image in bare]
    for image in covered:
        image[18:] = 235
    network = cover_classifier(covered[:50], bare[:50], 16, tmp_path, steps=60)
    assert called_covered(network, covered[50:], 16).mean() > 0.8
    assert called_covered(network, bare[50:], 16).mean() < 0.2
    kept = list(tmp_path.iterdir())
    again = cover_classifier(covered[:50], bare[:50], 16, tmp_path, steps=60)
    assert list(tmp_path.iterdir()) == kept and len(kept) == 1
    small = [thumbnail(image) for image in covered]
    np.testing.assert_array_equal(called_covered(network, small, 16), called_covered(again, small, 16))
