"""EER, LER and the allocation ratio: who removes how much of the uncertainty about the text, the encoder or the LLM.

    EER = (H0 - H1) / H0,   LER = (H1 - H2) / H0,   AR = EER / (EER + LER)

All three in nats, on the same text tokens: H0 the LLM's own prior without audio, H1 a shallow probe on the encoder, H2 the
trained system.  The probe of H1 corrects the LLM's prior by a linear function of the encoder's frames (`log p_LLM + W e`, no
bias, e centred) [O]: a probe that had to find the text without its context would be compared with a prior that has it, and
EER would be negative for no fault of the encoder's.  With W = 0 it is the prior: H0 and H1 are of one family.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from entropy_asr.analysis.probes import bootstrap, sum_by_utterance

Interval = tuple[float, float]


@dataclass(frozen=True)
class Allocation:
    """Shares of H0 and their 95% bootstrap intervals over utterances; entropies in nats a token.

    ar is None where encoder and LLM together remove nothing.
    """

    eer: float
    ler: float
    ar: float | None
    eer_interval: Interval
    ler_interval: Interval
    ar_interval: Interval | None
    prior: float
    probe: float
    system: float
    tokens: int
    utterances: int


def entropy_allocation(
    prior: Tensor, probe: Tensor, system: Tensor, utterances: Tensor | None = None, resamples: int = 1000
) -> Allocation:
    """Allocation from the negative log-likelihoods of the same tokens.

    Args:
        prior, probe, system: (N,) nats of each token under H0, H1, H2.
        utterances: (N,) int, the unit of resampling; without it every token is one.

    Raises:
        ValueError: the arrays are not of the same tokens, or the prior is certain.
    """
    if not prior.shape == probe.shape == system.shape:
        raise ValueError(f"prior, probe and system score {len(prior)}, {len(probe)}, {len(system)} tokens; expected the same")
    if len(prior) == 0 or prior.mean() <= 0:
        raise ValueError("the prior leaves no uncertainty to allocate")
    utterances = torch.arange(len(prior)) if utterances is None else utterances
    sums = sum_by_utterance(torch.stack([prior, probe, system], 1), utterances)
    h0, h1, h2 = sums.sum(0).tolist()

    def eer(s: Tensor) -> Tensor:
        return (s[..., 0] - s[..., 1]) / s[..., 0]

    def ler(s: Tensor) -> Tensor:
        return (s[..., 1] - s[..., 2]) / s[..., 0]

    def ar(s: Tensor) -> Tensor:
        return (s[..., 0] - s[..., 1]) / (s[..., 0] - s[..., 2])

    removes = h0 > h2
    return Allocation(
        eer=(h0 - h1) / h0,
        ler=(h1 - h2) / h0,
        ar=(h0 - h1) / (h0 - h2) if removes else None,
        eer_interval=bootstrap(sums, eer, resamples),
        ler_interval=bootstrap(sums, ler, resamples),
        ar_interval=bootstrap(sums, ar, resamples) if removes else None,
        prior=h0 / len(prior),
        probe=h1 / len(prior),
        system=h2 / len(prior),
        tokens=len(prior),
        utterances=len(sums),
    )
