"""Every collective looks whether the process group has a backend for its tensor's device: on one CPU a stand-in for two GPUs."""

import re
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from repository import REPO

from entropy_asr.training import distributed

COLLECTIVES: list[Callable[[], object]] = [
    lambda: distributed.agree(True),
    lambda: distributed.from_first(3),
    lambda: distributed.largest(3),
    lambda: distributed.totals(3.0, 4.0),
    lambda: distributed.gather(torch.zeros(2)),
    lambda: distributed.agree_later(torch.tensor(True)),
]


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    dist.init_process_group(distributed.BACKENDS["cpu"], store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("collective", COLLECTIVES)
def test_a_device_without_a_backend_is_refused(collective: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.backends() == {"cpu": "gloo"}
    collective()
    monkeypatch.setattr(dist, "get_backend_config", lambda: "cuda:nccl")
    with pytest.raises(RuntimeError, match="a tensor on cpu cannot go through a process group of"):
        collective()
    with pytest.raises(RuntimeError, match="a tensor on meta cannot"):
        distributed.gather(torch.zeros(2, device="meta"))
    with pytest.raises(RuntimeError, match="a tensor on meta cannot"):
        distributed.agree_later(torch.zeros((), device="meta"))


def test_on_gpus_random_states_can_be_saved_and_ranks_can_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both go through the CPU's backend."""
    monkeypatch.setattr(dist, "get_backend_config", lambda: distributed.BACKENDS["cuda"])
    assert distributed.backends() == {"cpu": "gloo", "cuda": "nccl"}
    distributed.gather(torch.get_rng_state())
    distributed.wait()


def test_nothing_goes_round_these_functions() -> None:
    """DeepSpeed's own collectives have tensors on the module's device."""
    for path in (REPO / "src").rglob("*.py"):
        if path.name != "distributed.py":
            assert not re.search(r"torch\.distributed\.(?!run)|import torch\.distributed|\bdist\.\w", path.read_text()), path
