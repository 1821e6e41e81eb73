"""Do age, gender presentation, glasses, smile and expression survive restoration, as our classifier reads them?

    python -m evaluation.traits attributes --data DIR [--more DIR] [--write]

measures a classifier itself, on held-out originals, and with `--write` puts the figures into its card. The functions
serve `evaluate`: `TraitReader` reads pictures, `columns` holds what it read against labels and against the original.

What is read is how a face looks to the people who labelled the data, through a network that errs; the error on
originals stands in the first row of every table, and no row can be trusted beyond it.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.card_metrics import write_metrics
from evaluation.faces import EvaluationFace, load_faces, read_validation_list
from evaluation.recognition import two_class_auc
from evaluation.statistics import Finding, bootstrap, bootstrap_groups, to_markdown
from stages.networks.classifier import TraitNet
from stages.trait_labels import age_band, read_columns, traits_of
from stages.weights import load_network

DATA_SETS = ("utkface", "lfw", "celebamask", "omi")
MORE_SETS = ("aaf", "generated", "portraits")
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


def classifier_findings(
    reader: TraitReader, images: np.ndarray, labels: Labels, subset: str, people: Sequence[str] | None = None
) -> list[Finding]:
    """A classifier on (N, 128, 128, 3) uint8 originals: every trait against its labels, with n and 95 % intervals.

    Intervals draw the faces of one of the `people` together, where they are given.
    """
    who = np.array(people or range(len(images)))
    read = reader.read(images)
    table = columns(reader, read, read, labels)
    found: list[Finding] = []

    def add(metric: str, definition: str, names: Sequence[str], statistic: Any = None, **more: Any) -> None:
        values = np.stack([table[n] for n in names], 1)
        known = np.isfinite(values).all(1)
        value = bootstrap(values[known], statistic, who[known])
        if value.n:
            words = f"{definition}; read by {reader.card}"
            found.append(Finding("Traits", subset, metric, words, value, row="original", weights=reader.card, **more))

    for name in reader.traits:
        if name in reader.numbers:
            difference = "mean absolute difference from the label"
            add(f"{name}, error", difference, [f"error_{name}"], unit="years", direction="down")
            add(f"{name}, band", "share in the label's age band", [f"band_{name}"])
            continue
        add(f"{name}, accuracy", "share read as labelled", [f"right_{name}"])
        classes = reader.classes.get(name, ())
        if classes:
            parts = [f"{kind}_{name}_{c}" for kind in ("recalled", "is") for c in classes]
            add(f"{name}, mean recall", "recall, mean over the classes", parts, mean_recall)
        label = np.array([row.get(name, np.nan) for row in labels])
        for k, title in enumerate(classes) if classes else [(1, "")]:
            scores = read[name][:, k] if classes else read[name]
            sides = label == k, np.isfinite(label) & (label != k)
            areas = bootstrap_groups(
                two_class_auc, *(scores[side] for side in sides), clusters=[who[side] for side in sides]
            )
            if np.isfinite(areas.value):
                metric = f"{name}, AUC of {title}" if title else f"{name}, AUC"
                definition = "chance that a face with it scores above one without"
                found.append(Finding("Traits", subset, metric, definition, areas, row="original", weights=reader.card))
    return found


def held_out(
    data: Path, more: Path | None, limit: int | None
) -> dict[str, tuple[np.ndarray, list[dict[str, float]], list[str]]]:
    """set -> pictures (N, 128, 128, 3), labels and people of its held-out faces, for the sets that are there."""
    files = [data / f"{n}.parquet" for n in DATA_SETS] + [more / f"{n}.parquet" for n in MORE_SETS if more]
    found, listed = {}, read_validation_list()
    for file in files:
        if file.is_file():
            faces = load_faces(file, listed, limit=limit)
            pictures, people = np.stack([f.image for f in faces]), [f.group for f in faces]
            found[file.stem] = pictures, labels_of(faces, file), people
    if not found:
        raise FileNotFoundError(f"traits: none of {', '.join(f.name for f in files)} is in {data}")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("card", help="trait classifier in weights/")
    parser.add_argument("--data", type=Path, required=True, help="folder with utkface.parquet, lfw.parquet, ...")
    parser.add_argument("--more", type=Path, help="folder with aaf.parquet, generated.parquet, portraits.parquet")
    parser.add_argument("--limit", type=int, help="faces of each set at most")
    parser.add_argument("--write", action="store_true", help="put the figures into the card")
    args = parser.parse_args(arguments)
    reader = TraitReader(args.card)
    sets = held_out(args.data, args.more, args.limit)
    found: list[Finding] = []
    for name, (images, labels, people) in sets.items():
        found += classifier_findings(reader, images, labels, name, people)
    print(to_markdown(found, {"card": args.card}, f"Trait classifier {args.card} on held-out faces"))
    if args.write:
        metrics = [
            {
                "set": f.subset, "metric": f.metric, "n": f.estimate.n, "value": round(f.estimate.value, 4),
                "interval": [round(v, 4) for v in (f.estimate.low, f.estimate.high)], "baseline": None,
            }
            for f in found
            if np.isfinite([f.estimate.low, f.estimate.high]).all()
        ]  # fmt: skip
        write_metrics(args.card, metrics)


if __name__ == "__main__":
    main()
