"""`export`: the restorer as one ONNX graph, with what it expects and how near it comes to the chain's own answers.

The graph holds the whole stage: the network in fp32, the detail that `fidelity` adds, the exact step, grey kept grey.
Nothing in it is drawn at random.
"""

import hashlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from skimage import data as pictures
from torch import Tensor, nn

from pipeline import __version__
from pipeline.images import GREY_TOLERANCE
from pipeline.output import OutputFolder
from pipeline.provenance import DISCLAIMER
from stages.consistency import average_to
from stages.luma import luma
from stages.networks.prouigan import INPUT_SIZE, ProUiganNet
from stages.prouigan import NOISE_SLACK, finished, found_cover, in_frame, painted
from stages.weights import load_network, read_card

OPSET = 18
LARGEST_DIFFERENCE = 1 / 510  # of pictures and maps, half a grey level: an answer further off is not handed out
PARITY_FACES = 32
INPUTS = {
    "thumbnail": "(B, 3, 16, 16) float32, RGB in [0, 1]: a face cut tightly, area-averaged to 16x16",
    "mask": "(B, 1, 16, 16) float32 in [0, 1], covered share of each pixel; zeros where none is given",
    "mask_given": "(B,) float32, 1 where `mask` counts, 0 where the cover is to be found",
    "fidelity": "(B,) float32 in [0, 1]: 1 closest to the input, 0 sharpest; the command's default is 0.5",
}
OUTPUTS = {
    "image": "(B, 3, 128, 128) float32, RGB in [0, 1]; grey for a grey thumbnail",
    "uncertainty": "(B, 1, 128, 128) float32 in [0, 1], how invented each pixel is",
    "occlusion": "(B, 1, 128, 128) float32 in [0, 1], the cover given or found",
    "landmarks": "(B, 68, 2) float32, iBUG points (x, y) in pixels of the image",
    "face_score": "(B,) float32 in [0, 1], how surely it is a face; `restore` refuses what is below min_face_score",
    "lr_consistency_db": "(B,) float32, agreement with the visible pixels of the thumbnail; NaN where none is visible",
}


class ExportError(RuntimeError):
    """The network cannot be exported, or its graph does not give its answers."""


class RestorerGraph(nn.Module):
    """The stage `prouigan` on 16 px thumbnails, as a function of tensors alone; shapes as in `INPUTS` and `OUTPUTS`."""

    def __init__(self, network: ProUiganNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, thumbnail: Tensor, mask: Tensor, mask_given: Tensor, fidelity: Tensor) -> tuple[Tensor, ...]:
        spread = thumbnail.amax(1) - thumbnail.amin(1)
        grey = spread.mean((1, 2)) * 255 < GREY_TOLERANCE
        seen = torch.where(grey.view(-1, 1, 1, 1), luma(thumbnail), thumbnail)
        given = mask_given.view(-1, 1, 1, 1)
        out = self.network(seen, mask, given, detail=True)
        occlusion = torch.where(given > 0.5, in_frame(mask), found_cover(out))
        image = painted(out, fidelity.view(-1, 1, 1, 1))
        image, uncertainty, consistency = finished(image, out, seen, occlusion, grey, NOISE_SLACK)
        return image, uncertainty, occlusion, out.points[-1].float(), torch.sigmoid(out.face_logit), consistency


def _examples() -> tuple[Tensor, ...]:
    """Fixed inputs: the small faces of scikit-image, half of them tinted, a third under a given mask."""
    faces = torch.from_numpy(pictures.lfw_subset()[:PARITY_FACES]).float()[:, None].expand(-1, 3, -1, -1)
    tint = torch.ones(PARITY_FACES, 3, 1, 1)
    tint[::2] = torch.tensor([1.0, 0.8, 0.7]).view(3, 1, 1)
    mask = torch.zeros(PARITY_FACES, 1, INPUT_SIZE, INPUT_SIZE)
    mask[::3, :, 10:15, 3:13] = 1
    fidelity = torch.linspace(0, 1, PARITY_FACES)
    return average_to(faces * tint, INPUT_SIZE), mask, mask.amax((1, 2, 3)), fidelity


def export(name: str, folder: Path) -> Path:
    """Write `<name>.onnx` and `<name>.json`, its inputs, outputs, parity and terms, into a folder.

    Both are written only after onnxruntime has given the chain's answers on fixed inputs, one face and many at a time.

    Returns:
        The ONNX file.

    Raises:
        ExportError: the card holds no restorer, or the graph's answers differ by more than half a grey level.
        ImportError: the extra `export` is not installed. WeightsError: no such card, or its file is damaged.
    """
    import onnxruntime

    network = load_network(name, torch.device("cpu"))
    if not isinstance(network, ProUiganNet):
        raise ExportError(f"{name}: holds a {type(network).__name__}; only the restorer (prouigan) can be exported")
    graph, examples = RestorerGraph(network.to(memory_format=torch.contiguous_format)).eval(), _examples()
    with torch.inference_mode():
        wanted = graph(*examples)  # first of all: it also makes the constants that the graph then holds
    faces = torch.export.Dim("faces", min=1)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporter's own
        program = torch.onnx.export(
            graph, tuple(e[:3] for e in examples), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=list(INPUTS), output_names=list(OUTPUTS), dynamic_shapes=tuple({0: faces} for _ in INPUTS),
        )  # fmt: skip
    assert program is not None
    content = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    parity = _differences(session, examples, wanted)
    for key in ("image", "uncertainty", "occlusion"):
        if not parity[key] <= LARGEST_DIFFERENCE:
            raise ExportError(f"{name}: {key} differs from the chain's own by {parity[key]:.2g}; nothing was written")
    card = read_card(name)
    engines = f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}"
    said: dict[str, Any] = {
        "name": name, "software": f"revisage {__version__}", "opset": OPSET, "inputs": INPUTS, "outputs": OUTPUTS,
        "parity": {
            "against": f"the stage in fp32 on the CPU, {engines}",
            "inputs": f"{PARITY_FACES} thumbnails of skimage.data.lfw_subset, alone and together",
            "largest_absolute_difference": parity,
        },
        "onnx_sha256": hashlib.sha256(content).hexdigest(), "weights_sha256": card.sha256,
        "licence": card.licence, "limits": card.limits, "notice": DISCLAIMER,
    }  # fmt: skip
    output = OutputFolder(folder)
    output.write(f"{name}.onnx", content)
    output.write(f"{name}.json", (json.dumps(said, indent=1, ensure_ascii=False) + "\n").encode())
    return output.path(f"{name}.onnx")


def _differences(session: Any, examples: tuple[Tensor, ...], wanted: tuple[Tensor, ...]) -> dict[str, float]:
    """Largest absolute difference of each output, over all the faces at once and the first three one by one."""
    found = dict.fromkeys(OUTPUTS, 0.0)
    for start, stop in ((0, PARITY_FACES), (0, 1), (1, 2), (2, 3)):
        fed = {key: value[start:stop].numpy() for key, value in zip(INPUTS, examples, strict=True)}
        for key, got, ours in zip(OUTPUTS, session.run(None, fed), wanted, strict=True):
            found[key] = max(found[key], float(np.abs(got - ours[start:stop].numpy()).max()))
    return found
