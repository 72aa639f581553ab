"""Muon's direction against the singular value decomposition."""

import pytest
import torch

from entropy_asr.training.muon import TOGETHER, muon_directions, orthogonalise


@pytest.mark.parametrize("shape", [(1, 9), (16, 16), (7, 5), (40, 200)])
def test_orthogonal_factor(shape: tuple[int, int]) -> None:
    """The singular vectors are kept, and all singular values become about 1, be they thirty times smaller than others."""
    generator = torch.Generator().manual_seed(0)
    left, _, right = torch.linalg.svd(torch.randn(*shape, generator=generator), full_matrices=False)
    (factor,) = orthogonalise([left * torch.logspace(0, -1.5, min(shape)) @ right])
    found = left.T @ factor @ right.T
    values = found.diagonal()
    assert values.min() > 0.72
    assert values.max() < 1.28
    assert (found - values.diag()).abs().max() < 1e-3


@pytest.mark.parametrize("shape", [(30, 30), (60, 30), (30, 60)])
def test_direction_has_the_size_of_an_adam_step_whatever_the_gradient_s(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    direction, other = muon_directions([matrix, 1000 * matrix])
    assert direction.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.25)
    torch.testing.assert_close(other, direction, rtol=1e-3, atol=1e-4)


def test_a_matrix_s_factor_does_not_depend_on_which_others_are_there() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(8, 12), (20, 8), (5, 5), (12, 8), (8, 8)] * (TOGETHER // 4 + 1)
    matrices = [torch.randn(shape, generator=generator) for shape in shapes]
    for together, matrix in zip(orthogonalise(matrices), matrices, strict=True):
        torch.testing.assert_close(together, *orthogonalise([matrix]))
