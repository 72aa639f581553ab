"""Augmentation does what its words say, and depends on (seed, epoch, utterance) alone."""

import numpy as np
import pytest
import torch
from lhotse.dataset import SpecAugment
from repository import REPO

from entropy_asr.audio import waveforms
from entropy_asr.audio.augment import (
    Spec,
    draw_masks,
    draw_no_speech,
    draw_noisy,
    draw_warp,
    generator_for,
    time_masks,
)
from entropy_asr.audio.waveforms import Specs, with_noise
from entropy_asr.config import Augment
from entropy_asr.config_files import load_config

RATE = 16000
MINI = load_config(REPO / "config/mini.yaml").augment


def masked_rows(
    mel: np.ndarray, fill: np.ndarray, draws: int, rng: np.random.Generator, config: Augment, scale: float
) -> np.ndarray:
    """(draws, T, bins): one utterance, (T, bins), masked again and again."""
    specs = []
    for _ in range(draws):
        freq, time = draw_masks(*mel.shape, rng, config, scale)
        specs.append(Spec((0, 0), [freq], [time]))
    rows, lens = torch.from_numpy(mel).expand(draws, -1, -1), torch.full((draws,), len(mel))
    return Specs.of(specs).applied(rows, lens, torch.from_numpy(fill)).numpy()


def time_warp(mel: np.ndarray, rng: np.random.Generator, most: int) -> np.ndarray:
    """(T, bins) warped as drawn."""
    warps = torch.tensor([draw_warp(len(mel), rng, most)])
    return waveforms.time_warp(torch.from_numpy(mel)[None], torch.tensor([len(mel)]), warps)[0].numpy()


def test_snr_is_what_was_drawn() -> None:
    config = Augment(noise_snr_mean=7.0, noise_snr_std=0.0, pad_max=0.0)
    rng = np.random.default_rng(0)
    speech, noise = rng.normal(size=RATE).astype(np.float32), rng.normal(size=3 * RATE)
    noisy = with_noise(draw_noisy(speech, noise, rng, config, RATE))
    added = noisy - speech
    assert 10 * np.log10(np.mean(speech**2) / np.mean(added**2)) == pytest.approx(7.0, abs=0.2)


def test_padding_comes_before_the_noise() -> None:
    config = Augment(pad_max=1.0)
    rng = np.random.default_rng(1)
    noisy = with_noise(draw_noisy(np.ones(RATE, np.float32), rng.normal(size=RATE), rng, config, RATE))
    assert RATE < len(noisy) <= 3 * RATE
    assert np.abs(noisy[:50]).max() > 0  # noise where there is no speech


def test_masks_hold_the_mean_and_stay_within_their_budget() -> None:
    config = Augment(freq_masks=0, time_masks=10, time_mask_width=30, time_mask_fraction=0.15)
    mel, fill = np.random.default_rng(0).normal(size=(400, 80)).astype(np.float32), np.arange(80, dtype=np.float32)
    shares = []
    for scale in (1.0, 2.5):
        counts = []
        for i in range(50):
            masked = masked_rows(mel, fill, 1, np.random.default_rng(i), config, scale)[0]
            changed = (masked != mel).any(axis=1)
            assert (masked[changed] == fill).all()
            counts.append(changed.mean())
        assert max(counts) <= 0.15 * scale
        shares.append(np.mean(counts))
    assert shares[1] > 1.8 * shares[0] > 0
    assert np.array_equal(mel, np.random.default_rng(0).normal(size=(400, 80)).astype(np.float32))  # the input is untouched


def runs(changed: np.ndarray) -> list[int]:
    """Lengths of the stretches of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], changed.astype(int), [0]])))
    return list(edges[1::2] - edges[::2])


MASKS = {  # number, width in frames, fraction
    "default": (10, 100, 0.15),
    "mini": tuple(getattr(MINI, f"time_mask{name}") for name in ("s", "_width", "_fraction")),
    "little": (2, 30, 0.03),
    "narrow": (10, 5, 0.15),  # the number limits, not the budget
}


@pytest.mark.parametrize("scale", [1.0, 2.5])
@pytest.mark.parametrize("frames", [100, 400, 800, 1500])
@pytest.mark.parametrize("setting", MASKS)
def test_time_masks_are_distributed_as_those_of_lhotse(setting: str, frames: int, scale: float) -> None:
    """Run lengths and masked frames; lhotse never draws the full width, so its masks are half a frame narrower on average."""
    number, width, fraction = MASKS[setting]
    config = Augment(freq_masks=0, time_masks=number, time_mask_width=width, time_mask_fraction=fraction)
    theirs = SpecAugment(
        time_warp_factor=None,
        num_feature_masks=0,
        num_frame_masks=int(number * scale),
        frames_mask_size=width,
        max_frames_mask_fraction=fraction * scale,
        p=1.0,
    )
    rng, draws = np.random.default_rng(0), 2000
    mel = rng.normal(size=(frames, 2)).astype(np.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        expected = [(theirs(torch.from_numpy(mel)[None])[0].numpy() != mel).any(1) for _ in range(draws)]
    found = list((masked_rows(mel, np.full(2, 9, np.float32), draws, rng, config, scale) != mel).any(2))
    ours, lhotses = (np.array([length for changed in many for length in runs(changed)]) for many in (found, expected))
    for quantile in (25, 50, 75, 95):
        wanted = np.percentile(lhotses, quantile)
        assert np.percentile(ours, quantile) == pytest.approx(wanted, rel=0.15, abs=1)
    assert ours.mean() == pytest.approx(lhotses.mean(), rel=0.1, abs=1)
    masked = [np.mean([changed.sum() for changed in many]) for many in (found, expected)]
    assert masked[0] == pytest.approx(masked[1], abs=0.6 * time_masks(frames, config, scale)[0] + 0.05 * masked[1])


def test_time_masks_keep_their_budget_whatever_the_length() -> None:
    for frames in (1, 2, 7, 30, 99, 1000):
        for config in (
            Augment(freq_masks=0, time_masks=0),
            Augment(freq_masks=0, time_mask_width=0),
            Augment(freq_masks=0, time_mask_fraction=0.0),
            Augment(freq_masks=0, time_masks=2, time_mask_width=30, time_mask_fraction=0.03),
            Augment(freq_masks=0, time_masks=3, time_mask_width=2000, time_mask_fraction=1.0),
        ):
            for scale in (1.0, 2.5):
                number, widest = time_masks(frames, config, scale)
                assert 0 <= number * widest <= min(1.0, config.time_mask_fraction * scale) * frames
                assert widest <= config.time_mask_width and number <= config.time_masks * scale
                ones, zeros = np.ones((frames, 4), np.float32), np.zeros(4, np.float32)
                masked = masked_rows(ones, zeros, 1, np.random.default_rng(0), config, scale)[0]
                assert (masked == 0).all(1).mean() <= min(1.0, config.time_mask_fraction * scale)


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
        samples = with_noise(draw_no_speech(RATE, lambda rng: clip, np.random.default_rng(i)))
        assert samples.shape == (RATE,) and samples.dtype == np.float32
        levels.append(20 * np.log10(samples.std()))
    quiet = np.array(levels) < -55
    assert abs(quiet.mean() - 1 / 3) < 0.1
    assert min(levels) > -91 and -15.5 < max(levels) < -14.5
