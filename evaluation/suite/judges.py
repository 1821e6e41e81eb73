"""Embedders as the suite uses them: pictures to vectors, where "no face" is a row of NaN and never an embedding."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from evaluation.dlib_descriptor import DlibEmbedder
from evaluation.embedders import TEMPLATES, Embedder, OnnxEmbedder, Template, WeightsEmbedder
from evaluation.faces import EvaluationFace
from evaluation.suite.cache import card_key, fingerprint
from evaluation.suite.config import EmbedderOptions, EvaluationConfig
from landmarks.alignment import CANONICAL_SIZE
from landmarks.backends import BackendUnavailable, create, why_unavailable
from pipeline.config import ConfigError
from stages.degradation.occluders import MEAN_SHAPE
from stages.weights import WeightsError

Find = Callable[[np.ndarray], np.ndarray | None]


@dataclass(frozen=True)
class Judge:
    """An embedder with its way of aligning.

    Attributes:
        name, in_training: for tables. embedder: the network. find: the (68, 2) points of a picture's face, None where
            there is none; without it the points of the original serve for every row.
        fingerprint: what the vectors depend on beside pictures and points. weights: the card it is, "" for none.
    """

    name: str
    in_training: str
    embedder: Embedder
    find: Find | None
    fingerprint: str
    weights: str = ""

    @property
    def title(self) -> str:
        """Name with its part in training, which is never left out."""
        return f"{self.name} (part in training: {self.in_training})"

    def vectors(self, images: np.ndarray, faces: Sequence[EvaluationFace], refused: np.ndarray) -> np.ndarray:
        """(N, D) float32 unit rows of (N, 128, 128, 3) pictures; NaN where a face was refused or is not found.

        Raises:
            ValueError: the embedder gives something else than one finite vector a face.
        """
        points: list[np.ndarray | None] = []
        for image, face, gone in zip(images, faces, refused, strict=True):
            known = np.asarray(MEAN_SHAPE if face.landmarks is None else face.landmarks, np.float64)
            points.append(None if gone else known if self.find is None else self.find(image))
        found = [i for i, p in enumerate(points) if p is not None]
        vectors = np.asarray(
            self.embedder([images[i] for i in found], [p for p in points if p is not None]), np.float32
        )
        if vectors.ndim != 2 or len(vectors) != len(found) or not np.isfinite(vectors).all():
            raise ValueError(f"embedder {self.name}: expected {len(found)} finite vectors, found shape {vectors.shape}")
        rows = np.full((len(images), vectors.shape[1]), np.nan, np.float32)
        rows[found] = vectors
        return rows


@cache
def _dlib_points() -> Find:
    backend = create("dlib")

    def find(image: np.ndarray) -> np.ndarray | None:
        faces = backend.detect(image)
        return None if not faces else faces[0].landmarks

    return find


def _template(options: EmbedderOptions) -> Template:
    """Points and size: a built-in template, perhaps scaled, or an own one."""
    if options.points is not None and options.size is not None:
        return np.array(options.points, np.float64), options.size
    points, (height, width) = TEMPLATES[str(options.template)]
    new_height, new_width = options.size or (height, width)
    return (points + 0.5) * (new_width / width, new_height / height) - 0.5, (new_height, new_width)


def build_judge(options: EmbedderOptions, config: EvaluationConfig) -> Judge:
    """The embedder of one entry of the configuration.

    Raises:
        ConfigError: its file, card or package is missing, or its shape does not fit the template.
    """
    kind, _, name = options.embedder.partition(":")
    content, weights = "", ""
    try:
        if kind == "onnx":
            path = config.path(name)
            network: Embedder = OnnxEmbedder(
                path, _template(options), options.mean, options.scale, options.in_training or "not stated",
                bgr=options.colour == "bgr", name=options.name,
            )  # fmt: skip
            content = fingerprint(np.fromfile(path, np.uint8))
        elif kind == "weights":
            network, content, weights = WeightsEmbedder(name), card_key(name), name
        else:
            network = DlibEmbedder()
        if "dlib" in (kind, "dlib" if options.landmarks == "detected" else "") and (why := why_unavailable("dlib")):
            raise BackendUnavailable(why)
    except (OSError, ValueError, ImportError, WeightsError, BackendUnavailable) as error:
        raise ConfigError([f"{config.origin}: embedder {options.embedder!r}: {error}"]) from error
    detected = options.landmarks == "detected"
    key = fingerprint(
        "judge 1", options.model_dump(mode="json", exclude={"name", "in_training"}), content, CANONICAL_SIZE
    )
    title = (options.name or network.name) + (", own detection" if detected else "")
    return Judge(title, network.in_training, network, _dlib_points() if detected else None, key, weights)
