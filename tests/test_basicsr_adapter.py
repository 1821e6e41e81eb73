"""basicsr behind its adapter: what works is used, what is missing is said clearly."""

import ast
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data

from stages import basicsr_adapter as adapter

ROOT = Path(__file__).resolve().parent.parent
needs_basicsr = pytest.mark.skipif(not adapter.available(), reason="basicsr is not installed")


def test_a_missing_basicsr_is_named_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "basicsr" else find_spec(name))
    assert not adapter.available()
    with pytest.raises(ImportError, match="basicsr is not installed; `make test` installs it"):
        adapter.rrdbnet()


def test_a_basicsr_that_does_not_import_is_named_with_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "available", lambda: True)
    with pytest.raises(ImportError, match=r"basicsr\.no_such_part does not import"):
        adapter._load("no_such_part")


def test_nothing_but_the_adapter_imports_basicsr() -> None:
    for folder in ("landmarks", "stages", "pipeline", "training", "evaluation", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name == "basicsr_adapter.py":
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not any(n.split(".")[0] == "basicsr" for n in names), (
                    f"{path.relative_to(ROOT)}: use the adapter"
                )


def test_the_adapter_never_touches_the_option_parser() -> None:
    source = (ROOT / "stages" / "basicsr_adapter.py").read_text(encoding="utf-8")
    assert "utils.options" not in source and "parse_options" not in source


@needs_basicsr
@pytest.mark.parametrize("scale", [1, 2, 4])
def test_rrdbnet_enlarges_by_its_scale_on_the_cpu(scale: int) -> None:
    torch.manual_seed(0)
    network = adapter.rrdbnet(scale=scale, features=8, blocks=1, growth=4)
    with torch.inference_mode():
        assert network(torch.rand(2, 3, 8, 12)).shape == (2, 3, 8 * scale, 12 * scale)


@needs_basicsr
def test_full_size_rrdbnet_has_the_published_parameter_count() -> None:
    # 16.70 M: the size of RealESRGAN_x4plus, whose state dict has these shapes.
    assert sum(p.numel() for p in adapter.rrdbnet().parameters()) == 16_697_987


@needs_basicsr
def test_niqe_prefers_a_photograph_to_its_noisy_and_blurred_versions() -> None:
    photograph = data.astronaut()
    noise = np.random.default_rng(0).normal(0, 25, photograph.shape)
    noisy = np.clip(photograph + noise, 0, 255).astype(np.uint8)
    blocky = photograph[::8, ::8].repeat(8, axis=0).repeat(8, axis=1)
    clean = adapter.niqe(photograph)
    assert clean == pytest.approx(3.06, abs=0.1)
    assert adapter.niqe(noisy) > clean + 0.5
    assert adapter.niqe(blocky) > clean + 0.5


@needs_basicsr
def test_niqe_reads_rgb_and_not_bgr() -> None:
    # A grey picture and its three equal channels agree up to the studio range of the luma.
    grey = data.camera()
    assert adapter.niqe(np.dstack([grey] * 3)) == pytest.approx(adapter.niqe(grey), rel=0.15)
    # Red weighs .299, blue .114: channel order must show.
    red_noise = np.full((192, 192, 3), 90, np.uint8)
    red_noise[..., 0] = np.random.default_rng(1).integers(0, 255, (192, 192))
    assert adapter.niqe(red_noise) != pytest.approx(adapter.niqe(red_noise[..., ::-1]), rel=1e-3)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((128, 128, 3), np.uint8), "holds 1 blocks of 96, need 2"),
        (np.zeros((200, 200, 4), np.uint8), "expected"),
        (np.zeros((200, 200), np.float32), "expected"),
    ],
)
def test_niqe_refuses_what_it_cannot_measure(image: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapter.niqe(image)


@needs_basicsr
@pytest.mark.parametrize("kind", ["gaussian", "generalised_gaussian", "plateau", "sinc"])
def test_blur_kernels_sum_to_one_and_are_point_symmetric(kind: adapter.KernelKind) -> None:
    kernel = adapter.blur_kernel(kind, 21, sigma_x_px=3.0, sigma_y_px=1.5, angle_rad=0.4, beta=1.3)
    assert kernel.shape == (21, 21)
    assert kernel.sum() == pytest.approx(1.0)
    assert np.isfinite(kernel).all()
    np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-12)


@needs_basicsr
def test_gaussian_kernel_has_the_widths_it_was_asked_for() -> None:
    kernel = adapter.blur_kernel("gaussian", 41, sigma_x_px=4.0, sigma_y_px=2.0)
    offset = np.arange(41) - 20
    assert np.sqrt((kernel.sum(0) * offset**2).sum()) == pytest.approx(4.0, rel=0.01)
    assert np.sqrt((kernel.sum(1) * offset**2).sum()) == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize(
    ("kind", "size", "options", "message"),
    [
        ("gaussian", 20, {}, "odd"),
        ("gaussian", 21, {"sigma_x_px": 0.0}, "above 0"),
        ("plateau", 21, {"beta": -1.0}, "above 0"),
        ("sinc", 21, {"cutoff_rad": 4.0}, r"\(0, pi\]"),
    ],
)
def test_blur_kernel_refuses_numbers_out_of_range(
    kind: adapter.KernelKind, size: int, options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        adapter.blur_kernel(kind, size, **options)


@needs_basicsr
def test_the_lost_torchvision_module_is_supplied_only_where_it_is_lost() -> None:
    adapter.blur_kernel("gaussian", 3)
    module = sys.modules["torchvision.transforms.functional_tensor"]
    grey = module.rgb_to_grayscale(torch.rand(1, 3, 4, 4))
    assert grey.shape == (1, 1, 4, 4)
