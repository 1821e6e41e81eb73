"""The number type that networks compute in."""

from collections.abc import Mapping
from typing import Any, Literal

import torch

Precision = Literal["fp32", "bf16"]


def fastest_precision(device: torch.device) -> Precision:
    """bf16 where the device computes it faster than fp32, else fp32. The same on every call: outputs depend on it.

    AVX512_BF16 alone does not tell: convolutions in bf16 are twice as fast as in fp32 on AMD's Zen 4, half as fast on
    Intel's Sapphire Rapids and later ones, which are made for AMX, where a virtual machine hides it (84 and 155
    GFLOP/s a core, measured). Those have AVX512_FP16 too, which Zen 4 and 5 lack.
    """
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    able: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch before 2.10 cannot say
    fast = able.get("amx_bf16") or (able.get("avx512_bf16") and not able.get("avx512_fp16"))
    return "bf16" if fast else "fp32"
