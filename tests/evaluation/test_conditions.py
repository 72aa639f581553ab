"""The conditions are what their names say, and the same each time."""

import numpy as np
import pytest

from entropy_asr.audio.augment import NoiseSource
from entropy_asr.config import Hallucination
from entropy_asr.evaluation.conditions import NON_SPEECH, add_noise, make_conditions, with_pause

RATE = 16000
CONFIG = Hallucination(snr_db=[10.0, 0.0], truncated_to=0.25, pause_seconds=2.0)


@pytest.fixture
def speech() -> np.ndarray:
    """Two tones with a gap between them."""
    time = np.arange(RATE) / RATE
    tone = 0.1 * np.sin(2 * np.pi * 440 * time)
    tone[7000:9000] = 0.0
    return tone


def made(speech: np.ndarray) -> dict[str, np.ndarray]:
    noise = NoiseSource.__new__(NoiseSource)  # its generators need no clips
    noise.rate = RATE
    return dict(make_conditions(speech, noise, lambda rng: rng.standard_normal(3 * RATE), "u1", CONFIG, RATE))


def test_noise_has_the_ratio_in_its_name(speech: np.ndarray) -> None:
    noise = np.random.default_rng(0).standard_normal(5000)
    added = add_noise(speech, noise, 10.0) - speech
    assert 10 * np.log10(np.mean(speech**2) / np.mean(added**2)) == pytest.approx(10.0)
    for name, samples in made(speech).items():
        if name.endswith("db"):
            ratio = 10 * np.log10(np.mean(speech**2) / np.mean((samples - speech) ** 2))
            assert ratio == pytest.approx(float(name.split("_")[1].removesuffix("db")), abs=1e-6)


def test_names_lengths_and_levels(speech: np.ndarray) -> None:
    found = made(speech)
    noisy = {f"{kind}_{snr}db" for kind in ("babble", "stationary", "music") for snr in (10, 0)}
    assert found.keys() == {"clean", "pause", "truncated", *noisy, *NON_SPEECH}
    assert np.array_equal(found["clean"], speech)
    assert len(found["truncated"]) == RATE // 4 and np.array_equal(found["truncated"], speech[: RATE // 4])
    assert len(found["pause"]) == 3 * RATE
    assert 20 * np.log10(np.std(found["silence"])) == pytest.approx(-80, abs=0.5)
    assert 20 * np.log10(np.std(found["music_only"])) == pytest.approx(-26, abs=0.1)


def test_the_pause_is_put_where_nobody_speaks(speech: np.ndarray) -> None:
    paused = with_pause(speech, np.ones(100))
    at = int(np.argmax(paused == 1))
    assert 7000 <= at <= 9000
    assert np.array_equal(np.delete(paused, np.arange(at, at + 100)), speech)


def test_the_same_each_time(speech: np.ndarray) -> None:
    first, second = made(speech), made(speech)
    assert all(np.array_equal(first[name], second[name]) for name in first)
