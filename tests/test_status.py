"""`entropy-asr status` on files as stages leave them; with Slurm's jobs it is tested in tests/slurm."""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from entropy_asr import status
from entropy_asr.cluster import Job
from entropy_asr.status import KINDS, failed_jobs, last_lines, run_status, show

PART, LOG = "results/encoders/phoneme/seed-1/part-1", "results/logs/pretrain/phoneme/seed-1/part-1.log"
ENCODER = f"{PART}/encoder.safetensors"
MARK = f"{PART}/.encoder.safetensors.begun"
STATE = "results/state/encoders/phoneme/seed-1/part-1"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A finished part, and one that has made half of its way at two seconds a step."""
    monkeypatch.setattr(status, "slurm_jobs", lambda folder, ended: jobs)
    jobs: list[Job] = []
    for path, text in {
        "results/encoders/phoneme/seed-1/part-0/provenance.json": "{}",
        f"{STATE}/fingerprint": "key",
        f"{STATE}/train.jsonl": "".join(
            json.dumps({"step": step, "last_step": 100, "time": 1000.0 + 2 * step}) + "\n" for step in (48, 49, 50)
        ),
        "results/logs/pretrain/phoneme/seed-1/part-1.log": "step 50\n  warnings.warn(\nRuntimeError: broken\n",
        MARK: "\n".join(["another-host", "17", "/elsewhere", "pretrain_part", LOG, ENCODER, "--", "config.json", ""]),
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    return tmp_path


def test_a_stage_that_runs_says_how_far_it_is(run: Path) -> None:
    first, second = run_status(run)
    assert (first.name, first.state) == ("encoders/phoneme/seed-1/part-0", "done")
    assert (second.name, second.state, second.step, second.steps) == ("encoders/phoneme/seed-1/part-1", "running", 50, 100)
    assert second.seconds_left == pytest.approx(100.0)


def test_a_stage_that_nobody_goes_on_with_has_stopped(run: Path, capsys: pytest.CaptureFixture) -> None:
    for path in (run / STATE).iterdir():
        os.utime(path, (time.time() - 2000,) * 2)
    rows = run_status(run)
    assert [row.state for row in rows] == ["done", "stopped"]
    show(rows)
    printed = capsys.readouterr().out
    assert "RuntimeError: broken" in printed and "warnings.warn" not in printed and "docs/cluster.md" in printed


def test_a_stage_whose_process_died_on_this_host_has_stopped_at_once(run: Path) -> None:
    """Without Slurm, as after `kill -9`: the log is fresh, but the process is gone."""
    words = (run / MARK).read_text().splitlines()
    with subprocess.Popen(["bash", "-c", "sleep 60; :", words[5]], cwd=run) as process:  # as the shell of a job names its output
        (run / MARK).write_text("\n".join([os.uname().nodename, str(process.pid), "/elsewhere", *words[3:], ""]))
        assert run_status(run)[1].state == "stopped", "the process of a copy of this folder"
        (run / MARK).write_text("\n".join([os.uname().nodename, str(process.pid), str(run), *words[3:], ""]))
        assert run_status(run)[1].state == "running"
        process.kill()
    row = run_status(run)[1]
    assert (row.state, row.seconds_left) == ("stopped", None)


def test_a_failed_run_names_the_stage_its_log_and_how_to_go_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    first, *log, last = failed_jobs(Path("results"), "snakemake --cores 2 all")
    assert "pretrain_part" in first and f"{PART}/encoder.safetensors" in first and LOG in first
    assert "RuntimeError: broken" in "".join(log)
    assert last == "To go on from where it stopped: snakemake --cores 2 all"


@pytest.mark.parametrize(
    ("slurm", "expected"), [("RUNNING", "running"), ("PENDING", "pending"), ("TIMEOUT", "failed"), ("COMPLETED", "stopped")]
)
def test_slurm_knows_better(slurm: str, expected: str, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = "rule_pretrain_part_wildcards_phoneme_1_1"
    job = Job("17", slurm, step, "Resources", "1:00", "2:00", "n1", "gres:gpu:a100:8")
    monkeypatch.setattr(status, "slurm_jobs", lambda folder, ended: [job])
    row = run_status(run)[1]
    assert (row.state, row.job) == (expected, job)
    assert (row.seconds_left is not None) == (expected == "running")


def test_a_small_step_that_failed_is_shown_with_its_log(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("9", "OUT_OF_MEMORY", "rule_feature_stats", "None", "1:00", "2:00", "n1", "N/A")
    monkeypatch.setattr(status, "slurm_jobs", lambda folder, ended: [job])
    log = run / ".snakemake/slurm_logs/rule_feature_stats/9.log"
    log.parent.mkdir(parents=True)
    log.write_text("killed\n")
    row = run_status(run)[-1]
    assert (row.name, row.failed, last_lines(row.log)) == ("feature_stats", True, ["killed"])


def test_the_places_are_those_of_the_rules() -> None:
    rules = "".join(path.read_text() for path in (Path(__file__).resolve().parent.parent / "workflow/rules").glob("*.smk"))
    rules = (
        rules.replace("{objective}", "{name}")
        .replace("{arm}", "{name}")
        .replace("{part}", "{number}")
        .replace("{iteration}", "{number}")
    )
    for kind in KINDS:
        assert f'running="results/{kind.state}"' in rules and f'"results/{kind.log}"' in rules
