"""Attention: FlashAttention-2 where it is installed and can run, torch's scaled_dot_product_attention otherwise.

One function for the encoder, one name for the LLM; `tests/models/test_attention.py` holds both ways equal.  FlashAttention
takes the real frames of all utterances as one packed row, so padding costs nothing.
"""

import importlib.util
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
    mask = None if real is None else real[:, None, None, :]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)


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
