"""All ways to compute attention give the same, and each row attends to itself alone."""

import math
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from entropy_asr.models import attention
from entropy_asr.models.attention import attend, kernel
from entropy_asr.models.packing import Packing

CPU = torch.device("cpu")


def by_definition(query: Tensor, key: Tensor, value: Tensor, lens: list[int], causal: bool) -> Tensor:
    """softmax(Q Kᵀ / sqrt(d)) V, one position of one head after the other, in double precision."""
    group = query.size(1) // key.size(1)
    out = torch.empty_like(query, dtype=torch.float64)
    start = 0
    for length in lens:
        for place in range(start, start + length):
            seen = slice(start, place + 1 if causal else start + length)
            for head in range(query.size(1)):
                keys, values = (x[seen, head // group].double() for x in (key, value))
                weights = (keys @ query[place, head].double() / math.sqrt(query.size(2))).softmax(0)
                out[place, head] = weights @ values
        start += length
    return out


def tensors(lens: list[int], groups: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(sum(lens), heads, 16, generator=generator).to(dtype) for heads in (2 * groups, 2, 2)]


@settings(max_examples=25, deadline=None)
@given(lens=st.lists(st.integers(1, 9), min_size=1, max_size=5), causal=st.booleans(), groups=st.sampled_from([1, 3]))
def test_every_way_is_attention_by_definition(lens: list[int], causal: bool, groups: int) -> None:
    qkv = tensors(lens, groups)
    expected = by_definition(*qkv, lens, causal).float()
    packing = Packing.of(lens, CPU)
    for way in (attend, attention._by_row, attention._padded):
        torch.testing.assert_close(way(*qkv, packing, causal), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_of_every_way_agree(causal: bool) -> None:
    packing, found = Packing.of([5, 1, 8], CPU), []
    for way in (attention._by_row, attention._padded):
        qkv = [x.requires_grad_() for x in tensors([5, 1, 8], 2)]
        way(*qkv, packing, causal).square().sum().backward()
        found.append([x.grad for x in qkv])
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-4)


def test_a_row_does_not_see_another() -> None:
    qkv = tensors([4, 3], 1)
    before = attend(*qkv, Packing.of([4, 3], CPU))
    for x in qkv:
        x[4:] = float("nan")
    torch.testing.assert_close(attend(*qkv, Packing.of([4, 3], CPU))[:4], before[:4])


def test_which_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """FlashAttention-2 needs half precision, heads of a multiple of 8 and a GPU of 2020 or later."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: None if name == "flash_attn" else object())
    monkeypatch.setattr(attention, "_varlen_options", lambda: {"window_size"})
    for device, dtype, head_dim, expected in (
        ("cuda", torch.bfloat16, 128, "torch varlen"),
        ("cuda", torch.bfloat16, 36, "torch SDPA"),
        ("cuda", torch.float32, 128, "torch SDPA"),
        ("cpu", torch.bfloat16, 128, "torch SDPA"),
    ):
        assert kernel.__wrapped__(device, dtype, head_dim) == expected
    monkeypatch.setattr(attention.importlib.util, "find_spec", lambda name: object())
    assert kernel.__wrapped__("cuda", torch.bfloat16, 128) == "flash-attn"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert kernel.__wrapped__("cuda", torch.bfloat16, 128) == "torch SDPA"


@pytest.mark.parametrize("knows_groups", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("causal", [False, True])
def test_what_pytorchs_kernel_is_asked_for(
    causal: bool, groups: int, knows_groups: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in with the signature of PyTorch 2.11's or 2.13's kernel, which computes by definition what it is asked for."""

    def asked(query, key, value, bounds, other_bounds, longest, _, *, window_size, **options):
        assert bounds is other_bounds and bounds.dtype == torch.int32 and longest == 8
        assert options == ({"enable_gqa": True} if knows_groups and groups > 1 else {})
        assert knows_groups or query.size(1) == key.size(1)  # 2.11 refuses groups
        lens = bounds.diff().tolist()
        return by_definition(query, key, value, lens, {(-1, 0): True, (-1, -1): False}[window_size]).to(query.dtype)

    monkeypatch.setitem(sys.modules, "torch.nn.attention.varlen", SimpleNamespace(varlen_attn=asked))
    known = {"window_size", "enable_gqa"} if knows_groups else {"window_size"}
    monkeypatch.setattr(attention, "_varlen_options", lambda: known)
    monkeypatch.setattr(attention, "kernel", lambda *_: "torch varlen")
    qkv, packing = tensors([5, 1, 8], groups), Packing.of([5, 1, 8], CPU)
    torch.testing.assert_close(attend(*qkv, packing, causal), attention._by_row(*qkv, packing, causal), atol=1e-5, rtol=1e-4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
def test_the_kernels_on_a_gpu(causal: bool, groups: int) -> None:
    lens = [9, 1, 200, 64]
    query, key, value = (x.repeat(1, 1, 4).to("cuda", torch.bfloat16).requires_grad_() for x in tensors(lens, groups))
    packing = Packing.of(lens, torch.device("cuda"))
    assert kernel("cuda", torch.bfloat16, 64) != "torch SDPA"
    fast = attend(query, key, value, packing, causal)
    exact = [x.detach().cpu().float().requires_grad_() for x in (query, key, value)]
    plain = attention._by_row(*exact, Packing.of(lens, CPU), causal)
    torch.testing.assert_close(fast.cpu().float(), plain, atol=2e-2, rtol=2e-2)
    fast.float().square().sum().backward()
    plain.square().sum().backward()
    for x, y in zip((query, key, value), exact, strict=True):
        torch.testing.assert_close(x.grad.cpu().float(), y.grad, atol=6e-2, rtol=6e-2)
