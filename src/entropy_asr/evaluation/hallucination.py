"""How often a recogniser says what nobody said: definitions, and the rate by condition.

    python -m entropy_asr.evaluation.hallucination --hyps results/decode/ours/seed-1/conditions/english.jsonl \
        --out results/tables/hallucination.csv --examples results/metrics/hallucination/examples.jsonl

All on normalised scoring tokens (words for English, hanzi for Mandarin):

- **Hallucination on speech**: over 50% longer than the reference [P], with less than 20% of the reference's tokens in it [O].
- **Hallucination on non-speech**: any token at all [P].
- **Repetition loop** [O]: a run of 2 to `LONGEST_LOOP` tokens four times in a row or more, or a single token six times or more,
  where the reference repeats less. "八 八 八 八" is a part of a telephone number, not a loop.
- **Length outlier**: more than 2 times, or less than 0.5 times, as long as the reference [P].

Rates have Wilson's 95% interval (Wilson, 1927): they are small, and zero of forty is not zero.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from entropy_asr.errors import InputError, friendly_exit
from entropy_asr.evaluation.conditions import NON_SPEECH
from entropy_asr.evaluation.score import METRICS, align, count, read_by_id, tokens
from entropy_asr.files import write_jsonl, write_table

LONGER, OVERLAP = 1.5, 0.2
TOO_LONG, TOO_SHORT = 2.0, 0.5
LONGEST_LOOP, LOOP_TIMES, SINGLE_TIMES = 10, 4, 6
EXAMPLES = 3  # of each arm and condition
SHOWN = ("id", "reference", "hypothesis", "corpus_kind", "audio", "audio_start", "duration")
COLUMNS = (
    "arm",
    "seed",
    "test_set",
    "condition",
    "utterances",
    "hallucinations",
    "rate_percent",
    "low_percent",
    "high_percent",
    "repetition_loops",
    "too_long",
    "too_short",
    "error_metric",
    "error_rate_percent",
    "corpus_kind",
)
_PATH = re.compile(r"decode/([^/]+)/seed-(\d+)/conditions/([^/]+)\.jsonl$")


def overlap(reference: Sequence[str], hypothesis: Sequence[str]) -> float:
    """Share of the reference's tokens that the hypothesis has too, in any order, each counted once."""
    shared = Counter(reference) & Counter(hypothesis)
    return sum(shared.values()) / len(reference)


def is_hallucination(reference: Sequence[str], hypothesis: Sequence[str]) -> bool:
    """Whether a transcript is made up: by length and overlap, or, where nothing was said, at all."""
    if not reference:
        return bool(hypothesis)
    return len(hypothesis) > LONGER * len(reference) and overlap(reference, hypothesis) < OVERLAP


def longest_loop(said: Sequence[str]) -> dict[int, int]:
    """For each length up to `LONGEST_LOOP`, how often at most a run of so many tokens follows itself (1: never again)."""
    found = {}
    for size in range(1, min(LONGEST_LOOP, len(said)) + 1):
        best = run = 0
        for i in range(size, len(said)):
            run = run + 1 if said[i] == said[i - size] else 0
            best = max(best, run)
        found[size] = 1 + best // size
    return found


def is_loop(reference: Sequence[str], hypothesis: Sequence[str]) -> bool:
    """Whether the hypothesis repeats itself as nobody does, and more often than the reference."""
    spoken = longest_loop(reference)
    return any(
        times >= (SINGLE_TIMES if size == 1 else LOOP_TIMES) and times > spoken.get(size, 0)
        for size, times in longest_loop(hypothesis).items()
    )


def length_outlier(reference: Sequence[str], hypothesis: Sequence[str]) -> str | None:
    """`too_long`, `too_short`, or None; of non-speech there is no ratio."""
    if not reference:
        return None
    ratio = len(hypothesis) / len(reference)
    return "too_long" if ratio > TOO_LONG else "too_short" if ratio < TOO_SHORT else None


def judge(row: dict[str, Any]) -> dict[str, Any]:
    """One hypothesis: its tokens and what it is guilty of."""
    sides = [tokens(row[side], row["language"], row["language"]) for side in ("reference", "hypothesis")]
    return {
        **row,
        "sides": sides,
        "hallucination": is_hallucination(*sides),
        "repetition_loop": is_loop(*sides),
        "length_outlier": length_outlier(*sides),
    }


def summarize(judged: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Counts and rates of one condition."""
    from scipy.stats import binomtest

    found = sum(row["hallucination"] for row in judged)
    interval = binomtest(found, len(judged)).proportion_ci(0.95, method="wilson")
    spoken = [row["sides"] for row in judged if row["sides"][0]]
    aligned = align(*map(list, zip(*spoken, strict=True))) if spoken else []
    errors = count([pair for pairs in aligned for pair in pairs]) if spoken else None
    return {
        "utterances": len(judged),
        "hallucinations": found,
        **{
            f"{name}_percent": round(100 * value, 3)
            for name, value in (("rate", found / len(judged)), ("low", interval.low), ("high", interval.high))
        },
        "repetition_loops": sum(row["repetition_loop"] for row in judged),
        **{kind: sum(row["length_outlier"] == kind for row in judged) for kind in ("too_long", "too_short")},
        "error_metric": METRICS[judged[0]["language"]] if errors else None,
        "error_rate_percent": round(100 * errors.rate, 3) if errors and errors.rate is not None else None,
        "corpus_kind": judged[0]["corpus_kind"],
    }


def table(hypotheses: Sequence[Path]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of hallucination.csv, one for each system, test set and condition; and examples of hallucinations.

    Raises:
        InputError: a path is none of such a decoding, or a system lacks a condition that another has.
    """
    rows, examples = [], []
    seen: dict[str, dict[tuple[str, str], set[str]]] = defaultdict(dict)
    for path in hypotheses:
        found = _PATH.search(path.as_posix())
        if found is None:
            raise InputError(f"{path}: expected …/decode/<arm>/seed-<s>/conditions/<test set>.jsonl")
        by_condition: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for row in read_by_id(path, ("id", "language", "reference", "hypothesis", "condition", "audio")).values():
            by_condition[row["condition"]].append(judge(row))
        seen[found[3]][found[1], found[2]] = {row["id"] for judged in by_condition.values() for row in judged}
        for condition in sorted(by_condition, key=lambda name: (name in NON_SPEECH, name != "clean", name)):
            judged = by_condition[condition]
            owner = {"arm": found[1], "seed": int(found[2]), "test_set": found[3], "condition": condition}
            rows.append({**owner, **summarize(judged)})
            guilty = [row for row in judged if row["hallucination"]][:EXAMPLES]
            examples += [{**owner, **{key: row[key] for key in SHOWN}} for row in guilty]
    for test_set, decoded in seen.items():
        everything = set().union(*decoded.values())
        for (arm, seed), ids in decoded.items():
            if ids != everything:
                raise InputError(f"test set {test_set}: {arm}, seed {seed}, lacks {min(everything - ids)!r}; decode it again")
    return rows, examples


app = typer.Typer(add_completion=False)


@app.command()
@friendly_exit()
def main(
    hyps: list[Path] = typer.Option(..., help="hypotheses on the conditions of a test set; repeat"),
    out: Path = typer.Option(..., help="CSV to write"),
    examples: Path = typer.Option(..., help="JSONL of hallucinations to write"),
) -> None:
    """Count hallucinations by condition."""

    rows, found = table(hyps)
    write_jsonl(examples, found)
    write_table(out, rows, COLUMNS)
    for arm in dict.fromkeys(row["arm"] for row in rows):
        own = [row for row in rows if row["arm"] == arm]
        print(f"{arm}: {sum(r['hallucinations'] for r in own)} hallucinations in {sum(r['utterances'] for r in own)} transcripts")


if __name__ == "__main__":
    app()
