"""Error rates from stored hypotheses: CER for Mandarin, WER for English, MER for mixed speech, PER for phonemes.

Everything comes from the hypotheses file alone, so a score can be made again, by anyone, without audio or model. Both
sides go through the one versioned normaliser; jiwer counts. With ``--errors`` it also writes the report that icefall
users know: each utterance aligned, then tables of what is confused, dropped and invented.

    python -m entropy_asr.evaluation.score --hyps decode/test.jsonl --out score.json --errors errors.txt
    entropy-asr score --refs refs.jsonl --hyps hyps.jsonl --language en --out scores

The second form takes any system's output, lines of ``{id, text}``.  A line of the first's hypotheses:
``{id, language, reference, hypothesis, duration, decode_seconds}``, durations in seconds, with ``speaker`` and ``domain``
where they are known.
``language`` is ``en``, ``zh``, ``mixed``, or ``phonemes`` (symbols between spaces, not normalised). A file of several
languages is scored in the mixed unit: hanzi and Latin words.
"""

from __future__ import annotations

import csv
import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Literal

import typer

from entropy_asr.errors import InputError, friendly_exit
from entropy_asr.files import atomic_write, read_jsonl, write_json
from entropy_asr.text.normalize import normalize
from entropy_asr.text.scripts import Language, tokens_for_scoring
from entropy_asr.versions import NORMALIZER_VERSION

Unit = Literal["en", "zh", "mixed", "phonemes"]
METRICS: dict[Unit, str] = {"en": "WER", "zh": "CER", "mixed": "MER", "phonemes": "PER"}
INTERVAL_RESAMPLES = 1000  # of the interval of one error rate; comparisons take more
BREAKDOWNS = ("domain", "speaker")  # of one score, where the hypotheses say them
_REQUIRED = ("id", "language", "reference", "hypothesis")


@dataclass(frozen=True)
class Scored:
    """One utterance after normalisation and alignment.

    Attributes:
        pairs: reference and hypothesis token at each place of a minimal alignment; None where one side has nothing.
        duration, decode_seconds: seconds; None where the file does not say.
        decoding: how the hypothesis was searched for; None where the file does not say.
        domain: kind of sentence; None where the file does not say.
    """

    id: str
    speaker: str | None
    pairs: list[tuple[str | None, str | None]]
    duration: float | None
    decode_seconds: float | None
    decoding: str | None = None
    domain: str | None = None

    @cached_property
    def counts(self) -> Counts:
        """Errors of this utterance."""
        return count(self.pairs)

    @cached_property
    def marked(self) -> str:
        """The alignment in one line."""
        return marked(self.pairs)


@dataclass(frozen=True)
class Counts:
    """Errors of one or more utterances, in tokens."""

    substitutions: int
    deletions: int
    insertions: int
    reference_tokens: int

    @property
    def errors(self) -> int:
        """All three kinds together."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float | None:
        """Errors per reference token; None where the reference has no token."""
        return self.errors / self.reference_tokens if self.reference_tokens else None


def tokens(text: str, language: Unit, unit: Unit) -> list[str]:
    """Normalised scoring tokens of one side: ``language`` reads the digits, ``unit`` is what is counted."""
    if language == "phonemes" or unit == "phonemes":
        return text.split()
    return tokens_for_scoring(normalize(text, language), unit)


def align(references: list[list[str]], hypotheses: list[list[str]]) -> list[list[tuple[str | None, str | None]]]:
    """Minimal alignments by jiwer, one a sentence: pairs of (reference token, hypothesis token), None for a gap."""
    import jiwer

    as_they_are = jiwer.Compose([])  # jiwer would join, strip and split the tokens again
    output = jiwer.process_words(references, hypotheses, as_they_are, as_they_are)  # type: ignore[arg-type]
    return [
        [pair for chunk in chunks for pair in _pairs(chunk, reference, hypothesis)]
        for chunks, reference, hypothesis in zip(output.alignments, references, hypotheses, strict=True)
    ]


def _pairs(chunk: Any, reference: list[str], hypothesis: list[str]) -> list[tuple[str | None, str | None]]:
    left = reference[chunk.ref_start_idx : chunk.ref_end_idx]
    right = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
    if chunk.type == "insert":
        return [(None, token) for token in right]
    if chunk.type == "delete":
        return [(token, None) for token in left]
    return list(zip(left, right, strict=True))


def count(pairs: list[tuple[str | None, str | None]]) -> Counts:
    """Errors of an alignment."""
    substitutions = deletions = insertions = 0
    for ref, hyp in pairs:
        if ref == hyp:
            continue
        if ref is None:
            insertions += 1
        elif hyp is None:
            deletions += 1
        else:
            substitutions += 1
    return Counts(substitutions, deletions, insertions, len(pairs) - insertions)


def total_of(utterances: Iterable[Scored]) -> Counts:
    """Errors of several utterances together."""
    each = [(c.substitutions, c.deletions, c.insertions, c.reference_tokens) for c in (item.counts for item in utterances)]
    return Counts(*map(sum, zip(*each, strict=True)))


def read_hypotheses(path: str | Path) -> tuple[Unit, list[Scored]]:
    """The unit that a hypotheses file is scored in (a key of ``METRICS``) and its aligned utterances.

    Raises:
        InputError: the file is missing, empty or malformed, an id occurs twice, a reference has no word, or phonemes are
            mixed with text.
    """
    rows = read_by_id(path, _REQUIRED)
    if not rows:
        raise InputError(f"{path}: no hypothesis in it; decode the test set again")
    return score_rows(list(rows.values()), path)


def read_together(paths: Sequence[str | Path]) -> tuple[Unit, list[Scored]]:
    """The same of several test sets that are counted in one unit, as phonemes of all languages are.

    Raises:
        InputError: as above, or the files are counted in different units.
    """
    read = [read_hypotheses(path) for path in paths]
    units = [unit for unit, _ in read]
    if len(set(units)) > 1:
        listed = ", ".join(f"{path}: {METRICS[unit]}" for path, unit in zip(paths, units, strict=True))
        raise InputError(f"one error rate cannot count different units; {listed}; score these files apart")
    return units[0], [utterance for _, utterances in read for utterance in utterances]


def read_pairs(refs: Path, hyps: Path, language: Language) -> tuple[Unit, list[Scored]]:
    """The same from any system's output: two files of ``{id, text}``, joined by id.

    ``refs`` may also hold ``speaker``, ``domain`` and ``duration``, ``hyps`` ``decode_seconds``.

    Raises:
        InputError: a file is missing or malformed, an id occurs twice, one side has utterances that the other has not, or a
            reference has no word. An utterance that is left out would make the denominator shorter.
    """
    references, hypotheses = (read_by_id(path, ("id", "text")) for path in (refs, hyps))
    for missing, where, advice in (
        (hypotheses.keys() - references.keys(), refs, "these hypotheses are of another test set, or the ids differ"),
        (references.keys() - hypotheses.keys(), hyps, "an empty transcript is a line with an empty text"),
    ):
        if missing:
            raise InputError(f"{where}: {len(missing)} utterance(s) missing, such as {min(missing)!r}; {advice}")
    rows = [
        {**row, "language": language, "reference": row["text"], "hypothesis": hypotheses[name]["text"]}
        | {"decode_seconds": hypotheses[name].get("decode_seconds")}
        for name, row in references.items()
    ]
    if not rows:
        raise InputError(f"{refs}: no reference in it")
    return score_rows(rows, refs)


def read_by_id(path: str | Path, required: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Lines of a JSONL file by their ``id``, in file order.

    Raises:
        InputError: a required key is missing or no text, a language is unknown, or an id occurs twice.
    """
    rows: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(read_jsonl(path), 1):
        where = f"{path}, line {number}"
        for key in required:
            if not isinstance(row.get(key), str):
                raise InputError(f"{where}: key '{key}' is {row.get(key)!r}, expected text; keys: {', '.join(required)}")
        if "language" in required and row["language"] not in METRICS:
            raise InputError(f"{where}: language is {row['language']!r}, expected one of {', '.join(METRICS)}")
        if row["id"] in rows:
            raise InputError(f"{where}: id {row['id']!r} occurs twice; every utterance counts once")
        rows[row["id"]] = row
    return rows


def score_rows(rows: list[dict[str, Any]], path: str | Path) -> tuple[Unit, list[Scored]]:
    """Normalise and align rows of ``{id, language, reference, hypothesis}``; an error says that they come from ``path``."""
    languages = {row["language"] for row in rows}
    if "phonemes" in languages and len(languages) > 1:
        raise InputError(f"{path}: phonemes and text in one file ({', '.join(sorted(languages))}); score them apart")
    unit: Unit = languages.pop() if len(languages) == 1 else "mixed"
    references = [tokens(row["reference"], row["language"], unit) for row in rows]
    hypotheses = [tokens(row["hypothesis"], row["language"], unit) for row in rows]
    for row, reference in zip(rows, references, strict=True):
        if not reference:
            raise InputError(
                f"{path}: the reference of {row['id']!r}, {row['reference']!r}, has no word after normalisation; take it out of "
                "the test set (what is said to no speech at all is counted as hallucination, not as an error rate)"
            )
    return unit, [
        Scored(row["id"], row.get("speaker"), pairs, *map(row.get, ("duration", "decode_seconds", "decoding", "domain")))
        for row, pairs in zip(rows, align(references, hypotheses), strict=True)
    ]


def summarize(unit: Unit, utterances: list[Scored]) -> dict[str, Any]:
    """The score: rate as errors per reference token, with its 95% bootstrap interval over utterances; counts in tokens;
    real-time factor in seconds per second."""
    import numpy as np

    from entropy_asr.evaluation.significance import bootstrap_rate

    errors, lengths = np.array([[item.counts.errors, item.counts.reference_tokens] for item in utterances]).T
    low, high = bootstrap_rate(errors, lengths, INTERVAL_RESAMPLES)
    total = total_of(utterances)
    timed = [(item.duration, item.decode_seconds) for item in utterances if item.duration and item.decode_seconds]
    audio, decoding = sum(seconds for seconds, _ in timed), sum(seconds for _, seconds in timed)
    score: dict[str, Any] = {
        "metric": METRICS[unit],
        "value": total.rate,
        "low": low,
        "high": high,
        "substitutions": total.substitutions,
        "deletions": total.deletions,
        "insertions": total.insertions,
        "reference_tokens": total.reference_tokens,
        "utterances": len(utterances),
        "utterances_with_errors": sum(item.counts.errors > 0 for item in utterances),
        "normalizer_version": None if unit == "phonemes" else NORMALIZER_VERSION,
        "audio_seconds": round(audio, 3),
        "rtf": decoding / audio if timed else None,
        "decoding": "; ".join(sorted({item.decoding for item in utterances if item.decoding})) or None,
    }
    for kind in BREAKDOWNS:
        groups: defaultdict[str, list[Scored]] = defaultdict(list)
        for item in utterances:
            if (name := getattr(item, kind)) is not None:
                groups[name].append(item)
        if groups:
            score[f"per_{kind}"] = {name: _part(items) for name, items in sorted(groups.items())}
    return score


def _part(utterances: list[Scored]) -> dict[str, Any]:
    total = total_of(utterances)
    numbers = {"errors": total.errors, "reference_tokens": total.reference_tokens, "utterances": len(utterances)}
    return {"value": total.rate, **numbers}


def error_report(unit: Unit, utterances: list[Scored]) -> str:
    """Alignments and confusion tables as text, in the layout of icefall's ``write_error_stats``."""
    pairs = Counter(chain.from_iterable(item.pairs for item in utterances))
    total = total_of(utterances)
    rate = "undefined" if total.rate is None else f"{100 * total.rate:.2f}%"
    correct = total.reference_tokens - total.substitutions - total.deletions
    substituted = {pair: number for pair, number in pairs.items() if None not in pair and pair[0] != pair[1]}
    deleted = {ref: number for (ref, hyp), number in pairs.items() if hyp is None}
    inserted = {hyp: number for (ref, hyp), number in pairs.items() if ref is None}
    lines = [
        f"{METRICS[unit]} = {rate}",
        f"Errors: {total.insertions} insertions, {total.deletions} deletions, {total.substitutions} substitutions, "
        f"over {total.reference_tokens} reference tokens ({correct} correct)",
        "Below: PER-UTT DETAILS, SUBSTITUTIONS, DELETIONS, INSERTIONS, PER-TOKEN STATS",
        "",
        "PER-UTT DETAILS: correct tokens, or (reference->hypothesis)",
        *(f"{item.id}:\t{item.marked}" for item in utterances),
        "",
        "SUBSTITUTIONS: count, reference -> hypothesis",
        *(f"{number}\t{ref} -> {hyp}" for (ref, hyp), number in _ranked(substituted)),
        "",
        "DELETIONS: count, reference",
        *(f"{number}\t{token}" for token, number in _ranked(deleted)),
        "",
        "INSERTIONS: count, hypothesis",
        *(f"{number}\t{token}" for token, number in _ranked(inserted)),
        "",
        "PER-TOKEN STATS: token, correct, errors, in reference, in hypothesis",
        *_per_token(pairs),
    ]
    return "\n".join(lines) + "\n"


def marked(pairs: list[tuple[str | None, str | None]]) -> str:
    """An alignment in one line; neighbouring errors share one bracket, ``*`` stands for nothing."""
    parts = []
    for is_correct, group in groupby(pairs, key=lambda pair: pair[0] == pair[1]):
        members = list(group)
        left = " ".join(ref for ref, _ in members if ref is not None)
        right = " ".join(hyp for _, hyp in members if hyp is not None)
        parts.append(left if is_correct else f"({left or '*'}->{right or '*'})")
    return " ".join(parts)


def _per_token(pairs: Counter[tuple[str | None, str | None]]) -> list[str]:
    """One line a token of either side, the most wrong first."""
    correct: Counter[str] = Counter()
    in_reference: Counter[str] = Counter()
    in_hypothesis: Counter[str] = Counter()
    for (ref, hyp), number in pairs.items():
        if ref is not None:
            in_reference[ref] += number
            correct[ref] += number * (ref == hyp)
        if hyp is not None:
            in_hypothesis[hyp] += number
    wrong = {
        token: in_reference[token] + in_hypothesis[token] - 2 * correct[token]
        for token in in_reference.keys() | in_hypothesis.keys()
    }
    order = sorted(wrong, key=lambda token: (-wrong[token], token))
    return [f"{t}\t{correct[t]}\t{wrong[t]}\t{in_reference[t]}\t{in_hypothesis[t]}" for t in order]


def _ranked(counts: dict[Any, int]) -> list[tuple[Any, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


UTTERANCE_COLUMNS = ("id", "speaker", "errors", "substitutions", "deletions", "insertions", "reference_tokens", "alignment")


def utterance_table(utterances: list[Scored]) -> str:
    """CSV, a line an utterance, the most errors first; counts in tokens."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(UTTERANCE_COLUMNS)
    for item in sorted(utterances, key=lambda item: (-item.counts.errors, item.id)):
        counts = item.counts
        numbers = (counts.errors, counts.substitutions, counts.deletions, counts.insertions, counts.reference_tokens)
        writer.writerow([item.id, item.speaker, *numbers, item.marked])
    return text.getvalue()


def write_scores(unit: Unit, utterances: list[Scored], out: Path) -> dict[str, Any]:
    """``score.json``, ``errors.txt`` and ``utterances.csv`` in a folder; returns the score."""
    score = summarize(unit, utterances)
    atomic_write(out / "errors.txt", error_report(unit, utterances))
    atomic_write(out / "utterances.csv", utterance_table(utterances))
    write_json(out / "score.json", score)
    return score


def one_line(name: str, score: dict[str, Any]) -> str:
    """A score for the terminal."""
    return (
        f"{name}: {score['metric']} {100 * score['value']:.2f}% ({score['substitutions']} substitutions, "
        f"{score['deletions']} deletions, {score['insertions']} insertions; {score['reference_tokens']} tokens)"
    )


app = typer.Typer(add_completion=False)


@app.command()
@friendly_exit()
def main(
    hyps: list[Path] = typer.Option(..., help="hypotheses, JSON lines; repeat for one rate over several test sets"),
    out: Path = typer.Option(..., help="score to write, JSON"),
    errors: Path | None = typer.Option(None, help="alignments and confusion tables to write, text"),
) -> None:
    """Score stored hypotheses."""
    unit, utterances = read_together(hyps)
    score = summarize(unit, utterances)
    if errors is not None:
        atomic_write(errors, error_report(unit, utterances))
    write_json(out, score)
    print(one_line("+".join(path.name for path in hyps), score))


if __name__ == "__main__":
    app()
