"""The validation loss: of evaluation mode, by the weight of the batches, and without a trace in what trains."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
import torch.distributed as dist
from torch import nn

from entropy_asr.training.engine import freeze
from entropy_asr.training.validation import Validation


@dataclass
class Numbers:
    x: torch.Tensor
    weight: int

    def to(self, device: torch.device) -> "Numbers":
        return self


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dropout, self.frozen = nn.Dropout(0.5), nn.Sequential(nn.Dropout(0.5))

    def forward(self, batch: Numbers) -> tuple[torch.Tensor, dict]:
        return self.frozen(self.dropout(batch.x)).mean(), {}


@pytest.fixture(autouse=True)
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_it_is_the_weighted_mean_and_nothing_has_changed() -> None:
    module = Mean()
    freeze(module.frozen)
    batches = [Numbers(torch.full((5,), 1.0), 3), Numbers(torch.full((2,), 5.0), 1)]
    before = torch.get_rng_state()
    assert Validation(module, batches, torch.device("cpu")).loss() == pytest.approx((3 * 1.0 + 1 * 5.0) / 4)
    assert torch.equal(torch.get_rng_state(), before)
    assert module.training and module.dropout.training and not any(m.training for m in module.frozen.modules())
