import pytest
import torch

from stages.precision import fastest_precision


@pytest.mark.parametrize(
    ("able", "wanted"),
    [
        ({"avx512_f": True, "avx512_bf16": True, "avx512_fp16": True, "amx_bf16": True}, "bf16"),  # Sapphire Rapids
        ({"avx512_f": True, "avx512_bf16": True, "avx512_fp16": True, "amx_bf16": False}, "fp32"),  # its AMX hidden
        ({"avx512_f": True, "avx512_bf16": True, "avx512_fp16": False, "amx_bf16": False}, "bf16"),  # Zen 4
        ({"avx2": True}, "fp32"),
        ({}, "fp32"),
    ],
)
def test_auto_takes_bf16_only_where_it_is_faster(monkeypatch, able, wanted):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert fastest_precision(torch.device("cpu")) == wanted
