"""NSE, normalised spectral entropy: over how many directions a representation spreads its variance, in [0, 1].

    p = eigenvalues of the covariance of the frames / their sum,   NSE = -sum p log p / log d

It is the entropy of Roy and Vetterli's (2007) effective rank, divided by that of isotropic frames.  Low: energy in few
directions.  The covariance is accumulated in float64 over batches; each frame is seen once.

A sample covariance spreads less evenly than the true one, so NSE is too low on few frames, and neighbouring frames are worth
less than independent ones: no formula in the number of frames gives the bias.  So utterances are dealt into groups by the hash
of their id, and the delete-a-group jackknife gives both the bias and an interval, from as many eigendecompositions as groups.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDING = 1e-9  # an eigenvalue below -ROUNDING times the largest is no rounding error


class Moments:
    """Count, mean and centred second moments of frames, in float64, merged as by Chan, Golub and LeVeque (1983)."""

    def __init__(self, frames: Tensor | None = None) -> None:
        """frames: (L, d), any float type."""
        self.count = 0
        self.mean = torch.zeros(0, dtype=torch.float64)
        self.scatter = torch.zeros(0, 0, dtype=torch.float64)
        if frames is not None:
            self.update(frames)

    def update(self, frames: Tensor) -> None:
        """Take (L, d) frames in, in place: one pass over the scatter."""
        if len(frames) == 0:
            return
        frames = frames.double()
        if self.count == 0:
            self.mean, self.scatter = frames.new_zeros(frames.size(1)), frames.new_zeros(frames.size(1), frames.size(1))
        total, mean = self.count + len(frames), frames.mean(0)
        apart = mean - self.mean
        centred = torch.cat([frames - mean, (self.count * len(frames) / total) ** 0.5 * apart[None]])
        self.scatter.addmm_(centred.T, centred)
        self.mean += len(frames) / total * apart
        self.count = total

    def add(self, other: "Moments", sign: int = 1) -> "Moments":
        """Both together; with sign -1, what is left when `other` is taken out again."""
        if self.count == 0 or other.count == 0:
            return self if other.count == 0 else other
        result = Moments()
        result.count = self.count + sign * other.count
        result.mean = (self.count * self.mean + sign * other.count * other.mean) / result.count
        between = (other.mean - self.mean) if sign > 0 else (other.mean - result.mean)
        weight = (self.count if sign > 0 else result.count) * other.count / max(self.count, result.count)
        result.scatter = self.scatter + sign * (other.scatter + weight * torch.outer(between, between))
        return result

    def spectrum(self) -> Tensor:
        """Eigenvalues of the covariance, (d,), largest first.

        Raises:
            ValueError: fewer than two frames, or a scatter that is no covariance.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least two frames, got {self.count}")
        values = torch.linalg.eigvalsh(self.scatter / self.count).flip(0)
        if values[-1] < -ROUNDING * values[0].abs():
            raise ValueError(f"covariance has the negative eigenvalue {values[-1].item():.3g}; are the frames finite?")
        return values.clamp(min=0.0)  # rounding only, by the check above


def spectral_entropy(eigenvalues: Tensor) -> float:
    """NSE of a spectrum, (d,).

    Raises:
        ValueError: one dimension only, or no variance: NSE is then undefined.
    """
    total = eigenvalues.sum()
    if len(eigenvalues) < 2 or total <= 0:
        raise ValueError("NSE is undefined: it needs at least two dimensions, and frames that vary")
    return (torch.special.entr(eigenvalues / total).sum() / torch.log(torch.tensor(float(len(eigenvalues))))).item()


def normalized_spectral_entropy(frames: Tensor) -> float:
    """NSE of (L, d) frames, as defined: no correction of its bias."""
    return spectral_entropy(Moments(frames).spectrum())


@dataclass(frozen=True)
class SpectralEstimate:
    """NSE of a stream of utterances.

    Attributes:
        plain: by the definition.
        bias: of `plain`, by the jackknife; None where there are fewer than two groups, and so no interval.
        value: plain - bias.
        low, high: 95% interval of `value`, Student's t over groups.
        frames, dimensions: counts.
        spectrum: share of the variance by direction, largest first; sums to 1.
    """

    plain: float
    bias: float | None
    value: float
    low: float | None
    high: float | None
    frames: int
    dimensions: int
    spectrum: list[float]


class SpectralEntropy:
    """Accumulates utterances; memory is groups times d squared, however many frames come."""

    def __init__(self, groups: int = 20) -> None:
        self.groups = [Moments() for _ in range(groups)]

    def update(self, utterance: str, frames: Tensor) -> None:
        """frames: (L, d) of one utterance or of a piece of it."""
        place = int.from_bytes(hashlib.sha256(utterance.encode()).digest()[:8], "big") % len(self.groups)
        self.groups[place].update(frames)

    def estimate(self) -> SpectralEstimate:
        """NSE with bias and interval. Raises ValueError where it is undefined."""
        from scipy.stats import t

        groups = [group for group in self.groups if group.count]
        everything = Moments()
        for group in groups:
            everything = everything.add(group)
        spectrum = everything.spectrum()
        plain, number = spectral_entropy(spectrum), len(groups)
        shares = (spectrum / spectrum.sum()).tolist()
        if number < 2:
            return SpectralEstimate(plain, None, plain, None, None, everything.count, len(spectrum), shares)
        without = torch.tensor([spectral_entropy(everything.add(group, -1).spectrum()) for group in groups])
        bias = (number - 1) * (without.mean().item() - plain)
        error = ((number - 1) ** 2 / number * without.var()).sqrt().item()
        half = t.ppf(0.975, number - 1) * error
        value = plain - bias
        return SpectralEstimate(plain, bias, value, value - half, value + half, everything.count, len(spectrum), shares)
