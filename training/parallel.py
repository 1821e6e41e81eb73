"""Several training processes, each with its share of every batch (data parallel), started by torchrun:

    torchrun --nproc-per-node 2 run_pipeline.py train -c configs/train/prouigan.yaml

One process per GPU; on a CPU one single-threaded process per core, which wastes no time at the barriers of threads.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


def rank() -> int:
    """Number of this process, 0 for the first or only one."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextmanager
def joined() -> Iterator[None]:
    """Processes find each other on entry and part on leaving; nothing happens where there is only one."""
    if world() > 1:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield
    finally:
        if world() > 1:
            dist.destroy_process_group()


@contextmanager
def first_alone() -> Iterator[None]:
    """The first process goes through the block before the others do, so that it writes what they then read."""
    if world() > 1 and rank() > 0:
        dist.barrier()
    yield
    if world() > 1 and rank() == 0:
        dist.barrier()


def add_up(tensors: Iterable[Tensor]) -> None:
    """Sum every tensor over the processes, in place."""
    if world() == 1:
        return
    parts = list(tensors)
    flat = torch.cat([t.flatten() for t in parts])
    dist.all_reduce(flat)
    for t, summed in zip(parts, flat.split([t.numel() for t in parts]), strict=True):
        t.copy_(summed.view_as(t))


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Mean of every gradient over the processes, in place; what one process had no use for counts as zero there."""
    if world() == 1:
        return
    gradients = []
    for p in parameters:
        if p.requires_grad:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            gradients.append(p.grad)
    add_up(gradients)
    torch._foreach_div_(gradients, world())


def of_the_first(number: float) -> float:
    """The first process's number, in all of them."""
    if world() == 1:
        return number
    shared = torch.tensor(number, dtype=torch.float64, device="cuda" if torch.cuda.is_available() else "cpu")
    dist.broadcast(shared, 0)
    return float(shared)
