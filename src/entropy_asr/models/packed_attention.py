"""An LLM's attention to a packed row, by `models.attention`.  Importing this makes it known to transformers."""

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from entropy_asr.errors import InputError
from entropy_asr.models.attention import PACKED, attend
from entropy_asr.models.packing import Packing


def _packed(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    packing: Packing | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention of a transformers LLM, within the rows of `packing` where it is given, else by `mask`.

    query: (1, H, total, head_dim); returns (1, total, H, head_dim).

    Raises:
        InputError: the LLM attends to a window that is shorter than a row, or scales its products in its own way.
    """
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, mask, **options)
    window, scale = options.get("sliding_window"), options.get("scaling")
    if (window is not None and window < packing.longest) or (scale is not None and scale != query.size(-1) ** -0.5):
        raise InputError(
            f"llm.pretrained: this LLM attends to {window} positions and scales products by {scale}; a row here has "
            f"{packing.longest} positions, and products are scaled by {query.size(-1) ** -0.5:.4g}. Take one as Qwen3"
        )
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    return attend(query, key, value, packing, causal=True)[None], None


AttentionInterface.register(PACKED, _packed)
AttentionMaskInterface.register(PACKED, sdpa_mask)
