"""From scores, provenance, training logs and CKA traces to tidy tables: what every figure and the report are made of.

    python -m entropy_asr.reporting.tables main --scores results/metrics/score/ours/seed-1/english.json … \
        --significance results/tables/significance.csv \
        --provenance results/systems/ours/seed-1/joint_sft/provenance.json … --synthetic english --out …/main.csv
    python -m entropy_asr.reporting.tables render --main …/main.csv --markdown …/main.md --latex …/main.tex
    python -m entropy_asr.reporting.tables timeline --provenance … --out results/tables/timeline.csv
    python -m entropy_asr.reporting.tables cost --provenance … --out results/tables/cost.csv
    python -m entropy_asr.reporting.tables curves --curves …/train.jsonl … --out results/tables/curves.csv
    python -m entropy_asr.reporting.tables cka --parts …/part-0/part.json … --config …/pretrain.json --out …/cka.csv

Which system, seed and stage a file belongs to is read from its path, the one place where it is written for certain: a
stage knows its seed only as the number that its random generators got.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import typer

from entropy_asr.config import ENCODERS, LM_FOLDERS
from entropy_asr.errors import InputError, friendly_exit
from entropy_asr.files import atomic_write, read_json, read_jsonl

ENCODER, LM = "encoder", "lm"  # what stands in the column `arm` for jobs that no arm owns; of other kinds, see ENCODERS
SHARED = (*LM_FOLDERS.values(), *ENCODERS.values())
LANGUAGES = {"WER": "en", "CER": "zh", "MER": "mixed", "PER": "phonemes"}
MAIN_COLUMNS = (
    "arm",
    "seed",
    "test_set",
    "language",
    "metric",
    "value_percent",
    "low_percent",
    "high_percent",
    "p_against_ours",
    "substitutions",
    "deletions",
    "insertions",
    "reference_tokens",
    "utterances",
    "parameters_encoder",
    "parameters_adaptor",
    "parameters_llm",
    "rtf",
    "decoding",
    "audio_hours_encoder",
    "audio_hours_llm_side",
    "llm_side_steps",
    "corpus_kind",
    "kind",
    "normalizer_version",
    "source",
)
JOB_COLUMNS = ("job", "arm", "seed", "stage", "index")
TIMELINE_COLUMNS = (
    *JOB_COLUMNS,
    "started",
    "ended",
    "wall_seconds",
    "peak_memory_gib",
    "end_step",
    "audio_hours",
)
COST_COLUMNS = (
    "arm",
    "seed",
    "stage",
    "part",
    "made_for",
    "steps",
    "audio_hours",
    "model_flops",
    "wall_seconds",
    "cpu_seconds",
    "processes",
    "peak_memory_gib",
    "peak_gpu_memory_gib",
)
CKA_COLUMNS = ("encoder", "seed", "part", "step", "cka", "swapped", "threshold", "warmup_steps")
# Names in train.jsonl, and what they are called where the unit has to be seen.
CURVE_UNITS = {
    "ctc": "ctc_nats_per_frame",
    "consistency": "consistency_nats_per_frame",
    "time": "unix_time_seconds",
}

_STAGES = ("lm", "pretrain", "align", "ia_sft", "joint_sft")
_ENCODER_PATH = re.compile(rf"encoders/({'|'.join(ENCODERS)})/seed-(\d+)/part-(\d+)/[^/]+$")
_SYSTEM_PATH = re.compile(r"systems/([^/]+)/seed-(\d+)/(align|joint_sft|ia_sft/iter-(\d+))/[^/]+$")
_LM_PATH = re.compile(rf"text/({'|'.join(LM_FOLDERS.values())})/[^/]+$")
_PEER_PATH = re.compile(r"score/peers/([^/]+)/([^/]+)\.json$")
_SCORE_PATH = re.compile(r"score/([^/]+)/seed-(\d+)/([^/]+)\.json$")


@dataclass(frozen=True)
class Job:
    """One training job.

    Attributes:
        arm: an arm; or a kind of pretraining, shared by arms of a seed, as ENCODERS calls it; or ``lm`` or ``small_lm``, shared
            by all seeds (seed None).
        stage: pretrain, lm, align, ia_sft or joint_sft.
        index: pretraining part or IA-SFT iteration, else 0.
    """

    arm: str
    seed: int | None
    stage: str
    index: int = 0

    @classmethod
    def of(cls, path: Path) -> Job:
        """The job that a file belongs to. Raises :class:`InputError` where the path is none of a training job."""
        text = path.as_posix()
        if found := _ENCODER_PATH.search(text):
            return cls(ENCODERS[found[1]], int(found[2]), "pretrain", int(found[3]))
        if found := _SYSTEM_PATH.search(text):
            return cls(found[1], int(found[2]), found[3].split("/")[0], int(found[4] or 0))
        if found := _LM_PATH.search(text):
            return cls(found[1], None, "lm")
        raise InputError(
            f"{path}: not the file of a training job; expected encoders/<objective>/seed-<s>/part-<i>/…, "
            "systems/<arm>/seed-<s>/{align,ia_sft/iter-<i>,joint_sft}/… or text/{lm,small_lm}/…"
        )

    @property
    def name(self) -> str:
        """As people call it."""
        if self.stage == "pretrain":
            kind = self.arm.removeprefix(ENCODER).removeprefix("_")
            return f"{kind} pretraining part {self.index}".strip()
        if self.stage == "lm":
            return "language model" if self.arm == LM else "small language model"
        stage = {"align": "alignment", "ia_sft": f"IA-SFT iteration {self.index}", "joint_sft": "joint SFT"}[self.stage]
        return f"{self.arm}: {stage}"

    def columns(self) -> dict[str, Any]:
        """The columns that say which job a row is about."""
        return {"job": self.name, "arm": self.arm, "seed": self.seed, "stage": self.stage, "index": self.index}


def write_table(path: Path, rows: Iterable[dict[str, Any]], columns: Sequence[str]) -> None:
    """Write tidy CSV; None is an empty cell, truth is ``true`` or ``false``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: str(v).lower() if isinstance(v, bool) else v for name, v in row.items()})
    atomic_write(path, text.getvalue())


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV table, all cells text. Raises :class:`InputError` where it is missing or has no column."""
    if not path.is_file():
        raise InputError(f"{path}: no such table; snakemake {path} makes it")
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if not reader.fieldnames:
            raise InputError(f"{path}: empty; expected a CSV table with a header")
        return list(reader)


def main_rows(
    scores: Sequence[Path], provenance: Sequence[Path], synthetic: Sequence[str], significance: Sequence[dict[str, str]]
) -> list[dict[str, Any]]:
    """One row a score, with its interval, its difference to `ours` (corrected p of the paired bootstrap) and its cost.

    Raises:
        InputError: a score has no training behind it, or scores of text were made with different normalisers.
    """
    p_values = {(row["test_set"], row["against"]): row["p_bootstrap_holm"] for row in significance}
    _check_normalisers({path: read_json(path)["normalizer_version"] for path in scores})
    jobs = {Job.of(path): read_json(path) for path in provenance}
    rows = []
    for path in scores:
        arm, seed, test_set = _owner(path)
        score = read_json(path)
        row = {
            "arm": arm,
            "seed": seed,
            "test_set": test_set,
            "language": LANGUAGES[score["metric"]],
            "metric": score["metric"],
            **{f"{name}_percent": round(100 * score[name], 4) for name in ("value", "low", "high")},
            "p_against_ours": p_values.get((test_set, arm)),
            "rtf": None if score["rtf"] is None else round(score["rtf"], 5),
            "decoding": score["decoding"],
            "corpus_kind": "synthetic" if test_set in synthetic else "recorded",
            "kind": "measured",
        }
        same = ("substitutions", "deletions", "insertions", "reference_tokens", "utterances", "normalizer_version")
        cost = {} if seed is None else _cost(jobs, arm, seed, path)
        rows.append({**row, **{name: score[name] for name in same}, **cost})
    return sorted(rows, key=lambda row: (row["arm"] in SHARED, row["test_set"], row["seed"] is None, row["arm"], row["seed"]))


def published_rows(path: Path) -> list[dict[str, Any]]:
    """Others' figures as their papers print them: not measured here, often on other audio, with another normaliser."""
    return [
        {
            "arm": row["system"],
            "test_set": " ".join(filter(None, (row["test_set"], row["split"]))),
            **{name: row[name] for name in ("language", "metric", "value_percent")},
            "kind": "published",
            "source": "; ".join(filter(None, (row["source"], row["note"]))),
        }
        for row in read_table(path)
    ]


def _owner(score: Path) -> tuple[str, int | None, str]:
    """System, seed and test set of a score; a peer was not trained here and has no seed."""
    if found := _PEER_PATH.search(score.as_posix()):
        return found[1], None, found[2]
    found = _SCORE_PATH.search(score.as_posix())
    if found is None:
        raise InputError(f"{score}: expected …/score/<system>/seed-<s>/<test set>.json, or …/score/peers/<peer>/<test set>.json")
    return found[1], int(found[2]), found[3]


def _check_normalisers(versions: dict[Path, str | None]) -> None:
    """Refuse to put scores of different normalisers into one table."""
    of_text = {path: version for path, version in versions.items() if version is not None}
    if len(set(of_text.values())) > 1:
        listed = "; ".join(f"{path}: version {version}" for path, version in of_text.items())
        raise InputError(f"scores of different normalisers do not belong in one table: {listed}; run the rule score again")


def jobs_behind(jobs: dict[Job, dict[str, Any]], arm: str, seed: int) -> list[Job]:
    """The training jobs that an arm's system goes back to: language model, pretraining, stages of another arm, its own.

    What it goes back to is what its joint SFT says that it was given.
    """
    given = {name: Job.of(Path(path)) for name, path in _inputs(jobs[Job(arm, seed, "joint_sft")]).items()}
    before = given.get("previous")
    found = [job for job in jobs if job == given["lm"]]  # a pretrained one is no job
    found += [job for job in jobs if (job.arm, job.seed) == (given["encoder"].arm, seed)]
    found += [job for job in jobs if before and (job.arm, job.seed) == (before.arm, seed) and job.stage in ("align", "ia_sft")]
    return sorted([*found, Job(arm, seed, "joint_sft")], key=lambda job: (_STAGES.index(job.stage), job.index))


def _inputs(facts: dict[str, Any]) -> dict[str, str]:
    return {name: path for name, path in facts["inputs"].items() if name in ("lm", "encoder", "previous")}


def _cost(jobs: dict[Job, dict[str, Any]], arm: str, seed: int, score: Path) -> dict[str, Any]:
    """Parameters, hours and steps behind one score.

    Pretraining's parts are one run and their hours are counted on from part to part: the last part's are the sum. The
    stages of an arm each count from zero and are added, and so are those that it shares with the arm that it goes on from.
    """
    joint = Job(arm, seed, "joint_sft")
    if arm not in SHARED and joint not in jobs:
        raise InputError(f"{score}: no provenance of arm {arm}, seed {seed}; give it with --provenance")
    behind = [job for job in jobs if (job.arm, job.seed) == (arm, seed)] if arm in SHARED else jobs_behind(jobs, arm, seed)
    pretraining = [job for job in behind if job.stage == "pretrain"]
    if not pretraining:
        raise InputError(f"{score}: no provenance of pretraining, seed {seed}; give it with --provenance")
    own = [jobs[job] for job in behind if job.stage in ("align", "ia_sft", "joint_sft")]
    if arm in SHARED:
        same_seed = (facts for job, facts in jobs.items() if job.seed == seed)
        known: dict[str, int] = next((facts["parameters"] for facts in same_seed if "parameters" in facts), {})
        parameters = {"encoder": known.get("encoder")}
    else:
        parameters = jobs[joint].get("parameters", {})
    return {
        **{f"parameters_{name}": parameters.get(name) for name in ("encoder", "adaptor", "llm")},
        "audio_hours_encoder": round(jobs[pretraining[-1]]["audio_hours"], 4),
        "audio_hours_llm_side": round(sum(facts["audio_hours"] for facts in own), 4),
        "llm_side_steps": sum(facts["end_step"] for facts in own),
    }


def cost_rows(provenance: Sequence[Path]) -> list[dict[str, Any]]:
    """What each arm's system took, a row a training job behind it; a job that several arms share has a row in each.

    `made_for` says whose it is: the sum over an arm is what that arm alone would take, the sum over distinct (made_for, seed,
    stage, part) what the run took. Wall and CPU seconds are those of its optimiser steps, over all attempts.
    """
    jobs = {Job.of(path): read_json(path) for path in provenance}
    rows = []
    for arm, seed in sorted({(job.arm, job.seed or 0) for job in jobs if job.stage == "joint_sft"}):
        for job in jobs_behind(jobs, arm, seed):
            facts = jobs[job]
            before = jobs.get(Job(job.arm, job.seed, "pretrain", job.index - 1), {}) if job.stage == "pretrain" else {}
            measured = {column: facts.get(name) for column, name in _COSTS.items()}
            # The parts of pretraining are one run that counts on.
            own = {c: None if v is None else round(v - before.get(_COSTS[c], 0), 4) for c, v in measured.items()}
            memory = {name: facts.get(name) for name in ("peak_memory_gib", "peak_gpu_memory_gib")}
            processes = facts["hardware"]["world_size"]
            row = {"arm": arm, "seed": seed, "stage": job.stage, "part": job.index, "made_for": job.arm}
            rows.append({**row, **own, "processes": processes, **memory})
    return rows


_COSTS = {
    "steps": "end_step",
    "audio_hours": "audio_hours",
    "model_flops": "model_flops",
    "wall_seconds": "training_seconds",
    "cpu_seconds": "training_cpu_seconds",
}


def timeline_rows(provenance: Sequence[Path]) -> list[dict[str, Any]]:
    """One row a training job, in the order in which they started; times are UTC."""
    keys = ("started", "ended", "wall_seconds", "peak_memory_gib", "end_step", "audio_hours")
    rows = []
    for path in provenance:
        facts = read_json(path)
        rows.append({**Job.of(path).columns(), **{key: facts.get(key) for key in keys}})
    return sorted(rows, key=lambda row: (row["started"], row["job"]))


def overlap_minutes(timeline: Sequence[dict[str, Any]], seed: int, arm: str = "ours") -> float | None:
    """Minutes in which IA-SFT iteration 0 and pretraining part 1 of a seed both ran; None where one of them is missing.

    It is what asynchronous means here: the LLM side trains on one encoder while the next is still being made.
    """

    def interval(owner: str, stage: str, index: int) -> tuple[datetime, datetime] | None:
        for row in timeline:
            if (row["arm"], row["stage"], str(row["index"]), str(row["seed"])) == (owner, stage, str(index), str(seed)):
                return parse_time(row["started"]), parse_time(row["ended"])
        return None

    part, iteration = interval(ENCODER, "pretrain", 1), interval(arm, "ia_sft", 0)
    if part is None or iteration is None:
        return None
    seconds = (min(part[1], iteration[1]) - max(part[0], iteration[0])).total_seconds()
    return max(0.0, seconds) / 60


def parse_time(text: str) -> datetime:
    """An ISO time stamp as UTC."""
    return datetime.fromisoformat(text).astimezone(UTC)


def curve_rows(curves: Sequence[Path]) -> tuple[list[dict[str, Any]], list[str]]:
    """All log lines of all jobs, and the columns; what a stage does not log is empty.

    Pretraining's parts go on in one count of steps; every other job counts its own. Losses of different stages are in
    different units, so the unit is a column.
    """
    rows = []
    for path in sorted(curves, key=lambda path: _job_order(Job.of(path))):
        job = Job.of(path)
        ctc = job.stage == "pretrain" and job.arm != ENCODERS["attention"]
        unit = "nats/frame" if ctc else "nats/unit" if job.stage == "pretrain" else "nats/token"
        for line in read_jsonl(path):
            numbers = {CURVE_UNITS.get(name, name): value for name, value in line.items()}
            rows.append({**job.columns(), "loss_unit": unit, **numbers})
    first = [*JOB_COLUMNS, "step", "loss", "loss_unit"]
    return rows, [*first, *dict.fromkeys(name for row in rows for name in row if name not in first)]


def _job_order(job: Job) -> tuple[int, str, int, int, int]:
    shared = job.arm in SHARED
    return job.seed or 0, "" if shared else job.arm, _STAGES.index(job.stage), SHARED.index(job.arm) if shared else 0, job.index


def cka_rows(parts: Sequence[Path], cka_config: dict[str, Any]) -> list[dict[str, Any]]:
    """One row a measurement. ``swapped``: it ended its part, and the encoder was handed over.

    The trace in a part's file goes back to the first part (the parts are one run): each measurement is kept once.
    """
    rows: dict[tuple[str, int, int], dict[str, Any]] = {}
    swaps: dict[tuple[str, int, int], int] = {}
    for path in parts:
        job = Job.of(path)
        assert job.seed is not None  # pretraining always has one
        part = read_json(path)
        for point in part["cka"]:
            key = (job.arm, job.seed, point["step"])
            facts = {name: point[name] for name in ("part", "step", "cka")}
            rows[key] = {"encoder": job.arm, "seed": job.seed, **facts}
            if part["ended_by"] == "cka" and point["part"] == part["part"]:
                ended = (job.arm, job.seed, part["part"])
                swaps[ended] = max(point["step"], swaps.get(ended, 0))
    settings = {name: cka_config.get(name) for name in ("threshold", "warmup_steps")}
    order = sorted(rows, key=lambda key: (SHARED.index(key[0]), *key[1:]))
    return [{**rows[key], "swapped": swaps.get((*key[:2], rows[key]["part"])) == key[2], **settings} for key in order]


def headline_cells(rows: Sequence[dict[str, str]]) -> tuple[list[str], list[list[str]]]:
    """The main table for a paper: a row a system, a column a test set; columns, and cells as text.

    Of one seed the rate with its 95% interval over utterances, of several mean ± standard deviation; a star where the difference
    to `ours` has p < 0.05 (paired bootstrap, Holm). The encoder's phoneme errors have rows of their own.
    """
    tests = list(dict.fromkeys((row["test_set"], row["metric"]) for row in rows))
    systems = list(dict.fromkeys((row["arm"], row["kind"], row["corpus_kind"]) for row in rows))
    cells = []
    for arm, kind, speech in systems:
        line = [arm, f"{kind}, {speech} speech" if speech else kind]
        for test in tests:
            same = [row for row in rows if (row["arm"], row["test_set"], row["metric"]) == (arm, *test)]
            line.append(_cell(same) if same else "–")
        cells.append(line)
    return ["system", "figures", *(f"{test_set} {metric} %" for test_set, metric in tests)], cells


def _cell(same: Sequence[dict[str, str]]) -> str:
    values = [float(row["value_percent"]) for row in same]
    star = "*" if same[0]["p_against_ours"] and float(same[0]["p_against_ours"]) < 0.05 else ""
    if len(values) > 1:
        return f"{fmean(values):.2f} ± {stdev(values):.2f}{star}"
    interval = f" [{float(same[0]['low_percent']):.1f}, {float(same[0]['high_percent']):.1f}]" if same[0]["low_percent"] else ""
    return f"{values[0]:.2f}{star}{interval}"


def as_markdown(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [columns, ["---"] * len(columns), *cells]) + "\n"


def as_latex(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A LaTeX tabular for the package booktabs."""

    def row(line: Sequence[str]) -> str:
        escaped = (re.sub(r"([%_&#$])", r"\\\1", cell).replace("±", r"$\pm$").replace("–", "--") for cell in line)
        return " & ".join(escaped) + r" \\"

    body = [row(columns), r"\midrule", *map(row, cells)]
    return "\n".join([rf"\begin{{tabular}}{{{'l' * len(columns)}}}", r"\toprule", *body, r"\bottomrule", r"\end{tabular}"]) + "\n"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help=__doc__)


@app.command()
@friendly_exit()
def main(
    scores: list[Path] = typer.Option(..., help="…/score/<system>/seed-<s>/<test set>.json; repeat"),
    provenance: list[Path] = typer.Option(..., help="provenance.json of every training job; repeat"),
    significance: Path = typer.Option(..., help="significance.csv"),
    synthetic: list[str] = typer.Option([], help="test set whose speech was made by a machine; repeat"),
    published: Path | None = typer.Option(None, help="CSV of published results"),
    out: Path = typer.Option(..., help="CSV to write"),
) -> None:
    """Error rates with their uncertainty and what each system cost; published ones last."""
    rows = main_rows(scores, provenance, synthetic, read_table(significance))
    write_table(out, rows + (published_rows(published) if published else []), MAIN_COLUMNS)


@app.command()
@friendly_exit()
def render(
    main: Path = typer.Option(..., help="main.csv"),
    markdown: Path = typer.Option(..., help="to write"),
    latex: Path = typer.Option(..., help="to write"),
) -> None:
    """The main table for a page and for a paper."""
    columns, cells = headline_cells(read_table(main))
    atomic_write(markdown, as_markdown(columns, cells))
    atomic_write(latex, as_latex(columns, cells))


@app.command()
@friendly_exit()
def timeline(
    provenance: list[Path] = typer.Option(..., help="provenance.json of every training job; repeat"),
    out: Path = typer.Option(..., help="CSV to write"),
) -> None:
    """When each training job ran, how long, with how much memory."""
    write_table(out, timeline_rows(provenance), TIMELINE_COLUMNS)


@app.command()
@friendly_exit()
def cost(
    provenance: list[Path] = typer.Option(..., help="provenance.json of every training job; repeat"),
    out: Path = typer.Option(..., help="CSV to write"),
) -> None:
    """What each arm took, by training job."""
    write_table(out, cost_rows(provenance), COST_COLUMNS)


@app.command()
@friendly_exit()
def curves(
    curves: list[Path] = typer.Option(..., help="train.jsonl of every training job; repeat"),
    out: Path = typer.Option(..., help="CSV to write"),
) -> None:
    """Every log line of every training job."""
    rows, columns = curve_rows(curves)
    write_table(out, rows, columns)


@app.command()
@friendly_exit()
def cka(
    parts: list[Path] = typer.Option(..., help="part.json of every pretraining part; repeat"),
    config: Path | None = typer.Option(None, help="pretraining's sections: threshold and warm-up"),
    out: Path = typer.Option(..., help="CSV to write"),
) -> None:
    """The CKA trace and where encoders were swapped."""
    settings = read_json(config)["cka"] if config else {}
    write_table(out, cka_rows(parts, settings), CKA_COLUMNS)


if __name__ == "__main__":
    app()
