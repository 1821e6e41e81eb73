"""Pictures of no face: of the right form, seeded, varied, and never a whole face."""

import numpy as np
import pytest

from training.no_face import LARGEST_PIECE, no_face


def drawn(seed: int, count: int = 60) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    faces = np.random.default_rng(0).integers(0, 256, (3, 168, 168, 3), np.uint8)
    return [no_face(rng, lambda: faces[int(rng.integers(3))]) for _ in range(count)]


def test_they_have_the_form_of_a_frame_and_follow_their_seed() -> None:
    made = drawn(1)
    assert all(picture.shape == (128, 128, 3) and picture.dtype == np.uint8 for picture in made)
    assert all(np.array_equal(a, b) for a, b in zip(made, drawn(1), strict=True))
    assert len({picture.tobytes() for picture in made}) > 50
    assert len({picture.tobytes() for picture in made} & {picture.tobytes() for picture in drawn(2)}) < 5


@pytest.mark.parametrize("colour", [30, 220])
def test_a_piece_shows_too_little_for_a_face(colour: int) -> None:
    """A face marked by one column left and one right, an eye's distance beyond a piece: never both in one picture."""
    face = np.zeros((168, 168, 3), np.uint8)
    face[:, 50], face[:, 50 + LARGEST_PIECE + 3] = (colour, 0, 0), (0, colour, 0)
    from training import no_face as module

    rng = np.random.default_rng(3)
    pieces = [module._piece(rng, face) for _ in range(200)]
    both = [(piece[..., 0] > colour // 8).any() and (piece[..., 1] > colour // 8).any() for piece in pieces]
    assert not any(both) and any((piece[..., 0] > colour // 8).any() for piece in pieces)
