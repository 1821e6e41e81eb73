"""The stages of the forensic profile: known values, nothing lost, nothing learned."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from stages import STAGES
from stages.aspect import Aspect, AspectConfig
from stages.batch import FaceBatch
from stages.deinterlace import Deinterlace, DeinterlaceConfig
from stages.levels import Levels, LevelsConfig

CPU = torch.device("cpu")


def batch(image: torch.Tensor) -> FaceBatch:
    count = len(image)
    return FaceBatch(
        tuple("abcdef"[:count]), image, image, tuple(range(count)), torch.zeros(count, dtype=torch.bool)
    )  # fmt: skip


def noise(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).random(shape, np.float32))


def test_levels_stretch_a_dark_picture_over_the_whole_range_and_say_how() -> None:
    dark = noise(2, 3, 16, 16) * torch.tensor([0.1, 0.4]).view(2, 1, 1, 1) + 0.05
    out = Levels(LevelsConfig(clip=0), CPU, "fp32")(batch(dark))
    torch.testing.assert_close(out.image.amin((1, 2, 3)), torch.zeros(2), atol=1e-3, rtol=0)
    torch.testing.assert_close(out.image.amax((1, 2, 3)), torch.ones(2), atol=1e-3, rtol=0)
    for i in range(2):
        said = out.notes[i]["levels"]
        again = ((dark[i] - said["black"]) / (said["white"] - said["black"])).clamp(0, 1) ** (1 / said["gamma"])
        torch.testing.assert_close(again, out.image[i], atol=1e-6, rtol=0)


def test_levels_keep_order_and_hue_and_take_given_points() -> None:
    given = noise(1, 3, 8, 8)
    out = Levels(LevelsConfig(black=0.2, white=0.7, gamma=2.0), CPU, "fp32")(batch(given))
    torch.testing.assert_close(out.image, ((given - 0.2) / 0.5).clamp(0, 1).sqrt())
    grey = given[:, :1].expand(-1, 3, -1, -1).contiguous()
    made = Levels(LevelsConfig(), CPU, "fp32")(batch(grey)).image
    assert torch.equal(made[:, 0], made[:, 1]) and torch.equal(made[:, 1], made[:, 2])


def test_levels_leave_a_flat_picture_alone_and_one_picture_does_not_change_another() -> None:
    flat = torch.full((1, 3, 8, 8), 0.3)
    stage = Levels(LevelsConfig(), CPU, "fp32")
    assert torch.equal(stage(batch(flat)).image, flat)
    both = torch.cat([flat, noise(1, 3, 8, 8)])
    assert torch.equal(stage(batch(both)).image[1:], stage(batch(both[1:])).image)


def test_levels_refuse_a_white_point_under_the_black_one() -> None:
    with pytest.raises(ValidationError, match="must exceed black"):
        LevelsConfig(black=0.5, white=0.4)


@pytest.mark.parametrize("height", [7, 8])
@pytest.mark.parametrize("field", ["top", "bottom"])
def test_deinterlace_keeps_one_field_and_fills_the_lines_between(height: int, field: str) -> None:
    given = noise(2, 3, height, 5)
    out = Deinterlace(DeinterlaceConfig.model_validate({"field": field}), CPU, "fp32")(batch(given)).image
    first = 0 if field == "top" else 1
    assert out.shape == given.shape and torch.equal(out[..., first::2, :], given[..., first::2, :])
    torch.testing.assert_close(out[..., first + 1, :], (given[..., first, :] + given[..., first + 2, :]) / 2)
    other = given.clone()
    other[..., 1 - first :: 2, :] = 0.5
    assert torch.equal(Deinterlace(DeinterlaceConfig.model_validate({"field": field}), CPU, "fp32")(batch(other)).image,
                       out), "nothing of the other field is left"  # fmt: skip


def test_deinterlace_bears_a_picture_of_one_line() -> None:
    given = noise(1, 3, 1, 4)
    for field in ("top", "bottom"):
        assert torch.equal(Deinterlace(DeinterlaceConfig.model_validate({"field": field}), CPU, "fp32")(
            batch(given)).image, given)  # fmt: skip


@pytest.mark.parametrize(("aspect", "size"), [(12 / 11, (22, 24)), (0.5, (44, 22)), (1.0, (22, 22))])
def test_aspect_stretches_and_never_shrinks(aspect: float, size: tuple[int, int]) -> None:
    flat = torch.full((1, 3, 22, 22), 0.4)
    points = noise(1, 68, 2) * 20
    out = Aspect(AspectConfig(pixel_aspect=aspect), CPU, "fp32")(batch(flat).replace(landmarks=points))
    assert out.image.shape[-2:] == size
    torch.testing.assert_close(out.image, torch.full_like(out.image, 0.4))
    assert out.landmarks is not None
    scale = torch.tensor([size[1] / 22, size[0] / 22])
    torch.testing.assert_close(out.landmarks, (points + 0.5) * scale - 0.5)


def test_none_of_them_is_learned() -> None:
    for name in ("aspect", "deinterlace", "levels", "resample"):
        assert not STAGES[name].generative and not STAGES[name].cards(
            AspectConfig(pixel_aspect=1)
        )  # fmt: skip
