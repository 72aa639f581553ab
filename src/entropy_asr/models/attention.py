"""Attention: FlashAttention-2 where it is installed and can run, torch's scaled_dot_product_attention otherwise.

One function for the encoder, one name for the LLM; `tests/models/test_attention.py` holds the ways equal.  FlashAttention
takes the real frames of all utterances as one packed row, so padding costs nothing.  On a CPU the encoder's products are written
out: over the fifty frames of a short utterance torch's kernel takes nearly twice as long.
"""

import importlib.util
import math
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

PACKED = "packed_sdpa"  # `models.packed_attention`, which is no part of this module: an encoder needs no transformers


@lru_cache(maxsize=1)
def flash_attention_installed() -> bool:
    """Whether the package flash-attn is there and a GPU to run it (its kernels need one of the Ampere generation or later)."""
    if importlib.util.find_spec("flash_attn") is None or not torch.cuda.is_available():
        return False
    return torch.cuda.get_device_capability()[0] >= 8


def llm_attention(precision: str) -> str:
    """What transformers calls the attention of an LLM that computes in this precision, fp32 or bf16."""
    return "flash_attention_2" if flash_attention_installed() and precision == "bf16" else PACKED


def attend(query: Tensor, key: Tensor, value: Tensor, real: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Softmax attention of each frame to the real frames of its utterance.

    Args:
        query, key, value: (N, H, T, head_dim).
        real: (N, T) bool, True where a frame is real; None where all are.
        dropout: of the attention weights.

    Returns:
        (N, H, T, head_dim); where `real` is False, anything finite.
    """
    if flash_attention_installed() and query.is_cuda and query.dtype != torch.float32:
        return _flash(query, key, value, real, dropout)
    if query.is_cuda:
        mask = None if real is None else real[:, None, None, :]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
    return _written_out(query, key, value, real, dropout)


def _written_out(query: Tensor, key: Tensor, value: Tensor, real: Tensor | None, dropout: float) -> Tensor:
    n, heads, frames, head_dim = query.shape
    q, k, v = (x.reshape(n * heads, frames, head_dim) for x in (query, key, value))
    mask = q.new_zeros(n, 1, frames)
    if real is not None:
        mask = mask.masked_fill(~real[:, None, :], -math.inf)
    scores = torch.baddbmm(mask.repeat_interleave(heads, 0), q, k.transpose(1, 2), alpha=head_dim**-0.5)
    return torch.bmm(F.dropout(scores.softmax(-1), dropout), v).view(query.shape)


def pack(x: Tensor, real: Tensor) -> tuple[Tensor, Tensor, int]:
    """(N, H, T, D) to the (frames, H, D) of real ones, where each utterance begins and ends, (N + 1,) int32, and the longest."""
    lens = real.sum(1, dtype=torch.int32)
    return x.transpose(1, 2)[real], F.pad(lens.cumsum(0, dtype=torch.int32), (1, 0)), int(lens.max())


def _flash(query: Tensor, key: Tensor, value: Tensor, real: Tensor | None, dropout: float) -> Tensor:
    from flash_attn import flash_attn_func, flash_attn_varlen_func

    if real is None:
        return flash_attn_func(*(x.transpose(1, 2) for x in (query, key, value)), dropout_p=dropout).transpose(1, 2)
    (q, bounds, longest), (k, _, _), (v, _, _) = (pack(x, real) for x in (query, key, value))
    packed = flash_attn_varlen_func(q, k, v, bounds, bounds, longest, longest, dropout_p=dropout)
    out = query.new_zeros(query.transpose(1, 2).shape)
    out[real] = packed
    return out.transpose(1, 2)
