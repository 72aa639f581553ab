"""Rows of different lengths, one behind the other: what no step spends on padding.

The lengths are known on the host before a batch reaches the GPU.  Everything that follows from them is made there and copied
without waiting, so that a step never asks the GPU for a number.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


def to_device(values: np.ndarray | Sequence[int], device: torch.device) -> Tensor:
    """Integers of the host on a device, int64 unless the array says otherwise; on a GPU without waiting for what it computes."""
    tensor = torch.from_numpy(np.asarray(values, dtype=None if isinstance(values, np.ndarray) else np.int64))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def padded(rows: Sequence[Sequence[int]], filler: int, device: torch.device) -> Tensor:
    """(N, longest) int64."""
    found = np.full((len(rows), max(map(len, rows))), filler, dtype=np.int64)
    for row, ids in zip(found, rows, strict=True):
        row[: len(ids)] = ids
    return to_device(found, device)


def counted(lens: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """start, start + 1, … of each segment, lens of them, one segment behind the other. lens, starts: (segments,)."""
    behind = np.cumsum(lens) - lens
    return np.arange(lens.sum()) + np.repeat(starts - behind, lens)


@dataclass(frozen=True)
class Packing:
    """Where each row lies in the packed one.

    lens: positions of each row.
    """

    lens: tuple[int, ...]
    device: torch.device

    @classmethod
    def of(cls, lens: Sequence[int] | np.ndarray, device: torch.device) -> "Packing":
        return cls(tuple(int(length) for length in lens), device)

    @cached_property
    def _lens(self) -> np.ndarray:
        return np.array(self.lens, dtype=np.int64)

    @property
    def longest(self) -> int:
        return max(self.lens, default=0)

    @property
    def total(self) -> int:
        return sum(self.lens)

    @cached_property
    def bounds(self) -> Tensor:
        """(N + 1,) int32: row i lies from bounds[i] to bounds[i + 1]."""
        return to_device(np.append(0, np.cumsum(self._lens)).astype(np.int32), self.device)

    @cached_property
    def positions(self) -> Tensor:
        """(total,): the place of each position in its own row."""
        return to_device(counted(self._lens, np.zeros_like(self._lens)), self.device)

    def padded(self, width: int) -> Tensor:
        """(total,): the place of each position in (N, width) flattened."""
        return to_device(counted(self._lens, width * np.arange(len(self.lens))), self.device)

    def spaced(self, gap: int) -> Tensor:
        """(total,): the place of each position where rows stand `gap` places apart."""
        return to_device(counted(self._lens, np.cumsum(self._lens) - self._lens + gap * np.arange(len(self.lens))), self.device)


def take(x: Tensor, places: Tensor) -> Tensor:
    """Rows of a padded batch, packed. x: (N, T, …); places: :meth:`Packing.padded` of T; returns (total, …)."""
    return x.flatten(0, 1).index_select(0, places)


def put(x: Tensor, places: Tensor, size: int) -> Tensor:
    """(total, D) at their places in (size, D), zero elsewhere."""
    return x.new_zeros(size, x.size(1)).index_copy(0, places, x)
