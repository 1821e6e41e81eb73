"""Train a reader of traits: `train -c configs/train/expression.yaml`, `attributes.yaml` or `attributes_training.yaml`.

One small trunk with a head for each trait. No set labels everything: a head learns from the faces that say something
about it, and each sample is drawn for one head, so that rare answers (anger, a hat) are seen as well as common ones.
The classifiers of evaluation (`expression`, `attributes`) and the one that training losses may use
(`attributes_training`) differ in seed and architecture: what one was fooled by, another judges.
"""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from scipy.stats import rankdata
from torch import Tensor, nn

from stages.networks.classifier import AGE_SPREAD, TraitNet
from stages.networks.face_parser import FaceParser
from stages.trait_labels import age_band, read_columns, traits_of
from training.config import TrainingError, arguments_of, load_training
from training.faces import MARGIN, Pack, build_pack, varied_face
from training.growth import grow_reader
from training.loop import LoopConfig, Task, network_of, rng_of, train
from training.parsing_labels import parsed_glasses, parsing_labels


class ClassifierTraining(BaseModel):
    """Options of this script."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    data: list[Path]
    pack: Path
    start: str | None = None  # name of a card whose reader is to learn further traits
    network: Annotated[dict[str, Any], arguments_of(TraitNet)]
    parser: str | None = None  # weights card: labels eyeglasses where no mask does
    head_share: dict[str, float] = Field(default_factory=dict)  # of the samples, relative; 1 for a head not named
    balance: float = Field(default=0.5, ge=0, le=1)  # answers are drawn by count ** this: 0 all alike, 1 as they come
    blur_share: float = Field(default=0.3, ge=0, le=1)  # samples shown at lower resolution
    grey_share: float = Field(default=0.4, ge=0, le=1)  # LFW is grey, most sets are not: colour must not tell the set
    smoothing: float = Field(default=0.05, ge=0, lt=1)  # of class labels: a tenth of LFW's expressions is debatable
    validation_faces: int = Field(default=1500, gt=0)  # at most, of each set
    loop: LoopConfig


def label_table(pack: Pack, sources: list[Path], traits: tuple[str, ...]) -> dict[str, np.ndarray]:
    """trait -> (N,) float32 value of each packed face, NaN where unknown. `sources` as given to `build_pack`."""
    rows = {p.stem: read_columns(p) for p in sources if p.is_file()}
    table = {t: np.full(len(pack.ids), np.nan, np.float32) for t in traits}
    for i, (name, face) in enumerate(zip(pack.sets, pack.ids, strict=True)):
        points = pack.landmarks[i] if np.isfinite(pack.landmarks[i]).all() else None
        for trait, value in traits_of(rows.get(str(name), {}).get(str(face), {}), points).items():
            if trait in table:
                table[trait][i] = value
    return table


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive scores above a negative, ties counting half; NaN where there are not both."""
    count = int(positive.sum())
    if count in (0, len(positive)):
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count)))


class ClassifierTask(Task):
    """Cross entropy for classes and flags, absolute error for years; unknown labels count nothing."""

    def __init__(self, config: ClassifierTraining) -> None:
        self.config = config
        self.pack = build_pack(config.data, config.pack)
        self.model = TraitNet(**config.network)
        if config.start is not None:
            grow_reader(self.model, network_of(config.start, TraitNet))
        self.network: nn.Module = self.model
        self.others = {}
        self.labels = label_table(self.pack, config.data, self.model.traits)
        if config.parser is not None and "eyeglasses" in self.labels:
            parser = config.loop.teacher(config.parser, FaceParser)
            parsed = parsed_glasses(parsing_labels(self.pack, config.pack, parser))
            known = np.isfinite(self.labels["eyeglasses"])
            self.labels["eyeglasses"] = np.where(known, self.labels["eyeglasses"], parsed)
            self.parsed = ~known
        else:
            self.parsed = np.zeros(len(self.pack.ids), bool)
        self.bins = {name: self._bins(name) for name in self.model.traits}
        empty = [name for name, bins in self.bins.items() if len(bins) < 2]
        if empty:
            raise TrainingError(f"no faces with at least two different labels for: {', '.join(empty)}")
        shares = np.array([config.head_share.get(name, 1.0) for name in self.model.traits])
        self.head_share = np.cumsum(shares / shares.sum())

    def trained_sets(self) -> np.ndarray:
        members = [rows for bins in self.bins.values() for _, rows in bins]
        return self.pack.sets[np.unique(np.concatenate(members))]

    def _bins(self, trait: str) -> list[tuple[float, np.ndarray]]:
        """The training faces of each answer (years: of each age band), with the cumulative share of the answers."""
        values = self.labels[trait]
        rows = np.flatnonzero(np.isfinite(values) & ~self.pack.validation)
        answers = age_band(values[rows]) if trait in self.model.numbers else values[rows]
        members = [rows[answers == a] for a in np.unique(answers)]
        shares = np.array([len(m) ** self.config.balance for m in members])
        return list(zip(np.cumsum(shares / max(shares.sum(), 1e-9)), members, strict=True))

    def sample(self, index: int) -> dict[str, np.ndarray]:
        rng = rng_of(self.config.loop.seed, index)
        trait = self.model.traits[int(np.searchsorted(self.head_share, rng.random()))]
        draw = rng.random()
        members = next(m for share, m in self.bins[trait] if draw <= share + 1e-9)
        face = int(rng.choice(members))
        image = varied_face(self.pack.images[face], rng, self.config.blur_share, self.config.grey_share)
        labels = np.array([self.labels[t][face] for t in self.model.traits], np.float32)
        return {"image": image, "labels": labels}

    def loss(self, batch: dict[str, Tensor], step: int) -> tuple[Tensor, dict[str, Tensor | float]]:
        found = self.network(batch["image"].contiguous(memory_format=torch.channels_last))
        parts: dict[str, Tensor] = {}
        for k, name in enumerate(self.model.traits):
            wanted = batch["labels"][:, k]
            known = torch.isfinite(wanted)
            if not known.any():
                continue
            answer, wanted = found[name][known], wanted[known]
            if name in self.model.classes:
                parts[name] = F.cross_entropy(answer, wanted.long(), label_smoothing=self.config.smoothing)
            elif name in self.model.flags:
                soft = wanted * (1 - self.config.smoothing) + self.config.smoothing / 2
                parts[name] = F.binary_cross_entropy_with_logits(answer, soft)
            else:
                parts[name] = (answer - wanted).abs().mean() / AGE_SPREAD
        total = torch.stack(list(parts.values())).sum()
        return total, {k: v.detach() for k, v in parts.items()}

    @torch.inference_mode()
    def validate(self, network: nn.Module) -> dict[str, float]:
        """On held-out faces, human labels only: accuracy and AUC of flags and classes, mean error of years."""
        of_set = [np.flatnonzero(self.pack.validation & (self.pack.sets == s)) for s in np.unique(self.pack.sets)]
        held = np.concatenate([rows[: self.config.validation_faces] for rows in of_set])
        if not len(held):
            return {}
        device = next(network.parameters()).device
        found: dict[str, list[np.ndarray]] = {name: [] for name in self.model.traits}
        for start in range(0, len(held), 64):
            cut = np.stack([self.pack.images[i][MARGIN:-MARGIN, MARGIN:-MARGIN] for i in held[start : start + 64]])
            image = torch.from_numpy(np.ascontiguousarray(cut.transpose(0, 3, 1, 2))).to(device).float() / 255
            for name, answer in network(image).items():
                found[name].append(answer.cpu().numpy())
        figures: dict[str, float] = {}
        for name in self.model.traits:
            wanted, answer = self.labels[name][held], np.concatenate(found[name])
            known = np.isfinite(wanted) & ~(self.parsed[held] & (name == "eyeglasses"))
            wanted, answer = wanted[known], answer[known]
            if not len(wanted):
                continue
            if name in self.model.numbers:
                figures[f"error_years_{name}"] = float(np.abs(answer - wanted).mean())
            elif name in self.model.flags:
                figures[f"accuracy_{name}"] = float(((answer > 0) == (wanted > 0.5)).mean())
                figures[f"auc_{name}"] = auc(answer, wanted > 0.5)
            else:
                figures[f"accuracy_{name}"] = float((answer.argmax(1) == wanted).mean())
                areas = [
                    auc(answer[:, k] - np.delete(answer, k, 1).max(1), wanted == k)
                    for k in np.unique(wanted).astype(int)
                ]
                figures[f"auc_{name}"] = float(np.mean(areas))
        return {k: round(v, 4) for k, v in figures.items() if np.isfinite(v)}


def main(config_path: Path, resume: bool = False, dry_run: bool = False) -> nn.Module:
    """Train as the YAML says; `dry_run` does two steps and keeps nothing but packs."""
    config, record = load_training(ClassifierTraining, config_path, dry_run)
    return train(lambda: ClassifierTask(config), config.loop, record, resume)
