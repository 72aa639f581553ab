"""Augmentation of training audio: speed, noise after padding, no speech at all, SpecAugment (method, section 3).

Every draw comes from a generator made of (seed, epoch, utterance).  So an utterance is augmented in the same way whatever
worker, rank or batch it lands in, and a resumed run continues exactly as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from entropy_asr.config import Augment
from entropy_asr.errors import InputError

if TYPE_CHECKING:
    from lhotse.cut import Cut

NOISE_SUFFIXES = (".wav", ".flac", ".opus")


def generator_for(seed: int, epoch: int, utterance: str, purpose: str) -> np.random.Generator:
    """A random generator of its own for one utterance in one epoch."""
    digest = hashlib.sha256(f"{seed}/{epoch}/{utterance}/{purpose}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "little"))


def draw_padding(rng: np.random.Generator, config: Augment, rate: int) -> tuple[int, int]:
    """Samples of silence before and after an utterance that noise is added to."""
    before, after = (int(rng.beta(1, 3) * config.pad_max * rate) for _ in range(2))
    return before, after


def pad_and_add_noise(samples: np.ndarray, noise: np.ndarray, rng: np.random.Generator, config: Augment, rate: int) -> np.ndarray:
    """Silence before and after, then noise over all of it, at an SNR drawn from N(mean, std) dB.

    Padding comes first, so that the model meets noise without speech at the edges.

    Args:
        samples: (S,) speech. noise: at least one sample; repeated to the length needed. rate: Hz.
    """
    padded = np.pad(samples, draw_padding(rng, config, rate))
    snr = rng.normal(config.noise_snr_mean, config.noise_snr_std)
    start = rng.integers(len(noise))
    noise = np.resize(np.roll(noise, -start), len(padded))
    speech_power, noise_power = np.mean(samples**2), np.mean(noise**2)
    scale = np.sqrt(speech_power / max(noise_power, 1e-10) / 10 ** (snr / 10))
    return (padded + scale * noise).astype(np.float32)


def no_speech(length: int, draw: Callable[[np.random.Generator], np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Audio in which nobody speaks: one time in three near silence, else noise; levels in dB of full scale are uniform.

    Args:
        length: samples. draw: gives noise, at least one sample; repeated to the length needed.
    """
    if rng.random() < 1 / 3:
        noise, level = rng.standard_normal(length), rng.uniform(-90.0, -60.0)
    else:
        noise, level = np.resize(draw(rng), length), rng.uniform(-50.0, -15.0)
    return (10 ** (level / 20) / max(float(np.std(noise)), 1e-6) * noise).astype(np.float32)


def time_warp(mel: np.ndarray, rng: np.random.Generator, most: int) -> np.ndarray:
    """SpecAugment's time warp (Park et al., 2019): a point in time is moved, and what lies before and after it stretched to fit.

    The point is drawn from the middle half, the way from at most `most` frames and at most an eighth of the utterance, to either
    side: so nothing becomes more than twice as fast or as slow, however short the utterance.

    Args:
        mel: (T, num_mel_bins). most: frames; 0: as it is.

    Returns:
        (T, num_mel_bins), linear between the frames.
    """
    frames = len(mel)
    most = min(most, frames // 8)
    if most == 0:
        return mel
    point = int(rng.integers(frames // 4, frames - frames // 4))
    moved = point + int(rng.integers(-most, most + 1))
    source = np.interp(np.arange(frames), [0, moved, frames - 1], [0, point, frames - 1])
    before = np.minimum(source.astype(int), frames - 2)
    weight = (source - before).astype(np.float32)[:, None]
    return (1 - weight) * mel[before] + weight * mel[before + 1]


def spec_augment(
    mel: np.ndarray, fill: np.ndarray, rng: np.random.Generator, config: Augment, time_scale: float = 1.0
) -> np.ndarray:
    """SpecAugment's masks (Park et al., 2019) in a copy of (T, num_mel_bins) features; they hold `fill`, the global mean.

    Time masks share a budget of `time_mask_fraction` of the frames, as in lhotse's SpecAugment: a short utterance gets fewer
    masks, and a mask narrower than `time_mask_width` only where the budget does not hold a whole one for each. Were the
    number not reduced, a mask of a short utterance would be narrower than one frame of the encoder and hide nothing.

    Args:
        time_scale: CR-CTC masks 2.5 times as much time, in up to 2.5 times as many masks (Yao et al., 2024).
    """
    masked = mel.copy()
    frames, bins = mel.shape
    for _ in range(config.freq_masks):
        width = rng.integers(0, min(config.freq_mask_width, bins) + 1)
        start = rng.integers(0, bins - width + 1)
        masked[:, start : start + width] = fill[start : start + width]
    masks, widest = time_masks(frames, config, time_scale)
    for _ in range(masks):
        width = rng.integers(0, widest + 1)
        start = rng.integers(0, frames - width + 1)
        masked[start : start + width] = fill
    return masked


def time_masks(frames: int, config: Augment, time_scale: float = 1.0) -> tuple[int, int]:
    """How many time masks an utterance of `frames` gets, and the most frames that one of them may cover."""
    if config.time_mask_width == 0:
        return 0, 0
    budget = min(config.time_mask_fraction * time_scale, 1.0) * frames
    masks = min(int(config.time_masks * time_scale), math.ceil(budget / config.time_mask_width))
    return (masks, min(config.time_mask_width, int(budget / masks))) if masks else (0, 0)


def at_speed(cut: Cut, factor: float) -> Cut:
    """An utterance at another speed (Ko et al., 2015), under its own id."""
    return cut if factor == 1.0 else cut.perturb_speed(factor, affix_id=False)


def speed_of(cut: Cut) -> float:
    """The factor of :func:`at_speed`."""
    transforms = cut.recording.transforms or []
    return next((float(transform.factor) for transform in transforms if hasattr(transform, "factor")), 1.0)


class NoiseSource:
    """Noise to add to speech: recorded noise where the config names some, else babble, vehicle-like and music-like noise.

    Babble is several training utterances at once. The other two are generated, and the documentation says so. A bank of
    clips is made once; each use takes one of them from a random start.
    """

    CLIPS_A_KIND = 12

    def __init__(self, load: Callable[[Cut], np.ndarray], speech: Sequence[Cut], folders: Sequence[str], rate: int) -> None:
        """load: cut → (S,) samples; speech: training cuts, for babble; folders: of recorded noise; rate: Hz.

        Raises:
            InputError: a folder holds no audio.
        """
        self.load, self.rate = load, rate
        self.recorded: list[Path] = []
        for folder in folders:
            files = sorted(path for path in Path(folder).rglob("*") if path.suffix in NOISE_SUFFIXES)
            if not files:
                raise InputError(f"augment.noise_folders: no audio ({', '.join(NOISE_SUFFIXES)}) under {folder}")
            self.recorded += files
        rng = np.random.default_rng(0)
        kinds = () if self.recorded else (partial(self.babble, speech), self.vehicle, self.music)
        self.clips = [kind(rng) for kind in kinds for _ in range(self.CLIPS_A_KIND)]

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """A few seconds of noise, (S,) float32."""
        if self.recorded:
            from lhotse import Recording

            recording = Recording.from_file(self.recorded[int(rng.integers(len(self.recorded)))])
            return self.load(recording.to_cut())
        return self.clips[int(rng.integers(len(self.clips)))]

    def babble(self, speech: Sequence[Cut], rng: np.random.Generator, voices: int = 5, seconds: float = 6.0) -> np.ndarray:
        """Several training utterances at once, each from a random start."""
        length = int(seconds * self.rate)
        talk = [self.load(speech[int(rng.integers(len(speech)))]) for _ in range(voices)]
        return sum(np.resize(np.roll(x, -rng.integers(len(x))), length) / (np.std(x) + 1e-6) for x in talk).astype(np.float32)

    def vehicle(self, rng: np.random.Generator, seconds: float = 6.0) -> np.ndarray:
        """Road and engine: noise falling 6 to 12 dB an octave, with a few engine harmonics."""
        length = int(seconds * self.rate)
        frequency = np.fft.rfftfreq(length, 1 / self.rate)
        spectrum = rng.normal(size=len(frequency)) + 1j * rng.normal(size=len(frequency))
        road = np.fft.irfft(spectrum / np.maximum(frequency, 20.0) ** rng.uniform(1, 2), length)
        time = np.arange(length) / self.rate
        base = rng.uniform(30, 90)
        engine = sum(np.sin(2 * np.pi * base * k * time + rng.uniform(0, 6.28)) / k for k in range(1, 8))
        return (road / road.std() + 0.3 * engine / engine.std()).astype(np.float32)

    def music(self, rng: np.random.Generator, seconds: float = 6.0) -> np.ndarray:
        """Chords of decaying harmonic tones on a beat."""
        length, beat = int(seconds * self.rate), int(rng.uniform(0.25, 0.6) * self.rate)
        track = np.zeros(length)
        for start in range(0, length, beat):
            time = np.arange(min(2 * beat, length - start)) / self.rate
            for note in rng.choice([0, 3, 4, 5, 7, 9, 10, 12], size=3, replace=False):
                pitch = 110 * 2 ** (int(rng.integers(0, 3)) + note / 12)
                tone = sum(np.sin(2 * np.pi * pitch * k * time) / k**1.5 for k in range(1, 6))
                track[start : start + len(time)] += tone * np.exp(-4 * time)
        return (track / track.std()).astype(np.float32)
