"""What training jobs did, from their provenance, logs and CKA traces: tidy tables, a row a job, a log line or a measurement.

    python -m entropy_asr.reporting.jobs timeline --provenance results/systems/ours/seed-1/joint_sft/provenance.json … \
        --out results/tables/timeline.csv
    python -m entropy_asr.reporting.jobs cost --provenance … --out results/tables/cost.csv
    python -m entropy_asr.reporting.jobs curves --curves …/train.jsonl … --out results/tables/curves.csv
    python -m entropy_asr.reporting.jobs cka --parts …/part-0/part.json … --config …/pretrain.json --out …/cka.csv

Which arm, seed and stage a file belongs to is read from its path, the one place where it is written for certain: a stage
knows its seed only as the number that its random generators got.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from entropy_asr.config import ENCODERS, LM_FOLDERS
from entropy_asr.errors import InputError, friendly_exit
from entropy_asr.files import read_json, read_jsonl, write_table

ENCODER, LM = "encoder", "lm"  # what stands in the column `arm` for jobs that no arm owns; of other kinds, see ENCODERS
SHARED = (*LM_FOLDERS.values(), *ENCODERS.values())
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
    "pronunciation_ctc": "pronunciation_ctc_nats_per_unit",
    "consistency": "consistency_nats_per_frame",
    "time": "unix_time_seconds",
}

_STAGES = ("lm", "pretrain", "align", "ia_sft", "joint_sft")
_ENCODER_PATH = re.compile(rf"encoders/({'|'.join(ENCODERS)})/seed-(\d+)/part-(\d+)/[^/]+$")
_SYSTEM_PATH = re.compile(r"systems/([^/]+)/seed-(\d+)/(align|joint_sft|ia_sft/iter-(\d+))/[^/]+$")
_LM_PATH = re.compile(rf"text/({'|'.join(LM_FOLDERS.values())})/[^/]+$")


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
    different units, so the unit is a column; of alignment's loss with CTC it is the transcript's part. `valid_loss` is in the
    same unit, where it was measured.
    """
    rows = []
    for path in sorted(curves, key=lambda path: _job_order(Job.of(path))):
        job = Job.of(path)
        ctc = job.stage == "pretrain" and job.arm != ENCODERS["attention"]
        unit = "nats/frame" if ctc else "nats/unit" if job.stage == "pretrain" else "nats/token"
        for line in read_jsonl(path):
            numbers = {CURVE_UNITS.get(name, name): value for name, value in line.items()}
            numbers["loss"] = line.get("transcript_loss", line["loss"])
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


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help=__doc__)


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
