"""Do age, gender presentation, glasses, smile and expression survive restoration, as our classifier reads them?

    python -m evaluation.traits attributes --data DIR [--more DIR] [--write]

measures a classifier itself, on held-out originals, and with `--write` puts the figures into its card. The functions
serve `evaluate`: `TraitReader` reads pictures, `columns` holds what it read against labels and against the original.

What is read is how a face looks to the people who labelled the data, through a network that errs; the error on
originals stands in the first row of every table, and no row can be trusted beyond it.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.faces import EvaluationFace, load_faces, read_validation_list
from evaluation.recognition import two_class_auc
from evaluation.statistics import Estimate, Finding, bootstrap, bootstrap_groups, to_markdown
from stages.networks.classifier import TraitNet
from stages.trait_labels import age_band, read_columns, traits_of
from stages.weights import load_network, read_card, weights_dir

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


def share_closed(restored: np.ndarray, baseline: np.ndarray, original: np.ndarray, seed: int = 0) -> Estimate:
    """How far `restored` lies from `baseline` (0) to `original` (1): one column of the same faces, without NaN."""
    table = np.stack([restored, baseline, original], 1)
    table = table[np.isfinite(table).all(1)]

    def share(means: np.ndarray) -> np.ndarray:
        lost = means[:, 2] - means[:, 1]
        return np.where(np.abs(lost) > 1e-9, (means[:, 0] - means[:, 1]) / np.where(lost == 0, 1, lost), np.nan)

    return bootstrap(table, share, seed=seed)


def trait_findings(
    reader: TraitReader, rows: Mapping[str, np.ndarray], labels: Labels, subset: str, condition: str = ""
) -> list[Finding]:
    """Every trait of every row of pictures, with n and 95 % intervals.

    Args:
        rows: name -> (N, 128, 128, 3) uint8; `original` must be among them, `bicubic` gives the baseline where it is.
        labels: of the N faces. subset, condition: for the tables.

    Raises:
        ValueError: no row `original`.
    """
    if "original" not in rows:
        raise ValueError(f"traits: a row named original is needed, got {', '.join(rows)}")
    original = reader.read(rows["original"])
    tables = {name: columns(reader, reader.read(images), original, labels) for name, images in rows.items()}
    found: list[Finding] = []

    def add(row: str, metric: str, definition: str, names: Sequence[str], statistic: Any = None, **more: Any) -> None:
        def estimate(table: Mapping[str, np.ndarray]) -> Estimate:
            values = np.stack([table[n] for n in names], 1)
            return bootstrap(values[np.isfinite(values).all(1)], statistic)

        value = estimate(tables[row])
        if value.n:
            base = estimate(tables["bicubic"]).value if "bicubic" in tables else None
            found.append(
                Finding(
                    "Traits",
                    subset,
                    metric,
                    f"{definition}; read by {reader.card}",
                    value,
                    baseline=base,
                    condition=condition,
                    row=row,
                    weights=reader.card,
                    **more,
                )  # fmt: skip
            )

    for row in rows:
        for name in reader.traits:
            if name in reader.numbers:
                years: dict[str, Any] = {"unit": "years", "direction": "down"}
                add(row, f"{name}, error", "mean absolute difference from the label", [f"error_{name}"], **years)
                add(row, f"{name}, band", "share in the label's age band", [f"band_{name}"])
                drift = "mean absolute difference from what is read of the original"
                if row != "original":
                    add(row, f"{name}, drift", drift, [f"drift_{name}"], **years)
                continue
            add(row, f"{name}, accuracy", "share read as labelled", [f"right_{name}"])
            if row != "original":
                add(row, f"{name}, kept", "share read as in the original", [f"kept_{name}"])
            if name in reader.classes:
                parts = [f"{kind}_{name}_{c}" for kind in ("recalled", "is") for c in reader.classes[name]]
                add(row, f"{name}, mean recall", "recall, mean over the classes", parts, mean_recall)
    return found


def classifier_findings(reader: TraitReader, images: np.ndarray, labels: Labels, subset: str) -> list[Finding]:
    """A classifier on originals: the figures of `trait_findings`, and the AUC of each flag and class."""
    found, read = trait_findings(reader, {"original": images}, labels, subset), reader.read(images)
    for name in reader.traits:
        if name in reader.numbers:
            continue
        label = np.array([row.get(name, np.nan) for row in labels])
        classes = reader.classes.get(name, ())
        for k, title in enumerate(classes) if classes else [(1, "")]:
            scores = read[name][:, k] if classes else read[name]
            areas = bootstrap_groups(two_class_auc, scores[label == k], scores[np.isfinite(label) & (label != k)])
            if np.isfinite(areas.value):
                metric = f"{name}, AUC of {title}" if title else f"{name}, AUC"
                definition = "chance that a face with it scores above one without"
                found.append(Finding("Traits", subset, metric, definition, areas, row="original", weights=reader.card))
    return found


def held_out(data: Path, more: Path | None, limit: int | None) -> dict[str, tuple[np.ndarray, list[dict[str, float]]]]:
    """set -> pictures (N, 128, 128, 3) and labels of its held-out faces, for the sets that are there."""
    files = [data / f"{n}.parquet" for n in DATA_SETS] + [more / f"{n}.parquet" for n in MORE_SETS if more]
    found, listed = {}, read_validation_list()
    for file in files:
        if file.is_file():
            faces = load_faces(file, listed, limit=limit)
            found[file.stem] = np.stack([f.image for f in faces]), labels_of(faces, file)
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
    for name, (images, labels) in sets.items():
        found += classifier_findings(reader, images, labels, name)
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
        card = read_card(args.card).model_dump() | {"metrics": metrics}
        path = weights_dir() / f"{args.card}.json"
        path.write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
