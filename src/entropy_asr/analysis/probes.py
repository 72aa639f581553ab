"""PAI and CSAI: what a probe of a fixed, small family can use of a representation (V-information).

    I_V(E -> P)     = H_V(P) - H_V(P | E)            Xu et al., 2020;     PAI  = I_V / H_V(P)
    I_V(E -> S | P) = H_V(S | P) - H_V(S | P, E)     Hewitt et al., 2021; CSAI = I_V / H_V(S | P)

H_V is the mean negative log-likelihood, in nats, on utterances that the probe was not fitted on.  Both terms of a difference
come from one family V and one optimiser; in the first term E is masked out (zeros).

V: softmax over labels of `b + f(E)`, f linear ("linear") or with one hidden layer ("mlp").  For CSAI the pronunciation P is
given: only the units that have been seen with that pronunciation compete.  So the lexicon is known to both terms, and E counts
only for what it adds: which of the homophones.  A unit that was never seen with its pronunciation is left out of both terms,
and counted.

Fitting starts from f = 0, that is, from the first term, or, linear and with a bias, from a share of Fisher's discriminant where
that is better on the held-out utterances.  The best of many epochs is a little better there by chance alone.  So a gain of less
than STANDARD_ERRORS over the held-out utterances counts as none: the probe then stays at the first term, and the difference
is 0.  This makes the metrics conservative: of few ambiguous units a weak hint is not seen.  Nothing is clamped: a value
can be negative where the scored utterances differ from the held-out ones.
"""

import hashlib
import math
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
LEARNING_RATES: dict[Family, tuple[float, ...]] = {"linear": (0.01, 0.001), "mlp": (0.003, 0.0003)}
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of the discriminant: on few samples it is too sure of itself
GAIN = 5e-4  # of the first term: an epoch that lowers the held-out loss by less ends its learning rate
STANDARD_ERRORS = 1.0  # of the held-out gain, over utterances: a smaller gain may be chance (Breiman et al., 1984: 1-SE rule)
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

    inputs: (N, d) float32; labels: (N,) int64, columns of `prior`; utterances: (N,) int64, the unit of resampling;
    prior: (M, C) log-weights, -inf excludes a column; which: (N,) row of `prior` that holds for a sample;
    choices: (M, C) label that each column stands for in a row; None: it is the column's number.
    """

    inputs: Tensor
    labels: Tensor
    utterances: Tensor
    prior: Tensor
    which: Tensor
    choices: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> int:
        """How many labels there are."""
        return self.prior.size(1) if self.choices is None else int(self.choices.max()) + 1

    def counts(self) -> Tensor:
        """How often each label is right, (classes,)."""
        labels = self.labels if self.choices is None else self.choices[self.which, self.labels]
        return torch.bincount(labels, minlength=self.classes)

    def undecided(self) -> "Samples":
        """Those for which more than one label competes: the likelihood of all others is 1, whatever the probe."""
        return self.take((self.prior > -torch.inf).sum(1)[self.which] > 1)

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

    def forward(self, inputs: Tensor, choices: Tensor | None = None) -> Tensor:
        """Logits (N, K) of all labels, or (N, C) of the `choices` (N, C) alone."""
        hidden = self.hidden(inputs)
        if choices is None:
            return self.out(hidden)
        logits = torch.einsum("nd,ncd->nc", hidden, F.embedding(choices, self.out.weight))
        return logits if self.out.bias is None else logits + self.out.bias[choices]


def _loss(probe: Probe, samples: Samples, rows: Tensor) -> Tensor:
    """Negative log-likelihood of some samples, (rows,), nats."""
    which = samples.which[rows]
    choices = None if samples.choices is None else samples.choices[which]
    return F.cross_entropy(probe(samples.inputs[rows], choices) + samples.prior[which], samples.labels[rows], reduction="none")


@torch.no_grad()
def _nll(probe: Probe, samples: Samples) -> Tensor:
    """Of all samples, (N,) float64."""
    rows = torch.arange(len(samples)).split(4096)
    return torch.cat([_loss(probe, samples, chunk).double() for chunk in rows])


def discriminant(samples: Samples) -> tuple[Tensor, Tensor]:
    """Fisher's linear discriminant: what the best linear probe is where labels are Gaussians of one covariance.

    Returns:
        Weights (classes, d) and what they add to the log frequencies of the labels, (classes,).
    """
    inputs = samples.inputs.double()
    number = torch.bincount(samples.labels, minlength=samples.classes).double()
    means = torch.zeros(samples.classes, inputs.size(1), dtype=torch.float64).index_add_(0, samples.labels, inputs)
    means = means / (number + 1.0)[:, None]
    within = inputs.T @ inputs - (means.T * number) @ means
    within = within / len(inputs) + RIDGE * torch.eye(len(within), dtype=torch.float64)  # inputs are white: their variance is 1
    weights = torch.linalg.solve(within, means.T).T
    return weights.float(), -0.5 * (weights * means).sum(1).float()


def fit(train: Samples, held_out: Samples, bias: Tensor | None, seed: int, options: ProbeOptions) -> Probe:
    """Fit a probe by Adam; each time the held-out part gains too little, go back to the best and take the next learning rate.

    Args:
        train, held_out: with whitened inputs.
        bias: (K,) where the bias starts; None for a probe without one.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        probe = Probe(train.inputs.size(1), train.classes, bias, options)
    train, held_out = train.undecided(), held_out.undecided()
    if len(train) == 0 or len(held_out) == 0:
        return probe
    train = train.take(torch.randperm(len(train), generator=generator)[: math.ceil(KEPT * len(train))])

    def copied() -> dict[str, Tensor]:
        return {name: tensor.clone() for name, tensor in probe.state_dict().items()}

    untrained = _nll(probe, held_out)
    best = first = untrained.mean()
    state = start = copied()
    if options.family == "linear" and bias is not None and train.choices is None:
        weights, added = discriminant(train)
        logits = held_out.inputs @ weights.T + added
        for share in SHARES:
            scores = share * logits + bias + held_out.prior[held_out.which]
            loss = F.cross_entropy(scores, held_out.labels, reduction="none").double().mean()
            if loss < best:
                best, state = loss, {"out.weight": share * weights, "out.bias": bias + share * added}
    epochs = 0
    for rate in LEARNING_RATES[options.family]:
        probe.load_state_dict(state)
        optimiser, gain = torch.optim.Adam(probe.parameters(), lr=rate), torch.inf
        while gain >= GAIN * first and epochs < options.max_epochs:
            for rows in torch.randperm(len(train), generator=generator).split(BATCH):
                optimiser.zero_grad()
                _loss(probe, train, rows).mean().backward()
                optimiser.step()
            epochs += 1
            loss = _nll(probe, held_out).mean()
            gain = best - loss
            if gain > 0:
                best, state = loss, copied()
    probe.load_state_dict(state)
    gains = sum_by_utterance((untrained - _nll(probe, held_out))[:, None], held_out.utterances)[:, 0]
    if gains.sum() <= STANDARD_ERRORS * math.sqrt(len(gains)) * gains.std(correction=min(1, len(gains) - 1)):
        probe.load_state_dict(start)
    return probe


@dataclass(frozen=True)
class Scores:
    """Negative log-likelihood of each test sample, nats.

    masked: (N,) with E masked out; given: (seeds, N) with E; control: (N,) with the vectors shuffled; utterances: (N,).
    """

    masked: Tensor
    given: Tensor
    control: Tensor
    utterances: Tensor


def probe_scores(
    train: Samples, held_out: Samples, test: Samples, *families: ProbeOptions, with_bias: bool = True
) -> list[Scores]:
    """Fit on `train`, stop by `held_out`, score `test`, all three of different utterances: once for each of the families.

    With E masked out a probe is a bias, in either family: that one is fitted once, and where all others start.

    Args:
        with_bias: False where `prior` is already a distribution (a language model's): then masked is that prior's own.

    Raises:
        InputError: a set is empty.
    """
    for name, samples in (("fitting", train), ("held-out", held_out), ("test", test)):
        if len(samples) == 0:
            raise InputError(f"no {name} sample is left for the probe; take more utterances (section metrics)")
    linear = replace(families[0], family="linear")
    if with_bias:
        frequency = (train.counts() + 0.5).log()
        frequency = frequency - frequency.logsumexp(0)
        if (train.prior == 0).all():  # every label competes with every other: their frequencies are the best that a bias can be
            silent = Probe(1, train.classes, frequency, linear)
        else:
            silent = fit(train.masked(), held_out.masked(), frequency, 0, linear)
    else:
        silent = Probe(1, train.classes, None, linear)
    bias = None if silent.out.bias is None else silent.out.bias.detach()
    masked = _nll(silent, test.masked())
    whiten = Whitening(train.inputs)
    train, held_out, test = (replace(samples, inputs=whiten(samples.inputs)) for samples in (train, held_out, test))
    shuffled = (train.shuffled(0), held_out.shuffled(1), test.shuffled(2))

    def scored(options: ProbeOptions) -> Scores:
        given = [_nll(fit(train, held_out, bias, seed, options), test) for seed in range(options.seeds)]
        control = _nll(fit(shuffled[0], shuffled[1], bias, 0, options), shuffled[2])
        return Scores(masked, torch.stack(given), control, test.utterances)

    return [scored(options) for options in families]


@dataclass(frozen=True)
class Information:
    """Accessible information of one kind on one set of test samples.

    Attributes:
        value: share of the uncertainty that E removes, mean over probe seeds; None where there is no uncertainty.
        low, high: 95% bootstrap interval of `value` over test utterances.
        seed_std: standard deviation of `value` over probe seeds.
        nats: the same before division, a label.
        entropy: with E masked out, nats a label; conditional_entropy: with E.
        control: `value` of the control task (vectors shuffled), about 0; control_low, control_high: its interval, as above;
            selectivity: value - control.
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
    control_low: float | None
    control_high: float | None
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
        nothing = dict.fromkeys(("control", "control_low", "control_high", "selectivity"))
        return Information(None, None, None, None, **known, **nothing, **counts)
    by_seed = 1 - given.mean(1) / entropy
    value, shuffled = by_seed.mean().item(), 1 - control.mean().item() / entropy
    (low, high), (control_low, control_high) = (
        bootstrap(
            sum_by_utterance(torch.stack([masked, left], 1), utterances),
            lambda s: 1 - s[..., 1] / s[..., 0].clamp(min=UNDEFINED),
            options.resamples,
        )
        for left in (given.mean(0), control)
    )
    deviation = by_seed.std().item() if len(by_seed) > 1 else None
    known |= {"control": shuffled, "control_low": control_low, "control_high": control_high, "selectivity": value - shuffled}
    return Information(value, low, high, deviation, **known, **counts)


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
        self.limit = 1.0  # what has a larger key is not among the smallest any more
        self.inputs: list[np.ndarray] = []
        self.facts: list[tuple[Hashable, ...]] = []
        self.utterances = np.zeros(0, dtype=np.int64)

    def update(self, utterance: str, inputs: Tensor, facts: Sequence[tuple[Hashable, ...]]) -> None:
        """All vectors of one utterance, (L, d), and what is known of each (its label first)."""
        digest = hashlib.sha256(utterance.encode()).digest()
        keys = np.random.default_rng(int.from_bytes(digest[:8], "big")).random(len(inputs))
        chosen = np.flatnonzero(keys <= self.limit)
        if len(chosen) == 0:
            return
        self.keys = np.concatenate([self.keys, keys[chosen]])
        self.inputs.append(inputs.float().numpy()[chosen])
        self.facts += [facts[i] for i in chosen]
        number = int.from_bytes(digest[:7], "big")
        self.utterances = np.concatenate([self.utterances, np.full(len(chosen), number)])
        if len(self.keys) > 2 * self.size:
            self._prune()

    def _prune(self) -> None:
        order = np.argsort(self.keys, kind="stable")[: self.size]
        self.keys, self.utterances = self.keys[order], self.utterances[order]
        self.inputs = [np.concatenate(self.inputs)[order]] if self.inputs else []  # a copy: no batch is kept alive
        self.facts = [self.facts[i] for i in order]
        self.limit = self.keys[-1] if len(order) == self.size else self.limit

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


def homophones(fitted_on: Sequence[tuple[Hashable, Hashable]]) -> tuple[dict[tuple, tuple[int, int]], Tensor, Tensor]:
    """From (unit, pronunciation) pairs: row and column of each; and, a row a pronunciation, `prior` and `choices` of Samples."""
    pairs = sorted(set(fitted_on), key=str)
    units = {unit: i for i, unit in enumerate(sorted({unit for unit, _ in pairs}, key=str))}
    spoken: dict[Hashable, list[Hashable]] = {}
    for unit, pronunciation in pairs:
        spoken.setdefault(pronunciation, []).append(unit)
    prior = torch.full((len(spoken), max(map(len, spoken.values()), default=1)), -torch.inf)
    choices, places = torch.zeros(prior.shape, dtype=torch.int64), {}
    for row, (pronunciation, named) in enumerate(spoken.items()):
        for column, unit in enumerate(named):
            prior[row, column], choices[row, column] = 0.0, units[unit]
            places[unit, pronunciation] = (row, column)
    return places, prior, choices


def unit_samples(inputs: Tensor, facts: Sequence[tuple], utterances: Tensor, lexicon: tuple) -> tuple[Samples, Tensor]:
    """Samples whose label is a text unit, given its pronunciation; and (N,) which of the units V can name.

    facts: (unit, pronunciation, …) of each; lexicon: as :func:`homophones` gives it.
    """
    places, prior, choices = lexicon
    found = [places.get((unit, pronunciation)) for unit, pronunciation, *_ in facts]
    known = torch.tensor([place is not None for place in found], dtype=torch.bool)
    which, labels = torch.tensor([place for place in found if place], dtype=torch.int64).reshape(-1, 2).T
    return Samples(inputs[known], labels, utterances[known], prior, which, choices), known


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
    return information(probe_scores(train, held_out, test, options)[0], options)


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
    return information(probe_scores(train, held_out, test, options)[0], options, left_out=int((~known[2]).sum()))
