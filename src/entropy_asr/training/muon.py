"""Muon (Jordan et al., 2024) for the matrices of a network, AdamW for the rest, on ZeRO-2's flat partitions.

A matrix moves by the orthogonal factor of its momentum: all directions that its gradients have at all count alike, while
Adam's steps lie in the few strongest.  The factor's size is that of an Adam step (Liu et al., 2025, arXiv 2502.16982, eq. 4),
so that one learning rate serves both.

DeepSpeed has a Muon of its own.  It is not used, because its momentum is laid out by the number of processes, which would make
another number of them unable to go on from a saved state; because it clips the orthogonal factors together with the gradients;
and because it compiles itself with a C++ compiler at its first step.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from entropy_asr.training import distributed

# Odd quintics a x + b x³ + c x⁵, each the best approximation of 1 on what the one before makes of the singular values from
# 0.01 to 1, as Polar Express (Amsel et al., 2025, arXiv 2505.16932) chooses its own: after three, all are within 0.27 of 1.
# In trials of encoder pretraining five, for values from 0.001 on, were no better.
POLYNOMIALS = (
    (8.0934, -23.6206, 17.4463),
    (3.6366, -2.7219, 0.5365),
    (2.6613, -1.9772, 0.4526),
)
TOGETHER = 32


def orthogonalise(matrices: Sequence[Tensor]) -> list[Tensor]:
    """About U Vᵀ of each matrix U S Vᵀ; singular values under a hundredth of its norm stay smaller.

    A polynomial of a matrix X is one of X Xᵀ, times X; so what is iterated on is square, of the shorter side, and the matrices of
    one shorter side go together, at most `TOGETHER` of them.
    """
    found: list[Tensor] = [*matrices]
    sides: dict[int, list[int]] = {}
    for index, matrix in enumerate(matrices):
        sides.setdefault(min(matrix.shape), []).append(index)
    for indices in sides.values():
        for start in range(0, len(indices), TOGETHER):
            some = indices[start : start + TOGETHER]
            upright = [matrices[i].size(0) > matrices[i].size(1) for i in some]
            wide = [matrices[i].T if tall else matrices[i] for i, tall in zip(some, upright, strict=True)]
            wide = [matrix / (matrix.norm() + 1e-7) for matrix in wide]
            factors = _factors(torch.stack([matrix @ matrix.T for matrix in wide]))
            for i, tall, factor, matrix in zip(some, upright, factors, wide, strict=True):
                found[i] = (factor @ matrix).T if tall else factor @ matrix
    return found


def _factors(grams: Tensor) -> Tensor:
    """What the polynomials make of X Xᵀ, (N, d, d): the matrix that takes X to its orthogonal factor."""
    factor = product = None
    for a, b, c in POLYNOMIALS:
        grams = grams if factor is None else factor @ grams @ factor
        factor = torch.baddbmm(grams, grams, grams, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else factor @ product
    return product


def muon_directions(matrices: Sequence[Tensor]) -> list[Tensor]:
    """The orthogonal factors, scaled so that their root mean squares are 0.2, about that of an Adam step."""
    factors = orthogonalise(matrices)
    return [0.2 * math.sqrt(max(factor.shape)) * factor for factor in factors]


class MuonAdamW(torch.optim.AdamW):
    """AdamW, save for groups with `matrices`, the shapes of what their flat tensor holds: those are Muon's.

    ZeRO-2 gives each process an equal stretch of the group's flat tensor.  The momentum lies in such stretches (as `exp_avg`), so
    it is whole whatever the number of processes; each gathers it and makes the factors of the matrices that touch its stretch.
    Every `renew` steps, that is: between them the matrices go on in the last `direction`, as momentum turns slowly.  Each group
    counts its steps in `taken`, on the host, where nothing has to wait for the number.
    """

    MOMENTUM = 0.95

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            if group["matrices"]:
                self._step_matrices(group)
        super().step(closure)
        for group in self.param_groups:
            group["taken"] += 1

    def _step_matrices(self, group: dict[str, Any]) -> None:
        (flat,) = group["params"]
        state = self.state[flat]
        state["exp_avg"].lerp_(flat.grad, 1 - self.MOMENTUM)
        if group["taken"] % group["renew"] == 0:
            towards = torch.lerp(flat.grad, state["exp_avg"], self.MOMENTUM)  # Nesterov
            self._renew(state["direction"], towards, group["matrices"])
        state["step"] += 1
        flat.mul_(1 - group["lr"] * group["weight_decay"]).add_(state["direction"], alpha=-group["lr"])
        flat.grad = None  # AdamW passes it by

    @staticmethod
    def _renew(direction: Tensor, towards: Tensor, shapes: list[tuple[int, int]]) -> None:
        """Write this process's stretch of all directions."""
        start, end = 0, len(direction)
        if distributed.world_size() > 1:
            start, end = (len(direction) * (distributed.rank() + k) for k in (0, 1))
            towards = torch.cat(distributed.gather(towards))
        offsets = list(accumulate((rows * columns for rows, columns in shapes), initial=0))
        touching = [i for i in range(len(shapes)) if offsets[i] < end and offsets[i + 1] > start]
        whole = muon_directions([towards[offsets[i] : offsets[i + 1]].view(shapes[i]) for i in touching])
        for i, matrix in zip(touching, whole, strict=True):
            first, last = max(offsets[i], start), min(offsets[i + 1], end)
            direction[first - start : last - start] = matrix.flatten()[first - offsets[i] : last - offsets[i]]
