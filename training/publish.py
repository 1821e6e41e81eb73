"""Publish a trained network: EMA weights of a run -> `weights/<name>.safetensors` with its card.

    python -m training.publish --run runs/prouigan --name prouigan_128

The card starts without metrics: `evaluation/` measures the published weights and writes them.
"""

import argparse
import inspect
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch
import yaml

from stages.networks import NETWORKS
from stages.weights import read_card, save_weights

LICENCE = "Research and non-commercial use only: inherits the terms of the training data (see LICENCES.md)."
SETS = {
    "utkface": "UTKFace, non-commercial research",
    "lfw": "LFW faces (muxspace/facial_expressions), research",
    "celebamask": "CelebAMask-HQ subset, non-commercial research",
    "omi": "One Million Impressions, CC BY-NC-SA 4.0",
    "omi_pairs": "One Million Impressions, transformed faces, CC BY-NC-SA 4.0",
    "aaf": "All-Age-Faces, academic research",
    "generated": "generated faces, unclear: research",
    "celeba": "CelebA crops, non-commercial research",
    "portraits": "public gender detector pictures, unclear: research",
    "street": "public mask detector pictures, unclear: research",
    "masked": "CelebA-like masked faces, non-commercial research",
    "masked_street": "public mask detector pictures, unclear: research",
}
INPUTS: dict[str, dict[str, Any]] = {
    "prouigan": {
        "size": [16, 16],
        "range": "RGB in [0, 1]",
        "alignment": "canonical 128 px frame, +-3 px, +-8 %, +-8 degrees",
    },
    "face_parser": {"size": [128, 128], "range": "RGB in [0, 1]", "alignment": "canonical 128 px frame"},
    "identity": {"size": [128, 128], "range": "RGB in [0, 1]", "alignment": "canonical 128 px frame"},
    "classifier": {"size": [128, 128], "range": "RGB in [0, 1]", "alignment": "canonical 128 px frame"},
    "upscale": {"size": [128, 128], "range": "RGB in [0, 1]", "alignment": "canonical frame; other sizes in tiles"},
    "coogan": {"size": [768, 768], "range": "RGB in [0, 1]", "alignment": "one face, upright within 10 degrees"},
} | {
    rival: {"size": [16, 16], "range": "RGB in [0, 1]", "alignment": "as the restorer's"}
    for rival in ("plain", "rcan", "swinir", "rrdb", "inpainter")
}
LIMITS = {
    "prouigan": "Detail is generated, not recorded; not for identification. Weak on profiles, on children under 3, "
    "on faces under heavy occlusion and on very dark pictures; few training faces have dark skin (about one in seven).",
    "face_parser": "Trained on about 900 posed celebrity faces; rare classes (hat, earring, necklace) are unreliable.",
    "identity": "A training loss, not a recogniser: distilled from dlib's descriptor, so dlib is no independent "
    "judge of it.",
    "upscale": "Detail is generated, not recorded; not for identification. Sharpens what its input shows, and draws no "
    "new face: what is soft or wrong at 128 px stays so.",
    "coogan": "An edited picture shows no event and no person that was. Taught by mean differences laid on faces, by "
    "drawn eyeglasses and by what the restorer paints in a part's place, which it resembles; above 400 px by people "
    "who do not exist; profiles and children are rare.",
    "classifier": "Reads how a face looks to the people who labelled the sets, not what is true of a person. Age is "
    "out by years; expressions other than neutral and happy are rare in the data, hats rarer still.",
} | dict.fromkeys(
    ("plain", "rcan", "swinir", "rrdb", "inpainter"),
    "A rival to measure the restorer against, trained on its samples; it finds no occluder and no landmark.",
)


OWN_PATHS = ("data", "covered_data", "pack", "covered_pack", "faces", "start_run")  # of this machine: not for a card
SPLIT = "training/validation_ids.txt held out by id, lfw by identity"
HASHED = "; of the user's own sets one person in 20, by hash"


def record_of(run: Path) -> dict[str, Any]:
    """The resolved configuration that a run keeps."""
    record: dict[str, Any] = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    return record


def trained_on(record: dict[str, Any]) -> dict[str, Any]:
    """`data` of a card: sets, split and counts of a run and of the run or card that it started from.

    Of a set that several legs saw, the largest count stands.

    Raises:
        FileNotFoundError, WeightsError: what the run started from is not there, and with it the terms of its data.
    """
    sources = record.get("data") or []
    sources = sources if isinstance(sources, list) else [sources]
    sources = [*sources, *(s["data"] for s in record.get("faces", {}).get("sets", []))]
    names = [Path(p).stem for p in [*sources, *record.get("covered_data", [])]]
    data: dict[str, Any] = {"sets": {n: SETS.get(n, "user's own") for n in names}, "split": SPLIT}
    if "counts" in record:  # runs of long ago kept none
        data["counts"] = record["counts"]
        if not SETS.keys() >= set(names):
            data["split"] += HASHED
    if record.get("start_run"):
        data = _joined(trained_on(record_of(Path(record["start_run"]))), data)
    if record.get("start"):
        data = _joined(read_card(record["start"]).data, data)
    return data


def _joined(before: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    """The data of two legs as one."""
    counts, more = before.get("counts", {}), data.get("counts", {})
    most = {n: max(counts.get(n, 0), more.get(n, 0)) for n in sorted({*counts, *more})}
    hashed = any(d.get("split", "").endswith(HASHED) for d in (before, data))
    return {
        "sets": before.get("sets", {}) | data["sets"],
        "split": SPLIT + (HASHED if hashed else ""),
    } | ({"counts": most} if most else {})


def publish(run: Path, name: str, dtype: torch.dtype = torch.bfloat16, earlier: list[str] | None = None) -> Path:
    """Write the EMA weights of `run` as `name`; `earlier` lists the recipe's previous legs in plain words."""
    config = record_of(run)
    state = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)  # noqa: TID251 tensors only
    architecture = config.get("architecture", config["task"])
    build = NETWORKS[architecture]
    # The card holds every argument, so that a later change of a default cannot change what an old file means.
    defaults = {k: p.default for k, p in inspect.signature(build).parameters.items()}
    arguments = json.loads(json.dumps(defaults | config["network"]))
    network = build(**arguments)
    network.load_state_dict(state["ema"])
    seconds, samples = 0.0, 0
    for entry in map(json.loads, (run / "log.jsonl").read_text(encoding="utf-8").splitlines()):
        if "per_second" in entry:
            seconds += max(0, entry["samples"] - samples) / entry["per_second"]
            samples = entry["samples"]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    card = {
        "architecture": architecture,
        "arguments": arguments,
        "input": INPUTS[architecture],
        "data": trained_on(config),
        "recipe": {
            "config": {k: v for k, v in config.items() if k not in (*OWN_PATHS, "counts")}
            | {"loop": {k: v for k, v in config["loop"].items() if k != "run"}},
            "commit": commit,
            "seed": config["loop"]["seed"],
            "steps": state["step"],
            "samples": state["step"] * config["loop"]["batch_size"],
            "hours": round(seconds / 3600, 2),
            "hardware": f"{torch.get_num_threads()} threads, {platform.machine()}",
            "earlier": earlier or [],
        },
        "metrics": [],
        "licence": LICENCE,
        "limits": LIMITS[architecture],
    }
    return save_weights(name, network, card, dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder of the run")
    parser.add_argument("--name", required=True, help="name of the card")
    parser.add_argument("--earlier", action="append", help="one earlier leg of the recipe, in words; repeatable")
    args = parser.parse_args()
    print(publish(args.run, args.name, earlier=args.earlier))


if __name__ == "__main__":
    main()
