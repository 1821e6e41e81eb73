"""The restorer against its bars, on faces never trained on: fidelity, identity, landmarks, occlusion, uncertainty.

    python -m evaluation.restorer_bars --data DIR [--more DIR] --out OUT [--config configs/cctv_restore.yaml]
                                       [--fidelity 1] [--limit N] [--network-only]

Writes OUT/bars.json and OUT/bars.md (every number with n, interval, definition, bar), OUT/per_face.jsonl (the values of
each face, for other groupings) and three picture grids. Faces are real people: OUT must not lie in a repository.
"""

import argparse
import json
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image

from evaluation.covered import RealFaces, load_real, real_findings
from evaluation.dlib_descriptor import DlibEmbedder
from evaluation.embedders import Embedder, OnnxEmbedder
from evaluation.faces import (
    THUMBNAIL_SIZE,
    EvaluationFace,
    Kernel,
    as_rgb,
    bicubic,
    chunks,
    load_faces,
    read_validation_list,
    thumbnail,
    to_grey,
    to_uint8,
)
from evaluation.metrics import area_average, iou, lr_consistency_db, luma, nme, overlap, psnr, rank_correlation, ssim
from evaluation.recognition import probe_findings, verification_pairs
from evaluation.restoring import (
    REPOSITORY,
    Degrade,
    MakeRestore,
    Output,
    Restore,
    api_restorer,
    frozen_degradation,
    network_restorer,
    restore_all,
)
from evaluation.statistics import Estimate, Finding, bootstrap, bootstrap_groups, quantile, write_tables
from pipeline.config import load_chain
from stages.weights import read_card, weights_file

COLOUR_SETS = ("utkface", "aaf", "celeba", "celebamask", "omi", "generated", "portraits")
GREY_SET, COVERED_SETS = "lfw", ("masked", "masked_street")
GROUP_LABELS = ("age", "gender", "ethnicity")  # kept in the rows of single faces, for numbers by group
AS_FOUND_SETS = ("celeba", "street", "portraits")  # bare faces framed like the really covered ones, or nearly so
EMBEDDER_FILE = "mobilefacenet_casia.onnx"
CONSISTENCY_FACES = 100  # of each set, at the fidelities other than the main one
UNCERTAINTY_PIXELS = 200  # drawn from each face for the pooled rank correlation
MIN_REGION_PX = 64  # a covered region smaller than one input pixel is not scored on its own

# --- one face, one row -----------------------------------------------------------------------------------------------

Row = dict[str, Any]
BASELINE = "_bicubic"  # ends the name of the column that holds the same value for bicubic


def fidelity_row(prefix: str, output: Output, truth: np.ndarray, lq: np.ndarray) -> Row:
    """PSNR and SSIM on RGB and Y of restored and bicubic, under `prefix`."""
    row: Row = {}
    for name, image in (("", output.image), (BASELINE, bicubic(lq))):
        row[f"{prefix}psnr{name}"] = psnr(image, truth)
        row[f"{prefix}ssim{name}"] = ssim(image, truth)
        row[f"{prefix}psnr_y{name}"] = psnr(luma(image), luma(truth))
        row[f"{prefix}ssim_y{name}"] = ssim(luma(image), luma(truth))
    return row


def geometry_row(prefix: str, output: Output, face: EvaluationFace) -> Row:
    """Landmark error of one output, under `prefix`."""
    if output.landmarks is None or face.landmarks is None:
        return {}
    return {f"{prefix}nme": nme(output.landmarks, face.landmarks)}


def cells_covered(occlusion: np.ndarray, size: int = THUMBNAIL_SIZE) -> np.ndarray:
    """Occlusion map averaged to size x size cells, called covered above one half: (size, size) bool."""
    return area_average(occlusion, size) > 0.5


def uncertainty_row(prefix: str, output: Output, truth: np.ndarray, region: np.ndarray | None) -> Row:
    """Rank correlation of uncertainty and absolute error (mean over channels), means in and out of `region`."""
    if output.uncertainty is None:
        return {}
    uncertainty = np.asarray(output.uncertainty, np.float32)
    error = np.abs(output.image.astype(np.float32) - truth).mean(2) / 255
    row: Row = {f"{prefix}uncertainty_rho": rank_correlation(uncertainty, error)}
    if region is not None and region.any() and not region.all():
        row |= {
            f"{prefix}uncertainty_inside": float(uncertainty[region].mean()),
            f"{prefix}uncertainty_outside": float(uncertainty[~region].mean()),
        }
    return row


def clean_rows(
    faces: list[EvaluationFace], restore: Restore, kernel: Kernel, grey: bool, prefix: str = "clean_"
) -> list[Row]:
    """Every measure of undamaged thumbnails, one row a face."""
    truths = [as_rgb(to_grey(f.image)) if grey else f.image for f in faces]
    lqs = [thumbnail(to_grey(f.image) if grey else f.image, kernel) for f in faces]
    rows = []
    for face, truth, lq, output in zip(faces, truths, lqs, restore_all(restore, lqs), strict=True):
        row = {f"{prefix}refused": output.refused, f"{prefix}occluded_fraction": output.occluded_fraction}
        row |= fidelity_row(prefix, output, truth, lq) | geometry_row(prefix, output, face)
        row |= uncertainty_row(prefix, output, truth, None)
        if not output.refused:
            row[f"{prefix}lr_consistency_db"] = lr_consistency_db(output.image, as_rgb(lq))
        if output.occlusion is not None:
            row[f"{prefix}false_cover"] = float(cells_covered(output.occlusion).mean())
        rows.append(row)
    return rows


def covered_rows(
    faces: list[EvaluationFace], restore: Restore, degrade: Degrade, grey: bool, pixels: list[np.ndarray]
) -> list[Row]:
    """Every measure of covered, degraded thumbnails, one row a face; adds (m, 2) uncertainty and error to `pixels`."""
    degraded = [degrade(f) for f in faces]
    truths = [as_rgb(to_grey(d.gt)) if grey else d.gt for d in degraded]
    lqs = [to_grey(to_uint8(d.lq)) if grey else to_uint8(d.lq) for d in degraded]
    rows = []
    for face, truth, made, lq, output in zip(faces, truths, degraded, lqs, restore_all(restore, lqs), strict=True):
        region = made.mask > 0.5
        row: Row = {"covered_refused": output.refused, "occluder": made.occluder}
        row |= fidelity_row("covered_", output, truth, lq) | geometry_row("covered_", output, face)
        if region.sum() >= MIN_REGION_PX:
            row["under_psnr"] = psnr(output.image, truth, region)
            row[f"under_psnr{BASELINE}"] = psnr(bicubic(lq), truth, region)
        if output.occlusion is not None and (cells := made.mask_lq > 0.5).any():
            found = cells_covered(output.occlusion, len(cells))
            row["mask_iou"] = iou(found, cells)
            row["mask_both"], row["mask_either"] = overlap(found, cells)
        row |= uncertainty_row("covered_", output, truth, region)
        if output.uncertainty is not None:
            drawn = face.rng.integers(0, truth.shape[0] * truth.shape[1], UNCERTAINTY_PIXELS)
            error = np.abs(output.image.astype(np.float32) - truth).mean(2).ravel()[drawn]
            pixels.append(np.stack([np.asarray(output.uncertainty, np.float32).ravel()[drawn], error], axis=1))
        rows.append(row)
    return rows


def degraded_bare_rows(faces: list[EvaluationFace], restore: Restore, degrade: Degrade, grey: bool) -> list[Row]:
    """Cells of bare but degraded faces called covered: noise and blocks are no occluder."""
    lqs = [to_uint8(degrade(f).lq) for f in faces]
    outputs = restore_all(restore, [to_grey(lq) if grey else lq for lq in lqs])
    return [
        {} if o.occlusion is None else {"degraded_bare_false_cover": float(cells_covered(o.occlusion).mean())}
        for o in outputs
    ]


# --- findings --------------------------------------------------------------------------------------------------------


class Rows:
    """Rows of one set, or of several, as columns."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows

    def __getitem__(self, key: str) -> np.ndarray:
        """The finite values of a column; faces without it are left out."""
        values = np.array([row.get(key, np.nan) for row in self.rows], np.float64)
        return values[np.isfinite(values)]

    def paired(self, *keys: str) -> np.ndarray:
        """(n, k) values of the faces that have all of `keys`."""
        rows = [[row.get(key, np.nan) for key in keys] for row in self.rows]
        table = np.array(rows, np.float64).reshape(-1, len(keys))
        return table[np.isfinite(table).all(1)]

    def gain(self, key: str) -> Estimate:
        """Mean of `key` minus the same for bicubic, with its interval."""
        return bootstrap(self.paired(key, key + BASELINE), lambda means: means[:, 0] - means[:, 1])


CLEAN, COVERED = "Clean 16x16", "Covered 16x16, noise and JPEG, blind"
# section, metric, column, bar on the gain at fidelity 1, unit, what is measured
GAINS: tuple[tuple[str, str, str, float | None, str, str], ...] = (
    (CLEAN, "PSNR gain", "clean_psnr", 2.6, "dB", "RGB; thumbnail by area averaging"),
    (CLEAN, "SSIM gain", "clean_ssim", 0.12, "", "RGB; thumbnail by area averaging"),
    (CLEAN, "PSNR-Y gain", "clean_psnr_y", None, "dB", "BT.601 luma 16-235; thumbnail by area averaging"),
    (CLEAN, "SSIM-Y gain", "clean_ssim_y", None, "", "BT.601 luma 16-235; thumbnail by area averaging"),
    (CLEAN, "PSNR gain, bicubic kernel", "cubic_psnr", None, "dB", "RGB; thumbnail by antialiased bicubic"),
    (CLEAN, "SSIM gain, bicubic kernel", "cubic_ssim", None, "", "RGB; thumbnail by antialiased bicubic"),
    (COVERED, "PSNR gain", "covered_psnr", 5.0, "dB", "RGB, whole face; frozen benchmark, seeded by face"),
    (COVERED, "PSNR gain under the occluder", "under_psnr", 7.5, "dB", "RGB, where the occluder's alpha is above 1/2"),
    (COVERED, "SSIM gain", "covered_ssim", None, "", "RGB, whole face"),
    (COVERED, "PSNR-Y gain", "covered_psnr_y", None, "dB", "BT.601 luma 16-235, whole face"),
)
LEVELS = (
    (CLEAN, "PSNR", "clean_psnr", "dB"), (CLEAN, "SSIM", "clean_ssim", ""),
    (COVERED, "PSNR", "covered_psnr", "dB"), (COVERED, "SSIM", "covered_ssim", ""),
)  # fmt: skip


def fidelity_findings(name: str, rows: Rows, colour: bool, main_fidelity: float) -> list[Finding]:
    """Bars and plain values of clean and covered restoration of one set; bars hold for colour sets at fidelity 1."""
    found: list[Finding] = []
    at, judged = f"restored at fidelity {main_fidelity:g}", colour and main_fidelity == 1
    for section, metric, column, bar, unit, what in GAINS:
        definition = f"mean over faces of ({at} - bicubic) at 128x128, no border crop; {what}"
        found.append(Finding(section, name, metric, definition, rows.gain(column), "up", unit, bar if judged else None))
    for section, metric, column, unit in LEVELS:
        plain = rows[column + BASELINE]
        baseline = float(plain.mean()) if len(plain) else None
        found.append(Finding(section, name, metric, f"{at}, RGB", bootstrap(rows[column]), "up", unit, None, baseline))
    for column in sorted({k for row in rows.rows for k in row if k.startswith("at_") and k.endswith("_psnr")}):
        metric, definition = f"PSNR gain at {column.split('_')[1]}", "as PSNR gain, at another fidelity"
        found.append(Finding(CLEAN, name, metric, definition, rows.gain(column), "up", "dB"))
    for section, column in ((CLEAN, "clean_refused"), (COVERED, "covered_refused")):
        definition = "share of faces without a picture; they count as bicubic"
        found.append(Finding(section, name, "refused", definition, bootstrap(rows[column]), "down"))
    return [f for f in found if f.estimate.n]


def structure_findings(name: str, rows: Rows) -> list[Finding]:
    """Landmarks, occlusion, consistency and uncertainty of one set."""
    points = "mean distance of 68 points to dlib's on the original over its outer eye corners' distance, per cent"
    cells = "cells of 16x16; predicted map averaged to cells, both sides called covered above one half"
    bare = "share of the cells of bare faces called covered, per cent"
    mean_cells = f"mean over covered faces; {cells}"
    rho = "Spearman of uncertainty and absolute error (mean over RGB) over the pixels of a face, mean over faces"
    pooled = bootstrap(rows.paired("mask_both", "mask_either"), lambda m: m[:, 0] / np.maximum(m[:, 1], 1e-9))
    sides = rows.paired("covered_uncertainty_inside", "covered_uncertainty_outside")
    ratio = bootstrap(sides, lambda m: m[:, 0] / np.maximum(m[:, 1], 1e-9))
    clean_nme, covered_nme = bootstrap(100 * rows["clean_nme"]), bootstrap(100 * rows["covered_nme"])
    false_clean = bootstrap(100 * rows["clean_false_cover"])
    false_degraded = bootstrap(100 * rows["degraded_bare_false_cover"])
    rho_covered, rho_clean = bootstrap(rows["covered_uncertainty_rho"]), bootstrap(rows["clean_uncertainty_rho"])
    over = "mean uncertainty under the occluder over the mean elsewhere; half as high again is taken as clearly higher"
    found = [
        Finding("Landmarks", name, "NME clean", points, clean_nme, "down", "%", 4.0),
        Finding("Landmarks", name, "NME covered", points, covered_nme, "down", "%", 6.0),
        Finding("Occlusion mask", name, "IoU", mean_cells, bootstrap(rows["mask_iou"]), bar=0.7),
        Finding("Occlusion mask", name, "IoU pooled", f"sums over all faces; {cells}", pooled),
        Finding("Occlusion mask", name, "false cover, clean", bare, false_clean, "down", "%", 5.0),
        Finding("Occlusion mask", name, "false cover, noise and JPEG", bare, false_degraded, "down", "%", 5.0),
        Finding("Uncertainty", name, "rank correlation, covered", rho, rho_covered, bar=0.5),
        Finding("Uncertainty", name, "rank correlation, clean", rho, rho_clean),
        Finding("Uncertainty", name, "covered over visible", over, ratio, bar=1.5),
    ]
    what = "PSNR of the uint8 output averaged to 16x16 against the clean thumbnail, recomputed here"
    for column in sorted({k for row in rows.rows for k in row if k.endswith("lr_consistency_db")}):
        which = {"clean": "main fidelity", "cubic": "main fidelity, bicubic kernel"}
        prefix = column.split("_")[0]
        label = which.get(prefix) or f"fidelity {column.split('_')[1]}"
        for point, q in (("minimum", 0.0), ("5th percentile", 0.05), ("median", 0.5)):
            metric = f"LR consistency, {label}, {point}"
            found.append(Finding("Visible pixels", name, metric, what, quantile(rows[column], q), "up", "dB", 40.0))
    return [f for f in found if f.estimate.n]


def occluder_findings(rows: Rows) -> list[Finding]:
    """Gain and mask by kind of occluder, over all sets."""
    kinds: dict[str, list[Row]] = defaultdict(list)
    for row in rows.rows:
        kinds[str(row.get("occluder"))].append(row)
    found = []
    for kind, part in sorted(kinds.items()):
        group = Rows(part)
        for metric, estimate in (
            ("PSNR gain", group.gain("covered_psnr")),
            ("PSNR gain under the occluder", group.gain("under_psnr")),
            ("IoU", bootstrap(group["mask_iou"])),
        ):
            if estimate.n:
                found.append(Finding("By kind of occluder, all sets", kind, metric, "as above", estimate))
    return found


def pooled_uncertainty(pixels: list[np.ndarray]) -> Finding:
    """Rank correlation over pixels of all covered faces together; the interval draws faces."""
    definition = f"Spearman of uncertainty and absolute error over {UNCERTAINTY_PIXELS} pixels of each face, all pooled"
    estimate = bootstrap_groups(
        lambda faces: rank_correlation(faces[..., 0], faces[..., 1]), np.stack(pixels).astype(np.float32), resamples=50
    )
    return Finding("Uncertainty", "all sets", "rank correlation, covered, pooled", definition, estimate, "up", "", 0.5)


# --- identity --------------------------------------------------------------------------------------------------------


def identity_findings(
    faces: list[EvaluationFace],
    variants: dict[str, Restore],
    default: str,
    degrade: Degrade,
    embedders: Sequence[Embedder],
    limit: int | None,
) -> list[Finding]:
    """Verification of people never trained on, grey: probes from clean and covered thumbnails, original galleries.

    Args:
        variants: name -> restorer. default: the variant a user gets without asking.
    """
    # Probes a person and galleries a probe: a limit saves restorations and keeps more than 2,000 trials.
    shape = (6, 4) if limit is None or limit >= 600 else (3, 6)
    pairs = verification_pairs([f.group for f in faces], *shape, max_people=None if limit is None else max(limit, 10))
    grey = [to_grey(f.image) for f in faces]
    originals = [as_rgb(g) for g in grey]
    points = [f.landmarks for f in faces if f.landmarks is not None]
    probes = sorted(set(pairs.probe.tolist()))
    found: list[Finding] = []
    for subset in ("clean", "covered"):
        lqs = [thumbnail(grey[i]) if subset == "clean" else to_grey(to_uint8(degrade(faces[i]).lq)) for i in probes]
        made = {"bicubic": [bicubic(lq) for lq in lqs]}
        made |= {name: [o.image for o in restore_all(restore, lqs)] for name, restore in variants.items()}
        bars = {"clean": {"share of lost accuracy closed": 0.55, "lead of the default": 0.0}}.get(subset, {})
        variants_by_face = {name: dict(zip(probes, images, strict=True)) for name, images in made.items()}
        for embedder in embedders:
            independent = embedder.in_training == "none"
            found += probe_findings(
                f"Identity: {GREY_SET} verification, {subset}, {embedder.name}", pairs, [f.group for f in faces],
                originals, points, variants_by_face, embedder, default, bars if independent else {},
            )  # fmt: skip
    return found


# --- pictures --------------------------------------------------------------------------------------------------------


def draw_grid(columns: list[list[np.ndarray]], path: Path, per_block: int = 12, size: int = 128) -> None:
    """Write a PNG: each entry of `columns` is one face's pictures from top to bottom, `per_block` faces side by side.

    Pictures are uint8 RGB or grey, or float maps in [0, 1]; small ones are enlarged by whole pixels.
    """

    def tile(picture: np.ndarray) -> np.ndarray:
        picture = to_uint8(picture) if picture.dtype.kind == "f" else picture
        return cv2.resize(as_rgb(picture), (size, size), interpolation=cv2.INTER_NEAREST)

    blocks = []
    for part in chunks(columns, per_block):
        part = part + [[np.full((size, size), 255, np.uint8)] * len(part[0])] * (per_block - len(part))
        block = np.concatenate([np.concatenate([tile(p) for p in column]) for column in part], axis=1)
        blocks += [block, np.full((8, block.shape[1], 3), 255, np.uint8)]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(blocks[:-1])).save(path)


def _spread(sets: dict[str, list[EvaluationFace]], count: int) -> list[EvaluationFace]:
    """`count` faces taken in turn from each set."""
    depth = max((len(part) for part in sets.values()), default=0)
    return [part[i] for i in range(depth) for part in sets.values() if i < len(part)][:count]


def draw_grids(
    sets: dict[str, list[EvaluationFace]],
    real: RealFaces,
    degrade: Degrade,
    sharp: Restore,
    faithful: Restore,
    out: Path,
) -> None:
    """Unseen faces, clean and covered: input, main fidelity, fidelity 0, truth; really covered ones with their maps."""
    faces = _spread(sets, 24)
    degraded = [to_uint8(degrade(f).lq) for f in faces]
    for name, lqs in (("clean", [thumbnail(f.image) for f in faces]), ("covered", degraded)):
        columns = zip(lqs, restore_all(faithful, lqs), restore_all(sharp, lqs), faces, strict=True)
        draw_grid([[lq, a.image, b.image, f.image] for lq, a, b, f in columns], out / f"grid_{name}.png")
    covered = _spread(real.covered, 24)
    if covered:
        lqs, blank = [thumbnail(f.image) for f in covered], np.zeros((128, 128), np.uint8)
        rows = zip(covered, lqs, restore_all(faithful, lqs), restore_all(sharp, lqs), strict=True)
        draw_grid(
            [
                [f.image, lq, a.image, b.image, *(blank if m is None else m for m in (a.occlusion, a.uncertainty))]
                for f, lq, a, b in rows
            ],
            out / "grid_really_covered.png",
        )


# --- the whole run ---------------------------------------------------------------------------------------------------


@dataclass
class Data:
    """Everything loaded: validation faces by set, and really covered ones."""

    sets: dict[str, list[EvaluationFace]]
    real: RealFaces
    missing: list[str] = field(default_factory=list)


def load_data(folders: Sequence[Path], limit: int | None) -> Data:
    """Load the validation part of every known set that lies in `folders`; sets that do not are named in `missing`."""
    listed = read_validation_list()
    paths = {p.stem: p for folder in folders for p in sorted(folder.glob("*.parquet"))}
    sets = {
        name: load_faces(paths[name], listed, limit=None if name == GREY_SET else limit)
        for name in (*COLOUR_SETS, GREY_SET)
        if name in paths
    }
    canonical = [face for part in sets.values() for face in part[:300]]
    covered = {n: paths[n] for n in COVERED_SETS if n in paths}
    found = {n: paths[n] for n in AS_FOUND_SETS if n in paths}
    bare = {n: paths[n] for n in ("utkface", "aaf", "celeba", GREY_SET) if n in paths}
    missing = [n for n in (*COLOUR_SETS, GREY_SET, *COVERED_SETS) if n not in paths]
    return Data(sets, load_real(covered, found, bare, canonical, listed, limit), missing)


def measure(
    data: Data, make: MakeRestore, default: float, degrade: Degrade, degrade_bare: Degrade,
    embedders: Sequence[Embedder], out: Path, fidelity: float = 1.0, limit: int | None = None,
    classifier_steps: int = 800, log: Callable[[str], None] = lambda text: None,
) -> list[Finding]:  # fmt: skip
    """Run every measurement; returns the findings and writes grids and per-face rows into `out`.

    Args:
        make: gives the restorer of a fidelity. default: the fidelity a user gets. fidelity: the one the bars are for.
        limit: as given to `load_data`; also bounds the trials of the verification.
    """
    levels = sorted({fidelity, default, 0.0}, reverse=True)
    restorers = {level: make(level) for level in levels}
    main = restorers[fidelity]
    found: list[Finding] = []
    every: list[Row] = []
    pixels: list[np.ndarray] = []
    fractions: dict[str, np.ndarray] = {}
    for name, faces in data.sets.items():
        grey, faces = name == GREY_SET, faces[:limit]
        columns = [
            [{"id": f.id, "group": f.group, "set": f.set} | {k: f.labels.get(k) for k in GROUP_LABELS} for f in faces],
            clean_rows(faces, main, "area", grey),
            clean_rows(faces, main, "bicubic", grey, "cubic_"),
            covered_rows(faces, main, degrade, grey, pixels),
            degraded_bare_rows(faces[:CONSISTENCY_FACES], main, degrade_bare, grey),
        ]  # fmt: skip
        for level in (v for v in levels if v != fidelity):
            columns.append(clean_rows(faces[:CONSISTENCY_FACES], restorers[level], "area", grey, f"at_{level:g}_"))
        rows: list[Row] = [{} for _ in faces]
        for column in columns:
            for row, part in zip(rows, column, strict=False):  # some columns cover the first faces only
                row |= part
        found += fidelity_findings(name, Rows(rows), name in COLOUR_SETS, fidelity)
        found += structure_findings(name, Rows(rows))
        fractions[name] = Rows(rows)["clean_occluded_fraction"]
        every += rows
        log(f"{name}: {len(faces)} faces")
    found += occluder_findings(Rows(every))
    if pixels:
        found.append(pooled_uncertainty(pixels))
    if embedders and GREY_SET in data.sets:
        variants = {f"restored at {v:g}": restorers[v] for v in levels}
        found += identity_findings(data.sets[GREY_SET], variants, f"restored at {default:g}", degrade, embedders, limit)
        log("identity")
    if data.real.covered:
        chosen = {f"restored at {v:g}": restorers[v] for v in dict.fromkeys((fidelity, default))}
        found += real_findings(data.real, fractions, chosen, out, classifier_steps)
        log("really covered faces")
    colour = {name: part for name, part in data.sets.items() if name in COLOUR_SETS}
    draw_grids(colour or data.sets, data.real, degrade, restorers[0.0], main, out)
    out.mkdir(parents=True, exist_ok=True)
    with (out / "per_face.jsonl").open("w", encoding="utf-8") as file:
        for row in every:
            plain = {k: (None if isinstance(v, float) and not np.isfinite(v) else v) for k, v in row.items()}
            file.write(json.dumps(plain, default=float) + "\n")
    return sorted(found, key=lambda f: list(dict.fromkeys(g.section for g in found)).index(f.section))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit code 0 where every bar is reached, 1 where one is not, 2 for wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m evaluation.restorer_bars", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of Parquet sets, with the evaluation embedder")
    parser.add_argument("--more", type=Path, help="folder of further Parquet sets")
    parser.add_argument("--out", type=Path, required=True, help="where tables and pictures go")
    parser.add_argument("--config", type=Path, default=REPOSITORY / "configs" / "cctv_restore.yaml", help="the chain")
    parser.add_argument(
        "--degradation", type=Path, help="chain that starts with `degrade`, instead of the frozen benchmark"
    )
    parser.add_argument(
        "--fidelity", type=float, default=1.0, help="fidelity of the main measurements, 0..1 (default 1)"
    )
    parser.add_argument("--limit", type=int, help="faces of each set (default all)")
    parser.add_argument("--network-only", action="store_true", help="run the stage alone instead of the whole pipeline")
    parser.add_argument("--dlib", action="store_true", help="judge identity by dlib's descriptor too (slow; no bar)")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    args = parser.parse_args(arguments)
    if args.out.resolve().is_relative_to(REPOSITORY):
        parser.error(f"--out {args.out} lies in the repository; pictures of people must not")
    started = time.perf_counter()

    def log(text: str) -> None:
        print(f"{time.perf_counter() - started:7.1f} s  {text}", file=sys.stderr, flush=True)

    try:
        data = load_data([p for p in (args.data, args.more) if p is not None], args.limit)
        if not data.sets:
            parser.error(
                f"no known set in {args.data}: expected one of {', '.join((*COLOUR_SETS, GREY_SET))} as .parquet"
            )
        for name in data.missing:
            log(f"{name}: not there, left out")
        default = float(load_chain(args.config).stages[0].config.fidelity)  # type: ignore[attr-defined]
        build = network_restorer if args.network_only else api_restorer
        make = build(args.config, args.device, args.precision)
        degrade, degrade_bare = frozen_degradation(args.degradation)
        path = args.data / EMBEDDER_FILE
        embedders: list[Embedder] = [OnnxEmbedder(path)] if path.is_file() else []
        if args.dlib:
            embedders.append(DlibEmbedder())
    except (ValueError, OSError) as error:
        parser.error(str(error))
    log("loaded")
    found = measure(data, make, default, degrade, degrade_bare, embedders, args.out, args.fidelity, args.limit, log=log)
    header = {
        "date": time.strftime("%Y-%m-%d %H:%M"), "chain": args.config.name, "weights": _weights(args.config),
        "route": "stage alone" if args.network_only else "pipeline", "fidelity": args.fidelity,
        "default fidelity": default,
        "faces of each set at most": args.limit or "all", "sets missing": ", ".join(data.missing) or "none",
        "python": platform.python_version(), "torch": torch.__version__,
        "seconds": round(time.perf_counter() - started),
    }  # fmt: skip
    write_tables(found, header, args.out, "bars", "The restorer against its bars")
    judged = [f for f in found if f.passed is not None]
    log(f"{sum(bool(f.passed) for f in judged)} of {len(judged)} bars reached; {args.out / 'bars.md'}")
    return 0 if all(f.passed for f in judged) else 1


def _weights(config: Path) -> str:
    """Name and SHA-256 of the measured weights."""
    names = load_chain(config).weight_names()
    return ", ".join(f"{n} {read_card(n).sha256[:16]}" for n in names if weights_file(n).is_file()) or "none found"


if __name__ == "__main__":
    sys.exit(main())
