"""PAI and CSAI: what a probe of a fixed, small family can use of a representation (V-information).

    I_V(E -> P)     = H_V(P) - H_V(P | E)            Xu et al., 2020;     PAI  = I_V / H_V(P)
    I_V(E -> S | P) = H_V(S | P) - H_V(S | P, E)     Hewitt et al., 2021; CSAI = I_V / H_V(S | P)

H_V is the mean negative log-likelihood, in nats, on utterances that the probe was not fitted on.  Both terms of a difference
come from one family V and one optimiser; in the first term E is masked out (zeros).

V: softmax over labels of `b + f(E)`, f linear ("linear") or with one hidden layer ("mlp").  For CSAI the pronunciation P is
given: only the units that have been seen with that pronunciation compete.  So the lexicon is known to both terms, and E counts
only for what it adds: which of the homophones.  A unit that was never seen with its pronunciation is left out of both terms,
and counted.

Fitting starts from f = 0, that is, from the first term: a representation that does not help on the held-out utterances leaves
the probe where it started, and the difference at about 0.  Nothing is clamped: on few utterances it can be a little negative.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from entropy_asr.errors import InputError
from entropy_asr.resampling import percentile_interval, resampled_sums

Family = Literal["linear", "mlp"]

BATCH = 512
LEARNING_RATE = 0.02
SMALLEST_RATE = LEARNING_RATE / 100
DECAY = 0.3
RIDGE = 1e-3  # of the mean variance: keeps whitening from blowing up directions that hardly vary
KEPT = 0.8  # share of the fitting samples that each probe seed sees
UNDEFINED = 1e-9  # nats: below it there is no uncertainty to be reduced


@dataclass(frozen=True)
class ProbeOptions:
    """How probes are fitted.

    Attributes:
        family: linear or mlp.
        seeds: probes, each with its own share of the fitting samples, order and weights.
        max_epochs: passes over the samples at most; the learning rate falls, and fitting ends, by the held-out part.
        hidden: width of the mlp.
        resamples: bootstrap resamples of utterances.
    """

    family: Family = "linear"
    seeds: int = 3
    max_epochs: int = 40
    hidden: int = 128
    resamples: int = 1000


@dataclass(frozen=True)
class Samples:
    """Labelled vectors.

    inputs: (N, d) float32; labels: (N,) int64; utterances: (N,) int64, the unit of resampling;
    prior: (M, K) log-weights of the labels, -inf excludes one; which: (N,) row of `prior` that holds for a sample.
    """

    inputs: Tensor
    labels: Tensor
    utterances: Tensor
    prior: Tensor
    which: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def masked(self) -> "Samples":
        """E masked out."""
        return replace(self, inputs=torch.zeros(len(self), 1))

    def shuffled(self, seed: int) -> "Samples":
        """The control task: each label keeps its pronunciation and gets another sample's vector."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return replace(self, inputs=self.inputs[order])

    def take(self, chosen: Tensor) -> "Samples":
        """Some of them; chosen: indices or a mask."""
        return replace(self, **{n: getattr(self, n)[chosen] for n in ("inputs", "labels", "utterances", "which")})


class Whitening:
    """Affine map to nearly uncorrelated inputs of unit variance: fitting is then well conditioned. V stays what it is."""

    def __init__(self, inputs: Tensor) -> None:
        inputs = inputs.double()
        self.mean = inputs.mean(0)
        centred = inputs - self.mean
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(inputs))
        floor = RIDGE * values.clamp(min=0).mean()
        scale = torch.where(values > 1e-9 * values[-1].clamp(min=1e-30), (values.clamp(min=0) + floor).rsqrt(), 0.0)
        self.matrix = (vectors * scale).float()
        self.mean = self.mean.float()

    def __call__(self, inputs: Tensor) -> Tensor:
        return (inputs - self.mean) @ self.matrix


class Probe(nn.Module):
    """Logits of labels from inputs; exactly the bias where nothing has been learnt."""

    def __init__(self, width: int, labels: int, bias: Tensor | None, options: ProbeOptions) -> None:
        super().__init__()
        linear = options.family == "linear"
        self.hidden = nn.Identity() if linear else nn.Sequential(nn.Linear(width, options.hidden), nn.ReLU())
        self.out = nn.Linear(width if linear else options.hidden, labels, bias=bias is not None)
        nn.init.zeros_(self.out.weight)
        if bias is not None:
            self.out.bias.data.copy_(bias)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(self.hidden(inputs))


def _loss(probe: Probe, inputs: Tensor, samples: Samples, rows: Tensor) -> Tensor:
    """Negative log-likelihood of some samples, (rows,), nats; inputs are whitened."""
    logits = probe(inputs[rows]) + samples.prior[samples.which[rows]]
    return F.cross_entropy(logits, samples.labels[rows], reduction="none")


@torch.no_grad()
def _nll(probe: Probe, inputs: Tensor, samples: Samples) -> Tensor:
    """Of all samples, (N,) float64."""
    rows = torch.arange(len(samples)).split(4096)
    return torch.cat([_loss(probe, inputs, samples, chunk).double() for chunk in rows])


def fit(train: Samples, held_out: Samples, bias: Tensor | None, seed: int, options: ProbeOptions) -> tuple[Probe, Whitening]:
    """Fit a probe by Adam; each time the held-out part gets no better, go back to the best and lower the learning rate.

    Args:
        bias: (K,) where the bias starts; None for a probe without one.
    """
    generator = torch.Generator().manual_seed(seed)
    kept = torch.randperm(len(train), generator=generator)[: math.ceil(KEPT * len(train))]
    train = train.take(kept)
    whiten = Whitening(train.inputs)
    inputs, held_out_inputs = whiten(train.inputs), whiten(held_out.inputs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = Probe(inputs.size(1), train.prior.size(1), bias, options)
    rate, best = LEARNING_RATE, _nll(probe, held_out_inputs, held_out).mean()
    state = {name: tensor.clone() for name, tensor in probe.state_dict().items()}
    optimiser = torch.optim.Adam(probe.parameters(), lr=rate)
    for _ in range(options.max_epochs):
        for rows in torch.randperm(len(train), generator=generator).split(BATCH):
            optimiser.zero_grad()
            _loss(probe, inputs, train, rows).mean().backward()
            optimiser.step()
        loss = _nll(probe, held_out_inputs, held_out).mean()
        if loss < best - 1e-4 * best.abs():
            best, state = loss, {name: tensor.clone() for name, tensor in probe.state_dict().items()}
            continue
        rate *= DECAY
        if rate < SMALLEST_RATE:
            break
        probe.load_state_dict(state)
        optimiser = torch.optim.Adam(probe.parameters(), lr=rate)
    probe.load_state_dict(state)
    return probe, whiten


@dataclass(frozen=True)
class Scores:
    """Negative log-likelihood of each test sample, nats.

    masked: (N,) with E masked out; given: (seeds, N) with E; control: (N,) with the vectors shuffled; utterances: (N,).
    """

    masked: Tensor
    given: Tensor
    control: Tensor
    utterances: Tensor


def probe_scores(train: Samples, held_out: Samples, test: Samples, options: ProbeOptions, with_bias: bool = True) -> Scores:
    """Fit on `train`, stop by `held_out`, score `test`; all three of different utterances.

    Args:
        with_bias: False where `prior` is already a distribution (a language model's): then masked is that prior's own.

    Raises:
        InputError: a set is empty.
    """
    for name, samples in (("fitting", train), ("held-out", held_out), ("test", test)):
        if len(samples) == 0:
            raise InputError(f"no {name} sample is left for the probe; take more utterances (section metrics)")
    labels = train.prior.size(1)
    bias = (torch.bincount(train.labels, minlength=labels).float() + 0.5).log() if with_bias else None
    bias = None if bias is None else bias - bias.logsumexp(0)

    def scored(sets: tuple[Samples, Samples, Samples], start: Tensor | None, seed: int) -> tuple[Tensor, Probe]:
        probe, whiten = fit(sets[0], sets[1], start, seed, options)
        return _nll(probe, whiten(sets[2].inputs), sets[2]), probe

    masked_sets = (train.masked(), held_out.masked(), test.masked())
    if bias is None:
        masked = _nll(_silent(1, labels), masked_sets[2].inputs, masked_sets[2])
    else:
        masked, probe = scored(masked_sets, bias, 0)
        bias = probe.out.bias.detach() if options.family == "linear" else bias
    given = torch.stack([scored((train, held_out, test), bias, seed)[0] for seed in range(options.seeds)])
    shuffled = (train.shuffled(0), held_out.shuffled(1), test.shuffled(2))
    return Scores(masked, given, scored(shuffled, bias, 0)[0], test.utterances)


def _silent(width: int, labels: int) -> Probe:
    return Probe(width, labels, None, ProbeOptions())


@dataclass(frozen=True)
class Information:
    """Accessible information of one kind on one set of test samples.

    Attributes:
        value: share of the uncertainty that E removes, mean over probe seeds; None where there is no uncertainty.
        low, high: 95% bootstrap interval of `value` over test utterances.
        seed_std: standard deviation of `value` over probe seeds.
        nats: the same before division, a label.
        entropy: with E masked out, nats a label; conditional_entropy: with E.
        control: `value` of the control task (vectors shuffled), about 0; selectivity: value - control.
        samples, utterances: scored; left_out: test samples that V cannot name.
    """

    value: float | None
    low: float | None
    high: float | None
    seed_std: float | None
    nats: float
    entropy: float
    conditional_entropy: float
    control: float | None
    selectivity: float | None
    samples: int
    utterances: int
    left_out: int = 0


def information(scores: Scores, options: ProbeOptions, chosen: Tensor | None = None, left_out: int = 0) -> Information:
    """Sum scores up; chosen: (N,) mask of test samples, for a language alone."""
    chosen = torch.ones(len(scores.masked), dtype=torch.bool) if chosen is None else chosen
    masked, given, control = scores.masked[chosen], scores.given[:, chosen], scores.control[chosen]
    utterances = scores.utterances[chosen]
    entropy, conditional = (masked.mean().item(), given.mean().item()) if len(masked) else (0.0, 0.0)
    counts = {"samples": len(masked), "utterances": len(utterances.unique()), "left_out": left_out}
    known = {"nats": entropy - conditional, "entropy": entropy, "conditional_entropy": conditional}
    if entropy < UNDEFINED:
        return Information(None, None, None, None, **known, control=None, selectivity=None, **counts)
    by_seed = 1 - given.mean(1) / entropy
    value, shuffled = by_seed.mean().item(), 1 - control.mean().item() / entropy
    sums = sum_by_utterance(torch.stack([masked, given.mean(0)], 1), utterances)
    low, high = bootstrap(sums, lambda s: 1 - s[..., 1] / s[..., 0].clamp(min=UNDEFINED), options.resamples)
    deviation = by_seed.std().item() if len(by_seed) > 1 else None
    return Information(value, low, high, deviation, **known, control=shuffled, selectivity=value - shuffled, **counts)


def sum_by_utterance(values: Tensor, utterances: Tensor) -> Tensor:
    """Sums of (N, C) values in each utterance, (U, C), in the order of the utterances' numbers."""
    names, place = utterances.unique(return_inverse=True)
    return torch.zeros(len(names), values.size(1), dtype=torch.float64).index_add_(0, place, values.double())


def bootstrap(sums: Tensor, statistic: Callable[[Tensor], Tensor], resamples: int) -> tuple[float, float]:
    """95% percentile interval over utterances.

    Args:
        sums: (U, C) of each utterance.
        statistic: of (resamples, C) sums; returns (resamples,).
    """
    drawn = resampled_sums(sums.numpy().T, resamples)
    return percentile_interval(statistic(torch.from_numpy(drawn.T)).numpy())


class HashSample:
    """A uniform sample of at most `size` vectors from a stream, the same whatever the order and the batches.

    Each vector has a random number from the hash of its utterance and its place there; the smallest are kept.  So memory does
    not grow with the stream.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.keys = np.zeros(0)
        self.inputs: list[np.ndarray] = []
        self.facts: list[tuple[Hashable, ...]] = []
        self.utterances = np.zeros(0, dtype=np.int64)

    def update(self, utterance: str, inputs: Tensor, facts: Sequence[tuple[Hashable, ...]]) -> None:
        """All vectors of one utterance, (L, d), and what is known of each (its label first)."""
        digest = hashlib.sha256(utterance.encode()).digest()
        keys = np.random.default_rng(int.from_bytes(digest[:8], "big")).random(len(inputs))
        self.keys = np.concatenate([self.keys, keys])
        self.inputs.append(inputs.float().numpy())
        self.facts += facts
        number = int.from_bytes(digest[:7], "big")
        self.utterances = np.concatenate([self.utterances, np.full(len(inputs), number)])
        if len(self.keys) > 2 * self.size:
            self._prune()

    def _prune(self) -> None:
        order = np.argsort(self.keys, kind="stable")[: self.size]
        self.keys, self.utterances = self.keys[order], self.utterances[order]
        self.inputs = [np.concatenate(self.inputs)[order]] if self.inputs else []  # a copy: no batch is kept alive
        self.facts = [self.facts[i] for i in order]

    def arrays(self) -> tuple[Tensor, list[tuple[Hashable, ...]], Tensor]:
        """inputs (N, d), facts, utterances (N,), in the order of the random numbers."""
        self._prune()
        inputs = torch.from_numpy(self.inputs[0]) if self.inputs else torch.zeros(0, 1)
        return inputs, self.facts, torch.from_numpy(self.utterances)


def phoneme_samples(sample: HashSample, inventory: Sequence[Hashable]) -> Samples:
    """Samples whose label is a phoneme of the inventory."""
    inputs, facts, utterances = sample.arrays()
    ids = {phoneme: i for i, phoneme in enumerate(inventory)}
    labels = torch.tensor([ids[fact[0]] for fact in facts], dtype=torch.int64)
    return Samples(inputs, labels, utterances, torch.zeros(1, len(ids)), torch.zeros(len(labels), dtype=torch.int64))


def homophones(fitted_on: Sequence[tuple[Hashable, Hashable]]) -> tuple[dict, dict, Tensor]:
    """From (unit, pronunciation) pairs: ids of units, ids of pronunciations, and (pronunciations, units) 0 or -inf."""
    pairs = Counter(fitted_on)
    units = {unit: i for i, unit in enumerate(sorted({unit for unit, _ in pairs}, key=str))}
    spoken = {spoken: i for i, spoken in enumerate(sorted({spoken for _, spoken in pairs}, key=str))}
    prior = torch.full((len(spoken), len(units)), -torch.inf)
    for unit, pronunciation in pairs:
        prior[spoken[pronunciation], units[unit]] = 0.0
    return units, spoken, prior


def unit_samples(inputs: Tensor, facts: Sequence[tuple], utterances: Tensor, lexicon: tuple) -> tuple[Samples, Tensor]:
    """Samples whose label is a text unit, given its pronunciation; and (N,) which of the units V can name.

    facts: (unit, pronunciation, …) of each; lexicon: as :func:`homophones` gives it.
    """
    units, spoken, prior = lexicon
    known = torch.tensor([s in spoken and u in units and prior[spoken[s], units[u]] == 0 for u, s, *_ in facts], dtype=torch.bool)
    labels = torch.tensor([units[u] for (u, *_), k in zip(facts, known, strict=True) if k], dtype=torch.int64)
    which = torch.tensor([spoken[s] for (_, s, *_), k in zip(facts, known, strict=True) if k], dtype=torch.int64)
    return Samples(inputs[known], labels, utterances[known], prior, which), known


def _dealt(utterances: Tensor) -> list[Tensor]:
    """60% of the utterances to fit on, 20% held out, 20% to score, by the hash of their numbers."""
    share = torch.tensor([hashlib.sha256(str(u).encode()).digest()[0] / 256 for u in utterances.tolist()])
    return [share < 0.6, (share >= 0.6) & (share < 0.8), share >= 0.8]


def phonetic_accessible_information(
    frames: Tensor, phonemes: Tensor, utterances: Tensor, options: ProbeOptions | None = None
) -> Information:
    """PAI of labelled frames; a fifth of the utterances is scored, none of them fitted on.

    Args:
        frames: (L, d); phonemes: (L,) int labels; utterances: (L,) int, which utterance a frame is of.
    """
    options = options or ProbeOptions()
    prior = torch.zeros(1, int(phonemes.max()) + 1)
    samples = Samples(frames.float(), phonemes, utterances, prior, torch.zeros(len(phonemes), dtype=torch.int64))
    train, held_out, test = (samples.take(part) for part in _dealt(utterances))
    return information(probe_scores(train, held_out, test, options), options)


def conditional_semantic_accessible_information(
    vectors: Tensor, units: Sequence[Hashable], pronunciations: Sequence[Hashable], utterances: Tensor,
    options: ProbeOptions | None = None,
) -> Information:  # fmt: skip
    """CSAI of text units; a fifth of the utterances is scored, none of them fitted on.

    Args:
        vectors: (N, d), the encoder's frames pooled over the span of each unit.
        units: what each is (a character, a word); pronunciations: how it sounds; both of length N.
        utterances: (N,) int.
    """
    options = options or ProbeOptions()
    facts = list(zip(units, pronunciations, strict=True))
    parts = _dealt(utterances)
    lexicon = homophones([fact for fact, mine in zip(facts, parts[0].tolist(), strict=True) if mine])
    sets, known = [], []
    for part in parts:
        mine = [fact for fact, chosen in zip(facts, part.tolist(), strict=True) if chosen]
        samples, nameable = unit_samples(vectors[part].float(), mine, utterances[part], lexicon)
        sets.append(samples)
        known.append(nameable)
    train, held_out, test = sets
    return information(probe_scores(train, held_out, test, options), options, left_out=int((~known[2]).sum()))
