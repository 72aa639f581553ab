"""NSE: known answers, and that neither batches nor their order matter."""

import math
import random

import pytest
import torch

from entropy_asr.analysis import normalized_spectral_entropy
from entropy_asr.analysis.spectral import Moments, SpectralEntropy


def stream(utterances: int, frames: int, scale: torch.Tensor, seed: int = 0) -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(f"u{i}", torch.randn(frames, len(scale), generator=generator) * scale + 3.0) for i in range(utterances)]


def accumulated(pieces: list[tuple[str, torch.Tensor]]) -> SpectralEntropy:
    entropy = SpectralEntropy()
    for utterance, frames in pieces:
        entropy.update(utterance, frames)
    return entropy


def test_isotropic_frames_have_one() -> None:
    d, frames = 32, 20_000
    torch.manual_seed(0)
    # Marchenko-Pastur: to first order the eigenvalues' variance is d/L, and 1 - NSE half of it over log d.
    expected_bias = d / frames / 2 / math.log(d)
    assert normalized_spectral_entropy(torch.randn(frames, d)) == pytest.approx(1 - expected_bias, abs=0.2 * expected_bias)


def test_rank_one_has_zero() -> None:
    torch.manual_seed(0)
    assert normalized_spectral_entropy(torch.randn(1000, 1) @ torch.randn(1, 24)) == pytest.approx(0.0, abs=1e-9)


def test_a_spectrum_that_is_known_lies_in_the_interval_and_the_bias_is_removed() -> None:
    scale = 0.85 ** torch.arange(24)
    p = scale.double() ** 2 / (scale.double() ** 2).sum()
    truth = (-(p * p.log()).sum() / math.log(24)).item()
    inside, plain, corrected = 0, 0.0, 0.0
    for seed in range(40):
        estimate = accumulated(stream(60, 20, scale, seed)).estimate()
        assert estimate.low is not None and estimate.high is not None
        inside += estimate.low <= truth <= estimate.high
        plain += (estimate.plain - truth) / 40
        corrected += (estimate.value - truth) / 40
    assert inside >= 33  # 38 expected of 40 at 95%; 32 or fewer happens once in a thousand
    assert plain < 0 and abs(corrected) < 0.3 * abs(plain)


def test_batches_and_their_order_make_no_difference() -> None:
    pieces = stream(50, 30, torch.linspace(0.1, 2, 12))
    halves = [(u, part) for u, frames in pieces for part in frames.split(17)]
    random.Random(0).shuffle(halves)
    first, second = accumulated(pieces).estimate(), accumulated(halves).estimate()
    for name in ("plain", "bias", "value", "low", "high"):
        assert getattr(first, name) == pytest.approx(getattr(second, name), abs=1e-10)
    assert first.spectrum == pytest.approx(second.spectrum, abs=1e-12) and sum(first.spectrum) == pytest.approx(1.0)


def test_moments_equal_the_direct_covariance_also_far_from_zero() -> None:
    torch.manual_seed(0)
    frames = torch.randn(500, 6, dtype=torch.float64) + 1e6
    merged = Moments(frames[:100]).add(Moments(frames[100:]))
    assert torch.allclose(merged.scatter / 499, torch.cov(frames.T), atol=1e-8)
    left = merged.add(Moments(frames[100:]), -1)
    assert left.count == 100 and torch.allclose(left.scatter, Moments(frames[:100]).scatter, atol=1e-6)


def test_memory_does_not_grow_with_frames() -> None:
    def held(entropy: SpectralEntropy) -> int:
        return sum(group.scatter.nbytes + group.mean.nbytes for group in entropy.groups)

    scale = torch.ones(8)
    assert held(accumulated(stream(400, 10, scale))) == held(accumulated(stream(4000, 10, scale)))


def test_what_has_no_spectrum_is_refused() -> None:
    with pytest.raises(ValueError, match="two frames"):
        normalized_spectral_entropy(torch.randn(1, 4))
    with pytest.raises(ValueError, match="frames that vary"):
        normalized_spectral_entropy(torch.ones(10, 4))
    with pytest.raises(ValueError, match="two dimensions"):
        normalized_spectral_entropy(torch.randn(10, 1))
