"""Really covered faces in the suite: an obvious cover is found, its bar is set, and a missing file is said."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.faces import EvaluationFace
from evaluation.suite import covered, run
from evaluation.suite.config import load_evaluation
from evaluation.suite.rows import Made
from stages.degradation.occluders import MEAN_SHAPE

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402


def parquet(path: Path, count: int, covered: bool) -> Path:
    rng = np.random.default_rng(count)
    rows = []
    for i in range(count):
        picture = rng.integers(60, 120, (128, 128, 3), dtype=np.uint8)
        if covered:
            picture[70:] = 250
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        points = None if covered else np.asarray(MEAN_SHAPE, np.float32).ravel().tolist()
        rows.append({"id": f"{path.stem}{i}", "image": buffer.getvalue(), "landmarks": points})
    schema = pa.schema([("id", pa.string()), ("image", pa.binary()), ("landmarks", pa.list_(pa.float32()))])
    pq.write_table(pa.Table.from_pylist(rows, schema), path)
    return path


BODY = """version: 1
name: covered
sources: [{name: bare, parquet: bare.parquet, held_out: ids.txt}]
conditions: {clean: {}}
chain: chain.yaml
fidelities: [1]
measures: [cover]
bars:
  - {metric: AUC against all bare sets, row: restored at 1, at_least: 0.95}
  - {metric: ["still called covered, masked"], row: [restored at 1, restored at 0], at_most: 0.1}
really_covered:
  covered: {masked: masked.parquet}
  as_found: {street: bare.parquet}
  canonical: {bare: bare.parquet}
  held_out: ids.txt
  steps: 40
  optional: true
chunk: 4
"""


def test_really_covered_faces_are_measured_in_the_same_run(tmp_path: Path, tiny_chain: Path) -> None:
    parquet(tmp_path / "bare.parquet", 30, False)
    parquet(tmp_path / "masked.parquet", 20, True)
    held = [f"bare{i}" for i in range(6)] + [f"masked{i}" for i in range(6)]
    (tmp_path / "ids.txt").write_text("\n".join(held))
    (tmp_path / "e.yaml").write_text(BODY)
    outcome = run.evaluate(load_evaluation(tmp_path / "e.yaml"), tmp_path / "out", device="cpu", precision="fp32")
    found = {(f.metric, f.row): f for f in outcome.findings if f.section == "Really covered faces"}
    by_size = {(f.subset, f.metric): f for f in outcome.findings if f.row == "original" and "classifier" in f.subset}
    assert by_size["classifier at 16 px", "balanced accuracy"].estimate.value > 0.8
    left = found["still called covered, masked", "restored at 1"]
    assert left.bar == 0.1 and left.estimate.n == 6 and left.weights == "prouigan_128"
    assert found["still called covered, masked", "bicubic"].bar is None
    auc = found["AUC against all bare sets", "restored at 1"]
    assert auc.bar == 0.95 and auc.estimate.n == 6 + 6 + 6  # covered; bare of the source; bare as found
    page = (outcome.folder / "report.html").read_text()
    assert "Pictures: masked, as found" in page and 'alt="cover found"' in page
    made = len(list((tmp_path / "out" / "_cache" / "restored").glob("*.npz")))
    again = run.evaluate(load_evaluation(tmp_path / "e.yaml"), tmp_path / "out", device="cpu", precision="fp32")
    assert again.cache.misses == 0 and len(list((tmp_path / "out" / "_cache" / "restored").glob("*.npz"))) == made


def test_pictures_of_one_person_are_drawn_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    level = np.random.default_rng(1).uniform(0, 0.6, 16)[np.arange(64) // 4]  # of 16 people, four pictures each
    blank = np.zeros((128, 128, 3), np.uint8)

    def restore(lq: np.ndarray) -> Made:
        return replace(Made.plain(np.stack([blank] * len(lq))), occluded_fraction=level + 0.1)

    monkeypatch.setattr(covered, "cover_classifier", lambda *given: None)
    monkeypatch.setattr(covered, "called_covered", lambda network, images, size: (level > 0.3).astype(float))
    widths = []
    for people in (np.arange(64).astype(str), (np.arange(64) // 4).astype(str)):
        faces = [EvaluationFace(f"f{i}", who, "s", blank, None, {}) for i, who in enumerate(people)]
        real = covered.RealFaces({"masked": faces}, {}, [], [])
        bare = {"bare": covered.Bare(level, [blank] * 64, people)}
        found, _ = covered.real_findings(real, bare, {"restored at 1": restore}, tmp_path, 1, 0)
        widths.append({(f.subset, f.metric, f.row): f.estimate.high - f.estimate.low for f in found})
    assert len(widths[0]) == 15 and all(widths[1][key] > 1.3 * width for key, width in widths[0].items())


def test_a_missing_set_is_said(tmp_path: Path, tiny_chain: Path) -> None:
    parquet(tmp_path / "bare.parquet", 4, False)
    (tmp_path / "ids.txt").write_text("bare0\nbare1\n")
    (tmp_path / "e.yaml").write_text(BODY)
    outcome = run.evaluate(load_evaluation(tmp_path / "e.yaml"), tmp_path / "out", device="cpu", precision="fp32")
    assert outcome.not_measured["Really covered faces"] == "masked.parquet not there"
    record = json.loads((outcome.folder / "tables.json").read_text())
    assert record["header"]["not measured"]["Really covered faces"] == "masked.parquet not there"
