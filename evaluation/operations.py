"""How much a network has to compute."""

from collections.abc import Callable

from torch.utils.flop_counter import FlopCounterMode


def operations(call: Callable[[], object]) -> int:
    """Floating-point operations of one call: convolutions, matrix products and attention; a multiply-add counts two."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()
