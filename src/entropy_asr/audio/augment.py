"""Random draws of augmentation: speed, noise after padding, no speech at all, SpecAugment (method, section 3).

`audio.waveforms` computes what they say.

Every draw comes from a generator made of (seed, epoch, utterance).  So an utterance is augmented in the same way whatever
worker, rank or batch it lands in, and a resumed run continues exactly as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

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


class Utterance(NamedTuple):
    """An utterance's audio, and what was drawn for its noise; `audio.waveforms` mixes them.

    samples: (S,) float32, with the silence around the speech; speech: how many of the samples are the utterance's own, 0: nobody
    speaks; noise: (S,), or None; gain: amplitude of the noise, relative to the speech's or, where nobody speaks, to full scale.
    """

    samples: np.ndarray
    speech: int
    noise: np.ndarray | None = None
    gain: float = 0.0


class Spec(NamedTuple):
    """SpecAugment's draws for an utterance, in frames and Mel channels.

    warp: a point and where it is moved; 0, 0: no warp. freq_masks, time_masks: of each copy, the first and one past the last.
    """

    warp: tuple[int, int]
    freq_masks: list[list[tuple[int, int]]]
    time_masks: list[list[tuple[int, int]]]


def draw_noisy(samples: np.ndarray, noise: np.ndarray, rng: np.random.Generator, config: Augment, rate: int) -> Utterance:
    """Silence before and after, then noise over all of it, at an SNR drawn from N(mean, std) dB.

    Padding comes first, so that the model meets noise without speech at the edges.

    Args:
        samples: (S,) speech. noise: at least one sample; repeated to the length needed. rate: Hz.
    """
    padded = np.pad(samples, draw_padding(rng, config, rate))
    snr = rng.normal(config.noise_snr_mean, config.noise_snr_std)
    start = rng.integers(len(noise))
    return Utterance(padded, len(samples), np.resize(np.roll(noise, -start), len(padded)), 10 ** (-snr / 20))


def draw_no_speech(length: int, draw: Callable[[np.random.Generator], np.ndarray], rng: np.random.Generator) -> Utterance:
    """Audio in which nobody speaks: one time in three near silence, else noise; levels in dB of full scale are uniform.

    Args:
        length: samples. draw: gives noise, at least one sample; repeated to the length needed.
    """
    if rng.random() < 1 / 3:
        noise, level = rng.standard_normal(length), rng.uniform(-90.0, -60.0)
    else:
        noise, level = np.resize(draw(rng), length), rng.uniform(-50.0, -15.0)
    return Utterance(np.zeros(length, np.float32), 0, noise, 10 ** (level / 20))


def draw_spec(frames: int, bins: int, rng: np.random.Generator, config: Augment, copies: int = 1) -> Spec:
    """SpecAugment (Park et al., 2019) of an utterance: one time warp, and masks for each copy.

    Two copies are for CR-CTC, which masks 2.5 times as much time, in up to 2.5 times as many masks (Yao et al., 2024).
    """
    warp = draw_warp(frames, rng, config.time_warp)
    masks = [draw_masks(frames, bins, rng, config, 2.5 if copies == 2 else 1.0) for _ in range(copies)]
    return Spec(warp, [freq for freq, _ in masks], [time for _, time in masks])


def draw_warp(frames: int, rng: np.random.Generator, most: int) -> tuple[int, int]:
    """A point in time, and where it is moved; what lies before and after it is stretched to fit. 0, 0: no warp.

    The point is drawn from the middle half, the way from at most `most` frames and at most an eighth of the utterance, to either
    side: so nothing becomes more than twice as fast or as slow, however short the utterance.
    """
    most = min(most, frames // 8)
    if most == 0:
        return 0, 0
    point = int(rng.integers(frames // 4, frames - frames // 4))
    return point, point + int(rng.integers(-most, most + 1))


def draw_masks(
    frames: int, bins: int, rng: np.random.Generator, config: Augment, time_scale: float = 1.0
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Frequency masks and time masks of one copy: the first, and one past the last.

    Time masks share a budget of `time_mask_fraction` of the frames, as in lhotse's SpecAugment: a short utterance gets fewer
    masks, and a mask narrower than `time_mask_width` only where the budget does not hold a whole one for each. Were the
    number not reduced, a mask of a short utterance would be narrower than one frame of the encoder and hide nothing.
    """

    def draw(size: int, widest: int) -> tuple[int, int]:
        width = int(rng.integers(0, widest + 1))
        start = int(rng.integers(0, size - width + 1))
        return start, start + width

    freq = [draw(bins, min(config.freq_mask_width, bins)) for _ in range(config.freq_masks)]
    number, widest = time_masks(frames, config, time_scale)
    return freq, [draw(frames, widest) for _ in range(number)]


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
