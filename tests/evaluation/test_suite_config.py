"""Mistakes in an evaluation YAML are found together and said with file, path and nearest key."""

from pathlib import Path

import pytest

from evaluation.suite.config import load_evaluation
from pipeline.config import ConfigError

ROOT = Path(__file__).resolve().parents[2]
HEAD = """version: 1
name: t
sources: [{name: faces, examples: true}]
conditions: {clean: {}}
chain: {chain}
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "e.yaml"
    path.write_text(text.replace("{chain}", str(ROOT / "configs" / "bicubic.yaml")), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "measurs: [fidelity]\n", r'e\.yaml: measurs = .*option of the evaluation; did you mean "measures"'),
        (HEAD.replace("examples: true", "exampels: true"), r'sources\[0\]\.exampels = True.*did you mean "examples"'),
        (HEAD + "parity: {age_band: [3]}\n", r'parity\.age_band = .*did you mean "age_bands"'),
        (HEAD + "recognition: {fold: 5}\n", r'recognition\.fold = 5.*did you mean "folds"'),
        (HEAD + "bars: [{metric: PSNR, row: x, atleast: 3}]\n", r'bars\[0\]\.atleast = 3.*did you mean "at_least"'),
        (HEAD + "bars: [{metric: PSNR, row: bicubic}]\n", r"bars\[0\] = .*needs at_least or at_most"),
        (HEAD.replace("clean: {}", "clean: {noise_probabilty: 1}"),
         r'conditions\.clean\.noise_probabilty = 1.*did you mean "noise_probability"'),
        (HEAD.replace("clean: {}", "clean: benchmrk"), r"conditions\.clean.*benchmrk"),
        (HEAD + "measures: [fidelty]\n", r"measures\[0\] = 'fidelty': unknown; known: fidelity"),
        (HEAD + "fidelities: [1, 2]\n", r"fidelities\[1\] = 2.*expected 0"),
        (HEAD + "rivals: [bicubik]\n", r"rivals\[0\].*known names: bicubic"),
        (HEAD + "embedders: [{embedder: 'onnx:none.onnx', template: arcface-112}]\n",
         r"embedders\[0\]\.embedder = 'none\.onnx': .*does not exist"),
        (HEAD + "embedders: [{embedder: 'onnx:none.onnx'}]\n", r"embedders\[0\].*needs its template"),
        (HEAD + "embedders: [{embedder: 'onnx:a.onnx', template: square}]\n", r"known are arcface-112, sphere"),
        (HEAD + "embedders: [{embedder: dlib, template: arcface-112}]\n", r"template: only for an embedder onnx"),
        (HEAD + "embedders: [{embedder: dlib}, {embedder: dlib}]\n", r"embedders: the name 'dlib' is given twice"),
        (HEAD.replace("examples: true", "folder: nowhere"), r"sources\[0\]\.folder = 'nowhere': .*does not exist"),
        (HEAD.replace("examples: true", "pairs: p.txt, examples: true"), r"pairs needs the folder"),
        (HEAD.replace("examples: true", "grey: true"), r"exactly one of parquet, folder and examples; found none"),
        (HEAD + "chains: {edited: nothing.yaml}\n", r"chains\.edited: .*no such config file"),
        (HEAD + "parity: {sources: [others]}\n", r"parity\.sources\[0\] = 'others': unknown; known: faces"),
        (HEAD + "recognition: {sources: [others]}\n", r"recognition\.sources\[0\] = 'others': unknown; known: faces"),
        (HEAD + "only: {night: {rows: []}}\n", r"only\[0\] = 'night': unknown; known: clean"),
        (HEAD + "only: {clean: {measures: [cove]}}\n", r"only\.clean\.measures\[0\] = 'cove': unknown; known: fid"),
        (HEAD.replace("true}", "true, conditions: [night]}"), r"sources\[0\]\.conditions\[0\] = 'night': unknown"),
        (HEAD.replace("true}", "true, people: 20}"), r"people needs a parquet"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_evaluation(written(tmp_path, text))


def test_all_mistakes_come_together(tmp_path: Path) -> None:
    text = HEAD.replace("clean: {}", "clean: {sise: 16}") + "measurs: []\nseed: -1\n"
    with pytest.raises(ConfigError) as caught:
        load_evaluation(written(tmp_path, text))
    assert len(caught.value.problems) == 3


def test_named_folders_and_overrides_lead_paths(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "x.parquet").write_bytes(b"")
    text = HEAD.replace("examples: true", "parquet: data/x.parquet") + "folders: {data: nowhere}\n"
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match="does not exist"):
        load_evaluation(path)
    config = load_evaluation(path, ["folders.data=there", "limit=7"])
    assert config.path("data/x.parquet") == tmp_path / "there" / "x.parquet" and config.options.limit == 7


def test_the_benchmark_covers_every_face_and_clean_none(tmp_path: Path) -> None:
    config = load_evaluation(written(tmp_path, HEAD.replace("clean: {}", "clean: {}, covered: benchmark")))
    assert config.degradations["clean"].occluder_probability == 0
    assert config.degradations["covered"].occluder_probability == 1


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "evaluate").glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_evaluation_loads_and_says_what_it_is_for(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")
    try:
        config = load_evaluation(path)
    except ConfigError as error:
        if path.stem != "public" and all("does not exist" in p for p in error.problems):
            pytest.skip("needs the development data beside the repository")
        raise
    assert config.options.name == path.stem
