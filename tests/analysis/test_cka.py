"""Linear CKA: its known answers, and that batches make no difference."""

import pytest
import torch

from entropy_asr.analysis.cka import LinearCka, cka_estimate, linear_cka


def test_rotation_shift_and_scale_change_nothing() -> None:
    x = torch.randn(500, 16, dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64))[0]
    assert linear_cka(x, 3.7 * x @ rotation + 5.0) == pytest.approx(1.0, abs=1e-9)


def test_independent_features_are_near_zero() -> None:
    assert linear_cka(torch.randn(20_000, 8), torch.randn(20_000, 8)) < 0.01


def test_equals_the_gram_matrix_definition() -> None:
    x, y = torch.randn(60, 5, dtype=torch.float64), torch.randn(60, 9, dtype=torch.float64)
    y[:, :5] += x
    centre = torch.eye(60, dtype=torch.float64) - 1 / 60
    k, m = centre @ x @ x.T @ centre, centre @ y @ y.T @ centre
    expected = (k * m).sum() / (k.norm() * m.norm())
    cka = LinearCka()
    for rows in (slice(0, 7), slice(7, 40), slice(40, 60)):
        cka.update(x[rows], y[rows])
    assert cka.value() == pytest.approx(expected.item(), rel=1e-9)


def speech(utterances: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Two encoders of the same utterances, whose frames are alike within each: an offset of its own is most of their variance."""
    x, y, lens = [], [], []
    for _ in range(utterances):
        n = int(torch.randint(20, 60, (1,), generator=generator))
        frames = torch.randn(1, 6, generator=generator) * torch.linspace(1, 3, 6) + 0.5 * torch.randn(n, 6, generator=generator)
        x.append(frames)
        y.append(frames[:, :4] + torch.randn(1, 4, generator=generator) + 0.5 * torch.randn(n, 4, generator=generator))
        lens.append(n)
    return torch.cat(x), torch.cat(y), lens


def test_the_interval_covers_the_true_value_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    true = linear_cka(*speech(20_000, generator)[:2])
    found = [cka_estimate(*speech(80, generator)) for _ in range(200)]
    assert all(item.low <= item.value <= item.high for item in found)
    covered = sum(item.low <= true <= item.high for item in found) / len(found)
    assert 0.88 <= covered <= 0.99  # 95% with a standard error of 1.5 points; the jackknife of a ratio is a little too narrow
    as_frames = [cka_estimate(x, y, [1] * len(x)) for x, y, _ in (speech(80, generator) for _ in range(20))]
    assert (
        sum(i.high - i.low for i in as_frames) / 20 < sum(i.high - i.low for i in found) / 200 / 2
    )  # frames are not independent


def test_one_utterance_has_no_interval_and_equal_encoders_a_narrow_one() -> None:
    x = torch.randn(50, 3)
    assert cka_estimate(x, x, [50])[1:] == (None, None)
    assert cka_estimate(x, x, [20, 30]) == pytest.approx((1.0, 1.0, 1.0))


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="the same frames"):
        linear_cka(torch.randn(3, 2), torch.randn(4, 2))
    with pytest.raises(ValueError, match="constant"):
        linear_cka(torch.ones(10, 2), torch.randn(10, 2))
