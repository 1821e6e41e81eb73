"""Stage `coogan`: change attributes of a face of any size in the memory of a small one."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from landmarks.alignment import to_canonical
from stages.attributes import FIRST_ROW, HAIR_COLOURS, REGIONS, SPARED, check_attributes, unlearned
from stages.base import Stage, StageConfig
from stages.batch import HALF_INVENTED, FaceBatch
from stages.consistency import averaging_matrix, consistency_db, visible_share
from stages.face_frame import FaceFrame, find_frame, look
from stages.luma import luma
from stages.networks.coogan import PATCH_ALIGN, CooganNet, GlobalEdit, sample_place
from stages.networks.face_parser import PARSING_CLASSES, FaceParser
from stages.networks.identity import IdentityNet
from stages.precision import Precision
from stages.tiling import Axis
from stages.weights import load_network, read_card

BAND_ROWS = 64  # rows that are read at a time
THUMB_PX = 320  # longer side of the reduced picture in which the face is looked for
REACH_PX, FADE_PX = 5, 9  # of the 128 px frame: how far an edit reaches beyond its parts, and over what width it fades


class CooganConfig(StageConfig):
    """Options of `coogan`."""

    # Wanted changes by name: 0 leaves as is, +1 clearly there (older, more masculine), -1 clearly away.
    attributes: dict[str, float]
    weights: str = "coogan_768"  # name of a card in weights/
    parser: str = "face_parser"  # card of the network that says where the parts of the face are
    identity: str = "identity"  # card of the network that says how near the edited person stays to the one before
    patch: int = Field(default=512, ge=64, le=8192, multiple_of=PATCH_ALIGN)  # px; bounds the memory
    overlap: int = Field(default=64, ge=16, le=512)  # px, shared by neighbouring patches

    @field_validator("attributes")
    @classmethod
    def _known(cls, value: dict[str, float]) -> dict[str, float]:
        check_attributes(value)
        return value

    @field_validator("overlap")
    @classmethod
    def _fits(cls, value: int, info: Any) -> int:
        if (patch := info.data.get("patch")) is not None and value * 3 > patch:
            raise ValueError(f"expected at most a third of patch = {patch}")
        return value


class RowSource(Protocol):
    """A picture that is read in bands of rows.

    Attributes: height, width, px.
    """

    height: int
    width: int

    def rows(self, top: int, bottom: int) -> Tensor:
        """(3, bottom - top, width) RGB, uint8 or float in [0, 1]."""


class TensorRows:
    """A picture (3, H, W) in memory as `RowSource`."""

    def __init__(self, image: Tensor) -> None:
        self.image, (_, self.height, self.width) = image, image.shape

    def rows(self, top: int, bottom: int) -> Tensor:
        return self.image[:, top:bottom]


def unit(pixels: Tensor) -> Tensor:
    """Pixels of a `RowSource` as float32 in [0, 1]."""
    return pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels.float()


@dataclass(frozen=True)
class EditPlan:
    """What is decided on the reduced picture, before the first full-size pixel is changed.

    Attributes:
        frame: where the face lies. matrix: (2, 3) float32, full-size pixel -> pixel of the 128 px frame.
        edit: the global path's answer. wanted: (1, A) differences asked of the network.
        region: (1, 1, 128, 128) in [0, 1], where the edit may act. source: predicted attributes by name.
        unedited: a change is asked for, and nowhere is there a part of a face that it may act on.
        likeness: cosine between the descriptors of the face before and after the edit, both at 128 px.
    """

    frame: FaceFrame
    matrix: Tensor
    edit: GlobalEdit
    wanted: Tensor
    region: Tensor
    source: dict[str, float]
    unedited: bool
    likeness: float


class Block(NamedTuple):
    """A finished rectangle of an edited picture, whose first pixel is (left, top).

    Attributes: image: (3, h, w) float32 in [0, 1]. invented: (1, h, w) in [0, 1], how far the edit changed a pixel.
    """

    top: int
    left: int
    image: Tensor
    invented: Tensor

    def put(self, image: Tensor, invented: Tensor) -> None:
        """Write the block into whole pictures (3, H, W) and (1, H, W)."""
        height, width = self.image.shape[-2:]
        place = (..., slice(self.top, self.top + height), slice(self.left, self.left + width))
        image[place], invented[place] = self.image.to(image.device), self.invented.to(invented.device)


class CooganEditor:
    """Edits pictures of any size, patch by patch; never holds more of one than a patch and a narrow band of rows."""

    def __init__(
        self,
        network: CooganNet,
        parser: FaceParser,
        identity: IdentityNet,
        attributes: dict[str, float],
        patch: int,
        overlap: int,
    ) -> None:
        """Raises `ValueError` for an attribute that the network has not learned."""
        check_attributes(attributes)
        if said := unlearned(attributes, network.attributes):
            raise ValueError(said)
        self.network, self.parser, self.identity, self.attributes = network, parser, identity, attributes
        self.patch, self.overlap = patch, overlap
        self.device = next(network.parameters()).device

    # ---- global path

    @torch.inference_mode()
    def plan(self, source: RowSource, landmarks: np.ndarray | None = None) -> EditPlan:
        """Find the face and edit it as a whole. `landmarks` (68, 2): pixels of the picture, where known."""
        thumb, scale = self._reduced(source)
        if landmarks is None:
            frame = find_frame(thumb, self.parser)
        else:
            small = (landmarks + 0.5) * scale - 0.5
            frame = look(thumb, to_canonical(small), self.parser)
        face = frame.face.to(self.device).contiguous(memory_format=torch.channels_last)
        found = self.network.source(face)[0]
        scaled = {name: strength * self.network.gains.get(name, 1.0) for name, strength in self.attributes.items()}
        wanted = wanted_change(scaled, found, self.network.attributes)[None]
        edit = self.network.edit_whole(face, wanted)
        matrix = frame.matrix.copy()  # of the reduced picture; to full size, pixel edges stay in place
        matrix[:, 2] += matrix[:, :2] @ (0.5 * scale - 0.5)
        matrix[:, :2] *= scale
        names = self.network.attributes
        region = edit_region(frame.parsing.to(self.device), self.attributes)
        return EditPlan(
            frame=frame,
            matrix=torch.from_numpy(matrix).float(),
            edit=edit,
            wanted=wanted,
            region=region,
            source={n: round(float(v), 3) for n, v in zip(names, found, strict=True)},
            unedited=any(self.attributes.values()) and not bool(region.any()),
            likeness=self._likeness(face, (face + edit.change * region).clamp(0, 1)),
        )

    def _likeness(self, before: Tensor, after: Tensor) -> float:
        """Cosine between the descriptors of two faces (1, 3, 128, 128)."""
        both = torch.cat([before, after]).to(next(self.identity.parameters()).dtype)
        descriptors = self.identity(both.contiguous(memory_format=torch.channels_last))
        return float(F.cosine_similarity(descriptors[:1], descriptors[1:]))

    def _reduced(self, source: RowSource) -> tuple[np.ndarray, np.ndarray]:
        """The picture area-averaged to at most `THUMB_PX`, (h, w, 3) float32, and its scale (x, y)."""
        longest = max(source.height, source.width)
        share = min(1.0, THUMB_PX / longest)
        height, width = (max(1, round(n * share)) for n in (source.height, source.width))
        down = averaging_matrix(source.height, height)
        across = down if source.width == source.height else averaging_matrix(source.width, width)
        thumb = torch.zeros(3, height, width)
        for top in range(0, source.height, BAND_ROWS):
            bottom = min(source.height, top + BAND_ROWS)
            # In one memory order, here and in `_change`: the same picture from a file differs in no bit.
            thumb += down[:, top:bottom] @ (unit(source.rows(top, bottom)).cpu().contiguous() @ across.T)
        scale = np.array([width / source.width, height / source.height])
        return np.ascontiguousarray(thumb.permute(1, 2, 0).numpy()), scale

    # ---- local path

    @torch.inference_mode()
    def run(self, source: RowSource, plan: EditPlan) -> Iterator[Block]:
        """Edit patch by patch; the blocks make up the whole picture, each pixel once, and come row by row.

        What has been given out is not read again: a caller may write it over its source.
        """
        rows, columns = (self._axis(n) for n in (source.height, source.width))
        above = torch.zeros(3, 0, source.width)  # what the patches above add to the first rows of the next
        for y, top in enumerate(rows.starts):
            down, bottom = rows.weights(y)[:, None], rows.settled(y) - top
            # Fine enough for differences, and the only thing here that is as wide as the picture.
            below = torch.zeros(3, rows.size - bottom, source.width, dtype=torch.float16)
            beside = torch.zeros(3, rows.size, 0)
            for x, left in enumerate(columns.starts):
                right = columns.settled(x) - left
                patch = self._patch(source, top, left, rows.size, columns.size)
                change = self._change(patch, plan, left, top)
                change = torch.zeros(patch.shape) if change is None else change * (down * columns.weights(x))
                change[:, :, : beside.shape[2]] += beside
                beside = change[:, :, right:].clone()
                change[:, : above.shape[1], :right] += above[:, :, left : left + right]
                below[:, :, left : left + right] = change[:, bottom:, :right].half()
                change = change[:, :bottom, :right]
                amount = change.abs().mean(0, keepdim=True)
                edited = (unit(patch[:, :bottom, :right]).cpu() + change).clamp_(0, 1)
                yield Block(top, left, edited, amount / (amount + HALF_INVENTED))
            above = below

    @staticmethod
    def _patch(source: RowSource, top: int, left: int, height: int, width: int) -> Tensor:
        """(3, height, width) of the picture at (left, top), from a few rows of the whole at a time."""
        parts = [
            source.rows(first, min(top + height, first + BAND_ROWS))[:, :, left : left + width].clone()
            for first in range(top, top + height, BAND_ROWS)
        ]
        return torch.cat(parts, 1)

    def _axis(self, length: int) -> Axis:
        return Axis(length, self.patch, self.overlap, min(8, self.overlap // 4))

    def _change(self, patch: Tensor, plan: EditPlan, left: int, top: int) -> Tensor | None:
        """(3, h, w) what the edit adds to a patch at (left, top); None where the edit does not reach."""
        height, width = patch.shape[-2:]
        place = plan.matrix[None].clone().to(self.device)
        place[:, :, 2] += place[:, :, :2] @ torch.tensor([left, top], dtype=torch.float32, device=self.device)
        region = sample_place(plan.region, place, (height, width))
        if not bool(region.any()):
            return None
        room = (0, -width % PATCH_ALIGN, 0, -height % PATCH_ALIGN)
        padded = F.pad(unit(patch)[None].to(self.device), room, mode="replicate")
        padded = padded.contiguous(memory_format=torch.channels_last)
        change, _ = self.network.edit_patch(padded, plan.edit, place, plan.wanted)
        return (change[0, :, :height, :width] * region[0]).cpu()


def wanted_change(attributes: dict[str, float], source: Tensor, names: tuple[str, ...]) -> Tensor:
    """(A,) differences to ask of the network: from the face as it is towards each target, scaled by its strength.

    At strength 1 an attribute goes from where it is to clearly there; what is there already is left alone. A rising
    hair colour takes the others away.
    """
    wanted = torch.zeros_like(source)
    for name, strength in attributes.items():
        goal = 1.0 if strength > 0 else -1.0
        wanted[names.index(name)] = abs(strength) * (goal - source[names.index(name)])
    rising = max((s for a, s in attributes.items() if a in HAIR_COLOURS), default=0.0)
    for name in HAIR_COLOURS:
        if rising > 0 and name in names and name not in attributes:
            wanted[names.index(name)] = rising * (-1.0 - source[names.index(name)])
    return wanted


def edit_region(parsing: Tensor, attributes: dict[str, float]) -> Tensor:
    """(B, 1, 128, 128) in [0, 1]: where the edits may act, 0 beyond; from (B, 19, 128, 128) class probabilities.

    As `region_where` says of the attributes whose strength is not 0.
    """

    def mass(parts: Sequence[str]) -> Tensor:
        return parsing[:, [PARSING_CLASSES.index(p) for p in parts]].sum(1, keepdim=True)

    asked = [name for name, strength in attributes.items() if strength]
    return region_where(mass, asked) if asked else torch.zeros_like(parsing[:, :1])


def region_where(mass: Callable[[Sequence[str]], Tensor], names: Sequence[str]) -> Tensor:
    """(B, 1, 128, 128) in [0, 1]: where edits of `names` may act, 0 beyond.

    The parts of each edit, widened by `REACH_PX`, without those it spares and from its first row on; of all edits
    together, faded over `FADE_PX`.
    `mass` tells how much of each pixel of the frame is one of some parts, (B, 1, 128, 128); more than half is there.
    """
    region: Tensor | None = None
    for name in names:
        part = (mass(REGIONS[name]) > 0.5).float()
        for kernel, reach in (((2 * REACH_PX + 1, 1), (REACH_PX, 0)), ((1, 2 * REACH_PX + 1), (0, REACH_PX))):
            part = F.max_pool2d(part, kernel, 1, reach)
        if name in SPARED:
            part = part * (mass(SPARED[name]) <= 0.5)
        part[..., : FIRST_ROW.get(name, 0), :] = 0
        region = part if region is None else torch.maximum(region, part)
    assert region is not None, "at least one name"
    pad = FADE_PX // 2
    return F.avg_pool2d(F.pad(region, (pad,) * 4, mode="replicate"), FADE_PX, 1)


class Coogan(Stage[CooganConfig]):
    """Changes attributes of a face: several at once, by continuous strength, only where the edit belongs.

    Reads and writes `image`: (B, 3, H, W) RGB in [0, 1], one face, tightly, canonically or FFHQ framed, of any size
    from 64 px on.
    Where an earlier stage wrote `landmarks`, the face is where they say; else it is found, and `face_score` tells
    whether there is one: the chain's verdict says how sure that has to be. Writes `uncertainty`: changed pixels are
    invented; `unedited`; and `likeness`, how near the person stays. Where `lr_consistency_db` was written, it is
    measured anew: an edited face need not agree with the evidence.
    Method: Chen et al., CooGAN, ECCV 2020; see `stages.networks.coogan` for what differs.
    """

    Config = CooganConfig
    reads: ClassVar[frozenset[str]] = frozenset({"image"})
    writes: ClassVar[frozenset[str]] = frozenset(
        {"image", "uncertainty", "face_score", "unedited", "likeness", "lr_consistency_db", "notes"}
    )
    one_by_one: ClassVar[bool] = True
    least_px: ClassVar[int] = 64
    training: ClassVar[Mapping[str, str]] = {
        "weights": "configs/train/coogan.yaml",
        "parser": "configs/train/face_parser.yaml",
        "identity": "configs/train/identity.yaml",
    }

    def __init__(self, config: CooganConfig, device: torch.device, precision: Precision) -> None:
        super().__init__(config, device, precision)
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        network, parser, identity = (
            load_network(name, device, dtype) for name in (config.weights, config.parser, config.identity)
        )
        if not isinstance(network, CooganNet):
            raise TypeError(f"coogan: {config.weights} holds a {type(network).__name__}, not an editor")
        if not isinstance(parser, FaceParser):
            raise TypeError(f"coogan: {config.parser} holds a {type(parser).__name__}, not a face parser")
        if not isinstance(identity, IdentityNet):
            raise TypeError(f"coogan: {config.identity} holds a {type(identity).__name__}, no descriptor of faces")
        self.editor = CooganEditor(network, parser, identity, config.attributes, config.patch, config.overlap)

    @classmethod
    def cards(cls, config: StageConfig) -> dict[str, str]:
        assert isinstance(config, CooganConfig)
        return {"weights": config.weights, "parser": config.parser, "identity": config.identity}

    @classmethod
    def beyond_weights(cls, config: StageConfig) -> str | None:
        assert isinstance(config, CooganConfig)
        known = read_card(config.weights).arguments.get("attributes")
        return None if known is None else unlearned(config.attributes, known)

    def asking(self, attributes: dict[str, float]) -> "Coogan":
        """The same stage, with the same networks, for other attributes. Raises `ValueError` as the first."""
        other, editor = copy(self), self.editor
        other.config = CooganConfig.model_validate(self.config.model_dump() | {"attributes": attributes})
        other.editor = CooganEditor(
            editor.network, editor.parser, editor.identity, attributes, editor.patch, editor.overlap
        )
        return other

    @torch.inference_mode()
    def __call__(self, batch: FaceBatch) -> FaceBatch:
        images, invented, scores, left_alone, likenesses, notes = [], [], [], [], [], []
        for i, image in enumerate(batch.image):
            source = TensorRows(image)
            points = None if batch.landmarks is None else batch.landmarks[i].cpu().double().numpy()
            plan = self.editor.plan(source, points)
            scores.append(plan.frame.score)
            left_alone.append(plan.unedited)
            likenesses.append(plan.likeness)
            notes.append(batch.notes[i] | {"edit": self.note(plan)})
            images.append(image.float().clone())
            invented.append(torch.zeros_like(images[-1][:1]))
            for block in self.editor.run(source, plan):
                block.put(images[-1], invented[-1])
        image, added = torch.stack(images), torch.stack(invented)
        image = torch.where(batch.grey.view(-1, 1, 1, 1), luma(image), image)
        score = torch.tensor(scores, device=image.device)
        unedited = torch.tensor(left_alone, device=image.device)
        likeness = torch.tensor(likenesses, device=image.device)
        changes: dict[str, Any] = {
            "image": image,
            "uncertainty": added if batch.uncertainty is None else torch.maximum(batch.uncertainty, added),
            "face_score": score if batch.face_score is None else torch.minimum(batch.face_score, score),
            "unedited": unedited if batch.unedited is None else batch.unedited | unedited,
            "likeness": likeness if batch.likeness is None else torch.minimum(batch.likeness, likeness),
            "notes": tuple(notes),
        }
        if batch.lr_consistency_db is not None:
            size = batch.observed.shape[-1]
            seen = torch.ones_like(batch.observed[:, :1]) if batch.occlusion is None else visible_share(
                batch.occlusion, size
            )  # fmt: skip
            changes["lr_consistency_db"] = consistency_db((image * 255).round() / 255, batch.observed.float(), seen)
        return batch.replace(**changes)

    def note(self, plan: EditPlan) -> dict[str, Any]:
        """What the journal keeps of an edit: what was asked for, how the face was read before it, how near it stays."""
        asked = {n: float(s) for n, s in self.config.attributes.items()}
        before = {n: plan.source[n] for n in asked}
        return {"attributes": asked, "before": before, "likeness": round(plan.likeness, 3)}
