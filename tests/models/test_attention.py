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


@pytest.mark.parametrize("window", [1, 3, 20])
def test_a_window_is_attention_to_what_lies_in_it(window: int) -> None:
    qkv, real = tensors()
    together = attend(*qkv, real, window=window)
    assert together.isfinite().all()
    for i, length in enumerate((9, 4, 6)):
        for t in range(length):
            seen = slice(max(0, t - window), min(length, t + window + 1))
            query, key, value = qkv[0][i, :, t : t + 1], qkv[1][i, :, seen], qkv[2][i, :, seen]
            torch.testing.assert_close(together[i, :, t : t + 1], F.scaled_dot_product_attention(query, key, value))
    whole = [x[1:2, :, :4] for x in qkv]
    torch.testing.assert_close(attend(*whole, None, window=window), together[1:2, :, :4])


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
@pytest.mark.parametrize("window", [None, 2])
def test_flash_equals_sdpa(padded: bool, window: int | None) -> None:
    qkv, real = tensors("cuda", torch.bfloat16)
    if not padded:
        real = torch.ones_like(real)
    fast = attend(*qkv, real if padded else None, window=window).transpose(1, 2)[real]
    plain = attend(*(x.float() for x in qkv), real, window=window).transpose(1, 2)[real]
    torch.testing.assert_close(fast.float(), plain, atol=2e-2, rtol=2e-2)
