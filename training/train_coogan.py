"""Train the editor, both paths together: `train -c configs/train/coogan.yaml`.

A sample is a face reduced to 128 px, and two overlapping patches of the same face at full size. Most samples have no
truth: a critic and the attribute answers say whether the wanted change is there and looks real. Samples of `omi_pairs`
have one: the same invented person at another level of age or gender. Where no change is asked, the face itself is the
truth. What is judged is what the stage would give: the change within the region of its attribute.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import Tensor, nn

from stages.attributes import ATTRIBUTES, HAIR_COLOURS
from stages.coogan import edit_region
from stages.networks.classifier import TraitNet
from stages.networks.coogan import GLOBAL_SIZE, CooganNet, GlobalEdit, sample_place
from stages.networks.face_parser import FaceParser
from stages.networks.identity import IdentityNet
from stages.weights import load_network
from training.attribute_labels import label_of_answer
from training.config import load_training
from training.discriminators import PatchCritic, matching_loss
from training.hr_faces import HrPack, PackConfig, build_hr_pack, open_hr_pack
from training.loop import LoopConfig, Task, rng_of, train
from training.losses import feature_loss, hinge_fake, hinge_real, identity_loss

PATCH = 128  # px, side of a training patch
OVERLAP = 64  # px, shared by the two patches of a sample
CELL = 8  # px of a patch that are averaged before it is held against the global edit: one global pixel at zoom 8
RIM = 16  # px, the outermost pixels of a patch, which the stage's blending leaves out


class CooganTraining(BaseModel):
    """Options of this script."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    faces: PackConfig
    network: dict[str, Any]  # arguments of CooganNet; its attributes are those trained
    parser: str = "face_parser"  # cards of frozen networks
    identity: str | None = "identity"
    teacher: str | None = None  # a classifier that fills in labels and judges edits; never the one of evaluation
    set_factor: dict[str, float] = Field(default_factory=dict)
    attribute_factor: dict[str, float] = Field(default_factory=dict)  # how often each is asked for; 1 if not named
    pair_share: float = Field(default=0.15, ge=0, le=1)  # samples with a truth from omi_pairs
    still_share: float = Field(default=0.15, ge=0, le=1)  # samples that ask for no change
    max_zoom: float = Field(default=8.0, ge=1)  # patches beyond what the source resolves are enlarged ones
    reconstruction: float = Field(default=20.0, ge=0)
    paired: float = Field(default=10.0, ge=0)
    attribute: float = Field(default=2.0, ge=0)
    adversarial: float = Field(default=0.5, ge=0)
    local_adversarial: float = Field(default=0.2, ge=0)
    identity_weight: float = Field(default=1.0, ge=0)
    consistency: float = Field(default=10.0, ge=0)
    overlap: float = Field(default=10.0, ge=0)
    change: float = Field(default=0.5, ge=0)  # on the mean absolute change: no more than the edit needs
    source: float = Field(default=1.0, ge=0)  # of the head that predicts the source attributes
    critic_from: int = Field(default=200, ge=0)  # steps before the adversarial losses count
    loop: LoopConfig

    @field_validator("network")
    @classmethod
    def _named(cls, value: dict[str, Any]) -> dict[str, Any]:
        unknown = [a for a in value.get("attributes", []) if a not in ATTRIBUTES]
        if unknown or not value.get("attributes"):
            raise ValueError(f"network.attributes: expected some of {', '.join(ATTRIBUTES)}; unknown: {unknown}")
        return value


class FaceCritic(nn.Module):
    """Critic of whole faces at 128 px, with answers to every attribute, shared trunk.

    (B, 3, 128, 128) -> logits (B, n), attribute answers (B, A) in [-1, 1], features.
    """

    def __init__(self, attributes: int, width: int = 48) -> None:
        super().__init__()
        self.critic = PatchCritic((width, 2 * width, 4 * width, 6 * width))
        self.answers = nn.Sequential(nn.Linear(6 * width * 16, 256), nn.SiLU(), nn.Linear(256, attributes))

    def forward(self, face: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        logits, features = self.critic(face)
        deep = F.adaptive_avg_pool2d(features[-1], 4).flatten(1)
        return logits, torch.tanh(self.answers(deep)).float(), features


class CooganTask(Task):
    """Faces with labels, and patches of them."""

    def __init__(self, config: CooganTraining) -> None:
        self.config = config
        self.net = CooganNet(**config.network)
        self.network: nn.Module = self.net
        self.names = self.net.attributes
        self.others = {"face": FaceCritic(len(self.names)), "patch": PatchCritic((48, 96, 160), inputs=6)}
        self.pack: HrPack = open_hr_pack(build_hr_pack(config.faces))
        self.labels = self.pack.labels[:, [ATTRIBUTES.index(n) for n in self.names]]
        loop = config.loop
        device = loop.resolved_device()
        dtype = torch.bfloat16 if loop.precision == "bf16" else torch.float32
        parser, identity = load_network(config.parser, device, dtype), None
        if not isinstance(parser, FaceParser):
            raise TypeError(f"{config.parser} holds a {type(parser).__name__}; a FaceParser is needed here")
        self.parser = parser
        if config.identity is not None:
            identity = load_network(config.identity, device, dtype)
            if not isinstance(identity, IdentityNet):
                raise TypeError(f"{config.identity} holds a {type(identity).__name__}; an IdentityNet is needed here")
        self.identity = identity
        self.teacher: TraitNet | None = None
        if config.teacher is not None:
            teacher = load_network(config.teacher, device, dtype)
            if not isinstance(teacher, TraitNet):
                raise TypeError(f"{config.teacher} holds a {type(teacher).__name__}; a TraitNet is needed here")
            self.teacher = teacher
        usable = ~self.pack.validation
        factor = np.array([config.set_factor.get(str(s), 1.0) for s in self.pack.sets]) * usable
        self.members = np.flatnonzero(factor)
        self.shares = np.cumsum(factor[self.members]) / factor.sum()
        self.pairs = self._find_pairs(usable)
        ask = np.array([config.attribute_factor.get(n, 1.0) for n in self.names])
        self.ask = np.cumsum(ask / ask.sum())
        self.held = [int(i) for i in np.flatnonzero(self.pack.validation & (self.pack.sides >= 240))[:8]]

    def _find_pairs(self, usable: np.ndarray) -> list[tuple[int, int]]:
        """Pairs (from, to) of one invented person at two levels of one trait, both ways."""
        groups: dict[str, list[int]] = {}
        for i in np.flatnonzero((self.pack.sets == "omi_pairs") & usable):
            name = str(self.pack.ids[i]).rpartition("_")[0]  # person_trait_level
            if np.isfinite(self.labels[i]).any() and "_weight" not in name:
                groups.setdefault(name, []).append(int(i))
        return [(a, b) for members in groups.values() for a in members for b in members if a != b]

    # ---- samples

    def sample(self, index: int) -> dict[str, np.ndarray]:
        rng, config = rng_of(self.config.loop.seed, index), self.config
        draw = rng.random()
        paired = bool(self.pairs) and draw < config.pair_share
        if paired:
            face, goal = self.pairs[int(rng.integers(len(self.pairs)))]
        else:
            face = goal = int(self.members[int(np.searchsorted(self.shares, rng.random()))])
        mirrored = bool(rng.random() < 0.5)
        matrix = self._frame_matrix(face, rng, mirrored)  # stored picture -> 128 px frame
        zoom = float(np.exp(rng.uniform(0, np.log(config.max_zoom))))
        strip = (PATCH, 2 * PATCH - OVERLAP)  # (height, width) of both patches together
        reach = (max(0.0, GLOBAL_SIZE - strip[1] / zoom), max(0.0, GLOBAL_SIZE - strip[0] / zoom))
        corner = np.array([rng.uniform(0, reach[0]), rng.uniform(0, reach[1])])
        to_patch = matrix.copy()  # stored picture -> patch: frame pixels less the corner, times zoom, edges in place
        to_patch[:, 2] = zoom * (matrix[:, 2] - corner + 0.5) - 0.5
        to_patch[:, :2] *= zoom
        place = np.array([[1 / zoom, 0, corner[0] + 0.5 / zoom - 0.5], [0, 1 / zoom, corner[1] + 0.5 / zoom - 0.5]])
        wanted, target = self._ask(face, goal, paired, draw < config.pair_share + config.still_share, rng)
        made = {
            "face": _warped(self.pack.picture(face), matrix, (GLOBAL_SIZE, GLOBAL_SIZE)),
            "strip": _warped(self.pack.picture(face), to_patch, strip),
        }
        if paired:
            made["goal_face"] = _warped(self.pack.picture(goal), matrix, (GLOBAL_SIZE, GLOBAL_SIZE))
            made["goal_strip"] = _warped(self.pack.picture(goal), to_patch, strip)
        else:
            made["goal_face"], made["goal_strip"] = made["face"], made["strip"]
        return {k: np.ascontiguousarray(v.transpose(2, 0, 1)) for k, v in made.items()} | {
            "place": place.astype(np.float32),
            "labels": self.labels[face].astype(np.float32),
            "wanted": wanted,
            "target": target,
            "has_goal": np.asarray(paired or not np.any(wanted != 0), np.float32),
        }

    def _frame_matrix(self, face: int, rng: np.random.Generator, mirrored: bool) -> np.ndarray:
        """(2, 3) from the stored picture to the 128 px frame, a little mis-framed."""
        stored, side = int(self.pack.stored[face]), int(self.pack.sides[face])
        scale = GLOBAL_SIZE / side * float(np.exp(rng.normal(0, 0.03)))
        matrix = cv2.getRotationMatrix2D(((stored - 1) / 2,) * 2, float(rng.normal(0, 3)), scale)
        matrix[:, 2] = matrix[:, 2] + (GLOBAL_SIZE - stored) / 2 + rng.normal(0, 1.5, 2)
        if mirrored:
            matrix[0] = -matrix[0]
            matrix[0, 2] += GLOBAL_SIZE - 1
        return matrix

    def _ask(
        self, face: int, goal: int, paired: bool, still: bool, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Wanted change (A,), NaN where it must start from the predicted source, and the target values (A,), NaN for
        attributes that are to stay as they are."""
        wanted = np.zeros(len(self.names), np.float32)
        target: np.ndarray = np.full(len(self.names), np.nan, np.float32)
        if paired:
            both = self.labels[goal] - self.labels[face]
            wanted = np.where(np.isfinite(both), both, 0).astype(np.float32)
            return wanted, target
        if still:
            return wanted, target
        for _ in range(1 if rng.random() < 0.7 else 2):
            k = int(np.searchsorted(self.ask, rng.random()))
            source = self.labels[face, k]
            up = rng.random() < 0.5 if not np.isfinite(source) or abs(source) < 0.3 else source < 0
            target[k] = (1.0 if up else -1.0) if rng.random() < 0.8 else rng.uniform(-1, 1)
            wanted[k] = target[k] - source  # NaN where the source is not labelled
            if up and self.names[k] in HAIR_COLOURS:  # one hair colour takes the others' place
                for j, other in enumerate(self.names):
                    if other in HAIR_COLOURS and j != k:
                        target[j] = -1.0
                        wanted[j] = -1.0 - self.labels[face, j]
        return wanted, target

    # ---- losses

    def _teach(self, face: Tensor) -> Tensor:
        """(B, A) the frozen classifier's answers as labels in [-1, 1], NaN for what it does not read."""
        answers: Tensor = torch.full((len(face), len(self.names)), torch.nan, device=face.device)
        if self.teacher is not None:
            found = self.teacher(face)
            for k, name in enumerate(self.names):
                if name in found:
                    answers[:, k] = label_of_answer(name, found[name].float())
        return answers

    def _edit(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Both paths on a batch: `whole` (B, 3, 128, 128), two patches `first`, `second` (B, 3, 128, 128), and what the
        losses need beside them."""
        face, strip = batch["face"].float() / 255, batch["strip"].float() / 255
        kept = self.net.whole.encode(face)
        source = self.net.whole.source(kept)
        with torch.no_grad():
            known = torch.where(torch.isnan(batch["labels"]), self._teach(face), batch["labels"])
            start = torch.where(torch.isnan(known), source.detach(), known)
            wanted = torch.where(torch.isnan(batch["wanted"]), batch["target"] - start, batch["wanted"])
            parsing = torch.softmax(self.parser(face).float(), 1)
            region = self._regions(parsing, wanted)
        change, features = self.net.whole(kept, wanted)
        edit = GlobalEdit(change, features, source)
        out = {
            "face": face, "source": source, "known": known, "start": start, "wanted": wanted, "region": region,
            "whole": (face + change * region).clamp(0, 1),
        }  # fmt: skip
        step = PATCH - OVERLAP
        for name, left in (("first", 0), ("second", step)):
            place = batch["place"].clone()
            place[:, :, 2] += place[:, :, :2] @ torch.tensor([left, 0.0], device=face.device)
            patch = strip[..., left : left + PATCH]
            added, _ = self.net.edit_patch(patch, edit, place, wanted)
            reach = sample_place(region, place, (PATCH, PATCH))
            out[name] = (patch + added * reach).clamp(0, 1)
            out[f"{name}_place"] = place
        return out

    def _regions(self, parsing: Tensor, wanted: Tensor) -> Tensor:
        """(B, 1, 128, 128): the union of the regions of what is asked of each face; everywhere where nothing is."""
        region = torch.zeros_like(parsing[:, :1])
        for k, name in enumerate(self.names):
            asked = (wanted[:, k] != 0).float().view(-1, 1, 1, 1)
            if bool(asked.any()):
                region = torch.maximum(region, edit_region(parsing, {name: 1.0}) * asked)
        still = (wanted == 0).all(1).float().view(-1, 1, 1, 1)
        return torch.maximum(region, still)  # so that a still face is learned, not masked

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        config, made = self.config, self._edit(batch)
        parts: dict[str, Tensor] = {}
        whole, first, second = made["whole"], made["first"], made["second"]
        has_goal = batch["has_goal"]

        known = ~torch.isnan(made["known"])
        parts["source"] = ((made["source"] - torch.nan_to_num(made["known"])).abs() * known).sum() / known.sum().clamp(
            1
        )

        goal = batch["goal_face"].float() / 255
        goal_strip = batch["goal_strip"].float() / 255
        still = (made["wanted"] == 0).all(1).float()
        pair = has_goal - still
        near = (whole - goal).abs().mean((1, 2, 3)) + 0.5 * (
            (first - goal_strip[..., :PATCH]).abs().mean((1, 2, 3))
            + (second - goal_strip[..., PATCH - OVERLAP :]).abs().mean((1, 2, 3))
        )
        parts["reconstruction"] = (near * still).sum() / still.sum().clamp(1)
        parts["paired"] = (near * pair).sum() / pair.sum().clamp(1)

        # Local-to-global consistency: the patch, brought to the global scale, is the global edit of its place.
        parts["consistency"] = sum(
            (F.avg_pool2d(made[n], CELL) - self._global_under(whole, made[f"{n}_place"])).abs().mean()
            for n in ("first", "second")
        ) * torch.ones((), device=whole.device)
        # Overlap consistency, away from the patches' rims, which the stage blends out.
        a, b = first[..., PATCH - OVERLAP + RIM : PATCH - RIM], second[..., RIM : OVERLAP - RIM]
        parts["overlap"] = (a - b).abs().mean()

        free = 1 - has_goal
        parts["change"] = ((whole - made["face"]).abs().mean((1, 2, 3)) * free).sum() / free.sum().clamp(1)
        critic, patches = self.others["face"].requires_grad_(False), self.others["patch"].requires_grad_(False)
        logits, answers, features = critic(whole)
        parts["attribute"] = self._attribute_loss(answers, made, batch["target"], free)
        if self.teacher is not None:
            parts["attribute"] = parts["attribute"] + self._attribute_loss(
                self._teach(whole), made, batch["target"], free
            )
        with torch.no_grad():
            _, _, real = critic(goal)
        keep = has_goal.view(-1, 1, 1, 1)
        parts["matching"] = matching_loss([f * keep for f in features], [r * keep for r in real])
        if self.identity is not None and config.identity_weight:
            descriptor, levels = self.identity(whole), self.parser.features(whole)
            with torch.no_grad():
                own, own_levels = self.identity(made["face"]), self.parser.features(made["face"])
            parts["identity"] = identity_loss(descriptor.float(), own.float(), torch.ones_like(still))
            parts["identity"] = parts["identity"] + 0.2 * feature_loss(levels, own_levels, still)
        switched = float(step >= config.critic_from)
        parts["adversarial"] = -logits.mean()
        judged, _ = patches(torch.cat([first, self._coordinates(made["first_place"])], 1))
        parts["local"] = -judged.mean()
        batch |= {"edited": whole.detach(), "edited_patch": first.detach(), "patch_place": made["first_place"]}
        weights = {
            "source": config.source, "reconstruction": config.reconstruction, "paired": config.paired,
            "consistency": config.consistency, "overlap": config.overlap, "change": config.change,
            "attribute": config.attribute * switched, "matching": 1.0, "identity": config.identity_weight,
            "adversarial": config.adversarial * switched, "local": config.local_adversarial * switched,
        }  # fmt: skip
        total = torch.stack([weights[k] * v.float() for k, v in parts.items()]).sum()
        return total, {k: v.detach() for k, v in parts.items()}

    def _attribute_loss(self, answers: Tensor, made: dict[str, Tensor], target: Tensor, free: Tensor) -> Tensor:
        """Changed attributes shall reach their targets, the others stay where they were; unread ones count nothing."""
        wish = torch.where(torch.isnan(target), made["start"], target)
        weight = torch.where(torch.isnan(target), 0.3, 1.0) * free[:, None] * ~torch.isnan(answers)
        distance = F.smooth_l1_loss(torch.nan_to_num(answers), wish, reduction="none", beta=0.3)
        return (distance * weight).sum() / weight.sum().clamp(1)

    @staticmethod
    def _global_under(whole: Tensor, place: Tensor) -> Tensor:
        """The global edit under a patch, averaged to cells of it."""
        return F.avg_pool2d(sample_place(whole, place, (PATCH, PATCH)), CELL)

    @staticmethod
    def _coordinates(place: Tensor) -> Tensor:
        """(B, 3, 128, 128): x, y in the frame and the size of a patch pixel there, in [0, 1]."""
        axis = torch.arange(PATCH, device=place.device, dtype=torch.float32)
        x = (place[:, 0, 0, None] * axis + place[:, 0, 2, None])[:, None, :].expand(-1, PATCH, -1)
        y = (place[:, 1, 1, None] * axis + place[:, 1, 2, None])[:, :, None].expand(-1, -1, PATCH)
        size = place[:, 0, 0, None, None].expand_as(x)
        return torch.stack([x / GLOBAL_SIZE, y / GLOBAL_SIZE, size], 1)

    def other_loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        critic, patches = self.others["face"].requires_grad_(True), self.others["patch"].requires_grad_(True)
        real, answers, _ = critic(batch["face"].float() / 255)
        fake, _, _ = critic(batch["edited"])
        known = ~torch.isnan(batch["labels"])
        read = ((answers - torch.nan_to_num(batch["labels"])).abs() * known).sum() / known.sum().clamp(1)
        where = self._coordinates(batch["patch_place"])
        real_patch, _ = patches(torch.cat([batch["strip"][..., :PATCH].float() / 255, where], 1))
        fake_patch, _ = patches(torch.cat([batch["edited_patch"], where], 1))
        whole = hinge_real(real) + hinge_fake(fake)
        local = hinge_real(real_patch) + hinge_fake(fake_patch)
        return whole + local + 2 * read, {
            "critic": whole.detach(), "critic_local": local.detach(), "critic_read": read.detach(),
        }  # fmt: skip

    # ---- validation

    def _held_faces(self, device: torch.device) -> Tensor:
        made = []
        for i in self.held:
            stored, side = int(self.pack.stored[i]), int(self.pack.sides[i])
            matrix = cv2.getRotationMatrix2D(((stored - 1) / 2,) * 2, 0, GLOBAL_SIZE / side)
            matrix[:, 2] = matrix[:, 2] + (GLOBAL_SIZE - stored) / 2
            made.append(_warped(self.pack.picture(i), matrix, (GLOBAL_SIZE, GLOBAL_SIZE)))
        return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).to(device).float() / 255

    @torch.inference_mode()
    def validate(self, network: nn.Module) -> dict[str, float]:
        """Reconstruction without a change (dB), error of the predicted source, mean change by attribute at +1."""
        assert isinstance(network, CooganNet)
        if not self.held:
            return {}
        faces = self._held_faces(next(network.parameters()).device)
        none = torch.zeros(len(faces), len(self.names), device=faces.device)
        edit = network.edit_whole(faces, none)
        error = ((faces + edit.change).clamp(0, 1) - faces).square().mean()
        figures = {"reconstruction_db": float(-10 * torch.log10(error.clamp_min(1e-10)))}
        labels = torch.from_numpy(self.labels[self.held]).to(faces.device)
        known = ~torch.isnan(labels)
        figures["source_error"] = float(((edit.source - torch.nan_to_num(labels)).abs() * known).sum() / known.sum())
        for k, name in enumerate(self.names):
            wanted = none.clone()
            wanted[:, k] = 1 - edit.source[:, k]
            figures[f"change_{name}"] = float(network.edit_whole(faces, wanted).change.abs().mean())
        return figures

    @torch.inference_mode()
    def grid(self, network: nn.Module) -> np.ndarray | None:
        """Held-out faces, then each attribute at -1 and +1, within its region, by the global path."""
        assert isinstance(network, CooganNet)
        if not self.held:
            return None
        faces = self._held_faces(next(network.parameters()).device)
        parsing = torch.softmax(self.parser(faces.to(next(self.parser.parameters()).dtype)).float(), 1)
        source, columns = network.source(faces), [faces]
        for k, name in enumerate(self.names):
            for goal in (-1.0, 1.0):
                wanted = torch.zeros_like(source)
                wanted[:, k] = goal - source[:, k]
                change = network.edit_whole(faces, wanted).change
                columns.append((faces + change * edit_region(parsing, {name: goal})).clamp(0, 1))
        picture = torch.cat([torch.cat(list(c), 1) for c in columns], 2)  # faces down, edits across
        return (picture.permute(1, 2, 0) * 255).round().to(torch.uint8).cpu().numpy()


def _warped(picture: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w, 3) uint8: `picture` resampled by `matrix` (picture -> result), averaged first where it is reduced."""
    scale = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    factor = int(1 / scale) if scale <= 0.5 else 1
    if factor > 1:  # whole cells are averaged; what is left is less than an octave
        side = picture.shape[0] // factor
        picture = cv2.resize(picture[: side * factor, : side * factor], (side, side), interpolation=cv2.INTER_AREA)
        matrix = matrix.copy()
        matrix[:, 2] += matrix[:, :2] @ np.full(2, 0.5 * factor - 0.5)
        matrix[:, :2] *= factor
        scale *= factor
    flags = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_LINEAR
    return cv2.warpAffine(picture, matrix, size[::-1], flags=flags, borderMode=cv2.BORDER_REFLECT_101)


def main(config_path: Path, resume: bool = False, dry_run: bool = False) -> nn.Module:
    """Train as the YAML says; `dry_run` does two steps and keeps nothing but the run folder."""
    config, record = load_training(CooganTraining, config_path, dry_run)
    return train(lambda: CooganTask(config), config.loop, record, resume)
