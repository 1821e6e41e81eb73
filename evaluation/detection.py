"""How many small faces the stage `detect` finds in frames, and how many it finds where there are none.

Frames are photographs without people (scikit-image's own); faces of a Parquet file are shrunk to a given size and laid
into them, upright, a few a frame. A face counts as found where a finding overlaps its place by 0.3 (intersection over
union); every other finding is false.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from skimage import data

from evaluation.commands import command_parser
from evaluation.faces import EvaluationFace, load_faces, read_validation_list
from evaluation.statistics import Finding, bootstrap, write_tables
from pipeline.tracks import overlap
from stages.detect import Detect, DetectConfig

SCENES = ("coffee", "rocket", "chelsea", "brick", "hubble_deep_field")  # no person is in them
PER_FRAME, FRAME_SIZE = 4, (240, 320)
FOUND = 0.3


def background(name: str, index: int) -> np.ndarray:
    """(240, 320, 3) uint8 of a scene; another cut of it for another index."""
    picture = np.asarray(getattr(data, name)())
    picture = np.repeat(picture[..., None], 3, 2) if picture.ndim == 2 else picture[..., :3]
    rng = np.random.default_rng(index)
    height, width = FRAME_SIZE
    scale = max(height / picture.shape[0], width / picture.shape[1], 0.6)
    picture = cv2.resize(picture, None, fx=scale * 1.05, fy=scale * 1.05, interpolation=cv2.INTER_AREA)
    y, x = (rng.integers(0, limit - size + 1) for limit, size in zip(picture.shape[:2], FRAME_SIZE, strict=True))
    return np.ascontiguousarray(picture[y : y + height, x : x + width])


def frame_with(faces: Sequence[EvaluationFace], size: int, index: int) -> tuple[np.ndarray, np.ndarray]:
    """A frame with faces of `size` px in a quarter of it each, and their places, (N, 4) edges."""
    rng = np.random.default_rng([index, size])
    frame, places = background(SCENES[index % len(SCENES)], index), []
    height, width = FRAME_SIZE[0] // 2, FRAME_SIZE[1] // 2
    for k, face in enumerate(faces):
        small = cv2.resize(face.image, (size, size), interpolation=cv2.INTER_AREA)
        y, x = (int(rng.integers(4, limit - size - 4)) for limit in (height, width))
        y, x = y + height * (k // 2), x + width * (k % 2)
        frame[y : y + size, x : x + size] = small
        places.append((x, y, x + size, y + size))
    return frame, np.array(places, np.float64)


def measure(faces: Sequence[EvaluationFace], size: int, options: dict[str, Any], name: str) -> list[Finding]:
    """Share of faces found and false findings a frame, for faces of one size."""
    stage = Detect(DetectConfig(**options), torch.device("cpu"), "fp32")
    found: list[float] = []
    false: list[float] = []
    empty: list[float] = []
    for index in range(len(faces) // PER_FRAME):
        frame, places = frame_with(faces[index * PER_FRAME : (index + 1) * PER_FRAME], size, index)
        kept, _ = stage.choose(stage.find(frame), FRAME_SIZE)
        boxes = [np.array([x, y, x + w, y + h]) for x, y, w, h in (d.box_xywh_px for d in kept)]
        hits = [[overlap(box, place) >= FOUND for box in boxes] for place in places]
        found += [float(any(row)) for row in hits]
        false.append(float(sum(not any(row[i] for row in hits) for i in range(len(boxes)))))
        bare = background(SCENES[index % len(SCENES)], index)
        empty.append(float(len(stage.choose(stage.find(bare), FRAME_SIZE)[0])))
    label = json.dumps(options, sort_keys=True)
    said = f"overlap of {FOUND} or more; frames of {FRAME_SIZE[1]}x{FRAME_SIZE[0]} px"
    row = f"{size} px, {label}"
    return [
        Finding("detection", name, "faces found", said, bootstrap(np.array(found)), row=row, bar=0.95),
        Finding("detection", name, "false findings per frame", said, bootstrap(np.array(false)), "down", row=row),
        Finding("detection", name, "findings per empty frame", said, bootstrap(np.array(empty)), "down", row=row),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write `detection.json` and `.md`; returns the exit code."""
    parser = command_parser("detection", __doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="PARQUET", help="a Parquet file of faces")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--sizes", type=int, nargs="+", default=[16], metavar="PX", help="of the faces (default: 16)")
    parser.add_argument("--limit", type=int, default=200, help="faces (default: %(default)s)")
    parser.add_argument("--backend", default="mtcnn", help="(default: %(default)s)")
    parser.add_argument("--upsample", type=float, default=2.0, help="(default: %(default)s)")
    args = parser.parse_args(arguments)
    faces = load_faces(args.data, read_validation_list(), limit=args.limit)
    findings: list[Finding] = []
    for size in args.sizes:
        findings += measure(faces, size, {"backend": args.backend, "upsample": args.upsample}, args.data.stem)
    write_tables(findings, {"data": args.data.stem, "faces": len(faces)}, args.out, "detection", "Finding small faces")
    for f in findings:
        print(f"{f.row}: {f.metric} {f.estimate.value:.3f} [{f.estimate.low:.3f}, {f.estimate.high:.3f}]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
