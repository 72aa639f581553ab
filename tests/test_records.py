"""Records: which job is up to date, whatever times, copies, clocks and other jobs do."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from repository import ENVIRONMENT

from entropy_asr import digests, records
from entropy_asr.digests import Digests
from entropy_asr.errors import InputError
from entropy_asr.records import Begun, begun_path, finish, read_begun, read_records, reconcile, record_path

A, B, C = (f"results/{name}" for name in ("a/model", "b/model", "c/table"))
ANCHOR = Path("anchor")


@pytest.fixture(autouse=True)
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with two finished jobs: source, a, b."""
    monkeypatch.chdir(tmp_path)
    ANCHOR.write_text("")
    Path("source").write_text("words")
    make("first", A, "source")
    make("second", B, A)
    return tmp_path


def begin(rule: str, output: str, *inputs: str, process: int = 1) -> Path:
    """The mark that the shell of a rule writes."""
    mark = begun_path(output)
    mark.parent.mkdir(parents=True, exist_ok=True)
    words = [os.uname().nodename, str(process), os.getcwd(), rule, "log", output, "--", *inputs]
    mark.write_text("\n".join([*words, ""]))
    os.utime(mark, (time.time() - 1,) * 2)
    return mark


def make(rule: str, output: str, *inputs: str, text: str | None = None) -> None:
    for name in inputs:
        os.utime(name, (time.time() - 10,) * 2)
    mark = begin(rule, output, *inputs)
    Path(output).write_text(text or f"made by {rule}")
    finish(mark, 1)
    assert not mark.exists()


def stale() -> set[str]:
    return set(reconcile(Path("results"), {}, ANCHOR).stale)


def test_a_finished_chain_is_up_to_date_and_a_changed_source_makes_its_first_job_stale() -> None:
    assert stale() == set()
    Path("source").write_text("other words")
    assert stale() == {A}
    assert os.stat(A).st_mtime < os.stat("source").st_mtime


def test_a_model_made_again_makes_the_next_job_stale() -> None:
    make("first", A, "source", text="another model")
    assert stale() == {B}


def test_models_that_are_swapped_are_seen_though_size_and_time_are_alike() -> None:
    make("first", A, "source", text="same size 1")
    make("second", B, A, text="same size 2")
    os.utime("source", (time.time(),) * 2)
    assert stale() == set()  # and all have one time now
    Path(A).rename("aside")
    Path(B).rename(A)
    Path("aside").rename(B)
    assert stale() == {A, B}


def test_a_file_is_hashed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real = digests.sha256
    monkeypatch.setattr(digests, "sha256", lambda path: opened.append(path) or real(path))
    os.utime("source", (time.time(),) * 2)  # every output gets another time
    stale()
    assert set(opened) >= {A, B, "source"}
    opened.clear()
    assert stale() == set() and opened == []


def test_a_plan_changes_no_record() -> None:
    """DVC versions them with the artifacts."""
    before = [record_path(name).read_bytes() for name in (A, B)]
    os.utime("source", (time.time(),) * 2)
    assert stale() == set() and os.stat(A).st_mtime >= os.stat("source").st_mtime
    assert [record_path(name).read_bytes() for name in (A, B)] == before


def test_an_input_whose_content_changes_while_the_job_runs_makes_it_stale_and_one_that_is_touched_does_not() -> None:
    for change, expected in ((lambda: os.utime(A), set()), (lambda: Path(A).write_text("changed"), {A, B})):
        mark = begin("second", B, A)
        change()
        finish(mark, 1)
        assert stale() == expected


def test_a_job_does_not_end_another_ones_mark() -> None:
    """As the orphan of a killed snakemake, beside the job that took its place."""
    mark = begin("second", B, A, process=2)
    before = record_path(B).read_text()
    finish(mark, 1)
    assert mark.exists() and record_path(B).read_text() == before
    finish(mark, 2)
    assert not mark.exists()
    finish(mark, 2)  # a mark that is gone is nobody's


def test_times_never_lie_in_the_future() -> None:
    for name in (A, B):
        os.utime(name, (time.time() + 7200,) * 2)
    assert stale() == set() and os.stat(A).st_mtime <= os.stat(B).st_mtime <= time.time()
    os.utime("source", (time.time() + 7200,) * 2)
    with pytest.raises(InputError, match=r"source has a time in the future.*touch source"):
        stale()


def test_a_config_file_is_written_back_where_its_text_is_that_of_what_was_made() -> None:
    config = "results/config/stage.json"
    Path(config).parent.mkdir()
    Path(config).write_text("rate 1")
    make("second", B, A, config)
    assert set(reconcile(Path("results"), {config: "rate 2"}, ANCHOR).stale) == {B}
    Path(config).write_text("rate 2")
    assert set(reconcile(Path("results"), {config: "rate 1"}, ANCHOR).stale) == set()
    assert Path(config).read_text() == "rate 1"


def test_a_lost_folder_is_reported_though_its_records_are_gone_with_it() -> None:
    Path(A).unlink()
    record_path(A).unlink()
    found = reconcile(Path("results"), {}, ANCHOR)
    assert (found.missing, found.stale) == ([A], {})


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"rule": "a", "inputs": {}, "outputs": {"results/b/model": null}}'])
def test_a_broken_record_or_mark_is_none(text: str) -> None:
    record_path(B).write_text(text)
    begun_path(C).parent.mkdir()
    begun_path(C).write_text(text)
    assert [record.rule for record in read_records(Path("results"))] == ["first"] and read_begun(Path("results")) == []
    assert stale() == set()
    assert Begun.read(Path("no such mark")) is None


def test_what_cannot_be_written_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Digests, path: str, seconds: float) -> None:
        raise PermissionError(f"{path}: read-only")

    monkeypatch.setattr(Digests, "set_time", refuse)
    os.utime("source", (time.time(),) * 2)
    found = reconcile(Path("results"), {}, ANCHOR)
    assert "read-only" in found.trouble and found.trouble in found.lines()


def test_the_shell_of_a_rule_keeps_the_record() -> None:
    def run(command: str) -> int:
        words = f"set -euo pipefail; {records.SHELL} record third log '{C} x' -- {B}; {command}"
        return subprocess.run(["bash", "-c", words], env=ENVIRONMENT | {"HOSTNAME": "another"}, check=False).returncode

    assert run("false") != 0 and begun_path(f"{C} x").exists() and not Path(f"{C} x").exists()
    assert run(f"echo made > '{C} x'") == 0 and not begun_path(f"{C} x").exists()
    assert [record.rule for record in read_records(Path("results"))] == ["first", "second", "third"]
    assert run("true") == 0, "the output is there from before"
    Path(f"{C} x").unlink()
    assert run("true") != 0, "a job without its output has failed"


def test_only_this_folders_jobs_are_stopped(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "import time; time.sleep(60)"]
    script = f"set -euo pipefail; {records.SHELL} record third log {C} -- {B}; {words[0]} -c '{words[2]}' | cat"
    with subprocess.Popen(["bash", "-c", script], env=ENVIRONMENT, cwd=tmp_path) as job:
        while not (mark := Begun.read(begun_path(C))) or not mark.alive or len(mark.outputs) != 1:
            time.sleep(0.05)
        copy = tmp_path / "copy/results/c"
        copy.mkdir(parents=True)
        (copy / begun_path(C).name).write_text(begun_path(C).read_text())
        assert records.stop_jobs(tmp_path / "copy/results") == 0 and job.poll() is None
        time.sleep(0.5)  # the command has started
        assert records.stop_jobs(Path("results")) == 1
        assert job.wait(20) != 0
    assert begun_path(C).exists() and not read_begun(Path("results"))[0].alive
