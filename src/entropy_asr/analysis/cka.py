"""Linear CKA (Kornblith et al., 2019): how alike two representations of the same frames are, up to rotation and scale.

    CKA = ||X'Y||_F^2 / (||X'X||_F ||Y'Y||_F),   X, Y: (L, d), centred over the L frames

The d x d products are accumulated over batches in float64; no L x L matrix is built, and centring is done at the end
(X'Y - L mean(X)' mean(Y)), so that frames are seen once.

The interval is the jackknife's over groups of utterances: the frames of one utterance depend on each other.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class LinearCka:
    """Accumulates frames of two representations; `value()` is their CKA in [0, 1]."""

    def __init__(self) -> None:
        self.frames = 0
        self.sums: list[Tensor] = []
        self.products: list[Tensor] = []

    def update(self, x: Tensor, y: Tensor) -> None:
        """x: (L, d1), y: (L, d2), the same L frames in the same order, without padding."""
        if x.size(0) != y.size(0):
            raise ValueError(f"CKA compares the same frames: {x.size(0)} and {y.size(0)} given")
        x, y = x.double(), y.double()
        sums, products = [x.sum(0), y.sum(0)], [x.T @ x, y.T @ y, x.T @ y]
        self.sums = [a + b for a, b in zip(self.sums, sums, strict=True)] if self.sums else sums
        self.products = [a + b for a, b in zip(self.products, products, strict=True)] if self.products else products
        self.frames += x.size(0)

    def without(self, part: "LinearCka") -> "LinearCka":
        """What is left if the frames of `part`, which are among these, are taken out."""
        rest = LinearCka()
        rest.frames = self.frames - part.frames
        rest.sums = [a - b for a, b in zip(self.sums, part.sums, strict=True)]
        rest.products = [a - b for a, b in zip(self.products, part.products, strict=True)]
        return rest

    def value(self) -> float:
        """Raises ValueError where a representation does not vary, for then CKA is undefined."""
        if self.frames < 2:
            raise ValueError(f"CKA needs at least two frames, got {self.frames}")
        mean_x, mean_y = (s / self.frames for s in self.sums)
        xx, yy, xy = self.products
        xx = xx - self.frames * torch.outer(mean_x, mean_x)
        yy = yy - self.frames * torch.outer(mean_y, mean_y)
        xy = xy - self.frames * torch.outer(mean_x, mean_y)
        denominator = (xx.norm() * yy.norm()).item()
        if denominator <= 1e-12:
            raise ValueError("CKA is undefined: a representation is constant over all frames")
        return (xy.norm() ** 2).item() / denominator


class CkaEstimate(NamedTuple):
    """CKA with its 95% interval over utterances; low and high are None for a single utterance."""

    value: float
    low: float | None
    high: float | None


def cka_estimate(x: Tensor, y: Tensor, lens: Sequence[int], groups: int = 20) -> CkaEstimate:
    """CKA of (L, d1) and (L, d2) with its interval: Student's t by the jackknife over groups of utterances, cut off at 0 and 1.

    Args:
        lens: frames of each utterance, in order; L together.
        groups: at most; memory does not grow with them.
    """
    from scipy.stats import t

    whole = LinearCka()
    whole.update(x, y)
    number = min(groups, len(lens))
    if number < 2:
        return CkaEstimate(whole.value(), None, None)
    group = (torch.arange(len(lens)) % number).repeat_interleave(torch.tensor(lens))
    left = []
    for place in range(number):
        part = LinearCka()
        part.update(x[group == place], y[group == place])
        left.append(whole.without(part).value())
    half = t.ppf(0.975, number - 1) * ((number - 1) ** 2 / number * torch.tensor(left).var()).sqrt().item()
    return CkaEstimate(whole.value(), max(0.0, whole.value() - half), min(1.0, whole.value() + half))


def linear_cka(x: Tensor, y: Tensor) -> float:
    """CKA of (L, d1) and (L, d2)."""
    cka = LinearCka()
    cka.update(x, y)
    return cka.value()
