"""The page of speeds says what its JSON says, comparisons and growth alike."""

import importlib.util
import json

import pytest
import torch
from repository import REPO


@pytest.fixture(scope="module")
def run():
    """benchmarks/run.py, which is a script and no part of the package."""
    spec = importlib.util.spec_from_file_location("benchmark_run", REPO / "benchmarks/run.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
