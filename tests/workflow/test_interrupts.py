"""Ctrl-C and kill while a stage trains (`make test-faults`): it saves, the next call knows that it did not end, and goes on.

A finished system is trained again with `-R joint_sft --until joint_sft`, and stopped in each way that a person has.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from repository import ENVIRONMENT, REPO, wait_for

pytestmark = pytest.mark.faults
SYSTEM = "results/systems/no_ia_sft/seed-1/joint_sft"
TARGET = "results/decode/no_ia_sft/seed-1/english.jsonl"
STATE = "results/state/systems/no_ia_sft/seed-1/joint_sft"
STEPS = 600


@pytest.fixture(scope="module", params=[0, 2], ids=["no workers", "two workers"])
def run(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A finished arm, then a config in which joint SFT takes so long that it can be stopped on the way."""
    folder = REPO / "runs" / "test-interrupts"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = yaml.safe_load((REPO / "config/smoke.yaml").read_text())
    config |= {"arms": ["no_ia_sft"]}
    config["cka"]["max_parts"] = 1
    config["engine"] |= {"workers": request.param, "save_every": 100_000, "log_every": 1}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    done = call(folder, TARGET)
    assert done.returncode == 0, done.stdout
    config["joint_sft"] |= {"steps": STEPS}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    yield folder
    shutil.rmtree(folder)


def words(folder: Path, *more: str) -> list[str]:
    command = ["snakemake", "--snakefile", str(REPO / "Snakefile"), "--directory", str(folder), "--cores", "2"]
    return [*command, *more, "--configfile", str(folder / "config.yaml")]


def call(folder: Path, *more: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        words(folder, *more), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def steps_done(folder: Path) -> int:
    path = folder / STATE / "train.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return len(lines)


def trainers(folder: Path) -> list[psutil.Process]:
    """The processes of the stage, its loading processes included."""
    found = []
    for process in psutil.process_iter():
        try:
            if "entropy_asr.stages.joint_sft" in process.cmdline() and process.cwd() == str(folder):
                found.append(process)
        except psutil.Error:
            continue
    return found


def ctrl_c(process: subprocess.Popen) -> None:
    """As a terminal does: to all processes of the job."""
    os.killpg(process.pid, signal.SIGINT)


def interrupt_twice(process: subprocess.Popen) -> None:
    """To snakemake alone, as `kill -INT` does."""
    process.send_signal(signal.SIGINT)
    time.sleep(2)
    process.send_signal(signal.SIGINT)


def kill(process: subprocess.Popen) -> None:
    process.kill()


@pytest.mark.parametrize("stop", [ctrl_c, interrupt_twice, kill])
def test_a_stopped_stage_goes_on_where_it_was(stop: Callable[[subprocess.Popen], None], run: Path) -> None:
    before = steps_done(run)
    again = ["-R", "joint_sft", "--until", "joint_sft"] if not (run / STATE).exists() else []
    with (run / "log").open("w") as log:
        process = subprocess.Popen(words(run, TARGET, *again), env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)
        wait_for(lambda: steps_done(run) > before + 10, 180, "training")
        stop(process)
        process.wait(120)
    wait_for(lambda: not trainers(run), 60, "the stage ends")
    saved = max((int(path.stem.removeprefix("state-")) for path in (run / STATE).glob("state-*.safetensors")), default=0)
    assert before + 10 < saved < STEPS, (run / "log").read_text()[-3000:]
    shown = [sys.executable, "-m", "entropy_asr.cli", "status", str(run)]
    status = subprocess.run(shown, env=ENVIRONMENT | {"COLUMNS": "200"}, capture_output=True, text=True, check=True)
    assert re.search(r"systems/no_ia_sft/seed-1/joint_sft.*stopped", status.stdout), status.stdout
    if stop is not kill:  # nobody is left to say it
        said = (run / "log").read_text()
        assert "Traceback" not in said
        assert f"failed: joint_sft, {SYSTEM}/model.safetensors. Its log is results/logs/joint_sft/no_ia_sft/seed-1.log" in said
        assert "To go on from where it stopped: snakemake" in said
    else:
        assert call(run, "--unlock").returncode == 0
    plan = call(run, TARGET, "-n").stdout
    assert "rule joint_sft:" in plan and "rule decode:" in plan and "rule align:" not in plan


def test_then_it_is_finished_and_nothing_is_left_to_do(run: Path) -> None:
    done = call(run, TARGET)
    assert done.returncode == 0, done.stdout
    assert "resumed at step" in (run / "results/logs/joint_sft/no_ia_sft/seed-1.log").read_text()
    lines = [json.loads(line) for line in (run / SYSTEM / "train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, lines[-1]["last_step"] + 1)) and not (run / STATE).exists()
    assert "Nothing to be done" in call(run, TARGET, "-n").stdout
