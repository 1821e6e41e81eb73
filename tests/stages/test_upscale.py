"""The stage `upscale`: sizes, agreement with its input, tiles, grey faces, foreign models, missing weights."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from evaluation.operations import operations
from pipeline.config import ConfigError, load_chain
from pipeline.restorer import Restorer
from stages import foreign_upscalers
from stages import upscale as stage_module
from stages.base import ANY_SIDES
from stages.batch import FaceBatch
from stages.consistency import average_to
from stages.foreign_upscalers import RealEsrgan, load_foreign
from stages.networks.upscaler import Upscaler
from stages.upscale import Upscale, UpscaleConfig, film_grain
from stages.weights import WEIGHTS_ENV, WeightsError, save_weights

TINY: dict[str, Any] = {"widths": [8, 8, 16], "blocks": [2, 1, 1], "fine_width": 8, "detail_blocks": 1}
CARD: dict[str, Any] = {
    "architecture": "upscale", "arguments": TINY, "input": {}, "data": {}, "recipe": {}, "metrics": [],
    "licence": "none", "limits": "random",
}  # fmt: skip
CPU = torch.device("cpu")


def shaken(network: nn.Module, scale: float = 0.05) -> nn.Module:
    """Layers that start at zero moved, so that the test sees more than the bicubic skip."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn_like(p) * scale)
    return network


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(WEIGHTS_ENV, str(tmp_path / "weights"))
    save_weights("tiny", shaken(Upscaler(**TINY)), CARD, torch.float32)
    return tmp_path / "weights"


def faces(count: int = 2, side: int = 32, **fields: Any) -> FaceBatch:
    image = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 0.6 + 0.2
    names = tuple(f"face {i}" for i in range(count))
    return FaceBatch(names, image, image, tuple(range(count)), torch.zeros(count, dtype=torch.bool), **fields)


def stage(**options: Any) -> Upscale:
    return Upscale(UpscaleConfig(weights="tiny", **options), CPU, "fp32")


@pytest.mark.parametrize(("side", "size"), [(32, 128), (32, 192), (30, 120), (32, 150), (33, 66)])
def test_the_area_average_of_the_result_is_the_input(weights: Path, side: int, size: int) -> None:
    batch = faces(side=side)
    out = stage(size=size, fidelity=0.3)(batch).image
    assert out.shape == (2, 3, size, size) and out.dtype == torch.float32
    assert out.min() >= 0 and out.max() <= 1
    assert (average_to(out, side) - batch.image).square().mean() < 1e-5  # 50 dB


def test_fidelity_chooses_between_two_answers(weights: Path) -> None:
    batch = faces()
    smooth, middle, sharp = (stage(size=128, fidelity=f, grain=0)(batch).image for f in (1.0, 0.5, 0.0))
    assert not torch.allclose(smooth, sharp, atol=1e-3)
    inside = (middle > 0.02) & (middle < 0.98)
    torch.testing.assert_close(middle[inside], ((smooth + sharp) / 2)[inside], atol=0.02, rtol=0)


def test_grain_is_noise_of_the_face_that_leaves_the_evidence_and_its_map_alone(weights: Path) -> None:
    batch = faces(2)
    plain, grainy, half = (
        stage(size=192, fidelity=f, grain=g)(batch) for f, g in ((0.0, 0.0), (0.0, 0.03), (0.5, 0.03))
    )
    again = stage(size=192, fidelity=0.0, grain=0.03)(batch.cut(1, 2))
    grain = grainy.image - plain.image
    assert torch.equal(again.image, grainy.image[1:2])
    assert 0.02 < grain.std() < 0.035 and not torch.equal(grain[0], grain[1])
    inside = ((grainy.image > 0.01) & (grainy.image < 0.99)).all(1)
    assert (grain.amax(1) - grain.amin(1))[inside].mean() < 1e-3, "no colour"
    assert grainy.uncertainty is not None and plain.uncertainty is not None
    assert torch.equal(grainy.uncertainty, plain.uncertainty)
    assert (average_to(grainy.image, 32) - batch.image).square().mean() < 1e-5
    assert (half.image - stage(size=192, fidelity=0.5, grain=0)(batch).image).std() < 0.6 * grain.std()


def test_grain_is_drawn_from_the_seed_and_not_from_the_pixels(weights: Path) -> None:
    grain = film_grain(3, 96)
    assert torch.equal(grain, film_grain(3, 96)) and not torch.equal(grain, film_grain(4, 96))
    assert abs(float(grain.mean())) < 1e-6 and abs(float(grain.std()) - 1) < 1e-5
    flat = faces(2).replace(image=torch.full((2, 3, 32, 32), 0.5))
    same, other = stage(size=128, fidelity=0.0)(flat.replace(seeds=(7, 8))).image
    assert not torch.equal(same, other)
    assert torch.equal(stage(size=128, fidelity=0.0)(flat.replace(seeds=(8, 7))).image[1], same)


def test_tiles_agree_with_the_whole(weights: Path) -> None:
    batch = faces(1, side=256)
    whole, parts = (stage(size=1024, tile=t)(batch).image for t in (256, 96))
    error = (whole - parts).square().mean()
    assert 0 < error < 5e-5  # 43 dB of noise under a random network: other tiles were computed, and nothing shows


def test_a_face_alone_equals_the_same_face_in_company(weights: Path) -> None:
    batch = faces(3)
    together = stage(size=128)(batch).image
    assert torch.equal(stage(size=128)(batch.cut(1, 2)).image, together[1:2])


def test_a_grey_face_stays_grey_and_maps_come_along(weights: Path) -> None:
    batch = faces(1, landmarks=torch.full((1, 68, 2), 15.5), uncertainty=torch.full((1, 1, 32, 32), 0.9))
    out = stage(size=128)(batch.replace(grey=torch.tensor([True])))
    assert torch.equal(out.image[:, 0], out.image[:, 1])
    assert out.landmarks is not None and out.uncertainty is not None
    torch.testing.assert_close(out.landmarks, torch.full((1, 68, 2), 63.5))
    assert out.uncertainty.shape == (1, 1, 128, 128) and out.uncertainty.min() >= 0.89
    assert batch.image.shape[-1] == 32


@pytest.mark.parametrize("size", [32, 200])
def test_sizes_out_of_reach_are_refused(weights: Path, size: int) -> None:
    with pytest.raises(ValueError, match=rf"size = {size} px.*at most 6"):
        Upscale(
            UpscaleConfig.model_construct(weights="tiny", model=None, size=size, fidelity=1.0, tile=96), CPU, "fp32"
        )(faces())


def test_missing_weights_are_refused_with_the_way_to_train_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WEIGHTS_ENV, str(tmp_path))
    chain = {"version": 1, "name": "up", "stages": [{"stage": "upscale"}]}
    with pytest.raises(
        ConfigError, match=r"stages\[0\]\.weights = 'upscale_768'.*train -c configs/train/upscale\.yaml"
    ):
        load_chain(chain)


def test_a_chain_with_the_stage_runs(weights: Path) -> None:
    chain = {"version": 1, "name": "up", "stages": [{"stage": "upscale", "weights": "tiny", "size": 256}]}
    restorer = Restorer.from_config(chain, device="cpu", precision="fp32")
    pixels = (faces(1, 64).image[0].permute(1, 2, 0).numpy() * 255).astype("uint8")
    result = restorer.restore([pixels])[0]
    assert result.status == "ok" and result.image is not None and result.image.shape == (256, 256, 3)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no such checkpoint"):
        load_foreign(str(tmp_path / "none.pth"), CPU)
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(WeightsError, match="expected a file that ends in"):
        load_foreign(str(tmp_path / "model.onnx"), CPU)


def test_a_checkpoint_lies_beside_its_yaml(tmp_path: Path) -> None:
    (tmp_path / "some.pth").touch()
    for name in ("some.pth", str(tmp_path / "some.pth"), "folder/../some.pth"):
        config = UpscaleConfig.model_validate({"model": name}, context={"folder": tmp_path})
        assert config.model == str(tmp_path / "some.pth")
        assert UpscaleConfig.model_validate(config.model_dump()) == config  # what a run records
    named = UpscaleConfig.model_validate({"model": "realesrgan"}, context={"folder": tmp_path})
    assert named.model == "realesrgan" and Upscale.model_files(named) == RealEsrgan.files()


def test_a_chain_whose_checkpoint_is_missing_is_refused(tmp_path: Path) -> None:
    chain = {"version": 1, "name": "up", "stages": [{"stage": "upscale", "model": str(tmp_path / "none.pth")}]}
    with pytest.raises(
        ConfigError, match=r"stages\[0\]\.model = .*none\.pth: no such checkpoint; expected a file, rel"
    ):
        load_chain(chain)


def test_a_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("spandrel")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="spandrel"):
        load_foreign(str(tmp_path / "other.pth"), CPU)


def test_a_foreign_network_takes_the_place_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Half:
        scale, face_model = 2, False

        def __call__(self, image: Tensor) -> Tensor:
            return image.repeat_interleave(2, -1).repeat_interleave(2, -2)

    monkeypatch.setattr(stage_module, "load_foreign", lambda model, device: Half())
    (tmp_path / "some.pth").touch()
    config = UpscaleConfig(model=str(tmp_path / "some.pth"), size=128)
    assert Upscale.cards(config) == {} and Upscale.model_files(config) == (tmp_path / "some.pth",)
    assert Upscale.makes_px(config, ANY_SIDES) == (128, 128)
    batch = faces()
    out = Upscale(config, CPU, "fp32")(batch).image
    assert out.shape[-1] == 128 and (average_to(out, 32) - batch.image).square().mean() < 1e-5


def test_an_rrdbnet_checkpoint_loads_through_spandrel(tmp_path: Path) -> None:
    pytest.importorskip("spandrel")
    from stages import basicsr_adapter

    if not basicsr_adapter.available():
        pytest.skip("basicsr is not installed")
    torch.manual_seed(0)
    network = basicsr_adapter.rrdbnet(features=16, blocks=1)
    torch.save({"params_ema": network.state_dict()}, tmp_path / "rrdb.pth")
    loaded = load_foreign(str(tmp_path / "rrdb.pth"), CPU)
    image = faces(1).image
    assert loaded.scale == 4
    torch.testing.assert_close(loaded(image), network(image).detach().clamp(0, 1), atol=1e-4, rtol=0)


class FaceRestorer:
    """What spandrel gives for a face restorer whose answer is what it was shown, in the range that it is shown it."""

    purpose, scale, input_channels, output_channels = "FaceSR", 1, 3, 3

    def __init__(self, architecture: str) -> None:
        self.architecture, self.seen = SimpleNamespace(id=architecture), []

    def model(self, image: Tensor, randomize_noise: bool) -> tuple[Tensor]:
        assert not randomize_noise
        self.seen.append(image)
        return (image,)

    def __call__(self, image: Tensor) -> Tensor:
        self.seen.append(image)
        return image.clamp(0, 1)


@pytest.mark.parametrize(("architecture", "low"), [("GFPGAN", -1.0), ("CodeFormer", -1.0), ("RestoreFormer", 0.0)])
@pytest.mark.parametrize("side", [100, 256])
def test_a_face_model_sees_whole_faces_in_its_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, low: float, side: int
) -> None:
    made = FaceRestorer(architecture)
    monkeypatch.setattr(foreign_upscalers, "load_checkpoint", lambda path, device: made)
    (tmp_path / "face.pth").touch()
    batch = faces(2, side=side)
    batch = batch.replace(image=(batch.image - 0.2) / 0.6)  # dark parts as well, which spandrel would clamp away
    config = UpscaleConfig(model=str(tmp_path / "face.pth"), size=3 * side, tile=96)
    out = Upscale(config, CPU, "fp32")(batch).image
    assert [tuple(x.shape) for x in made.seen] == [(1, 3, 512, 512)] * 2
    assert min(float(x.min()) for x in made.seen) < low + 0.02
    assert out.shape[-1] == 3 * side and (average_to(out, side) - batch.image).square().mean() < 1e-4


def test_further_architectures_are_known_where_their_package_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("spandrel")
    extra, asked = ModuleType("spandrel_extra_arches"), []
    extra.__spec__ = ModuleSpec("spandrel_extra_arches", None)
    extra.install = lambda ignore_duplicates: asked.append(ignore_duplicates)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "spandrel_extra_arches", extra)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "codeformer.pth")
    with pytest.raises(WeightsError, match="CodeFormer needs the package spandrel-extra-arches"):
        load_foreign(str(tmp_path / "codeformer.pth"), CPU)
    assert asked == [True]


@pytest.mark.slow
def test_real_esrgan_runs_from_its_package() -> None:
    pytest.importorskip("ncnn")
    try:
        network = RealEsrgan()
    except WeightsError as error:
        pytest.skip(str(error))
    image = torch.full((1, 3, 16, 16), 0.5)
    out = network(image)
    assert out.shape == (1, 3, 64, 64) and (out - 0.5).abs().mean() < 0.1


def test_the_shipped_layout_fits_the_budget() -> None:
    """Under 16 GMAC for 128 -> 768 with detail: a tenth of Real-ESRGAN's time on two cores with bf16."""
    network, image = Upscaler().to("meta"), torch.zeros(1, 3, 128, 128, device="meta")
    assert operations(lambda: network(image, 6, True)) < 2 * 16e9


def test_the_detail_phase_leaves_the_trunk_alone() -> None:
    network = Upscaler(**TINY)
    shaken(network)
    network.train()
    _, detail = network(faces(1).image, 4, detail=True)
    assert detail is not None
    detail.square().sum().backward()
    assert all(p.grad is None for p in network.trunk_parameters())
