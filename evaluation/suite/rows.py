"""The rows of every table: what makes a 128 px face of a thumbnail. Baselines, restorer, further chains, rivals."""

import inspect
import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from evaluation import rivals
from evaluation.faces import EvaluationFace, as_rgb, bicubic, to_grey
from evaluation.restoring import AnyPrecision, Device
from evaluation.suite.cache import Arrays, card_key, fingerprint
from landmarks.alignment import CANONICAL_SIZE
from pipeline import __version__
from pipeline.chain import pick_device, pick_precision
from pipeline.config import load_chain, weight_hashes
from pipeline.images import to_uint8
from pipeline.restorer import Restorer, Result
from stages import foreign_upscalers
from stages.degradation import DegradationConfig, degrade_face
from stages.weights import card_names

ORIGINAL, NEAREST, BICUBIC = "original", "nearest", "bicubic"
RESTORED = "restored at "  # then the fidelity
AT_1, DEFAULT = f"{RESTORED}1", f"{RESTORED}default"
BARE = "bare"
# What may come beside the pictures.
_BESIDE = ("landmarks", "occlusion", "uncertainty", "occluded_fraction", "agreement_db")


@dataclass(frozen=True)
class Views:
    """One condition of some faces.

    Attributes:
        faces: N of them. lq: (N, n, n, 3) uint8 thumbnails. truth: (N, 128, 128, 3) uint8, what a perfect restoration
            shows. mask: (N, 128, 128) float32 opacity of the painted cover. mask_lq: (N, n, n) float32 covered share.
        covers: N kinds of painted cover, `BARE` where there is none.
    """

    faces: Sequence[EvaluationFace]
    lq: np.ndarray
    truth: np.ndarray
    mask: np.ndarray
    mask_lq: np.ndarray
    covers: tuple[str, ...] = ()


def degraded(faces: Sequence[EvaluationFace], config: DegradationConfig, grey: bool) -> Views:
    """Damage faces; each draws from its own id alone."""
    made = [degrade_face(face.image, face.landmarks, face.rng, config) for face in faces]

    def pictures(images: list[np.ndarray]) -> np.ndarray:
        return np.stack([as_rgb(to_grey(image)) if grey else image for image in images])

    return Views(
        faces, pictures([to_uint8(m.lq) for m in made]), pictures([m.gt for m in made]),
        np.stack([m.mask for m in made]).astype(np.float32), np.stack([m.mask_lq for m in made]).astype(np.float32),
        tuple(m.occluder or BARE for m in made),
    )  # fmt: skip


@dataclass(frozen=True)
class Made:
    """What one row made of N thumbnails.

    Attributes:
        images: (N, 128, 128, 3) uint8. A face without a result counts as its bicubic enlargement, and is in `refused`.
        refused: (N,) bool, no result (no face found, or failed). failed: (N,) bool, the part of them that is a fault.
        undecided: (N,) bool, the restorer's own verdict is "not decidable"; never for rows that give no verdict.
        landmarks: (N, 68, 2) float32 px; occlusion, uncertainty: (N, 128, 128) uint8, 255 = covered, wholly invented;
            occluded_fraction: (N,) covered share of the face; agreement_db: (N,) the journal's `lr_consistency_db`.
            None for rows that give none; NaN for a refused face.
        seconds: of one face. peak_mib: largest resident memory of this process meanwhile, NaN where unknown.
        load: processes that ran or waited on this machine when it was made, mean of a minute, NaN where unknown.
    """

    images: np.ndarray
    refused: np.ndarray
    failed: np.ndarray
    undecided: np.ndarray
    landmarks: np.ndarray | None = None
    occlusion: np.ndarray | None = None
    uncertainty: np.ndarray | None = None
    occluded_fraction: np.ndarray | None = None
    agreement_db: np.ndarray | None = None
    seconds: float = 0.0
    peak_mib: float = float("nan")
    load: float = float("nan")

    @classmethod
    def plain(cls, images: np.ndarray) -> "Made":
        """Pictures without anything beside them."""
        none = np.zeros(len(images), bool)
        return cls(images, none, none, none)

    def arrays(self) -> Arrays:
        """For the cache."""
        beside = {name: value for name in _BESIDE if (value := getattr(self, name)) is not None}
        cost = np.array([self.seconds, self.peak_mib, self.load])
        return {
            "images": self.images,
            "flags": np.stack([self.refused, self.failed, self.undecided]),
            "cost": cost,
        } | beside

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> "Made":
        """Back from the cache."""
        refused, failed, undecided = arrays["flags"]
        beside = {name: arrays[name] for name in _BESIDE if name in arrays}
        seconds, peak_mib, *load = arrays["cost"].tolist()  # without a load where an earlier version kept it
        return cls(
            arrays["images"], refused, failed, undecided, **beside, seconds=seconds, peak_mib=peak_mib,
            load=load[0] if load else float("nan"),
        )  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One row of the tables.

    Attributes:
        name: for tables. make: (N, n, n, 3) uint8 thumbnails -> what became of them; builds its networks when first
            called. fingerprint: everything beside the thumbnails that the result depends on.
        weights: the card it judges, "" for none or several. rival: whether the restorer is held against it.
    """

    name: str
    make: Callable[[np.ndarray], Made]
    fingerprint: str
    weights: str = ""
    rival: bool = False


def baselines() -> list[Row]:
    """Enlarging without knowing anything about faces."""

    def nearest(lq: np.ndarray) -> Made:
        size = (CANONICAL_SIZE, CANONICAL_SIZE)
        return Made.plain(np.stack([cv2.resize(i, size, interpolation=cv2.INTER_NEAREST_EXACT) for i in lq]))

    return [
        Row(NEAREST, nearest, f"{NEAREST} 1"),
        Row(BICUBIC, lambda lq: Made.plain(np.stack([bicubic(i) for i in lq])), f"{BICUBIC} 1"),
    ]


def chain_row(
    name: str, chain: Path, fidelity: float | None, device: Device = "auto", precision: AnyPrecision = "auto"
) -> Row:
    """A chain as a Python user runs it, its result brought to 128 px.

    Raises:
        ConfigError: the chain is wrong.
    """
    config = load_chain(chain, fidelity=fidelity)
    place = pick_device(device)
    exact = pick_precision(precision, place)

    @cache
    def restorer() -> Restorer:
        return Restorer.from_config(chain, fidelity=fidelity, device=device, precision=precision)

    def make(lq: np.ndarray) -> Made:
        return from_results(restorer().restore(list(lq)), lq)

    cards = config.weight_names()
    built = [card_key(card) for card in cards]
    key = fingerprint("chain 3", __version__, config.digest(), weight_hashes(config), built, place.type, exact)
    return Row(name, make, key, cards[0] if len(cards) == 1 else "")


def from_results(results: Sequence[Result], lq: np.ndarray) -> Made:
    """Results of the pipeline as `Made`."""
    images = [
        bicubic(small) if r.image is None else _at_canonical(as_rgb(r.image))
        for r, small in zip(results, lq, strict=True)
    ]
    beside: dict[str, Any] = {}
    for name in ("occlusion", "uncertainty"):
        values = [getattr(r, name) for r in results]
        if any(v is not None for v in values):
            blank = np.zeros((CANONICAL_SIZE, CANONICAL_SIZE), np.uint8)
            beside[name] = np.stack([blank if v is None else _at_canonical(to_uint8(v)) for v in values])
    if any(r.landmarks is not None for r in results):
        beside["landmarks"] = np.stack([_points_at_canonical(r) for r in results])
    for name, key in (("occluded_fraction", "occluded_fraction"), ("agreement_db", "lr_consistency_db")):
        numbers = [None if r.image is None else getattr(r, key) for r in results]
        if any(v is not None for v in numbers):
            beside[name] = np.array([np.nan if v is None else v for v in numbers], np.float64)
    return Made(
        np.stack(images), np.array([r.image is None for r in results]),
        np.array([r.status == "failed" for r in results]),
        np.array([r.verdict == "not_decidable" for r in results]), **beside,
    )  # fmt: skip


def _at_canonical(image: np.ndarray) -> np.ndarray:
    size = (CANONICAL_SIZE, CANONICAL_SIZE)
    return image if image.shape[:2] == size else cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def _points_at_canonical(result: Result) -> np.ndarray:
    if result.landmarks is None or result.image is None:
        return np.full((68, 2), np.nan, np.float32)
    scale = CANONICAL_SIZE / len(result.image)
    return ((result.landmarks + 0.5) * scale - 0.5).astype(np.float32)


def rival_row(spec: str | dict[str, Any], folder: Path, device: Device = "auto") -> Row:
    """A rival of `evaluation.rivals`, blind: it gets no mask. Files that `spec` names are relative to `folder`.

    Raises:
        ImportError, ValueError, OSError, WeightsError: as `rivals.create` does.
    """
    place = pick_device(device)
    rival = rivals.create(spec, folder, place)
    read = rivals.read(spec)
    named = _strings(read if isinstance(read, str) else read.model_dump(mode="json"))
    contents = {text: _content(text, folder) for text in named}

    def make(lq: np.ndarray) -> Made:
        images = rival.restore(lq.astype(np.float32) / 255)
        expected = (len(lq), CANONICAL_SIZE, CANONICAL_SIZE, 3)
        if images.shape != expected or not np.isfinite(images).all():
            raise ValueError(f"rival {rival.name}: expected finite pictures {expected}, found {images.shape}")
        return Made.plain(to_uint8(images))

    source = "".join(inspect.getsource(module) for module in (rivals, foreign_upscalers))
    key = fingerprint("rival 2", spec, contents, source, place.type)
    return Row(rival.name, make, key, rivals.card_of(spec), rival=True)


def _strings(value: Any) -> list[str]:
    """Every string in plain values."""
    if isinstance(value, dict):
        return [s for v in value.values() for s in _strings(v)]
    return [value] if isinstance(value, str) else []


def _content(name: str, folder: Path) -> str:
    """Hash of the file or the card that a word of a rival's entry names, "" where it names none."""
    if (folder / name).is_file():
        return fingerprint(np.fromfile(folder / name, np.uint8))
    return card_key(name) if name in card_names() else ""


def measured(row: Row, lq: np.ndarray, warm: set[str]) -> Made:
    """Run a row on some thumbnails, with its time and memory.

    Args:
        warm: names of the rows that ran before; the first call loads networks, so it is made once more before the clock
            starts.
    """
    if row.name not in warm:
        row.make(lq[:1])
        warm.add(row.name)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    reset = _reset_peak()
    start = time.perf_counter()
    made = row.make(lq)
    seconds = (time.perf_counter() - start) / len(lq)
    return replace(made, seconds=seconds, peak_mib=_peak_mib() if reset else float("nan"), load=load)


def _reset_peak() -> bool:
    """Let the kernel count this process's peak memory from now on; False where it cannot (not Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_mib() -> float:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
