"""Augmentation does what its words say, and depends on (seed, epoch, utterance) alone."""

import numpy as np
import pytest

from entropy_asr.audio.augment import generator_for, no_speech, pad_and_add_noise, spec_augment, time_warp
from entropy_asr.config import Augment

RATE = 16000


def test_snr_is_what_was_drawn() -> None:
    config = Augment(noise_snr_mean=7.0, noise_snr_std=0.0, pad_max=0.0)
    rng = np.random.default_rng(0)
    speech, noise = rng.normal(size=RATE).astype(np.float32), rng.normal(size=3 * RATE)
    noisy = pad_and_add_noise(speech, noise, rng, config, RATE)
    added = noisy - speech
    assert 10 * np.log10(np.mean(speech**2) / np.mean(added**2)) == pytest.approx(7.0, abs=0.2)


def test_padding_comes_before_the_noise() -> None:
    config = Augment(pad_max=1.0)
    rng = np.random.default_rng(1)
    noisy = pad_and_add_noise(np.ones(RATE, np.float32), rng.normal(size=RATE), rng, config, RATE)
    assert RATE < len(noisy) <= 3 * RATE
    assert np.abs(noisy[:50]).max() > 0  # noise where there is no speech


def test_masks_hold_the_mean_and_stay_within_their_budget() -> None:
    config = Augment(freq_masks=0, time_masks=10, time_mask_width=30, time_mask_fraction=0.15)
    mel, fill = np.random.default_rng(0).normal(size=(400, 80)).astype(np.float32), np.arange(80, dtype=np.float32)
    shares = []
    for scale in (1.0, 2.5):
        counts = []
        for i in range(50):
            masked = spec_augment(mel, fill, np.random.default_rng(i), config, scale)
            changed = (masked != mel).any(axis=1)
            assert (masked[changed] == fill).all()
            counts.append(changed.mean())
        assert max(counts) <= 0.15 * scale
        shares.append(np.mean(counts))
    assert shares[1] > 1.8 * shares[0] > 0
    assert np.array_equal(mel, np.random.default_rng(0).normal(size=(400, 80)).astype(np.float32))  # the input is untouched


def test_time_warp_keeps_the_ends_and_bends_time_at_one_point() -> None:
    mel = np.repeat(np.arange(200, dtype=np.float32)[:, None], 3, axis=1)  # each frame says where it was
    moves = []
    for i in range(200):
        source = time_warp(mel, np.random.default_rng(i), 20)
        assert source.shape == mel.shape and source.dtype == np.float32
        assert np.array_equal(source[:, 0], source[:, 2])
        assert source[0, 0] == 0 and source[-1, 0] == 199
        rates = np.diff(source[:, 0])
        assert rates.min() > 0.5 and rates.max() < 2
        bends = np.flatnonzero(np.abs(np.diff(rates)) > 1e-3)
        assert len(bends) == 0 or bends.max() - bends.min() <= 1  # one point, between two frames
        moves.append(np.abs(source[:, 0] - mel[:, 0]).max())
    assert 15 < max(moves) <= 20 and np.mean(moves) > 5


def test_a_short_utterance_is_warped_little_or_not_at_all() -> None:
    mel = np.repeat(np.arange(40, dtype=np.float32)[:, None], 3, axis=1)
    moves = [np.abs(time_warp(mel, np.random.default_rng(i), 80) - mel).max() for i in range(100)]
    assert 3 < max(moves) <= 5  # an eighth
    assert np.array_equal(time_warp(mel[:7], np.random.default_rng(0), 80), mel[:7])
    assert np.array_equal(time_warp(mel, np.random.default_rng(0), 0), mel)


def test_a_draw_depends_on_seed_epoch_utterance_and_purpose_alone() -> None:
    draws = {
        key: generator_for(*key).random()
        for key in [(1, 0, "a", "x"), (2, 0, "a", "x"), (1, 1, "a", "x"), (1, 0, "b", "x"), (1, 0, "a", "y")]
    }
    assert len(set(draws.values())) == 5
    assert generator_for(1, 0, "a", "x").random() == draws[1, 0, "a", "x"]


def test_without_speech_it_is_silence_or_noise() -> None:
    clip = np.sin(np.arange(3000) / 7).astype(np.float32)
    levels = []
    for i in range(300):
        samples = no_speech(RATE, lambda rng: clip, np.random.default_rng(i))
        assert samples.shape == (RATE,) and samples.dtype == np.float32
        levels.append(20 * np.log10(samples.std()))
    quiet = np.array(levels) < -55
    assert abs(quiet.mean() - 1 / 3) < 0.1
    assert min(levels) > -91 and -15.5 < max(levels) < -14.5
