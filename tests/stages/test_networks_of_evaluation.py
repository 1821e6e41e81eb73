"""The trait classifier and the rivals' networks: shapes, independence of the batch, starting points."""

import importlib.util

import pytest
import torch
import torch.nn.functional as F

from stages import basicsr_adapter
from stages.networks import NETWORKS
from stages.networks.classifier import TraitNet
from stages.networks.super_resolution import Inpainter

HEADS = {"classes": {"expression": ["neutral", "happiness"]}, "flags": ["hat"], "numbers": ["age"]}
HAS_SPANDREL = importlib.util.find_spec("spandrel") is not None
RIVALS = [
    pytest.param("plain", {"widths": [8, 8, 8, 8], "blocks": [1, 1, 0, 0]}, id="plain"),
    pytest.param(
        "rcan", {"groups": 1, "blocks": 1, "features": 16, "reduction": 4},
        marks=pytest.mark.skipif(not HAS_SPANDREL, reason="extra spandrel is not installed"), id="rcan",
    ),
    pytest.param(
        "swinir", {"width": 12, "depths": [2], "heads": 2},
        marks=pytest.mark.skipif(not HAS_SPANDREL, reason="extra spandrel is not installed"), id="swinir",
    ),
    pytest.param(
        "rrdb", {"features": 8, "blocks": 1, "growth": 4},
        marks=pytest.mark.skipif(not basicsr_adapter.available(), reason="basicsr is not installed"), id="rrdb",
    ),
]  # fmt: skip


@pytest.mark.parametrize("trunk", ["residual", "mobile"])
def test_each_head_answers_in_its_own_way(trunk: str) -> None:
    torch.manual_seed(0)
    network = TraitNet(**HEADS, trunk=trunk, width=8, blocks=1, features=16).eval()
    images = torch.rand(3, 3, 128, 128)
    found = network(images)
    assert {k: tuple(v.shape) for k, v in found.items()} == {"expression": (3, 2), "hat": (3,), "age": (3,)}
    assert network.traits == ("expression", "hat", "age")
    answers = network.answers(images)
    torch.testing.assert_close(answers["expression"].sum(1), torch.ones(3))
    assert ((answers["hat"] > 0) & (answers["hat"] < 1)).all()
    torch.testing.assert_close(answers["age"], found["age"])
    alone = network(images[1:2])
    for name, value in found.items():
        torch.testing.assert_close(alone[name], value[1:2], rtol=1e-3, atol=1e-3)


def test_a_grey_classifier_sees_no_colour() -> None:
    torch.manual_seed(0)
    network = TraitNet(**HEADS, width=8, blocks=1, grey=True).eval()
    colour = torch.rand(1, 3, 128, 128)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    grey = (colour * weights).sum(1, keepdim=True).expand(-1, 3, -1, -1)
    torch.testing.assert_close(network(colour)["hat"], network(grey)["hat"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "arguments"), RIVALS)
def test_a_rival_enlarges_eight_times_and_a_face_alone_equals_the_face_in_a_batch(
    name: str, arguments: dict[str, object]
) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name](**arguments).eval()
    image = torch.rand(3, 3, 16, 16)
    for parameter in network.parameters():  # the last layer starts at zero
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    with torch.inference_mode():
        found = network(image)
        assert found.shape == (3, 3, 128, 128)
        torch.testing.assert_close(network(image[1:2]), found[1:2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "arguments"), RIVALS)
def test_an_untrained_rival_is_the_enlargement_it_adds_to_and_learns(name: str, arguments: dict[str, object]) -> None:
    image = torch.rand(2, 3, 16, 16)
    expected = F.interpolate(image, size=(128, 128), mode="bicubic", align_corners=False)
    network = NETWORKS[name](**arguments)
    found = network(image)
    torch.testing.assert_close(found, expected)
    found.square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


@pytest.mark.parametrize(
    ("side", "arguments"),
    [
        (16, {"widths": [8], "blocks": [1]}),
        (128, {"widths": [8, 8, 8, 8], "blocks": [1, 0, 0, 0], "shrink": 8}),
    ],
)
def test_an_inpainter_changes_the_hole_alone_and_cannot_see_what_lies_in_it(
    side: int, arguments: dict[str, object]
) -> None:
    torch.manual_seed(0)
    network = Inpainter(arguments).eval()
    torch.nn.init.normal_(network.body.head.weight, std=0.1)
    image, hole = torch.rand(2, 3, side, side), torch.zeros(2, 1, side, side)
    hole[:, :, side // 2 :, : side // 2] = 1
    found = network(image, hole)
    torch.testing.assert_close(found * (1 - hole), image * (1 - hole))
    other = torch.where(hole > 0, torch.rand_like(image), image)
    torch.testing.assert_close(network(other, hole), found)
    assert (found - image).abs().mul(hole).max() > 0.01
