"""Length-bucketed batches of augmented features, for ever, from any position.

The position of a run is two numbers, the epoch and the batches drawn from it: from there, sampling and every augmentation
are the same again, so resuming is skipping.  lhotse's sampler forms the batches by total duration; speed perturbation is
drawn before, since it changes durations.
"""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset.sampling import DynamicBucketingSampler
from torch import Tensor
from torch.utils.data import DataLoader

from entropy_asr.audio.augment import NoiseSource, at_speed, generator_for, no_speech, pad_and_add_noise, spec_augment, time_warp
from entropy_asr.audio.features import load_audio, log_mel
from entropy_asr.audio.precompute_features import stored_log_mel
from entropy_asr.config import Augment, Features
from entropy_asr.errors import InputError
from entropy_asr.signals import ignore_stop, starting_workers

log = logging.getLogger(__name__)
MAX_DEATHS = 3  # of loading processes for one batch


class Position(NamedTuple):
    """Where the next batch is: the epoch, and the batches of it that have been drawn."""

    epoch: int = 0
    drawn: int = 0


@dataclass(frozen=True)
class Batch:
    """Utterances, padded.

    features: (copies * N, T, num_mel_bins), all first copies first; feature_lens: (copies * N,);
    targets: N lists of ids; position: where the next batch is.
    """

    ids: list[str]
    features: Tensor
    feature_lens: Tensor
    targets: list[list[int]]
    audio_seconds: float
    position: Position

    def to(self, device: torch.device) -> "Batch":
        return replace(self, features=self.features.to(device), feature_lens=self.feature_lens.to(device))

    @property
    def padding(self) -> float:
        """Share of the frames that are padding."""
        return 1.0 - self.feature_lens.sum().item() / (self.features.size(0) * self.features.size(1))

    def tensors(self) -> dict[str, Tensor]:
        """What to keep of a batch that went wrong."""
        return {"features": self.features, "feature_lens": self.feature_lens}


def read_cuts(paths: list[Path]) -> CutSet:
    """All cuts of some manifests, in memory, in file order."""
    return CutSet.from_cuts(cut for path in paths for cut in CutSet.from_file(str(path)))


def pad_features(mels: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """(N, T, num_mel_bins), zero-padded, and (N,) lengths."""
    lens = torch.tensor([len(mel) for mel in mels])
    return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(mel) for mel in mels], batch_first=True), lens


class TrainingBatches:
    """Map of (epoch, cuts) to a Batch; also the endless sampler of such keys.

    Args:
        cuts: training utterances.
        target: cut → token ids that the model shall give.
        fill: (num_mel_bins,) global mean, put where SpecAugment masks.
        copies: 2 for CR-CTC (two maskings of the same warped, noisy utterance, with more time masking), else 1.
        max_duration: seconds of audio a batch.
        buckets: length buckets.
        seed, rank, world_size: every rank draws its own share of the same shuffle.
        empty_fraction: share of the utterances that are replaced by audio without speech, and whose target is then empty.
    """

    def __init__(
        self,
        cuts: CutSet,
        target: Callable[..., list[int]],
        fill: np.ndarray,
        features: Features,
        augment: Augment,
        copies: int,
        max_duration: float,
        buckets: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        empty_fraction: float = 0.0,
    ) -> None:
        self.cuts, self.target, self.fill, self.features, self.augment = cuts, target, fill, features, augment
        self.copies, self.max_duration, self.buckets = copies, max_duration, buckets
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.empty_fraction = empty_fraction
        self.noise = NoiseSource(partial(load_audio, config=features), cuts, augment.noise_folders, features.sampling_rate)

    def keys(self, start: Position) -> Iterator[tuple[Position, CutSet]]:
        """(position after it, cuts) of each batch, for ever, from `start` on."""
        epoch, skip = start
        while True:
            sampler = DynamicBucketingSampler(
                self.cuts.map(partial(self._perturb_speed, epoch=epoch)),
                max_duration=self.max_duration,
                num_buckets=self.buckets,
                shuffle=True,
                seed=self.seed + epoch,
                rank=self.rank,
                world_size=self.world_size,
            )
            drawn = 0
            for drawn, cuts in enumerate(sampler, 1):
                if drawn > skip:
                    yield Position(epoch, drawn), cuts
            if drawn == 0:
                raise InputError("the training set is empty, or each utterance is longer than max_duration")
            epoch, skip = epoch + 1, 0

    def _perturb_speed(self, cut: Cut, epoch: int) -> Cut:
        factor = generator_for(self.seed, epoch, cut.id, "speed").choice(self.augment.speed_factors)
        return at_speed(cut, float(factor))

    def __getitem__(self, key: tuple[Position, CutSet]) -> Batch:
        position, cuts = key
        epoch = position.epoch
        copies: list[list[np.ndarray]] = [[] for _ in range(self.copies)]
        targets = []
        time_scale = 2.5 if self.copies == 2 else 1.0
        for cut in cuts:
            mel, target = self._heard(cut, epoch)
            targets.append(target)
            rng = generator_for(self.seed, epoch, cut.id, "masks")
            mel = time_warp(mel, rng, self.augment.time_warp)
            for copy in copies:
                copy.append(spec_augment(mel, self.fill, rng, self.augment, time_scale))
        features, lens = pad_features([mel for copy in copies for mel in copy])
        return Batch([cut.id for cut in cuts], features, lens, targets, sum(cut.duration for cut in cuts), position)

    def _heard(self, cut: Cut, epoch: int) -> tuple[np.ndarray, list[int]]:
        """Features of an utterance in this epoch, (T, num_mel_bins), and what the model shall give for them."""
        rate = self.features.sampling_rate
        rng = generator_for(self.seed, epoch, cut.id, "noise")
        if rng.random() < self.empty_fraction:
            return log_mel(no_speech(round(cut.duration * rate), self.noise.draw, rng), self.features), []
        if rng.random() < self.augment.noise_probability:
            samples = pad_and_add_noise(load_audio(cut, self.features), self.noise.draw(rng), rng, self.augment, rate)
            return log_mel(samples, self.features), self.target(cut)
        stored = stored_log_mel(cut)
        return log_mel(load_audio(cut, self.features), self.features) if stored is None else stored, self.target(cut)

    def largest(self) -> Batch:
        """A batch that needs as much memory as any: the longest utterances, slowed down, until the duration is full."""
        slowest = min((1.0, *self.augment.speed_factors))
        longest = sorted(self.cuts, key=lambda cut: (-cut.duration, cut.id))
        fitting = math.ceil(self.max_duration * slowest / longest[0].duration)
        cuts = [at_speed(cut, slowest) for cut in longest[:fitting]]
        return self[(Position(), CutSet.from_cuts(cuts))]

    def loader(self, start: Position, workers: int) -> Iterator[Batch]:
        """Batches from position `start` on."""
        return load_in_order(self, start, workers)


@dataclass(frozen=True)
class _Keys:
    """The sampler object that DataLoader wants."""

    batches: Any
    start: Position

    def __iter__(self) -> Iterator[tuple]:
        return self.batches.keys(self.start)


def load_in_order(batches: Any, start: Position, workers: int) -> Iterator[Any]:
    """What a map makes of its own `keys(start)`, one after the other, by so many processes; 0: by this one.

    A process that dies (out of memory, killed) is replaced: all are started again where the batches had come to.

    Raises:
        RuntimeError: one died for the fourth time before a batch came.
    """
    deaths = 0
    while True:
        # A generator of its own: otherwise the loader draws a seed from torch's, and a resumed run has other dropout.
        loader = DataLoader(
            batches,
            sampler=_Keys(batches, start),
            batch_size=None,
            num_workers=workers,
            generator=torch.Generator().manual_seed(batches.seed),
            worker_init_fn=ignore_stop,
        )
        with starting_workers():
            loaded = iter(loader)
        try:
            for made in loaded:
                start, deaths = (made[-1] if isinstance(made, list) else made).position, 0
                yield made
        except RuntimeError as error:
            deaths += 1
            if "exited unexpectedly" not in str(error) or deaths > MAX_DEATHS:
                raise
            log.warning("%s; the loading processes are started again", error)


def evaluation_batches(cuts: CutSet, features: Features, max_duration: float) -> Iterator[tuple[list, Tensor, Tensor]]:
    """(cuts, features, feature_lens), longest first, each batch at most `max_duration` seconds with its padding."""
    batch: list = []
    for cut in sorted(cuts, key=lambda cut: (-cut.duration, cut.id)):
        if batch and (len(batch) + 1) * batch[0].duration > max_duration:
            yield batch, *pad_features([log_mel(load_audio(c, features), features) for c in batch])
            batch = []
        batch.append(cut)
    if batch:
        yield batch, *pad_features([log_mel(load_audio(c, features), features) for c in batch])
