"""Does fusing the frames of a track help? Synthetic tracks, restored from 1, 4 and 16 frames, against the truth.

A track is one face at several moments: moved by up to half a thumbnail pixel, 3 % of scale and 3 degrees of roll, then
through the project's degradation with noise and JPEG of its own each time. Frame 0 is not moved, so that every
restoration is compared with the same truth.
"""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch

from evaluation.commands import command_parser
from evaluation.embedders import Embedder, OnnxEmbedder
from evaluation.faces import THUMBNAIL_SIZE, EvaluationFace, bicubic, load_faces, read_validation_list
from evaluation.metrics import psnr
from evaluation.restoring import build_stage, pictures
from evaluation.statistics import Estimate, Finding, bootstrap, write_tables
from stages.batch import FaceBatch
from stages.degradation import DegradationConfig, degrade_face
from stages.fuse import Fuse, FuseConfig

COUNTS = (1, 4, 16)
SHIFT_PX, SCALE, ROLL_DEG = 4.0, 0.03, 3.0  # at 128 px; detections of 16 px faces jitter about as much
# A street camera at night: noise and compression in every frame, the optics of a plain area average.
CAMERA = DegradationConfig.clean(
    THUMBNAIL_SIZE, noise_probability=1.0, jpeg_probability=1.0, jpeg_quality=(50, 90), read_noise=(3.0, 8.0),
    shot_noise=(2.0, 6.0),
)  # fmt: skip


def track(face: EvaluationFace, count: int, camera: DegradationConfig = CAMERA) -> np.ndarray:
    """(count, n, n, 3) float32 thumbnails of one face, the first one in the face's own place."""
    rng = face.rng
    frames = []
    for k in range(count):
        angle, grow = np.radians(rng.uniform(-ROLL_DEG, ROLL_DEG)), 1 + rng.uniform(-SCALE, SCALE)
        shift = rng.uniform(-SHIFT_PX, SHIFT_PX, 2)
        c, s = grow * np.cos(angle), grow * np.sin(angle)
        turn, middle = np.array([[c, -s], [s, c]]), np.full(2, (len(face.image) - 1) / 2)
        move = np.concatenate([turn, (middle - turn @ middle + shift)[:, None]], 1)
        moved = face.image
        if k:
            moved = cv2.warpAffine(
                face.image, move, face.image.shape[:2], flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
            )
        frames.append(degrade_face(moved, None, rng, camera).lq)
    return np.stack(frames)


def batch_of(thumbnails: np.ndarray) -> FaceBatch:
    """A batch of (B, N, n, n, 3) tracks."""
    frames = torch.from_numpy(thumbnails).permute(0, 1, 4, 2, 3).contiguous()
    count = len(frames)
    return FaceBatch(
        sources=tuple(map(str, range(count))), image=frames[:, 0], observed=frames[:, 0], seeds=tuple(range(count)),
        grey=torch.zeros(count, dtype=torch.bool), frames=frames,
    )  # fmt: skip


def compare(
    faces: Sequence[EvaluationFace], name: str, config: Path, embedders: Sequence[Embedder], scale: int, fidelity: float
) -> Iterator[Finding]:
    """PSNR and identity of the restored face and of the enlarged thumbnail, by the number of frames fused."""
    stage, device = build_stage(config, device="cpu", fidelity=fidelity)
    tracks = np.stack([track(face, max(COUNTS)) for face in faces])
    truth = [face.image for face in faces]
    points, people = [face.landmarks for face in faces], np.array([face.group for face in faces])
    known = [i for i, p in enumerate(points) if p is not None]
    at = [p for p in points if p is not None]
    alone: dict[str, np.ndarray] = {}
    for count in COUNTS:
        fused = Fuse(FuseConfig(frames=count, scale=scale if count > 1 else 1), device, "fp32")(batch_of(tracks))
        restored = pictures(torch.cat([stage(fused.cut(i, i + 4)).image for i in range(0, len(fused), 4)]))
        for kind, made in (("restored", restored), ("bicubic", [bicubic(p) for p in pictures(fused.image)])):
            rows = {"PSNR (RGB, dB)": (np.array([psnr(a, b) for a, b in zip(made, truth, strict=True)]), people)}
            for embedder in embedders:
                ours, theirs = embedder([made[i] for i in known], at), embedder([truth[i] for i in known], at)
                rows[f"identity, {embedder.name}"] = (ours * theirs).sum(1), people[known]
            for label, (values, who) in rows.items():
                one = alone.setdefault(f"{kind}, {label}", values)
                yield _finding(name, label, f"{kind}, N = {count}", bootstrap(values, clusters=who))
                if count > 1:
                    gain = bootstrap(values - one, clusters=who)
                    yield _finding(name, f"{label}, over N = 1", f"{kind}, N = {count}", gain)


def _finding(subset: str, metric: str, row: str, estimate: Estimate) -> Finding:
    said = "against the moved-by-nothing truth; mean over faces, of paired differences where over N = 1"
    return Finding("several frames", subset, metric, said, estimate, condition="noise and JPEG", row=row)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write `multi_frame.json` and `.md`; returns the exit code."""
    parser = command_parser("multi_frame", __doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="PARQUET", help="a Parquet file of faces")
    parser.add_argument("-c", "--config", type=Path, default=Path("configs/cctv_restore.yaml"))
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--limit", type=int, default=60, help="faces (default: %(default)s)")
    parser.add_argument(
        "--embedder", type=Path, action="append", default=[], help="ONNX recogniser, 112x96; repeatable"
    )
    parser.add_argument("--scale", type=int, choices=(1, 2), default=2, help="reconstruct at so many times the size")
    parser.add_argument("-w", "--fidelity", type=float, default=1.0)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    faces = load_faces(args.data, read_validation_list(), limit=args.limit)
    embedders = [OnnxEmbedder(path, threads=1) for path in args.embedder]
    findings = list(compare(faces, args.data.stem, args.config, embedders, args.scale, args.fidelity))
    header = {"data": args.data.stem, "faces": len(faces), "scale": args.scale, "fidelity": args.fidelity}
    write_tables(findings, header, args.out, "multi_frame", "Restoring from several frames")
    for finding in findings:
        value = finding.estimate
        print(f"{finding.row}, {finding.metric}: {value.value:.4f} [{value.low:.4f}, {value.high:.4f}] n={value.n}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
