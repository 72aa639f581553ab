"""Features that are computed for a whole batch, as on a GPU, are those that a loading process computes one by one."""

from dataclasses import fields
from itertools import islice
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from audio.test_batches import silent_cut
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lhotse import CutSet
from torch.utils.data._utils.pin_memory import pin_memory

from entropy_asr.audio.augment import Utterance, draw_spec
from entropy_asr.audio.batches import Batch, Position, TrainingBatches, WaveformBatch, read_cuts
from entropy_asr.audio.features import log_mel
from entropy_asr.audio.waveforms import Specs, Waveforms, with_noise
from entropy_asr.config import Augment, Features

CPU = torch.device("cpu")
FILL = np.linspace(-12.0, -6.0, 80).astype(np.float32)
BARE = dict(speed_factors=[1.0], noise_probability=0.0, time_warp=0, freq_masks=0, time_masks=0)
KINDS = {  # augmentation, and the share without speech
    "plain": (BARE, 0.0),
    "faster or slower": ({**BARE, "speed_factors": [0.9, 1.1]}, 0.0),
    "noisy, padded": ({**BARE, "noise_probability": 1.0}, 0.0),
    "without speech": (BARE, 1.0),
    "warped": ({**BARE, "time_warp": 80}, 0.0),
    "masked": ({**BARE, "freq_masks": 2, "time_masks": 10}, 0.0),
    "all": ({"noise_probability": 0.5}, 0.3),
}


def batches(cuts: CutSet, kind: str, copies: int, waveforms: bool) -> TrainingBatches:
    augment, empty = KINDS[kind]
    return TrainingBatches(
        cuts, lambda cut: [7] * len(cut.id), FILL, Features(), Augment(**augment), copies, max_duration=6.0, buckets=2, seed=1,
        empty_fraction=empty, waveforms=waveforms,
    )  # fmt: skip


def assert_same(batch: Batch, expected: Batch) -> None:
    for field in fields(Batch):
        if field.name not in ("features", "feature_lens"):
            assert getattr(batch, field.name) == getattr(expected, field.name)
    assert (batch.padding, batch.weight) == (expected.padding, expected.weight)
    assert batch.feature_lens.equal(expected.feature_lens) and batch.feature_lens.device.type == "cpu"
    torch.testing.assert_close(batch.features.cpu(), expected.features, rtol=0, atol=1e-3)


@pytest.mark.parametrize("copies", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "device",
    ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))],
)
def test_a_batch_of_waveforms_becomes_the_batch_of_features(tones: Path, kind: str, copies: int, device: str) -> None:
    cuts = read_cuts([tones])
    one_by_one = batches(cuts, kind, copies, waveforms=False).loader(Position(), workers=0)
    at_once = batches(cuts, kind, copies, waveforms=True).loader(Position(), workers=0)
    for expected, given_ in islice(zip(one_by_one, at_once, strict=False), 8):
        assert isinstance(given_, WaveformBatch)
        assert (given_.ids, given_.targets, given_.position) == (expected.ids, expected.targets, expected.position)
        assert (given_.padding, given_.weight) == (expected.padding, expected.weight)
        assert given_.feature_lens.equal(expected.feature_lens)
        assert_same(given_.to(torch.device(device)), expected)


@settings(max_examples=25, deadline=None)
@given(
    utterances=st.lists(st.tuples(st.floats(0.006, 2.0), st.booleans()), min_size=1, max_size=6),
    augment=st.builds(
        Augment,
        speed_factors=st.just([1.0]),
        noise_probability=st.sampled_from([0.0, 0.5, 1.0]),
        noise_snr_mean=st.floats(-5.0, 20.0),
        pad_max=st.floats(0.0, 1.0),
        time_warp=st.integers(0, 100),
        freq_masks=st.integers(0, 3),
        freq_mask_width=st.integers(0, 90),
        time_masks=st.integers(0, 12),
        time_mask_width=st.integers(0, 120),
        time_mask_fraction=st.floats(0.0, 1.0),
    ),
    copies=st.integers(1, 2),
    empty=st.sampled_from([0.0, 0.5]),
)
def test_whatever_the_settings(utterances: list[tuple[float, bool]], augment: Augment, copies: int, empty: float) -> None:
    cuts = [silent_cut(f"u{i}", seconds, 1) for i, (seconds, _) in enumerate(utterances)]
    voiced = {cut.id: spoken for cut, (_, spoken) in zip(cuts, utterances, strict=True)}

    def audio(cut, config) -> np.ndarray:
        samples = np.random.default_rng(cut.num_samples).normal(scale=0.1, size=cut.num_samples).astype(np.float32)
        return samples if voiced[cut.id] else np.zeros_like(samples)

    noise = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    with (
        mock.patch("entropy_asr.audio.batches.load_audio", audio),
        mock.patch("entropy_asr.audio.batches.NoiseSource.draw", lambda self, rng: np.roll(noise, rng.integers(9))),
        mock.patch("entropy_asr.audio.batches.NoiseSource.__init__", lambda *_: None),
    ):
        made = [
            TrainingBatches(
                CutSet.from_cuts(cuts), lambda cut: [1], FILL, Features(), augment, copies, 4.0, 2, 1,
                empty_fraction=empty, waveforms=waveforms,
            )[Position(), CutSet.from_cuts(cuts)]
            for waveforms in (False, True)
        ]  # fmt: skip
    assert_same(made[1].to(CPU), made[0])


@settings(max_examples=30, deadline=None)
@given(lens=st.lists(st.integers(80, 9000), min_size=1, max_size=5), seed=st.integers(0, 99))
@example(lens=[80, 100, 130, 160, 300, 9000], seed=0)
def test_what_an_utterance_gives_does_not_depend_on_the_others(lens: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    utterances = [Utterance(rng.normal(scale=0.1, size=n).astype(np.float32), n, rng.normal(size=n), 0.5) for n in lens]
    mel, frames = Waveforms.of(utterances).log_mel(Features())
    specs = [draw_spec(n, 80, rng, Augment(), 2) for n in frames.tolist()]
    first, second = Specs.of(specs).applied(mel, frames, torch.from_numpy(FILL)).chunk(2)
    for row, (utterance, spec) in enumerate(zip(utterances, specs, strict=True)):
        alone = torch.from_numpy(log_mel(with_noise(utterance), Features()))[None]
        n = alone.size(1)
        expected = Specs.of([spec]).applied(alone, torch.tensor([n]), torch.from_numpy(FILL))
        torch.testing.assert_close(torch.stack([first[row, :n], second[row, :n]]), expected, rtol=0, atol=1e-3)
        assert not first[row, n:].any() and not second[row, n:].any()


def test_workers_and_resuming_make_no_difference(tones: Path) -> None:
    cuts = read_cuts([tones])
    alone = list(islice(batches(cuts, "all", 2, waveforms=True).loader(Position(), workers=0), 6))
    parallel = list(islice(batches(cuts, "all", 2, waveforms=True).loader(Position(), workers=2), 6))
    resumed = list(islice(batches(cuts, "all", 2, waveforms=True).loader(alone[2].position, workers=2), 3))
    for batch, expected in zip(parallel + resumed, alone + alone[3:], strict=True):
        assert batch.ids == expected.ids and batch.position == expected.position
        assert all(a.equal(b) for a, b in zip(tensors(batch), tensors(expected), strict=True))


def tensors(batch: WaveformBatch) -> list[torch.Tensor]:
    return [*batch.waveforms, *batch.specs, batch.fill]


def test_nothing_waits_for_the_device(tones: Path) -> None:
    """Tensors of the device "meta" have no values: what reads one raises."""
    source = batches(read_cuts([tones]), "all", 2, waveforms=True)
    for batch in islice(source.loader(Position(), workers=0), 3):
        moved = batch.to(torch.device("meta"))
        assert moved.features.shape == (2 * len(batch.ids), int(batch.feature_lens.max()), 80)
        assert 0.0 <= moved.padding < 1.0 and moved.weight > len(moved.ids)


def test_every_tensor_of_a_batch_is_pinned(tones: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor.clone()) or pinned[-1])
    cuts = read_cuts([tones])
    for waveforms in (False, True):
        batch = next(batches(cuts, "all", 1, waveforms).loader(Position(), workers=0))
        pinned.clear()
        again = pin_memory(batch)  # as DataLoader does
        assert type(again) is type(batch) and again.position == batch.position
        found = tensors(again) if waveforms else [again.features]
        assert found and all(any(tensor is one for one in pinned) for tensor in found)


def test_stored_features_are_not_read(tones: Path) -> None:
    with mock.patch("entropy_asr.audio.batches.stored_log_mel", side_effect=AssertionError):
        next(batches(read_cuts([tones]), "plain", 1, waveforms=True).loader(Position(), workers=0))


@pytest.mark.parametrize("copies", [1, 2])
def test_no_batch_of_waveforms_takes_more_memory_than_the_largest(tones: Path, copies: int) -> None:
    source, features = (batches(read_cuts([tones]), "all", copies, waveforms) for waveforms in (True, False))
    largest, other = source.largest(), features.largest()
    assert largest.to(CPU).features.shape == other.features.shape
    assert (largest.targets, largest.ids) == (other.targets, other.ids) and largest.feature_lens.equal(other.feature_lens)
    for batch in islice(source.loader(Position(), workers=0), 25):
        assert batch.waveforms.samples.numel() <= largest.waveforms.samples.numel()
        assert batch.waveforms.noise.numel() <= largest.waveforms.noise.numel()
        assert batch.specs.time_masks.size(1) <= largest.specs.time_masks.size(1)
