"""The report of a run: one HTML file with everything in it, which any browser opens without a network.

    python -m entropy_asr.reporting.report --main results/tables/main.csv --cka results/tables/cka.csv \
        --timeline results/tables/timeline.csv --figures results/figures/errors.svg … \
        --hallucinations results/metrics/hallucination/examples.jsonl \
        --hyps results/decode/…/english.jsonl … --browse results/decode/…/english.jsonl … \
        --quality results/manifests/…/en-test.quality.json … \
        --errors results/metrics/score/…/english.errors.txt … --provenance …/provenance.json … \
        --entropy results/tables/entropy.csv --ablation results/tables/ablation.csv --cost results/tables/cost.csv \
        --config results/config/resolved.yaml --out results/report/index.html

It computes nothing that is not in its inputs, apart from means over seeds, the overlap of two jobs and the choice of
the example transcripts, which is by hash and not by hand.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import typer

from entropy_asr.errors import InputError, friendly_exit
from entropy_asr.evaluation.score import METRICS, Scored, Unit, read_hypotheses
from entropy_asr.files import atomic_write, read_json, read_jsonl, read_table
from entropy_asr.reporting.browser import as_script_data, browsable
from entropy_asr.reporting.entropy import expectation, shifts
from entropy_asr.reporting.jobs import ENCODER, SHARED, overlap_minutes, parse_time

Rows = Sequence[dict[str, str]]

TEMPLATE = Path(__file__).with_name("report.html")
EXAMPLES = 5  # transcripts a test set
EXAMPLES_WITH_ERRORS = 3  # of those, where there are so many
LANGUAGE_TAGS = {"en": "en", "zh": "zh-Hans", "mixed": "zh-Hans"}
FIGURES = {
    "errors": (
        "Error rates",
        "Share of words (WER, English) or characters (CER, Mandarin) that are wrong; lower is better. The right panel "
        "is the pretrained encoder alone: in phonemes (PER), and one that was pretrained on characters in text. It is what the "
        "speech-LLM has to work with, not a rival of it.",
    ),
    "hallucination": (
        "Hallucinations",
        "Share of transcripts that are made up: much longer than what was said and with next to none of its words; where "
        "nobody speaks, any transcript at all. Clean speech above, then noise by signal-to-noise ratio, pauses and cut-off "
        "speech, and below audio in which nobody speaks. Bars with Wilson's 95% interval.",
    ),
    "curves": (
        "Training curves",
        "Training loss of each stage; points: the loss on development data, without augmentation. Dotted lines are swaps of "
        "the encoder: a jump at one, and how fast it is made good, is what a hot swap costs. The arm without IA-SFT takes its "
        "steps in joint SFT instead.",
    ),
    "cka": (
        "CKA trace",
        "How alike the encoder in training is to the one handed over last, on fixed development speech (1: equal up to "
        "rotation and scale). Each fall below the dashed line ends a part and hands the encoder over; the comparison "
        "then starts again from the new reference. Nothing is measured during warm-up.",
    ),
    "timeline": (
        "Timeline",
        "Wall-clock time of every training job. Where a bar of IA-SFT lies below one of pretraining, the LLM side was "
        "training while the next encoder was still being made.",
    ),
    "shift": (
        "What joint training does to the encoder",
        "The metrics of the encoder’s output at each handover, then after joint SFT, an arm a line; bars are 95% intervals over "
        "test utterances. The recipe should keep PAI (what a linear probe finds of the phonemes) where pretraining left it, "
        "and raise CSAI (what it finds of the text beyond its pronunciation) less than the other arm; intervals that overlap "
        "show nothing. A grey level is another recogniser’s encoder on the same utterances and labels.",
    ),
    "drift": (
        "Drift between checkpoints",
        "Left: linear CKA between the outputs of any two checkpoints, 1 where they are equal up to rotation and scale; darker is "
        "further apart. Right: the last pretraining part against the encoder after joint SFT, layer by layer; the lower a line "
        "falls, the further joint training has pulled that layer from what pretraining made.",
    ),
    "spectrum": (
        "Eigenvalue decay",
        "Share of the variance in each direction of the output, largest first, and their sum. A slower decay is a higher NSE: "
        "the same variance spread over more directions.",
    ),
    "allocation": (
        "Who removes the uncertainty",
        "Left: what the language model alone (H0), a linear probe on the encoder on top of it (H1) and the whole system (H2) "
        "leave of the transcript’s uncertainty. Right: the encoder’s share of H0 (EER) and the LLM’s (LER). A negative LER says "
        "that the system makes less of its encoder than a linear probe does that is told when each token is said.",
    ),
}


@dataclass(frozen=True)
class Piece:
    """A stretch of an aligned transcript. kind: correct, substitution, deletion or insertion."""

    kind: str
    reference: str
    hypothesis: str


def headline(rows: Rows) -> list[dict[str, Any]]:
    """One entry a test set: its systems in percent, the best of this run's marked, peers last.

    Of one seed with the 95% interval over utterances, of several as mean and standard deviation.
    """
    groups = []
    for (test_set, metric), group in _by(rows, "test_set", "metric"):
        systems = []
        for (arm,), same in _by(group, "arm"):
            values = [float(row["value_percent"]) for row in same]
            counts = {name: sum(int(row[name]) for row in same) for name in ("substitutions", "deletions", "insertions")}
            rtfs = [float(row["rtf"]) for row in same if row["rtf"]]
            systems.append(
                {
                    "arm": arm,
                    "percent": fmean(values),
                    "spread": stdev(values) if len(values) > 1 else None,
                    "interval": [float(same[0][f"{end}_percent"]) for end in ("low", "high")] if len(values) == 1 else None,
                    "p": float(same[0]["p_against_ours"]) if same[0]["p_against_ours"] else None,
                    "seeds": len(values),
                    **counts,
                    "reference_tokens": sum(int(row["reference_tokens"]) for row in same),
                    "rtf": fmean(rtfs) if rtfs else None,
                    "audio_hours_encoder": _mean(same, "audio_hours_encoder"),
                    "audio_hours_llm_side": _mean(same, "audio_hours_llm_side"),
                    "llm_side_steps": _mean(same, "llm_side_steps"),
                    "parameters": sum(int(same[0][f"parameters_{part}"] or 0) for part in ("encoder", "adaptor", "llm")),
                }
            )
        best = min((system["percent"] for system in systems if system["llm_side_steps"] is not None), default=None)
        systems = [{**system, "best": system["percent"] == best} for system in systems]
        systems.sort(key=lambda system: (system["llm_side_steps"] is None, system["arm"] != "ours", system["arm"]))
        groups.append({"test_set": test_set, "metric": metric, "speech": f"{group[0]['corpus_kind']} speech", "systems": systems})
    return groups


def by_domain(rows: Rows) -> list[dict[str, Any]]:
    """One entry a test set and metric: the error rate of each system in each domain, in percent over all seeds.

    Percents are None where a system has no utterance of a domain.
    """
    groups = []
    for (test_set, metric), group in _by([row for row in rows if row["by"] == "domain"], "test_set", "metric"):
        systems = list(dict.fromkeys(row["arm"] for row in group))
        domains = []
        for (domain,), same in _by(group, "group"):
            counts = {arm: [row for row in same if row["arm"] == arm] for arm in systems}
            tokens = {arm: sum(int(row["reference_tokens"]) for row in found) for arm, found in counts.items()}
            percents = [
                100 * sum(int(row["errors"]) for row in counts[arm]) / tokens[arm] if tokens[arm] else None for arm in systems
            ]
            domains.append({"domain": domain, "reference_tokens": int(same[0]["reference_tokens"]), "percents": percents})
        groups.append({"test_set": test_set, "metric": metric, "systems": systems, "domains": domains})
    return groups


def _mean(rows: Rows, column: str) -> float | None:
    """Over seeds; None where a system was not trained here."""
    return fmean(float(row[column]) for row in rows) if rows[0][column] else None


def swaps(cka: Rows, timeline: Rows) -> list[dict[str, Any]]:
    """Each trigger of phoneme pretraining: its step, its CKA, and the jobs of `ours` that it let start.

    Number 0 starts alignment, the others are hot swaps.
    """
    found = []
    for row in cka:
        if row["swapped"] != "true" or row["encoder"] != ENCODER:
            continue
        part = int(row["part"])
        wanted = {(ENCODER, "pretrain", part + 1), ("ours", "ia_sft", part)} | ({("ours", "align", 0)} if part == 0 else set())
        started = [
            {"job": job["job"], "clock": parse_time(job["started"]).strftime("%H:%M:%S")}
            for job in timeline
            if job["seed"] == row["seed"] and (job["arm"], job["stage"], int(job["index"])) in wanted
        ]
        found.append({**row, "number": part, "started": started})
    return found


def who_decided(cka: Rows) -> str:
    """Whether the threshold decided when the encoder was swapped, or the steps between two checks alone; empty without a swap."""
    first: dict[tuple[str, str], dict[str, str]] = {}
    for row in cka:
        if row["encoder"] == ENCODER:
            first.setdefault((row["seed"], row["part"]), row)
    swapped = [row for row in cka if row["encoder"] == ENCODER and row["swapped"] == "true"]
    at_once = sum(first[row["seed"], row["part"]] is row for row in swapped)
    if not swapped:
        return ""
    if at_once < len(swapped):
        return f"Of {len(swapped)} parts that CKA ended, {at_once} ended at their first check; the threshold decided the others."
    return (
        f"Every part that CKA ended ({len(swapped)}) was below the threshold at its first check. So the steps between checks "
        "(cka.every) decided when the encoder was swapped, and the threshold decided nothing."
    )


def arms_compared(ablation: Rows, cost: Rows) -> dict[str, Any]:
    """The arms as lines and the metrics as columns, and what each arm took: sums over its jobs, means over seeds."""
    metrics = list(dict.fromkeys((row["metric"], row["test_set"], row["unit"]) for row in ablation))
    lines = []
    for (arm,), same in _by(ablation, "arm"):
        cells = {(row["metric"], row["test_set"], row["unit"]): row for row in same}
        jobs = [row for row in cost if row["arm"] == arm]
        seeds = len({row["seed"] for row in jobs})
        steps = ("model_flops", "wall_seconds", "cpu_seconds", "audio_hours")
        took = {name: sum(float(row[name] or 0) for row in jobs) / seeds for name in steps} if seeds else None
        lines.append({"arm": arm, "cells": [cells.get(metric) for metric in metrics], "cost": took})
    return {"metrics": metrics, "lines": lines}


def choose_examples(utterances: Sequence[Scored], number: int = EXAMPLES) -> list[Scored]:
    """Some utterances with errors, then some without; in the order of the hash of their ids, so that nobody picks."""
    order = sorted(utterances, key=lambda item: hashlib.sha256(item.id.encode()).hexdigest())
    wrong = [item for item in order if item.counts.errors]
    clean = [item for item in order if not item.counts.errors]
    shown_clean = clean[: max(number - min(len(wrong), EXAMPLES_WITH_ERRORS), 0)]
    return wrong[: number - len(shown_clean)] + shown_clean


def pieces(pairs: Sequence[tuple[str | None, str | None]], unit: Unit) -> list[Piece]:
    """An alignment as stretches of one kind, tokens joined as they are written."""

    def kind(pair: tuple[str | None, str | None]) -> str:
        reference, hypothesis = pair
        if reference == hypothesis:
            return "correct"
        return "insertion" if reference is None else "deletion" if hypothesis is None else "substitution"

    stretches = []
    for name, group in groupby(pairs, key=kind):
        members = list(group)
        sides = ([token for token in side if token is not None] for side in zip(*members, strict=True))
        stretches.append(Piece(name, *(_joined(side, unit) for side in sides)))
    return stretches


def _joined(tokens: Iterable[str], unit: Unit) -> str:
    """Spaces between words; none in Mandarin, and in mixed speech none between two hanzi."""
    text = ""
    for token in tokens:
        close = unit == "zh" or (unit == "mixed" and text and not text[-1].isascii() and not token[0].isascii())
        text += token if close or not text else f" {token}"
    return text


def transcripts(hyps: Sequence[Path]) -> list[dict[str, Any]]:
    """The chosen examples of each test set."""
    shown = []
    for path in hyps:
        unit, utterances = read_hypotheses(path)
        shown.append(
            {
                "test_set": path.stem,
                "lang": LANGUAGE_TAGS.get(unit, "en"),
                "metric": METRICS[unit],
                "space": "" if unit == "zh" else " ",
                "utterances": len(utterances),
                "with_errors": sum(item.counts.errors > 0 for item in utterances),
                "examples": [
                    {"id": item.id, "pieces": pieces(item.pairs, unit), "errors": item.counts.errors}
                    for item in choose_examples(utterances)
                ],
            }
        )
    return shown


def overlap_sentence(timeline: Rows, seed: int) -> str:
    """What the time stamps say about one seed."""
    minutes = overlap_minutes(timeline, seed)
    if minutes is None:
        return f"Seed {seed}: there was no second pretraining part, or no IA-SFT, so nothing could overlap."
    if minutes == 0:
        return f"Seed {seed}: IA-SFT iteration 0 and pretraining part 1 did not run at the same time."
    return f"Seed {seed}: IA-SFT iteration 0 and pretraining part 1 ran at the same time for {minutes:.1f} minutes."


def origin(provenance: Sequence[Path], timeline: Rows) -> dict[str, Any]:
    """What made the run: distinct values over all jobs, so that a mixture of commits or machines is seen."""
    facts = [read_json(path) for path in provenance]
    packages = {f"{name} {version}" for item in facts for name, version in item.get("packages", {}).items()}
    hardware = set()
    for item in facts:
        machine = item.get("hardware", {})
        gpus = ", ".join(machine.get("gpus") or []) or "no GPU"
        processes, threads = machine.get("world_size", 1), machine.get("cpu_threads", "?")
        hardware.add(f"{machine.get('processor', '?')}, {processes} process(es) a job, {threads} thread(s) each, {gpus}")
    first, last = (pick(parse_time(row[key]) for row in timeline) for pick, key in ((min, "started"), (max, "ended")))
    memory = [float(row["peak_memory_gib"]) for row in timeline if row["peak_memory_gib"]]
    return {
        "commits": sorted({str(item.get("git_commit") or "not a git checkout") for item in facts}),
        "dirty": sum(bool(item.get("git_dirty")) for item in facts),
        "jobs": len(facts),
        "python": sorted({str(item.get("python", "?")) for item in facts}),
        "packages": sorted(packages),
        "hardware": sorted(hardware),
        "elapsed_minutes": (last - first).total_seconds() / 60,
        "job_minutes": sum(float(row["wall_seconds"] or 0) for row in timeline) / 60,
        "peak_memory_gib": max(memory) if memory else None,
        "started": first.strftime("%Y-%m-%d %H:%M UTC"),
    }


def figure(path: Path) -> dict[str, str]:
    """An SVG as data, so that the report is one file; drawn as an image, so that no ids of two figures can clash."""
    if not path.is_file():
        raise InputError(f"{path}: no such figure; the rule `figures` makes it")
    title, caption = FIGURES.get(path.stem, (path.stem, ""))
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return {"name": path.stem, "title": title, "caption": caption, "source": f"data:image/svg+xml;base64,{data}"}


def playable(examples: Sequence[dict[str, Any]], each: int = 1) -> list[dict[str, Any]]:
    """Some hallucinations of each test set and condition, with their audio as data, so that one can listen."""
    chosen: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for example in examples:
        chosen.setdefault((example["test_set"], example["condition"]), []).append(example)
    shown = []
    for group in chosen.values():
        for example in group[:each]:
            audio = base64.b64encode(_flac(example["audio"], example["audio_start"], example["duration"])).decode("ascii")
            shown.append({**example, "source": f"data:audio/flac;base64,{audio}"})
    return shown


def _flac(path: str, start: float, duration: float) -> bytes:
    """A stretch of an audio file, in seconds, as a file of its own."""
    import soundfile

    rate = soundfile.info(path).samplerate
    samples, _ = soundfile.read(path, round(duration * rate), round(start * rate), dtype="int16")
    made = io.BytesIO()
    soundfile.write(made, samples, rate, format="FLAC", subtype="PCM_16")
    return made.getvalue()


def _by(rows: Rows, *names: str) -> list[tuple[tuple[str, ...], list[dict[str, str]]]]:
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return list(groups.items())


def render(
    tables: dict[str, Path],
    figures: Sequence[Path],
    hyps: Sequence[Path],
    quality: Sequence[Path],
    provenance: Sequence[Path],
    config: Path,
    errors: Sequence[Path],
    hallucinations: Path,
    browse: Sequence[Path],
    out: Path,
) -> str:
    """The page as text. tables: main, breakdown, cka, timeline; entropy, and ablation with cost, where they are measured.

    Links are relative to ``out``, the file that it will be.
    """
    import yaml
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    everything, cka, timeline = (read_table(tables[name]) for name in ("main", "cka", "timeline"))
    main = [row for row in everything if row["kind"] == "measured"]
    shifted = shifts(read_table(tables["entropy"])) if "entropy" in tables else []
    resolved = config.read_text(encoding="utf-8")
    browser = browsable(browse, LANGUAGE_TAGS)
    splits = [{"name": path.name.removesuffix(".quality.json"), **read_json(path)} for path in quality]
    seeds = sorted({int(row["seed"]) for row in main if row["seed"]})
    artifacts = {
        "Tables": list(tables.values()),
        "Figures": list(figures),
        "Hypotheses": list(dict.fromkeys([*hyps, *browse])),
        "Hallucinations, examples of each system and condition": [hallucinations],
        "Error reports, every utterance aligned": list(errors),
        "Data quality": list(quality),
        "Provenance of each job": list(provenance),
        "Config with all defaults": [config],
    }
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(TEMPLATE.name).render(
        name=yaml.safe_load(resolved).get("name", "run"),
        seeds=seeds,
        systems=headline([row for row in main if row["arm"] not in SHARED]),
        domains=by_domain(read_table(tables["breakdown"])),
        published=[row for row in everything if row["kind"] == "published"],
        encoder=headline([row for row in main if row["arm"] in SHARED]),
        training_speech=" and ".join(f"{kind} speech" for kind in sorted({split["corpus_kind"] for split in splits})),
        figures=[figure(path) for path in figures],
        swaps=swaps(cka, timeline),
        decided=who_decided(cka),
        threshold=next((row["threshold"] for row in cka), ""),
        shifted=shifted,
        expectations=expectation(shifted),
        arms=arms_compared(read_table(tables["ablation"]), read_table(tables["cost"])) if "ablation" in tables else None,
        overlaps=[overlap_sentence(timeline, seed) for seed in seeds],
        transcripts=transcripts(hyps),
        browser=browser,
        browser_data=as_script_data(browser),
        hallucinations=playable(list(read_jsonl(hallucinations))),
        speech={row["test_set"]: f"{row['corpus_kind']} speech" for row in main},
        splits=splits,
        origin=origin(provenance, timeline),
        timeline=timeline,
        config=resolved,
        artifacts={
            title: [(path.as_posix(), Path(os.path.relpath(path, out.parent)).as_posix()) for path in paths]
            for title, paths in artifacts.items()
            if paths
        },
    )


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@friendly_exit()
def main(
    main: Path = typer.Option(..., help="main.csv"),
    breakdown: Path = typer.Option(..., help="breakdown.csv"),
    cka: Path = typer.Option(..., help="cka.csv"),
    timeline: Path = typer.Option(..., help="timeline.csv"),
    figures: list[Path] = typer.Option(..., help="SVG figure, in the order of the page; repeat"),
    hyps: list[Path] = typer.Option(..., help="hypotheses of one arm and seed, a file a test set; repeat"),
    quality: list[Path] = typer.Option(..., help="<split>.quality.json; repeat"),
    provenance: list[Path] = typer.Option(..., help="provenance.json of every training job; repeat"),
    config: Path = typer.Option(..., help="the whole config, defaults included, YAML"),
    errors: list[Path] = typer.Option([], help="error report to link to; repeat"),
    hallucinations: Path = typer.Option(..., help="examples of hallucinations, JSONL"),
    browse: list[Path] = typer.Option(..., help="hypotheses of one seed of every system, for the error browser; repeat"),
    entropy: Path | None = typer.Option(None, help="entropy.csv"),
    ablation: Path | None = typer.Option(None, help="ablation.csv"),
    cost: Path | None = typer.Option(None, help="cost.csv"),
    out: Path = typer.Option(..., help="HTML file to write"),
) -> None:
    """Write the report."""
    given = {"main": main, "breakdown": breakdown, "cka": cka, "timeline": timeline}
    given |= {"entropy": entropy, "ablation": ablation, "cost": cost}
    tables = {name: path for name, path in given.items() if path is not None}
    atomic_write(out, render(tables, figures, hyps, quality, provenance, config, errors, hallucinations, browse, out))


if __name__ == "__main__":
    app()
