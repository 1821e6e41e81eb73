"""FaceBatch: what travels along a chain. It holds faces of equal size; no stage edits it, each returns a new one."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# Expected absolute error (in [0, 1]) at which a pixel counts as half invented: the mean of the shipped restorer.
HALF_INVENTED = 0.06


@dataclass(frozen=True)
class FaceBatch:
    """Faces of equal size on their way along a chain.

    All pictures are RGB float32 in [0, 1], maps float32 in [0, 1]; B is the number of faces.

    Attributes:
        sources: B names of the inputs, for messages and records.
        image: (B, 3, H, W) the current picture; at the start the decoded input.
        observed: (B, 3, h, w) the input as it was decoded, or as measured from several frames (`fuse`): the evidence,
            changed by no learned stage.
        seeds: B integers, each drawn from (run seed, content hash), so that order and batching change nothing.
        grey: (B,) bool, True where the input is grey; a grey input must give a grey output.
        given_mask: (B, 1, h, w) occluder mask supplied by the user, 1 = covered; None when blind.
        landmarks: (B, 68, 2) points (x, y) in pixels of `image`, subject's own left and right.
        landmark_confidence: (B, 68) in [0, 1].
        face_score: (B,) how sure the restorer is that the input shows a face at all, in [0, 1].
        unedited: (B,) bool, True where an edit was asked for and no part of a face was found that it may act on.
        likeness: (B,) cosine between descriptors of the face before and after an edit, the least of several edits.
        heatmaps: (B, 68, r, r) landmark heatmaps, each summing to 1.
        parsing: (B, 19, r, r) class probabilities in CelebAMask-HQ order.
        occlusion: (B, 1, H, W) the occluder found; 1 = covered.
        uncertainty: (B, 1, H, W) how invented each pixel is; 1 = wholly.
        occluded_fraction: (B,) share of the face frame that is covered.
        lr_consistency_db: (B,) PSNR between input and output averaged to its size, over visible pixels; dB.
        to_source: (B, 2, 3) affine matrix from pixels of `image` to pixels of the source picture. A stage that only
            changes the size of `image` need not carry it: the chain does.
        frames: (B, N, 3, h, w) thumbnails of the same face at N moments of a video, `image` itself first.
        notes: per face, further values a stage wants in the journal; B dictionaries of plain JSON values.
    """

    sources: tuple[str, ...]
    image: Tensor
    observed: Tensor
    seeds: tuple[int, ...]
    grey: Tensor
    given_mask: Tensor | None = None
    landmarks: Tensor | None = None
    landmark_confidence: Tensor | None = None
    face_score: Tensor | None = None
    unedited: Tensor | None = None
    likeness: Tensor | None = None
    heatmaps: Tensor | None = None
    parsing: Tensor | None = None
    occlusion: Tensor | None = None
    uncertainty: Tensor | None = None
    occluded_fraction: Tensor | None = None
    lr_consistency_db: Tensor | None = None
    to_source: Tensor | None = None
    frames: Tensor | None = None
    notes: tuple[dict[str, Any], ...] = field(default=())

    def __post_init__(self) -> None:
        count = len(self.sources)
        if not self.notes:
            object.__setattr__(self, "notes", tuple({} for _ in range(count)))
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value is not None and len(value) != count:
                raise ValueError(f"FaceBatch: {item.name} has {len(value)} entries for {count} sources")

    def __len__(self) -> int:
        return len(self.sources)

    def replace(self, **changes: Any) -> "FaceBatch":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to(self, device: torch.device) -> "FaceBatch":
        """A copy with every tensor on `device`; to a GPU from pinned memory, so that the copies do not wait."""
        pin = device.type == "cuda"
        tensors = {
            f.name: (v.pin_memory() if pin and v.device.type == "cpu" else v).to(device, non_blocking=pin)
            for f in dataclasses.fields(self)
            if isinstance(v := getattr(self, f.name), Tensor)
        }
        return self.replace(**tensors)

    def cut(self, start: int, stop: int) -> "FaceBatch":
        """Faces `start` to `stop` as a batch."""
        return FaceBatch(
            **{f.name: v[start:stop] for f in dataclasses.fields(self) if (v := getattr(self, f.name)) is not None}
        )
