"""Damage done on purpose: what was expected is compared with what was measured, and a failure is called one."""

from pathlib import Path

import pytest
import torch

from entropy_asr.analysis.alignment import align
from entropy_asr.analysis.encoder_metrics import measure
from entropy_asr.analysis.frames import Frames
from entropy_asr.analysis.probe_command import deal
from entropy_asr.analysis.validation import COLUMNS, DAMAGES, outcome, validate
from entropy_asr.audio.batches import read_cuts
from entropy_asr.config import Features, Metrics


def estimate(value: float) -> dict:
    return {"value": value, "low": value - 0.05, "high": value + 0.05}


@pytest.mark.parametrize(
    ("after", "expected", "said"),
    [
        (0.3, "falls", "met"),
        (0.3, "rises", "failed"),
        (0.7, "falls", "failed"),
        (0.7, "rises", "met"),
        (0.45, "falls", "undecided"),
    ],
)
def test_an_expectation_is_met_fails_or_stays_open(after: float, expected: str, said: str) -> None:
    assert outcome(estimate(0.5), estimate(after), expected) == said


def test_damage_changes_the_frames_and_the_same_each_time() -> None:
    torch.manual_seed(0)
    frames = Frames("a", [torch.randn(30, 8) for _ in range(5)], torch.arange(30).numpy())
    for damage in DAMAGES:
        first, second = damage.change(frames), damage.change(frames)
        assert all(torch.equal(x, y) for x, y in zip(first.layers, second.layers, strict=True))
        assert not torch.equal(first.layers[-1], frames.layers[-1])
    assert len(DAMAGES[3].change(frames).layers) == 3 and torch.equal(DAMAGES[3].change(frames).layers[-1], frames.layers[2])


def test_a_real_encoder_is_measured_whole_and_damaged(speech: Path, aligner: Path) -> None:
    metrics = Metrics(min_alignment_score=-1000, probe_seeds=1, max_epochs=3, groups=3, mlp_hidden=8, resamples=50)
    sets = {}
    for name, cuts in deal(list(read_cuts([speech]))).items():
        sets[name] = (cuts, {item.id: item for item in align(cuts, aligner, Features(), -1000, 60.0)[0]})
    rows = validate(lambda change: measure(aligner, sets, Features(), metrics, change)[0])
    assert all(set(row) <= set(COLUMNS) for row in rows) and {row["outcome"] for row in rows} <= {"met", "failed", "undecided"}
    few = next(row for row in rows if row["metric"] == "nse" and row["damage"].startswith("4 dimensions"))
    assert few["damaged"] < 0.41 and few["whole"] > few["damaged"]  # at most log 4 / log 32, whatever the encoder
