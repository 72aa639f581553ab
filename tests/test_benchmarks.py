"""The pages of speeds say what their JSON says; the scripts run."""

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from repository import ENVIRONMENT, REPO


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Iterator[None]:
    """They are no part of the package."""
    sys.path.insert(0, str(REPO / "benchmarks"))
    yield
    sys.path.remove(str(REPO / "benchmarks"))


@pytest.fixture(scope="module")
def run():
    return importlib.import_module("run")


@pytest.fixture(scope="module")
def gpu():
    return importlib.import_module("gpu")


def test_the_page_is_rendered_from_the_json(run) -> None:
    entries = json.loads((REPO / "docs/benchmarks.json").read_text())
    assert (REPO / "docs/benchmarks.md").read_text() == run.render(entries)


def test_growth_has_a_table_of_its_own(run) -> None:
    common = {"machine": "m", "commit": "a" * 40, "note": ""}
    compared = {"name": "one", "ours": "x", "peer": "y", "ratio": 1.5, "spread": [1.4, 1.6], **common}
    grown = {"name": "two", "ours": "x", "unit": "s of audio", "sizes": [5.0, 10.0], "seconds": [0.1, 0.25], "exponent": 1.32}
    page = run.render([compared, {**grown, **common}])
    assert "| one | x | y | **1.50** [1.40, 1.60] | m | aaaaaaa |" in page
    assert "| two | 5: 0.100, 10: 0.250 (s of audio) | **1.32** | m | aaaaaaa |" in page


def test_the_exponent_is_the_slope_of_the_logarithms(run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that each step moves on by what it costs: 3 size^1.5 seconds."""
    clock = [0.0]
    monkeypatch.setattr(run.time, "perf_counter", lambda: clock[0])

    def step(size: float):
        def cost() -> None:
            clock[0] += 3 * size**1.5

        return cost

    found = run.grow("n", "o", "s", {size: step(size) for size in (1.0, 2.0, 4.0)}, turns=3)
    assert found.exponent == 1.5
    assert found.seconds == [3.0, 8.48528, 24.0]


@pytest.mark.parametrize("name", ["encoder", "features"])
def test_comparisons_run(run, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The code that they call changes, and they are run seldom."""
    monkeypatch.setattr(run, "SECONDS", (1.0, 0.8))
    entries = list(run.COMPARISONS[name](torch.device("cpu"), torch.float32, 2))
    assert entries and all(entry.ratio > 0 for entry in entries)


# -- benchmarks/gpu.py -------------------------------------------------------------------------------------------------


def test_the_page_of_the_gpu_is_rendered_from_the_json(gpu) -> None:
    found = json.loads((REPO / "docs/benchmarks_gpu.json").read_text())
    assert (REPO / "docs/benchmarks_gpu.md").read_text() == gpu.render(found)


def test_a_missed_goal_tells_where_the_time_goes(gpu) -> None:
    entry = {
        "name": "a step",
        "numbers": {"MFU": 0.31},
        "goal": "MFU ≥ 0.45",
        "met": False,
        "note": "",
        "where": {"copies": 0.25},
    }
    page = gpu.render({"machine": {"card": "H100"}, "commit": "a" * 40, "entries": [entry]})
    assert "| a step | MFU 0.31 | MFU ≥ 0.45 | **no** |" in page and "- a step: copies 25%." in page


SLOW = ("tests", "largest")  # the latter is `tests/test_tune_batch.py`'s


def test_everything_that_is_measured_on_a_gpu_runs_at_toy_size_on_a_cpu(gpu, tmp_path: Path) -> None:
    output, sections = tmp_path / "gpu.json", [name for name in gpu.SECTIONS if name not in SLOW]
    command = [sys.executable, str(REPO / "benchmarks/gpu.py"), "--toy", "--output", str(output), "--only", ",".join(sections)]
    done = subprocess.run(command, cwd=REPO, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    entries = json.loads(output.read_text())["entries"]
    assert len(entries) > len(sections)
    assert not [entry for entry in entries if entry["goal"] == "runs"], done.stderr  # a section that raised
    assert all(entry["numbers"] and all(value > 0 for value in entry["numbers"].values()) for entry in entries)


def test_a_goal_that_is_missed_is_looked_into(gpu) -> None:
    setting = gpu.Setting(None, torch.device("cpu"), torch.float32, 1, True)
    x = torch.ones(300, 300)
    missed, met = (gpu.judged(gpu.Entry("a product", {"s": 1.0}), met, lambda: x @ x, setting) for met in (False, True))
    assert missed.where["matrix products"] > 0 and sum(missed.where.values()) <= 1.01 and not met.where


def test_a_section_that_fails_stops_no_other(gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> Iterator:
        yield gpu.Entry("first", {"s": 1.0})
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(gpu, "SECTIONS", {"broken": broken, "sound": lambda _: iter([gpu.Entry("last", {"s": 2.0})])})
    found = list(gpu.measured(["broken", "sound"], None, 60.0))
    assert [entry.name for entry in found] == ["first", "broken", "last"]
    assert found[1].met is False and found[1].note == "RuntimeError: no such kernel"
    assert [entry.note for entry in gpu.measured(["sound"], None, -1.0)] == ["not measured: -1 s were over"]
