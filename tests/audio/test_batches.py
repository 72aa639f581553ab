"""Batches: bounded duration, every utterance once an epoch, any position can be taken up, bad features never get through."""

import gzip
import signal
from itertools import islice
from pathlib import Path
from unittest import mock

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import CutSet, MonoCut, Recording, SupervisionSegment
from lhotse.dataset.sampling import DynamicBucketingSampler

from entropy_asr.audio.batches import Batch, Position, TrainingBatches, evaluation_batches, read_cuts
from entropy_asr.config import Augment, Features
from entropy_asr.errors import InputError


def batches(manifest: Path, copies: int = 1, **more: float) -> TrainingBatches:
    return TrainingBatches(
        read_cuts([manifest]), lambda cut: [len(cut.supervisions[0].custom["phonemes"])], np.zeros(80, np.float32),
        Features(), Augment(noise_probability=0.5), copies, max_duration=6.0, buckets=2, seed=1, **more,
    )  # fmt: skip


def test_an_epoch_has_every_utterance_once_within_the_duration(tones: Path) -> None:
    seen = []
    for batch in batches(tones).loader(Position(), workers=0):
        if batch.position.epoch == 1:
            break
        assert batch.audio_seconds <= 6.0 * 1.01
        assert batch.features.shape[0] == len(batch.ids) == len(batch.targets)
        seen += batch.ids
    assert sorted(seen) == [f"tone-{i:02d}" for i in range(24)]


def test_any_position_can_be_taken_up(tones: Path) -> None:
    whole = list(islice(batches(tones, copies=2).loader(Position(), workers=0), 14))
    for start in (0, 3, 12):
        again = next(batches(tones, copies=2).loader(whole[start].position, workers=0))
        assert again.ids == whole[start + 1].ids
        assert again.features.equal(whole[start + 1].features)


def test_workers_make_no_difference(tones: Path) -> None:
    alone = list(islice(batches(tones).loader(Position(), workers=0), 5))
    parallel = list(islice(batches(tones).loader(Position(), workers=2), 5))
    assert [b.ids for b in alone] == [b.ids for b in parallel]
    assert all(a.features.equal(b.features) for a, b in zip(alone, parallel, strict=True))


def test_a_worker_that_dies_is_replaced(tones: Path) -> None:
    source = batches(tones)
    alone = list(islice(source.loader(Position(), workers=0), 8))
    loader = source.loader(Position(), workers=2)
    parallel = list(islice(loader, 2))
    child_died = signal.getsignal(signal.SIGCHLD)
    for worker in psutil.Process().children():
        worker.send_signal(signal.SIGTERM)  # Slurm warns all processes: the loading ones do not answer
        worker.send_signal(signal.SIGINT)
    parallel += list(islice(loader, 2))
    psutil.Process().children()[0].kill()
    parallel += list(islice(loader, 4))
    assert [b.ids for b in alone] == [b.ids for b in parallel]
    assert all(a.features.equal(b.features) for a, b in zip(alone, parallel, strict=True))
    assert child_died is signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL


def test_ranks_share_an_epoch(tones: Path) -> None:
    shares = [[b for b in islice(batches(tones, rank=r, world_size=2).loader(Position(), workers=0), 3)] for r in (0, 1)]
    assert not {i for b in shares[0] for i in b.ids} & {i for b in shares[1] for i in b.ids}


def test_utterances_without_speech_come_at_the_rate_asked_and_again_the_same(tones: Path) -> None:
    whole = list(islice(batches(tones, empty_fraction=0.3).loader(Position(), workers=0), 150))
    empty = [not target for batch in whole for target in batch.targets]
    # 99.9% of all runs of a binomial with 0.3 lie within 3.3 standard deviations
    assert abs(np.mean(empty) - 0.3) < 3.3 * np.sqrt(0.3 * 0.7 / len(empty))
    assert len({name for batch in whole for name, target in zip(batch.ids, batch.targets, strict=True) if not target}) == 24

    for start in (2, 40):  # taken up in the middle, by two worker processes
        source = batches(tones, empty_fraction=0.3)
        for batch, again in zip(whole[start + 1 :], islice(source.loader(whole[start].position, workers=2), 4), strict=False):
            assert (again.ids, again.targets) == (batch.ids, batch.targets)
            assert again.features.equal(batch.features)


def test_without_such_utterances_nothing_changes_for_the_others(tones: Path) -> None:
    some, none = (next(batches(tones, empty_fraction=share).loader(Position(), workers=0)) for share in (0.5, 0.0))
    assert some.ids == none.ids and all(none.targets)
    assert 0 < sum(map(bool, some.targets)) < len(some.targets)
    for k, target in enumerate(some.targets):
        mine, other = (batch.features[k, : batch.feature_lens[k]] for batch in (some, none))
        assert mine.equal(other) == bool(target)


def test_two_copies_differ_in_their_masks_alone(tones: Path) -> None:
    batch = next(batches(tones, copies=2).loader(Position(), workers=0))
    first, second = batch.features.chunk(2)
    assert batch.feature_lens.chunk(2)[0].equal(batch.feature_lens.chunk(2)[1])
    differ = first != second
    assert 0 < differ.float().mean() < 0.9
    assert (differ <= ((first == 0) | (second == 0))).all()


def test_evaluation_batches_hold_each_utterance_once(tones: Path) -> None:
    cuts = read_cuts([tones])
    seen = [cut.id for batch, features, lens in evaluation_batches(cuts, Features(), 5.0) for cut in batch]
    assert sorted(seen) == sorted(cuts.ids)


def test_audio_that_disappears_is_an_error_that_names_it(tones: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.jsonl.gz"
    moved.write_bytes(gzip.compress(gzip.decompress(tones.read_bytes()).replace(str(tones.parent).encode(), b"nowhere")))
    with pytest.raises(InputError, match=r"tone-\d\d.*nowhere"):
        next(batches(moved).loader(Position(), workers=0))


def as_in_an_llm(frames: int, tokens: int) -> int:
    return 30 + frames // 4 + tokens + 1


def size(batch: Batch) -> tuple[int, int]:
    """Padded frames, and positions of a speech-LLM."""
    frames = batch.feature_lens.chunk(len(batch.features) // len(batch.ids))[0].tolist()
    positions = sum(as_in_an_llm(n, len(target)) for n, target in zip(frames, batch.targets, strict=True))
    return batch.features.size(0) * batch.features.size(1), positions


@settings(max_examples=15, deadline=None)
@given(
    utterances=st.lists(st.tuples(st.floats(0.3, 7.0), st.integers(0, 60)), min_size=6, max_size=40),
    max_duration=st.floats(1.0, 40.0),
    buckets=st.integers(2, 6),
    copies=st.integers(1, 2),
    noisy=st.sampled_from([0.0, 0.2, 1.0]),
    pad_max=st.floats(0.0, 2.0),
    empty=st.sampled_from([0.0, 0.5]),
    speeds=st.sampled_from([[1.0], [0.9, 1.0, 1.1]]),
)
def test_no_batch_takes_more_memory_than_the_largest(
    utterances: list, max_duration: float, buckets: int, copies: int, noisy: float, pad_max: float, empty: float, speeds: list
) -> None:
    """Whatever the utterances: in padded frames, and in the positions of a speech-LLM."""
    cuts = [silent_cut(f"u{i}", seconds, tokens) for i, (seconds, tokens) in enumerate(utterances)]
    augment = Augment(noise_probability=noisy, pad_max=pad_max, speed_factors=speeds)
    with (
        mock.patch("entropy_asr.audio.batches.load_audio", lambda cut, config: np.ones(cut.num_samples, np.float32)),
        mock.patch("entropy_asr.audio.batches.NoiseSource.draw", lambda self, rng: np.ones(100 + int(rng.integers(9)))),
        mock.patch("entropy_asr.audio.batches.NoiseSource.__init__", lambda *_: None),
    ):
        source = TrainingBatches(
            CutSet.from_cuts(cuts), lambda cut: [7] * int(cut.supervisions[0].text), np.zeros(80, np.float32), Features(),
            augment, copies, max_duration, buckets, seed=1, empty_fraction=empty, positions=as_in_an_llm,
        )  # fmt: skip
        most = size(source.largest())
        seen = []
        for batch in islice(source.loader(Position(), workers=0), 30):
            frames, positions = size(batch)
            assert frames <= most[0] and positions <= most[1]
            seen += batch.ids if batch.position.epoch == 0 else []
    assert most[0] <= copies * max(1.25 * max_duration, 7 / 0.9 + 2 * pad_max) * 100 + copies * 100
    assert len(seen) == len(set(seen))


def silent_cut(name: str, seconds: float, tokens: int) -> MonoCut:
    samples = int(16000 * seconds)
    recording = Recording(name, [], 16000, samples, samples / 16000)
    supervision = SupervisionSegment(name, name, 0.0, recording.duration, text=str(tokens))
    return MonoCut(name, 0.0, recording.duration, 0, supervisions=[supervision], recording=recording)


def test_halving_batches_is_rare_and_they_are_full(tones: Path) -> None:
    """The bounds are for outliers: of utterances as they are, batches have as many as their duration allows."""
    rng = np.random.default_rng(0)
    cuts = [silent_cut(f"u{i}", float(rng.gamma(6, 0.5) + 0.5), 12) for i in range(3000)]
    with mock.patch("entropy_asr.audio.batches.NoiseSource.__init__", lambda *_: None):
        source = TrainingBatches(
            CutSet.from_cuts(cuts), lambda cut: [7] * 12, np.zeros(80, np.float32), Features(), Augment(pad_max=0.5),
            1, 12.0, 16, seed=1, positions=as_in_an_llm,
        )  # fmt: skip
    plain = DynamicBucketingSampler(source.cuts, max_duration=12.0, num_buckets=16, shuffle=True, seed=1)
    drawn = sum(position.epoch == 0 for position, _ in islice(source.keys(Position()), 2 * len(list(plain))))
    assert drawn < 1.1 * len(list(plain))
