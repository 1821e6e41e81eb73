"""From a whole picture to its faces: find, choose, cut out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline.face import Face, Origin, place
from pipeline.images import ImageError, Picture, as_unit, to_uint8
from pipeline.restorer import FAILURES, Restorer, Result, failure
from stages.base import Closing, Detection, Opening


@dataclass
class FoundFaces:
    """What one picture held.

    Attributes:
        faces: those to restore, numbered from 0.
        failed: boxes that cannot be used, numbered along with the faces.
        dropped: the other findings, each with its reason; plain values.
    """

    faces: list[Face] = field(default_factory=list)
    failed: list[Result] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class FrameResult:
    """What became of one whole picture.

    Attributes:
        source: its name. status: of the picture as a whole, as in the journal; `reason`, `error`: why.
        faces: one result per face, with `origin` and `to_source`. dropped: findings not taken, with their reasons.
        image: the picture with the faces in it, where the chain ends with `paste`.
    """

    source: str
    status: str
    faces: list[Result] = field(default_factory=list)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    image: np.ndarray | None = None
    reason: str | None = None
    error: str | None = None


def overall(statuses: Mapping[str, int], dropped: int) -> tuple[str, str | None, str | None]:
    """Status, reason and error of an input from the number of its faces by status and of its dropped findings."""
    found = sum(statuses.values())
    failed = sum(count for status, count in statuses.items() if status in FAILURES)
    if failed:
        return "failed", "failed", f"{failed} of {found} faces failed"
    if not found:
        return "no_face", f"{dropped} found, none taken" if dropped else "no face was found", None
    for status in ("ok", "review"):
        if statuses.get(status):
            return status, None, None
    return "no_face", f"none of the {found} found is a face to the restorer", None


def restore_frames(
    restorer: Restorer,
    images: Sequence[np.ndarray | Image.Image | str | Path],
    boxes: Sequence[Sequence[tuple[float, float, float, float]]] | None = None,
) -> list[FrameResult]:
    """Restore the faces of whole pictures: what the command line does, from Python. One result per picture, in order.

    Args:
        restorer: of a chain that begins with `detect`.
        images: pictures in any form that `Restorer.restore` takes.
        boxes: per picture the (x, y, w, h) of its faces, for the back end `boxes`.

    Raises:
        ValueError: the chain takes face crops, or `boxes` has another length than `images`.
    """
    opening, closing = restorer.chain.opening, restorer.chain.closing
    if opening is None:
        raise ValueError(f"{restorer.config.origin}: does not begin with detect; use Restorer.restore")
    if boxes is not None and len(boxes) != len(images):
        raise ValueError(f"boxes: expected {len(images)} lists, one per image, found {len(boxes)}")
    results = []
    for index, image in enumerate(images):
        name = str(image) if isinstance(image, (str, Path)) else f"image {index}"
        try:
            whole = restorer.decode(name, image)
            given = None if boxes is None else [Detection(box, row=row) for row, box in enumerate(boxes[index])]
            found = faces_of(opening, whole.picture, name, whole.digest, given)
        except ImageError as error:
            results.append(FrameResult(name, error.status, reason=error.status, error=str(error)))
            continue
        groups: dict[tuple[int, int, bool, int], list[Face]] = {}
        for face in found.faces:
            groups.setdefault(face.group, []).append(face)
        made = list(found.failed)
        for group in groups.values():
            for start in range(0, len(group), restorer.batch_size):
                made += restorer.run(group[start : start + restorer.batch_size])
        made.sort(key=lambda r: r.origin.index if r.origin else 0)
        status, reason, problem = overall(Counter(r.status for r in made), len(found.dropped))
        good = [r for r in made if r.image is not None]
        pasted = None
        if closing is not None and good and status not in FAILURES:
            pasted = paste_all(closing, whole.picture, good)
        results.append(FrameResult(name, status, made, found.dropped, pasted, reason, problem))
    return results


def as_frame(picture: Picture) -> np.ndarray:
    """(H, W, 3) uint8 of a picture."""
    return picture.pixels if picture.pixels.dtype == np.uint8 else to_uint8(as_unit(picture.pixels))


def drop_record(detection: Detection, reason: str) -> dict[str, Any]:
    """How the journal names a finding that was not taken."""
    return {**place(detection), "reason": reason}


def unusable(name: str, digest: str, index: int, detection: Detection, size: tuple[int, int]) -> Result:
    """The result of a box that cannot be used."""
    error = failure(name, ImageError("failed", detection.error or ""), digest)
    origin = Origin(index, detection, np.zeros((2, 3)), size)
    return replace(error, origin=origin)


def find(opening: Opening[Any], frame: np.ndarray, given: Sequence[Detection] | None) -> list[Detection]:
    """The faces of a frame. Raises `ImageError` where the detector fails."""
    try:
        return opening.find(frame, given)
    except Exception as error:  # detectors may fail in any way; it is this input's failure, with the cause kept
        raise ImageError("failed", f"stages[0] (detect): {type(error).__name__}: {error}") from error


def paste_all(closing: Closing[Any], picture: Picture, results: Sequence[Result]) -> np.ndarray:
    """(H, W, 3) uint8, or (H, W) where the picture is grey: the picture with the restored faces in it."""
    frame = as_unit(picture.pixels)
    for result in sorted(results, key=lambda r: r.origin.index if r.origin else 0):
        assert result.image is not None and result.paste_mask is not None and result.to_source is not None
        face = as_unit(result.image)
        face = np.repeat(face[..., None], 3, axis=2) if face.ndim == 2 else face
        frame = closing.paste(frame, face, result.paste_mask, result.to_source, result.occlusion)
    whole = to_uint8(frame)
    return whole[..., 0] if picture.grey else whole


def faces_of(
    opening: Opening[Any], picture: Picture, name: str, digest: str, given: Sequence[Detection] | None
) -> FoundFaces:
    """The faces of a picture.

    Args:
        opening: the first step of the chain.
        picture: the decoded frame.
        name, digest: of the input.
        given: boxes from a file; None where a detector looks.
    """
    frame = as_frame(picture)
    size = frame.shape[:2]
    found = FoundFaces()
    kept, dropped = opening.choose(find(opening, frame, given), (size[0], size[1]))
    found.dropped = [drop_record(d, reason) for d, reason in dropped]
    for index, detection in enumerate(kept):
        if detection.error is not None:
            found.failed.append(unusable(name, digest, index, detection, (size[0], size[1])))
            continue
        cut = opening.cut(frame, detection)
        origin = Origin(index, detection, cut.to_source, (size[0], size[1]))
        # Grey is judged on the whole frame: a small crop of a pale face may be nearly grey by chance.
        found.faces.append(Face(name, Picture(cut.pixels, picture.grey, dict(picture.notes)), digest, None, origin))
    return found
