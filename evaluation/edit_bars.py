"""The bars of the editor: is the edit there, is nothing else changed, is it the same person, are there no seams.

    python -m evaluation.edit_bars --data OMI.parquet --out OUT [--classifier attributes] [--limit 40] [--strength 1]

Unseen faces at 768 px are edited by the stage, one attribute at a time towards its other side, and read by a classifier
that no training used. A flip counts among the faces that were not there before; attributes that were not
asked for count as changed where the classifier's sure answer (over .7 or under .3) goes to the other side; the share is
of the sure answers of all faces. Identity is dlib's similarity to the source, as a share of the unedited
reconstruction's, in both readings: the cosine, and the stricter 1 - distance. Seams compare gradients on the borders of
patches with those two pixels beside them, in the change itself. Needs the extras `dlib` and `evaluate`.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from evaluation.cards import cards_measured
from evaluation.commands import add_precision, command_parser
from evaluation.editing import FACE_PX, reconstruction_db
from evaluation.faces import large_faces, read_validation_list
from evaluation.metrics import psnr
from evaluation.restoring import AnyPrecision, as_batch, as_tensor, pictures
from evaluation.statistics import Direction, Estimate, Finding, bootstrap, write_tables
from evaluation.trait_reader import TraitReader
from landmarks.backends.base import BackendUnavailable
from pipeline.chain import pick_device, pick_precision
from stages.coogan import Coogan, CooganConfig, TensorRows
from stages.networks.coogan import sample_place

JUDGED = ("smiling", "age", "eyeglasses", "masculine", "beard")
FLIP_BAR, OTHERS_BAR, IDENTITY_BAR, OUTSIDE_BAR = 0.80, 0.10, 0.85, 45.0
RECONSTRUCTION_BAR, SEAM_BAR, AGREE_BAR = 35.0, 0.03, 40.0
IDENTITY_OF = ("smiling", "eyeglasses")
COSINE, DISTANCE = "cosine", "1 - distance"
LFW_PAIRS = {  # means over some thousand pairs of LFW
    COSINE: "two photographs of one person .95, of strangers .84",
    DISTANCE: "two photographs of one person .57, of strangers .20",
}
YOUNG, OLD = 35.0, 50.0  # years: an age edit counts as there where it crosses 10 years towards its side


def read(reader: TraitReader, faces: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Answers by trait: chances for flags, years for numbers; faces (H, W, 3) uint8, canonical."""
    answers = reader.read([np.asarray(Image.fromarray(f).resize((128, 128), Image.Resampling.BOX)) for f in faces])
    return {name: answers[name] for name in (*reader.flags, *reader.numbers)}


def stage_for(attributes: dict[str, float], weights: str, precision: AnyPrecision, **options: Any) -> Coogan:
    """The editor with the weights of a card."""
    device = pick_device("cpu")
    config = CooganConfig(attributes=attributes, weights=weights, **options)
    return Coogan(config, device, pick_precision(precision, device))


def flipped(name: str, before: np.ndarray, after: np.ndarray, sign: np.ndarray) -> np.ndarray:
    """(n,) bool: the edit is there. Flags cross one half; age moves ten years towards `sign`."""
    return (after - before) * sign >= 10 if name == "age" else (after > 0.5) == (sign > 0)


def others_changed(name: str, before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> Estimate:
    """Share of the sure answers about other flags, of all faces, that went to the other side; n counts sure answers."""
    others = [flag for flag in before if flag not in (name, "age")]
    was, now = (np.array([answers[flag] for flag in others]) for answers in (before, after))  # (flags, faces)
    sure = (was > 0.7) | (was < 0.3)
    *_, face = np.nonzero(sure)
    return bootstrap(((was > 0.5) != (now > 0.5))[sure], clusters=face)


def seam_excess(change: np.ndarray, borders: Sequence[int]) -> float:
    """Mean gradient of a change (H, W, 3) across lines `borders` over that two pixels beside them, less 1; the change
    itself is looked at, so that the picture's own edges do not hide a seam."""
    across = np.abs(np.diff(change.astype(np.float64), axis=1)).mean((0, 2))  # [x] between x and x + 1
    on = np.mean([across[b - 1] for b in borders])
    beside = np.mean([across[b - 1 + d] for b in borders for d in (-3, -2, 2, 3)])
    return float(on / max(beside, 1e-9) - 1)


def measure(
    faces: Sequence[np.ndarray], weights: str, reader: TraitReader, precision: AnyPrecision, strength: float = 1.0
) -> list[Finding]:
    """Every finding; see the module's text."""
    images = [as_tensor(f) for f in faces]
    before = read(reader, faces)
    findings: list[Finding] = []

    def add(
        section: str, metric: str, text: str, estimate: Estimate, direction: Direction, bar: float, unit: str = "",
        version: int = 1,
    ) -> None:  # fmt: skip
        findings.append(
            Finding(section, "omi", metric, text, estimate, direction, unit, bar, version=version, weights=weights)
        )

    editor = stage_for({"age": 1.0}, weights, precision)
    add("reconstruction", "PSNR, no change asked", "both paths over the whole face, no region, 768 px",
        bootstrap(np.array([reconstruction_db(editor.editor.network.float(), [f]) for f in faces])), "up",
        RECONSTRUCTION_BAR, "dB")  # fmt: skip
    for name in JUDGED:
        if name not in before or name not in editor.editor.network.attributes:
            continue
        there = before[name] > 0.5 * (OLD + YOUNG) if name == "age" else before[name] > 0.5
        sign = np.where(there, -1.0, 1.0)
        stages = {s: stage_for({name: s * strength}, weights, precision) for s in (-1.0, 1.0)}
        outside, made = [], []
        for face, image, side in zip(faces, images, sign, strict=True):
            stage = stages[float(side)]
            made += pictures(stage(as_batch(image)).image)
            plan = stage.editor.plan(TensorRows(image[0]))
            region = sample_place(plan.region, plan.matrix[None], (FACE_PX, FACE_PX))[0, 0].numpy() > 0
            outside.append(psnr(made[-1], face, ~region) if not region.all() else np.nan)
        after = read(reader, made)
        add(name, "edit is there", "share of faces whose answer went to the side asked for",
            bootstrap(flipped(name, before[name], after[name], sign)), "up", FLIP_BAR)  # fmt: skip
        add(name, "other attributes changed",
            "share of other sure answers, of all faces, that went to the other side; n = sure answers",
            others_changed(name, before, after), "down", OTHERS_BAR, version=2)  # fmt: skip
        add(name, "outside the region", "PSNR of pixels the edit must not touch",
            bootstrap(np.array([v for v in outside if np.isfinite(v)])), "up", OUTSIDE_BAR, "dB")  # fmt: skip
        if name in IDENTITY_OF and (kept := identity_kept(faces, made)) is not None:
            for reading, values in kept.items():
                text = f"dlib descriptors, edited to source, over the unedited face's; {LFW_PAIRS[reading]}"
                add(name, f"identity, {reading}", text, bootstrap(values), "up", IDENTITY_BAR)
    findings += _seams(faces, weights, precision)
    return findings


def identity_kept(faces: Sequence[np.ndarray], made: Sequence[np.ndarray]) -> dict[str, np.ndarray] | None:
    """dlib's similarity of edited to source, by reading; the unedited answer is the source itself, similarity 1.
    Faces that dlib does not find are left out; None without dlib."""
    from evaluation.dlib_descriptor import dlib_descriptor

    cosine, distance = [], []
    try:
        for face, edited in zip(faces, made, strict=True):
            a, b = dlib_descriptor(face), dlib_descriptor(edited)
            if a is not None and b is not None:
                cosine.append(float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b))))
                distance.append(1 - float(np.linalg.norm(a - b)))
    except BackendUnavailable as error:
        print(f"left out: identity: {error}", file=sys.stderr)
        return None
    return {COSINE: np.array(cosine), DISTANCE: np.array(distance)} if cosine else None


def _seams(faces: Sequence[np.ndarray], weights: str, precision: AnyPrecision) -> list[Finding]:
    """Patches of 256 px against the frame in one piece, and gradients across the middle of their overlaps."""
    wanted = {"age": 1.0}
    parts = stage_for(wanted, weights, precision, patch=256, overlap=64)
    whole = stage_for(wanted, weights, precision, patch=FACE_PX, overlap=64)
    axis = parts.editor._axis(FACE_PX)
    # Both ends of every blend: where one patch begins to count, and where the other ceases to.
    borders = [s + e for s in axis.starts[1:] for e in (axis.margin, axis.overlap - axis.margin)]
    agree, excess = [], []
    for face in faces:
        image = as_tensor(face)
        a, b = parts(as_batch(image)).image, whole(as_batch(image)).image
        error = float((a - b).square().mean())
        agree.append(min(100.0, -10 * np.log10(max(error, 1e-10))))
        change = (a - image)[0].permute(1, 2, 0).numpy()
        excess += [seam_excess(change, borders), seam_excess(change.transpose(1, 0, 2), borders)]
    return [
        Finding("seams", "omi", "patches and one piece agree", "PSNR at 768 px", bootstrap(np.array(agree)), "up", "dB",
                AGREE_BAR, weights=weights),
        Finding("seams", "omi", "gradient across borders", "mean over that beside them, less 1, of the change",
                bootstrap(np.array(excess)), "down", "", SEAM_BAR, weights=weights),
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit code 0 where every bar is reached."""
    parser = command_parser("edit_bars", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="Parquet of large faces (OMI)")
    parser.add_argument("--out", type=Path, required=True, help="where edit_bars.json and .md go")
    parser.add_argument("--weights", default="coogan_768", help="card of the editor (default: %(default)s)")
    parser.add_argument("--classifier", default="attributes", help="card of a classifier no training used")
    parser.add_argument("--limit", type=int, default=40, help="faces (default: %(default)s)")
    parser.add_argument("--strength", type=float, default=1.0, help="of the edits (default: %(default)s)")
    add_precision(parser)
    args = parser.parse_args(arguments)
    try:
        reader = TraitReader(args.classifier)
    except ValueError as error:
        parser.error(str(error))
    faces = large_faces(args.data, FACE_PX, args.limit, enlarged=True)
    if not faces:
        parser.error(f"{args.data}: none of its faces is in the list of {len(read_validation_list())} held-out ones")
    findings = measure(faces, args.weights, reader, args.precision, args.strength)
    header = {"faces": len(faces), "strength": args.strength} | cards_measured([args.weights])
    write_tables(findings, header, args.out, "edit_bars", "Attribute editing at 768 px")
    print((args.out / "edit_bars.md").read_text(encoding="utf-8"), end="")
    return 0 if all(f.passed is not False for f in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
