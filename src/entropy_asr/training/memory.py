"""The most memory that is held at a time: of a GPU as torch's allocator counts, of a CPU the storages of live tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that operations inside of it read or make: now, and the most at any time.

    Work space inside one operation is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = self._bound = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves((args, kwargs, result)):
            if isinstance(tensor, torch.Tensor) and tensor.device.type != "meta":
                self._add(tensor.untyped_storage())
        if self._bound > self.most:  # storages that died are subtracted only where they matter
            self.most = max(self.most, self.now())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        known = self.alive.get(storage._cdata)
        self._bound += storage.nbytes() - (known[1] if known else 0)
        self.alive[storage._cdata] = known[0] if known else StorageWeakRef(storage), storage.nbytes()

    def now(self) -> int:
        """Bytes that are held."""
        self.alive = {key: (ref, size) for key, (ref, size) in self.alive.items() if not ref.expired()}
        self._bound = sum(size for _, size in self.alive.values())
        return self._bound


@dataclass
class Peak:
    """bytes: the most that was held at a time, less what was held before."""

    bytes: int = 0


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Measure what is held inside the block; the figure is there when the block has ended, by an exception too."""
    found = Peak()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        try:
            yield found
        finally:
            torch.cuda.synchronize(device)
            found.bytes = torch.cuda.max_memory_allocated(device) - before
    else:
        live = LiveBytes()
        try:
            with live:
                yield found
        finally:
            found.bytes = live.most
