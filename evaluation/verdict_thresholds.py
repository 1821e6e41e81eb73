"""Where a restored face stops telling people apart: what the thresholds of `not_decidable` are measured by.

    python -m evaluation.verdict_thresholds --data lfw.parquet --embedder mobilefacenet_casia.onnx --out OUT --limit 120

Each face is thumbnailed in steps of one difficulty at a time (size, darkness, cover) and in the mixture of `degrade`,
and restored at fidelity 1. Its **identity error** is the share of all other people in the set whose original is nearer
to the restored face than its own original: 0 = always told apart, 0.5 = as good as drawing lots. A step whose error is
above `LIMIT` with its whole interval is beyond deciding; the threshold is where these steps begin. The embedder must
have had no part in training.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluation.embedders import Embedder, OnnxEmbedder
from evaluation.faces import EvaluationFace, load_faces, read_validation_list, thumbnail
from evaluation.statistics import Estimate, bootstrap
from pipeline.images import to_uint8
from pipeline.restorer import Restorer, Result, brightness
from stages.degradation import DegradationConfig, degrade_face

LIMIT = 0.25  # half-way between always right and drawing lots
SIDES_PX = (12, 13, 14, 16, 20, 24, 32)
GAINS = (1.0, 0.5, 0.25, 0.12, 0.06, 0.03)  # exposure: the thumbnail's values times this, with noise, then 8 bits
COVERED = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75)  # share of the face box
READ_NOISE = 1.5  # standard deviation in grey levels of 255: a good sensor at night
QUANTILES = 6  # groups of equal size into which the mixture is cut
# Every threshold off: here they are to be found.
OPEN = (
    "verdict.min_side_px=1", "verdict.min_brightness=0", "verdict.max_uncertainty=1", "verdict.max_occluded_fraction=1",
    "verdict.min_consistency_db=0", "verdict.min_face_score=0",
)  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One step of one difficulty: what was measured, between which values, and the identity error there."""

    measure: str
    low: float
    high: float
    error: Estimate

    @property
    def beyond(self) -> bool:
        """Whether nothing can be decided here: the whole interval lies above the limit."""
        return self.error.low > LIMIT


def identity_errors(restored: np.ndarray, originals: np.ndarray, people: Sequence[str]) -> np.ndarray:
    """(N,) share of the other people's originals that are nearer to a restored face than its own.

    Args:
        restored, originals: (N, D) unit vectors of the same faces in the same order.
        people: N names; further pictures of the same person are nobody's rival.
    """
    similarity = restored @ originals.T
    own = similarity.diagonal()[:, None]
    names = np.asarray(people)
    rival = names[:, None] != names[None]
    return ((similarity > own) & rival).sum(1) / np.maximum(rival.sum(1), 1)


def thumbnails(faces: Sequence[EvaluationFace]) -> Iterator[tuple[str, float, list[np.ndarray]]]:
    """Measure, nominal value and the thumbnails of all faces, (n, n, 3) uint8, step by step."""
    for side in SIDES_PX:
        yield "side_px", side, [thumbnail(face.image, size=side) for face in faces]
    for gain in GAINS:
        noisy = []
        for face in faces:
            plain = thumbnail(face.image).astype(np.float64) * gain
            noise = face.rng.normal(0, READ_NOISE, plain.shape[:2])[..., None]
            noisy.append(np.clip(np.rint(plain + noise), 0, 255).astype(np.uint8))
        yield "brightness", gain, noisy
    for share in COVERED:
        config = DegradationConfig.clean(occluder_probability=float(share > 0), coverage=(share, share))
        made = [degrade_face(face.image, face.landmarks, face.rng, config).lq for face in faces]
        yield "occluded_fraction", share, [to_uint8(lq) for lq in made]
    made = [degrade_face(face.image, face.landmarks, face.rng, DegradationConfig()).lq for face in faces]
    yield "uncertainty", 0.0, [to_uint8(lq) for lq in made]


def value_of(measure: str, picture: np.ndarray, result: Result) -> float:
    """What the verdict looks at, for one restored face."""
    if measure == "side_px":
        return float(min(picture.shape[:2]))
    if measure == "brightness":
        return brightness(picture)
    if measure == "occluded_fraction":
        return float(result.occluded_fraction or 0.0)
    return float(np.mean(result.uncertainty)) if result.uncertainty is not None else 0.0


def measure_steps(faces: Sequence[EvaluationFace], restorer: Restorer, embedder: Embedder) -> list[Step]:
    """Identity errors of every step; the mixture in groups of rising uncertainty."""
    people, points = [face.group for face in faces], [np.asarray(face.landmarks) for face in faces]
    originals = embedder([face.image for face in faces], points)
    steps = []
    for measure, _, pictures in thumbnails(faces):
        results = restorer.restore(pictures)
        images = [_rgb(result) for result in results]
        errors = identity_errors(embedder(images, points), originals, people)
        values = np.array([value_of(measure, p, r) for p, r in zip(pictures, results, strict=True)])
        groups = [np.arange(len(faces))]
        if measure == "uncertainty":
            groups = [g for g in np.array_split(np.argsort(values, kind="stable"), QUANTILES) if len(g)]
        steps += [
            Step(measure, float(values[g].min()), float(values[g].max()),
                 bootstrap(errors[g], clusters=np.asarray(people)[g]))
            for g in groups
        ]  # fmt: skip
    return steps


def _rgb(result: Result) -> np.ndarray:
    if result.image is None:
        raise ValueError(f"{result.source}: no result: {result.error or result.reason}")
    return np.repeat(result.image[..., None], 3, axis=2) if result.image.ndim == 2 else result.image


def thresholds(steps: Sequence[Step]) -> dict[str, float | None]:
    """Per measure the value at which the steps beyond deciding begin, on the careful side: half-way between the last
    step that can be decided and the first that cannot. None where every step can be decided."""
    found: dict[str, float | None] = {}
    for measure in dict.fromkeys(step.measure for step in steps):
        rising = measure in ("occluded_fraction", "uncertainty")  # harder as it grows
        own = sorted((s for s in steps if s.measure == measure), key=lambda s: s.low, reverse=not rising)
        middle = [(s.low + s.high) / 2 for s in own]
        first = next((i for i, s in enumerate(own) if all(later.beyond for later in own[i:])), None)
        found[measure] = None if first is None else round((middle[first] + middle[max(first - 1, 0)]) / 2, 3)
    return found


def to_markdown(steps: Sequence[Step], found: dict[str, float | None]) -> str:
    """A table of the steps and the thresholds under it."""
    rows = [
        "| measure | from | to | identity error | 95 % interval | n | beyond deciding |",
        "|---|---|---|---|---|---|---|",
    ]
    for s in steps:
        e = s.error
        interval = f"{e.low:.3f}-{e.high:.3f}"
        rows.append(
            f"| {s.measure} | {s.low:.3f} | {s.high:.3f} | {e.value:.3f} | {interval} | {e.n} | {'yes' * s.beyond} |"
        )
    said = [f"- {name}: {'no step is beyond deciding' if value is None else value}" for name, value in found.items()]
    return "\n".join([*rows, "", f"Thresholds at an identity error of {LIMIT}:", *said, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write OUT/verdict_thresholds.json and .md; returns the exit code."""
    parser = argparse.ArgumentParser(prog="evaluation.verdict_thresholds", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="Parquet file of faces with landmarks")
    parser.add_argument("--embedder", type=Path, required=True, help="ONNX file, sphereface template 112x96")
    parser.add_argument("--config", default="configs/cctv_restore.yaml", help="chain (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, help="faces (default: all of the validation part)")
    given = parser.parse_args(arguments)
    faces = [f for f in load_faces(given.data, read_validation_list(), limit=given.limit) if f.landmarks is not None]
    restorer = Restorer.from_config(given.config, fidelity=1.0, overrides=OPEN)
    steps = measure_steps(faces, restorer, OnnxEmbedder(given.embedder, threads=1))
    found = thresholds(steps)
    text = to_markdown(steps, found)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "verdict_thresholds.md").write_text(text, encoding="utf-8")
    rows = [{"measure": s.measure, "low": s.low, "high": s.high, "identity_error": vars(s.error)} for s in steps]
    plain = {"data": given.data.name, "faces": len(faces), "limit": LIMIT, "thresholds": found, "steps": rows}
    (given.out / "verdict_thresholds.json").write_text(json.dumps(plain, indent=1), encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
