"""The whole suite on small pictures: what it writes, that it goes on after an interruption, what it refuses."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from evaluation.card_metrics import main as card_metrics
from evaluation.restoring import REPOSITORY
from evaluation.suite import rows, run
from evaluation.suite.cache import Cache, fingerprint
from evaluation.suite.config import EvaluationError, load_evaluation
from evaluation.suite.judges import Judge, build_judge
from evaluation.suite.rows import Made, Row, baselines, chain_row, degraded, rival_row
from evaluation.suite.sources import load_source
from pipeline.cli import main as command
from pipeline.config import ConfigError
from pipeline.images import to_uint8
from stages.degradation.occluders import MEAN_SHAPE
from stages.weights import read_card

BODY = """version: 1
name: small
sources: [{name: examples, examples: true, limit: 12}]
conditions: {clean: {}, covered: benchmark}
chain: chain.yaml
fidelities: [1, default]
rivals: [lanczos, {network: nowhere_128}]
embedders: [{embedder: "onnx:{onnx}", name: colour, template: arcface-112, in_training: none}]
measures: [fidelity, consistency, outcomes, cover, uncertainty]
recognition: {same_photograph: true, folds: 4}
bars:
  - {metric: PSNR gain, row: restored at 1, condition: clean, at_least: -50}
  - {metric: NME, row: restored at 1, at_most: 4}
pictures: 2
chunk: 5
"""


@pytest.fixture
def evaluation(tmp_path: Path, tiny_chain: Path, tiny_onnx: Callable[..., Path]) -> Path:
    pytest.importorskip("onnxruntime")
    path = tmp_path / "small.yaml"
    path.write_text(BODY.replace("{onnx}", tiny_onnx().name))
    return path


def test_the_command_writes_tables_plots_and_one_page(
    evaluation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert command(["evaluate", "-c", str(evaluation), "-o", str(out), "--device", "cpu", "--precision", "fp32"]) == 0
    record = json.loads((out / "small" / "tables.json").read_text())
    findings = record["findings"]
    assert {f["row"] for f in findings} == {
        "original", "nearest", "bicubic", "restored at 1", "restored at default", "lanczos",
    }  # fmt: skip
    for f in findings:
        assert f["definition"] and f["direction"] in ("up", "down") and f["version"] >= 1 and f["n"] > 0, f
        if f["value"] is not None and f["low"] is not None:
            assert f["low"] <= f["value"] + 1e-6 and f["value"] <= f["high"] + 1e-6, f
    sections = {f["section"] for f in findings}
    assert {"Fidelity", "Outcomes", "Verification", "Uncertainty", "Time and memory"} <= sections
    judge = "colour (part in training: none)"
    assert all(
        judge in f["subset"] or judge in f["section"] for f in findings if f["section"].startswith(("Ver", "Ide"))
    )
    assert record["summary"] == {"bars": 1, "passed": 1}
    left_out = record["header"]["not measured"]
    assert "every person has one picture" in left_out["Closed-set identification on examples"]
    assert "no card" in left_out["rival {'network': 'nowhere_128'}"]
    assert left_out["bar NME, restored at 1"] == "no number of this run is meant by it"
    page = (out / "small" / "report.html").read_text()
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", page) and "http:" not in page
    assert page.index('alt="original"') < page.index('alt="thumbnail"') < page.index('alt="bicubic"')
    markdown = (out / "small" / "tables.md").read_text()
    assert "**1 of 1 bars reached.**" in markdown and "| restored at 1 |" in markdown
    pytest.importorskip("matplotlib")
    stems = {p.stem for p in (out / "small" / "plots").glob("*.svg")}
    assert stems == {p.stem for p in (out / "small" / "plots").glob("*.png")}
    assert any(s.startswith("roc-examples") for s in stems) and any(s.startswith("risk-and-coverage") for s in stems)
    assert "examples: 12 faces" in capsys.readouterr().err


def test_an_interrupted_evaluation_goes_on_and_ends_with_the_same_numbers(
    evaluation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    stop_at: list[int] = [4]
    build = run.build_rows

    def rows(*arguments: object) -> list[Row]:
        def counted(row: Row) -> Row:
            def make(lq: np.ndarray) -> Made:
                calls.append(len(lq))
                if len(calls) == stop_at[0]:
                    raise KeyboardInterrupt
                return row.make(lq)

            return Row(row.name, make, row.fingerprint, row.weights)

        return [counted(r) if r.name == "restored at 1" else r for r in build(*arguments)]  # type: ignore[arg-type]

    monkeypatch.setattr(run, "build_rows", rows)
    config = load_evaluation(evaluation, ["measures=[fidelity]", "recognition=null"])
    with pytest.raises(KeyboardInterrupt):
        run.evaluate(config, tmp_path / "a", device="cpu", precision="fp32")
    assert calls == [1, 5, 5, 2]  # a warm-up, then chunks of 5, 5, 2
    calls.clear()
    stop_at[0] = -1
    first = run.evaluate(config, tmp_path / "a", device="cpu", precision="fp32")
    assert calls == [1, 2, 5, 5, 2]  # the rest of `clean`, and `covered`
    calls.clear()
    again = run.evaluate(config, tmp_path / "a", device="cpu", precision="fp32")
    assert calls == [] and again.cache.misses == 0
    whole = run.evaluate(config, tmp_path / "b", device="cpu", precision="fp32")
    numbers = [
        [(f.section, f.subset, f.condition, f.row, f.metric, f.estimate) for f in outcome.findings
         if f.section != "Time and memory"]
        for outcome in (first, again, whole)
    ]  # fmt: skip
    assert numbers[0] == numbers[1] == numbers[2] and len(numbers[0]) > 50


def test_a_perfect_restorer_reaches_the_shipped_bars_and_a_condition_measures_what_it_is_for(
    evaluation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = yaml.safe_load((REPOSITORY / "configs" / "evaluate" / "restorer.yaml").read_text())
    others = ("NME", "share of lost", "lead of", "AUC against", "still called")
    bars = [bar | {"source": None} for bar in shipped["bars"] if not any(word in str(bar["metric"]) for word in others)]
    content = yaml.safe_load(evaluation.read_text()) | {
        "conditions": {name: c for name, c in shipped["conditions"].items() if name != "cubic"},
        "only": {"noisy": shipped["only"]["noisy"]}, "bars": bars, "fidelities": [1], "rivals": [], "recognition": None,
        "measures": ["fidelity", "consistency", "cover", "uncertainty"], "embedders": [],
    }  # fmt: skip
    evaluation.write_text(yaml.safe_dump(content))
    config = load_evaluation(evaluation)
    faces = load_source(config.options.sources[0], config).faces  # type: ignore[union-attr]
    truths = {}
    for degradation in config.degradations.values():
        views = degraded(faces, degradation, grey=False)
        truths |= {lq.tobytes(): (t, m) for lq, t, m in zip(views.lq, views.truth, views.mask, strict=True)}

    def perfect(lq: np.ndarray) -> Made:
        truth, mask = (np.stack(part) for part in zip(*(truths[small.tobytes()] for small in lq), strict=True))
        noise = np.random.default_rng(0).integers(0, 12, mask.shape) * mask  # an error under the cover, and known
        none = np.zeros(len(lq), bool)
        images = np.clip(truth + noise[..., None], 0, 255).astype(np.uint8)
        return Made(images, none, none, none, None, to_uint8(mask), np.clip(noise * 8 + 1, 0, 255).astype(np.uint8))

    monkeypatch.setattr(run, "build_rows", lambda *given: [*baselines(), Row("restored at 1", perfect, "perfect")])
    outcome = run.evaluate(config, tmp_path / "out", device="cpu")
    judged = [f for f in outcome.findings if f.bar is not None]
    assert not [(f.metric, f.condition, f.estimate) for f in judged if not f.passed]
    assert {f.section for f in judged} == {"Fidelity", "Agreement with the thumbnail", "Cover found", "Uncertainty"}
    noisy = {(f.section, f.row) for f in outcome.findings if f.condition == "noisy"}
    time = "Time and memory"
    assert noisy == {("Cover found", "restored at 1"), (time, "bicubic"), (time, "restored at 1")}


def test_the_cache_knows_content_from_configuration_and_survives_damage(tmp_path: Path) -> None:
    keys = {
        fingerprint(np.zeros(3)), fingerprint(np.zeros(3, np.float32)), fingerprint(np.zeros((3, 1))),
        fingerprint("a", "b"), fingerprint("ab"), fingerprint({"a": 1}), fingerprint({"a": 2}),
    }  # fmt: skip
    assert len(keys) == 7
    cache = Cache(tmp_path)

    def entry(value: float) -> dict[str, np.ndarray]:
        return cache.get("kind", "key", lambda: {"x": np.array([value])})

    assert entry(1.0)["x"] == 1 and entry(2.0)["x"] == 1 and (cache.hits, cache.misses) == (1, 1)
    path = tmp_path / "kind" / "key.npz"
    path.write_bytes(path.read_bytes()[:-10])
    assert entry(3.0)["x"] == 3 and entry(4.0)["x"] == 3
    assert Cache(tmp_path, read=False).get("kind", "key", lambda: {"x": np.array([5.0])})["x"] == 5
    assert [p.name for p in path.parent.iterdir()] == ["key.npz"]


def test_a_restorer_without_its_checkpoint_is_timed_and_nothing_else(
    evaluation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def seconds(name: str, device: object) -> list[float]:
        if name == "CodeFormer":
            raise ImportError("its package is missing")
        return [0.25, 0.75]

    monkeypatch.setattr(run, "untrained_seconds", seconds)
    evaluation.write_text(evaluation.read_text() + "untrained: [GFPGAN, CodeFormer]\nplots: false\n")
    outcome = run.evaluate(load_evaluation(evaluation), tmp_path / "out", device="cpu", precision="fp32")
    timed = [f for f in outcome.findings if "GFPGAN" in f.row]
    assert [(f.metric, f.unit, f.estimate.value, f.estimate.n) for f in timed] == [("time", "ms", 500.0, 2)]
    assert "untrained" in timed[0].row
    assert outcome.not_measured["time of CodeFormer"] == "its package is missing"


@pytest.mark.parametrize(("height", "width", "flat", "message"), [
    (96, 96, True, r"reads \['batch', 3, 96, 96\], the template .* gives \(batch, \[3, 112, 112\]\)"),
    (112, 112, False, r"gives \[64, 3, 1, 1\] for 64 faces; expected one vector a face"),
])  # fmt: skip
def test_an_embedder_of_the_wrong_shape_is_refused_before_anything_is_restored(
    evaluation: Path, tmp_path: Path, tiny_onnx: Callable[..., Path], height: int, width: int, flat: bool, message: str
) -> None:
    evaluation.write_text(BODY.replace("{onnx}", tiny_onnx(height, width, flat).name))
    with pytest.raises(ConfigError, match=message):
        run.evaluate(load_evaluation(evaluation), tmp_path / "out", device="cpu")
    assert not (tmp_path / "out").exists()


def test_an_own_template_is_scaled_to_its_size(
    evaluation: Path, tiny_onnx: Callable[..., Path], tmp_path: Path
) -> None:
    path = tiny_onnx(56, 56)
    evaluation.write_text(
        BODY.replace("{onnx}", path.name).replace("template: arcface-112", "template: arcface-112, size: [56, 56]")
    )
    judge = build_judge((config := load_evaluation(evaluation)).options.embedders[0], config)
    assert judge.embedder.template[1] == (56, 56) and abs(judge.embedder.template[0].mean() - 31.4) < 1  # type: ignore[attr-defined]


def test_faces_that_nobody_finds_are_nan_and_never_vectors(evaluation: Path) -> None:
    config = load_evaluation(evaluation)
    judge = build_judge(config.options.embedders[0], config)
    found = iter([None, np.random.default_rng(0).uniform(20, 100, (68, 2))])
    blind = Judge(judge.name, "none", judge.embedder, lambda image: next(found), "x")
    images = np.full((3, 128, 128, 3), 90, np.uint8)
    faces = load_source(config.options.sources[0], config).faces[:3]  # type: ignore[union-attr]
    rows = blind.vectors(images, faces, np.array([False, True, False]))
    assert np.isnan(rows[:2]).all() and np.isfinite(rows[2]).all() and rows.shape == (3, 3)


def test_private_pictures_never_go_into_the_repository(evaluation: Path, tmp_path: Path) -> None:
    (tmp_path / "faces").mkdir()
    evaluation.write_text(evaluation.read_text().replace("examples: true", "folder: faces"))
    with pytest.raises(EvaluationError, match="lies in the repository"):
        run.evaluate(load_evaluation(evaluation), REPOSITORY / "out" / "evaluation")


def test_mistakes_end_with_code_2_and_touch_nothing(
    evaluation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert command(["evaluate", "-c", str(evaluation), "-o", str(out), "--set", "chunks=3"]) == 2
    assert 'did you mean "chunk"?' in capsys.readouterr().err and not out.exists()
    assert command(["evaluate", "-c", str(evaluation), str(evaluation), "-o", str(out)]) == 2
    assert "same name" in capsys.readouterr().err
    assert command(["evaluate", "-c", str(evaluation), "-o", str(out), "--dry-run"]) == 0
    assert "restored at 1, restored at default, lanczos" in capsys.readouterr().out and not out.exists()


def test_a_card_gets_its_numbers_from_the_suite_and_from_no_other_weights(evaluation: Path, tmp_path: Path) -> None:
    config = load_evaluation(evaluation, ["measures=[fidelity]", "recognition=null", "conditions={clean: {}}"])
    outcome = run.evaluate(config, tmp_path / "out", device="cpu", precision="fp32")
    tables = outcome.folder / "tables.json"
    card_metrics([str(tables), "prouigan_128"])
    (entry,) = read_card("prouigan_128").metrics
    assert (
        entry["set"] == "examples, clean"
        and entry["metric"] == "Fidelity: PSNR gain, restored at 1"
        and entry["n"] == 12
    )
    assert entry["interval"][0] <= entry["value"] <= entry["interval"][1]
    record = json.loads(tables.read_text())
    header = dict(record["header"])
    for key in ("weights", "arguments"):
        record["header"] = header | {key: "prouigan_128 0123456789abcdef"}
        tables.write_text(json.dumps(record))
        with pytest.raises(ValueError, match=f"the {key} measured .* measure again"):
            card_metrics([str(tables), "prouigan_128"])


def test_what_a_card_is_built_with_is_part_of_a_rows_key(tiny_chain: Path) -> None:
    path = tiny_chain.parent / "prouigan_128.json"
    before = chain_row("x", tiny_chain, None, "cpu", "fp32").fingerprint
    card = json.loads(path.read_text())
    path.write_text(json.dumps(card | {"metrics": [{"value": 1}]}))
    assert chain_row("x", tiny_chain, None, "cpu", "fp32").fingerprint == before
    path.write_text(json.dumps(card | {"arguments": card["arguments"] | {"heads": 4}}))
    assert chain_row("x", tiny_chain, None, "cpu", "fp32").fingerprint != before


def test_one_picture_a_person_is_verified_by_group_and_times_keep_the_load_they_were_made_under(
    evaluation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rng, entries = np.random.default_rng(0), []
    for i in range(24):
        buffer = io.BytesIO()
        colour = rng.integers(0, 256, 3)
        Image.fromarray(np.full((32, 32, 3), colour, np.uint8)).save(buffer, "PNG")
        points = (np.asarray(MEAN_SHAPE) / 4).ravel().tolist()
        entries.append({"id": f"i{i}", "gender": i % 2, "image": buffer.getvalue(), "landmarks": points})
    pq.write_table(pa.Table.from_pylist(entries), tmp_path / "p.parquet")
    changes = {
        "sources": [{"name": "s", "parquet": "p.parquet"}], "conditions": {"clean": {}}, "parity": {"sources": ["s"]},
        "rivals": [], "bars": [], "measures": ["fidelity"], "plots": False,
    }  # fmt: skip
    evaluation.write_text(yaml.safe_dump(yaml.safe_load(evaluation.read_text()) | changes))
    found: list[dict[tuple[str, str, str, str], object]] = []
    for load in (3.0, 9.0):
        monkeypatch.setattr(rows.os, "getloadavg", lambda load=load: (load, 0.0, 0.0))
        outcome = run.evaluate(load_evaluation(evaluation), tmp_path / "out", device="cpu", precision="fp32")
        found.append({(f.section, f.metric, f.row, f.group): f.estimate for f in outcome.findings})
        assert found[-1]["Time and memory", "load", "restored at 1", ""].value == 3  # type: ignore[attr-defined]
    for metric in ("accuracy", "AUC"):
        groups = [found[0]["Verification", metric, "original", f"gender {g}"] for g in ("female", "male")]
        assert [e.n for e in groups] == [24, 24] and min(e.value for e in groups) > 0.8  # type: ignore[attr-defined]
        assert ("Verification", metric, "original", "gender: largest gap") in found[0]
    assert repr(found[0]) == repr(found[1]) and outcome.cache.misses == 0
    without = load_evaluation(evaluation, ["recognition.same_photograph=false"])
    outcome = run.evaluate(without, tmp_path / "out", device="cpu", precision="fp32")
    assert outcome.not_measured["Recognition on s"] == "its faces carry no identity"


def test_a_rival_is_kept_by_device_and_a_chain_of_several_cards_judges_none(
    tiny_chain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "pick_device", torch.device)
    there = [rival_row("lanczos", tmp_path, device) for device in ("cpu", "cuda")]  # type: ignore[arg-type]
    assert there[0].fingerprint != there[1].fingerprint and there[0].weights == ""
    assert chain_row("x", tiny_chain, None, "cpu", "fp32").weights == "prouigan_128"
    monkeypatch.undo()
    edited = chain_row("edited", REPOSITORY / "configs/evaluate/chains/edited.yaml", None, "cpu", "fp32")
    assert edited.weights == ""


@pytest.mark.slow
def test_the_public_evaluation_runs_anywhere(tmp_path: Path) -> None:
    assert command(["evaluate", "-c", "configs/evaluate/public.yaml", "-o", str(tmp_path), "--set", "limit=12"]) == 0
    found = json.loads((tmp_path / "public" / "tables.json").read_text())["findings"]
    gain = {
        (f["condition"], f["metric"]): f["value"]
        for f in found
        if f["row"] == "restored at 1" and f["section"] == "Fidelity"
    }
    assert gain["clean", "PSNR gain"] > 0 and gain["covered", "PSNR gain"] > 1  # bicubic must be beaten even here
