"""Linear CKA: its known answers, and that batches make no difference."""

import pytest
import torch

from entropy_asr.analysis.cka import LinearCka, linear_cka


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


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="the same frames"):
        linear_cka(torch.randn(3, 2), torch.randn(4, 2))
    with pytest.raises(ValueError, match="constant"):
        linear_cka(torch.ones(10, 2), torch.randn(10, 2))
