"""PAI and CSAI: known answers, analytic V-information recovered, and that the order of the stream does not matter."""

import math
import random

import pytest
import torch
from scipy.integrate import quad
from torch.nn import functional as F

from entropy_asr.analysis import conditional_semantic_accessible_information, phonetic_accessible_information
from entropy_asr.analysis.probes import HashSample, ProbeOptions, _dealt
from entropy_asr.analysis.validation import outcome

FRAMES, FRAMES_AN_UTTERANCE = 20_000, 40


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def labels(classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(0, classes, (FRAMES,)), torch.arange(FRAMES) // FRAMES_AN_UTTERANCE


def binary_gaussian(distance: float) -> float:
    """Mutual information, nats, of a fair sign and sign * distance + N(0, 1)."""

    def lost(x: float) -> float:
        return math.exp(-((x - distance) ** 2) / 2) / math.sqrt(2 * math.pi) * math.log1p(math.exp(-2 * distance * x))

    return math.log(2) - quad(lost, distance - 12, distance + 12)[0]


def mixture(means: torch.Tensor, samples: int = 400_000) -> float:
    """Mutual information, nats, of a fair component and its Gaussian: Bayes' rule, averaged; exact to about 0.002."""
    y = torch.randint(0, len(means), (samples,))
    x = means[y] + torch.randn(samples, means.size(1))
    posterior = (-(torch.cdist(x, means) ** 2) / 2).log_softmax(1)
    return math.log(len(means)) + posterior[torch.arange(samples), y].mean().item()


def test_one_hot_phonemes_give_one_and_noise_nothing() -> None:
    y, utterances = labels(12)
    assert phonetic_accessible_information(F.one_hot(y, 12).float(), y, utterances).value == pytest.approx(1.0, abs=0.005)
    noise = phonetic_accessible_information(torch.randn(FRAMES, 16), y, utterances)
    # A probe that fitted noise would lose about parameters / (2 samples) nats: 192 / 19,200 of log 12.
    assert noise.value == pytest.approx(0.0, abs=0.005) and noise.entropy == pytest.approx(math.log(12), rel=0.01)


@pytest.mark.parametrize("distance", [0.3, 0.8, 1.5])
def test_two_gaussians_are_recovered_within_the_interval(distance: float) -> None:
    y, utterances = labels(2)
    x = (2.0 * y - 1)[:, None] * distance + torch.randn(FRAMES, 1)
    x = torch.cat([x, torch.randn(FRAMES, 7)], 1) @ torch.randn(8, 8)  # hidden among noise, in no axis
    found = phonetic_accessible_information(x, y, utterances)
    assert found.low < binary_gaussian(distance) / math.log(2) < found.high
    assert found.control == pytest.approx(0.0, abs=0.01) and found.selectivity == pytest.approx(found.value - found.control)


@pytest.mark.parametrize("spread", [0.2, 0.5])
def test_a_mixture_of_ten_is_recovered_within_the_interval(spread: float) -> None:
    y, utterances = labels(10)
    means = spread * torch.randn(10, 16)
    found = phonetic_accessible_information(means[y] + torch.randn(FRAMES, 16), y, utterances)
    assert found.low < mixture(means) / math.log(10) < found.high


def test_the_family_decides_what_is_accessible() -> None:
    signs = torch.randint(0, 2, (FRAMES, 2))
    x = 2.0 * signs - 1 + 0.2 * torch.randn(FRAMES, 2)
    y, utterances = (signs[:, 0] ^ signs[:, 1]), labels(2)[1]
    assert phonetic_accessible_information(x, y, utterances).value == pytest.approx(0.0, abs=0.01)
    assert phonetic_accessible_information(x, y, utterances, ProbeOptions("mlp", seeds=1)).value > 0.98


def homophones(distance: float | None) -> tuple[torch.Tensor, list[str], list[int], torch.Tensor, torch.Tensor]:
    """8 pronunciations, two words each, equally often; which of the two is a sign that the vectors hold at a distance."""
    spoken, utterances = labels(8)
    which = torch.randint(0, 2, (FRAMES,))
    sign = (2.0 * which - 1)[:, None] * (distance or 0.0) + torch.randn(FRAMES, 1)
    vectors = torch.cat([3.0 * F.one_hot(spoken, 8), sign], 1)
    return (
        vectors,
        [f"{p}{'ab'[w]}" for p, w in zip(spoken.tolist(), which.tolist(), strict=True)],
        spoken.tolist(),
        utterances,
        which,
    )


def test_csai_of_the_pronunciation_alone_is_zero() -> None:
    _, words, spoken, utterances, _ = homophones(None)
    vectors = F.one_hot(torch.tensor(spoken), 8).float() @ torch.randn(8, 12)
    found = conditional_semantic_accessible_information(vectors, words, spoken, utterances)
    assert found.value == pytest.approx(0.0, abs=0.005)
    assert found.entropy == pytest.approx(math.log(2), rel=0.005)  # H(S|P), not H(S)


def test_csai_of_the_word_itself_is_one() -> None:
    _, words, spoken, utterances, which = homophones(None)
    vectors = F.one_hot(torch.tensor(spoken) * 2 + which, 16).float()
    found = conditional_semantic_accessible_information(vectors, words, spoken, utterances)
    assert found.value == pytest.approx(1.0, abs=0.005)


@pytest.mark.parametrize("distance", [0.5, 1.0])
def test_csai_of_a_noisy_hint_is_recovered_within_the_interval(distance: float) -> None:
    vectors, words, spoken, utterances, _ = homophones(distance)
    found = conditional_semantic_accessible_information(vectors, words, spoken, utterances)
    assert found.low < binary_gaussian(distance) / math.log(2) < found.high
    assert found.control == pytest.approx(0.0, abs=0.01)


def few_homophones(seed: int, distance: float, units: int = 330) -> tuple[torch.Tensor, list[str], list[int], torch.Tensor]:
    """10 pronunciations, two words each, of which one is rarer, `distance` times N(0, 1) apart in each dimension."""
    generator = torch.Generator().manual_seed(seed)
    spoken = torch.randint(0, 10, (units,), generator=generator)
    which = (torch.rand(units, generator=generator) < 0.3).long()
    vectors = torch.randn(units, 64, generator=generator)
    vectors += distance * torch.randn(20, 64, generator=generator)[2 * spoken + which]
    words = [f"{p}{'ab'[w]}" for p, w in zip(spoken.tolist(), which.tolist(), strict=True)]
    return vectors, words, spoken.tolist(), torch.arange(units) // 2 + 10_000 * seed


def test_vectors_that_know_nothing_seldom_seem_to_know_or_to_harm() -> None:
    """30 data sets without information, each with its control: at most a tenth of the 60 values is not about 0.

    The best of many epochs is better on the held-out units by chance. A probe that takes every such gain has learnt noise, and
    a third of its values is not about 0.
    """
    options = ProbeOptions(seeds=1, resamples=200)
    found = [conditional_semantic_accessible_information(*few_homophones(seed, 0.0), options) for seed in range(30)]
    estimates = [(item.value, item.low, item.high) for item in found]
    estimates += [(item.control, item.control_low, item.control_high) for item in found]
    whole = {"value": 0.5, "low": 0.4, "high": 0.6}
    said = [outcome(whole, dict(zip(("value", "low", "high"), item, strict=True)), "about 0") for item in estimates]
    assert said.count("met") >= 54 and said.count("failed") <= 1
    assert all(low <= value <= high for value, low, high in estimates)


def test_information_is_found_in_a_few_hundred_units() -> None:
    options = ProbeOptions(seeds=1, resamples=200)
    found = [conditional_semantic_accessible_information(*few_homophones(seed, 0.7, 600), options) for seed in range(5)]
    assert all(item.low > 0.1 for item in found)


def test_without_homophones_csai_is_undefined_and_says_so() -> None:
    y, utterances = labels(5)
    found = conditional_semantic_accessible_information(torch.randn(FRAMES, 4), y.tolist(), y.tolist(), utterances)
    assert found.value is None and found.nats == pytest.approx(0.0, abs=1e-9)


def test_units_that_cannot_be_named_are_counted() -> None:
    y, utterances = labels(5)
    words = y.tolist()
    words[-1] = 99
    utterances[-1] = next(filter(_scored, range(10_000, 20_000)))
    found = conditional_semantic_accessible_information(torch.randn(FRAMES, 4), words, y.tolist(), utterances)
    assert found.left_out == 1


def _scored(utterance: int) -> bool:
    """Whether an utterance is among those that are scored."""
    return bool(_dealt(torch.tensor([utterance]))[2].item())


def test_a_sample_of_the_stream_depends_on_neither_order_nor_batches() -> None:
    stream = [(f"u{i}", torch.randn(20, 3), [(f"p{j}",) for j in range(20)]) for i in range(200)]
    shuffled = stream[:]
    random.Random(0).shuffle(shuffled)
    first, second = HashSample(500), HashSample(500)
    for sample, order in ((first, stream), (second, shuffled)):
        for utterance, vectors, facts in order:
            sample.update(utterance, vectors, facts)
            assert len(sample.keys) <= 1000 + 20
    (x, facts, utterances), (y, others, numbers) = first.arrays(), second.arrays()
    assert len(x) == 500 and torch.equal(x, y) and facts == others and torch.equal(utterances, numbers)
    assert len(utterances.unique()) > 150  # uniform: not the frames of a few utterances


def test_probes_give_the_same_number_twice() -> None:
    y, utterances = labels(4)
    x = torch.randn(FRAMES, 6) + F.one_hot(y, 6)
    assert phonetic_accessible_information(x, y, utterances) == phonetic_accessible_information(x, y, utterances)
