"""Muon's direction against the singular value decomposition."""

import pytest
import torch

from entropy_asr.training.muon import muon_direction, orthogonalise


@pytest.mark.parametrize("shape", [(1, 9), (16, 16), (7, 5), (40, 200)])
def test_orthogonal_factor(shape: tuple[int, int]) -> None:
    """The singular vectors are kept, and all singular values become about 1, be they thirty times smaller than others."""
    generator = torch.Generator().manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(*shape, generator=generator), full_matrices=False)
    found = left.T @ orthogonalise(left * torch.logspace(0, -1.5, min(shape)) @ right) @ right.T
    values = found.diagonal()
    assert values.min() > 0.72
    assert values.max() < 1.28
    assert (found - values.diag()).abs().max() < 1e-3


@pytest.mark.parametrize("shape", [(30, 30), (60, 30), (30, 60)])
def test_direction_has_the_size_of_an_adam_step_whatever_the_gradient_s(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    direction = muon_direction(matrix)
    assert direction.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.25)
    torch.testing.assert_close(muon_direction(1000 * matrix), direction, rtol=1e-3, atol=1e-4)
