"""Processes: one on a laptop, or as many as torchrun started.

A plain `python -m entropy_asr.stages.align ...` is a world of one; under torchrun the environment says the rest.
"""

import os
import socket

import torch
import torch.distributed as dist


def start() -> torch.device:
    """Join the process group (nccl on GPUs, gloo on CPUs) and choose this rank's device."""
    if "RANK" not in os.environ:
        with socket.socket() as probe:  # a free port, so that stages run beside each other on one machine
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    if not torch.cuda.is_available():
        # DeepSpeed would compile a shared-memory all-reduce for minutes; gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if torch.cuda.is_available() else "gloo", verbose=False)
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def rank() -> int:
    """This process's number."""
    return dist.get_rank()


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size()


def agree(flag: bool, device: torch.device) -> bool:
    """True on every rank if it is true on any."""
    return bool(largest(int(flag), device))


def from_first(value: int, device: torch.device) -> int:
    """Rank 0's value, on every rank."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value, device=device)
    dist.broadcast(tensor, src=0)
    return int(tensor.item())


def largest(value: int, device: torch.device) -> int:
    """The largest of all ranks' values, on every rank."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value, device=device)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor.item())


def total(value: float, device: torch.device) -> float:
    """Sum over ranks."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value, device=device, dtype=torch.float64)
    dist.all_reduce(tensor)
    return tensor.item()


def stop() -> None:
    """Leave the process group."""
    dist.destroy_process_group()
