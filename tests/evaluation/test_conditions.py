"""The conditions are what their names say, and the same each time."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from entropy_asr.audio.augment import NoiseSource
from entropy_asr.audio.batches import read_cuts
from entropy_asr.audio.features import load_audio
from entropy_asr.config import Features, Hallucination
from entropy_asr.config_files import load_config, stage_json
from entropy_asr.evaluation.conditions import NON_SPEECH, add_noise, app, make_conditions, with_pause

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


def test_all_audio_is_one_file_and_each_cut_has_its_own_stretch(tones: Path, tmp_path: Path) -> None:
    (tmp_path / "conditions.json").write_text(stage_json(load_config({"hallucination": {"utterances": 3}}), "conditions"))
    audio, out = tmp_path / "audio/tones.flac", tmp_path / "tones.jsonl.gz"
    words = ["--config", tmp_path / "conditions.json", "--cuts", tones, "--audio", audio, "--out", out]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    assert list(audio.parent.iterdir()) == [audio]
    spoken, made = {cut.id: cut for cut in read_cuts([tones])}, list(read_cuts([out]))
    assert len({cut.id.split("@")[0] for cut in made}) == 3 and len({cut.id for cut in made}) == len(made)
    ends = 0.0
    for cut in made:
        custom = cut.supervisions[0].custom
        assert custom["audio"] == str(audio) and custom["audio_start"] == cut.start == pytest.approx(ends)
        ends = cut.end
        samples, source = load_audio(cut, Features()), load_audio(spoken[cut.id.split("@")[0]], Features())
        if custom["condition"] == "clean":
            assert np.array_equal(samples, source)
        if custom["condition"] == "truncated":
            assert np.array_equal(samples, source[: len(samples)]) and 0 < len(samples) < len(source)
        if custom["condition"] == "silence":
            assert len(samples) == len(source) and 20 * np.log10(np.std(samples)) < -75
            assert cut.supervisions[0].text == ""
    assert ends == pytest.approx(cut.recording.duration)
