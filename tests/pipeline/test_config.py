"""Mistakes in a chain are all found before anything is touched, and said with file, path and nearest key."""

import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from pipeline.config import ConfigError, apply_override, find_config, load_chain, parse_yaml
from stages import STAGES
from stages.base import Precision, Stage, StageConfig
from stages.batch import FaceBatch


class NeedsLandmarks(Stage[StageConfig]):
    """A stage for tests that cannot stand first."""

    Config = StageConfig
    reads: ClassVar[frozenset[str]] = frozenset({"landmarks"})
    writes: ClassVar[frozenset[str]] = frozenset({"image"})

    def __init__(self, config: StageConfig, device: torch.device, precision: Precision) -> None:
        super().__init__(config, device, precision)

    def __call__(self, batch: FaceBatch) -> FaceBatch:
        return batch


class NeedsWeights(NeedsLandmarks):
    """A stage for tests whose weights are nowhere."""

    reads: ClassVar[frozenset[str]] = frozenset({"image"})

    @classmethod
    def cards(cls, config: StageConfig) -> dict[str, str]:
        return {"weights": "not_there_v9"}


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "chain.yaml"
    path.write_text(text, encoding="utf-8")
    return path


EDIT = {"stage": "coogan", "attributes": {"smiling": 1.0}}
HEAD = "version: 1\nname: t\nstages:\n  - stage: resample\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            HEAD + "    sise: 3\n",
            r'chain\.yaml: stages\[0\]\.sise = 3: unknown option of "resample"; did you mean "size"\?',
        ),
        (HEAD + "    size: big\n", r"chain\.yaml: stages\[0\]\.size = 'big': .*integer"),
        (HEAD + "    size: 0\n", r"stages\[0\]\.size = 0: .*greater than or equal to 1"),
        (HEAD + "    method: cubic\n", r"stages\[0\]\.method = 'cubic': .*bicubic"),
        (HEAD + "seeed: 3\n", r'seeed = 3: unknown option of the chain; did you mean "seed"\?'),
        (HEAD + "seed: yes\n", r"seed = True: .*integer"),
        (HEAD + "verdict: {min_face_scor: 1}\n", r'verdict\.min_face_scor = 1: .*did you mean "min_face_score"'),
        ("version: 2\nname: t\nstages: [{stage: resample}]\n", r"version = 2: .*1"),
        ("name: t\nstages: [{stage: resample}]\n", r"version: the chain needs this option"),
        ("version: 1\nname: t\nstages: [{stage: resampel}]\n", r"stages\[0\]\.stage = 'resampel': .*\"resample\"\?"),
        ("version: 1\nname: t\nstages: [{size: 3}]\n", r"stages\[0\]\.stage = None: unknown stage; known: "),
        ("version: 1\nname: t\nstages: []\n", r"stages = \[\]: .*at least 1"),
        ("version: 1\nname: t\nstages: {stage: resample}\n", r"stages = .*valid array"),
        ("- 1\n", r"expected a mapping"),
        ("version: 1\n  name: t\n", r"line 2.*not valid YAML"),
        (HEAD + "seed: 1\nseed: 2\n", r"line 6.*'seed' is given twice"),
        (HEAD + "  - {stage: coogan, attributes: {age: 1, age: -1}}\n", r"line 5.*'age' is given twice"),
        (HEAD + "seed: !!python/object/apply:os.system ['true']\n", r"not valid YAML"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_chain(written(tmp_path, text))


def test_all_mistakes_come_together(tmp_path: Path) -> None:
    text = "version: 3\nname: t\nstages:\n  - {stage: resample, sise: 3}\n  - {stage: nosuch}\nother: 1\n"
    with pytest.raises(ConfigError) as caught:
        load_chain(written(tmp_path, text))
    assert len(caught.value.problems) == 4


def test_order_weights_and_attributes_are_named_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "weighty", NeedsWeights)
    edit = {"stage": "coogan", "attributes": {"hat": 1.0}}
    stages = [{"stage": "weighty"}, edit, {"stage": "resample", "size": 32}, EDIT]
    chain = {"version": 1, "name": "t", "stages": stages, "video": {}}
    with pytest.raises(ConfigError) as caught:
        load_chain(chain, fidelity=0.5)
    said = caught.value.problems
    for place, reason in (
        ("config: -w 0.5", "no stage of this chain has a fidelity"),
        ("config: video", "begins with"),
        ("config: stages[0].weights = 'not_there_v9'", "no card"),
        ("config: stages[1].attributes", "have not learned hat; they know smiling, "),
        ("config: stages[3].stage = 'coogan'", "would get 32 px from stages[2] (resample)"),
    ):
        assert [line for line in said if line.startswith(place) and reason in line], (place, said)
    assert len(said) == 5


def test_a_broken_card_is_told_field_by_field(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REVISAGE_WEIGHTS", str(tmp_path))
    monkeypatch.setitem(STAGES, "weighty", NeedsWeights)
    chain, path = {"version": 1, "name": "t", "stages": [{"stage": "weighty"}]}, tmp_path / "not_there_v9.json"
    card = {"name": "n", "architecture": 3, "arguments": {}, "input": {}, "data": {}, "recipe": {}, "metrics": [],
            "sha256": "0", "licence": "none", "limitz": ""}  # fmt: skip
    path.write_text(json.dumps(card))
    with pytest.raises(ConfigError) as caught:
        load_chain(chain)
    where = f"config: stages[0].weights = 'not_there_v9': {path}"
    assert sorted(caught.value.problems) == [
        f"{where}: architecture = 3: Input should be a valid string",
        f"{where}: limits: the card needs this option and it is missing",
        f"{where}: limitz = '': unknown option of the card; did you mean \"limits\"?",
    ]
    for data in (b"{", b"\xff\xfe"):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match="not a weight card: "):
            load_chain(chain)


def test_a_stage_that_reads_what_nobody_wrote_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "needy", NeedsLandmarks)
    chain = {"version": 1, "name": "t", "stages": [{"stage": "resample"}, {"stage": "needy"}]}
    with pytest.raises(
        ConfigError, match=r"stages\[1\]\.stage = 'needy': reads \"landmarks\", which no earlier stage writes"
    ):
        load_chain(chain)


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([{"stage": "resample", "size": 128}, {"stage": "prouigan"}], "takes face crops of 12 to 64 px"),
        ([{"stage": "prouigan"}, {"stage": "prouigan"}], r"would get 128 px from stages\[0\] \(prouigan\)"),
        ([{"stage": "resample", "size": 32}, {"stage": "upscale"}], "would get 32 px"),
        (
            [{"stage": "prouigan"}, {"stage": "upscale", "size": 1024}],
            "takes face crops of 171 to 1023 px a side.* 128 px",
        ),
        ([{"stage": "resample", "size": 512}, {"stage": "upscale", "size": 512}], "takes face crops of 86 to 511 px"),
        ([{"stage": "resample", "size": 48}, EDIT], r"'coogan': takes pictures of 64 px or more a side.* 48 px"),
        ([{"stage": "degrade"}, EDIT], "would get 16 px"),
        ([{"stage": "detect", "size": 16, "backend": "boxes"}, EDIT], "would get 16 px"),
        ([EDIT, {"stage": "prouigan"}], r"'prouigan': takes .* 64 px or more from stages\[0\] \(coogan\)"),
    ],
)
def test_a_stage_that_takes_no_pictures_of_the_size_before_it_is_refused(
    stages: list[dict[str, object]], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.config.read_checked", lambda name: None)  # with or without the shipped weights
    with pytest.raises(ConfigError, match=rf"stages\[1\]\.stage = .*{said}"):
        load_chain({"version": 1, "name": "t", "stages": stages})
    fitting = [{"stage": "resample", "size": 48}, {"stage": "prouigan"}, {"stage": "upscale"}]
    assert len(load_chain({"version": 1, "name": "t", "stages": fitting}).stages) == 3


def test_the_size_of_pictures_is_followed_through_stages_that_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.config.read_checked", lambda name: None)
    aspect = {"stage": "aspect", "pixel_aspect": 1.5}
    with pytest.raises(ConfigError, match=r"stages\[3\].*'prouigan': .*64 px or more from stages\[0\] \(coogan"):
        load_chain({"version": 1, "name": "t", "stages": [EDIT, {"stage": "levels"}, aspect, {"stage": "prouigan"}]})
    sound = [EDIT, {"stage": "degrade"}, {"stage": "prouigan"}, {"stage": "levels"}, EDIT, EDIT]
    assert len(load_chain({"version": 1, "name": "t", "stages": sound}).stages) == 6


def test_missing_weights_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STAGES, "weighty", NeedsWeights)
    with pytest.raises(ConfigError, match=r"stages\[0\]\.weights = 'not_there_v9': no card"):
        load_chain({"version": 1, "name": "t", "stages": [{"stage": "weighty"}]})


def test_tampered_weights_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from torch import nn

    from stages.networks import NETWORKS
    from stages.weights import save_weights

    monkeypatch.setenv("REVISAGE_WEIGHTS", str(tmp_path))
    monkeypatch.setitem(NETWORKS, "tiny", lambda: nn.Linear(2, 2))
    card = {
        "architecture": "tiny", "arguments": {}, "input": {}, "data": {}, "recipe": {}, "metrics": [],
        "licence": "none", "limits": "none",
    }  # fmt: skip
    path = save_weights("not_there_v9", nn.Linear(2, 2), card)
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    monkeypatch.setitem(STAGES, "weighty", NeedsWeights)
    with pytest.raises(ConfigError, match=r"stages\[0\]\.weights = 'not_there_v9': .*SHA-256 is"):
        load_chain({"version": 1, "name": "t", "stages": [{"stage": "weighty"}]})


def test_overrides_are_read_as_yaml() -> None:
    raw = {"stages": [{"stage": "resample"}]}
    apply_override(raw, "stages.0.size=64")
    apply_override(raw, "stages[0].method=area")
    apply_override(raw, "verdict.min_face_score=0.25")
    assert raw == {"stages": [{"stage": "resample", "size": 64, "method": "area"}], "verdict": {"min_face_score": 0.25}}


@pytest.mark.parametrize("assignment", ["stages.7.size=3", "stages.0.size", "name.x.y=1", "=3"])
def test_an_override_that_leads_nowhere_is_refused(assignment: str) -> None:
    chain = {"version": 1, "name": "t", "stages": [{"stage": "resample"}]}
    with pytest.raises(ConfigError, match="--set"):
        load_chain(chain, overrides=[assignment])


def test_fidelity_without_a_stage_that_has_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="no stage of this chain has a fidelity"):
        load_chain("configs/bicubic.yaml", fidelity=0.3)


def test_a_resolved_chain_loads_to_itself() -> None:
    config = load_chain("configs/bicubic.yaml")
    assert load_chain(config.resolved()).digest() == config.digest()


def test_a_config_that_is_not_there_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r'did you mean "configs/bicubic\.yaml"'):
        load_chain("configs/bicubik.yaml")
    with pytest.raises(ConfigError, match=r'did you mean "configs/train/prouigan\.yaml"'):
        find_config("configs/train/prouigna.yaml")


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("configs/**/*.yaml")), ids=lambda p: p.name)
def test_every_shipped_config_is_sound(path: Path) -> None:
    raw = parse_yaml(path.read_text(encoding="utf-8"), path.name)
    assert path.read_text(encoding="utf-8").startswith("# "), "the first line says what it is for"
    if "stages" in raw and all(s["stage"] in STAGES for s in raw["stages"]):
        load_chain(path, check_weights=False)
