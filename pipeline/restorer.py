"""The Python API, and the core that the command line shares with it: decoded faces in, results out."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.chain import Chain, ChainError, pick_device, pick_precision
from pipeline.config import ChainConfig, ConfigError, VerdictConfig, load_chain
from pipeline.face import Face, Origin
from pipeline.images import (
    MAX_PIXELS,
    ImageError,
    ImageStatus,
    Limits,
    Picture,
    as_unit,
    check_size,
    decode,
    fit_mask,
    make_grey,
    pad_square,
    pixels_sha256,
    read_bytes,
    read_picture,
    settle_grey,
    sha256,
    to_uint8,
)  # fmt: skip
from stages.batch import FaceBatch

DoneStatus = Literal["ok", "review", "no_face"]
Status = Literal["ok", "review", "no_face", "corrupt", "unsupported", "failed"]
FAILURES = frozenset({"corrupt", "unsupported", "failed"})
_CHECKED = ("image", "landmarks", "occlusion", "uncertainty")  # what must be finite to be a result


@dataclass(frozen=True)
class Result:
    """What became of one input. Pictures share one frame (height, width); landmarks are pixels of it.

    Attributes:
        source: name of the input.
        status: `ok`, `review` (there is an output, but do not trust it), `no_face`, `corrupt`, `unsupported`, `failed`.
        image: (H, W, 3) or, for a grey input, (H, W) uint8; None unless `ok` or `review`.
        landmarks: (68, 2) float32, (x, y).
        landmark_confidence: (68,) in [0, 1].
        occlusion: (H, W) float32, the occluder found, 1 = covered.
        uncertainty: (H, W) float32, how invented each pixel is, 1 = wholly.
        occluded_fraction: share of the face frame that is covered.
        lr_consistency_db: PSNR of output and input at the input's size over visible pixels; dB.
        verdict: `restored` or `not_decidable`, the latter with `reason`.
        face_score: how sure the restorer is that there is a face, in [0, 1].
        side_px: shorter side of the face crop as it was recorded, pixels.
        parsing: (19, r, r) class probabilities in CelebAMask-HQ order.
        heatmaps: (68, r, r) landmark heatmaps.
        seconds: time spent on it; its share of the batch.
        error: what went wrong, for `corrupt`, `unsupported` and `failed`.
        input_sha256: of the input's content.
        notes: what was done on the way (orientation, padding, a second try), plain values.
        origin: where the face lies in its frame; None for a face crop.
        thumbnail: (h, w, 3) uint8, the face as it was cut out of its frame; None for a face crop.
        to_source: (2, 3) from pixels of `image` to pixels of the frame.
        paste_mask: (H, W) float32 in [0, 1], how far `image` shall replace the frame, where the chain ends with that.
    """

    source: str
    status: Status
    image: np.ndarray | None = None
    landmarks: np.ndarray | None = None
    landmark_confidence: np.ndarray | None = None
    occlusion: np.ndarray | None = None
    uncertainty: np.ndarray | None = None
    occluded_fraction: float | None = None
    lr_consistency_db: float | None = None
    verdict: Literal["restored", "not_decidable"] = "not_decidable"
    reason: str | None = None
    face_score: float | None = None
    side_px: int | None = None
    parsing: np.ndarray | None = None
    heatmaps: np.ndarray | None = None
    seconds: float = 0.0
    error: str | None = None
    input_sha256: str | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    origin: Origin | None = None
    thumbnail: np.ndarray | None = None
    to_source: np.ndarray | None = None
    paste_mask: np.ndarray | None = None


def failure(source: str, error: ImageError, digest: str | None = None, seconds: float = 0.0) -> Result:
    """The result of an input that could not be read."""
    return Result(source, error.status, reason=error.status, error=str(error), input_sha256=digest, seconds=seconds)


def _plain(picture: Picture) -> np.ndarray:
    """(H, W, 3), or (H, W) where it is grey, uint8."""
    pixels = to_uint8(as_unit(picture.pixels))
    return pixels[..., 0] if picture.grey else pixels


def _failed(face: Face, message: str, seconds: float = 0.0, status: ImageStatus = "failed") -> Result:
    """The result of a face that a stage could not finish."""
    return replace(failure(face.source, ImageError(status, message), face.digest, seconds), origin=face.origin)


def brightness(pixels: np.ndarray) -> float:
    """Where the lightest tenth of a picture's luma begins, in [0, 1]; (H, W, 3), any type `as_unit` takes."""
    return float(np.percentile(as_unit(make_grey(pixels))[..., 0], 90))


def judge(
    limits: VerdictConfig,
    side_px: int,
    light: float,
    score: float | None = None,
    covered: float | None = None,
    consistency: float | None = None,
    uncertainty: float | None = None,
    unedited: bool = False,
    likeness: float | None = None,
) -> tuple[DoneStatus, str | None]:
    """What may be said of a finished face: its status, and why nothing can be decided from it where that is so.

    Args:
        side_px: as of `Face`. light: as `brightness` gives it. uncertainty: mean of the map. unedited, likeness:
            as of `FaceBatch`. The others as in `Result`; None where no stage tells.
    """  # fmt: skip
    status: DoneStatus = "ok"
    reasons = []
    if score is not None and score < limits.min_face_score:
        status = "no_face"
        reasons.append(f"no face found: score {score:.2f} is under {limits.min_face_score:.2f}")
    elif unedited:
        reasons.append("not edited: no part of a face was found that the edit may act on")
    if likeness is not None and likeness < limits.min_likeness:
        reasons.append(
            f"no longer the same person: likeness to the face before {likeness:.2f}, under {limits.min_likeness:.2f}"
        )
    if covered is not None and covered > limits.max_occluded_fraction:
        reasons.append(f"{covered:.0%} of the face is covered, over {limits.max_occluded_fraction:.0%}")
    if consistency is not None and consistency < limits.min_consistency_db:
        reasons.append(f"output and input agree to {consistency:.1f} dB only, under {limits.min_consistency_db:.1f}")
    if side_px < limits.min_side_px:
        reasons.append(f"too small: {side_px} px a side, under {limits.min_side_px}")
    if light < limits.min_brightness:
        reasons.append(f"too dark: the lightest tenth begins at {light:.2f}, under {limits.min_brightness:.2f}")
    if uncertainty is not None and uncertainty > limits.max_uncertainty:
        reasons.append(f"too uncertain: {uncertainty:.2f} on average, over {limits.max_uncertainty:.2f}")
    if reasons and status == "ok":
        status = "review"
    return status, "; ".join(reasons) or None


def _number(values: Tensor | None, index: int) -> float | None:
    if values is None:
        return None
    value = float(values[index])
    return (
        None if value != value else min(value, 120.0)
    )  # a perfect match is infinite; 120 dB is beyond any 8-bit picture


def _array(values: Tensor | None, index: int) -> np.ndarray | None:
    return None if values is None else values[index].float().numpy()


class Restorer:
    """A chain ready to restore; build once, use for any number of pictures, from any thread.

    Example:
        restorer = Restorer.from_config("configs/cctv_restore.yaml", fidelity=0.8)
        for result in restorer.restore(["a.png", array]): ...
    """

    def __init__(
        self,
        config: ChainConfig,
        device: torch.device,
        precision: Literal["fp32", "bf16"],
        batch_size: int,
        max_pixels: int,
    ) -> None:
        self.config, self.device, self.precision, self.batch_size = config, device, precision, batch_size
        self.chain = Chain(config, device, precision)
        measured = config.profile == "forensic"
        self.limits = Limits(max_pixels, self.chain.accepts_px, self.chain.least_px, measured)

    @classmethod
    def from_config(
        cls,
        config: str | Path | dict[str, Any],
        *,
        fidelity: float | None = None,
        overrides: Sequence[str] = (),
        device: Literal["auto", "cpu", "cuda"] = "auto",
        precision: Literal["auto", "fp32", "bf16"] = "auto",
        batch_size: int = 32,
        max_pixels: int = MAX_PIXELS,
    ) -> "Restorer":
        """Check a chain and load its networks.

        Args:
            config: path of a chain YAML, name of a shipped one, or its plain values.
            fidelity: of every stage that has one: 1 = closest to the input, 0 = sharpest.
            overrides: assignments such as `stages.0.fidelity=0.2`.
            batch_size: faces handed to the chain at a time; changes memory, never the result.
            max_pixels: inputs with more pixels are `unsupported`.

        Raises:
            ConfigError: naming every mistake in the configuration, missing or changed weights included.
        """
        if batch_size < 1:
            raise ConfigError([f"batch_size = {batch_size}: expected 1 or more"])
        chosen = pick_device(device)
        return cls(
            load_chain(config, fidelity=fidelity, overrides=overrides), chosen, pick_precision(precision, chosen),
            batch_size, max_pixels,
        )  # fmt: skip

    @cached_property
    def _full_precision(self) -> Chain:
        """The same chain in float32, for faces that came out as not-a-number; built when first needed."""
        return Chain(self.config, self.device, "fp32")

    def restore(
        self,
        images: Sequence[np.ndarray | Image.Image | str | Path],
        names: Sequence[str] | None = None,
        masks: Sequence[np.ndarray | None] | None = None,
    ) -> list[Result]:
        """Restore pictures; one result per picture, in order. Never raises for what is wrong with a picture.

        Args:
            images: (H, W, 3) RGB, (H, W, 4) RGBA (uint8 only), (H, W) or (H, W, 1) grey arrays, uint8, uint16 or float
                in [0, 1]; PIL images; paths. One picture is a list of one; (N, H, W, 3) is N of them.
            names: what to call them in the results; default: path or position.
            masks: per picture an (H, W) array, 1 = covered, or None for blind.

        Raises:
            TypeError: `images` is one picture, not a list of them.
            ValueError: `names` or `masks` of another length than `images`.
            ConfigError: the chain begins with `detect`: `pipeline.sources.frames.restore_frames` runs such a chain; or
                a mask is given, and no stage reads it.
        """
        given_as: object = images  # whatever the annotation says: a single path would be taken for its letters
        single = isinstance(given_as, str | Path | Image.Image | Tensor)
        if single or (isinstance(given_as, np.ndarray) and given_as.ndim != 4):
            raise TypeError("images: expected a list of arrays, PIL images or paths; for one picture: restore([x])")
        if self.chain.opening is not None:
            raise ConfigError([f"{self.config.origin}: takes whole frames; use pipeline.sources.frames.restore_frames"])
        for label, given in (("names", names), ("masks", masks)):
            if given is not None and len(given) != len(images):
                raise ValueError(f"{label}: expected {len(images)} entries, one per image, found {len(given)}")
        if any(mask is not None for mask in masks or ()) and not self.chain.reads_mask:
            raise ConfigError([f"masks: no stage of {self.config.origin} reads a mask"])
        results: dict[int, Result] = {}
        groups: dict[tuple[int, int, bool, int], list[tuple[int, Face]]] = {}
        for index, image in enumerate(images):
            name = names[index] if names else str(image) if isinstance(image, (str, Path)) else f"image {index}"
            try:
                face = self._face(name, image, masks[index] if masks else None)
            except ImageError as error:
                results[index] = failure(name, error)
                continue
            group = groups.setdefault(face.group, [])
            group.append((index, face))
            if len(group) == self.batch_size:
                self._finish(groups.pop(face.group), results)
        for group in groups.values():
            self._finish(group, results)
        return [results[i] for i in range(len(images))]

    def _finish(self, group: list[tuple[int, Face]], results: dict[int, Result]) -> None:
        for (index, _), result in zip(group, self.run([face for _, face in group]), strict=True):
            results[index] = result

    def decode(self, name: str, image: np.ndarray | Image.Image | str | Path) -> Face:
        """A picture in any of the forms the API takes, with its content hash. Raises `ImageError`."""
        return self._face(name, image, None)

    def _face(self, name: str, image: np.ndarray | Image.Image | str | Path, mask: np.ndarray | None) -> Face:
        """A picture in any of the forms the API takes. Raises `ImageError`."""
        if isinstance(image, (str, Path)):
            data = read_bytes(image, self.limits)
            picture, digest = read_picture(data, str(image), self.limits), sha256(data)
        elif isinstance(image, Image.Image):
            check_size(image.width, image.height, self.limits)
            picture = decode(image.copy())
            digest = pixels_sha256(picture.pixels)
        else:
            picture = self._from_array(np.asarray(image))
            digest = pixels_sha256(picture.pixels)
        size = picture.notes.get("padded_from_px") or picture.pixels.shape[:2]
        square = self.limits.accepts_px is not None
        picture = pad_square(picture) if square else picture
        if mask is None:
            return Face(name, picture, digest)
        mask = np.asarray(mask)
        if mask.ndim != 2:
            raise ImageError("failed", f"mask: expected (H, W), found shape {mask.shape}")
        return Face(name, picture, digest, fit_mask(mask.astype(np.float32), (size[0], size[1]), square))

    def _from_array(self, pixels: np.ndarray) -> Picture:
        if pixels.ndim == 2:
            pixels = pixels[..., None]
        channels = (1, 3, 4) if pixels.dtype == np.uint8 else (1, 3)
        if pixels.ndim != 3 or 0 in pixels.shape or pixels.shape[2] not in channels:
            wanted = "(H, W, 3) RGB, (H, W) grey or, uint8, (H, W, 4) RGBA"
            raise ImageError("unsupported", f"expected an array {wanted}; found shape {pixels.shape}")
        if pixels.shape[2] == 4:
            check_size(pixels.shape[1], pixels.shape[0], self.limits)
            return decode(Image.fromarray(np.ascontiguousarray(pixels)))
        pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
        if pixels.dtype.kind == "f":
            if not np.isfinite(pixels).all() or pixels.min() < 0 or pixels.max() > 1:
                raise ImageError("unsupported", "float pixels must be finite and lie in [0, 1]; for 0..255 pass uint8")
            pixels = pixels.astype(np.float32)
        elif pixels.dtype not in (np.uint8, np.uint16):
            raise ImageError("unsupported", f"expected uint8, uint16 or float pixels, found {pixels.dtype}")
        check_size(pixels.shape[1], pixels.shape[0], self.limits)
        return settle_grey(pixels, {})

    def seed_of(self, digest: str) -> int:
        """The random seed of an input: from the run's seed and the input's content alone."""
        mixed = hashlib.sha256(f"{self.config.seed}:{digest}".encode()).digest()
        return int.from_bytes(mixed[:8], "little") >> 1  # fits a signed 64-bit integer

    def _batch(self, faces: Sequence[Face]) -> FaceBatch:
        pixels = np.stack([as_unit(face.picture.pixels) for face in faces])
        image = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        masks = [face.mask for face in faces if face.mask is not None]
        origins = [face.origin.to_source for face in faces if face.origin is not None]
        moments = [as_unit(face.frames) for face in faces if face.frames is not None]
        return FaceBatch(
            sources=tuple(face.source for face in faces),
            image=image,
            observed=image,
            seeds=tuple(self.seed_of(face.content_digest) for face in faces),
            grey=torch.tensor([face.picture.grey for face in faces]),
            given_mask=torch.from_numpy(np.stack(masks))[:, None] if masks else None,
            to_source=torch.from_numpy(np.stack(origins)).float() if origins else None,
            frames=torch.from_numpy(np.stack(moments)).permute(0, 1, 4, 2, 3).contiguous() if moments else None,
        )

    def run(self, faces: Sequence[Face], priors: bool = True) -> list[Result]:
        """Restore faces of one group (`Face.group`). A batch that fails is tried again face by face.

        Without `priors` the results hold no heatmaps and no parsing, most of the memory of a result.
        """
        started = time.perf_counter()
        try:
            batch = self.chain(self._batch(faces))
        except Exception as error:  # a stage may fail in any way; the culprit is found by running each face alone
            if len(faces) > 1:
                return [result for face in faces for result in self.run([face], priors)]
            cause = error.__cause__ if isinstance(error, ChainError) else None
            return [_failed(faces[0], str(error), status=cause.status if isinstance(cause, ImageError) else "failed")]
        masks = None if self.chain.closing is None else self.chain.closing.mask(batch)
        if not priors:
            batch = batch.replace(heatmaps=None, parsing=None)
        share = (time.perf_counter() - started) / len(faces)
        results = self._results(faces, batch, share)
        return results if masks is None else [replace(r, paste_mask=masks[i, 0].numpy()) for i, r in enumerate(results)]

    def _results(self, faces: Sequence[Face], batch: FaceBatch, seconds: float) -> list[Result]:
        finite = torch.ones(len(faces), dtype=torch.bool)
        for name in _CHECKED:
            if (values := getattr(batch, name)) is not None:
                finite &= torch.isfinite(values).flatten(1).all(1)
        images = to_uint8(torch.nan_to_num(batch.image.float()).permute(0, 2, 3, 1).numpy())
        return [
            self._result(face, batch, i, images[i], seconds) if finite[i] else self._again(face, seconds)
            for i, face in enumerate(faces)
        ]

    def _again(self, face: Face, seconds: float) -> Result:
        """A second and last try in float32 for a face that came out as not-a-number."""
        if self.precision == "fp32":
            return _failed(face, "the network's output is not finite", seconds)
        try:
            batch = self._full_precision(self._batch([face]))
        except ChainError as error:
            return _failed(face, str(error), seconds)
        if any((v := getattr(batch, n)) is not None and not bool(torch.isfinite(v).all()) for n in _CHECKED):
            return _failed(face, "the network's output is not finite, in float32 neither", seconds)
        image = to_uint8(batch.image.permute(0, 2, 3, 1).float().numpy())[0]
        result = self._result(face, batch, 0, image, seconds)
        return replace(result, notes={**result.notes, "redone_in": "fp32"})

    def _result(self, face: Face, batch: FaceBatch, i: int, image: np.ndarray, seconds: float) -> Result:
        score, covered = _number(batch.face_score, i), _number(batch.occluded_fraction, i)
        consistency = _number(batch.lr_consistency_db, i)
        occlusion, uncertainty = _array(batch.occlusion, i), _array(batch.uncertainty, i)
        invented = None if uncertainty is None else float(uncertainty.mean())
        light = brightness(face.picture.pixels)
        unedited = batch.unedited is not None and bool(batch.unedited[i])
        status, reason = judge(
            self.config.verdict, face.side_px, light, score, covered, consistency, invented, unedited,
            _number(batch.likeness, i),
        )  # fmt: skip
        return Result(
            source=face.source,
            status=status,
            image=None if status == "no_face" else image[..., 0] if bool(batch.grey[i]) else image,
            landmarks=_array(batch.landmarks, i),
            landmark_confidence=_array(batch.landmark_confidence, i),
            occlusion=None if occlusion is None else occlusion[0],
            uncertainty=None if uncertainty is None else uncertainty[0],
            occluded_fraction=covered,
            lr_consistency_db=consistency,
            verdict="restored" if reason is None else "not_decidable",
            reason=reason,
            face_score=score,
            side_px=face.side_px,
            parsing=_array(batch.parsing, i),
            heatmaps=_array(batch.heatmaps, i),
            seconds=seconds,
            input_sha256=face.digest,
            notes={**face.picture.notes, **({"given_mask": True} if face.mask is not None else {}), **batch.notes[i]},
            origin=face.origin,
            thumbnail=None if face.origin is None else _plain(face.picture),
            to_source=None if face.origin is None else _array(batch.to_source, i),
        )
