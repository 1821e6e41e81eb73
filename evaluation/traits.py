"""How well a trait classifier reads held-out originals, and its figures into its card.

    python -m evaluation.traits attributes --data DIR [--more DIR] [--write]

measures every trait against the labels, and with `--write` puts the figures into the card.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.cards import write_metrics
from evaluation.faces import load_faces, read_validation_list
from evaluation.recognition import two_class_auc
from evaluation.statistics import Finding, bootstrap, bootstrap_groups, to_markdown
from evaluation.trait_reader import Labels, TraitReader, columns, labels_of, mean_recall

DATA_SETS = ("utkface", "lfw", "celebamask", "omi")
MORE_SETS = ("aaf", "generated", "portraits")


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
