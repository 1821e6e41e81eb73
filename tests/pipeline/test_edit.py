"""The command `edit`: small and large pictures, bands of rows, records, and requests that cannot be met."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn

from pipeline import large
from pipeline.cli import build_parser, main
from pipeline.config import ConfigError, load_chain
from pipeline.editing import contact_sheet, edit, edit_chain, strength_sheet
from pipeline.images import Limits, to_uint8
from pipeline.large import PngRows, reduced, takes
from stages import coogan as stage_module
from stages import face_frame
from stages.face_frame import PART_CENTRES
from stages.networks.coogan import CooganNet
from stages.networks.face_parser import PARSING_CLASSES, FaceParser
from stages.networks.identity import IdentityNet
from stages.weights import WEIGHTS_ENV, load_network, save_weights
from tests.pipeline.test_evidence import credentials

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
def editor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tiny networks in place of the shipped ones; names of those that were loaded."""
    loaded: list[str] = []
    monkeypatch.setenv(WEIGHTS_ENV, str(tmp_path / "weights"))
    torch.manual_seed(0)
    network = CooganNet(**NETWORK)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    save_weights("coogan_768", network, CARD | {"architecture": "coogan", "arguments": NETWORK}, torch.float32)
    parser = {"architecture": "face_parser", "arguments": {"width": 8, "depth": 1}}
    save_weights("face_parser", FaceParser(8, 1), CARD | parser, torch.float32)
    identity = {"architecture": "identity", "arguments": {"width": 8, "blocks": 1}}
    save_weights("identity", IdentityNet(8, 1), CARD | identity, torch.float32)

    def load(name: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
        loaded.append(name)
        return BrightParser() if name == "face_parser" else load_network(name, device, dtype)

    monkeypatch.setattr(stage_module, "load_network", load)
    return loaded


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


def run(faces: Path | str, output: Path | str, *more: str) -> int:
    command = ["edit", "-i", str(faces), "-o", str(output), "--device", "cpu", "--precision", "fp32", "--workers", "1"]
    return main([*command, *more])


def records(output: Path) -> dict[str, dict[str, Any]]:
    lines = (output / "_run" / "journal.jsonl").read_text().splitlines()
    return {r["input"]: r for r in map(json.loads, lines)}


def test_every_kind_of_picture_ends_as_it_should(editor: list[str], faces: Path, tmp_path: Path) -> None:
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
    assert len(found["broken.png"]["input_sha256"]) == 64, "what was wrong is named by its content too"
    assert edited.size == (420, 500) and json.loads(edited.text["Revisage"])["status"] == "ok"
    assert "trainedAlgorithmicMedia" in edited.text["XML:com.adobe.xmp"].replace("WithT", "t")
    assert Image.open(tmp_path / "out" / found["grey.png"]["output"]).mode == "L"
    assert not list((tmp_path / "out").rglob(".revisage-*"))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("name", ["small.png", "large.png"])
def test_what_the_chain_takes_for_a_face_is_edited(
    editor: list[str], faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(face_frame._ENOUGH, "eyes", 1100.0)  # those of the drawn face are a fifth of that
    assert run(faces / name, tmp_path / "strict", "--set-attribute", "smiling=1") == 0
    assert records(tmp_path / "strict")[name]["status"] == "no_face"
    lax = ("--set-attribute", "smiling=1", "--set=verdict.min_face_score=0.1")
    assert run(faces / name, tmp_path / "out", *lax) == 0
    record = records(tmp_path / "out")[name]
    assert record["status"] == "ok" and 0.1 < record["face_score"] < 0.25
    assert not np.array_equal(pixels(tmp_path / "out" / record["output"]), pixels(faces / name))


@pytest.mark.parametrize("name", ["small.png", "large.png"])
def test_an_edit_that_leaves_another_person_is_for_review(
    editor: list[str], faces: Path, tmp_path: Path, name: str
) -> None:
    seen = {}
    for strength, bound in (("1", -1), ("1", 1), ("0", 0.999)):
        out = tmp_path / f"{strength}_{bound}"
        asked = ("--set-attribute", f"smiling={strength}", f"--set=verdict.min_likeness={bound}")
        assert run(faces / name, out, *asked) == 0
        seen[strength, bound] = records(out)[name]
    kept, refused, unchanged = (seen[key] for key in seen)
    assert kept["status"] == "ok" and refused["status"] == "review" and unchanged["status"] == "ok"
    assert "no longer the same person" in refused["reason"]
    assert kept["notes"]["edit"]["likeness"] <= unchanged["notes"]["edit"]["likeness"] == 1
    assert np.array_equal(*(pixels(tmp_path / f"1_{bound}" / refused["output"]) for bound in (-1, 1)))


@pytest.mark.parametrize("side", [128, 440])
def test_a_picture_with_nothing_to_edit_is_not_passed_off_as_edited(
    editor: list[str], faces: Path, tmp_path: Path, side: int
) -> None:
    Image.fromarray(picture(4, (side, side)) // 8).save(faces / "nobody.png")
    lax = [f"--set=verdict.{limit}=0" for limit in ("min_face_score", "min_brightness")]
    for strength, status in (("1", "review"), ("0", "ok")):
        out = tmp_path / strength
        assert run(faces / "nobody.png", out, "--set-attribute", f"smiling={strength}", *lax) == 0
        record = records(out)["nobody.png"]
        assert record["status"] == status and ("not edited" in (record["reason"] or "")) == (status == "review")
        assert np.array_equal(pixels(out / record["output"]), pixels(faces / "nobody.png"))
        assert main(["verify", str(out)]) == 0


@pytest.mark.parametrize("size", [(40, 40), (300, 60), (2000, 40)])
@pytest.mark.parametrize("stages", [[], [{"stage": "levels"}]])
def test_a_picture_too_small_to_edit_is_unsupported(
    editor: list[str], tmp_path: Path, size: tuple[int, int], stages: list[dict[str, Any]]
) -> None:
    """Alone and behind another stage, in one piece and, the last one, in bands."""
    chain = {"version": 1, "name": "t", "stages": [*stages, {"stage": "coogan", "attributes": {}}]}
    (tmp_path / "chain.yaml").write_text(json.dumps(chain))
    Image.fromarray(picture(0, size)).save(tmp_path / "a.png")
    out, more = tmp_path / "out", ("--set-attribute", "smiling=1", "-c", str(tmp_path / "chain.yaml"))
    assert run(tmp_path / "a.png", out, *more) == 1
    record = records(out)["a.png"]
    assert record["status"] == "unsupported" and record["output"] is None
    assert f"{size[1]}x{size[0]} px: a face crop needs 64 px or more a side" in record["error"]
    assert "Error" not in record["error"]


def write_kinds(folder: Path) -> list[Path]:
    """A picture of each kind that is edited in bands, none of them square."""
    folder.mkdir()
    image, veil = Image.fromarray(picture(5, (300, 250))), Image.linear_gradient("L").resize((250, 300))
    toned = Image.fromarray(picture(6, (300, 250), grey=True) + np.array([0, 2, 3], np.uint8))
    palette = image.quantize(16)
    glass, grey_glass = image.copy(), image.convert("L")
    glass.putalpha(veil)
    grey_glass.putalpha(veil)
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(folder / f"turned{orientation}.jpg", quality=95, exif=exif)
    exif[0x0112] = 6
    toned.save(folder / "toned.png", exif=exif)
    glass.save(folder / "glass.png", exif=exif)
    image.save(folder / "plate.tif", exif=exif)
    image.save(folder / "plain.png")
    toned.convert("L").save(folder / "grey.jpg")
    grey_glass.save(folder / "grey_glass.png")
    palette.save(folder / "palette.png", transparency=3)
    image.convert("CMYK").save(folder / "print.jpg", quality=95)
    image.convert("1").save(folder / "bits.png")
    image.point([v // 2 for v in range(256)] * 3).save(folder / "dark.png")
    image.save(folder / "moving.webp", save_all=True, append_images=[toned], lossless=True)
    return sorted(folder.iterdir())


def test_bands_give_what_the_picture_in_one_piece_gives(
    editor: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, bands, convert = write_kinds(tmp_path / "kinds"), [], large.to_rgb

    def watched(image: Image.Image, notes: dict[str, Any]) -> np.ndarray:
        bands.append(image.height)
        return convert(image, notes)

    monkeypatch.setattr(large, "to_rgb", watched)
    light = "verdict.min_brightness=0.45"
    assert run(tmp_path / "kinds", tmp_path / "out", "--set-attribute", "smiling=1", "--set", light) == 0
    assert max(bands) == large.BAND_ROWS
    found = records(tmp_path / "out")
    wholes = edit(paths, {"smiling": 1.0}, device="cpu", precision="fp32", overrides=[light])
    for path, whole in zip(paths, wholes, strict=True):
        assert whole.image is not None and whole.uncertainty is not None
        assert (found[path.name]["status"], found[path.name]["reason"]) == (whole.status, whole.reason), path.name
        assert found[path.name]["notes"] == json.loads(json.dumps(whole.notes | {"in_bands": True})), path.name
        image, map_ = (
            np.asarray(Image.open(tmp_path / "out" / found[path.name]["output"].replace("restored", folder, 1)))
            for folder in ("restored", "uncertainty")
        )
        assert np.array_equal(image, whole.image), path.name
        assert np.array_equal(map_, to_uint8(whole.uncertainty)) and map_.max() > 20, path.name
    assert found["dark.png"]["status"] == "review" and "too dark" in found["dark.png"]["reason"]
    assert json.loads(Image.open(tmp_path / "out" / found["dark.png"]["output"]).text["Revisage"])["status"] == "review"
    notes = {name: record["notes"] for name, record in found.items()}
    assert [notes[f"turned{i}.jpg"]["exif_orientation"] for i in range(2, 9)] == list(range(2, 9))
    assert notes["glass.png"].items() >= {("mode", "RGBA"), ("alpha", "laid over mid-grey"), ("exif_orientation", 6)}
    assert notes["palette.png"]["mode"] == "P" and notes["print.jpg"]["mode"] == "CMYK"
    assert notes["moving.webp"]["frames"] == "first of 2"


def test_damage_in_the_middle_is_found_while_decoding(editor: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(5, (400, 300))).save(folder / "a.png", exif=exif)
    data = (folder / "a.png").read_bytes()
    (folder / "a.png").write_bytes(data[: len(data) // 2])
    assert run(folder, tmp_path / "out", "--set-attribute", "smiling=1") == 1
    assert records(tmp_path / "out")["a.png"]["status"] == "corrupt"


def test_a_second_run_keeps_what_stands_and_verify_agrees(editor: list[str], faces: Path, tmp_path: Path) -> None:
    (faces / "broken.png").unlink()
    assert run(faces, tmp_path / "out", "--set-attribute", "smiling=1") == 0
    stamp = (tmp_path / "out" / "restored" / "large.png").stat().st_mtime_ns
    assert run(faces, tmp_path / "out", "--set-attribute", "smiling=1") == 0
    assert (tmp_path / "out" / "restored" / "large.png").stat().st_mtime_ns == stamp
    assert main(["verify", str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("way", ["plain", "signed", "into a store", "out of a store"])
def test_verify_makes_a_large_picture_again_in_the_way_it_was_made(
    editor: list[str], faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    out, more = tmp_path / "out", ["--set-attribute", "smiling=1"]
    given, place = str(faces), str(out)
    for name in ("small.png", "grey.png", "photo.jpg"):
        (faces / name).unlink()
    if way == "signed":
        pytest.importorskip("c2pa", reason='the extra "c2pa" is not installed')
        chain = {"version": 1, "name": "signed", "stages": [{"stage": "coogan", "attributes": {}}]}
        (tmp_path / "chain.yaml").write_text(json.dumps(chain | {"signing": credentials(tmp_path)}))
        more += ["-c", str(tmp_path / "chain.yaml")]
    elif way != "plain":
        store = pytest.importorskip("fsspec", reason='the extra "cluster" is not installed').filesystem("memory")
        if way == "into a store":
            place = f"memory:/{out}"
        else:
            store.put(f"{faces}/", f"{faces}/", recursive=True)
            given = f"memory:/{faces}"
    assert run(given, place, *more) == 1  # one of the pictures is broken
    if way == "into a store":
        store.get(f"{out}/", f"{out}/", recursive=True)
    record = records(out)["large.png"]
    assert record["status"] == "ok" and ("in_bands" in record["notes"]) == (way == "plain")
    assert main(["verify", str(out), "-i", str(faces)]) == 0
    assert "3 records checked, 3 made again, 0 inputs no longer there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (["--set-attribute", "smilling=1"], 'did you mean "smiling"'),
        (["--set-attribute", "age=7"], "expected a strength from -2 to"),
        (["--set-attribute", "hat=1"], "weights have not learned hat; they know smiling, age, eyeglasses"),
        ([], "no attribute to change"),
        (["--set-attribute", "age=1", "--set-attribute", "age=-1"], "--set-attribute age: given 2 times"),
        (["--set-attribute", "age=1", "--set", "stages.0.attributes={age: 1, age: -1}"], "'age' is given twice"),
        (["--set-attribute", "age=1", "-c", "configs/bicubic.yaml"], "no stage 'coogan' in it"),
        (["--set-attribute", "age=1", "--sheet", "-o", "s3://bucket/out"], "--sheet: needs an output folder on this"),
    ],
)
def test_requests_that_cannot_be_met_touch_nothing(
    editor: list[str], faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], wanted: list[str], message: str
) -> None:
    assert run(faces, tmp_path / "out", *wanted) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_editor_that_is_not_there_is_wrong_usage_and_those_there_are_named(
    faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(faces, tmp_path / "out", "--set-attribute", "age=1", "--editor", "l2mgan")
    said = capsys.readouterr().err
    assert caught.value.code == 2 and "'l2mgan'" in said and "coogan" in said.partition("choose from")[2]
    with pytest.raises(ConfigError, match="--editor l2mgan: not part of this version; here: coogan"):
        edit_chain("l2mgan", {"age": 1.0})


def test_missing_weights_name_the_way_to_train_them(
    faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(WEIGHTS_ENV, str(tmp_path / "nothing"))
    assert run(faces, tmp_path / "out", "--set-attribute", "smiling=1") == 2
    said = capsys.readouterr().err
    assert "weights = 'coogan_768'" in said and "train -c configs/train/coogan.yaml" in said
    assert "parser = 'face_parser'" in said and "train -c configs/train/face_parser.yaml" in said
    assert not (tmp_path / "out").exists()


def test_a_picture_over_the_limit_is_refused_before_it_is_decoded(
    editor: list[str], faces: Path, tmp_path: Path
) -> None:
    assert run(faces / "large.png", tmp_path / "out", "--set-attribute", "age=1", "--max-pixels", "200000") == 1
    assert records(tmp_path / "out")["large.png"]["status"] == "unsupported"


def test_a_number_is_asked_for(faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(faces, tmp_path / "out", "--set-attribute", "age=much")
    assert stop.value.code == 2 and "the strength is no number" in capsys.readouterr().err


def test_pictures_of_8192_px_are_taken_unless_asked_otherwise() -> None:
    limits = [build_parser().parse_args([c, "-i", "a", "-o", "b"]).max_pixels for c in ("edit", "restore", "degrade")]
    assert limits == [8192 * 8192, 64_000_000, 64_000_000]


def test_attributes_replace_those_of_a_chain() -> None:
    source, overrides = edit_chain("coogan", {"age": 1.0}, "configs/restore_edit.yaml")
    chain = load_chain(source, overrides=overrides, check_weights=False)
    assert chain.origin == str(source) and [s.name for s in chain.stages] == ["prouigan", "upscale", "coogan"]
    assert chain.resolved()["stages"][2]["attributes"] == {"age": 1.0}
    source, overrides = edit_chain("coogan", {}, "configs/restore_edit.yaml")
    chain = load_chain(source, overrides=overrides, check_weights=False)
    assert chain.resolved()["stages"][2]["attributes"] == {"smiling": 1.0}


def test_a_folder_stands_for_the_pictures_in_it(editor: list[str], faces: Path) -> None:
    (faces / "sub").mkdir()
    (faces / "small.png").rename(faces / "sub" / "small.png")
    found = edit([faces, faces / "grey.png"], {"smiling": 1.0}, device="cpu", precision="fp32")
    names = ["broken.png", "grey.png", "large.png", "nobody.png", "photo.jpg", "sub/small.png", "grey.png"]
    assert [result.source for result in found] == [str(faces / name) for name in names]
    assert [result.status for result in found] == ["corrupt", "ok", "ok", "no_face", "ok", "ok", "ok"]
    with pytest.raises(TypeError, match="expected a list"):
        edit(str(faces), {"smiling": 1.0})


# ---- contact sheets


def test_a_sheet_shows_one_face_at_all_strengths(editor: list[str], faces: Path) -> None:
    sheet = strength_sheet(faces / "small.png", "age", [-1, 0, 1], device="cpu", precision="fp32")
    assert sheet.shape == (256, 768, 3)
    tiles = np.split(sheet, 3, 1)
    for tile, strength in zip(tiles, (-1, 0, 1), strict=True):
        alone = edit([faces / "small.png"], {"age": strength}, device="cpu", precision="fp32")[0].image
        assert alone is not None
        assert np.array_equal(tile, np.asarray(Image.fromarray(alone).resize((256, 256), Image.Resampling.LANCZOS)))
    assert not np.array_equal(tiles[0], tiles[2])


def test_a_sheet_loads_the_weights_once(editor: list[str], faces: Path) -> None:
    images = [faces / "small.png", faces / "nobody.png"]
    sheet = contact_sheet(images, ["age", "smiling"], [-1, 0.5, 1], device="cpu", precision="fp32")
    assert sheet.shape == (4 * 256, 3 * 256, 3)
    assert editor == ["coogan_768", "face_parser", "identity"]
    assert (sheet[512:] == 128).all() and not np.array_equal(sheet[:256, 512:], sheet[256:512, 512:])


def test_a_run_draws_its_sheet_beside_the_report(editor: list[str], faces: Path, tmp_path: Path) -> None:
    (faces / "broken.png").unlink()
    wanted = ("--set-attribute", "age=1", "--set-attribute", "smiling=-0.5", "--sheet")
    assert run(faces, tmp_path / "out", *wanted) == 0
    with Image.open(tmp_path / "out" / "_run" / "sheet.png") as sheet:
        assert sheet.width == 160 + 5 * 256 and sheet.height > 24 + 5 * 2 * 256  # the standing words below it
        said = json.loads(sheet.text["Revisage"])
        assert said["attributes"] == ["age", "smiling"] and "Not for identification" in sheet.text["Disclaimer"]
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert run(faces, tmp_path / "dry", *wanted, "--dry-run") == 0 and not (tmp_path / "dry").exists()


def test_a_large_picture_is_reduced_in_bands(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.fromarray(picture(7, (600, 900))).save(tmp_path / "a.png", exif=exif)
    found = reduced(tmp_path / "a.png", Limits(), 200)
    with Image.open(tmp_path / "a.png") as image:
        expected = image.transpose(Image.Transpose.ROTATE_90).reduce(5)
    assert found is not None and np.array_equal(found, np.asarray(expected))
    Image.fromarray(np.zeros((300, 300), np.uint16)).save(tmp_path / "deep.png")
    assert reduced(tmp_path / "deep.png", Limits(), 200) is None


# ---- files


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


def test_all_but_16_bits_are_edited_in_bands(tmp_path: Path) -> None:
    assert all(takes(Image.new(mode, (4, 4))) for mode in ("RGB", "L", "RGBA", "LA", "P", "CMYK", "1"))
    assert not takes(Image.new("I;16", (4, 4)))
    for ending in ("png", "tif"):
        cv2.imwrite(str(tmp_path / f"deep.{ending}"), np.full((20, 20, 3), 40000, np.uint16))
        with Image.open(tmp_path / f"deep.{ending}") as image:
            assert not takes(image)
