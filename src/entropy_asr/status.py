"""Where a run stands: its stages, their Slurm jobs, how far each is and when it will be done, and why one failed.

    entropy-asr status                  # in the working directory of the run
    entropy-asr status runs/smoke

Everything is read from files and from `squeue`; nothing is changed, no coordinator has to be alive, and without Slurm the files
alone are shown: each job notes its process (`entropy_asr.records`), and its own host knows whether that lives.  Slurm forgets
ended jobs after a while (MinJobAge, often 5 minutes): an older failure is seen by a running state that no job goes on with.
"""

import itertools
import json
import re
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from entropy_asr.cluster import ENDED_BADLY, Job, slurm_jobs
from entropy_asr.errors import InputError
from entropy_asr.records import Begun, read_begun

STALE_SECONDS = 900  # without a new log line, where neither Slurm nor the host says whether a stage runs


@dataclass(frozen=True)
class Kind:
    """Where a stage keeps what; in braces the rule's wildcards."""

    job: str
    artifact: str
    state: str
    log: str


KINDS = [
    Kind("rule_lm", "text/lm", "state/lm", "logs/lm.log"),
    Kind("rule_small_lm", "text/small_lm", "state/small_lm", "logs/small_lm.log"),
    Kind(
        "rule_pretrain_part_wildcards_{name}_{seed}_{number}",
        "encoders/{name}/seed-{seed}/part-{number}",
        "state/encoders/{name}/seed-{seed}/part-{number}",
        "logs/pretrain/{name}/seed-{seed}/part-{number}.log",
    ),
    Kind(
        "rule_align_wildcards_{name}_{seed}",
        "systems/{name}/seed-{seed}/align",
        "state/systems/{name}/seed-{seed}/align",
        "logs/align/{name}/seed-{seed}.log",
    ),
    Kind(
        "rule_ia_sft_iteration_wildcards_{name}_{seed}_{number}",
        "systems/{name}/seed-{seed}/ia_sft/iter-{number}",
        "state/systems/{name}/seed-{seed}/ia_sft/iter-{number}",
        "logs/ia_sft/{name}/seed-{seed}/iter-{number}.log",
    ),
    Kind(
        "rule_joint_sft_wildcards_{name}_{seed}",
        "systems/{name}/seed-{seed}/joint_sft",
        "state/systems/{name}/seed-{seed}/joint_sft",
        "logs/joint_sft/{name}/seed-{seed}.log",
    ),
]
WILDCARDS = {"name": r"(?P<name>[^/]+)", "seed": r"(?P<seed>\d+)", "number": r"(?P<number>\d+)"}


@dataclass
class Row:
    """One stage, or one small step that is in the queue or has failed."""

    name: str
    state: str
    job: Job | None = None
    step: int | None = None
    steps: int | None = None
    seconds_left: float | None = None
    log: Path | None = None

    @property
    def failed(self) -> bool:
        return self.state in ("failed", "stopped")


def run_status(folder: Path) -> list[Row]:
    """All stages that have begun, in the order of the recipe, then other steps that wait, run or have failed."""
    try:
        latest = {job.step: job for job in slurm_jobs(folder, ended=True)}  # of several attempts the last
    except InputError as error:
        print(f"{error}; what follows is from files alone", file=sys.stderr)
        latest = {}
    results, rows = folder / "results", []
    marks = {str(Path(job.outputs[0]).parent): job for job in read_begun(results)}
    for kind in KINDS:
        rows += [_stage(kind, values, results, latest, marks) for values in _begun(kind, results, latest)]
    for comment, job in latest.items():
        if job.state != "COMPLETED":
            log = next(iter(folder.glob(f".snakemake/slurm_logs/**/{job.id}.log")), None)
            rows.append(Row(comment.removeprefix("rule_"), _job_state(job), job, log=log))
    return rows


def _begun(kind: Kind, results: Path, jobs: dict[str, Job]) -> list[dict[str, str]]:
    """The wildcards of each of a kind that has an artifact, a running state or a job."""
    found = [_match(kind.job, comment) for comment in jobs]
    for template, mark in ((kind.artifact, "provenance.json"), (kind.state, "fingerprint")):
        paths = results.glob(re.sub(r"\{\w+\}", "*", template) + f"/{mark}")
        found += [_match(template, str(path.parent.relative_to(results))) for path in paths]
    return sorted(({tuple(values.items()): values for values in found if values is not None}).values(), key=_order)


def _match(template: str, text: str) -> dict[str, str] | None:
    pattern = re.sub(r"\{(\w+)\}", lambda name: WILDCARDS[name[1]], template)
    match = re.fullmatch(pattern, text)
    return match.groupdict() if match else None


def _order(values: dict[str, str]) -> tuple[str, int, int]:
    return values.get("name", ""), int(values.get("seed", 0)), int(values.get("number", 0))


def _stage(kind: Kind, values: dict[str, str], results: Path, jobs: dict[str, Job], marks: dict[str, Begun]) -> Row:
    name = kind.artifact.format(**values)
    job = jobs.pop(kind.job.format(**values), None)
    row = Row(name, "done", job, log=results / kind.log.format(**values))
    live = job is not None and job.state not in (*ENDED_BADLY, "COMPLETED")
    mark = marks.get(f"results/{name}")
    live = live or bool(mark and mark.alive)
    if (results / name / "provenance.json").exists() and not live:
        return row
    _progress(row, results / kind.state.format(**values) / "train.jsonl")
    if job is not None:
        row.state = _job_state(job)
    if row.state in ("done", "completed"):  # ended, and the artifact is not there
        runs = mark.alive if mark else False
        if runs is None:
            runs = not _stale(results / kind.state.format(**values))
        row.state = "stopped" if job or not runs else "running"
    if row.state != "running":
        row.seconds_left = None
    return row


def _job_state(job: Job) -> str:
    return "failed" if job.state in ENDED_BADLY else job.state.lower()


def _stale(state: Path) -> bool:
    newest = max((path.stat().st_mtime for path in state.glob("*")), default=0.0)
    return time.time() - newest > STALE_SECONDS


def _progress(row: Row, curve: Path) -> None:
    """Step, number of steps and time left, from the log of the running state."""
    lines = [json.loads(line) for line in curve.read_text().splitlines() if line.endswith("}")] if curve.exists() else []
    if not lines:
        return
    row.step, row.steps = lines[-1]["step"], lines[-1]["last_step"]
    pairs = itertools.pairwise(lines[-10:])
    paces = [(b["time"] - a["time"]) / (b["step"] - a["step"]) for a, b in pairs if b["step"] > a["step"]]
    if paces:  # the median: a pause between two attempts is no training time
        row.seconds_left = statistics.median(paces) * (row.steps - row.step)


def failed_jobs(results: Path, command: str) -> list[str]:
    """What to say when a run ends with a failure: each job that did not end, its log, and the command that goes on."""
    failed = [job for job in read_begun(results) if not job.alive]
    lines = []
    for job in failed:
        lines.append(f"failed: {job.rule}, {job.outputs[0]}. Its log is {job.log}:")
        lines += [f"  {line}" for line in last_lines(job.log, 5)]
    if failed:
        lines.append(f"To go on from where it stopped: {command}")
    return lines


def last_lines(path: Path, count: int = 8) -> list[str]:
    """The end of a log, without the warnings of libraries."""
    if not path.exists():
        return [f"{path} does not exist"]
    lines = [line.rstrip() for line in path.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()]
    told = [line for line in lines if line and "Warning:" not in line and not line.startswith("  warnings.warn")]
    return told[-count:]


def show(rows: list[Row]) -> None:
    """Print the table, and the last lines of the log of each that failed or stopped."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("stage", "state", "Slurm job", "on", "time / limit", "step", "left", title="stages")
    for row in rows:
        table.add_row(row.name, row.state + _reason(row), *_job_words(row.job), _step(row), _left(row.seconds_left))
    console.print(table)
    for row in rows:
        if row.failed and row.log:
            console.print(f"\n{row.name}: {row.state}. Last lines of {row.log}:", markup=False, soft_wrap=True)
            for line in last_lines(row.log):
                console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    if any(row.failed for row in rows):
        console.print("\nThe same snakemake command goes on with these; docs/cluster.md has each case.", soft_wrap=True)


def _reason(row: Row) -> str:
    if row.job is None:
        return ""
    if row.job.state == "PREEMPTED":
        return " (the coordinator puts it back in the queue)"
    return f" ({row.job.reason})" if row.state == "pending" else f" ({row.job.state.lower()})" if row.state == "failed" else ""


def _job_words(job: Job | None) -> tuple[str, str, str]:
    if job is None:
        return "", "", ""
    gpus = job.gres.removeprefix("gres:") if job.gres != "N/A" else ""
    return job.id, f"{job.nodes} {gpus}".strip(), f"{job.elapsed} / {job.limit}"


def _step(row: Row) -> str:
    return f"{row.step:,} / {row.steps:,}" if row.step is not None and row.steps is not None else ""


def _left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    days, rest = divmod(int(seconds), 86400)
    return (f"{days} d " if days else "") + time.strftime("%H:%M:%S", time.gmtime(rest))
