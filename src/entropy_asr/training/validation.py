"""Loss on held-out data while a stage trains: the same batches each time, no augmentation, no dropout, and no gradient.

It draws no random number and changes no mode, so that training goes on as if it had not been measured.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from entropy_asr.training import distributed


class Validation:
    """Mean loss over fixed batches.

    Args:
        module: maps a batch to (its mean loss, numbers to log); shares its weights with what is trained.
        batches: have `.to` and `.weight`, how much a batch counts. All ranks have the same ones and take turns.
    """

    def __init__(self, module: nn.Module, batches: Sequence[Any], device: torch.device) -> None:
        self.module, self.batches, self.device = module, batches, device

    @torch.no_grad()  # inference mode would leave tensors behind, in caches, that training cannot use
    def loss(self) -> float:
        """On every rank the same. Collective."""
        training = {module: module.training for module in self.module.modules()}
        self.module.eval()
        summed = weights = 0.0
        for batch in self.batches[distributed.rank() :: distributed.world_size()]:
            weight = batch.weight
            loss, _ = self.module(batch.to(self.device))
            summed += loss.item() * weight
            weights += weight
        for module, mode in training.items():
            module.training = mode
        summed, weights = distributed.totals(summed, weights)
        return summed / weights
