"""Stored features: the same batches as from audio, errors that name the utterance."""

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
from audio.test_batches import batches

from entropy_asr.audio.augment import at_speed
from entropy_asr.audio.batches import Position, read_cuts
from entropy_asr.audio.precompute_features import stored_log_mel
from entropy_asr.config import Augment, Features
from entropy_asr.errors import InputError


def stored(tones: Path, folder: Path, **augment: object) -> Path:
    """The manifest with stored features."""
    settings = {"features": Features().model_dump(), "augment": Augment(**augment).model_dump()}
    config = folder / "config.json"
    config.write_text(json.dumps(settings))
    words = ["--config", config, "--cuts", tones, "--out", folder / "made" / "train"]
    subprocess.run([sys.executable, "-m", "entropy_asr.audio.precompute_features", *map(str, words)], check=True)
    return folder / "made" / "train.jsonl.gz"


def test_stored_features_are_those_of_the_audio_and_spare_reading_it(tones: Path, tmp_path: Path) -> None:
    whole = islice(batches(tones, copies=2, empty_fraction=0.2).loader(Position(), workers=0), 30)
    again = batches(stored(tones, tmp_path), copies=2, empty_fraction=0.2).loader(Position(), workers=0)
    for audio, features in zip(whole, again, strict=False):
        assert audio.ids == features.ids and audio.targets == features.targets and audio.position == features.position
        assert audio.features.equal(features.features)

    for cut in read_cuts([tmp_path / "made" / "train.jsonl.gz"]):  # the audio is gone
        for factor in (0.9, 1.0, 1.1):
            warped = at_speed(cut, factor)
            warped.recording.sources[0].source = "gone"
            assert stored_log_mel(warped).shape[1] == 80


def test_a_speed_without_stored_features_is_computed(tones: Path, tmp_path: Path) -> None:
    one = read_cuts([stored(tones, tmp_path, speed_factors=[1.0])])[0]
    assert stored_log_mel(one) is not None
    assert stored_log_mel(at_speed(one, 1.1)) is None


def test_stored_features_that_disappear_are_an_error_that_names_them(tones: Path, tmp_path: Path) -> None:
    manifest = stored(tones, tmp_path)
    next((tmp_path / "made" / "train").rglob("*.npy")).write_bytes(b"not an array")
    with pytest.raises(InputError, match=r"utterance tone-\d+: cannot read stored features.*run precompute_features again"):
        for cut in read_cuts([manifest]):
            for factor in (0.9, 1.0, 1.1):
                stored_log_mel(at_speed(cut, factor))
