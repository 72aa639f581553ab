"""Attention within each row of a packed batch, for the encoder and for the LLM.

On a GPU, in bf16, by FlashAttention-2's kernel for rows of different lengths: that of the package flash-attn where it is
installed, else PyTorch's own copy (`torch.nn.attention.varlen`).  Elsewhere by scaled_dot_product_attention, row by row on a CPU,
padded on a GPU.  `tests/models/test_attention.py` holds all ways equal.  Attention weights have no dropout: these kernels of
PyTorch have none, and what is trained must not depend on the kernel.
"""

import importlib.util
import inspect
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from entropy_asr.models.packing import Packing, put, take

Kernel = Literal["flash-attn", "torch varlen", "torch SDPA"]
PACKED = "packed"  # `models.packed_attention`, which is no part of this module: an encoder needs no transformers


@lru_cache
def kernel(device: str, dtype: torch.dtype, head_dim: int) -> Kernel:
    """Which one computes attention on a kind of device ("cuda", "cpu")."""
    fits = device == "cuda" and dtype in (torch.bfloat16, torch.float16) and head_dim % 8 == 0 and head_dim <= 256
    if not fits or torch.cuda.get_device_capability()[0] < 8:  # FlashAttention-2 needs the Ampere generation or later
        return "torch SDPA"
    if importlib.util.find_spec("flash_attn") is not None:
        return "flash-attn"
    return "torch varlen" if "window_size" in _varlen_options() else "torch SDPA"


@lru_cache
def _varlen_options() -> frozenset[str]:
    """What PyTorch's kernel can be told: nothing before 2.10, then `window_size`, and in later ones `enable_gqa`."""
    if importlib.util.find_spec("torch.nn.attention.varlen") is None:
        return frozenset()
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def kernels(module: torch.nn.Module, device: torch.device, dtype: torch.dtype) -> str:
    """Those of a module's attention layers, for the log and the provenance; layers that are not ours are left out."""
    found = {m.head_dim for m in module.modules() if isinstance(getattr(m, "head_dim", None), int)}
    return ", ".join(sorted({kernel(device.type, dtype, head_dim) for head_dim in found}))


def attend(query: Tensor, key: Tensor, value: Tensor, packing: Packing, causal: bool = False) -> Tensor:
    """Softmax attention of each position to those of its own row, or to itself and those before it.

    Args:
        query: (total, H, head_dim).
        key, value: (total, H or a divisor of it, head_dim): each key head serves the query heads of one group.

    Returns:
        (total, H, head_dim).
    """
    chosen = kernel(query.device.type, query.dtype, query.size(-1))
    if chosen == "flash-attn":
        from flash_attn import flash_attn_varlen_func

        bounds, longest = packing.bounds, packing.longest
        return flash_attn_varlen_func(query, key, value, bounds, bounds, longest, longest, causal=causal)
    if chosen == "torch varlen":
        return _varlen(query, key, value, packing, causal)
    return (_by_row if query.device.type == "cpu" else _padded)(query, key, value, packing, causal)


def _varlen(query: Tensor, key: Tensor, value: Tensor, packing: Packing, causal: bool) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {"window_size": (-1, 0) if causal else (-1, -1)}
    if (group := query.size(1) // key.size(1)) > 1:
        if "enable_gqa" in _varlen_options():
            options["enable_gqa"] = True
        else:
            key, value = (x.repeat_interleave(group, dim=1) for x in (key, value))
    bounds, longest = packing.bounds, packing.longest
    return varlen_attn(query, key, value, bounds, bounds, longest, longest, **options)


def _sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Of (N, T, H, head_dim)."""
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    grouped = query.size(1) != key.size(1)
    return F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal, enable_gqa=grouped).transpose(1, 2)


def _by_row(query: Tensor, key: Tensor, value: Tensor, packing: Packing, causal: bool) -> Tensor:
    """A mask over the whole packed row would make attention cost as the square of the batch."""
    rows = zip(*(x[None].split(packing.lens, dim=1) for x in (query, key, value)), strict=True)
    return torch.cat([_sdpa(*row, None, causal)[0] for row in rows])


def _padded(query: Tensor, key: Tensor, value: Tensor, packing: Packing, causal: bool) -> Tensor:
    n, longest = len(packing.lens), packing.longest
    places = packing.padded(longest)
    rows = [put(x.flatten(1), places, n * longest).view(n, longest, *x.shape[1:]) for x in (query, key, value)]
    # Padding comes last, so that a causal mask hides it from all real positions.
    mask = None if causal else put(torch.ones_like(places)[:, None], places, n * longest).view(n, 1, 1, longest) > 0
    return take(_sdpa(*rows, mask, causal), places)
