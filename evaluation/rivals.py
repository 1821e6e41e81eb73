"""What the restorer is measured against, behind one interface: interpolation, generic networks, two-step orders.

A rival is named in the YAML of `evaluate` by one key that says what it is, with its options beside it:

    rivals:
      - bicubic                                             # or nearest, lanczos
      - {network: rcan_128}                                 # trained here on the restorer's samples (train_rival)
      - {real_esrgan: x4plus}                               # its real weights, extra `real-esrgan`
      - {spandrel: GFPGANv1.4.pth}                          # any checkpoint you have, extra `spandrel`
      - {inpaint_then_upsample: bicubic, inpaint: telea}    # or {network: CARD}, {spandrel: lama.safetensors}
      - {upsample_then_inpaint: {network: rcan_128}, inpaint: ns}

All see the same thumbnails, and nobody's output is corrected afterwards: the exact step is part of the restorer.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from stages import foreign_upscalers
from stages.consistency import average_to, visible_share
from stages.foreign_upscalers import FFHQ_SIZE, into_ffhq, load_checkpoint, out_of_ffhq
from stages.networks.prouigan import INPUT_SIZE, ProUiganNet
from stages.networks.super_resolution import Inpainter, OverBicubic, PlainNet
from stages.resample import resample
from stages.weights import load_network

SIZE = 128  # px, side of every answer
SHIPPED = "prouigan_128"
Interpolation = Literal["bicubic", "nearest", "lanczos"]
Untrained = Literal["GFPGAN", "RestoreFormer", "CodeFormer"]
Framing = Literal["canonical", "ffhq"]


class Rival(ABC):
    """Something that makes a 128 px face of a thumbnail.

    Attributes:
        name: for tables.
    """

    name: str

    @abstractmethod
    def restore(self, lq: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        """(N, n, n, 3) float32 RGB in [0, 1], and (N, n, n) with 1 where covered -> (N, 128, 128, 3) float32."""


def _tensor(pictures: np.ndarray) -> Tensor:
    """(N, h, w, 3) -> (N, 3, h, w) float32.

    Raises:
        ValueError: another shape than square RGB pictures, or values beyond [0, 1].
    """
    values = np.asarray(pictures, np.float32)
    if values.ndim != 4 or values.shape[3] != 3 or values.shape[1] != values.shape[2]:
        raise ValueError(f"rival: expected (N, n, n, 3) pictures, got {values.shape}")
    if values.size and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(f"rival: expected values in [0, 1], got {values.min():.3g} .. {values.max():.3g}")
    return torch.from_numpy(np.ascontiguousarray(values.transpose(0, 3, 1, 2)))


def _pictures(images: Tensor) -> np.ndarray:
    """(N, 3, h, w) -> (N, h, w, 3) float32 in [0, 1]."""
    return np.ascontiguousarray(images.float().clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy())


def to_size(images: Tensor, size: int = SIZE) -> Tensor:
    """(N, 3, h, h) in any range -> (N, 3, size, size) in [0, 1]: averaged down, or bicubic up."""
    images = images.float().clamp(0, 1)
    return average_to(images, size) if images.shape[-1] > size else resample(images, (size, size), "bicubic")


class Interpolated(Rival):
    """Enlarges without a prior: the honest baselines."""

    def __init__(self, method: Interpolation) -> None:
        self.name, self.method = method, method

    def restore(self, lq: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        return _pictures(resample(_tensor(lq), (SIZE, SIZE), self.method))


class TrainedHere(Rival):
    """A generic enlarging network of `weights/`, trained on the samples of the restorer.

    Raises:
        WeightsError: no such card or file. ValueError: the card holds a network of another kind.
    """

    def __init__(self, card: str, device: torch.device, batch: int = 64) -> None:
        self.name, self.device, self.batch = card, device, batch
        network = load_network(card, device)
        if not isinstance(network, OverBicubic | PlainNet):
            raise ValueError(f"rival {card}: holds a {type(network).__name__}, which does not enlarge pictures")
        self.network = network

    @torch.inference_mode()
    def restore(self, lq: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        small = average_to(_tensor(lq), INPUT_SIZE)
        found = [self.network(part.to(self.device)).float().cpu() for part in small.split(self.batch)]
        return _pictures(to_size(torch.cat(found)))


class RealEsrgan(Rival):
    """Real-ESRGAN x4plus with the weights of its authors: 16 -> 64 by the network, 64 -> 128 bicubic.

    A second pass instead of the bicubic step makes it worse: -1.1 dB on three of three faces, and eyes become rubble.
    Wang, Xie, Dong, Shan: "Real-ESRGAN", ICCV Workshops 2021.

    Raises:
        WeightsError: ncnn, or the package with the weights, is missing.
    """

    def __init__(self, model: str = "x4plus") -> None:
        self.name, self.network = f"Real-ESRGAN {model}", foreign_upscalers.RealEsrgan(model)

    def restore(self, lq: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        return _pictures(to_size(self.network(_tensor(lq))))


class SpandrelFile(Rival):
    """A user's checkpoint (GFPGAN, CodeFormer, RestoreFormer, any enlarging network), through spandrel.

    Args:
        path: the checkpoint. input_px: side of what it is shown; by default 512 for face restorers (their own size),
            128 for those that keep the size, the thumbnail's for enlarging networks; the answer is brought to 128.
        framing: `ffhq` lays the crop into the frame that face restorers were trained on; the default for them.

    Raises:
        FileNotFoundError, ImportError, ValueError: as `foreign_upscalers.SpandrelModel`.
    """

    def __init__(
        self, path: Path, device: torch.device, input_px: int | None = None, framing: Framing | None = None
    ) -> None:
        self.model, self.device, self.name = foreign_upscalers.SpandrelModel(path, device), device, path.stem
        faces = self.model.face_model
        self.framing: Framing = framing or ("ffhq" if faces else "canonical")
        if self.framing == "ffhq" and input_px not in (None, FFHQ_SIZE):
            raise ValueError(f"rival: {path}: the ffhq framing is {FFHQ_SIZE} px, not {input_px}")
        self.input_px = input_px or (FFHQ_SIZE if faces else SIZE if self.model.purpose == "Restoration" else None)

    @torch.inference_mode()
    def restore(self, lq: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        found = []
        for image in _tensor(lq).split(1):  # pictures of 512 px, one at a time
            if self.framing == "ffhq":
                found.append(to_size(out_of_ffhq(self.model.run(into_ffhq(image).to(self.device))).cpu()))
                continue
            size = self.input_px or image.shape[-1]
            found.append(to_size(self.model.run(resample(image, (size, size), "bicubic").to(self.device)).cpu()))
        return _pictures(torch.cat(found))


# ---- two steps: inpainting, and any rival

Fill = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (n, n, 3) in [0, 1], (n, n) bool hole -> (n, n, 3)
Find = Callable[[np.ndarray], np.ndarray]  # (N, n, n, 3) in [0, 1] -> (N, n, n) bool, True where covered


def opencv_fill(method: Literal["telea", "ns"]) -> Fill:
    """OpenCV's inpainting; `telea`: Telea 2004, `ns`: Bertalmio, Bertozzi, Sapiro 2001. It works on 8 bits."""
    flag = {"telea": cv2.INPAINT_TELEA, "ns": cv2.INPAINT_NS}[method]

    def fill(picture: np.ndarray, hole: np.ndarray) -> np.ndarray:
        if not hole.any() or hole.all():
            return picture
        radius = max(3, round(3 * len(picture) / SIZE))
        done = cv2.inpaint(np.round(picture * 255).astype(np.uint8), hole.astype(np.uint8), radius, flag)
        return np.where(hole[..., None], done.astype(np.float32) / 255, picture)

    return fill


def network_fill(card: str, device: torch.device) -> Fill:
    """An `inpainter` of `weights/`. Raises `WeightsError`; `ValueError` where the card holds another network."""
    network = load_network(card, device)
    if not isinstance(network, Inpainter):
        raise ValueError(f"rival: {card} holds a {type(network).__name__}, not an inpainter")

    @torch.inference_mode()
    def fill(picture: np.ndarray, hole: np.ndarray) -> np.ndarray:
        mask = torch.from_numpy(hole.astype(np.float32))[None, None].to(device)
        return _pictures(network(_tensor(picture[None]).to(device), mask))[0]

    return fill


def spandrel_fill(path: Path, device: torch.device) -> Fill:
    """A user's inpainting checkpoint (LaMa). Raises as `load_checkpoint`; `ValueError` where it does not inpaint."""
    model = load_checkpoint(path, device)
    if str(model.purpose) != "Inpainting":
        raise ValueError(f"rival: {path} does not inpaint ({model.purpose})")

    @torch.inference_mode()
    def fill(picture: np.ndarray, hole: np.ndarray) -> np.ndarray:
        mask = torch.from_numpy(hole.astype(np.float32))[None, None].to(device)
        found = _pictures(model(_tensor(picture[None]).to(device), mask))[0]
        return np.where(hole[..., None], found, picture)

    return fill


class FoundMask:
    """The occluder as the restorer's own network sees it, so that a rival is not held back by a worse mask.

    (N, n, n, 3) in [0, 1] -> (N, n, n) bool: covered pixels and their neighbours, into which an occluder bleeds.
    """

    def __init__(self, card: str, device: torch.device) -> None:
        network = load_network(card, device)
        if not isinstance(network, ProUiganNet):
            raise ValueError(f"rival: {card} holds a {type(network).__name__}, which finds no occluder")
        self.network, self.device = network, device

    @torch.inference_mode()
    def __call__(self, lq: np.ndarray) -> np.ndarray:
        found = []
        for part in average_to(_tensor(lq), INPUT_SIZE).split(64):
            logits = self.network(part.to(self.device), detail=False).mask_logits[-1]
            found.append(visible_share(torch.sigmoid(logits.float()), INPUT_SIZE).cpu() < 0.5)
        holes = torch.cat(found).float()
        size = (lq.shape[1], lq.shape[1])
        return F.interpolate(holes, size=size, mode="nearest")[:, 0].numpy() > 0.5


class TwoSteps(Rival):
    """Inpainting, then any rival, or the other way round. `found_by` names what `find` asks, where that matters."""

    def __init__(
        self, upsample: Rival, fill: Fill, fill_name: str, first: bool, find: Find | None, found_by: str = ""
    ) -> None:
        self.upsample, self.fill, self.first, self.find = upsample, fill, first, find
        names = (fill_name, upsample.name) if first else (upsample.name, fill_name)
        self.name = " then ".join(names) + (f" (mask of {found_by})" if found_by else "")

    def restore(self, lq: np.ndarray, mask: np.ndarray | None = None) -> np.ndarray:
        if mask is None:
            if self.find is None:
                raise ValueError(f"rival {self.name}: works under a given mask, and none was given")
            holes = self.find(lq)
        else:
            holes = np.asarray(mask) > 0.01  # whatever an occluder touches
            if holes.shape != lq.shape[:3]:
                raise ValueError(f"rival {self.name}: a mask of {lq.shape[:3]} is needed, got {holes.shape}")
        if self.first:
            return self.upsample.restore(np.stack([self.fill(p, h) for p, h in zip(lq, holes, strict=True)]))
        large = self.upsample.restore(lq)
        wide = np.stack([cv2.resize(h.astype(np.uint8), (SIZE, SIZE), interpolation=cv2.INTER_NEAREST) for h in holes])
        return np.stack([self.fill(p, h) for p, h in zip(large, wide > 0, strict=True)])


# ---- from the YAML


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Network(_Options):
    network: str  # name of a card in weights/


class _RealEsrgan(_Options):
    real_esrgan: Literal["x4plus", "x4plus-anime"]


class _Spandrel(_Options):
    spandrel: Path  # relative to the YAML
    input_px: int | None = Field(default=None, ge=16, le=1024)  # side of what it is shown
    framing: Framing | None = None


class _InpaintFile(_Options):
    spandrel: Path


class _Steps(_Options):
    inpaint: Literal["telea", "ns"] | _Network | _InpaintFile = "telea"
    mask: str | None = SHIPPED  # card that finds the occluder where no mask is given; null: it must be given


class _InpaintFirst(_Steps):
    inpaint_then_upsample: str | dict[str, Any]


class _UpsampleFirst(_Steps):
    upsample_then_inpaint: str | dict[str, Any]


KINDS: dict[str, type[_Options]] = {
    "network": _Network,
    "real_esrgan": _RealEsrgan,
    "spandrel": _Spandrel,
    "inpaint_then_upsample": _InpaintFirst,
    "upsample_then_inpaint": _UpsampleFirst,
}


def read(spec: str | Mapping[str, Any]) -> Interpolation | _Options:
    """Check one entry of `rivals`, without loading anything.

    Raises:
        ValueError: no such rival, an unknown option or a bad value; the message says what is known.
    """
    if isinstance(spec, str):
        if spec not in get_args(Interpolation):
            raise ValueError(f"rival {spec!r}: known names: {', '.join(get_args(Interpolation))}; or {{KIND: ...}}")
        return spec  # type: ignore[return-value]  # just compared with the literal
    kinds = [k for k in KINDS if k in spec]
    if len(kinds) != 1:
        raise ValueError(f"rival {dict(spec)}: exactly one of these keys is needed: {', '.join(KINDS)}")
    try:
        options = KINDS[kinds[0]].model_validate(dict(spec))
    except ValidationError as error:
        parts = [f"{'.'.join(str(p) for p in e['loc'])}: {e['msg']}" for e in error.errors()]
        raise ValueError(f"rival {dict(spec)}: {'; '.join(parts)}") from error
    for inner in ("inpaint_then_upsample", "upsample_then_inpaint"):
        if inner in spec and isinstance(read(spec[inner]), _Steps):
            raise ValueError(f"rival {dict(spec)}: {inner} takes an enlarging rival, not another two-step one")
    return options


def _enlarger(options: _InpaintFirst | _UpsampleFirst) -> str | dict[str, Any]:
    """The entry of the rival that enlarges in two steps."""
    return options.inpaint_then_upsample if isinstance(options, _InpaintFirst) else options.upsample_then_inpaint


def card_of(spec: str | Mapping[str, Any]) -> str:
    """The card of the one network that paints for a rival: an enlarging one alone, or an inpainter beside plain
    interpolation. "" where there is none or other painters are beside it; what finds the occluder paints nothing."""
    options = read(spec)
    if isinstance(options, _InpaintFirst | _UpsampleFirst) and isinstance(_enlarger(options), str):
        painter: object = options.inpaint
    else:
        painter = options
    return painter.network if isinstance(painter, _Network) else ""


def create(spec: str | Mapping[str, Any], folder: Path | None = None, device: torch.device | None = None) -> Rival:
    """Build the rival that one entry of `rivals` names.

    Args:
        folder: paths in the entry are relative to it (the folder of the YAML). device: the CPU by default.

    Raises:
        ValueError: a bad entry, or a file that does not fit. FileNotFoundError: a checkpoint that is not there.
        ImportError: a package that is missing. WeightsError: a card that is missing or damaged.
    """
    options, device, folder = read(spec), device or torch.device("cpu"), folder or Path()
    if isinstance(options, str):
        return Interpolated(options)
    if isinstance(options, _Network):
        return TrainedHere(options.network, device)
    if isinstance(options, _RealEsrgan):
        return RealEsrgan(options.real_esrgan)
    if isinstance(options, _Spandrel):
        return SpandrelFile(folder / options.spandrel, device, options.input_px, options.framing)
    assert isinstance(options, _InpaintFirst | _UpsampleFirst)
    upsample = create(_enlarger(options), folder, device)
    if isinstance(options.inpaint, _Network):
        fill, name = network_fill(options.inpaint.network, device), options.inpaint.network
    elif isinstance(options.inpaint, _InpaintFile):
        fill, name = spandrel_fill(folder / options.inpaint.spandrel, device), options.inpaint.spandrel.stem
    else:
        fill, name = opencv_fill(options.inpaint), options.inpaint
    first = isinstance(options, _InpaintFirst)
    if options.mask is None:
        return TwoSteps(upsample, fill, name, first, None)
    found_by = "" if options.mask == SHIPPED else options.mask
    return TwoSteps(upsample, fill, name, first, FoundMask(options.mask, device), found_by)


# ---- cost


def _untrained(architecture: Untrained) -> nn.Module:
    try:
        if architecture == "CodeFormer":
            from spandrel_extra_arches.architectures.CodeFormer import CodeFormer

            return CodeFormer()
        if architecture == "GFPGAN":
            from spandrel.architectures.GFPGAN import GFPGAN

            return GFPGAN(
                out_size=512, num_style_feat=512, channel_multiplier=2, decoder_load_path=None, fix_decoder=False,
                num_mlp=8, input_is_latent=True, different_w=True, narrow=1, sft_half=True,
            )  # fmt: skip
        from spandrel.architectures.RestoreFormer import RestoreFormer

        return RestoreFormer()
    except ImportError as error:
        package = "spandrel-extra-arches" if architecture == "CodeFormer" else "spandrel"
        raise ImportError(f"the architecture of {architecture} is in {package}, which is missing: {error}") from error


@torch.inference_mode()
def untrained_seconds(architecture: Untrained, faces: int = 3, device: torch.device | None = None) -> list[float]:
    """What each of `faces` faces costs in a restorer whose checkpoint is not at hand: random weights take as long.

    Only the times come back. The pictures are noise and are dropped; put "speed only, untrained" beside the number.

    Raises:
        ImportError: spandrel (for CodeFormer spandrel-extra-arches) is missing.
    """
    device = device or torch.device("cpu")
    network = _untrained(architecture).to(device).eval()
    image = torch.rand(1, 3, FFHQ_SIZE, FFHQ_SIZE, device=device) * 2 - 1
    seconds = []
    for _ in range(faces + 1):  # the first warms up
        start = time.perf_counter()
        network(image)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]
