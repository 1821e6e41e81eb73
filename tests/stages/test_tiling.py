"""Tiles cover a picture, their weights sum to 1, and what is laid together equals what was cut."""

import pytest
import torch
from torch import Tensor

from stages.tiling import Axis, tiled


@pytest.mark.parametrize("length", [40, 64, 65, 100, 101, 128, 500])
@pytest.mark.parametrize(("overlap", "margin"), [(0, 0), (8, 0), (16, 4), (20, 10)])
def test_weights_sum_to_one_everywhere(length: int, overlap: int, margin: int) -> None:
    axis = Axis(length, 64, overlap, margin)
    total = torch.zeros(length)
    for index, start in enumerate(axis.starts):
        weight = axis.weights(index)
        assert weight.min() >= 0 and start >= 0 and start + axis.size <= length
        total[start : start + axis.size] += weight
    torch.testing.assert_close(total, torch.ones(length))


def test_the_margin_of_an_inner_border_has_no_weight() -> None:
    axis = Axis(100, 64, 16, 4)
    assert axis.weights(0)[-4:].abs().max() == 0 and axis.weights(1)[:4].abs().max() == 0
    assert axis.weights(0)[:4].min() == 1  # the picture's own border is no border of a tile


def test_settled_pixels_are_touched_by_no_later_tile() -> None:
    axis = Axis(300, 64, 16)
    for index in range(len(axis.starts)):
        assert all(start >= axis.settled(index) for start in axis.starts[index + 1 :])
    assert axis.settled(len(axis.starts) - 1) == 300


@pytest.mark.parametrize(("tile", "overlap", "margin"), [(64, 30, 0), (64, 10, 6), (64, -1, 0)])
def test_tiles_that_do_not_fit_together_are_refused(tile: int, overlap: int, margin: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= 2"):
        Axis(200, tile, overlap, margin)


@pytest.mark.parametrize("size", [(96, 96), (100, 132), (48, 200)])
def test_tiles_of_a_pointwise_map_make_the_whole(size: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))

    def double(piece: Tensor) -> Tensor:
        assert max(piece.shape[-2:]) <= 48
        return piece.repeat_interleave(2, -1).repeat_interleave(2, -2) * 0.5

    rows = list(tiled(image, 2, 48, 16, 4, double))
    tops = [top for top, _ in rows]
    assert tops == [0, *torch.tensor([r.shape[-2] for _, r in rows]).cumsum(0)[:-1].tolist()]
    torch.testing.assert_close(torch.cat([r for _, r in rows], -2), double_whole(image))


def double_whole(image: Tensor) -> Tensor:
    return image.repeat_interleave(2, -1).repeat_interleave(2, -2) * 0.5
