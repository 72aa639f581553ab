"""Is one system better than another on a test set, or was it luck? Intervals and tests from stored hypotheses.

    python -m entropy_asr.evaluation.significance --hyps results/decode/ours/seed-1/english.jsonl \
        --hyps results/decode/no_ia_sft/seed-1/english.jsonl --baseline ours --out results/tables/significance.csv

Three tests, because they ask different things.  The paired bootstrap over utterances (Bisani & Ney, 2004) and the matched-pairs
test of NIST's practice (Gillick & Cox, 1989) ask whether the difference would hold on other utterances of this kind; both take
the trained systems as they are.  The paired t-test over seeds asks whether it would hold if the systems were trained again.
Where several pairs are compared, p-values are corrected by Holm's method (1979).

Which system, seed and test set a file belongs to is read from its path.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import typer

from entropy_asr.errors import InputError, friendly_exit
from entropy_asr.files import write_table
from entropy_asr.resampling import percentile_interval, resampled_sums

RESAMPLES = 10_000
ROUNDING = 1e-12  # of the largest value: a spread of differences below it is none
COLUMNS = (
    "test_set",
    "metric",
    "system",
    "against",
    "seeds",
    "utterances",
    "difference_points",
    "low_points",
    "high_points",
    "p_bootstrap",
    "p_matched_pairs",
    "p_seeds",
    "p_bootstrap_holm",
)
_DECODE_PATH = re.compile(r"decode/([^/]+)/seed-(\d+)/([^/]+)\.jsonl$")


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval and two-sided p-value of being zero."""

    value: float
    low: float
    high: float
    p: float


def bootstrap_rate(errors: np.ndarray, tokens: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
    """95% percentile interval of an error rate over utterances. errors, tokens: (N,) of each utterance."""
    sums = resampled_sums(np.stack([errors, tokens]), resamples, seed)
    return percentile_interval(sums[0] / sums[1])


def paired_bootstrap(
    errors: np.ndarray, others: np.ndarray, tokens: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """Difference of two systems' error rates, the same utterances drawn for both (Bisani & Ney, 2004).

    Args:
        errors, others: (N,) errors of each utterance by either system; tokens: (N,) its reference tokens.

    Returns:
        rate of the first minus rate of the second; p is twice the share of resamples on the other side of zero.
    """
    difference = errors - others
    sums = resampled_sums(np.stack([difference, tokens]), resamples, seed)
    drawn = sums[0] / sums[1]
    low, high = percentile_interval(drawn)
    beyond = min((drawn <= 0).sum(), (drawn >= 0).sum())
    p = min(1.0, 2 * (beyond + 1) / (resamples + 1))  # never zero: as many resamples could not show less
    return Interval(float(difference.sum() / tokens.sum()), low, high, float(p))


def matched_pairs(errors: np.ndarray, others: np.ndarray) -> float | None:
    """Two-sided p of the matched-pairs test (Gillick & Cox, 1989) with utterances as segments; None where none can be given.

    Errors in different utterances are taken as independent, which holds here because systems decode them apart; NIST's tool
    cuts long recordings into segments to reach the same.  The test divides by the spread of the differences: if all are the
    same, it has nothing to say.
    """
    from scipy.stats import norm

    difference = errors - others
    if same_everywhere(errors, others):
        return None
    return float(2 * norm.sf(abs(difference.mean()) / (difference.std(ddof=1) / math.sqrt(len(difference)))))


def over_seeds(values: Sequence[float], others: Sequence[float]) -> float | None:
    """Two-sided p of the paired t-test over seeds; None for fewer than two, and where all differences are the same.

    Error rates are best given as errors, on the same references: the test has the same p, and integers have no rounding.
    """
    from scipy.stats import ttest_rel

    return None if same_everywhere(values, others) else float(ttest_rel(values, others).pvalue)


def same_everywhere(values: Sequence[float] | np.ndarray, others: Sequence[float] | np.ndarray) -> bool:
    """Whether all paired differences are equal up to rounding, as one alone is: a test by their spread would divide by it."""
    first, second = np.asarray(values, dtype=float), np.asarray(others, dtype=float)
    rounding = ROUNDING * max(np.abs(first).max(initial=0.0), np.abs(second).max(initial=0.0))
    return len(first) < 2 or bool(np.ptp(first - second) <= rounding)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for several comparisons (Holm, 1979), in the same order."""
    order = np.argsort(p_values)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        corrected[index] = min(1.0, largest)
    return corrected


def compare(hypotheses: Sequence[Path], baseline: str) -> list[dict[str, Any]]:
    """One row for each test set and each system that is not the baseline: the baseline's rate minus the other's, in points.

    Raises:
        InputError: a path is none of a decoding, the systems did not decode the same utterances, or the baseline is missing.
    """
    from entropy_asr.evaluation.score import METRICS, read_hypotheses

    counted: dict[str, dict[str, dict[int, dict[str, tuple[int, int]]]]] = defaultdict(lambda: defaultdict(dict))
    units: dict[str, str] = {}
    for path in hypotheses:
        found = _DECODE_PATH.search(path.as_posix())
        if found is None:
            raise InputError(f"{path}: expected …/decode/<system>/seed-<s>/<test set>.jsonl")
        unit, utterances = read_hypotheses(path)
        counts = {item.id: item.counts for item in utterances}
        counted[found[3]][found[1]][int(found[2])] = {name: (c.errors, c.reference_tokens) for name, c in counts.items()}
        units[found[3]] = METRICS[unit]
    rows = []
    for test_set, systems in counted.items():
        if baseline not in systems:
            raise InputError(f"test set {test_set}: no hypotheses of {baseline!r} to compare with; found {', '.join(systems)}")
        names = sorted(next(iter(systems[baseline].values())))
        for system, seeds in systems.items():
            for seed, utterances in seeds.items():
                if utterances.keys() != set(names):
                    odd = min(utterances.keys() ^ set(names))
                    raise InputError(f"test set {test_set}: {system}, seed {seed}, and {baseline} differ by {odd!r}: decode it")
        rows += [
            {"test_set": test_set, "metric": units[test_set], **_pair(systems, baseline, system, names)}
            for system in systems
            if system != baseline
        ]
    for row, p in zip(rows, holm([row["p_bootstrap"] for row in rows]), strict=True):
        row["p_bootstrap_holm"] = float(f"{p:.3g}")
    return rows


def _pair(systems: dict, baseline: str, system: str, names: list[str]) -> dict[str, Any]:
    """Compare two systems; of several seeds, an utterance's errors are added up: a mean would be rounded, a sum is exact."""
    seeds = sorted(systems[baseline].keys() & systems[system].keys())
    if not seeds:
        raise InputError(f"{baseline} and {system} have no seed in common")
    tokens = np.array([systems[baseline][seeds[0]][name][1] for name in names], dtype=float)
    by_seed = {
        owner: np.array([[systems[owner][seed][name][0] for name in names] for seed in seeds], dtype=float)  # (seeds, N)
        for owner in (baseline, system)
    }
    mine, other = by_seed[baseline].sum(0), by_seed[system].sum(0)
    found = paired_bootstrap(mine, other, len(seeds) * tokens)
    p_pairs, p_seeds = matched_pairs(mine, other), over_seeds(by_seed[baseline].sum(1), by_seed[system].sum(1))
    return {
        "system": baseline,
        "against": system,
        "seeds": len(seeds),
        "utterances": len(names),
        "difference_points": round(100 * found.value, 4),
        "low_points": round(100 * found.low, 4),
        "high_points": round(100 * found.high, 4),
        "p_bootstrap": float(f"{found.p:.3g}"),
        "p_matched_pairs": None if p_pairs is None else float(f"{p_pairs:.3g}"),
        "p_seeds": None if p_seeds is None else float(f"{p_seeds:.3g}"),
    }


app = typer.Typer(add_completion=False)


@app.command()
@friendly_exit()
def main(
    hyps: list[Path] = typer.Option(..., help="hypotheses of each system, seed and test set; repeat"),
    baseline: str = typer.Option(..., help="system that the others are compared with"),
    out: Path = typer.Option(..., help="CSV to write"),
) -> None:
    """Compare systems on their test sets."""

    rows = compare(hyps, baseline)
    write_table(out, rows, COLUMNS)
    for row in rows:
        print(
            f"{row['test_set']}: {row['system']} minus {row['against']} {row['difference_points']:+.2f} points {row['metric']} "
            f"[{row['low_points']:+.2f}, {row['high_points']:+.2f}], p {row['p_bootstrap_holm']:.3g}"
        )


if __name__ == "__main__":
    app()
