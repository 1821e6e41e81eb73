"""The editor: its two paths, patches without seams, regions, strengths, and that pixels outside stay as they were."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.config import ConfigError, load_chain
from pipeline.restorer import Restorer
from stages import coogan as stage_module
from stages.attributes import ATTRIBUTES, REGIONS, check_attributes
from stages.batch import FaceBatch
from stages.coogan import BAND_ROWS, Coogan, CooganConfig, CooganEditor, TensorRows, edit_region, wanted_change
from stages.face_frame import PART_CENTRES, FaceFrame, find_frame, frame_of, look
from stages.networks.coogan import CooganNet, sample_place
from stages.networks.face_parser import PARSING_CLASSES, FaceParser
from stages.networks.identity import IdentityNet
from stages.networks.transfer_unit import LightUnit, StganUnit
from stages.weights import WEIGHTS_ENV, load_network, save_weights

CPU = torch.device("cpu")
NAMES = ["smiling", "age", "eyeglasses", "hair_black", "hair_blond"]
TINY: dict[str, Any] = {"attributes": NAMES, "width": 8, "local_width": 8}
CARD: dict[str, Any] = {
    "input": {}, "data": {}, "recipe": {}, "metrics": [], "licence": "none", "limits": "random",
}  # fmt: skip


def shaken(network: torch.nn.Module, scale: float = 0.05) -> torch.nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn_like(p) * scale)
    return network.eval()


def face_parsing() -> Tensor:
    """(1, 19, 128, 128): a face as a parser would see it, drawn by hand."""
    classes = np.zeros((128, 128), np.int64)
    y, x = np.mgrid[:128, :128]
    classes[((x - 64) / 42) ** 2 + ((y - 66) / 56) ** 2 < 1] = PARSING_CLASSES.index("skin")
    for name, (cx, cy), (rx, ry) in (
        ("right_eye", PART_CENTRES[0], (9, 4)), ("left_eye", PART_CENTRES[1], (9, 4)),
        ("nose", PART_CENTRES[2], (10, 16)), ("mouth", PART_CENTRES[3], (16, 7)),
    ):  # fmt: skip
        classes[((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1] = PARSING_CLASSES.index(name)
    classes[:20] = PARSING_CLASSES.index("hair")
    return torch.nn.functional.one_hot(torch.from_numpy(classes), 19).permute(2, 0, 1)[None].float()


class FixedParser(FaceParser):
    """Sees the drawn face, whatever it is shown, or nothing but background."""

    def __init__(self, face: bool = True) -> None:
        super().__init__(width=8, depth=1)
        background = torch.zeros(1, 19, 128, 128)
        background[:, 0] = 1
        self.answer = (face_parsing() if face else background) * 20

    def forward(self, image: Tensor) -> Tensor:
        return self.answer.expand(len(image), -1, -1, -1).to(image.dtype)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(WEIGHTS_ENV, str(tmp_path / "weights"))
    net = {"architecture": "coogan", "arguments": TINY}
    save_weights("tiny", shaken(CooganNet(**TINY)), CARD | net, torch.float32)
    parser = {"architecture": "face_parser", "arguments": {"width": 8, "depth": 1}}
    save_weights("face_parser", FaceParser(8, 1), CARD | parser, torch.float32)
    identity = {"architecture": "identity", "arguments": {"width": 8, "blocks": 1}}
    save_weights("identity", IdentityNet(8, 1), CARD | identity, torch.float32)
    return tmp_path / "weights"


def stage(monkeypatch: pytest.MonkeyPatch, face: bool = True, **options: Any) -> Coogan:
    def load(name: str, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
        return FixedParser(face) if name == "face_parser" else load_network(name, device, dtype)

    monkeypatch.setattr(stage_module, "load_network", load)
    return Coogan(CooganConfig(weights="tiny", **options), CPU, "fp32")


def faces(count: int = 1, height: int = 256, width: int = 256, **fields: Any) -> FaceBatch:
    small = torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 0.6 + 0.2
    image = torch.nn.functional.interpolate(small, (height, width), mode="bicubic").clamp(0, 1)
    image = (image * 255).round() / 255
    names = tuple(f"face {i}" for i in range(count))
    return FaceBatch(names, image, image, tuple(range(count)), torch.zeros(count, dtype=torch.bool), **fields)


def test_the_light_unit_is_light() -> None:
    stgan, light = StganUnit(32, 64), LightUnit(32, 64)
    count = [sum(p.numel() for p in unit.parameters()) for unit in (stgan, light)]
    assert count[1] <= 0.6 * count[0]
    encoder, state = torch.rand(2, 32, 8, 8), torch.rand(2, 64, 4, 4)
    for unit in (stgan, light):
        assert all(out.shape == (2, 32, 8, 8) for out in unit(encoder, state))


def test_features_under_a_patch_are_those_of_its_place() -> None:
    frame = torch.arange(128.0).view(1, 1, 1, 128).expand(1, 1, 128, 128)
    place = torch.tensor([[[0.25, 0.0, 20.0], [0.0, 0.25, 30.0]]])  # patch pixel 0 lies on frame pixel 20
    got = sample_place(frame, place, (16, 40))
    torch.testing.assert_close(got[0, 0, 0], 20 + 0.25 * torch.arange(40.0), atol=1e-3, rtol=0)
    coarse = sample_place(frame, place, (4, 10), step=4)  # each value in the middle of its 4 pixels
    torch.testing.assert_close(coarse[0, 0, 0], 20 + 0.25 * (4 * torch.arange(10.0) + 1.5), atol=1e-3, rtol=0)


def test_wanted_differences_follow_strength_and_source() -> None:
    source = torch.tensor([-0.5, 0.2, 1.0, -0.9, 0.4])
    wanted = wanted_change({"smiling": 1.0, "eyeglasses": 1.0}, source, tuple(NAMES))
    torch.testing.assert_close(wanted, torch.tensor([1.5, 0, 0, 0, 0]))
    torch.testing.assert_close(
        wanted_change({"smiling": 0.5, "age": -2.0}, source, tuple(NAMES)), torch.tensor([0.75, -2.4, 0, 0, 0])
    )
    black = wanted_change({"hair_black": 1.0}, source, tuple(NAMES))
    torch.testing.assert_close(black, torch.tensor([0, 0, 0, 1.9, -1.4]))  # blond goes as black comes


def test_every_attribute_has_a_region_of_known_parts() -> None:
    assert set(REGIONS) == set(ATTRIBUTES)
    assert all(part in PARSING_CLASSES for parts in REGIONS.values() for part in parts)


def test_an_edit_stays_in_its_region() -> None:
    region = edit_region(face_parsing(), {"lipstick": 1.0})[0, 0]
    assert region[96, 64] == 1 and region[20:60].max() == 0
    assert edit_region(face_parsing(), {"lipstick": 0.0}).max() == 0
    both = edit_region(face_parsing(), {"lipstick": 1.0, "eyeglasses": 1.0})[0, 0]
    assert both[50, 43] == 1 and (both >= region).all()
    age = edit_region(face_parsing(), {"age": 1.0})[0, 0]
    assert age[:15].max() == 0 and age[30, 64] == 1  # beside the hair, not in it
    assert edit_region(face_parsing(), {"age": 1.0, "hair_grey": 1.0})[0, 0, :15].min() == 1
    beard = edit_region(face_parsing(), {"beard": 1.0})[0, 0]
    assert beard[110, 64] == 1 and beard[:54].max() == 0, "no forehead, no eyes"


def test_a_gain_says_how_far_an_attribute_is_taken(weights: Path) -> None:
    network = load_network("tiny", CPU)
    assert isinstance(network, CooganNet)
    source = TensorRows(faces(1, 128, 128).image[0])
    plans = []
    for network.gains in ({}, {"age": 0.5}):
        plans.append(
            CooganEditor(network, FixedParser(), IdentityNet(8, 1), {"age": 1.0, "smiling": 1.0}, 128, 32).plan(source)
        )
    plain, gained = (plan.wanted[0] for plan in plans)
    age = network.attributes.index("age")
    torch.testing.assert_close(gained[age], plain[age] / 2)
    rest = [i for i in range(len(network.attributes)) if i != age]
    assert torch.equal(gained[rest], plain[rest]) and plain[rest].abs().max() > 0


@pytest.mark.parametrize("size", [(256, 256), (300, 244), (500, 500)])
def test_pixels_outside_stay_and_inside_change(
    weights: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    batch = faces(1, *size)
    out = stage(monkeypatch, attributes={"smiling": 1.0}, patch=192)(batch)
    assert out.image.shape == batch.image.shape and out.uncertainty is not None and out.face_score is not None
    difference = (out.image - batch.image).abs().amax(1)[0]
    h, w = size
    assert difference[: h // 13].max() == 0  # hair is no part of a smile
    assert difference[int(h * 0.72) : int(h * 0.78), int(w * 0.4) : int(w * 0.6)].max() > 1e-3
    assert out.face_score[0] > 0.9
    assert ((out.uncertainty[0, 0] > 0) == (difference > 0)).float().mean() > 0.999


def test_patches_agree_with_the_whole_frame(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = faces(1, 640, 640)
    whole = stage(monkeypatch, attributes={"smiling": 1.0, "age": 1.0}, patch=640, overlap=64)(batch).image
    parts = stage(monkeypatch, attributes={"smiling": 1.0, "age": 1.0}, patch=192, overlap=64)(batch).image
    error = float((whole - parts).square().mean())
    assert (whole - batch.image).square().mean() > 1e-4  # there is an edit to disagree about
    assert 0 < error < 1e-4  # 40 dB


def test_strength_zero_changes_nothing(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = faces()
    out = stage(monkeypatch, attributes={"smiling": 0.0})(batch)
    assert torch.equal(out.image, batch.image)
    assert out.unedited is not None and out.unedited.tolist() == [False], "nothing was asked for"


def test_a_face_alone_equals_the_same_face_in_company(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, made = faces(3), stage(monkeypatch, attributes={"age": 1.0})
    assert torch.equal(made(batch).image[1:2], made(batch.cut(1, 2)).image)


def test_a_grey_face_stays_grey(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = faces()
    grey = batch.image.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    out = stage(monkeypatch, attributes={"smiling": 1.0})(batch.replace(image=grey, grey=torch.tensor([True])))
    torch.testing.assert_close(out.image[:, 0], out.image[:, 2])


def test_a_picture_without_a_face_is_left_alone_and_said_so(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stage(monkeypatch, face=False, attributes={"smiling": 1.0})
    batch = faces()
    out = made(batch)
    assert out.face_score is not None and out.face_score[0] < 0.01
    assert out.unedited is not None and out.unedited.tolist() == [True]
    assert torch.equal(out.image, batch.image)


def test_no_face_gives_no_output(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = stage(monkeypatch, face=False, attributes={"smiling": 1.0})  # patches load_network of the stage
    assert made.editor.attributes == {"smiling": 1.0}
    chain = {"version": 1, "name": "e", "stages": [
        {"stage": "coogan", "weights": "tiny", "attributes": {"smiling": 1.0}}]}  # fmt: skip
    result = Restorer.from_config(chain, device="cpu", precision="fp32").restore([np.zeros((128, 128, 3), np.uint8)])[0]
    assert result.status == "no_face" and result.image is None


def test_a_gain_of_an_attribute_that_was_not_learned_is_refused() -> None:
    with pytest.raises(ValueError, match="gains: smile is none of smiling"):
        CooganNet(**TINY, gains={"smile": 0.7, "age": 1.3})


def test_an_edit_is_measured_against_the_evidence_anew(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = faces()
    thumb = torch.nn.functional.avg_pool2d(batch.image, 16)
    made = stage(monkeypatch, attributes={"age": 2.0})
    assert made(batch).lr_consistency_db is None
    out = made(batch.replace(observed=thumb, lr_consistency_db=torch.tensor([60.0])))
    assert out.lr_consistency_db is not None and 5 < out.lr_consistency_db[0] < 60


def test_what_was_asked_and_seen_is_noted(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = stage(monkeypatch, attributes={"age": 0.5})(faces()).notes[0]["edit"]
    assert note["attributes"] == {"age": 0.5} and -1 <= note["before"]["age"] <= 1


def test_the_frame_is_found_where_the_parts_are() -> None:
    class Moved(FixedParser):
        """Answers with the drawn face as it would lie in a picture of FFHQ framing."""

        def forward(self, image: Tensor) -> Tensor:
            matrix = frame_of((128, 128), (0.11, 0.165, 0.88, 0.935))
            theta = torch.from_numpy(matrix).float()[None]
            return sample_place(self.answer, theta, (128, 128)) if self.first(image) else self.answer

        def first(self, image: Tensor) -> bool:
            return bool((image - self.whole).abs().max() < 1e-3)

    picture = faces(1, 128, 128).image[0].permute(1, 2, 0).numpy()
    parser = Moved()
    parser.whole = look(picture, frame_of((128, 128), (0, 0, 1, 1)), FixedParser()).face
    found = find_frame(picture, parser)
    expected = frame_of((128, 128), (0.11, 0.165, 0.88, 0.935))
    assert found.score > 0.9
    np.testing.assert_allclose(found.matrix, expected, atol=2.5)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"smilling": 1.0}, 'did you mean "smiling"'),
        ({"age": 3.0}, "expected a strength from -2"),
        ({"age": float("nan")}, "expected a strength"),
        ({}, "no attribute to change"),
    ],
)
def test_wrong_requests_are_refused(wanted: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_attributes(wanted)


def test_an_attribute_the_weights_do_not_know_is_refused(weights: Path) -> None:
    chain = {"version": 1, "name": "e", "stages": [
        {"stage": "coogan", "weights": "tiny", "attributes": {"beard": 1.0}}]}  # fmt: skip
    with pytest.raises(ConfigError, match=r"stages\[0\].*have not learned beard; they know smiling, age, eyegl"):
        Restorer.from_config(chain, device="cpu", precision="fp32")


def test_wrong_attributes_are_named_with_their_place(weights: Path) -> None:
    chain = {"version": 1, "name": "e", "stages": [{"stage": "coogan", "weights": "tiny", "attributes": {"smile": 1}}]}
    with pytest.raises(ConfigError, match=r'stages\[0\]\.attributes.*did you mean "smiling"'):
        load_chain(chain)


def test_missing_weights_are_refused_with_the_way_to_train_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WEIGHTS_ENV, str(tmp_path))
    chain = {"version": 1, "name": "e", "stages": [{"stage": "coogan", "attributes": {"smiling": 1}}]}
    with pytest.raises(ConfigError, match=r"stages\[0\]\.weights = 'coogan_768'.*train -c configs/train/coogan\.yaml"):
        load_chain(chain)


def test_other_attributes_are_asked_of_the_same_networks(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = stage(monkeypatch, attributes={"age": 1.0}, patch=192)
    other = first.asking({"smiling": -1.0})
    assert other.editor.network is first.editor.network and other.config.patch == 192
    assert first.config.attributes == {"age": 1.0} and first.editor.attributes == {"age": 1.0}
    expected = stage(monkeypatch, attributes={"smiling": -1.0}, patch=192)(faces())
    assert torch.equal(other(faces()).image, expected.image)
    with pytest.raises(ValueError, match="have not learned hat"):
        first.asking({"hat": 1.0})


def test_little_is_read_at_a_time_and_nothing_that_was_given_out(weights: Path) -> None:
    """The editor asks for few rows, and a caller may write what it gets over the picture it came from."""

    class Watched(TensorRows):
        most = 0

        def rows(self, top: int, bottom: int) -> Tensor:
            self.most = max(self.most, bottom - top)
            return super().rows(top, bottom)

    network = load_network("tiny", CPU)
    assert isinstance(network, CooganNet)
    editor = CooganEditor(network, FixedParser(), IdentityNet(8, 1), {"age": 1.0}, 128, 32)
    picture = faces(1, 700, 300).image[0]
    source, overwritten = Watched(picture), TensorRows(picture.clone())
    plan = editor.plan(source)
    assert isinstance(plan.frame, FaceFrame)
    apart, invented, given = torch.full_like(picture, torch.nan), torch.zeros_like(picture[:1]), 0
    for block in editor.run(source, plan):
        block.put(apart, invented)
        given += block.invented.numel()
    assert source.most == BAND_ROWS < 128
    assert given == 700 * 300 and torch.isfinite(apart).all()  # every pixel, once
    assert not torch.equal(apart, picture)
    for block in editor.run(overwritten, plan):
        block.put(overwritten.image, invented)
    assert torch.equal(overwritten.image, apart)
