"""Cards of one machine: real processes wait for, take and lose cards that only their names pretend."""

import contextlib
import fcntl
import itertools
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from repository import ENVIRONMENT, wait_for

from entropy_asr.cards import cards_here
from entropy_asr.cluster import Site, launch
from entropy_asr.config import Resources

# A job that notes the cards it has, from when to when.
JOB = """
import os, sys, time
begun = time.monotonic()
time.sleep(0.1)
with open(sys.argv[1], "a") as log:  # one write a line
    log.write(f"{os.environ['CUDA_VISIBLE_DEVICES']} {begun} {time.monotonic()}\\n")
"""
# torchrun and a rank: the parent starts its child without its own open files, and the child is a command of ours.
RANK = """
import pathlib, sys, time
from entropy_asr.errors import friendly_exit
with friendly_exit():
    pathlib.Path(sys.argv[1]).touch()
    time.sleep(600)
"""
LAUNCHER = """
import pathlib, subprocess, sys, time
rank = subprocess.Popen([sys.executable, "-c", sys.argv[2], sys.argv[1] + ".rank"])
pathlib.Path(sys.argv[1]).write_text(str(rank.pid))
time.sleep(600)
"""


started: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def none_is_left() -> Iterator[None]:
    yield
    while started:
        process = started.pop()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def start(folder: Path, cards: str | None, count: int, *command: str, **more: str) -> subprocess.Popen:
    """A command that waits for so many of the cards, which only this folder's processes share."""
    environment = ENVIRONMENT | {"TMPDIR": str(folder)} | ({} if cards is None else {"CUDA_VISIBLE_DEVICES": cards}) | more
    words = [sys.executable, "-m", "entropy_asr.cards", str(count), "--", *command]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started.append(subprocess.Popen(words, env=environment, start_new_session=True, **pipes))
    return started[-1]


def python(code: str, *arguments: Path | str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]


def sleeper(folder: Path, cards: str, count: int) -> subprocess.Popen:
    """A job that has its cards and keeps them."""
    process = start(folder, cards, count, *python("import time; print('begun', flush=True); time.sleep(600)"))
    assert process.stdout.readline() == "begun\n", process.stderr.read()
    return process


def waiting(folder: Path, cards: str, count: int, *command: str) -> subprocess.Popen:
    """A job that has found no card, and its message."""
    process = start(folder, cards, count, *command)
    process.said = process.stderr.readline()
    return process


@given(cards=st.integers(1, 3), counts=st.lists(st.integers(1, 3), min_size=2, max_size=5))
@settings(max_examples=5, deadline=None)
def test_no_card_is_given_to_two_jobs_and_every_job_runs(cards: int, counts: list[int]) -> None:
    counts = [min(count, cards) for count in counts]
    names = [f"GPU-{i}" for i in range(cards)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jobs = [start(folder, ",".join(names), count, *python(JOB, folder / "log")) for count in counts]
        assert [job.wait(120) for job in jobs] == [0] * len(jobs), [job.stderr.read() for job in jobs]
        rows = [line.split() for line in (folder / "log").read_text().splitlines()]
    had = [(given.split(","), float(begun), float(ended)) for given, begun, ended in rows]
    assert sorted(len(given) for given, _, _ in had) == sorted(counts)
    for card in names:
        times = sorted((begun, ended) for given, begun, ended in had if card in given)
        assert all(ended <= begun for (_, ended), (begun, _) in itertools.pairwise(times)), had


def test_a_job_takes_a_free_card_not_the_first_one(tmp_path: Path) -> None:
    first = sleeper(tmp_path, "0,1,2", 1)
    told = python("import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['CUDA_DEVICE_ORDER'])")
    assert start(tmp_path, "0,1,2", 2, *told).communicate()[0] == "1,2 PCI_BUS_ID\n"
    assert start(tmp_path, "0,1,2", 2, *told, CUDA_DEVICE_ORDER="FASTEST_FIRST").communicate()[0] == "1,2 FASTEST_FIRST\n"
    first.kill()
    first.wait()
    assert start(tmp_path, "0,1,2", 2, *told).communicate()[0] == "0,1 PCI_BUS_ID\n"


def test_a_killed_job_frees_its_cards(tmp_path: Path) -> None:
    first = sleeper(tmp_path, "0,1", 2)
    second = waiting(tmp_path, "0,1", 1, "true")
    assert second.said == "waiting for 1 free card(s); busy: 0, 1\n"
    time.sleep(1.5)
    assert second.poll() is None
    first.kill()
    assert second.wait(30) == 0
    assert second.stderr.read() == "", "said once"


def test_a_rank_that_outlives_its_launcher_keeps_its_card(tmp_path: Path) -> None:
    first = start(tmp_path, "0", 1, *python(LAUNCHER, tmp_path / "pid", RANK))
    wait_for((tmp_path / "pid.rank").exists, 60, "the rank begins")
    rank = psutil.Process(int((tmp_path / "pid").read_text()))
    first.kill()
    first.wait()
    second = waiting(tmp_path, "0", 1, "true")
    assert second.said == "waiting for 1 free card(s); busy: 0\n" and rank.is_running()
    rank.kill()
    assert second.wait(30) == 0


def test_all_cards_are_taken_at_once_or_none(tmp_path: Path) -> None:
    """One that waits for two cards holds none of them meanwhile."""
    first = sleeper(tmp_path, "0,1", 1)
    both = waiting(tmp_path, "0,1", 2, "true")
    assert both.said == "waiting for 2 free card(s); busy: 0\n"
    third = start(tmp_path, "0,1", 1, "true")
    assert third.communicate(timeout=30)[1] == "" and third.returncode == 0, "it did not wait"
    assert both.poll() is None
    first.kill()
    assert both.wait(30) == 0


def test_one_job_at_a_time_looks_for_cards(tmp_path: Path) -> None:
    """Two that take and give back each other's cards would both find too few."""
    assert start(tmp_path, "0", 1, "true").wait(30) == 0
    folder = os.open(tmp_path / f"entropy-asr-cards-{os.getuid()}", os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    second = start(tmp_path, "0", 1, "true")
    with pytest.raises(subprocess.TimeoutExpired):
        second.wait(3)
    os.close(folder)
    assert second.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_that_waits_ends_when_asked_to(number: int, tmp_path: Path) -> None:
    sleeper(tmp_path, "0", 1)
    second = waiting(tmp_path, "0", 1, "true")
    second.send_signal(number)
    assert second.wait(30) == 75
    assert "asked to stop" in second.stderr.read()


def test_the_commands_status_and_signals_are_its_own(tmp_path: Path) -> None:
    assert start(tmp_path, "0", 1, "sh", "-c", "exit 75").wait(30) == 75
    process = sleeper(tmp_path, "0", 1)
    process.terminate()
    assert process.wait(30) == -signal.SIGTERM
    missing = start(tmp_path, "0", 1, "no-such-command")
    assert missing.communicate()[1] == "error: no-such-command: No such file or directory\n" and missing.returncode == 2


@pytest.mark.parametrize(
    ("cards", "count", "said"),
    [
        ("0,1", 3, "needs 3 card(s) (GPUs), and this machine has 2 (CUDA_VISIBLE_DEVICES is '0,1')"),
        ("", 1, "needs 1 card(s) (GPUs), and this machine has 0 (CUDA_VISIBLE_DEVICES is '')"),
        (None, 1, "needs 1 card(s) (GPUs), and this machine has 0 (as nvidia-smi says)"),
    ],
)
def test_more_cards_than_there_are_is_an_error(
    cards: str | None, count: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(ENVIRONMENT, "CUDA_VISIBLE_DEVICES", raising=False)
    process = start(tmp_path, cards, count, "true", PATH=str(tmp_path))
    error = process.communicate(timeout=30)[1]
    assert process.returncode == 2 and said in error and "resources.gpus_per_node" in error


def test_a_command_that_has_cards_takes_no_others(tmp_path: Path) -> None:
    outer = start(tmp_path, "0,1", 1, sys.executable, "-m", "entropy_asr.cards", "1", "--", "true")
    assert "ENTROPY_ASR_CARDS is set" in outer.communicate(timeout=30)[1] and outer.returncode == 2


def test_a_folder_of_others_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / f"entropy-asr-cards-{os.getuid()}"
    folder.mkdir(mode=0o755)
    process = start(tmp_path, "0", 1, "true")
    assert "must be a folder of yours" in process.communicate(timeout=30)[1] and process.returncode == 2


@pytest.fixture
def nvidia_smi(tmp_path: Path) -> str:
    """A PATH where nvidia-smi lists two cards."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nprintf '0, GPU-aaaa\\n1, GPU-bbbb\\n'\n")
    program.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


def test_which_cards_there_are(nvidia_smi: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", nvidia_smi)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert cards_here() == ["0", "1"]
    for named, expected in {
        "1": ["1"],
        "GPU-bbbb, GPU-aaaa": ["GPU-bbbb", "GPU-aaaa"],
        "MIG-GPU-aaaa/1/0": ["MIG-GPU-aaaa/1/0"],
        "": [],
        "-1": [],
        "NoDevFiles": [],
        "1,-1,0": ["1"],
        "0,0": ["0"],
    }.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        assert cards_here() == expected
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed, no driver'; exit 9\n")
    assert cards_here() == []


def test_a_card_is_the_same_by_index_and_by_uuid(nvidia_smi: str, tmp_path: Path) -> None:
    told = python("import os; print(os.environ['CUDA_VISIBLE_DEVICES'])")
    first = start(tmp_path, "GPU-aaaa", 1, *python("import time; print(flush=True); time.sleep(600)"), PATH=nvidia_smi)
    first.stdout.readline()
    assert start(tmp_path, "0,1", 1, *told, PATH=nvidia_smi).communicate(timeout=30)[0] == "1\n"


def test_the_words_before_a_stage_give_it_a_card(tmp_path: Path) -> None:
    """As the shell of a rule starts it: two stages on one card, a decoder that has the other, and a stage that has none."""
    resources = Resources(gpus_per_node=1, device="cpu", stages={"metrics": {"gpus_per_node": 0}})
    environment = ENVIRONMENT | {"TMPDIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": "0,1"}
    told = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['ENTROPY_ASR_DEVICE'])"
    sleeper(tmp_path, "0,1", 1)
    for stage, expected in {"decode": "1 cpu\n", "lm": "1 cpu\n", "metrics": " cpu\n"}.items():
        words = shlex.split(launch(resources, stage, Site(), here=True).removesuffix("-m"))
        done = subprocess.run([*words, "-c", told], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout == expected
