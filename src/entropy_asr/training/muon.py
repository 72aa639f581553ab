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
from typing import Any

import torch
from torch import Tensor

from entropy_asr.training import distributed

# Polar Express (Amsel et al., 2025, arXiv 2505.16932): the best odd quintic polynomials to apply in turn, for singular values
# of 1e-3 to 1.
POLYNOMIALS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)


def orthogonalise(matrices: Tensor) -> Tensor:
    """About U Vᵀ of each matrix U S Vᵀ; singular values under a thousandth of the matrix's norm stay smaller than 1.

    Of wide matrices only the square Gram matrix is iterated on, which is the same polynomial in fewer products.

    Args:
        matrices: (B, rows, columns), rows at most columns.
    """
    x = matrices / (1.02 * matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if x.size(1) == x.size(2):
        for a, b, c in POLYNOMIALS:
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x
    gram = x @ x.mT
    product = torch.eye(x.size(1), dtype=x.dtype, device=x.device).expand_as(gram)
    for last, (a, b, c) in zip((False,) * (len(POLYNOMIALS) - 1) + (True,), POLYNOMIALS, strict=True):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # x becomes (a + factor) x
        product = torch.baddbmm(product, factor, product, beta=a)
        if not last:
            turned = torch.baddbmm(gram, factor, gram, beta=a)
            gram = torch.baddbmm(turned, turned, factor, beta=a)
    return product @ x


def muon_direction(matrices: Sequence[Tensor]) -> list[Tensor]:
    """The orthogonal factors, scaled to an Adam step's root mean square of 0.2; those of one shape are made together."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, matrix in enumerate(matrices):
        groups.setdefault((min(matrix.shape), max(matrix.shape)), []).append(index)
    found: list[Tensor] = [torch.empty(0)] * len(matrices)
    for (_, longer), members in groups.items():
        wide = [matrices[i].T if matrices[i].size(0) > matrices[i].size(1) else matrices[i] for i in members]
        for i, factor in zip(members, 0.2 * math.sqrt(longer) * orthogonalise(torch.stack(wide)), strict=True):
            found[i] = factor.T if matrices[i].size(0) > matrices[i].size(1) else factor
    return found


class MuonAdamW(torch.optim.AdamW):
    """AdamW, save for groups with `matrices`, the shapes of what their flat tensor holds: those are Muon's.

    ZeRO-2 gives each process an equal stretch of the group's flat tensor.  The momentum lies in such stretches (as `exp_avg`), so
    it is whole whatever the number of processes; each gathers it and makes the factors of the matrices that touch its stretch.
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
        momentum = self.state[flat]["exp_avg"]
        momentum.lerp_(flat.grad, 1 - self.MOMENTUM)
        towards = torch.lerp(flat.grad, momentum, self.MOMENTUM)  # Nesterov
        start, end = 0, len(flat)
        if distributed.world_size() > 1:
            start, end = (len(flat) * (distributed.rank() + k) for k in (0, 1))
            towards = torch.cat(distributed.gather(towards))
        mine, first, offset = [], 0, 0
        for rows, columns in group["matrices"]:
            following = offset + rows * columns
            if offset < end and following > start:
                first = first if mine else offset
                mine.append(towards[offset:following].view(rows, columns))
            offset = following
        flat.mul_(1 - group["lr"] * group["weight_decay"])
        if mine:
            update = torch.cat([direction.flatten() for direction in muon_direction(mine)])[max(0, start - first) : end - first]
            moved = max(0, first - start)
            flat[moved : moved + len(update)].add_(update, alpha=-group["lr"])
        flat.grad = None  # AdamW passes it by
