"""Do age, gender presentation, glasses, smile and expression survive restoration, as our classifier reads them?

`TraitReader` reads pictures, `columns` holds what it read against labels and against the original.

What is read is how a face looks to the people who labelled the data, through a network that errs; the error on
originals stands in the first row of every table, and no row can be trusted beyond it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from evaluation.faces import EvaluationFace
from stages.networks.classifier import TraitNet
from stages.trait_labels import age_band, read_columns, traits_of
from stages.weights import load_network

Labels = Sequence[Mapping[str, float]]  # of each face: trait -> value, where known (stages.trait_labels)


class TraitReader:
    """A trait classifier of `weights/`.

    Raises:
        WeightsError: no such card or file. ValueError: the card holds a network of another kind.
    """

    def __init__(self, card: str, device: torch.device | None = None, batch: int = 64) -> None:
        self.card, self.device, self.batch = card, device or torch.device("cpu"), batch
        network = load_network(card, self.device)
        if not isinstance(network, TraitNet):
            raise ValueError(f"traits: {card} holds a {type(network).__name__}, not a trait classifier")
        self.network = network
        self.classes = network.classes
        self.flags, self.numbers, self.traits = network.flags, network.numbers, network.traits

    @torch.inference_mode()
    def read(self, images: np.ndarray | Sequence[np.ndarray]) -> dict[str, np.ndarray]:
        """Answers for (N, 128, 128, 3) uint8 RGB canonical faces.

        Returns:
            trait -> (N, k) probabilities of classes, (N,) probability of a flag, (N,) years.
        """
        stack = np.asarray(images)
        if stack.ndim != 4 or stack.shape[1:] != (128, 128, 3) or stack.dtype != np.uint8:
            raise ValueError(f"traits: expected (N, 128, 128, 3) uint8 faces, got {stack.shape} {stack.dtype}")
        found: dict[str, list[np.ndarray]] = {name: [] for name in self.traits}
        for start in range(0, len(stack), self.batch):
            part = np.ascontiguousarray(stack[start : start + self.batch].transpose(0, 3, 1, 2))
            image = torch.from_numpy(part).to(self.device).float() / 255
            for name, answer in self.network.answers(image.contiguous(memory_format=torch.channels_last)).items():
                found[name].append(answer.cpu().numpy())
        empty = {n: np.zeros((0, len(self.classes[n])) if n in self.classes else 0, np.float32) for n in self.traits}
        return {name: np.concatenate([empty[name], *rows]) for name, rows in found.items()}


def labels_of(faces: Sequence[EvaluationFace], file: Path | None = None) -> list[dict[str, float]]:
    """Traits that the data set says of each face; with `file`, its Parquet, those of class maps (glasses, hat) too."""
    rows = read_columns(file) if file is not None else {}
    return [traits_of({**face.labels, **rows.get(face.id, {})}, face.landmarks) for face in faces]


def answer(values: np.ndarray, years: bool = False) -> np.ndarray:
    """(N,) the number of the class, 0 or 1, or the years, from what `TraitReader.read` gives for one trait."""
    if values.ndim == 2:
        return values.argmax(1).astype(np.float64)
    return values.astype(np.float64) if years else (values > 0.5).astype(np.float64)


def columns(
    reader: TraitReader, read: Mapping[str, np.ndarray], original: Mapping[str, np.ndarray], labels: Labels
) -> dict[str, np.ndarray]:
    """What a classifier read of a row's pictures, face by face: name -> (N,) float64, NaN where nothing is known.

    `right_T`: 1 where the reading agrees with the label, 0 where not. `kept_T`: the same against the reading of the
    original, label or not. For years: `error_T` and `drift_T` in years, and `band_T` (1 in the label's age band).
    `recalled_T_C` and `is_T_C` for each class C: their means give the recall of C.
    """
    made: dict[str, np.ndarray] = {}
    for name in reader.traits:
        years = name in reader.numbers
        found, before = answer(read[name], years), answer(original[name], years)
        label = np.array([row.get(name, np.nan) for row in labels], np.float64)
        known = np.isfinite(label)
        if years:
            made[f"error_{name}"], made[f"drift_{name}"] = np.abs(found - label), np.abs(found - before)
            made[f"band_{name}"] = np.where(known, age_band(found) == age_band(np.nan_to_num(label)), np.nan)
            continue
        made[f"right_{name}"] = np.where(known, found == label, np.nan)
        made[f"kept_{name}"] = (found == before).astype(np.float64)
        for k, class_name in enumerate(reader.classes.get(name, ())):
            made[f"is_{name}_{class_name}"] = np.where(known, label == k, np.nan)
            made[f"recalled_{name}_{class_name}"] = np.where(known, (label == k) & (found == k), np.nan)
    return made


def mean_recall(means: np.ndarray) -> np.ndarray:
    """(m, 2 k) means of `recalled_T_C` of the k classes, then of `is_T_C` -> (m,) mean over the classes there are."""
    recalled, present = np.split(means, 2, axis=1)
    recall = np.where(present > 0, recalled / np.maximum(present, 1e-12), np.nan)
    return np.nanmean(recall, axis=1)
