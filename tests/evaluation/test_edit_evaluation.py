"""The measuring scripts of enlarging and editing, on cases made by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("scipy")
from evaluation import dlib_descriptor, edit_memory, transfer_unit, upscale_bars
from evaluation.edit_bars import COSINE, DISTANCE, flipped, identity_kept, others_changed, seam_excess
from evaluation.edit_memory import Row, drawn_face, findings
from evaluation.editing import reconstruction_db
from evaluation.operations import operations
from evaluation.upscale_bars import sharpness
from stages.networks.coogan import CooganNet
from stages.networks.transfer_unit import LightUnit
from stages.weights import read_card


def test_the_light_unit_meets_the_bars_at_every_width(tmp_path: Path) -> None:
    assert transfer_unit.main(["--out", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "transfer_unit.json").read_text())
    assert len(record["counts"]) == len(transfer_unit.WIDTHS) and set(record["definitions"]) > {"parameters", "macs"}
    for c in record["counts"]:
        assert c["light_parameters"] <= 0.6 * c["stgan_parameters"] and c["light_macs"] <= 0.4 * c["stgan_macs"]


def test_every_unit_of_the_shipped_editor_is_counted() -> None:
    arguments = read_card("coogan_768").arguments
    network = CooganNet(arguments["attributes"], arguments["width"], arguments["local_width"])
    units = [m for m in network.modules() if isinstance(m, LightUnit)]
    assert [(u.up.out_channels, u.up.in_channels) for u in units] == [w[:2] for w in transfer_unit.WIDTHS]


def test_operations_are_those_of_the_formula() -> None:
    layer = torch.nn.Conv2d(3, 5, 3, padding=1)
    assert operations(lambda: layer(torch.zeros(1, 3, 8, 8))) == 2 * 8 * 8 * 5 * 27
    up = torch.nn.ConvTranspose2d(3, 5, 4, 2, 1)
    assert operations(lambda: up(torch.zeros(1, 3, 8, 8))) == 2 * 8 * 8 * 3 * 5 * 16


def test_an_editor_that_adds_nothing_reconstructs_perfectly() -> None:
    network = CooganNet(["age"], width=8, local_width=8).eval()  # its last layers start at zero
    face = np.random.default_rng(0).integers(0, 256, (768, 768, 3), dtype=np.uint8)
    assert reconstruction_db(network, [face]) > 90


def test_memory_bars_are_judged() -> None:
    rows = [Row(768, True, 100.0, 1.0), Row(4096, True, 120.0, 20.0), Row(4096, False, 2000.0, 30.0)]
    assert [met for *_, met in findings(rows)] == [True, True, True]
    worse = [Row(768, True, 100.0, 4.0), Row(4096, True, 126.0, 20.0), Row(4096, False, 1000.0, 30.0)]
    assert [met for *_, met in findings(worse)] == [False, False, False]
    assert findings([Row(768, True, None, None)]) == []
    assert "| 4096 | 126 | 20.0 | 1.19 | 1000 | 30.0 |" in edit_memory.table(worse)


def test_several_measurements_count_as_their_median_and_a_missing_one_is_not_passed_over() -> None:
    rows = [Row(768, True, mib, seconds) for mib, seconds in ((90.0, 3.0), (60.0, 1.0), (70.0, 2.0))]
    assert edit_memory.median_row(rows) == Row(768, True, 70.0, 2.0)
    assert edit_memory.median_row([*rows, Row(768, True, None, None)]) == Row(768, True, None, None)


def test_sizes_beyond_those_measured_in_one_piece_are_extrapolated_over_the_area_and_marked() -> None:
    rows = [Row(side, True, 100.0, 1.0) for side in (1000, 2000, 4000)]
    rows += [Row(1000, False, 150.0, 1.0), Row(2000, False, 450.0, 4.0)]
    assert edit_memory.extrapolated(rows) == {4000: pytest.approx(1650)}  # 50 and 100 a megapixel
    text = edit_memory.table(rows)
    assert "| 1650 (extrapolated) | - |" in text and text.count("(extrapolated)") == 1 and "*n*" in text
    assert edit_memory.extrapolated(rows[:4]) == {}


def test_the_drawn_face_scales() -> None:
    small, large = drawn_face(128), drawn_face(256)
    assert small.shape == (128, 128, 3)
    assert np.abs(large[::2, ::2].astype(int) - small).mean() < 6


@pytest.mark.slow
def test_an_edit_is_measured_in_a_process_of_its_own() -> None:
    row = edit_memory.run_row(256, True, None, "fp32")
    if row.mib is None:
        pytest.skip("the face parser's weights are not here")
    assert 1 < row.mib < 600 and row.seconds is not None and row.seconds > 0


def test_a_flip_is_a_crossing_and_age_moves_ten_years() -> None:
    before, after = np.array([0.2, 0.2, 0.9]), np.array([0.8, 0.4, 0.1])
    assert flipped("smiling", before, after, np.array([1.0, 1.0, -1.0])).tolist() == [True, False, True]
    years = flipped("age", np.array([30.0, 30.0, 60.0]), np.array([45.0, 35.0, 48.0]), np.array([1.0, 1.0, -1.0]))
    assert years.tolist() == [True, False, True]


def test_changed_answers_are_counted_among_the_sure_ones_alone() -> None:
    before = {"smiling": np.array([0.9, 0.9]), "hat": np.array([0.9, 0.55]), "eyeglasses": np.array([0.1, 0.1])}
    after = {"smiling": np.array([0.1, 0.1]), "hat": np.array([0.2, 0.2]), "eyeglasses": np.array([0.1, 0.1])}
    found = others_changed("smiling", before, after)  # one of three sure answers; the hat at .55 is none
    assert (found.value, found.n) == (pytest.approx(1 / 3), 3)
    assert (found.low, found.high) == (0, 0.5)  # faces are drawn: the first has one of two changed, the second none
    assert others_changed("smiling", {"smiling": before["smiling"]}, after).n == 0


def test_a_seam_shows_and_smoothness_does_not() -> None:
    smooth = np.tile(np.linspace(0, 1, 200)[None, :, None], (50, 1, 3))
    assert abs(seam_excess(smooth, [60, 120])) < 0.01
    broken = smooth.copy()
    broken[:, 60:] += 0.05
    assert seam_excess(broken, [60, 120]) > 1


def test_every_bar_of_the_upscaler_has_its_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    faces = [rng.integers(0, 256, (512, 512, 3), dtype=np.uint8) for _ in range(3)]

    def enlarge(noise: float) -> upscale_bars.Row:
        return lambda x: torch.nn.functional.interpolate(x, size=(512, 512)) + noise * torch.rand(3, 512, 512)

    names = ("lanczos", "upscale 1", "upscale 0", "real-esrgan")
    monkeypatch.setattr(upscale_bars, "rows", lambda *given: {n: enlarge(i / 10) for i, n in enumerate(names)})
    monkeypatch.setattr(upscale_bars, "restored_thumbnails", lambda faces, config: [torch.rand(1, 3, 128, 128)] * 2)
    monkeypatch.setattr(upscale_bars.basicsr_adapter, "available", lambda: True)
    monkeypatch.setattr(upscale_bars.basicsr_adapter, "niqe", lambda picture: float(picture.mean()))
    found = upscale_bars.measure(faces, "card", "fp32", "chain", timed=True)
    assert all(f.definition and f.estimate.low <= f.estimate.value <= f.estimate.high for f in found)
    n = {f.metric: f.estimate.n for f in found if f.section == "bars"}
    assert n == {
        "gain over Lanczos at fidelity 1": 3, "NIQE of fidelity 0 over Real-ESRGAN's, clean": 3,
        "NIQE of fidelity 0 over Real-ESRGAN's, restored": 2, "speed over Real-ESRGAN's": 3,
    }  # fmt: skip


def test_blur_is_less_sharp() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    blurred = np.asarray(torch.nn.functional.avg_pool2d(torch.from_numpy(picture).permute(2, 0, 1).float(), 3, 1, 1))
    assert sharpness(blurred.transpose(1, 2, 0)) < 0.5 * sharpness(picture)


def test_identity_is_read_as_cosine_and_as_distance_of_faces_found(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {1: np.array([1.0, 0.0]), 2: np.array([0.8, 0.6]), 3: None}
    monkeypatch.setattr(dlib_descriptor, "dlib_descriptor", lambda picture: found[int(picture[0, 0, 0])])
    faces = [np.full((2, 2, 3), n, np.uint8) for n in (1, 1, 1)]
    made = [np.full((2, 2, 3), n, np.uint8) for n in (1, 2, 3)]
    kept = identity_kept(faces, made)
    assert kept is not None
    assert kept[COSINE] == pytest.approx([1.0, 0.8]) and kept[DISTANCE] == pytest.approx([1.0, 1 - 0.4**0.5])
    assert identity_kept(faces[:1], made[2:]) is None
