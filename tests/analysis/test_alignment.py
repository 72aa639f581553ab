"""The reference alignment: Viterbi against all paths, borders that make sense, units with their phonemes."""

from itertools import groupby, product
from pathlib import Path

import numpy as np
import pytest
import torch

from entropy_asr.analysis.alignment import REACH, Alignment, Unit, align, borders, ctc_viterbi, units_of
from entropy_asr.config import Features
from entropy_asr.errors import InputError
from entropy_asr.models.artifacts import load_encoder, read_header, save_modules
from entropy_asr.text.phonemes import phonemize


def collapsed(path: tuple[int, ...]) -> list[int]:
    return [label for label, _ in groupby(path) if label]


def brute_force(log_probs: torch.Tensor, target: list[int]) -> float:
    scores = [
        sum(log_probs[t, label].item() for t, label in enumerate(path))
        for path in product(range(log_probs.size(1)), repeat=len(log_probs))
        if collapsed(path) == target
    ]
    return max(scores, default=-np.inf)


TARGETS = [[1, 2], [1, 1], [2], [1, 2, 1], [2, 2, 2], [1, 1, 2, 2]]


def test_viterbi_equals_all_paths_tried() -> None:
    torch.manual_seed(0)
    log_probs = torch.randn(len(TARGETS), 6, 3).log_softmax(-1)
    lens = torch.tensor([6, 5, 4, 6, 5, 6])
    found = ctc_viterbi(log_probs, lens, TARGETS)
    for path, row, length, target in zip(found, log_probs, lens.tolist(), TARGETS, strict=True):
        assert path.score == pytest.approx(brute_force(row[:length].double(), target), abs=1e-6)
        labels = [target[state // 2] if state % 2 else 0 for state in path.states.tolist()]
        assert collapsed(tuple(labels)) == target and len(labels) == length
        assert sum(row[t, label].item() for t, label in enumerate(labels)) == pytest.approx(path.score, abs=1e-5)


def test_an_utterance_too_short_for_its_phonemes_has_no_path() -> None:
    (path,) = ctc_viterbi(torch.randn(1, 2, 3).log_softmax(-1), torch.tensor([2]), [[1, 1]])  # needs a blank between
    assert path.score == -np.inf


def test_batch_mates_and_padding_change_nothing() -> None:
    torch.manual_seed(1)
    log_probs, lens = torch.randn(6, 9, 3).log_softmax(-1), torch.tensor([9, 5, 4, 7, 8, 6])
    together = ctc_viterbi(log_probs, lens, TARGETS)
    for row, path in enumerate(together):
        (alone,) = ctc_viterbi(log_probs[row : row + 1, : lens[row]], lens[row : row + 1], TARGETS[row : row + 1])
        assert torch.equal(alone.states, path.states) and alone.score == pytest.approx(path.score)


def test_borders_meet_half_way_and_long_gaps_are_silence() -> None:
    states = torch.tensor([0, 0, 0, 0, 0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 5, 6])  # spikes at 5, 7 and 18; 40 ms each
    found = borders(states, 0.01, 0.83)
    assert found[0] == pytest.approx((0.215 - REACH, 0.275)) and found[1][0] == pytest.approx(0.275)
    assert found[1][1] == pytest.approx(0.335 + REACH) and found[2][0] == pytest.approx(0.735 - REACH)
    assert found[2][1] == pytest.approx(0.83)  # not beyond the audio
    for start, end in found:
        assert start < end


def test_frames_get_the_phoneme_of_their_time_whatever_the_rate() -> None:
    item = Alignment("a", ["HH", "AY"], [0.1, 0.2], [0.2, 0.4], [Unit("hi", 0, 1, "en")], -0.1)
    for rate in (25, 50, 100):
        centres = (np.arange(rate // 2) + 0.5) / rate
        labels = item.labels(centres)
        assert [label for label, _ in groupby(labels)] == [None, "HH", "AY", None]
        (span,) = item.spans(centres)
        assert span.tolist() == [i for i, label in enumerate(labels) if label]
    assert item.spans(np.array([0.0, 5.0]))[0].tolist() == [0]  # no frame inside: the nearest
    row = item.row()
    assert Alignment(**{**row, "units": [Unit(*unit) for unit in row["units"]]}) == item


def test_units_are_characters_and_words_with_their_own_phonemes() -> None:
    phonemes = phonemize("播放 hello", "mixed").phonemes
    units = units_of("a", {"phonemes": phonemes, "words": [["播", 2], ["放", 2], ["、", 0], ["hello", 4]]})
    assert [(u.text, u.language, phonemes[u.first : u.last + 1]) for u in units] == [
        ("播", "zh", ["b", "o1"]),
        ("放", "zh", ["f", "ang4"]),
        ("hello", "en", ["HH", "AH", "L", "OW"]),
    ]
    with pytest.raises(InputError, match="utterance a: its words are not those of its phonemes; make the manifests again"):
        units_of("a", {"phonemes": ["B"], "words": [["hello", 4]]})


@pytest.mark.parametrize("facts", [{"objective": "character", "labels": ["<blk>", "a"]}, {"objective": "attention"}])
def test_an_encoder_that_learned_no_phonemes_is_no_aligner(facts: dict, aligner: Path, tmp_path: Path) -> None:
    encoder, header = load_encoder(aligner), read_header(aligner)
    path = tmp_path / "encoder.safetensors"
    save_modules(path, {"encoder": encoder}, {name: header[name] for name in ("encoder", "num_mel_bins")} | facts)
    with pytest.raises(InputError, match=f"must be a part of phoneme pretraining, this one learned: {facts['objective']}"):
        align([], path, Features(), -1000, 60.0)
