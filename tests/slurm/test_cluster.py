"""The workflow on a real Slurm (`make test-slurm`): every stage a job of its own, and faults that cost at most one save interval.

Two coordinators share the cluster.  One runs the smoke experiment to main.csv and is left alone.  The other pretrains for longer,
and its job is cancelled, reaches its time limit, loses its node and its coordinator; what comes out must be, bit by bit, what
comes out undisturbed.  What jobs asked for, where and when they ran is read from Slurm's own records.
"""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from repository import ENVIRONMENT, REPO, wait_for

from entropy_asr.cluster import slurm_jobs
from entropy_asr.config_files import load_config
from entropy_asr.files import sha256

sys.path.insert(0, str(Path(__file__).parent))
import cluster as slurm

pytestmark = pytest.mark.slurm
SETTINGS = [REPO / "config/smoke.yaml", REPO / "tests/slurm/resources.yaml"]
LONG = [*SETTINGS, REPO / "tests/slurm/long.yaml"]
STATUS = [sys.executable, "-m", "entropy_asr.cli", "status"]
WIDE = ENVIRONMENT | {"COLUMNS": "200"}
TEXTS = {"folder": "%Z", "id": "%i", "state": "%T", "step": "%k", "nodes": "%D", "gres": "%b", "limit": "%l", "cpus": "%C"}
TEXTS |= {"memory": "%m", "start": "%S", "end": "%e", "hosts": "%N", "partition": "%P"}


def records(folder: Path, step: str = "") -> list[dict[str, str]]:
    """Slurm's records of all jobs that a workflow submitted from a folder, in the order of submission."""
    command = ["squeue", "--states=all", "-h", "-S", "i", "-o", "|".join(TEXTS.values())]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    rows = [dict(zip(TEXTS, line.split("|"), strict=True)) for line in lines]
    return [row for row in rows if row["folder"] == str(folder) and row["step"].startswith(step) and row["step"] != "(null)"]


def coordinator(folder: Path, settings: list[Path], *words: str, site: str = "site.yaml") -> subprocess.Popen:
    """`snakemake --profile slurm`, at the root of the repository, asking after its jobs more often than on a busy cluster."""
    environment = ENVIRONMENT | {"ENTROPY_ASR_SITE": str(REPO / "tests/slurm" / site)}
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(REPO / "tests/slurm/impatient.py")]
    command += ["--profile", "slurm", "--configfile", *map(str, settings)]
    command += [] if folder == Smoke.folder else ["--directory", str(folder)]  # the smoke run's is that of its config's name
    command += ["--slurm-init-seconds-before-status-checks", "1", "--latency-wait", "5", *words]
    with (folder / "coordinator.log").open("a") as log:
        return subprocess.Popen(command, cwd=REPO, env=environment, stdout=log, stderr=log, start_new_session=True)


def running(folder: Path, step: str) -> str:
    """Number of the running job of a step, or nothing."""
    return next((job["id"] for job in records(folder, step) if job["state"] == "RUNNING"), "")


def scontrol(*words: str) -> None:
    subprocess.run(["scontrol", *words], check=True, capture_output=True)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    slurm.start()
    yield
    slurm.stop()


# -- the smoke experiment, left alone ----------------------------------------------------------------------------------


class Smoke:
    """The smoke run in the background.

    Its stages take seconds, and their order in time is luck.  So pretraining part 1 is suspended (by Slurm) until iteration 0 of
    IA-SFT has started: what is asserted is that Slurm then runs both.
    """

    folder = REPO / "runs/test-slurm"

    def __init__(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.process = coordinator(self.folder, SETTINGS, "results/tables/main.csv")
        self.at_once: list[str] = []
        threading.Thread(target=self._hold_part_1, daemon=True).start()

    def _hold_part_1(self) -> None:
        part, iteration = "rule_pretrain_part_wildcards_phoneme_1_1", "rule_ia_sft_iteration_wildcards_ours_1_0"
        job = wait_for(lambda: running(self.folder, part), 400, part)
        scontrol("suspend", str(job))
        wait_for(lambda: running(self.folder, iteration), 400, iteration)
        scontrol("resume", str(job))
        wait_for(lambda: running(self.folder, part), 20, f"{part} resumed")
        self.at_once = [row["step"] for row in records(self.folder) if row["state"] == "RUNNING"]

    def log(self) -> str:
        return (self.folder / "coordinator.log").read_text()


@pytest.fixture(scope="module")
def smoke(cluster: None) -> Iterator[Smoke]:
    run = Smoke()
    yield run
    end(run.process)
    if run.process.returncode == 0:
        shutil.rmtree(run.folder)


def end(process: subprocess.Popen) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


# -- faults: one long stage, disturbed in every way; the tests follow each other ------------------------------------------

PART = "rule_pretrain_part_wildcards_phoneme_1_0"
OUT = "results/encoders/phoneme/seed-1/part-0"


class Disturbed:
    folder = REPO / "runs/test-slurm-faults"
    state = folder / "results/state/encoders/phoneme/seed-1/part-0"

    def __init__(self, smoke: Smoke) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        wait_for((smoke.folder / "results/features/stats.json").exists, 240, "data of the smoke run")
        self.folder.mkdir(parents=True)
        for made in ("audio", "manifests", "features", "text/phonemes"):
            shutil.copytree(smoke.folder / "results" / made, self.folder / "results" / made)
        self.process = self.start()
        self.seen_owner = ""

    def owner(self) -> str:
        """Which process the running state belongs to."""
        path = self.state / "owner"
        return path.read_text() if path.exists() else ""

    def start(self) -> subprocess.Popen:
        return coordinator(self.folder, LONG, f"{OUT}/encoder.safetensors", site="faults.yaml")

    def saved(self) -> int:
        return max((int(path.stem[6:]) for path in self.state.glob("state-*.safetensors")), default=0)

    def next_attempt(self, attempts: int, seconds: float = 150) -> tuple[str, int]:
        """Wait until so many jobs were submitted, and the last has saved something new; its number, and the step saved."""
        wait_for(lambda: len(records(self.folder, PART)) == attempts and running(self.folder, PART), seconds, f"job {attempts}")
        return running(self.folder, PART), self.taken_over()

    def taken_over(self) -> int:
        """Wait until another process owns the running state and has saved something new; the step saved."""
        wait_for(lambda: self.owner() != self.seen_owner, 120, "taken over")
        self.seen_owner, before = self.owner(), self.saved()
        wait_for(lambda: self.saved() > before, 120, f"a state after step {before}")
        return self.saved()

    def stage_log(self) -> str:
        """Of the present attempt."""
        return (self.folder / "results/logs/pretrain/phoneme/seed-1/part-0.log").read_text()

    def job_log(self, job: str) -> str:
        """Of a job that has ended: srun holds back what a running one prints."""
        return "".join(path.read_text() for path in self.folder.glob(f".snakemake/slurm_logs/rule_pretrain_part/*/{job}.log"))


@pytest.fixture(scope="module")
def disturbed(smoke: Smoke) -> Iterator[Disturbed]:
    run = Disturbed(smoke)
    yield run
    end(run.process)
    shutil.rmtree(run.folder)


def test_a_cancelled_job_is_submitted_again_and_resumes(disturbed: Disturbed) -> None:
    job, step = disturbed.next_attempt(1)
    subprocess.run(["scancel", job], check=True)
    disturbed.next_attempt(2)
    assert records(disturbed.folder, PART)[0]["state"] == "CANCELLED"
    assert resumed_at(disturbed.stage_log()) >= step


def resumed_at(log: str) -> int:
    lines = [line for line in log.splitlines() if ": resumed at step " in line]
    assert lines, log[-2000:]
    return int(lines[-1].split(": resumed at step ")[1].split()[0])


def test_a_stage_that_reaches_its_time_limit_saves_and_resumes(disturbed: Disturbed) -> None:
    job = running(disturbed.folder, PART)
    with held(disturbed):
        scontrol("update", f"jobid={job}", "EndTime=now+50")  # the profile has Slurm warn the stage 60 s before the end
        wait_for(lambda: "death signal" in disturbed.stage_log(), 60, "Slurm's warning, seen by torchrun")
    disturbed.next_attempt(3)
    shown = subprocess.run([*STATUS, disturbed.folder], env=WIDE, capture_output=True, text=True, check=True)
    assert re.search(r"part-0 .*running.*\d+ / 360.*\d\d:\d\d:\d\d", shown.stdout), shown.stdout
    before = records(disturbed.folder, PART)[1]
    log = disturbed.job_log(job)
    assert before["state"] == "FAILED", "it ended itself; TIMEOUT would say that Slurm had to kill it"
    assert "asked to stop; saved at step" in log
    saved = int(log.split("asked to stop; saved at step ")[1].split(",")[0])
    assert resumed_at(disturbed.stage_log()) == saved, "nothing is lost"


def test_a_lost_node_is_replaced_and_processes_still_on_it_write_nothing(disturbed: Disturbed) -> None:
    """Its daemon is gone; its ranks hang, as on a network file system, and wake up when others have taken their place."""
    before = record(disturbed, running(disturbed.folder, PART))
    host = before["hosts"]
    with held(disturbed) as lost:
        slurm.lose_node(host)
        wait_for(lambda: started_again(disturbed, before), 120, "started again")
        assert record(disturbed, before["id"])["hosts"] != host
        disturbed.taken_over()
    wait_for(lambda: not lost & ranks(disturbed), 60, "the ranks on the lost node end")
    slurm.daemon("slurmd", "-N", host)
    assert disturbed.owner() == disturbed.seen_owner
    assert len(records(disturbed.folder, PART)) == 3, "the same job, not another one"
    assert disturbed.process.poll() is None


@pytest.mark.parametrize("mode", ["REQUEUE", "CANCEL"])
def test_a_preempted_job_comes_back(mode: str, disturbed: Disturbed) -> None:
    """By Slurm, or where that cancels it (a property of the cluster, the partition or the QOS) by the coordinator."""
    before = record(disturbed, running(disturbed.folder, PART))
    scontrol("update", "partitionname=faults", f"PreemptMode={mode}")
    whole = ["-p", "urgent", "--nodes=2", "--gres=gpu:a100:8", "--output=/dev/null", "--wrap", "sleep 1"]
    with held(disturbed):
        wait_for(lambda: len(slurm.states()) == slurm.NODES and "down*" not in slurm.states(), 30, "the lost node is back")
        subprocess.run(["sbatch", "--parsable", *whole], check=True, cwd=disturbed.folder.parent, capture_output=True)
        wait_for(lambda: started_again(disturbed, before), 120, "started again")
    disturbed.taken_over()
    assert resumed_at(disturbed.stage_log()) > 0
    assert len(records(disturbed.folder, PART)) == 3
    said = f"job {before['id']} was preempted: back in the queue" in (disturbed.folder / "coordinator.log").read_text()
    assert said == (mode == "CANCEL")


def started_again(disturbed: Disturbed, before: dict[str, str]) -> bool:
    """Whether a job that was put back in the queue runs; Slurm would wait two minutes, here it is told not to."""
    now = record(disturbed, before["id"])
    if now["state"] == "PENDING":
        subprocess.run(["scontrol", "update", f"jobid={now['id']}", "StartTime=now"], check=False, capture_output=True)
    return now["state"] == "RUNNING" and now["start"] != before["start"]


@contextmanager
def held(disturbed: Disturbed) -> Iterator[set[int]]:
    """The ranks of the running attempt, stopped for a while: what is tested does not depend on how fast they are."""
    processes = ranks(disturbed)
    assert len(processes) == 2
    signal_all(processes, signal.SIGSTOP)
    yield processes
    signal_all(processes & ranks(disturbed), signal.SIGCONT)


def signal_all(processes: set[int], number: signal.Signals) -> None:
    for process in processes:
        os.kill(process, number)


def record(disturbed: Disturbed, job: str) -> dict[str, str]:
    return next(row for row in records(disturbed.folder, PART) if row["id"] == job)


def ranks(disturbed: Disturbed) -> set[int]:
    """Processes that train in this run's folder."""
    found = set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            here = (path / "cwd").readlink() == disturbed.folder
            words = (path / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if here and b"entropy_asr.stages.pretrain" in words and b"torch.distributed.run" not in words and b"-u" in words:
            found.add(int(path.name))
    return found


def test_after_a_killed_coordinator_its_jobs_are_not_submitted_twice(disturbed: Disturbed) -> None:
    job = running(disturbed.folder, PART)
    assert job
    unlock = f"snakemake --profile slurm --configfile {' '.join(map(str, LONG))} --directory {disturbed.folder} --unlock"
    with held(disturbed):
        end(disturbed.process)
        subprocess.run(unlock.split(), cwd=REPO, env=ENVIRONMENT, check=True, capture_output=True)
        assert slurm_jobs(disturbed.folder)[0].id == job
        assert disturbed.start().wait(timeout=120) != 0
    log = (disturbed.folder / "coordinator.log").read_text()
    assert f"scancel {job}" in log and "jobs that another coordinator submitted" in log
    assert len(records(disturbed.folder, PART)) == 3
    wait_for(lambda: record(disturbed, job)["state"] == "COMPLETED", 240, "the orphan's end")
    assert disturbed.start().wait(timeout=60) == 0
    assert len(records(disturbed.folder, PART)) == 3, "what the orphan made is taken as it is"


def test_the_weights_are_those_of_a_run_that_was_left_alone(disturbed: Disturbed) -> None:
    train = " ".join(f"--train results/audio/features/{split}.jsonl.gz" for split in load_config(SETTINGS[0]).data.train)
    dev = " ".join(f"--dev results/manifests/{split}.jsonl.gz" for split in load_config(SETTINGS[0]).data.dev)
    words = f"--config results/config/pretrain.json {train} {dev} --objective phoneme --labels results/text/phonemes/tokens.txt"
    words += " --stats results/features/stats.json --part 0 --seed 1 --running alone/state --out alone/out"
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "entropy_asr.stages.pretrain",
    ]
    done = subprocess.run(
        [*launch, *words.split()], cwd=disturbed.folder, env=ENVIRONMENT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sha256(disturbed.folder / "alone/out/encoder.safetensors") == sha256(disturbed.folder / OUT / "encoder.safetensors")
    steps = [[json.loads(line)["step"] for line in (disturbed.folder / f / "train.jsonl").open()] for f in ("alone/out", OUT)]
    assert steps[0] == steps[1]


# -- the smoke experiment has ended -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(smoke: Smoke) -> Smoke:
    assert smoke.process.wait(timeout=540) == 0, smoke.log()[-5000:]
    return smoke


def test_main_csv_is_there(finished: Smoke) -> None:
    with (finished.folder / "results/tables/main.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["arm"] for row in rows} >= {"ours", "no_ia_sft"}


def test_every_stage_was_one_job_with_what_its_config_says(finished: Smoke) -> None:
    merged = yaml.safe_load(SETTINGS[0].read_text()) | yaml.safe_load(SETTINGS[1].read_text())
    resources = load_config(merged).resources
    stages = {"lm": "lm", "pretrain_part": "pretrain", "align": "align", "ia_sft_iteration": "ia_sft", "joint_sft": "joint_sft"}
    stages |= {"decode": "decode", "decode_encoder": "decode"}
    seen = set()
    for job in records(finished.folder):
        assert job["state"] == "COMPLETED", job
        rule = job["step"].removeprefix("rule_").split("_wildcards_")[0]
        if rule not in stages:
            assert job["gres"] == "N/A"
            continue
        asked = resources.of(stages[rule])
        assert job["gres"] == (f"gres:gpu:a100:{asked.gpus_per_node}" if asked.gpus_per_node else "N/A"), job
        assert (int(job["nodes"]), minutes(job["limit"])) == (asked.nodes, asked.runtime), job
        assert int(job["cpus"]) == asked.nodes * asked.cpus, job
        seen.add(job["step"])
    count = len(list(finished.folder.glob("results/encoders/phoneme/seed-1/part-*/part.json")))
    expected = {"rule_lm"} | {f"rule_pretrain_part_wildcards_phoneme_1_{part}" for part in range(count)}
    expected |= {f"rule_ia_sft_iteration_wildcards_ours_1_{part}" for part in range(count)}
    expected |= {f"rule_{stage}_wildcards_{arm}_1" for stage in ("align", "joint_sft") for arm in ("ours", "no_ia_sft")}
    assert seen >= expected and len(seen - expected) == 2 * 2 + 2, "two arms and the encoder decode two test sets"
    assert len(records(finished.folder)) == len({job["step"] for job in records(finished.folder)}), "each step was submitted once"
    assert [job["step"] for job in records(finished.folder, "rule_scores")], "scores are one job, not six"


def minutes(limit: str) -> int:
    hours, left, _ = ("0:" * (2 - limit.count(":")) + limit).split(":")
    return 60 * int(hours) + int(left)


def test_ia_sft_ran_beside_pretraining_as_two_jobs(finished: Smoke) -> None:
    assert {"rule_pretrain_part_wildcards_phoneme_1_1", "rule_ia_sft_iteration_wildcards_ours_1_0"} <= set(finished.at_once)


def test_joint_sft_trained_on_two_nodes(finished: Smoke) -> None:
    for arm in ("ours", "no_ia_sft"):
        (job,) = records(finished.folder, f"rule_joint_sft_wildcards_{arm}_1")
        assert job["hosts"] == "n[1-2]"
        made = json.loads((finished.folder / f"results/systems/{arm}/seed-1/joint_sft/provenance.json").read_text())
        assert made["hardware"]["world_size"] == 2


def test_a_second_call_submits_nothing(finished: Smoke) -> None:
    before = len(records(finished.folder))
    assert coordinator(finished.folder, SETTINGS, "results/tables/main.csv").wait(timeout=60) == 0
    assert "Nothing to be done" in finished.log()
    assert len(records(finished.folder)) == before
