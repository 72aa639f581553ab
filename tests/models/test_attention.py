"""FlashAttention-2 and PyTorch's attention give the same; the packing between them loses nothing."""

from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

from entropy_asr.models.attention import attend, flash_attention_installed, pack
from entropy_asr.models.conformer import length_mask


def tensors(device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    qkv = [torch.randn(3, 2, 9, 32, generator=generator).to(device, dtype) for _ in range(3)]
    return qkv, length_mask(torch.tensor([9, 4, 6]), 9).to(device)


def test_each_utterance_attends_to_its_own_frames() -> None:
    qkv, real = tensors()
    together = attend(*qkv, real)
    for i, length in enumerate((9, 4, 6)):
        alone = attend(*(x[i : i + 1, :, :length] for x in qkv), None)
        torch.testing.assert_close(together[i : i + 1, :, :length], alone)


def test_packed_frames_are_the_real_ones_in_order() -> None:
    (query, key, value), real = tensors()
    packed, bounds, longest = pack(query, real)
    assert packed.shape == (19, 2, 32)
    assert bounds.tolist() == [0, 9, 13, 19]
    assert longest == 9
    # What FlashAttention's variable-length kernel computes, from its definition: attention within each pair of bounds.
    k, v = pack(key, real)[0], pack(value, real)[0]
    expected = attend(query, key, value, real).transpose(1, 2)[real]
    for start, end in pairwise(bounds):
        q_, k_, v_ = (x[start:end].transpose(0, 1) for x in (packed, k, v))
        torch.testing.assert_close(F.scaled_dot_product_attention(q_, k_, v_).transpose(0, 1), expected[start:end])


@pytest.mark.skipif(not flash_attention_installed(), reason="needs flash-attn and a GPU")
@pytest.mark.parametrize("padded", [True, False])
def test_flash_equals_sdpa(padded: bool) -> None:
    qkv, real = tensors("cuda", torch.bfloat16)
    if not padded:
        real = torch.ones_like(real)
    fast = attend(*qkv, real if padded else None).transpose(1, 2)[real]
    plain = F.scaled_dot_product_attention(*(x.float() for x in qkv), attn_mask=real[:, None, None, :]).transpose(1, 2)[real]
    torch.testing.assert_close(fast.float(), plain, atol=2e-2, rtol=2e-2)
