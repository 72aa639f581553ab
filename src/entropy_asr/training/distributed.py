"""Processes: one on a laptop, or as many as torchrun started.

A plain `python -m entropy_asr.stages.align ...` is a world of one; under torchrun the environment says the rest.
"""

import logging
import os
import socket
import sys
from collections.abc import Callable
from typing import NoReturn

import torch
import torch.distributed as dist

from entropy_asr.errors import InputError

# The process group's backend for tensors of each kind of device. On GPUs there are tensors of both: random states are on the CPU.
BACKENDS = {"cpu": "cpu:gloo", "cuda": "cpu:gloo,cuda:nccl"}


def choose_device() -> torch.device:
    """Where this process computes: what ENTROPY_ASR_DEVICE says (the workflow sets it for stages with GPUs), else a GPU if any.

    Raises:
        InputError: it says cuda, and there is none: days of training would run on a CPU.
    """
    wanted = os.environ.get("ENTROPY_ASR_DEVICE", "cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"this stage was given GPUs (resources.gpus_per_node), but PyTorch {torch.__version__} finds no "
            f"CUDA on {os.uname().nodename}: check the driver, and that the environment has a CUDA build of torch"
        )
    return torch.device(wanted)


def start() -> torch.device:
    """Join the process group and choose this rank's device; compute with OMP_NUM_THREADS threads.

    A sum in another number of parts is another sum: the number of threads is part of what makes a run the same again.
    MKL_NUM_THREADS, which PyTorch would follow, may be that of a whole node.
    """
    if threads := os.environ.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads.split(",")[0]))
    if "RANK" not in os.environ:
        with socket.socket() as probe:  # a free port, so that stages run beside each other on one machine
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")
    gpu = choose_device().type == "cuda"
    if not gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import deepspeed

    if not gpu:
        # DeepSpeed would compile a shared-memory all-reduce for minutes; gloo does the same work.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend=BACKENDS["cuda" if gpu else "cpu"], verbose=False)
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def rank() -> int:
    """This process's number."""
    return dist.get_rank()


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size()


def backends() -> dict[str, str]:
    """The process group's backends by kind of device."""
    return dict(entry.split(":") for entry in dist.get_backend_config().split(","))


def _shared(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that goes through the process group; looked at in a world of one, too, so that a run on one device finds it.

    Raises:
        RuntimeError: its device has no backend in the group.
    """
    if tensor.device.type not in backends():
        raise RuntimeError(f"a tensor on {tensor.device} cannot go through a process group of {backends()}")
    return tensor


def wait() -> None:
    """Until all ranks are here."""
    largest(0)


# Numbers of the host go through the CPU's backend: nothing waits for a GPU.
def agree(flag: bool) -> bool:
    """True on every rank if it is true on any."""
    return bool(largest(int(flag)))


def from_first(value: int) -> int:
    """Rank 0's value, on every rank."""
    tensor = _shared(torch.tensor(value))
    if world_size() == 1:
        return value
    dist.broadcast(tensor, src=0)
    return int(tensor.item())


def largest(value: int) -> int:
    """The largest of all ranks' values, on every rank."""
    tensor = _shared(torch.tensor(value))
    if world_size() == 1:
        return value
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor.item())


def totals(*values: float) -> list[float]:
    """Sum over ranks of each value, on every rank the same."""
    tensor = torch.tensor(values, dtype=torch.float64)
    return torch.stack(gather(tensor)).sum(0).tolist()


def agree_later(flag: torch.Tensor) -> Callable[[], bool]:
    """As :func:`agree`, of a flag on the device: what is returned gives the answer.

    On a GPU it waits for what was launched before this call alone, so that launches go on in the meantime.
    """
    found = _shared(flag.detach().to(torch.int32))
    if world_size() > 1:
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
    if found.device.type != "cuda":
        return lambda: bool(found)
    answer = torch.empty((), dtype=torch.int32, pin_memory=True)
    answer.copy_(found, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> bool:
        copied.synchronize()
        return bool(answer)

    return read


def gather(tensor: torch.Tensor) -> list[torch.Tensor]:
    """This tensor from every rank."""
    _shared(tensor)
    if world_size() == 1:
        return [tensor]
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor)
    return parts


def stop(code: int = 0) -> NoReturn:
    """Leave the process group, and the process: a stage's last act, when all that it made is on disk.

    All ranks leave together, because torchrun ends the others when one dies, on its way out too.  And they leave without
    shutting the interpreter down: gloo's threads live as long as DeepSpeed holds the group, and one that gives a tensor back
    during the shutdown aborts the process (https://github.com/pytorch/pytorch/pull/179291), also one that is alone.
    """
    wait()
    dist.destroy_process_group()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
