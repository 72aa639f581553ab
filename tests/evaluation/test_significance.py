"""Tests of the tests: scipy's answers, and simulated systems whose difference is known."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from entropy_asr.errors import InputError
from entropy_asr.evaluation.significance import _pair, bootstrap_rate, compare, holm, matched_pairs, over_seeds, paired_bootstrap
from entropy_asr.files import write_jsonl

TOKENS = 10.0


def simulate(rng: np.random.Generator, utterances: int, rate: float, other: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two systems on the same utterances, which differ in difficulty; their true rates are `rate` and `other`."""
    difficulty = rng.beta(2, 2, utterances) * 2  # mean 1
    errors = [rng.binomial(int(TOKENS), np.clip(r * difficulty, 0, 1)).astype(float) for r in (rate, other)]
    return errors[0], errors[1], np.full(utterances, TOKENS)


def test_intervals_cover_the_true_value_as_often_as_they_say() -> None:
    trials, true = 300, 0.03
    covered = single = 0
    for trial in range(trials):
        errors, others, tokens = simulate(np.random.default_rng(trial), 150, 0.20, 0.20 - true)
        found = paired_bootstrap(errors, others, tokens, resamples=500, seed=trial)
        covered += found.low <= true <= found.high
        low, high = bootstrap_rate(errors, tokens, resamples=500, seed=trial)
        single += low <= 0.20 <= high
    # 95% of 300 with a standard error of 1.3 points; the percentile interval is a little too narrow on small samples
    assert 0.90 <= covered / trials <= 0.99
    assert 0.90 <= single / trials <= 0.99


def test_false_positives_are_as_rare_as_they_say() -> None:
    trials = 300
    ps = []
    for trial in range(trials):
        errors, others, tokens = simulate(np.random.default_rng(1000 + trial), 150, 0.2, 0.2)
        ps.append((paired_bootstrap(errors, others, tokens, 500, trial).p, matched_pairs(errors, others)))
    bootstrap, pairs = (np.array(ps) < 0.05).mean(0)
    assert 0.01 <= bootstrap <= 0.10
    assert 0.01 <= pairs <= 0.10


def test_a_real_difference_is_found() -> None:
    errors, others, tokens = simulate(np.random.default_rng(0), 500, 0.25, 0.15)
    found = paired_bootstrap(errors, others, tokens, 2000)
    assert found.low > 0 and found.p < 0.005 and matched_pairs(errors, others) < 1e-6
    assert found.value == pytest.approx((errors.sum() - others.sum()) / tokens.sum())


def test_agrees_with_scipy() -> None:
    errors, others, tokens = simulate(np.random.default_rng(5), 200, 0.2, 0.18)
    ours = paired_bootstrap(errors, others, tokens, 4000)
    theirs = stats.bootstrap(
        (errors - others, tokens), lambda d, t, axis: d.sum(axis) / t.sum(axis), paired=True, vectorized=True,
        n_resamples=4000, method="percentile", rng=np.random.default_rng(1),
    ).confidence_interval  # fmt: skip
    assert ours.low == pytest.approx(theirs.low, abs=0.003)
    assert ours.high == pytest.approx(theirs.high, abs=0.003)
    large = stats.ttest_rel(errors, others).pvalue  # with 200 utterances the t and the normal distribution are close
    assert matched_pairs(errors, others) == pytest.approx(large, abs=0.01)
    assert over_seeds([10, 11, 12.5], [11, 12, 12]) == pytest.approx(stats.ttest_rel([10, 11, 12.5], [11, 12, 12]).pvalue)
    assert over_seeds([1.0], [2.0]) is None


def test_holm_is_the_textbook_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_systems_without_a_difference() -> None:
    same = np.array([1.0, 0.0, 2.0])
    assert matched_pairs(same, same) is None
    assert paired_bootstrap(same, same, np.full(3, 5.0), 100).p == 1.0


@given(
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), min_size=2, max_size=6),
    st.integers(1, 100_000),
    st.integers(-50, 50),
)
def test_seeds_that_differ_alike_have_no_p(pairs: list[tuple[int, int]], tokens: int, shift: int) -> None:
    """By the errors themselves, and by rates of them, where rounding makes equal differences unequal."""
    first, second = (np.array(side) for side in zip(*pairs, strict=True))
    for values, others in (
        (first, first + shift),
        (first / tokens, (first + shift) / tokens),
        (first * 0.1, first * 0.1 + shift),
    ):
        assert over_seeds(values, others) is None
        assert matched_pairs(values, others) is None
    found = over_seeds(first, second)
    if len(set(first - second)) == 1:
        assert found is None
    else:
        assert 0 < found <= 1
        assert found == pytest.approx(over_seeds(first / tokens, second / tokens), rel=1e-6)
        assert found == pytest.approx(stats.ttest_rel(first, second).pvalue)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=3), min_size=1, max_size=8))
def test_errors_of_three_seeds_that_add_up_to_the_same_are_no_difference(utterances: list[list[tuple[int, int]]]) -> None:
    """Thirds do not add up to whole numbers: means over seeds would call some resamples of no difference one."""
    systems: dict = {name: {seed: {} for seed in range(3)} for name in ("a", "b")}
    for number, seeds in enumerate(utterances):
        for seed, (first, _) in enumerate(seeds):
            systems["a"][seed][f"u{number}"] = (first, 10)
            systems["b"][(seed + 1) % 3][f"u{number}"] = (first, 10)
    row = _pair(systems, "a", "b", [f"u{number}" for number in range(len(utterances))])
    assert (row["difference_points"], row["low_points"], row["high_points"], row["p_bootstrap"]) == (0, 0, 0, 1)
    assert row["p_matched_pairs"] is None


def decoded(folder: Path, system: str, seed: int, transcripts: dict[str, str]) -> Path:
    path = folder / f"decode/{system}/seed-{seed}/english.jsonl"
    rows = [
        {"id": name, "language": "en", "reference": "one two three four", "hypothesis": text}
        for name, text in transcripts.items()
    ]
    write_jsonl(path, rows)
    return path


def test_compares_systems_from_their_hypotheses(tmp_path: Path) -> None:
    good, bad = "one two three four", "one two three"
    names = [f"u{i}" for i in range(40)]
    paths = [decoded(tmp_path, "ours", seed, {name: good if i % 4 else bad for i, name in enumerate(names)}) for seed in (1, 2)]
    paths += [decoded(tmp_path, "other", seed, {name: bad if i % 4 else good for i, name in enumerate(names)}) for seed in (1, 2)]
    (row,) = compare(paths, "ours")
    assert (row["system"], row["against"], row["seeds"], row["utterances"]) == ("ours", "other", 2, 40)
    assert row["difference_points"] == pytest.approx(100 * (10 - 30) / 160)
    assert row["high_points"] < 0 and row["p_bootstrap"] == row["p_bootstrap_holm"] < 0.05
    with pytest.raises(InputError, match="no hypotheses of 'none'"):
        compare(paths, "none")
    shorter = decoded(tmp_path, "short", 1, {name: good for name in names[1:]})
    with pytest.raises(InputError, match="differ by 'u0'"):
        compare([*paths, shorter], "ours")


def test_many_resamples_of_many_utterances_stay_in_memory() -> None:
    errors, others, tokens = simulate(np.random.default_rng(0), 10_000, 0.2, 0.19)
    tracemalloc.start()
    found = paired_bootstrap(errors, others, tokens, 5000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6  # all draws at once would be 600 MB
    assert found.low <= found.value <= found.high
