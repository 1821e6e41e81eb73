"""The generator: shapes, masks, independence of the batch, and that it can learn."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.chain import _same_frame
from stages.batch import FaceBatch
from stages.networks.prouigan import DetailBranch, ProUiganNet, ProUiganOutput, doubled
from stages.prouigan import LEAST_NOISE, SURE_NOISE, ProUigan, ProUiganConfig, noise_of, painted
from tests.tiny import TINY


@pytest.fixture
def network() -> ProUiganNet:
    torch.manual_seed(0)
    made = ProUiganNet(**TINY)
    for p in made.parameters():  # heads start at zero: move them, else every test sees bicubic
        p.data += 0.05 * torch.randn_like(p)
    return made.eval()


def test_every_step_gives_its_picture_and_priors(network: ProUiganNet) -> None:
    out = network(torch.rand(2, 3, 16, 16), detail=True)
    assert [tuple(i.shape) for i in out.images] == [(2, 3, s, s) for s in (32, 64, 128)]
    assert [i.shape[-1] for i in out.heatmap_logits] == [16, 32, 32]
    assert [i.shape[-1] for i in out.mask_logits] == [16, 32, 64]
    assert all(p.shape == (2, 68, 2) and (p >= -0.5).all() and (p <= 127.5).all() for p in out.points)
    assert out.parsing_logits[-1].shape == (2, 19, 32, 32)
    assert out.log_scale is not None and out.log_scale.shape == (2, 1, 128, 128)
    assert out.detail is not None and out.detail.shape == (2, 3, 128, 128)


def test_a_face_alone_equals_the_same_face_in_a_batch(network: ProUiganNet) -> None:
    lq = torch.rand(3, 3, 16, 16)
    with torch.inference_mode():
        assert torch.allclose(network(lq).images[-1][1:2], network(lq[1:2]).images[-1], atol=1e-5)


def test_an_untrained_network_is_bicubic_where_nothing_is_covered() -> None:
    lq = torch.rand(1, 3, 16, 16)
    with torch.inference_mode():
        out = ProUiganNet(**TINY)(lq, torch.zeros(1, 1, 16, 16))
    wanted = lq
    for _ in range(3):
        wanted = torch.nn.functional.interpolate(wanted, scale_factor=2.0, mode="bicubic")
    assert torch.allclose(out.images[-1], wanted, atol=1e-3)


@pytest.mark.parametrize("steps", [1, 2])
def test_fewer_steps_give_the_smaller_pictures_alone(network: ProUiganNet, steps: int) -> None:
    lq = torch.rand(1, 3, 16, 16)
    with torch.inference_mode():
        short, full = network(lq, steps=steps), network(lq)
    assert len(short.images) == len(short.points) == len(short.mask_logits) == steps
    assert short.log_scale.shape[1] == 0 and full.log_scale.shape[1] == 1
    for found, wanted in zip(short.images, full.images, strict=False):
        assert torch.allclose(found, wanted, atol=1e-5)


def test_no_colour_leaks_through_the_skip_of_a_given_mask() -> None:
    lq, mask = torch.full((1, 3, 16, 16), 0.5), torch.zeros(1, 1, 16, 16)
    lq[..., 4:12, 4:12], mask[..., 4:12, 4:12] = 1.0, 1.0
    torch.manual_seed(0)
    network = ProUiganNet(**TINY)  # its residual is zero: what shows is the skip alone
    with torch.inference_mode():
        leaked = network(lq).images[-1][..., 48:80, 48:80].mean()
        masked = network(lq, mask).images[-1][..., 48:80, 48:80].mean()
    assert leaked > 0.9 and abs(masked - 0.5) < 0.01


def test_a_given_mask_is_used_only_where_known(network: ProUiganNet) -> None:
    lq, mask = torch.rand(2, 3, 16, 16), torch.ones(2, 1, 16, 16)
    with torch.inference_mode():
        blind = network(lq).images[-1]
        mixed = network(lq, mask, torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)).images[-1]
    assert torch.allclose(blind[0], mixed[0], atol=1e-5)
    assert not torch.allclose(blind[1], mixed[1], atol=1e-3)


def test_a_few_steps_lower_the_loss() -> None:
    torch.manual_seed(0)
    network, lq = ProUiganNet(**TINY), torch.rand(4, 3, 16, 16)
    truth = torch.nn.functional.interpolate(lq, size=(128, 128), mode="nearest")
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3)
    values = []
    for _ in range(12):
        loss = (network(lq).images[-1] - truth).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        values.append(loss.item())
    assert values[-1] < 0.9 * values[0]


def test_the_detail_keeps_no_pattern_of_two_pixels_and_all_of_a_plain_one() -> None:
    def painted(bias: list[float]) -> torch.Tensor:
        branch = DetailBranch(8, 8, 16, 1)  # its weights start at zero: only the bias paints
        branch.paint.bias.data = torch.tensor(bias * 3, dtype=torch.float32)
        return branch(torch.rand(1, 8, 64, 64), torch.rand(1, 8, 32, 32), torch.rand(1, 3, 128, 128)).detach()

    assert painted([1, -1, -1, 1])[..., 1:-1, 1:-1].abs().max() < 1e-6  # a checkerboard
    assert painted([1, -1, 1, -1])[..., 1:-1, 1:-1].abs().max() < 1e-6  # stripes
    assert torch.allclose(painted([1, 1, 1, 1]), torch.ones(()))


def test_the_face_head_sees_where_things_lie_and_changes_nothing_else() -> None:
    torch.manual_seed(1)
    plain = ProUiganNet(**TINY)
    for p in plain.parameters():
        p.data += 0.05 * torch.randn_like(p)
    headed = ProUiganNet(**TINY, face_width=8)
    assert not headed.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    lq = torch.rand(2, 3, 16, 16)
    with torch.inference_mode():
        out, same = headed.eval()(lq), plain.eval()(lq)
        assert torch.equal(out.images[-1], same.images[-1]) and torch.equal(out.log_noise, same.log_noise)
        assert out.face_logit.shape == (2,) and not torch.equal(out.face_logit, same.face_logit)
        features = torch.rand(1, 16, 16, 16)
        assert headed.face_head is not None
        assert not torch.allclose(headed.face_head(features), headed.face_head(features.flip(2)))


@pytest.mark.slow
def test_the_mean_with_the_mirror_image_does_not_know_left_from_right() -> None:
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.random((2, 3, 4, 4), np.float32)).repeat_interleave(4, 2).repeat_interleave(4, 3)

    def restored(image: Tensor, **options: Any) -> Tensor:
        stage = ProUigan(ProUiganConfig(fidelity=0.3, noise_slack=0, **options), torch.device("cpu"), "fp32")
        nothing = torch.zeros(2, 1, 16, 16)
        batch = FaceBatch(("a", "b"), image, image, (0, 0), torch.zeros(2, dtype=torch.bool), given_mask=nothing)
        return stage(batch).image

    both = restored(image, flip_ensemble=True)
    assert (restored(image.flip(-1), flip_ensemble=True).flip(-1) - both).abs().max() < 1e-3
    assert (restored(image.flip(-1)).flip(-1) - restored(image)).abs().max() > 0.01
    assert ((restored(image) + restored(image.flip(-1)).flip(-1)) / 2 - both).abs().mean() < 0.01


@pytest.mark.parametrize(("size", "offset"), [((24, 16), (4, 0)), ((16, 20), (0, 2)), ((16, 16), (0, 0))])
def test_an_oblong_face_leads_back_to_its_source(
    network: ProUiganNet, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], offset: tuple[int, int]
) -> None:
    monkeypatch.setattr("stages.prouigan.load_network", lambda *_: network)
    stage = ProUigan(ProUiganConfig(), torch.device("cpu"), "fp32")
    image, given = torch.rand(1, 3, *size), torch.tensor([[[2.0, 0.5, 30.0], [-0.5, 2.0, 40.0]]])
    batch = FaceBatch(("a",), image, image, (0,), torch.zeros(1, dtype=torch.bool), to_source=given)
    out = stage(batch)
    corners = torch.tensor([(-0.5, -0.5), (127.5, -0.5), (20.0, 100.0)])
    there = (corners + 0.5) * max(size) / 128 - 0.5 - torch.tensor(offset)  # pixels of the oblong face
    assert out.to_source is not None and _same_frame(stage, batch, out) is out
    for points, matrix in ((corners, out.to_source[0]), (there, given[0])):
        torch.testing.assert_close(points @ matrix[:, :2].T + matrix[:, 2], there @ given[0, :, :2].T + given[0, :, 2])


def test_painted_detail_falls_to_a_quarter_halfway_and_to_nothing() -> None:
    out = cast(ProUiganOutput, SimpleNamespace(images=[torch.zeros(1, 3, 2, 2)], detail=torch.ones(1, 3, 2, 2)))

    def detail(fidelity: float) -> float:
        return float(painted(out, fidelity).mean())

    assert [detail(f) for f in (0.0, 0.5, 1.0)] == [1.0, 0.25, 0.0]
    assert all(detail(f / 10) > detail((f + 1) / 10) for f in range(10))


def test_grain_of_a_clean_picture_is_no_noise_and_larger_inputs_have_more_of_it() -> None:
    halfway = (LEAST_NOISE + SURE_NOISE) / 2
    noise = torch.tensor([0.9 * LEAST_NOISE, halfway, SURE_NOISE, 2 * SURE_NOISE])
    out = cast(ProUiganOutput, SimpleNamespace(log_noise=noise.log()))
    slack = torch.tensor([0.0, halfway, 2 * SURE_NOISE, 4 * SURE_NOISE])
    torch.testing.assert_close(noise_of(out, 16, 2.0), slack)
    torch.testing.assert_close(noise_of(out, 32, 2.0), 2 * slack)
    assert not noise_of(out, 12).any(), "enlarged pixels"


@pytest.mark.parametrize("side", [16, 32, 64])
def test_doubling_by_matrices_is_bicubic_enlargement(side: int) -> None:
    image = torch.rand(2, 3, side, side)
    with torch.autocast("cpu", torch.bfloat16):
        made = doubled(image)
    wanted = F.interpolate(image, scale_factor=2.0, mode="bicubic", align_corners=False)
    torch.testing.assert_close(made, wanted, atol=1e-6, rtol=0)
