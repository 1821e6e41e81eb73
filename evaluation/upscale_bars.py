"""The bars of the stage `upscale`: 128 -> 512 on unseen faces, beside Lanczos and Real-ESRGAN.

    python -m evaluation.upscale_bars --data OMI.parquet --out OUT [--limit 40] [--time]

Faces that resolve 512 px and that no training saw are averaged to 128 px, enlarged by every row, and compared with the
original: PSNR and SSIM in RGB, sharpness (mean absolute Laplacian over the original's), NIQE of each face. The same
with restored faces (16 -> 128 -> 512) has no truth for its detail: NIQE only. `--time` adds seconds a face, both on the
same threads; leave the machine idle for it. A row whose package is missing is left out and named.
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from evaluation.cards import cards_measured
from evaluation.commands import add_precision, command_parser
from evaluation.faces import large_faces
from evaluation.metrics import psnr, ssim
from evaluation.restoring import AnyPrecision, as_batch, as_tensor, pictures
from evaluation.statistics import Estimate, Finding, bootstrap, paired_difference, write_tables
from pipeline.chain import pick_device, pick_precision
from pipeline.restorer import Restorer
from stages import basicsr_adapter
from stages.consistency import average_to
from stages.foreign_upscalers import REALESRGAN
from stages.resample import resample
from stages.upscale import Upscale, UpscaleConfig
from stages.weights import WeightsError

SMALL, LARGE = 128, 512
GAIN_BAR, SPEED_BAR = 1.0, 10.0  # dB over Lanczos at fidelity 1; times Real-ESRGAN's speed
Row = Callable[[Tensor], Tensor]


def rows(weights: str, precision: AnyPrecision) -> dict[str, Row]:
    """What is compared, by name; Real-ESRGAN only where its extra is installed."""
    device = pick_device("cpu")
    chosen = pick_precision(precision, device)
    made: dict[str, Row] = {
        "bicubic": lambda x: resample(x, (LARGE, LARGE), "bicubic"),
        "lanczos": lambda x: resample(x, (LARGE, LARGE), "lanczos"),
    }

    def stage(**options: object) -> Row:
        upscale = Upscale(UpscaleConfig.model_validate({"size": LARGE, "weights": weights} | options), device, chosen)
        return lambda x: upscale(as_batch(x)).image

    for fidelity in (1.0, 0.5, 0.0):
        made[f"upscale {fidelity:g}"] = stage(fidelity=fidelity)
    try:
        foreign = stage(model=REALESRGAN)
    except WeightsError as error:
        print(f"left out: {error}", file=sys.stderr)
        return made
    made["real-esrgan, made consistent"] = foreign
    from stages.foreign_upscalers import RealEsrgan

    made["real-esrgan"] = RealEsrgan()
    return made


def sharpness(picture: np.ndarray) -> float:
    """Mean absolute Laplacian of the mean channel, levels of 255."""
    grey = picture.astype(np.float64).mean(-1)
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float(np.abs(4 * grey[1:-1, 1:-1] - around).mean())


def restored_thumbnails(faces: Sequence[np.ndarray], config: str) -> list[Tensor]:
    """The faces averaged to 16 px and restored by the shipped chain: (1, 3, 128, 128) each."""
    restorer = Restorer.from_config(config, device="cpu")
    small = [np.asarray(Image.fromarray(f).resize((16, 16), Image.Resampling.BOX)) for f in faces]
    results = restorer.restore(small)
    return [as_tensor(r.image) for r in results if r.image is not None and r.image.ndim == 3]


def _ratio(above: np.ndarray, below: np.ndarray) -> Estimate:
    """Ratio of the means of two (n,) samples of the same faces."""
    return bootstrap(np.stack([above, below], 1), lambda means: means[:, 0] / means[:, 1])


def measure(
    faces: Sequence[np.ndarray], weights: str, precision: AnyPrecision, config: str, timed: bool
) -> list[Finding]:
    """Every finding; see the module's text."""
    compared = rows(weights, precision)
    clean = [average_to(as_tensor(f), SMALL) for f in faces]
    restored = restored_thumbnails(faces, config)
    scores: dict[str, np.ndarray] = {}
    seconds: dict[str, np.ndarray] = {}
    findings: list[Finding] = []
    niqe = basicsr_adapter.niqe if basicsr_adapter.available() else None
    natural: dict[tuple[str, str], np.ndarray] = {}
    for name, row in compared.items():
        row(clean[0])  # warm
        made, marks = [], [time.perf_counter()]
        for x in clean:
            made += pictures(row(x))
            marks.append(time.perf_counter())
        seconds[name] = np.diff(marks)
        scores[name] = np.array([psnr(m, f) for m, f in zip(made, faces, strict=True)])
        similar = np.array([ssim(m, f) for m, f in zip(made, faces, strict=True)])
        sharp = np.array([sharpness(m) / sharpness(f) for m, f in zip(made, faces, strict=True)])
        for metric, values, unit in (("PSNR", scores[name], "dB"), ("SSIM", similar, ""), ("sharpness", sharp, "")):
            findings.append(
                Finding("clean 128 px faces", "omi", metric, f"{metric} against the 512 px original, RGB",
                        bootstrap(values), unit=unit, row=name, weights=weights)
            )  # fmt: skip
        if niqe is not None:
            for condition, shown in (("clean", made), ("restored", [pictures(row(x))[0] for x in restored])):
                if shown:
                    natural[condition, name] = np.array([niqe(p) for p in shown])
                    findings.append(
                        Finding(f"{condition} 128 px faces", "omi", "NIQE", "luma, blocks of 96 px, mean over faces",
                                bootstrap(natural[condition, name]), "down", row=name, weights=weights)
                    )  # fmt: skip
    findings.append(
        Finding("bars", "omi", "gain over Lanczos at fidelity 1", "PSNR difference, RGB, clean 128 px faces",
                paired_difference(scores["upscale 1"], scores["lanczos"]), unit="dB", bar=GAIN_BAR, row="upscale 1",
                weights=weights)
    )  # fmt: skip
    for condition in ("clean", "restored"):
        if (condition, "real-esrgan") in natural and (condition, "upscale 0") in natural:
            share = _ratio(natural[condition, "upscale 0"], natural[condition, "real-esrgan"])
            findings.append(
                Finding("bars", "omi", f"NIQE of fidelity 0 over Real-ESRGAN's, {condition}", "ratio of the means",
                        share, "down", bar=1.0, row="upscale 0", weights=weights)
            )  # fmt: skip
    if timed and "real-esrgan" in seconds:
        findings.append(
            Finding("bars", "omi", "speed over Real-ESRGAN's",
                    "ratio of the mean seconds a face, 128 -> 512, fidelity 0, same threads",
                    _ratio(seconds["real-esrgan"], seconds["upscale 0"]), bar=SPEED_BAR, row="upscale 0",
                    weights=weights)
        )  # fmt: skip
    return findings


def side_by_side(faces: Sequence[np.ndarray], weights: str, precision: AnyPrecision, path: Path) -> None:
    """A sheet to look at: input, Lanczos, fidelity 1 and 0, Real-ESRGAN where it is there, original."""
    compared, lines = rows(weights, precision), []
    names = [n for n in ("lanczos", "upscale 1", "upscale 0", "real-esrgan") if n in compared]
    for face in faces:
        small = average_to(as_tensor(face), SMALL)
        made = [resample(small, (LARGE, LARGE), "nearest"), *(compared[n](small) for n in names)]
        lines.append(np.concatenate([*pictures(torch.cat(made)), face], 1))
    Image.fromarray(np.concatenate(lines)).save(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit code 0 where every bar is reached."""
    parser = command_parser("upscale_bars", __doc__)
    parser.add_argument("--data", type=Path, required=True, help="Parquet of faces that resolve 512 px (OMI)")
    parser.add_argument("--out", type=Path, required=True, help="where upscale_bars.json, .md and sheet.png go")
    parser.add_argument("--weights", default="upscale_768", help="card (default: %(default)s)")
    parser.add_argument("--config", default="configs/cctv_restore.yaml", help="chain of the restored faces")
    parser.add_argument("--limit", type=int, default=40, help="faces (default: %(default)s)")
    add_precision(parser)
    parser.add_argument("--time", action="store_true", help="also measure the speed")
    args = parser.parse_args(arguments)
    faces = large_faces(args.data, LARGE, args.limit)
    if not faces:
        parser.error(f"{args.data}: no validation face of {LARGE} px")
    findings = measure(faces, args.weights, args.precision, args.config, args.time)
    header = {"faces": len(faces)} | cards_measured([args.weights])
    write_tables(findings, header, args.out, "upscale_bars", "Upscale: 128 to 512 px")
    side_by_side(faces[:6], args.weights, args.precision, args.out / "sheet.png")
    print((args.out / "upscale_bars.md").read_text(encoding="utf-8"), end="")
    return 0 if all(f.passed is not False for f in findings) else 1


if __name__ == "__main__":
    sys.exit(main())
