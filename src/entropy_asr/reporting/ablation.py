"""The arms side by side: every arm's error rates and entropy-allocation metrics over seeds, and whether they differ from `ours`.

    python -m entropy_asr.reporting.ablation --main results/tables/main.csv --significance results/tables/significance.csv \
        --entropy results/tables/entropy.csv --baseline ours --out results/tables/ablation.csv

Nothing is measured here: rows of the three tables are averaged over seeds.  The tests of error rates are those of
significance.csv.  The encoder's metrics (after joint SFT; output layer, linear probe, both languages) and the system's have one
value a seed, so the paired t-test over seeds is theirs, where there are two seeds or more.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import typer

from entropy_asr.errors import InputError, friendly_exit
from entropy_asr.evaluation.significance import over_seeds
from entropy_asr.files import read_table, write_table
from entropy_asr.reporting.entropy import shifts
from entropy_asr.reporting.figures import arms_of
from entropy_asr.reporting.jobs import SHARED

Rows = Sequence[dict[str, str]]

TESTS = ("difference", "low", "high", "p_bootstrap", "p_bootstrap_holm", "p_matched_pairs", "p_seeds")
COLUMNS = ("arm", "metric", "test_set", "unit", "seeds", "mean", "std", *TESTS, "corpus_kind")
AFTER_JOINT_SFT = ("nse", "pai", "csai")
OF_THE_SYSTEM = ("eer", "ler", "ar")


def ablation_rows(main: Rows, significance: Rows, entropy: Rows, baseline: str) -> list[dict[str, Any]]:
    """One row an arm and metric. `difference` is the arm's value minus the baseline's, in the row's unit, with its interval.

    Raises:
        InputError: the baseline has no row.
    """
    trained = [row for row in main if row["kind"] == "measured" and row["seed"] and row["arm"] not in SHARED]
    if baseline not in {row["arm"] for row in trained}:
        raise InputError(f"main table: no row of {baseline!r}, with which the arms are compared")
    return [*_error_rates(trained, significance), *_entropy(entropy, baseline)]


def _error_rates(main: Rows, significance: Rows) -> list[dict[str, Any]]:
    tests = {(row["against"], row["test_set"]): row for row in significance}
    rows = []
    for arm in arms_of(main):
        for test_set in dict.fromkeys(row["test_set"] for row in main):
            same = [row for row in main if (row["arm"], row["test_set"]) == (arm, test_set)]
            row: dict[str, Any] = {"arm": arm, "metric": same[0]["metric"], "test_set": test_set, "unit": "percent"}
            row |= _over_seeds([float(item["value_percent"]) for item in same])
            test = tests.get((arm, test_set))
            if test:  # there the baseline comes first: its rate minus the other's
                row |= {"difference": 0.0 - float(test["difference_points"])}
                row |= {"low": 0.0 - float(test["high_points"]), "high": 0.0 - float(test["low_points"])}
                row |= {name: test[name] for name in ("p_bootstrap", "p_bootstrap_holm", "p_matched_pairs", "p_seeds")}
            rows.append({**row, "corpus_kind": same[0]["corpus_kind"]})
    return rows


def _entropy(entropy: Rows, baseline: str) -> list[dict[str, Any]]:
    found: dict[tuple[str, str], dict[str, float]] = {}  # (arm, metric): value of each seed
    for item in shifts(entropy):
        values = {name: item[name] and item[name]["after"]["value"] for name in AFTER_JOINT_SFT}
        values |= {name: item[name] and item[name]["value"] for name in OF_THE_SYSTEM} | {"drift_cka": item["cka"]}
        for metric, value in values.items():
            if value not in (None, ""):
                found.setdefault((item["arm"], metric), {})[item["seed"]] = float(value)
    kind = " and ".join(sorted({row["corpus_kind"] for row in entropy}))
    rows = []
    for (arm, metric), seeds in found.items():
        row = {"arm": arm, "metric": metric, "unit": "ratio", "corpus_kind": kind, **_over_seeds(list(seeds.values()))}
        others = found.get((baseline, metric), {})
        both = sorted(seeds.keys() & others.keys()) if arm != baseline else []
        if both:
            mine, theirs = [seeds[seed] for seed in both], [others[seed] for seed in both]
            p = over_seeds(mine, theirs)
            row |= {"difference": fmean(mine) - fmean(theirs), "p_seeds": None if p is None else float(f"{p:.3g}")}
        rows.append(row)
    return rows


def _over_seeds(values: list[float]) -> dict[str, Any]:
    return {"seeds": len(values), "mean": fmean(values), "std": stdev(values) if len(values) > 1 else None}


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@friendly_exit()
def write(
    main: Path = typer.Option(..., help="main.csv"),
    significance: Path = typer.Option(..., help="significance.csv"),
    entropy: Path = typer.Option(..., help="entropy.csv"),
    baseline: str = typer.Option(..., help="arm that the others are compared with, as in significance.csv"),
    out: Path = typer.Option(..., help="CSV to write"),
) -> None:
    """Put the arms side by side."""
    rows = ablation_rows(read_table(main), read_table(significance), read_table(entropy), baseline)
    write_table(out, [{k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()} for row in rows], COLUMNS)


if __name__ == "__main__":
    app()
