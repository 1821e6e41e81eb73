"""Heatmaps: a point drawn and read back is the same point with the same spread."""

import torch

from landmarks.heatmaps import draw, soft_argmax, to_grid


def test_a_drawn_point_is_read_back_with_its_spread() -> None:
    points = torch.tensor([[(10.3, 20.7), (16.0, 8.5)]])
    maps = draw(points, 32, sigma=1.5)
    assert maps.shape == (1, 2, 32, 32)
    torch.testing.assert_close(maps.sum((-2, -1)), torch.ones(1, 2))
    read, spread, probability = soft_argmax(maps.clamp_min(1e-12).log())
    assert (read - points).abs().max() < 0.1
    torch.testing.assert_close(spread, torch.full((1, 2), 1.5), atol=0.02, rtol=0)
    torch.testing.assert_close(probability, maps, atol=1e-5, rtol=0)


def test_a_flat_map_says_it_does_not_know() -> None:
    read, spread, _ = soft_argmax(torch.zeros(1, 1, 9, 9))
    torch.testing.assert_close(read, torch.full((1, 1, 2), 4.0))
    assert spread.item() > 2


def test_the_grid_keeps_the_frame_edges_in_place() -> None:
    corners = torch.tensor([(-0.5, -0.5), (127.5, 127.5)])
    torch.testing.assert_close(to_grid(corners, 128, 32), torch.tensor([(-0.5, -0.5), (31.5, 31.5)]))


def test_reading_a_point_passes_gradients() -> None:
    logits = torch.zeros(1, 1, 8, 8, requires_grad=True)
    soft_argmax(logits)[0].sum().backward()
    assert logits.grad is not None and logits.grad.abs().sum() > 0
