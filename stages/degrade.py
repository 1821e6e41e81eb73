"""The stage `degrade`: a canonical face goes in, a CCTV thumbnail with its occluder comes out. Seeded per face."""

from typing import ClassVar

import cv2
import numpy as np
import torch

from landmarks.alignment import apply
from stages.base import Sides, Stage, StageConfig
from stages.batch import FaceBatch
from stages.degradation import DegradationConfig, degrade_face, misframing
from stages.degradation.drawing import FRAME

_SALT = 0xDE64ADE  # keeps these draws apart from those of other stages with the same seed


class Degrade(Stage[DegradationConfig]):
    """Covers, films and compresses faces as a street camera and its recorder do.

    Reads `image`: (B, 3, S, S) RGB in [0, 1], canonical crops; any size S is first brought to 128 (area averaging when
    larger). Uses `landmarks` where an earlier stage wrote them, else the mean shape of a canonical face.
    Writes `image`: (B, 3, n, n), n = `size`; `occlusion` (B, 1, n, n), the share of each pixel that is covered; `grey`,
    True as well where the camera drawn was grey; `notes["degradation"]`, every drawn parameter. What the framing error
    brings in from outside the crop is its reflection. Landmarks and `to_source` follow the picture.
    """

    Config = DegradationConfig
    reads: ClassVar[frozenset[str]] = frozenset({"image"})
    writes: ClassVar[frozenset[str]] = frozenset({"image", "occlusion", "grey", "notes"})
    carries: ClassVar[frozenset[str]] = frozenset({"landmarks", "to_source"})
    generative: ClassVar[bool] = False
    accepts_px: ClassVar[tuple[int, int] | None] = (64, 4096)

    @classmethod
    def makes_px(cls, config: StageConfig, sides: Sides) -> Sides:
        assert isinstance(config, DegradationConfig)
        return config.size, config.size

    def __call__(self, batch: FaceBatch) -> FaceBatch:
        """Raises `ValueError` where the pictures are not square."""
        height, width = batch.image.shape[-2:]
        if height != width:
            raise ValueError(
                f"degrade: expected square canonical face crops, got {width}x{height} px; crop or align them first"
            )
        pictures = batch.image.detach().cpu().permute(0, 2, 3, 1).numpy()
        points = None if batch.landmarks is None else batch.landmarks.detach().cpu().numpy()
        to_frame, to_thumbnail = _scaling(height, FRAME), _scaling(FRAME, self.config.size)

        thumbnails, masks, grey, notes, moved = [], [], [], [], []
        for i, picture in enumerate(pictures):
            rng = np.random.default_rng([batch.seeds[i] % 2**64, _SALT])
            face = np.round(np.clip(_resize(picture), 0, 1) * 255).astype(np.uint8)
            move = misframing(rng, self.config)
            if not np.array_equal(move, np.eye(2, 3)):
                face = cv2.warpAffine(face, move, (FRAME, FRAME), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
            here = None if points is None else apply(move, apply(to_frame, points[i]))
            made = degrade_face(face, here, rng, self.config)
            thumbnails.append(made.lq)
            masks.append(made.mask_lq)
            grey.append(bool(batch.grey[i]) or "grey" in made.record or "infrared" in made.record)
            framing = [[round(float(v), 5) for v in row] for row in move]
            notes.append(
                batch.notes[i] | {"degradation": {"occluder": made.occluder, "framing": framing, **made.record}}
            )
            moved.append(_chain(_chain(to_thumbnail, move), to_frame))  # picture pixels -> thumbnail pixels
        device = batch.image.device
        lq = np.stack(thumbnails)
        is_grey = np.array(grey)
        if is_grey.any():  # codecs keep grey only to within rounding
            lq[is_grey] = lq[is_grey].mean(-1, keepdims=True)
        changes: dict[str, object] = {
            "image": torch.from_numpy(lq).permute(0, 3, 1, 2).contiguous().to(device),
            "occlusion": torch.from_numpy(np.stack(masks))[:, None].clamp(0, 1).to(device),
            "grey": torch.from_numpy(is_grey).to(batch.grey.device),
            "notes": tuple(notes),
        }
        if points is not None:
            there = np.stack([apply(m, p) for m, p in zip(moved, points, strict=True)])
            changes["landmarks"] = torch.from_numpy(there.astype(np.float32)).to(device)
        if batch.to_source is not None:
            source = batch.to_source.detach().cpu().numpy().astype(np.float64)
            back = np.stack([_chain(s, cv2.invertAffineTransform(m)) for s, m in zip(source, moved, strict=True)])
            changes["to_source"] = torch.from_numpy(back).to(batch.to_source)
        return batch.replace(**changes)


def _resize(picture: np.ndarray) -> np.ndarray:
    """A square (S, S, 3) float32 picture at 128 px."""
    if picture.shape[0] == FRAME:
        return picture
    method = cv2.INTER_AREA if picture.shape[0] > FRAME else cv2.INTER_CUBIC
    return cv2.resize(np.ascontiguousarray(picture), (FRAME, FRAME), interpolation=method)


def _scaling(source: int, target: int) -> np.ndarray:
    """(2, 3) matrix from pixels of a square frame to those of another size; the edges lie at -0.5 and size - 0.5."""
    k = target / source
    return np.array([[k, 0, 0.5 * k - 0.5], [0, k, 0.5 * k - 0.5]])


def _chain(outer: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """The (2, 3) matrix that applies `inner`, then `outer`."""
    return np.concatenate([outer[:, :2] @ inner[:, :2], (outer[:, :2] @ inner[:, 2] + outer[:, 2])[:, None]], axis=1)
