"""Muon's direction against the singular value decomposition."""

import pytest
import torch

from entropy_asr.training.muon import muon_direction, orthogonalise


@pytest.mark.parametrize("shape", [(1, 9), (16, 16), (5, 7), (40, 200)])
def test_orthogonal_factor(shape: tuple[int, int]) -> None:
    """The singular vectors are kept, and all singular values become about 1, be they a hundred times smaller than others."""
    generator = torch.Generator().manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(3, *shape, generator=generator), full_matrices=False)
    matrices = left * torch.logspace(0, -2, shape[0]) @ right
    found = left.mT @ orthogonalise(matrices) @ right.mT
    values = found.diagonal(dim1=1, dim2=2)
    assert values.min() > 0.85
    assert values.max() < 1.15
    assert (found - torch.diag_embed(values)).abs().max() < 1e-3


def test_direction_has_the_size_of_an_adam_step_whatever_the_gradient_s() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(30, 30), (60, 30), (30, 60), (30, 30)]
    matrices = [torch.randn(shape, generator=generator) for shape in shapes]
    directions = muon_direction(matrices)
    for matrix, direction in zip(matrices, directions, strict=True):
        assert direction.shape == matrix.shape
        assert direction.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.15)
        torch.testing.assert_close(muon_direction([1000 * matrix])[0], direction, rtol=1e-3, atol=1e-4)
