"""An LLM's attention to a packed row, by torch's scaled_dot_product_attention: utterance by utterance.

A mask over the whole row would make attention cost as the square of the batch.  Importing this makes it known to transformers.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from entropy_asr.models.attention import PACKED


def _packed_sdpa(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    row_lens: Sequence[int] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention of a transformers LLM; within `row_lens` consecutive positions each where they are given, else by `mask`.

    query: (N, H, L, head_dim); returns (N, L, H, head_dim). row_lens: sums to L.
    """
    if row_lens is None:
        return sdpa_attention_forward(module, query, key, value, mask, **options)
    rows = zip(*(x.split(list(row_lens), dim=2) for x in (query, key, value)), strict=True)
    return torch.cat([sdpa_attention_forward(module, *row, None, **options)[0] for row in rows], dim=1), None


AttentionInterface.register(PACKED, _packed_sdpa)
AttentionMaskInterface.register(PACKED, sdpa_mask)
