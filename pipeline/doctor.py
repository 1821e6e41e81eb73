"""`doctor`: what works on this machine, what does not, and why."""

import importlib
import sys
import tempfile
from collections.abc import Callable, Iterator

import numpy as np

from landmarks.backends import BACKENDS, why_unavailable
from pipeline.chain import pick_device, pick_precision
from pipeline.config import CONFIG_DIR, ConfigError, load_chain
from pipeline.restorer import Restorer
from pipeline.run_record import hardware, versions
from stages import basicsr_adapter
from stages.weights import WeightsError, card_names, read_checked, weights_dir

# Packages of the extras that are imported as they are, and what each is good for.
PACKAGES = {
    "onnxruntime": "ONNX networks (extras mtcnn, evaluate, export)",
    "onnxscript": "writing ONNX graphs (extra export)",
    "av": "reading videos (extra video)",
    "c2pa": "signed manifests (extra c2pa)",
    "ray": "--engine ray (extra cluster)",
    "s3fs": "object stores (extra cluster)",
    "pyarrow": "Parquet data (extras train, evaluate)",
}


def _why_package(name: str) -> str | None:
    """Why a package cannot be imported, None where it can."""
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken package may raise anything at import; the reason is what we are here for
        return str(error).partition("\n")[0] or type(error).__name__
    return None


def _why_basicsr() -> str | None:
    """Why basicsr does not work behind its adapter, None where it does."""
    try:
        basicsr_adapter.blur_kernel("gaussian", 7)
    except ImportError as error:
        return str(error)
    return None


def _optional() -> Iterator[tuple[str, str, str | None]]:
    """Every optional part: its name, its use, and why it does not work here (None where it does)."""
    for name in BACKENDS:
        yield name, "face detector", why_unavailable(name)
    yield "basicsr", "blur kernels, NIQE and RRDBNet (extra basicsr)", _why_basicsr()
    for name, use in PACKAGES.items():
        yield name, use, _why_package(name)


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
    print(f"device auto: {device.type}; precision auto, the fastest here: {pick_precision('auto', device)}")
    print(f"file names: {sys.getfilesystemencoding()}; temporary folder: {tempfile.gettempdir()}")
    for name, use, reason in _optional():
        print(f"optional {name}: {'usable' if reason is None else f'not usable ({reason})'}; {use}")
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
