"""Sources: people from folders, trials from LFW's lists; what cannot be used is refused or counted, never guessed."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.suite.config import EvaluationConfig, EvaluationError, load_evaluation
from evaluation.suite.sources import Loaded, load_source, read_pairs
from pipeline.config import ConfigError
from stages.degradation.occluders import MEAN_SHAPE

ROOT = Path(__file__).resolve().parents[2]


def tree(folder: Path, people: dict[str, int]) -> Path:
    rng = np.random.default_rng(0)
    for person, count in people.items():
        (folder / person).mkdir(parents=True)
        for i in range(1, count + 1):
            picture = rng.integers(0, 256, (130, 128, 3), dtype=np.uint8)
            Image.fromarray(picture).save(folder / person / f"{person}_{i:04d}.png")
    return folder


def config(tmp_path: Path, source: str) -> EvaluationConfig:
    path = tmp_path / "e.yaml"
    chain = ROOT / "configs" / "bicubic.yaml"
    path.write_text(f"version: 1\nname: t\nsources: [{source}]\nconditions: {{clean: {{}}}}\nchain: {chain}\n")
    return load_evaluation(path)


def test_a_number_of_people_leaves_their_probes_and_what_they_are_compared_with(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    people = [f"p{i}" for i in range(24) for _ in range(3)] + [f"single{i}" for i in range(20)]
    rng = np.random.default_rng(0)
    rows = []
    for i, person in enumerate(people):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
        points = (np.asarray(MEAN_SHAPE) / 4).ravel().tolist()
        rows.append({"id": f"i{i}", "identity": person, "image": buffer.getvalue(), "landmarks": points})
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    path = tmp_path / "e.yaml"
    text = (
        f"version: 1\nname: t\nsources: [{{name: s, parquet: p.parquet, people: 12}}]\nconditions: {{clean: {{}}}}\n"
        f"chain: {ROOT / 'configs' / 'bicubic.yaml'}\n"
    )
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"sources\[0\]\.people: name 's' in recognition.sources too"):
        load_evaluation(path)
    path.write_text(text + "recognition: {sources: [s], probes_per_person: 2, galleries_per_probe: 1}\n")
    for overrides, expected in (([], 12), (["limit=3"], 10)):  # never fewer than one for each fold
        made = load_evaluation(path, overrides)
        source = load_source(made.options.sources[0], made)
        assert source is not None and source.pairs is not None
        every = [*source.faces, *source.references]
        assert len({face.group for face in source.faces}) == expected and len(source.faces) == 2 * expected
        assert set(source.pairs.probe) == set(range(len(source.faces)))
        assert set(source.pairs.probe) | set(source.pairs.gallery) == set(range(len(every)))
        same = [every[a].group == every[b].group for a, b in zip(source.pairs.probe, source.pairs.gallery, strict=True)]
        np.testing.assert_array_equal(same, source.pairs.same)


def load(tmp_path: Path, source: str) -> Loaded | None:
    made = config(tmp_path, source)
    return load_source(made.options.sources[0], made)


def test_a_folder_per_person_gives_people_and_counts_what_cannot_be_read(tmp_path: Path) -> None:
    folder = tree(tmp_path / "faces", {"ann": 2, "bob": 1})
    (folder / "bob" / "bob_0002.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not a picture")
    (folder / "ann" / "ann_0002.png").rename(folder / "ann" / "ann_0002.JFIF")  # an ending that the pipeline takes
    made = load(tmp_path, "{name: f, folder: faces, framing: canonical}")
    assert made is not None and [f.group for f in made.faces] == ["ann", "ann", "bob"] and made.identified
    assert made.counts == {"unreadable picture": 1}
    assert made.faces[0].image.shape == (128, 128, 3) and made.faces[0].landmarks is None


def test_a_picture_that_breaks_off_in_the_middle_is_unreadable_and_ends_nothing(tmp_path: Path) -> None:
    folder = tree(tmp_path / "faces", {"ann": 1, "bob": 1})
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(buffer, "PNG")
    data = buffer.getvalue()
    second = data.rindex(b"IDAT")  # of two: Pillow reads the header, and meets the damage when it decodes
    (folder / "ann" / "ann_0002.png").write_bytes(data[:second] + b"\1DAT" + data[second + 4 :])
    (folder / "ann" / "ann_0003.png").write_bytes(data[: len(data) // 2])
    made = load(tmp_path, "{name: f, folder: faces, framing: canonical}")
    assert made is not None and len(made.faces) == 2 and made.counts == {"unreadable picture": 2}


@pytest.mark.parametrize("broken", [True, False])
def test_an_empty_gallery_is_an_error(tmp_path: Path, broken: bool) -> None:
    (tmp_path / "faces" / "ann").mkdir(parents=True)
    if broken:
        (tmp_path / "faces" / "ann" / "ann_0001.png").write_bytes(b"")
    expected = "1 x unreadable picture" if broken else "no picture in .*one folder per person"
    with pytest.raises(EvaluationError, match=expected):
        load(tmp_path, "{name: f, folder: faces, framing: canonical}")


def test_pictures_without_a_face_are_counted_and_all_of_them_is_an_error(tmp_path: Path) -> None:
    from landmarks.backends import why_unavailable

    if why_unavailable("dlib"):
        pytest.skip("needs the extra dlib")
    from skimage.data import astronaut

    folder = tree(tmp_path / "faces", {"noise": 1})
    with pytest.raises(EvaluationError, match="1 x no face found"):
        load(tmp_path, "{name: f, folder: faces}")
    (folder / "eileen").mkdir()
    Image.fromarray(astronaut()[:300, 80:380]).save(folder / "eileen" / "eileen_0001.png")
    made = load(tmp_path, "{name: f, folder: faces}")
    assert made is not None and [f.group for f in made.faces] == ["eileen"] and made.counts == {"no face found": 1}
    assert made.faces[0].landmarks is not None and made.faces[0].landmarks.shape == (68, 2)


PAIRS = "2\t1\nann\t1\t2\nann\t1\tbob\t1\nbob\t1\t2\nann\t2\tbob\t2\n"


def test_pairs_are_read_as_lfw_writes_them(tmp_path: Path) -> None:
    tree(tmp_path / "faces", {"ann": 2, "bob": 2})
    (tmp_path / "pairs.txt").write_text(PAIRS)
    made = load(tmp_path, "{name: f, folder: faces, pairs: pairs.txt, framing: canonical}")
    assert made is not None and made.pairs is not None
    assert made.pairs.same.tolist() == [True, False, True, False] and made.pairs.fold.tolist() == [0, 0, 1, 1]
    names = [f.id for f in made.faces]
    assert (names[made.pairs.probe[1]], names[made.pairs.gallery[1]]) == ("ann/ann_0001", "bob/bob_0001")


def test_pairs_that_name_missing_files_are_an_error_that_names_them(tmp_path: Path) -> None:
    tree(tmp_path / "faces", {"ann": 1, "bob": 2})
    (tmp_path / "pairs.txt").write_text(PAIRS)
    with pytest.raises(EvaluationError, match=r"not in .*faces: line 2: ann/ann_0002; line 5: ann/ann_0002"):
        load(tmp_path, "{name: f, folder: faces, pairs: pairs.txt, framing: canonical}")


def test_trials_of_one_kind_are_an_error(tmp_path: Path) -> None:
    folder = tree(tmp_path / "faces", {"ann": 2, "bob": 2})
    for name in ("ann", "bob"):
        (folder / name / f"{name}_0002.png").write_bytes(b"")
    (tmp_path / "pairs.txt").write_text(PAIRS.replace("ann\t2\tbob\t2", "ann\t1\tbob\t1"))
    with pytest.raises(EvaluationError, match="pairs.txt leaves impostor trials only; both kinds are needed"):
        load(tmp_path, "{name: f, folder: faces, pairs: pairs.txt, framing: canonical}")


def test_a_trial_without_a_face_is_counted_and_never_compared(tmp_path: Path) -> None:
    folder = tree(tmp_path / "faces", {"ann": 2, "bob": 2})
    (folder / "ann" / "ann_0002.png").write_bytes(b"")
    (tmp_path / "pairs.txt").write_text(PAIRS)
    made = load(tmp_path, "{name: f, folder: faces, pairs: pairs.txt, framing: canonical}")
    assert made is not None and made.pairs is not None and len(made.pairs) == 2 and made.undecided_pairs == (1, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: expected the numbers"),
        ("two folds\n", "line 1: expected the numbers"),
        ("2 1\nann 1 2\n", "promises 4 trials, there are 1"),
        ("1\nann 1 x\nann 1 bob 1\n", "line 2: expected `name n1 n2`"),
        ("1\nann 1 2\nann 1 bob 1 2\n", "line 3: expected"),
    ],
)
def test_another_format_is_an_error_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "pairs.txt"
    path.write_text(text)
    with pytest.raises(EvaluationError, match=message):
        list(read_pairs(path))


def test_a_missing_optional_source_is_left_out(tmp_path: Path) -> None:
    assert load(tmp_path, "{name: f, parquet: none.parquet, optional: true}") is None
