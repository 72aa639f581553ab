"""Damage done on purpose: what was expected is compared with what was measured, and a failure is called one."""

from pathlib import Path

import pytest
import torch

from entropy_asr.analysis import system_metrics
from entropy_asr.analysis.encoder_metrics import measure
from entropy_asr.analysis.frames import Frames
from entropy_asr.analysis.validation import COLUMNS, DAMAGES, SYSTEM_DAMAGES, outcome, validate, validate_system
from entropy_asr.audio.batches import evaluation_batches
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
        (-0.3, "about 0 or less", "met"),
        (0.08, "about 0 or less", "failed"),
        (0.05, "about 0 or less", "undecided"),
        (0.0, "about 0", "undecided"),
        (-0.3, "about 0", "failed"),
        (0.3, "about 0", "failed"),
    ],
)
def test_an_expectation_is_met_fails_or_stays_open(after: float, expected: str, said: str) -> None:
    assert outcome(estimate(0.5), estimate(after), expected) == said


def test_about_0_is_met_by_an_interval_close_to_0() -> None:
    assert outcome(estimate(0.5), {"value": 0.001, "low": -0.01, "high": 0.015}, "about 0") == "met"
    assert outcome(estimate(0.5), {"value": 0.0, "low": 0.0, "high": 0.0}, "about 0") == "met"
    assert outcome(estimate(0.5), {"value": None, "low": None, "high": None}, "about 0") == "undecided"


def test_damage_changes_the_frames_and_the_same_each_time() -> None:
    torch.manual_seed(0)
    frames = Frames("a", [torch.randn(30, 8) for _ in range(5)], torch.arange(30).numpy())
    for damage in DAMAGES:
        first, second = damage.change(frames), damage.change(frames)
        assert all(torch.equal(x, y) for x, y in zip(first.layers, second.layers, strict=True))
        assert not torch.equal(first.layers[-1], frames.layers[-1])
    assert len(DAMAGES[3].change(frames).layers) == 3 and torch.equal(DAMAGES[3].change(frames).layers[-1], frames.layers[2])


def test_a_real_encoder_is_measured_whole_and_damaged(aligner: Path, sets: dict) -> None:
    metrics = Metrics(min_alignment_score=-1000, probe_seeds=1, max_epochs=3, groups=3, mlp_hidden=8, resamples=50)
    rows = validate(lambda change: measure(aligner, sets, Features(), metrics, change)[0])
    assert all(set(row) <= set(COLUMNS) for row in rows) and {row["outcome"] for row in rows} <= {"met", "failed", "undecided"}
    few = next(row for row in rows if row["metric"] == "nse" and row["damage"].startswith("4 dimensions"))
    assert few["damaged"] < 0.41 and few["whole"] > few["damaged"]  # at most log 4 / log 32, whatever the encoder


def system_damage(words: str):
    return next(damage.change for damage in SYSTEM_DAMAGES if words in damage.name)


def test_half_of_a_system_is_taken_off_a_copy(models: tuple, sets: dict) -> None:
    system = models[0]
    llm, _ = system_damage("LLM")(system, sets)
    encoder, _ = system_damage("half of the encoder")(system, sets)
    sizes = [(len(one.encoder.layers), len(one.llm.get_decoder().layers)) for one in (system, llm, encoder)]
    assert sizes == [(2, 2), (2, 1), (1, 2)]


def test_noise_is_as_strong_as_the_signal_and_never_on_padding(models: tuple, sets: dict) -> None:
    system = models[0]
    noisy, _ = system_damage("noise")(system, sets)
    _, mels, lens = next(iter(evaluation_batches(sets["fit"][0], Features(), 60.0)))
    with torch.no_grad():
        (clean, out_lens), (first, _), (second, _) = (
            system.encoder(mels, lens),
            noisy.encoder(mels, lens),
            noisy.encoder(mels, lens),
        )
    assert torch.equal(first, second)
    real = torch.arange(clean.size(1)) < out_lens[:, None]
    assert (first - clean)[~real].abs().sum() == 0
    # Per utterance and dimension: the variance of the noise over that of the signal, on average 1.
    ratios = [(first - clean)[i, :n].var(0) / clean[i, :n].var(0) for i, n in enumerate(out_lens.tolist())]
    assert torch.stack(ratios).mean().item() == pytest.approx(1.0, abs=0.1)


def test_shuffled_transcripts_keep_their_words_and_get_other_audio(models: tuple, sets: dict) -> None:
    _, shuffled = system_damage("shuffled")(models[0], sets)
    for name, (cuts, _) in sets.items():
        others = shuffled[name][0]
        assert [cut.id for cut in others] == [cut.id for cut in cuts]
        assert [cut.supervisions for cut in others] == [cut.supervisions for cut in cuts]
        assert [cut.recording.id for cut in others] == [cut.recording.id for cut in cuts[1:] + cuts[:1]]
        assert [cut.duration for cut in others] == [cut.duration for cut in cuts[1:] + cuts[:1]]


def test_a_real_system_is_measured_whole_and_damaged(models: tuple, tokenizer, sets: dict) -> None:
    metrics = Metrics(probe_seeds=1, max_epochs=2, resamples=50)
    system, prior = models

    def measured(change) -> dict:
        changed, utterances = change(system, sets)
        return system_metrics.measure(changed, prior, tokenizer, utterances, Features(), metrics)

    rows = validate_system(measured, "synthetic")
    assert all(set(row) == set(COLUMNS) for row in rows)
    assert [(row["metric"], row["expectation"]) for row in rows] == [
        ("ler", "falls"), ("ar", "rises"), ("eer", "falls"), ("eer", "falls"), ("eer", "about 0 or less"), ("ler", "falls"),
    ]  # fmt: skip


def test_a_system_that_answers_the_wrong_way_fails() -> None:
    def estimates(eer: float, ler: float) -> dict:
        found = {"eer": eer, "ler": ler, "ar": None, "ar_interval": None}
        return {"all": found | {f"{name}_interval": (found[name] - 0.01, found[name] + 0.01) for name in ("eer", "ler")}}

    answers = iter([estimates(0.3, 0.4), estimates(0.3, 0.1), estimates(0.5, 0.4), estimates(0.1, 0.4), estimates(0.2, -0.5)])
    outcomes = [row["outcome"] for row in validate_system(lambda change: next(answers), "synthetic")]
    assert outcomes == ["met", "undecided", "failed", "met", "failed", "met"]
