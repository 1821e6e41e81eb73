"""The pipeline: configuration, reading, running, recording. `Restorer` is the way in from Python.

Names are loaded on first use, so that importing this package costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.config import ChainConfig, ConfigError, load_chain
    from pipeline.restorer import Restorer, Result

__version__ = "0.1.0"
__all__ = ["ChainConfig", "ConfigError", "Restorer", "Result", "__version__", "load_chain"]
_HOME = {
    "ChainConfig": "config",
    "ConfigError": "config",
    "load_chain": "config",
    "Restorer": "restorer",
    "Result": "restorer",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"pipeline.{_HOME[name]}"), name)
