"""Train the editor: `train -c configs/train/coogan.yaml`, then `coogan_local.yaml` on the finished global path.

Phase `whole` trains the global path on faces of 128 px; phase `local` freezes it and trains the local path on two
overlapping patches of larger faces. Most samples have an answer: an invented person at another level of age or gender,
or an edit laid on by prototypes, forwards or backwards (`training.edit_samples`). The others are judged alone by what
judges all: a critic, and a frozen reader of traits that sees the edited face shifted, turned, mirrored and blurred, so
that patterns which fool it do not pay. What is judged is what the stage would give: the change within its region.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor, nn

from landmarks.alignment import apply
from stages.attributes import ATTRIBUTES, HAIR_COLOURS
from stages.coogan import edit_region
from stages.luma import luma
from stages.networks.classifier import TraitNet
from stages.networks.coogan import GLOBAL_SIZE, CooganNet, sample_place
from stages.networks.face_parser import PARSING_CLASSES, FaceParser
from stages.networks.identity import IdentityNet
from stages.networks.prouigan import ProUiganNet
from stages.weights import read_card
from training.attribute_labels import label_of_answer
from training.config import TrainingError, arguments_of, load_training
from training.discriminators import PatchCritic, matching_loss
from training.edit_faces import EditFaces, class_maps, hair_labels, small_faces, taught, warped
from training.edit_samples import fit_prototypes, laid_on, mirrored_points, region_of, tensor_of
from training.faces import build_pack
from training.files import whole_file
from training.growth import grow_editor
from training.hr_faces import HrPack, PackConfig, build_hr_pack, open_hr_pack
from training.loop import LoopConfig, Task, network_of, rng_of, train
from training.losses import hinge_fake, hinge_real, identity_loss
from training.parsing_labels import parsing_labels
from training.prototypes import Prototype
from training.repainted import Paint, Repainted, repaint

PATCH = 128  # px, side of a training patch
OVERLAP = 64  # px, shared by the two patches of a sample
CELL = 8  # px of a patch that are averaged before it is held against the global edit: one global pixel at zoom 8
RIM = 16  # px, the outermost pixels of a patch, which the stage's blending leaves out
HELD, SHOWN, SHOWN_PX = 24, 8, 384  # faces of validation, of them in a grid, and their side there in phase `local`
LARGE_PX = 240  # side of a frame from which patches are cut, and that validation looks at
CLEAR = 0.3  # label beyond which an attribute counts as there or not there


class CooganTraining(BaseModel):
    """Options of this script."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    phase: Literal["whole", "local"] = "whole"
    start: str | None = None  # name of a card whose editor is to learn more
    start_run: Path | None = None  # run folder of the finished global path; phase `local` needs it
    faces: PackConfig  # large faces
    data: list[Path] = Field(default_factory=list)  # sources of the restorer's pack, for phase `whole`
    pack: Path | None = None  # that pack
    small_faces: int = Field(default=2500, gt=0)  # of each of its sets, at most
    network: Annotated[dict[str, Any], arguments_of(CooganNet)]  # its attributes are those trained
    parser: str = "face_parser"  # cards of frozen networks
    identity: str | None = None
    painter: str | None = None  # card of a restorer that paints what edits take away
    teacher: str | None = None  # a classifier that fills in labels and judges edits; never the one of evaluation
    set_factor: dict[str, float] = Field(default_factory=dict)
    attribute_factor: dict[str, float] = Field(default_factory=dict)  # how often each is asked for; 1 if not named
    pair_share: float = Field(default=0.15, ge=0, le=1)  # samples with an answer from omi_pairs
    still_share: float = Field(default=0.06, ge=0, le=1)  # samples that ask for no change
    free_share: float = Field(default=0.1, ge=0, le=1)  # of the other samples: without an answer
    reverse_share: float = Field(default=0.4, ge=0, le=1)  # of the edits laid on: the photograph is the truth
    taken_share: float = Field(default=0.35, ge=0, le=1)  # of the edits that a restorer can paint: by it
    max_zoom: float = Field(default=8.0, ge=1)  # patches beyond what the source resolves are enlarged ones
    critic_width: int = Field(default=32, gt=0)
    reconstruction: float = Field(default=20.0, ge=0)
    paired: float = Field(default=10.0, ge=0)
    attribute: float = Field(default=0.1, ge=0)
    matching: float = Field(default=0.5, ge=0)
    adversarial: float = Field(default=0.05, ge=0)
    identity_weight: float = Field(default=1.0, ge=0)
    consistency: float = Field(default=10.0, ge=0)
    overlap: float = Field(default=10.0, ge=0)
    detail: float = Field(default=10.0, ge=0)  # on the fine part, where the answer has it in its place
    grain: float = Field(default=10.0, ge=0)  # on how much of it there is, elsewhere
    change: float = Field(default=2.0, ge=0)  # on the mean absolute change of free edits: no more than needed
    source: float = Field(default=0.5, ge=0)  # of the head that predicts the source attributes
    critic_from: int = Field(default=200, ge=0)  # steps before the adversarial losses count
    loop: LoopConfig

    @field_validator("network")
    @classmethod
    def _named(cls, value: dict[str, Any]) -> dict[str, Any]:
        unknown = [a for a in value.get("attributes", []) if a not in ATTRIBUTES]
        if unknown or not value.get("attributes"):
            raise ValueError(f"network.attributes: expected some of {', '.join(ATTRIBUTES)}; unknown: {unknown}")
        return value

    @model_validator(mode="after")
    def _local_starts_somewhere(self) -> "CooganTraining":
        if self.phase == "local" and self.start_run is None:
            raise ValueError("phase local works on a finished global path: name its run folder (start_run)")
        if self.start is not None and self.start_run is not None:
            raise ValueError("start and start_run: one of them, for both name weights to start from")
        return self


class FaceCritic(nn.Module):
    """Critic of whole faces at 128 px, with answers to every attribute, shared trunk.

    (B, 3, 128, 128) -> logits (B, n), attribute answers (B, A) in [-1, 1], features.
    """

    def __init__(self, attributes: int, width: int = 32) -> None:
        super().__init__()
        self.critic = PatchCritic((width, 2 * width, 4 * width, 6 * width))
        self.answers = nn.Sequential(nn.Linear(6 * width * 16, 256), nn.SiLU(), nn.Linear(256, attributes))

    def forward(self, face: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        logits, features = self.critic(face)
        deep = F.adaptive_avg_pool2d(features[-1], 4).flatten(1)
        return logits, torch.tanh(self.answers(deep)).float(), features


class CooganTask(Task):
    """Faces with labels, edits of them, and patches of them."""

    def __init__(self, config: CooganTraining) -> None:
        self.config = config
        self.local = config.phase == "local"
        torch.manual_seed(config.loop.seed)  # the processes of a run start from the same weights
        self.net = CooganNet(**config.network)
        self.network: nn.Module = self.net
        self.names = self.net.attributes
        self.columns = [ATTRIBUTES.index(n) for n in self.names]
        if config.start is not None:
            grow_editor(self.net, network_of(config.start, CooganNet))
        elif config.start_run is not None:
            path = config.start_run / "checkpoint.pt"
            state = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 tensors only
            self.net.load_state_dict(state["ema"])
        self.others: dict[str, nn.Module] = {}
        if self.local:
            self.net.whole.requires_grad_(False)
            self.others["patch"] = PatchCritic(tuple(config.critic_width * k for k in (1, 2, 4)), inputs=6)
        else:
            self.net.local.requires_grad_(False)
            self.others["face"] = FaceCritic(len(self.names), config.critic_width)
        frozen = config.loop.teacher
        self.parser = frozen(config.parser, FaceParser)
        self.identity = frozen(config.identity, IdentityNet) if config.identity else None
        self.teacher = frozen(config.teacher, TraitNet) if config.teacher else None
        self.faces = self._open_faces()
        self.prototypes = self._known()
        self.labels = self.faces.labels[:, self.columns]
        usable = ~self.faces.validation & (self.faces.sides >= (LARGE_PX if self.local else 0))
        factor = np.array([config.set_factor.get(str(s), 1.0) for s in self.faces.sets]) * usable
        if not factor.any():
            raise TrainingError("no face to train on: every one is held out, too small, or of a set with factor 0")
        self.members = np.flatnonzero(factor)
        self.shares = np.cumsum(factor[self.members]) / factor.sum()
        self.pairs = self._find_pairs(usable)
        self.repainted = self._repainted()
        self.having = [np.intersect1d(self.repainted.having(n), self.members) for n in self.names]
        ask = np.array([config.attribute_factor.get(n, 1.0) for n in self.names])
        self.ask = np.cumsum(ask / ask.sum())
        held = np.flatnonzero(self.faces.validation & (self.faces.sides >= LARGE_PX))
        self.held = [int(i) for i in held[:: max(1, len(held) // HELD)][:HELD]]

    # ---- faces

    def trained_sets(self) -> np.ndarray:
        paired = [face for pair in self.pairs for face in pair]
        return self.faces.sets[np.unique([*self.members.tolist(), *paired])]

    def _open_faces(self) -> EditFaces:
        config = self.config
        large: HrPack = open_hr_pack(build_hr_pack(config.faces))
        packs, maps = [large], [class_maps(large, config.faces.pack / "classes.npy", self.parser)]
        if config.pack is not None and not self.local:
            pack = build_pack(config.data, config.pack, more=True)
            parsing = parsing_labels(pack, config.pack, self.parser)
            small, small_maps = small_faces(pack, parsing, config.data, config.small_faces)
            packs.append(small)
            maps.append(small_maps)
        return EditFaces.of(packs, maps)

    def _known(self) -> dict[str, Prototype]:
        """Fill in labels, and fit the prototypes; kept beside the pack, for the other processes and the next run."""
        path = self.config.faces.pack / f"known_{self.config.phase}.npz"
        teacher = "" if self.config.teacher is None else read_card(self.config.teacher).sha256
        made_for = np.array([teacher, *self.names])
        if path.exists():
            kept = dict(np.load(path, allow_pickle=False))
            if np.array_equal(kept["ids"], self.faces.ids) and np.array_equal(kept["of"], made_for):
                self.faces.labels[:] = kept["labels"]
                names = [k.removeprefix("span_") for k in kept if k.startswith("span_")]
                return {n: Prototype(kept[f"shapes_{n}"], kept[f"ratios_{n}"], float(kept[f"span_{n}"])) for n in names}
        hair_labels(self.faces)
        if self.teacher is not None:
            answers = taught(self.faces, self.teacher)
            # Of the pairs a set knows only the order; how old they look the teacher says.
            unknown = np.isnan(self.faces.labels) | ((self.faces.sets == "omi_pairs")[:, None] & ~np.isnan(answers))
            self.faces.labels[unknown] = answers[unknown]
        prototypes = fit_prototypes(self.faces, self.names, self.config.loop.seed)
        arrays: dict[str, Any] = {"labels": self.faces.labels, "ids": self.faces.ids, "of": made_for}
        for name, p in prototypes.items():
            arrays |= {f"shapes_{name}": p.shapes, f"ratios_{name}": p.ratios, f"span_{name}": np.asarray(p.span)}
        with whole_file(path) as file:
            np.savez(file, **arrays)
        return prototypes

    def _repainted(self) -> Repainted:
        """Faces without what they have, where a restorer is named."""
        config = self.config
        if config.painter is None:
            return Repainted.none()
        path = config.faces.pack / f"repainted_{config.phase}.npz"
        return repaint(self.faces, network_of(config.painter, ProUiganNet), read_card(config.painter).sha256, path)

    def _find_pairs(self, usable: np.ndarray) -> list[tuple[int, int]]:
        """Pairs (from, to) of one invented person at two levels of one trait, both ways."""
        groups: dict[str, list[int]] = {}
        for i in np.flatnonzero((self.faces.sets == "omi_pairs") & usable):
            person, trait, _ = str(self.faces.ids[i]).rsplit("_", 2)
            if {"age": "age", "gender": "masculine"}.get(trait) in self.names:
                groups.setdefault(f"{person}_{trait}", []).append(int(i))
        return [(a, b) for members in groups.values() for a in members for b in members if a != b]

    # ---- samples

    def sample(self, index: int) -> dict[str, np.ndarray]:
        rng, config = rng_of(self.config.loop.seed, index), self.config
        draw, goal, k, taken = rng.random(), -1, int(np.searchsorted(self.ask, rng.random())), False
        if self.pairs and draw < config.pair_share:
            face, goal = self.pairs[int(rng.integers(len(self.pairs)))]
        elif draw >= config.pair_share + config.still_share and len(having := self.having[k]):
            taken = bool(rng.random() < config.taken_share)
            face = int(rng.choice(having)) if taken else self._any_face(rng)
        else:
            face = self._any_face(rng)
        mirrored = bool(rng.random() < 0.5)
        matrix = self._varied_frame(face, rng, mirrored)  # stored picture -> 128 px frame
        views = [(matrix, (GLOBAL_SIZE, GLOBAL_SIZE), np.array([[1.0, 0, 0], [0, 1.0, 0]]))]
        if self.local:
            views.append(self._strip(matrix, rng))
        before = [warped(self.faces.picture(face), m, size) for m, size, _ in views]
        after, backwards = before, False
        aligned = np.ones(before[-1].shape[:2], np.float32)
        labels, target = self.labels[face].copy(), np.full(len(self.names), np.nan, np.float32)
        wanted, answered = np.zeros(len(self.names), np.float32), True
        classes = self.faces.class_map(face)
        to_map = self.faces.map_matrix(face, matrix)  # class map -> frame
        if goal >= 0:
            aligned[:] = 0
            after = [warped(self.faces.picture(goal), m, size) for m, size, _ in views]
            k = self.names.index({"age": "age", "gender": "masculine"}[str(self.faces.ids[face]).rsplit("_", 2)[1]])
            wanted[k], target[k] = self.labels[goal, k] - labels[k], self.labels[goal, k]
        elif draw >= config.pair_share + config.still_share:
            edit = None
            if taken or (rng.random() >= config.free_share and np.isfinite(labels[k])):
                points = apply(matrix if not mirrored else self._unmirrored(matrix), self.faces.landmarks[face])
                points = mirrored_points(points) if mirrored else points
                hair = (classes == PARSING_CLASSES.index("hair")).astype(np.float32)
                hair = cv2.warpAffine(hair, to_map, (GLOBAL_SIZE,) * 2, borderMode=cv2.BORDER_REFLECT_101)
                backwards = bool(rng.random() < config.reverse_share)
                other, paint = -1.0 if taken else self._target(k, labels[k], rng), None
                if taken:
                    paint = self._paint(self.names[k], face, matrix)
                    backwards &= self.names[k] != "eyeglasses"  # real ones differ too much: their mean is a smear
                edit = laid_on(
                    self.names[k], other - labels[k], before[0], points, cv2.GaussianBlur(hair, (0, 0), 1.0),
                    self.prototypes, rng if backwards else None, paint,
                )  # fmt: skip
                if edit is not None:
                    wanted, target = self._ask(k, other, labels)
                    after = [edit.on_part(p, place, points) for p, (_, _, place) in zip(before, views, strict=True)]
                    aligned = edit.aligned(views[-1][2], before[-1].shape[1::-1])
                    if backwards:
                        before, after = after, before
                        real = labels
                        labels = np.where(np.isfinite(target), target, labels)
                        target = np.where(np.isfinite(target), real, np.nan).astype(np.float32)
                        wanted = -wanted
            if edit is None:
                backwards, answered = False, False
                for j in {k} if rng.random() < 0.7 else {k, int(np.searchsorted(self.ask, rng.random()))}:
                    if np.isfinite(labels[j]):
                        more = self._ask(j, self._target(j, labels[j], rng), labels)
                        wanted = np.where(np.isfinite(more[1]), more[0], wanted)
                        target = np.where(np.isfinite(more[1]), more[1], target)
                answered = not np.any(wanted != 0)
        asked = [n for n, w in zip(self.names, wanted, strict=True) if w != 0]
        region = region_of(classes, to_map, asked) if asked else np.full((GLOBAL_SIZE,) * 2, 255, np.uint8)
        made = {"face": before[0], "goal": after[0]}
        if self.local:
            made |= {"strip": before[1], "goal_strip": after[1]}
            made |= {"aligned": np.round(aligned * 255).astype(np.uint8)[..., None]}
        return {n: np.ascontiguousarray(v.transpose(2, 0, 1)) for n, v in made.items()} | {
            "region": region[None],
            "place": views[-1][2].astype(np.float32),
            "labels": labels.astype(np.float32),
            "wanted": wanted.astype(np.float32),
            "target": target.astype(np.float32),
            "answered": np.asarray(answered, np.float32),
            "backwards": np.asarray(backwards, np.float32),
        }

    def _any_face(self, rng: np.random.Generator) -> int:
        return int(self.members[int(np.searchsorted(self.shares, rng.random()))])

    def _paint(self, name: str, face: int, matrix: np.ndarray) -> Paint:
        """`face` without attribute `name`, in the frame that `matrix` (2, 3) takes its stored picture to."""
        whole, frame = np.eye(3), np.eye(3)
        whole[:2], frame[:2] = matrix, self.faces.frame_matrix(face)
        return self.repainted.of(name, face).moved((whole @ np.linalg.inv(frame))[:2])

    def _varied_frame(self, face: int, rng: np.random.Generator, mirrored: bool) -> np.ndarray:
        """(2, 3) from the stored picture to the 128 px frame, a little mis-framed."""
        stored, side = int(self.faces.stored[face]), int(self.faces.sides[face])
        scale = GLOBAL_SIZE / side * float(np.exp(rng.normal(0, 0.03)))
        matrix = cv2.getRotationMatrix2D(((stored - 1) / 2,) * 2, float(rng.normal(0, 3)), scale)
        matrix[:, 2] = matrix[:, 2] + (GLOBAL_SIZE - stored) / 2 + rng.normal(0, 1.5, 2)
        return self._unmirrored(matrix) if mirrored else matrix  # a mirror is its own inverse

    @staticmethod
    def _unmirrored(matrix: np.ndarray) -> np.ndarray:
        """`matrix` followed by a mirror of the frame."""
        turned = matrix.copy()
        turned[0] = -turned[0]
        turned[0, 2] += GLOBAL_SIZE - 1
        return turned

    def _strip(self, matrix: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, tuple[int, int], np.ndarray]:
        """Two overlapping patches together: stored picture -> strip, its (height, width), strip -> frame."""
        zoom = float(np.exp(rng.uniform(0, np.log(self.config.max_zoom))))
        size = (PATCH, 2 * PATCH - OVERLAP)
        reach = (max(0.0, GLOBAL_SIZE - size[1] / zoom), max(0.0, GLOBAL_SIZE - size[0] / zoom))
        corner = np.array([rng.uniform(0, reach[0]), rng.uniform(0, reach[1])])
        to_strip = matrix.copy()  # frame pixels less the corner, times zoom, edges in place
        to_strip[:, 2] = zoom * (matrix[:, 2] - corner + 0.5) - 0.5
        to_strip[:, :2] *= zoom
        place = np.array([[1 / zoom, 0, corner[0] + 0.5 / zoom - 0.5], [0, 1 / zoom, corner[1] + 0.5 / zoom - 0.5]])
        return to_strip, size, place

    def _target(self, k: int, source: float, rng: np.random.Generator) -> float:
        """A label to ask for: mostly the other side, clearly; sometimes anything, where there are degrees."""
        if self.names[k] in HAIR_COLOURS:
            return 1.0 if source < CLEAR else -1.0
        up = rng.random() < 0.5 if abs(source) < CLEAR else source < 0
        if rng.random() < 0.2:
            return float(rng.uniform(-1, 1))
        return 1.0 if up else -1.0

    def _ask(self, k: int, goal: float, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Wanted change (A,) and targets (A,), NaN for attributes that are to stay; from `labels` (A,)."""
        target: np.ndarray = np.full(len(self.names), np.nan, np.float32)
        target[k] = goal
        if self.names[k] in HAIR_COLOURS and goal > 0:  # one hair colour takes the others' place
            for j, other in enumerate(self.names):
                if other in HAIR_COLOURS and j != k and np.isfinite(labels[j]):
                    target[j] = -1.0
        wanted = np.where(np.isfinite(target), target - np.nan_to_num(labels), 0).astype(np.float32)
        return wanted, target

    # ---- losses

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        parts = self._local_loss(batch) if self.local else self._whole_loss(batch)
        config = self.config
        switched = float(step >= config.critic_from)
        weights = {
            "source": config.source, "reconstruction": config.reconstruction, "paired": config.paired,
            "consistency": config.consistency, "overlap": config.overlap, "detail": config.detail,
            "grain": config.grain, "change": config.change,
            "attribute": config.attribute, "read": config.attribute * switched,
            "matching": config.matching * switched, "identity": config.identity_weight,
            "adversarial": config.adversarial * switched,
        }  # fmt: skip
        total = torch.stack([weights[k] * v.float() for k, v in parts.items() if k in weights]).sum()
        return total, {k: v.detach() for k, v in parts.items()}

    def _whole_loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        face, region = _unit(batch["face"]), batch["region"].float() / 255
        kept = self.net.whole.encode(face)
        source = self.net.whole.source(kept)
        change, _ = self.net.whole(kept, batch["wanted"])
        whole = (face + change * region).clamp(0, 1)
        goal = face + (_unit(batch["goal"]) - face) * region
        still = (batch["wanted"] == 0).all(1).float()
        answered = batch["answered"]
        known = ~torch.isnan(batch["labels"])
        parts = {"source": _mean((source - torch.nan_to_num(batch["labels"])).abs(), known)}
        near = (whole - goal).abs().mean((1, 2, 3))
        parts["reconstruction"], parts["paired"] = _mean(near, still), _mean(near, answered - still)
        parts["change"] = _mean((whole - face).abs().mean((1, 2, 3)), 1 - answered)
        critic = self.others["face"].requires_grad_(False)
        logits, answers, features = critic(whole)
        parts["read"] = self._attribute_loss(answers, batch, still)
        if self.teacher is not None:
            seen = _varied(whole, self._colourless(batch))
            parts["attribute"] = self._attribute_loss(self._teach(seen), batch, still)
        with torch.no_grad():
            _, _, real = critic(goal)
        keep = answered.view(-1, 1, 1, 1)
        parts["matching"] = matching_loss([f * keep for f in features], [r * keep for r in real])
        parts["adversarial"] = -logits.mean()
        if self.identity is not None:
            with torch.no_grad():
                own = self.identity(face)
            parts["identity"] = identity_loss(self.identity(whole).float(), own.float(), torch.ones_like(still))
        batch |= {"edited": whole.detach()}
        return parts

    def _local_loss(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        face, strip, goal = _unit(batch["face"]), _unit(batch["strip"]), _unit(batch["goal_strip"])
        region, wanted, aligned = batch["region"].float() / 255, batch["wanted"], _unit(batch["aligned"])
        with torch.no_grad():
            edit = self.net.edit_whole(face, wanted)
            whole = (face + edit.change * region).clamp(0, 1)
        still = (wanted == 0).all(1).float()
        made, parts = [], {}
        near: Tensor = torch.zeros_like(still)
        fine, grain = torch.zeros_like(still), torch.zeros_like(still)
        consistency: Tensor = torch.zeros((), device=face.device)
        for left in (0, PATCH - OVERLAP):
            place = batch["place"].clone()
            place[:, :, 2] += place[:, :, :2] @ torch.tensor([left, 0.0], device=face.device)
            patch, truth = strip[..., left : left + PATCH], goal[..., left : left + PATCH]
            added, _ = self.net.edit_patch(patch, edit, place, wanted)
            reach = sample_place(region, place, (PATCH, PATCH))
            out = (patch + added * reach).clamp(0, 1)
            made.append((out, place))
            near = near + (out - truth).abs().mean((1, 2, 3)) / 2
            found, wished = _fine(out), _fine(patch + (truth - patch) * reach)
            here = aligned[..., left : left + PATCH]
            fine = fine + ((found - wished).abs() * here).mean((1, 2, 3)) / 2
            # Where an answer moves things, held against it pixel by pixel the finest would be blurred away.
            lost = F.avg_pool2d((found.abs() - wished.abs()) * (1 - here), CELL)
            grain = grain + lost.abs().mean((1, 2, 3)) / 2
            # Local-to-global consistency: the patch, brought to the global scale, is the global edit of its place.
            under = F.avg_pool2d(sample_place(whole - face, place, (PATCH, PATCH)), CELL)
            consistency = consistency + (F.avg_pool2d(out - patch, CELL) - under).abs().mean() / 2
        (first, place), (second, _) = made
        parts["reconstruction"] = _mean(near, still)
        parts["detail"], parts["grain"] = _mean(fine, batch["answered"]), _mean(grain, batch["answered"])
        parts["consistency"] = consistency
        # Overlap consistency, away from the patches' rims, which the stage blends out.
        a, b = first[..., PATCH - OVERLAP + RIM : PATCH - RIM], second[..., RIM : OVERLAP - RIM]
        parts["overlap"] = (a - b).abs().mean()
        judged, _ = self.others["patch"].requires_grad_(False)(torch.cat([first, _coordinates(place)], 1))
        parts["adversarial"] = -judged.mean()
        batch |= {"edited": first.detach()}
        return parts

    def _colourless(self, batch: dict[str, Tensor]) -> Tensor:
        """(B,) bool: no hair colour is asked for. The teacher then sees the face in grey, else a tint fools it."""
        hair = [k for k, name in enumerate(self.names) if name in HAIR_COLOURS]
        return (batch["wanted"][:, hair] == 0).all(1)

    def _teach(self, face: Tensor) -> Tensor:
        """(B, A) the frozen classifier's answers as labels in [-1, 1], NaN for what it does not read."""
        assert self.teacher is not None
        found = self.teacher(face)
        unread = torch.full((len(face),), torch.nan, device=face.device)
        return torch.stack(
            [label_of_answer(n, found[n].float()) if n in found else unread for n in self.names], 1
        )  # fmt: skip

    def _attribute_loss(self, answers: Tensor, batch: dict[str, Tensor], still: Tensor) -> Tensor:
        """Changed attributes shall reach their targets, the others stay where they were; unread ones count nothing."""
        target = batch["target"]
        wish = torch.where(torch.isnan(target), batch["labels"], target)
        weight = torch.where(torch.isnan(target), 0.1, 1.0) * (1 - still)[:, None]
        weight = weight * ~torch.isnan(answers.detach()) * ~torch.isnan(wish)
        distance = F.smooth_l1_loss(torch.nan_to_num(answers), torch.nan_to_num(wish), reduction="none", beta=0.3)
        return _mean(distance, weight)

    def other_loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        backwards = batch["backwards"].view(-1, 1, 1, 1) > 0
        if self.local:
            patches = self.others["patch"].requires_grad_(True)
            where = _coordinates(batch["place"])
            strip = torch.where(backwards, batch["goal_strip"], batch["strip"])  # the photograph
            real, _ = patches(torch.cat([_unit(strip[..., :PATCH]), where], 1))
            fake, _ = patches(torch.cat([batch["edited"], where], 1))
            judged = hinge_real(real) + hinge_fake(fake)
            return judged, {"critic": judged.detach()}
        critic = self.others["face"].requires_grad_(True)
        photograph = torch.where(backwards, batch["goal"], batch["face"])
        changed = ~torch.isnan(batch["target"]) & (batch["backwards"][:, None] > 0)
        labels = torch.where(changed, batch["target"], batch["labels"])
        real, answers, _ = critic(_unit(photograph))
        fake, _, _ = critic(batch["edited"])
        read = _mean((answers - torch.nan_to_num(labels)).abs(), ~torch.isnan(labels))
        judged = hinge_real(real) + hinge_fake(fake)
        return judged + 2 * read, {"critic": judged.detach(), "critic_read": read.detach()}

    # ---- validation

    def _parsed(self, faces: Tensor) -> Tensor:
        """(B, 19, 128, 128) class probabilities of faces of any size."""
        small = F.interpolate(faces, size=(GLOBAL_SIZE,) * 2, mode="area")
        return torch.softmax(self.parser(small.to(next(self.parser.parameters()).dtype)).float(), 1)

    @staticmethod
    def _edited(network: CooganNet, faces: Tensor, parsing: Tensor, wanted: Tensor, name: str) -> Tensor:
        """(B, 3, s, s) faces edited as the stage would, by the global path alone where s is 128."""
        edit = network.edit_whole(F.interpolate(faces, size=(GLOBAL_SIZE,) * 2, mode="area"), wanted)
        region, change = edit_region(parsing, {name: 1.0}), edit.change
        if faces.shape[-1] != GLOBAL_SIZE:
            step = GLOBAL_SIZE / faces.shape[-1]
            place = torch.tensor([[step, 0, step / 2 - 0.5], [0, step, step / 2 - 0.5]], device=faces.device)
            place = place.expand(len(faces), -1, -1)
            change, _ = network.edit_patch(faces, edit, place, wanted)
            region = sample_place(region, place, (faces.shape[-1],) * 2)
        return (faces + change * region).clamp(0, 1)

    def _held_faces(self, rows: list[int], side: int, device: torch.device) -> Tensor:
        made = []
        for i in rows:
            matrix = self.faces.frame_matrix(i) * (side / GLOBAL_SIZE)
            matrix[:, 2] += 0.5 * side / GLOBAL_SIZE - 0.5
            made.append(warped(self.faces.picture(i), matrix, (side, side)))
        return tensor_of(made, device)

    @torch.inference_mode()
    def validate(self, network: nn.Module) -> dict[str, float]:
        """On held-out faces: reconstruction without a change (dB), error of the predicted source, and by attribute the
        mean change, and the share of faces that the teacher puts on the other side once they are asked there."""
        assert isinstance(network, CooganNet)
        if not self.held:
            return {}
        faces = self._held_faces(self.held, GLOBAL_SIZE, next(network.parameters()).device)
        none = torch.zeros(len(faces), len(self.names), device=faces.device)
        edit = network.edit_whole(faces, none)
        error = ((faces + edit.change).clamp(0, 1) - faces).square().mean()
        figures = {"reconstruction_db": float(-10 * torch.log10(error.clamp_min(1e-10)))}
        labels = torch.from_numpy(self.labels[self.held]).to(faces.device)
        known = ~torch.isnan(labels)
        figures["source_error"] = float(_mean((edit.source - torch.nan_to_num(labels)).abs(), known))
        parsing, dtype = self._parsed(faces), next(self.parser.parameters()).dtype
        before = self._teach(faces.to(dtype)) if self.teacher is not None else None
        for k, name in enumerate(self.names):
            seen = edit.source[:, k] if before is None or bool(before[:, k].isnan().any()) else before[:, k]
            goal = torch.where(seen > 0, -1.0, 1.0)
            wanted = none.clone()
            wanted[:, k] = goal - edit.source[:, k]
            made = self._edited(network, faces, parsing, wanted, name)
            figures[f"change_{name}"] = float((made - faces).abs().mean())
            if before is not None and not bool(before[:, k].isnan().any()):
                after = self._teach(made.to(dtype))[:, k]
                flips = (after - seen) * goal > 0.4 if name == "age" else after * goal > 0
                figures[f"flip_{name}"] = float(flips.float().mean())
        return {n: round(v, 4) for n, v in figures.items()}

    @torch.inference_mode()
    def grid(self, network: nn.Module) -> np.ndarray | None:
        """Held-out faces, then each attribute at -1 and +1, as the stage would edit them."""
        assert isinstance(network, CooganNet)
        if not self.held:
            return None
        side, count = (SHOWN_PX, SHOWN // 2) if self.local else (GLOBAL_SIZE, SHOWN)
        faces = self._held_faces(self.held[:: max(1, len(self.held) // count)][:count], side,
                                 next(network.parameters()).device)  # fmt: skip
        parsing = self._parsed(faces)
        source, columns = network.source(F.interpolate(faces, size=(GLOBAL_SIZE,) * 2, mode="area")), [faces]
        for k, name in enumerate(self.names):
            for goal in (-1.0, 1.0):
                wanted = torch.zeros_like(source)
                wanted[:, k] = goal - source[:, k]
                columns.append(self._edited(network, faces, parsing, wanted, name))
        picture = torch.cat([torch.cat(list(c), 1) for c in columns], 2)  # faces down, edits across
        return (picture.permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()


def _unit(pixels: Tensor) -> Tensor:
    return pixels.float() / 255


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean; 0 where nothing has weight."""
    return (values * weight).sum() / weight.sum().clamp(1)


def _fine(patch: Tensor) -> Tensor:
    """What is left of a patch (B, 3, h, w) less the means of its cells."""
    return patch - F.interpolate(F.avg_pool2d(patch, CELL), scale_factor=float(CELL), mode="bilinear")


def _varied(face: Tensor, grey: Tensor) -> Tensor:
    """Faces (B, 3, 128, 128) shifted, turned, scaled, mirrored and blurred at random; grey where `grey` (B,)."""
    count, device = len(face), face.device
    angle, scale = torch.randn(count, device=device) * 0.05, 1 + torch.randn(count, device=device) * 0.03
    flip = torch.where(torch.rand(count, device=device) < 0.5, -1.0, 1.0)
    shift = torch.randn(count, 2, device=device) * 0.03  # 2 px
    cos, sin = angle.cos() * scale, angle.sin() * scale
    matrix = torch.stack(
        [torch.stack([cos * flip, -sin, shift[:, 0]], 1), torch.stack([sin * flip, cos, shift[:, 1]], 1)], 1
    )
    grid = F.affine_grid(matrix, [count, 3, GLOBAL_SIZE, GLOBAL_SIZE], align_corners=False)
    turned = F.grid_sample(face.float(), grid, padding_mode="reflection", align_corners=False)
    soft = F.avg_pool2d(F.pad(turned, (1, 1, 1, 1), mode="replicate"), 3, 1)
    made = torch.lerp(turned, soft, torch.rand(count, 1, 1, 1, device=device))
    return torch.where(grey.view(-1, 1, 1, 1), luma(made), made)


def _coordinates(place: Tensor) -> Tensor:
    """(B, 3, 128, 128): x, y in the frame and the size of a patch pixel there, in [0, 1]."""
    axis = torch.arange(PATCH, device=place.device, dtype=torch.float32)
    x = (place[:, 0, 0, None] * axis + place[:, 0, 2, None])[:, None, :].expand(-1, PATCH, -1)
    y = (place[:, 1, 1, None] * axis + place[:, 1, 2, None])[:, :, None].expand(-1, -1, PATCH)
    size = place[:, 0, 0, None, None].expand_as(x)
    return torch.stack([x / GLOBAL_SIZE, y / GLOBAL_SIZE, size], 1)


def main(config_path: Path, resume: bool = False, dry_run: bool = False) -> nn.Module:
    """Train as the YAML says; `dry_run` does two steps and keeps nothing but packs."""
    config, record = load_training(CooganTraining, config_path, dry_run)
    return train(lambda: CooganTask(config), config.loop, record, resume)
