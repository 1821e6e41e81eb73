"""The table of measures. A family turns one row of some faces into columns; quantities turn columns into numbers.

A new measure is a function, its quantities and one line in `FAMILIES`; everything else (cache, intervals, groups,
tables, plots) follows from that.
"""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from evaluation.metrics import area_average, lr_consistency_db, luma, nme, overlap, psnr, rank_correlation, ssim
from evaluation.naturalness import SHEET_SIDE, frechet_distance, kernel_distance, niqe_of_faces
from evaluation.statistics import Direction
from evaluation.suite.cache import card_key
from evaluation.suite.rows import Made, Views
from evaluation.trait_reader import TraitReader, labels_of, mean_recall
from evaluation.trait_reader import columns as trait_columns
from landmarks.backends import create, why_unavailable
from landmarks.backends.dlib import hog_box
from stages import basicsr_adapter
from stages.batch import HALF_INVENTED
from stages.degradation.occluders import MEAN_SHAPE
from stages.networks.face_parser import PARSING_CLASSES, FaceParser
from stages.trait_labels import EXPRESSIONS
from stages.weights import WeightsError, load_network, read_checked

# name -> (N,) float, NaN where the measure does not apply to a face; (N, k) where a face has k observations
Columns = dict[str, np.ndarray]
MIN_REGION_PX = 64  # a covered region smaller than one thumbnail pixel is not scored on its own
NME_LIMIT = 0.08  # the usual bound of the failure rate and of the area under the curve
BINS = 10  # of the calibration
COVERAGES = 20  # points of the risk-coverage curve
DRAWN_PIXELS = 200  # of each face, for the rank correlation over all of them
FLAGS = ("masculine", "eyeglasses", "hat", "smiling", "mouth_open", "hair_black", "hair_blond", "hair_long")


@dataclass(frozen=True)
class Sample:
    """What a measure sees: one condition of some faces, and what one row made of it."""

    views: Views
    made: Made


@dataclass(frozen=True)
class Quantity:
    """One number of a table.

    Attributes:
        name, unit, direction, definition, version: see `evaluation.statistics.Finding`.
        columns: what it is made of. statistic: (m, k) column means -> (m,); the mean of the first column when None.
        quantile: take this quantile of the first column instead of the mean. of_faces: a number of the (n, k) columns
            themselves, for what no means hold; not given for groups.
        sheets: each value is of a sheet of several faces; not given for groups, which a sheet mixes.
        gain: also give the difference from bicubic, face by face. ratio: also give it as a share of bicubic's. closed:
            also give the share of what lies between bicubic and the original that comes back.
    """

    name: str
    columns: tuple[str, ...]
    definition: str
    unit: str = ""
    direction: Direction = "up"
    statistic: Callable[[np.ndarray], np.ndarray] | None = None
    quantile: float | None = None
    of_faces: Callable[[np.ndarray], float] | None = None
    sheets: bool = False
    gain: bool = False
    ratio: bool = False
    closed: bool = False
    version: int = 1


@dataclass(frozen=True)
class Family:
    """Measures that are computed together.

    Attributes:
        section: heading. measure: the columns of a sample. quantities: what is made of them.
        depends: everything beside the pictures that the columns depend on (versions, hashes); part of the cache's key.
        unavailable: why it cannot be measured on this machine, None where it can.
        weights: the card it judges where it looks at originals (the face parser's), "" for none.
        version: of `measure`; part of the cache's key.
    """

    section: str
    measure: Callable[[Sample], Columns]
    quantities: tuple[Quantity, ...]
    depends: Callable[[], str] = lambda: "1"
    unavailable: Callable[[], str | None] = lambda: None
    weights: str = ""
    version: int = 1


# --- fidelity and consistency ----------------------------------------------------------------------------------------


def _each(measure: Callable[..., float], *stacks: np.ndarray) -> np.ndarray:
    return np.array([measure(*items) for items in zip(*stacks, strict=True)], np.float64)


def fidelity(sample: Sample) -> Columns:
    """PSNR and SSIM against the truth."""
    images, truth = sample.made.images, sample.views.truth
    columns = {"psnr": _each(psnr, images, truth), "ssim": _each(ssim, images, truth)}
    columns["psnr_y"] = _each(lambda a, b: psnr(luma(a), luma(b)), images, truth)
    columns["ssim_y"] = _each(lambda a, b: ssim(luma(a), luma(b)), images, truth)
    region = sample.views.mask > 0.5
    under = np.full(len(images), np.nan)
    for i in np.flatnonzero(region.sum((1, 2)) >= MIN_REGION_PX):
        under[i] = psnr(images[i], truth[i], region[i])
    return columns | {"under_psnr": under}


FIDELITY = Family(
    "Fidelity",
    fidelity,
    (
        Quantity("PSNR", ("psnr",), "against the truth at 128x128, RGB, peak 255, no border crop", "dB", gain=True),
        Quantity("SSIM", ("ssim",), "RGB, Gaussian window 11x11 of sigma 1.5, less a border of 5 px", gain=True),
        Quantity("PSNR-Y", ("psnr_y",), "on BT.601 luma in 16..235, as super-resolution papers", "dB", gain=True),
        Quantity("SSIM-Y", ("ssim_y",), "on BT.601 luma in 16..235", gain=True),
        Quantity(
            "PSNR under the cover",
            ("under_psnr",),
            "RGB, where the painted cover's opacity is above 1/2",
            "dB",
            gain=True,
        ),
    ),
)


def consistency(sample: Sample) -> Columns:
    """Agreement with the thumbnail where it shows the face, and where the restorer says that it does."""
    visible = sample.views.mask_lq <= 0
    value = [
        lr_consistency_db(image, lq, seen) if seen.any() and not refused else np.nan
        for image, lq, seen, refused in zip(
            sample.made.images, sample.views.lq, visible, sample.made.refused, strict=True
        )
    ]
    stated = {} if sample.made.agreement_db is None else {"agreement_db": sample.made.agreement_db}
    return {"lr_consistency_db": np.array(value)} | stated


_AGREE = "PSNR between the picture averaged to the thumbnail's size and the thumbnail, over pixels without any cover"
CONSISTENCY = Family(
    "Agreement with the thumbnail",
    consistency,
    (
        Quantity("LR consistency, median", ("lr_consistency_db",), f"{_AGREE}; median over faces", "dB", quantile=0.5),
        Quantity(
            "LR consistency, 5th percentile", ("lr_consistency_db",), f"{_AGREE}; 5 % of faces lie below", "dB",
            quantile=0.05,
        ),
        Quantity("LR consistency, lowest", ("lr_consistency_db",), f"{_AGREE}; the lowest face", "dB", quantile=0.0),
        Quantity(
            "LR consistency of the journal, lowest", ("agreement_db",),
            "`lr_consistency_db` as the restorer states it, over the pixels that it takes for visible; the lowest face",
            "dB", quantile=0.0,
        ),
    ),
    version=2,
)  # fmt: skip


def outcomes(sample: Sample) -> Columns:
    """What became of the inputs."""
    made = sample.made
    return {"refused": made.refused.astype(float), "failed": made.failed.astype(float)} | {
        "undecided": made.undecided.astype(float)
    }


OUTCOMES = Family(
    "Outcomes",
    outcomes,
    (
        Quantity("no face", ("refused",), "share of inputs without a result; they count as bicubic", "", "down"),
        Quantity("failed", ("failed",), "share of inputs on which the row failed", "", "down"),
        Quantity("not decidable", ("undecided",), "share of inputs with the verdict not_decidable", "", "down"),
    ),
)


# --- landmarks -------------------------------------------------------------------------------------------------------


@cache
def _predictor() -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    backend = create("dlib")
    return lambda image, points: backend.landmarks_in(image, hog_box(points))  # type: ignore[attr-defined]


def alignment(sample: Sample) -> Columns:
    """dlib's 68 points on the picture against those on the original, in the same box; and the row's own points."""
    errors, own = [], []
    for i, face in enumerate(sample.views.faces):
        start = np.asarray(MEAN_SHAPE if face.landmarks is None else face.landmarks, np.float64)
        reference = face.landmarks if face.landmarks is not None else _predictor()(sample.views.truth[i], start)
        errors.append(nme(_predictor()(sample.made.images[i], start), reference))
        points = sample.made.landmarks
        own.append(np.nan if points is None or np.isnan(points[i]).any() else nme(points[i], reference))
    error = np.array(errors)
    columns = {"nme": 100 * error, "nme_failure": (error > NME_LIMIT).astype(float)}
    columns["nme_auc"] = np.maximum(0, 1 - error / NME_LIMIT)
    return columns | ({"nme_own": 100 * np.array(own)} if sample.made.landmarks is not None else {})


_POINTS = (
    "mean distance of 68 points to those on the original over its outer eye corners' distance; points by dlib's "
    "predictor, in the box of the original face"
)
ALIGNMENT = Family(
    "Alignment",
    alignment,
    (
        Quantity("NME", ("nme",), _POINTS, "%", "down", gain=True, ratio=True),
        Quantity("failure rate", ("nme_failure",), f"share of faces with an NME above 8 %; {_POINTS}", "", "down"),
        Quantity("AUC at 8 %", ("nme_auc",), f"area under the cumulative error curve up to an NME of 8 %; {_POINTS}"),
        Quantity(
            "NME of the restorer's own points", ("nme_own",),
            "as NME, points of the restorer itself, for which dlib was the teacher", "%", "down",
        ),
    ),
    lambda: importlib.import_module("dlib").__version__,
    lambda: why_unavailable("dlib"),
)  # fmt: skip


# --- parsing ---------------------------------------------------------------------------------------------------------

PARSER = "face_parser"


@cache
def _parser() -> FaceParser:
    network = load_network(PARSER, torch.device("cpu"))
    if not isinstance(network, FaceParser):
        raise TypeError(f"card {PARSER} holds a {type(network).__name__}, not a face parser")
    return network


@torch.inference_mode()
def parse(images: np.ndarray) -> np.ndarray:
    """(N, 128, 128, 3) uint8 canonical faces -> (N, 128, 128) uint8 classes, by the shipped face parser."""
    parts = []
    for start in range(0, len(images), 16):
        tensor = torch.from_numpy(images[start : start + 16].transpose(0, 3, 1, 2).astype(np.float32) / 255)
        parts.append(_parser()(tensor).argmax(1).to(torch.uint8).numpy())
    return np.concatenate(parts)


def parsing(sample: Sample) -> Columns:
    """Intersections and sizes of each class: against the set's own mask, else against the parser on the original.

    NaN for an original without a mask: the parser would be held against itself.
    """
    masks = [face.parsing for face in sample.views.faces]
    truth = parse(sample.views.truth) if any(m is None for m in masks) else np.zeros_like(sample.views.truth[..., 0])
    reference = np.stack([t if m is None else m for m, t in zip(masks, truth, strict=True)])
    found, columns = parse(sample.made.images), {}
    for number, name in enumerate(PARSING_CLASSES):
        counts = np.array([overlap(f == number, r == number) for f, r in zip(found, reference, strict=True)], float)
        columns[f"{name}_both"], columns[f"{name}_either"] = counts[:, 0], counts[:, 1]
    columns["agreement"] = (found == reference).mean((1, 2))
    pictures = zip(masks, sample.made.images, sample.views.truth, strict=True)
    itself = [mask is None and np.array_equal(image, original) for mask, image, original in pictures]
    return {name: np.where(itself, np.nan, values) for name, values in columns.items()}


def _mean_iou(means: np.ndarray) -> np.ndarray:
    """(m, 2 c) intersections and unions in turn -> (m,) mean over the classes that occur."""
    with np.errstate(invalid="ignore"):
        return np.nanmean(np.where(means[:, 1::2] > 0, means[:, ::2] / means[:, 1::2], np.nan), axis=1)


def _f1(means: np.ndarray) -> np.ndarray:
    """(m, 2) intersection and union -> (m,) 2 |A and B| / (|A| + |B|)."""
    return 2 * means[:, 0] / np.maximum(means.sum(1), 1e-12)


_REGIONS = (
    "our face parser on the picture against the set's own masks where it has them, else against it on the original"
)
PARSING = Family(
    "Parsing",
    parsing,
    (
        Quantity(
            "mIoU", tuple(f"{c}_{side}" for c in PARSING_CLASSES for side in ("both", "either")),
            f"intersection over union of each class over all faces, mean of the classes that occur; {_REGIONS}",
            statistic=_mean_iou,
        ),
        Quantity("pixel accuracy", ("agreement",), f"share of pixels with the right class; {_REGIONS}", gain=True),
        *(
            Quantity(f"F1 {c.replace('_', ' ')}", (f"{c}_both", f"{c}_either"), f"over all faces together; {_REGIONS}",
                     statistic=_f1)
            for c in PARSING_CLASSES
        ),
    ),
    lambda: card_key(PARSER),
    lambda: _why_no_card(PARSER),
    PARSER,
    version=2,
)  # fmt: skip


def _why_no_card(name: str) -> str | None:
    try:
        read_checked(name)
    except WeightsError as error:
        return str(error)
    return None


# --- cover and uncertainty -------------------------------------------------------------------------------------------


def cover(sample: Sample) -> Columns:
    """The cover that was found against the painted one, at the thumbnail's size."""
    if sample.made.occlusion is None:
        return {}
    size = sample.views.lq.shape[1]
    both, either, false = [], [], []
    for found, painted in zip(sample.made.occlusion, sample.views.mask_lq, strict=True):
        cells = area_average(found, size) > 127.5
        inside, union = overlap(cells, painted > 0.5)
        covered = bool((painted > 0.5).any())
        both.append(inside if covered else np.nan)
        either.append(union if covered else np.nan)
        false.append(np.nan if covered else 100 * cells.mean())
    intersection, union_ = np.array(both, float), np.array(either, float)
    columns = {"both": intersection, "either": union_, "iou": intersection / union_, "false_cover": np.array(false)}
    fraction = sample.made.occluded_fraction
    return columns if fraction is None else columns | {"occluded_fraction": fraction}


_CELLS = "cells of the thumbnail, called covered above one half on both sides"
COVER = Family(
    "Cover found",
    cover,
    (
        Quantity("IoU", ("iou",), f"mean over covered faces; {_CELLS}"),
        Quantity(
            "IoU pooled", ("both", "either"), f"sums over all covered faces; {_CELLS}",
            statistic=lambda m: m[:, 0] / np.maximum(m[:, 1], 1e-12),
        ),
        Quantity("false cover", ("false_cover",), "share of the cells of bare faces called covered", "%", "down"),
        Quantity(
            "occluded_fraction, median", ("occluded_fraction",), "covered share of the face, as the journal has it",
            quantile=0.5,
        ),
    ),
    version=2,
)  # fmt: skip


def uncertainty(sample: Sample) -> Columns:
    """How well the map of invented pixels foretells the error."""
    if sample.made.uncertainty is None:
        return {}
    error = np.abs(sample.made.images.astype(np.float32) - sample.views.truth).mean(3) / 255
    value = sample.made.uncertainty.astype(np.float32) / 255
    columns = {"rho": _each(rank_correlation, value, error)}
    flat_error, flat_value = error.reshape(len(error), -1), value.reshape(len(value), -1)
    drawn = np.stack([face.rng.integers(0, flat_error.shape[1], DRAWN_PIXELS) for face in sample.views.faces])
    columns["drawn"] = np.concatenate([np.take_along_axis(flat, drawn, 1) for flat in (flat_value, flat_error)], axis=1)
    columns |= _risk_coverage(flat_error, flat_value)
    expected = HALF_INVENTED * flat_value / np.maximum(1 - flat_value, 1 / 512)  # the restorer's own scale, inverted
    bins = np.minimum((flat_value * BINS).astype(int), BINS - 1)
    for b in range(BINS):
        inside = bins == b
        columns[f"count_{b}"] = inside.sum(1).astype(float)
        columns[f"error_{b}"] = 255 * (flat_error * inside).sum(1)
        columns[f"expected_{b}"] = 255 * (np.minimum(expected, 1) * inside).sum(1)
    mask = sample.views.mask.reshape(len(error), -1) > 0.5
    part = mask.any(1) & ~mask.all(1)
    share = np.full((2, len(error)), np.nan)
    for i in np.flatnonzero(part):
        share[:, i] = flat_value[i][mask[i]].mean(), flat_value[i][~mask[i]].mean()
    return columns | {"inside": share[0], "outside": share[1]}


def _risk_coverage(error: np.ndarray, value: np.ndarray) -> Columns:
    """Mean error of the surest part of each face's pixels, for growing parts, beside the best and a blind order."""
    steps = np.round(np.linspace(1 / COVERAGES, 1, COVERAGES) * error.shape[1]).astype(int)

    def risks(order: np.ndarray) -> np.ndarray:
        sums = np.cumsum(np.take_along_axis(error, order, 1), 1, dtype=np.float64)
        return 255 * sums[:, steps - 1] / steps

    kept, best = risks(np.argsort(value, 1, kind="stable")), risks(np.argsort(error, 1, kind="stable"))
    columns = {f"risk_{i}": kept[:, i] for i in range(COVERAGES)} | {f"best_{i}": best[:, i] for i in range(COVERAGES)}
    return columns | {
        "aurc": kept.mean(1),
        "aurc_best": best.mean(1),
        "aurc_blind": 255 * error.mean(1, dtype=np.float64),
    }


def _pooled_rank_correlation(table: np.ndarray) -> float:
    """(n, 2 DRAWN_PIXELS) uncertainties, then errors, of pixels of n faces."""
    return rank_correlation(table[:, :DRAWN_PIXELS], table[:, DRAWN_PIXELS:])


def _calibration(means: np.ndarray) -> np.ndarray:
    """(m, 3 BINS) counts, errors, expected errors -> (m,) mean absolute gap, weighted by counts."""
    count, error, expected = np.split(means, 3, axis=1)
    return np.abs(error - expected).sum(1) / np.maximum(count.sum(1), 1e-12)


_ORDER = "pixels kept from the surest on; risk = mean absolute error (RGB) of those kept"
UNCERTAINTY = Family(
    "Uncertainty",
    uncertainty,
    (
        Quantity(
            "rank correlation", ("rho",),
            "Spearman of uncertainty and absolute error (mean over RGB) over the pixels of a face, mean over faces",
        ),
        Quantity(
            "rank correlation, pooled", ("drawn",),
            f"Spearman of uncertainty and absolute error over {DRAWN_PIXELS} pixels of each face, all pooled",
            of_faces=_pooled_rank_correlation,
        ),
        Quantity(
            "risk-coverage area", ("aurc",), f"mean risk over {COVERAGES} coverages; {_ORDER}", "grey levels", "down"
        ),
        Quantity(
            "share of the risk avoided", ("aurc", "aurc_best", "aurc_blind"),
            f"1 = as good as ordering by the error itself, 0 = no better than chance; {_ORDER}",
            statistic=lambda m: (m[:, 2] - m[:, 0]) / np.maximum(m[:, 2] - m[:, 1], 1e-12),
        ),
        Quantity(
            "calibration error", tuple(f"{k}_{b}" for k in ("count", "error", "expected") for b in range(BINS)),
            f"mean gap of expected and true absolute error over {BINS} bins of uncertainty, weighted by pixels; "
            f"expected = {HALF_INVENTED} u / (1 - u)", "grey levels", "down", _calibration,
        ),
        Quantity(
            "covered over visible", ("inside", "outside"), "mean uncertainty under the cover over the mean elsewhere",
            statistic=lambda m: m[:, 0] / np.maximum(m[:, 1], 1e-12),
        ),
    ),
    version=2,
)  # fmt: skip


# --- traits and naturalness: evaluation.trait_reader, evaluation.naturalness -----------------------------------------


@cache
def _reader(card: str) -> TraitReader:
    return TraitReader(card)


def _traits(card: str, section: str, quantities: tuple[Quantity, ...]) -> Family:
    """What the classifier of a card reads of the picture, against labels and against the original."""

    def measure(sample: Sample) -> Columns:
        reader = _reader(card)
        read, original = reader.read(sample.made.images), reader.read(sample.views.truth)
        return trait_columns(reader, read, original, labels_of(sample.views.faces))

    return Family(section, measure, quantities, lambda: card_key(card), lambda: _why_no_card(card), card)


def _agreement(trait: str, card: str) -> tuple[Quantity, ...]:
    by = f"by our classifier {card}, which errs on originals as their row shows"
    title = trait.replace("_", " ")
    right = f"share read as the data set labels it, {by}"
    return (
        Quantity(f"{title}, accuracy", (f"right_{trait}",), right, gain=True, closed=True),
        Quantity(f"{title}, kept", (f"kept_{trait}",), f"share read as in the original, {by}", gain=True),
    )


def _expression(card: str) -> tuple[Quantity, ...]:
    parts = tuple(f"{kind}_expression_{c}" for kind in ("recalled", "is") for c in EXPRESSIONS)
    recall = "mean over the classes of the share of each that is read as such"
    return (*_agreement("expression", card), Quantity("expression, mean recall", parts, recall, statistic=mean_recall))


_AGE = "by our classifier attributes, which errs on originals as their row shows"
EXPRESSION = _traits("expression", "Expression", _expression("expression"))
ATTRIBUTES = _traits(
    "attributes",
    "Attributes",
    (
        *(quantity for flag in FLAGS for quantity in _agreement(flag, "attributes")),
        Quantity("age, error", ("error_age",), f"mean absolute difference from the label, {_AGE}", "years", "down"),
        Quantity(
            "age, drift", ("drift_age",), f"mean absolute difference from the original's, {_AGE}", "years", "down"
        ),
        Quantity("age, band", ("band_age",), f"share in the label's age band, {_AGE}", gain=True, closed=True),
    ),
)


def natural(sample: Sample) -> Columns:
    """NIQE of sheets of nine faces, written at the first face of each."""
    value, size = np.full(len(sample.made.images), np.nan), SHEET_SIDE**2
    if len(value) >= size:
        scores = niqe_of_faces(list(sample.made.images))
        value[: size * len(scores) : size] = scores
    return {"niqe": value}


def _why_no_niqe() -> str | None:
    return None if basicsr_adapter.available() else "basicsr is not installed (extra basicsr)"


_NIQE = f"by basicsr's model, on sheets of {SHEET_SIDE**2} faces; n = sheets; blind to who is shown"
NATURALNESS = Family(
    "Naturalness",
    natural,
    (Quantity("NIQE", ("niqe",), _NIQE, "", "down", sheets=True, gain=True),),
    unavailable=_why_no_niqe,
)


FAMILIES: dict[str, Family] = {
    "fidelity": FIDELITY,
    "consistency": CONSISTENCY,
    "outcomes": OUTCOMES,
    "alignment": ALIGNMENT,
    "parsing": PARSING,
    "cover": COVER,
    "uncertainty": UNCERTAINTY,
    "expression": EXPRESSION,
    "attributes": ATTRIBUTES,
    "naturalness": NATURALNESS,
}


@dataclass(frozen=True)
class SetMeasure:
    """A distance between two clouds of embeddings: one row's pictures against the originals. See `SET_MEASURES`."""

    name: str
    definition: str
    distance: Callable[[np.ndarray, np.ndarray], float]  # (N, D), (N, D) -> one number
    direction: Direction = "down"
    version: int = 1


SET_MEASURES: Sequence[SetMeasure] = (
    SetMeasure(
        "Frechet distance",
        "of the normal laws of two clouds of vectors, squared; not the FID of papers, which is another network's; "
        "biased upwards for few faces, alike for every row; interval by leaving out blocks of faces",
        frechet_distance,
    ),
    SetMeasure(
        "kernel distance",
        "squared maximum mean discrepancy under a cubic kernel, unbiased, no face compared with itself; interval by "
        "leaving out blocks of faces",
        kernel_distance,
        version=2,
    ),
)
