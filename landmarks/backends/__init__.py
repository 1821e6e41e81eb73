"""Face detectors behind one interface. Heavy packages are imported only when a back end is built."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from landmarks.backends.base import BackendUnavailable, Detector, Face, LandmarkDetector
from landmarks.backends.dlib import DlibBackend
from landmarks.backends.face_alignment import FaceAlignmentBackend
from landmarks.backends.mtcnn import MtcnnBackend
from landmarks.backends.none import NoDetector

__all__ = [
    "BACKENDS", "BackendUnavailable", "Detector", "Face", "LandmarkDetector", "create", "model_files",
    "why_unavailable",
]  # fmt: skip

BACKENDS: dict[str, Any] = {
    "dlib": DlibBackend,
    "face_alignment": FaceAlignmentBackend,
    "mtcnn": MtcnnBackend,
    "none": NoDetector,
}


def create(name: str, **options: Any) -> Detector:
    """Build the back end `name` of `BACKENDS`; `options` are the arguments of its class.

    Raises:
        ValueError: no such back end, or an option out of range.
        TypeError: an option the back end does not have.
        BackendUnavailable: a package or model file is missing; the message says which extra to install.
    """
    if name not in BACKENDS:
        near = get_close_matches(name, BACKENDS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown face detector {name!r}; known: {', '.join(BACKENDS)}{hint}")
    return BACKENDS[name](**options)


def model_files(name: str) -> list[Path]:
    """Files that the back end `name` reads its networks from. Raises `BackendUnavailable`. Loads none."""
    return list(BACKENDS[name].files())


def why_unavailable(name: str) -> str | None:
    """Why the back end `name` cannot work on this machine, or None where it can. Loads no weights."""
    try:
        model_files(name)
    except BackendUnavailable as error:
        return str(error)
    return None
