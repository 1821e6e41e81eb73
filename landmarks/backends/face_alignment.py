"""The face-alignment package: S3FD detector and FAN landmarks, used where its weights already are on the machine.

Methods: Zhang et al., S3FD, ICCV 2017; Bulat and Tzimiropoulos, How far are we from solving the 2D & 3D face alignment
problem?, ICCV 2017. The package would download missing weights; here nothing is ever downloaded: the files are looked
for first, and their absence is an error that says where they go.
"""

from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np

from landmarks.backends.base import (
    BackendUnavailable,
    Face,
    check_box,
    check_picture,
    check_upsample,
    enlarge,
    from_enlarged,
    require_packages,
)
from landmarks.scheme import five_points

EXTRA = "face-alignment"
LANDMARK_NETWORK, DETECTOR_NETWORK = "2DFAN-4", "s3fd"  # keys of the package's own tables


def weight_files() -> dict[str, Path]:
    """Where the installed version looks for its weights: network name to path, whether or not the file is there.

    Raises:
        BackendUnavailable: the package is missing, does not import, or no longer says which files it wants.
    """
    require_packages(EXTRA, "face_alignment", "numba")
    try:
        import torch
        from face_alignment.api import models_urls as landmark_sources
        from face_alignment.detection.sfd.sfd_detector import models_urls as detector_sources

        sources = {
            LANDMARK_NETWORK: landmark_sources[LANDMARK_NETWORK],
            DETECTOR_NETWORK: detector_sources[DETECTOR_NETWORK],
        }
    except (ImportError, KeyError) as error:
        raise BackendUnavailable(
            f"the installed face-alignment package cannot be used ({error}); "
            f'install the version this project pins: pip install "revisage[{EXTRA}]"'
        ) from error
    folder = Path(torch.hub.get_dir(), "checkpoints")
    return {network: folder / Path(urlparse(source).path).name for network, source in sources.items()}


class FaceAlignmentBackend:
    """Faces with 68 landmarks by S3FD and FAN; `det_score` is S3FD's probability, 0 to 1.

    FAN looks at 256 px crops: its points mean little on faces under about 64 px.

    Args:
        upsample: enlarge the picture by this factor before detection, 1 to 8.
        min_score: faces below this probability are left out, 0 to 1.
        device: torch device, for instance "cpu" or "cuda".

    Raises:
        BackendUnavailable: the package or a weights file is missing or damaged; the message names file and folder.
        ValueError: an option is out of range.
    """

    def __init__(self, *, upsample: float = 1, min_score: float = 0.5, device: str = "cpu") -> None:
        self.upsample = check_upsample(upsample)
        if not 0 <= min_score <= 1:
            raise ValueError(f"min_score must be a probability, got {min_score}")
        self.files()
        files = weight_files()
        from face_alignment import FaceAlignment, LandmarksType

        try:
            self._network: Any = FaceAlignment(
                LandmarksType.TWO_D,
                device=device,
                face_detector="sfd",
                # The explicit path makes the package read the file as plain tensors.
                face_detector_kwargs={"path_to_detector": str(files[DETECTOR_NETWORK]), "filter_threshold": min_score},
                compile=False,
            )
        except Exception as error:  # torch raises many types for a damaged file; all mean the same to the user
            listed = ", ".join(str(path) for path in files.values())
            raise BackendUnavailable(
                f"face-alignment could not load {listed}: {type(error).__name__}: {error}"
            ) from error

    @classmethod
    def files(cls) -> list[Path]:
        """The weights files. Raises `BackendUnavailable` where the package or one of them is missing. Loads nothing."""
        files = list(weight_files().values())
        missing = [path for path in files if not path.is_file()]
        if missing:
            names = " and ".join(path.name for path in missing)
            raise BackendUnavailable(
                f"face-alignment lacks its weights {names}; nothing is downloaded here: put {names} into "
                f'{missing[0].parent} (the folder follows TORCH_HOME), or choose the detector "dlib" or "mtcnn"'
            )
        return files

    def detect(self, image: np.ndarray) -> list[Face]:
        """Faces of `image`, (H, W, 3) uint8 RGB, with 68 landmarks, the surest first."""
        check_picture(image)
        large, factors = enlarge(image, self.upsample)
        found = np.array(self._network.face_detector.detect_from_image(large.copy()), np.float64).reshape(-1, 5)
        faces = []
        for *edges, score in found:
            box = np.array(edges)
            if (box[2:] <= box[:2]).any():
                continue
            points = from_enlarged(self._points(large, box), factors).astype(np.float32)
            corners = from_enlarged(box.reshape(2, 2), factors).ravel().astype(np.float32)
            faces.append(Face(corners, five_points(points), float(score), points))
        return sorted(faces, key=lambda face: -face.det_score)

    def landmarks_in(self, image: np.ndarray, box: np.ndarray) -> np.ndarray:
        """(68, 2) float32 points in `box` (4,), which should be drawn as S3FD draws it: brow to chin, ear to ear."""
        check_picture(image)
        return self._points(image, check_box(box)).astype(np.float32)

    def _points(self, image: np.ndarray, box: np.ndarray) -> np.ndarray:
        """(68, 2) points of one box of the same picture."""
        return np.asarray(self._network.get_landmarks_from_image(image, detected_faces=[box])[0], np.float64)
