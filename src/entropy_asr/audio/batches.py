"""Length-bucketed batches of augmented features, for ever, from any position.

The position of a run is two numbers, the epoch and the batches drawn from it: from there, sampling and every augmentation
are the same again, so resuming is skipping.  lhotse's sampler forms the batches by duration; speed perturbation and the
padding of noisy utterances are drawn before, since they change durations.

A batch that does not fit into the GPU's memory would not fit at any retry either.  So what a batch takes is bounded, and
`largest` makes one that takes as much: padded frames for the encoder, and positions for what reads or writes the targets.
"""

import hashlib
import logging
import math
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lhotse import CutSet
from lhotse.cut import Cut
from lhotse.dataset.sampling import DynamicBucketingSampler
from lhotse.dataset.sampling.base import TimeConstraint
from torch import Tensor
from torch.utils.data import DataLoader

from entropy_asr.audio.augment import (
    NoiseSource,
    Spec,
    Utterance,
    at_speed,
    draw_no_speech,
    draw_noisy,
    draw_padding,
    draw_spec,
    generator_for,
)
from entropy_asr.audio.features import frame_shift, load_audio, log_mel, num_frames
from entropy_asr.audio.precompute_features import stored_log_mel
from entropy_asr.audio.waveforms import Specs, Waveforms, with_noise
from entropy_asr.config import PADDED, Augment, Features
from entropy_asr.errors import InputError
from entropy_asr.signals import ignore_stop, starting_workers

log = logging.getLogger(__name__)
MAX_DEATHS = 3  # of loading processes for one batch


class Position(NamedTuple):
    """Where the next batch is: the epoch, and the batches of it that have been drawn."""

    epoch: int = 0
    drawn: int = 0


class Counted:
    """What the host knows of a batch, wherever its tensors are.

    feature_lens: (copies * N,) frames of each row, on the CPU, where they are read.
    """

    targets: list[list[int]]
    feature_lens: Tensor

    @property
    def weight(self) -> int:
        """Target ids and ends."""
        return sum(len(target) + 1 for target in self.targets)

    @property
    def padding(self) -> float:
        """Share of the frames that are padding."""
        return 1.0 - self.feature_lens.sum().item() / (len(self.feature_lens) * self.feature_lens.max().item())


@dataclass(frozen=True)
class Batch(Counted):
    """Utterances, padded.

    features: (copies * N, T, num_mel_bins), all first copies first; feature_lens: (copies * N,), on the CPU;
    targets: N lists of ids; position: where the next batch is.
    """

    ids: list[str]
    features: Tensor
    feature_lens: Tensor
    targets: list[list[int]]
    audio_seconds: float
    position: Position

    def to(self, device: torch.device) -> "Batch":
        return replace(self, features=self.features.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """As DataLoader asks for it."""
        return replace(self, features=self.features.pin_memory())

    def tensors(self) -> dict[str, Tensor]:
        """What to keep of a batch that went wrong."""
        return {"features": self.features, "feature_lens": self.feature_lens}


@dataclass(frozen=True)
class WaveformBatch(Counted):
    """A batch whose features are computed where it is moved to; the other fields are those of `Batch`.

    fill: (num_mel_bins,), put where SpecAugment masks.
    """

    ids: list[str]
    waveforms: Waveforms
    specs: Specs
    fill: Tensor
    config: Features
    feature_lens: Tensor
    targets: list[list[int]]
    audio_seconds: float
    position: Position

    def to(self, device: torch.device) -> Batch:
        here = self._moved(lambda tensor: tensor.to(device, non_blocking=True))
        mel, lens = here.waveforms.log_mel(self.config)
        features = here.specs.applied(mel, lens, here.fill)
        return Batch(self.ids, features, self.feature_lens, self.targets, self.audio_seconds, self.position)

    def pin_memory(self) -> "WaveformBatch":
        """As DataLoader asks for it."""
        return self._moved(Tensor.pin_memory)

    def _moved(self, move: Callable[[Tensor], Tensor]) -> "WaveformBatch":
        waveforms, specs = Waveforms(*map(move, self.waveforms)), Specs(*map(move, self.specs))
        return replace(self, waveforms=waveforms, specs=specs, fill=move(self.fill))


def _frames(seconds: float, shift: float) -> int:
    """At least as many as features of so much audio have."""
    return math.ceil(seconds / shift) + 1


def read_cuts(paths: list[Path]) -> CutSet:
    """All cuts of some manifests, in memory, in file order.

    Raises:
        InputError: two cuts have one id: hypotheses, alignments, pronunciations and random draws are found by it.
    """
    cuts: dict[str, Cut] = {}
    for path in paths:
        for cut in CutSet.from_file(str(path)):
            if cut.id in cuts:
                raise InputError(
                    f"{path}: id {cut.id!r} occurs twice in {', '.join(map(str, paths))}; name each manifest once, and make "
                    "ids unique, as entropy_asr.corpora.manifest does: <corpus>/<split>/<id>"
                )
            cuts[cut.id] = cut
    return CutSet.from_cuts(cuts.values())


def pad_features(mels: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """(N, T, num_mel_bins), zero-padded, and (N,) lengths."""
    lens = torch.tensor([len(mel) for mel in mels])
    return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(mel) for mel in mels], batch_first=True), lens


@dataclass
class PaddedTime(TimeConstraint):
    """lhotse's limit on rows times the longest one, which counts the silence around noisy utterances."""

    seconds: Callable[[Cut], float] | None = field(default=None, compare=False)

    def add(self, example: Cut) -> None:
        self.num_cuts += 1
        self.longest_seen = max(self.longest_seen, self.seconds(example))

    def measure_length(self, example: Cut) -> float:
        return self.seconds(example)


def target_positions(frames: int, tokens: int) -> int:
    """Of an utterance in a model that writes its target and an end; of frames and tokens."""
    return tokens + 1


class TrainingBatches:
    """Map of (epoch, cuts) to a batch; also the endless sampler of such keys.

    Rows times the longest of them, with the silence around it, is at most `PADDED` times `max_duration`.  The bound on positions
    is `PADDED` times what 19 of 20 utterances need in a full batch of their like: many very short ones would otherwise need
    several times as many as any other batch.  A batch above a bound is halved.  One utterance is always a batch.

    Args:
        cuts: training utterances.
        target: cut → token ids that the model shall give.
        fill: (num_mel_bins,) global mean, put where SpecAugment masks.
        copies: 2 for CR-CTC (two maskings of the same warped, noisy utterance, with more time masking), else 1.
        max_duration: seconds of audio a batch, without the silence around noisy utterances.
        buckets: length buckets.
        seed, rank, world_size: every rank draws its own share of the same shuffle.
        empty_fraction: share of the utterances that are replaced by audio without speech, and whose target is then empty.
        positions: (frames, target ids) of an utterance → positions that the model has for it.
        waveforms: give `WaveformBatch`, for a GPU, instead of `Batch`; stored features are then not read.
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
        positions: Callable[[int, int], int] = target_positions,
        waveforms: bool = False,
    ) -> None:
        self.cuts, self.target, self.features, self.augment = cuts, target, features, augment
        self.fill, self.waveforms = torch.from_numpy(fill), waveforms
        self.copies, self.max_duration, self.buckets = copies, max_duration, buckets
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.empty_fraction, self.positions = empty_fraction, positions
        self._set_bounds()
        self.noise = NoiseSource(partial(load_audio, config=features), cuts, augment.noise_folders, features.sampling_rate)

    def keys(self, start: Position) -> Iterator[tuple[Position, CutSet]]:
        """(position after it, cuts) of each batch, for ever, from `start` on."""
        epoch, skip = start
        while True:
            padded: dict[str, float] = {}

            def seconds(cut: Cut, epoch: int = epoch, padded: dict[str, float] = padded) -> float:
                if cut.id not in padded:  # lhotse asks again and again
                    padded[cut.id] = self._silence(cut, epoch)
                return cut.duration + padded[cut.id]

            sampler = DynamicBucketingSampler(
                self.cuts.map(partial(self._perturb_speed, epoch=epoch)),
                constraint=PaddedTime(max_duration=self.max_duration, seconds=seconds),
                num_buckets=self.buckets,
                shuffle=True,
                seed=self.seed + epoch,
                rank=self.rank,
                world_size=self.world_size,
            )
            drawn = 0
            for drawn, cuts in enumerate((half for batch in sampler for half in self._halved(list(batch), seconds)), 1):
                if drawn > skip:
                    yield Position(epoch, drawn), CutSet.from_cuts(cuts)
            if drawn == 0:
                raise InputError(f"rank {self.rank} of {self.world_size} has no utterance: the training set is too small")
            epoch, skip = epoch + 1, 0

    def _set_bounds(self) -> None:
        """Bounds of a batch, frames and positions of all rows; and the longest row, and the one with most target ids."""
        shift, silence = self.features.frame_shift, 2 * self.augment.pad_max if self.augment.noise_probability else 0.0
        slowest = min((1.0, *self.augment.speed_factors))
        needed, most = [], (0, 0)
        self.longest_frames, self.longest_target = 0, None
        for cut in self.cuts:
            tokens = len(self.target(cut))
            frames = _frames(cut.duration / slowest + silence, shift)
            self.longest_frames = max(self.longest_frames, frames)
            if self.longest_target is None or tokens > most[1]:
                self.longest_target = cut
            most = max(most[0], self.positions(frames, tokens)), max(most[1], tokens)
            rows = max(1, int(self.max_duration / cut.duration))
            needed.append(rows * self.positions(_frames(cut.duration, shift), tokens))
        if not needed:
            raise InputError("the training set is empty")
        self.max_frames = max(self.longest_frames, _frames(PADDED * self.max_duration, shift))
        self.max_positions = max(most[0], int(PADDED * sorted(needed)[(19 * len(needed)) // 20]))

    def _halved(self, cuts: list[Cut], seconds: Callable[[Cut], float]) -> Iterator[list[Cut]]:
        """A batch, or its parts that are within the bounds."""
        frames = [_frames(seconds(cut), self.features.frame_shift) for cut in cuts]
        positions = [self.positions(n, len(self.target(cut))) for n, cut in zip(frames, cuts, strict=True)]
        fits = len(cuts) * max(frames) <= self.max_frames and len(cuts) * max(positions) <= self.max_positions
        if fits or len(cuts) == 1:
            yield cuts
        else:
            middle = (len(cuts) + 1) // 2
            yield from self._halved(cuts[:middle], seconds)
            yield from self._halved(cuts[middle:], seconds)

    def _silence(self, cut: Cut, epoch: int) -> float:
        """Seconds of silence around an utterance in this epoch; only noisy ones have any.

        One without speech counts as if it had some, so that batches are the same whatever `empty_fraction` is.
        """
        _, noisy = generator_for(self.seed, epoch, cut.id, "noise").random(2)
        if noisy >= self.augment.noise_probability:
            return 0.0
        rate = self.features.sampling_rate
        return sum(draw_padding(generator_for(self.seed, epoch, cut.id, "padding"), self.augment, rate)) / rate

    def _perturb_speed(self, cut: Cut, epoch: int) -> Cut:
        factor = generator_for(self.seed, epoch, cut.id, "speed").choice(self.augment.speed_factors)
        return at_speed(cut, float(factor))

    def __getitem__(self, key: tuple[Position, CutSet]) -> Batch | WaveformBatch:
        position, cuts = key
        heard, targets = map(list, zip(*(self._heard(cut, position.epoch) for cut in cuts), strict=True))
        if self.waveforms:
            counts = [num_frames(len(utterance.samples), self.features) for utterance in heard]
        else:
            counts = [len(mel) for mel in heard]
        specs = Specs.of([self._spec(cut, position.epoch, frames) for cut, frames in zip(cuts, counts, strict=True)])
        ids, seconds, lens = [cut.id for cut in cuts], sum(cut.duration for cut in cuts), torch.tensor(counts * self.copies)
        if self.waveforms:
            waveforms = Waveforms.of(heard)
            return WaveformBatch(ids, waveforms, specs, self.fill, self.features, lens, targets, seconds, position)
        return Batch(ids, specs.applied(*pad_features(heard), self.fill), lens, targets, seconds, position)

    def _heard(self, cut: Cut, epoch: int) -> tuple[Utterance | np.ndarray, list[int]]:
        """An utterance in this epoch, as audio for `waveforms`, else as features (T, num_mel_bins); and what to give for it."""
        rate = self.features.sampling_rate
        rng = generator_for(self.seed, epoch, cut.id, "noise")
        target = self.target(cut)
        if rng.random() < self.empty_fraction:
            utterance, target = draw_no_speech(round(cut.duration * rate), self.noise.draw, rng), []
        elif rng.random() < self.augment.noise_probability:
            padding = generator_for(self.seed, epoch, cut.id, "padding")
            utterance = draw_noisy(load_audio(cut, self.features), self.noise.draw(rng), padding, self.augment, rate)
        else:
            stored = None if self.waveforms else stored_log_mel(cut)
            if stored is not None:
                return stored, target
            samples = load_audio(cut, self.features)
            utterance = Utterance(samples, len(samples))
        # Features one by one, not as a batch: the spectra of one utterance stay in the processor's cache.
        return utterance if self.waveforms else log_mel(with_noise(utterance), self.features), target

    def _spec(self, cut: Cut, epoch: int, frames: int) -> Spec:
        rng = generator_for(self.seed, epoch, cut.id, "masks")
        return draw_spec(frames, self.features.num_mel_bins, rng, self.augment, self.copies)

    def largest(self) -> Batch | WaveformBatch:
        """A batch of as many padded frames and positions as any can have, with audio or features that mean nothing."""
        rows = max(1, self.max_frames // self.longest_frames)
        frames = -(-self.max_frames // rows)
        tokens = max(1, -(-self.max_positions // rows) - self.positions(frames, 0))
        targets = [np.resize(self.target(self.longest_target) or [0], tokens).tolist()] * rows
        lens = torch.full((self.copies * rows,), frames)
        ids, seconds, position = [self.longest_target.id] * rows, rows * frames * self.features.frame_shift, Position()
        if self.waveforms:
            silence = np.zeros(frames * frame_shift(self.features), np.float32)
            waveforms = Waveforms.of([Utterance(silence, 0, silence)] * rows)  # all of them noisy
            specs = Specs.of([self._spec(self.longest_target, 0, frames)] * rows)
            return WaveformBatch(ids, waveforms, specs, self.fill, self.features, lens, targets, seconds, position)
        features = self.fill.expand(self.copies * rows, frames, -1).contiguous()
        return Batch(ids, features, lens, targets, seconds, position)

    def loader(self, start: Position, workers: int) -> Iterator[Batch | WaveformBatch]:
        """Batches from position `start` on; those for a GPU in pinned memory."""
        return load_in_order(self, start, workers, pin_memory=self.waveforms)


@dataclass(frozen=True)
class _Keys:
    """The sampler object that DataLoader wants."""

    batches: Any
    start: Position

    def __iter__(self) -> Iterator[tuple]:
        return self.batches.keys(self.start)


def load_in_order(batches: Any, start: Position, workers: int, pin_memory: bool = False) -> Iterator[Any]:
    """What a map makes of its own `keys(start)`, one after the other, by so many processes; 0: by this one.

    Close it (`contextlib.closing`), or the processes live on where an exception keeps it.  A process that dies (out of memory,
    killed) is replaced: all are started again where the batches had come to.

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
            pin_memory=pin_memory,
            generator=torch.Generator().manual_seed(batches.seed),
            worker_init_fn=ignore_stop,
        )
        with starting_workers():
            others = set(multiprocessing.active_children())
            loaded = iter(loader)
            mine = set(multiprocessing.active_children()) - others
        try:
            for made in loaded:
                start, deaths = (made[-1] if isinstance(made, list) else made).position, 0
                yield made
        except (RuntimeError, OSError, EOFError) as error:
            # PyTorch sees the death itself, or a batch of the dead process cannot be fetched any more.
            deaths += 1
            if deaths > MAX_DEATHS or not any(_ended(worker) for worker in mine):
                raise
            log.warning("a loading process died (%s: %s); all are started again", type(error).__name__, error)
        finally:
            del loaded  # asks them to end
            for worker in mine:  # they ignore SIGTERM, and this process would wait for one that hangs
                worker.kill()


def _ended(process: BaseProcess) -> bool:
    process.join(0.2)  # its connections close a moment earlier
    return not process.is_alive()


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


def validation_batches(
    cuts: CutSet, target: Callable[[Cut], list[int]], features: Features, utterances: int, max_duration: float, copies: int = 1
) -> list[Batch]:
    """Utterances chosen by the hash of their ids, as they are: no augmentation, and `copies` are alike."""
    chosen = sorted(cuts, key=lambda cut: hashlib.sha256(cut.id.encode()).digest())[:utterances]
    return [
        Batch(
            [cut.id for cut in some],
            mels.repeat(copies, 1, 1),
            lens.repeat(copies),
            [target(cut) for cut in some],
            sum(cut.duration for cut in some),
            Position(),
        )
        for some, mels, lens in evaluation_batches(chosen, features, max_duration)
    ]
