"""Muon (Jordan et al., 2024) for the matrices of a network, AdamW for the rest, on ZeRO-2's flat partitions.

A matrix moves by the orthogonal factor of its momentum: all directions that its gradients have at all count alike, while
Adam's steps lie in the few strongest.  The factor's size is that of an Adam step (Liu et al., 2025, arXiv 2502.16982, eq. 4),
so that one learning rate serves both.

DeepSpeed has a Muon of its own.  It is not used, because its momentum is laid out by the number of processes, which would make
another number of them unable to go on from a saved state; because it clips the orthogonal factors together with the gradients;
and because it compiles itself with a C++ compiler at its first step.
"""

import math
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


def orthogonalise(matrix: Tensor) -> Tensor:
    """About U Vᵀ of a matrix U S Vᵀ; singular values under a hundredth of its norm stay smaller.

    A polynomial of a matrix X is one of X Xᵀ, times X; so what is iterated on is square, of the shorter side.
    """
    wide = matrix.T if matrix.size(0) > matrix.size(1) else matrix
    wide = wide / (wide.norm() + 1e-7)
    gram, factor, product = wide @ wide.T, None, None
    for a, b, c in POLYNOMIALS:
        gram = gram if factor is None else factor @ gram @ factor
        factor = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal().add_(a)
        product = factor if product is None else factor @ product
    wide = product @ wide
    return wide.T if matrix.size(0) > matrix.size(1) else wide


def muon_direction(matrix: Tensor) -> Tensor:
    """The orthogonal factor, scaled so that its root mean square is 0.2, about that of an Adam step."""
    return 0.2 * math.sqrt(max(matrix.shape)) * orthogonalise(matrix)


class MuonAdamW(torch.optim.AdamW):
    """AdamW, save for groups with `matrices`, the shapes of what their flat tensor holds: those are Muon's.

    ZeRO-2 gives each process an equal stretch of the group's flat tensor.  The momentum lies in such stretches (as `exp_avg`), so
    it is whole whatever the number of processes; each gathers it and makes the factors of the matrices that touch its stretch.
    Every `renew` steps, that is: between them the matrices go on in the last `direction`, as momentum turns slowly.
    """

    MOMENTUM = 0.95

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            if group["matrices"]:
                self._step_matrices(group)
        super().step(closure)

    def _step_matrices(self, group: dict[str, Any]) -> None:
        (flat,) = group["params"]
        state = self.state[flat]
        state["exp_avg"].lerp_(flat.grad, 1 - self.MOMENTUM)
        if int(state["step"]) % group["renew"] == 0:
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
        offset = 0
        for rows, columns in shapes:
            following = offset + rows * columns
            if offset < end and following > start:
                first, last = max(offset, start), min(following, end)
                whole = muon_direction(towards[offset:following].view(rows, columns)).flatten()
                direction[first - start : last - start] = whole[first - offset : last - offset]
            offset = following
