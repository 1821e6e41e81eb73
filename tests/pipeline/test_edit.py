"""The command `edit`: small and large pictures, bands of rows, records, and requests that cannot be met."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn

from pipeline.cli import main
from pipeline.editing import edit, edit_chain, strength_sheet
from pipeline.large import PngRows, takes
from stages import coogan as stage_module
from stages.face_frame import PART_CENTRES
from stages.networks.coogan import CooganNet
from stages.networks.face_parser import PARSING_CLASSES, FaceParser
from stages.weights import WEIGHTS_ENV, load_network, save_weights

NETWORK: dict[str, Any] = {"attributes": ["smiling", "age", "eyeglasses"], "width": 8, "local_width": 8}
CARD: dict[str, Any] = {"input": {}, "data": {}, "recipe": {}, "metrics": [], "licence": "none", "limits": "random"}


class BrightParser(FaceParser):
    """Finds a drawn face in bright pictures, and only background in dark ones."""

    def __init__(self) -> None:
        super().__init__(8, 1)
        classes = np.full((128, 128), PARSING_CLASSES.index("skin"))
        y, x = np.mgrid[:128, :128]
        names = ("right_eye", "left_eye", "nose", "mouth")
        for name, (cx, cy), (rx, ry) in zip(names, PART_CENTRES, ((9, 4), (9, 4), (10, 16), (16, 7)), strict=True):
            classes[((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1] = PARSING_CLASSES.index(name)
        classes[:20] = 0
        self.answer = F.one_hot(torch.from_numpy(classes), 19).permute(2, 0, 1)[None].float() * 20

    def forward(self, image: Tensor) -> Tensor:
        nothing = torch.zeros_like(self.answer)
        nothing[:, 0] = 20
        return torch.cat([self.answer if face.mean() > 0.2 else nothing for face in image]).to(image.dtype)


@pytest.fixture
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(WEIGHTS_ENV, str(tmp_path / "weights"))
    torch.manual_seed(0)
    network = CooganNet(**NETWORK)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    save_weights("coogan_768", network, CARD | {"architecture": "coogan", "arguments": NETWORK}, torch.float32)
    parser = {"architecture": "face_parser", "arguments": {"width": 8, "depth": 1}}
    save_weights("face_parser", FaceParser(8, 1), CARD | parser, torch.float32)

    def load(name: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
        return BrightParser() if name == "face_parser" else load_network(name, device, dtype)

    monkeypatch.setattr(stage_module, "load_network", load)


def picture(seed: int, size: tuple[int, int], grey: bool = False) -> np.ndarray:
    """(H, W, 3) uint8, smooth and bright."""
    coarse = np.random.default_rng(seed).integers(90, 220, (10, 10, 3), dtype=np.uint8)
    coarse = np.repeat(coarse[..., :1], 3, 2) if grey else coarse
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(picture(0, (128, 128))).save(folder / "small.png")
    Image.fromarray(picture(1, (500, 420))).save(folder / "large.png")
    Image.fromarray(picture(2, (430, 430), grey=True)[..., 0]).save(folder / "grey.png")
    Image.fromarray(picture(3, (450, 450))).save(folder / "photo.jpg", quality=95)
    Image.fromarray(picture(4, (440, 440)) // 8).save(folder / "nobody.png")
    (folder / "broken.png").write_bytes((folder / "large.png").read_bytes()[:9000])
    return folder


def run(faces: Path, output: Path, *more: str) -> int:
    command = ["edit", "-i", str(faces), "-o", str(output), "--device", "cpu", "--precision", "fp32", "--workers", "1"]
    return main([*command, *more])


def records(output: Path) -> dict[str, dict[str, Any]]:
    lines = (output / "_run" / "journal.jsonl").read_text().splitlines()
    return {r["input"]: r for r in map(json.loads, lines)}


def test_every_kind_of_picture_ends_as_it_should(editor: None, faces: Path, tmp_path: Path) -> None:
    assert run(faces, tmp_path / "out", "--set-attribute", "smiling=1", "--set-attribute", "age=-0.5") == 1
    found = records(tmp_path / "out")
    assert {n: r["status"] for n, r in found.items()} == {
        "small.png": "ok", "large.png": "ok", "grey.png": "ok", "photo.jpg": "ok", "nobody.png": "no_face",
        "broken.png": "corrupt",
    }  # fmt: skip
    assert found["large.png"]["notes"]["in_bands"] and "in_bands" not in found["small.png"]["notes"]
    assert found["large.png"]["notes"]["edit"]["attributes"] == {"smiling": 1.0, "age": -0.5}
    assert found["nobody.png"]["output"] is None and "no face found" in found["nobody.png"]["reason"]
    edited = Image.open(tmp_path / "out" / found["large.png"]["output"])
    assert edited.size == (420, 500) and json.loads(edited.text["Revisage"])["status"] == "ok"
    assert "trainedAlgorithmicMedia" in edited.text["XML:com.adobe.xmp"].replace("WithT", "t")
    assert Image.open(tmp_path / "out" / found["grey.png"]["output"]).mode == "L"
    assert not list((tmp_path / "out").rglob(".revisage-*"))


def test_bands_give_what_the_picture_in_one_piece_gives(editor: None, faces: Path, tmp_path: Path) -> None:
    run(faces, tmp_path / "out", "--set-attribute", "smiling=1")
    for name, source in (("large.png", "large.png"), ("grey.png", "grey.png"), ("photo.jpg.png", "photo.jpg")):
        whole = edit([faces / source], {"smiling": 1.0}, device="cpu", precision="fp32")[0]
        assert whole.image is not None and whole.uncertainty is not None
        bands = np.asarray(Image.open(tmp_path / "out" / "restored" / name)).astype(int)
        assert bands.shape == whole.image.shape
        assert np.abs(bands - whole.image).max() <= 1  # the reduced picture is averaged in another order
        map_ = np.asarray(Image.open(tmp_path / "out" / "uncertainty" / name)).astype(int)
        assert np.abs(map_ - whole.uncertainty * 255).max() < 3
        assert (
            np.abs(bands - np.asarray(Image.open(faces / source).convert(whole.image.ndim == 2 and "L" or "RGB"))).max()
            > 2
        )


def test_a_second_run_keeps_what_stands_and_verify_agrees(editor: None, faces: Path, tmp_path: Path) -> None:
    (faces / "broken.png").unlink()
    assert run(faces, tmp_path / "out", "--set-attribute", "smiling=1") == 0
    stamp = (tmp_path / "out" / "restored" / "large.png").stat().st_mtime_ns
    assert run(faces, tmp_path / "out", "--set-attribute", "smiling=1") == 0
    assert (tmp_path / "out" / "restored" / "large.png").stat().st_mtime_ns == stamp
    assert main(["verify", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["--set-attribute", "smilling=1"], 'did you mean "smiling"'),
        (["--set-attribute", "age=7"], "expected a strength from -2 to"),
        (["--set-attribute", "hat=1"], "unknown attribute 'hat'; known: smiling, age, eyeglasses"),
        ([], "no attribute to change"),
        (["--set-attribute", "age=1", "--editor", "l2mgan"], "--editor l2mgan: not part of this version; here: coogan"),
        (["--set-attribute", "age=1", "-c", "configs/bicubic.yaml"], "no stage 'coogan' in it"),
    ],
)
def test_requests_that_cannot_be_met_touch_nothing(
    editor: None, faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], wanted: list[str], message: str
) -> None:
    assert run(faces, tmp_path / "out", *wanted) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_missing_weights_name_the_way_to_train_them(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(WEIGHTS_ENV, str(tmp_path / "nothing"))
    assert run(faces, tmp_path / "out", "--set-attribute", "smiling=1") == 2
    assert "train -c configs/train/coogan.yaml" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_picture_over_the_limit_is_refused_before_it_is_decoded(editor: None, faces: Path, tmp_path: Path) -> None:
    assert run(faces / "large.png", tmp_path / "out", "--set-attribute", "age=1", "--max-pixels", "200000") == 1
    assert records(tmp_path / "out")["large.png"]["status"] == "unsupported"


def test_a_number_is_asked_for(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(faces, tmp_path / "out", "--set-attribute", "age=much")
    assert stop.value.code == 2 and "the strength is no number" in capsys.readouterr().err


def test_attributes_replace_those_of_a_chain() -> None:
    chain = edit_chain("coogan", {"age": 1.0}, "configs/restore_edit.yaml")
    assert [s["stage"] for s in chain["stages"]] == ["prouigan", "upscale", "coogan"]
    assert chain["stages"][2]["attributes"] == {"age": 1.0}
    assert edit_chain("coogan", {}, "configs/restore_edit.yaml")["stages"][2]["attributes"] == {"smiling": 1.0}


def test_a_sheet_shows_one_face_at_all_strengths(editor: None, faces: Path) -> None:
    sheet = strength_sheet(faces / "small.png", "age", [-1, 0, 1], device="cpu", precision="fp32")
    assert sheet.shape == (256, 768, 3)
    tiles = np.split(sheet, 3, 1)
    assert not np.array_equal(tiles[0], tiles[2])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_png_written_in_rows_reads_back(tmp_path: Path, channels: int) -> None:
    shape = (37, 23) if channels == 1 else (37, 23, 3)
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    info = PngInfo()
    info.add_text("Software", "test")
    writer = PngRows(tmp_path / "a.png", 37, 23, channels, info)
    for top in range(0, 37, 10):
        writer.write(pixels[top : top + 10])
    writer.close(finished=True)
    with Image.open(tmp_path / "a.png") as image:
        assert image.text == {"Software": "test"}
        assert np.array_equal(np.asarray(image), pixels)


def test_only_plain_pictures_are_edited_in_bands() -> None:
    assert takes(Image.new("RGB", (4, 4))) and takes(Image.new("L", (4, 4)))
    assert not takes(Image.new("RGBA", (4, 4))) and not takes(Image.new("I;16", (4, 4)))
    turned, data = Image.new("RGB", (4, 4)), io.BytesIO()
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(data, "JPEG", exif=exif)
    assert not takes(Image.open(data))
