"""The largest batch of each stage that fits the card, and the fastest: what `max_duration` should be.

    entropy-asr tune-batch config/paper.yaml
    entropy-asr tune-batch config/smoke.yaml --memory-gib 4      # without a card

No data and no download: weights are random, utterances are noise of typical lengths.  Modules, engine and batches are the
stages' own.
"""

import gc
import io
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch
from lhotse import AudioSource, CutSet, MonoCut, Recording
from torch import nn

from entropy_asr.audio.batches import Batch, Position, TrainingBatches, WaveformBatch
from entropy_asr.config import Config
from entropy_asr.errors import InputError, did_you_mean
from entropy_asr.models.adaptor import Adaptor
from entropy_asr.models.conformer import ConformerEncoder
from entropy_asr.models.speech_llm import PromptIds, SpeechLLM
from entropy_asr.plan import (
    MEAN_SECONDS,
    PHONEMES_PER_SECOND,
    PROMPT_TOKENS,
    STAGES,
    TEXT_TOKENS_PER_SECOND,
    TRAINED,
    BatchShape,
    llm_config,
    memory,
)
from entropy_asr.stages.objectives import Labels, build
from entropy_asr.stages.sft import AlignmentLoss, TranscriptLoss, llm_positions, prepare
from entropy_asr.text.phonemes import inventory
from entropy_asr.training import distributed
from entropy_asr.training.engine import Engine
from entropy_asr.training.loop import configure_logging
from entropy_asr.training.memory import peak_memory

log = logging.getLogger(__name__)
MARGIN = 0.05  # of the memory, left free: the allocator's fragments, batches of other lengths

UTTERANCES = 1000
SPREAD = 0.5  # [O] standard deviation of the logarithm of their lengths


def _name(index: int) -> str:
    return f"synthetic-{index}"


def synthetic_cuts(config: Config) -> CutSet:
    """Utterances of log-normal lengths around the mean that `plan` assumes, within `quality`; one noise, cut at its start."""
    import soundfile

    rng, rate = np.random.default_rng(0), config.features.sampling_rate
    shortest, longest = config.quality.min_duration, config.quality.max_duration
    seconds = np.clip(rng.lognormal(math.log(MEAN_SECONDS) - SPREAD**2 / 2, SPREAD, UTTERANCES), shortest, longest)
    seconds[0] = longest
    file = io.BytesIO()
    soundfile.write(file, rng.normal(0.0, 0.01, math.ceil(longest * rate)), rate, format="WAV")
    samples = math.ceil(longest * rate)
    noise = Recording("noise", [AudioSource("memory", [0], file.getvalue())], rate, samples, samples / rate)
    return CutSet.from_cuts(
        MonoCut(_name(i), 0.0, round(length * rate) / rate, 0, recording=noise) for i, length in enumerate(seconds.tolist())
    )


def _ids(cut: MonoCut, a_second: float, vocabulary: int) -> list[int]:
    """Target ids of a synthetic utterance, none twice in a row; not 0, which is CTC's blank."""
    return [1 + i % (vocabulary - 1) for i in range(max(1, round(a_second * cut.duration)))]


def synthetic_batches(
    config: Config, stage: str, max_duration: float, device: torch.device, cuts: CutSet | None = None
) -> TrainingBatches:
    """The batches of a stage for a device, of synthetic utterances; one process's."""
    rate, labels, positions = TEXT_TOKENS_PER_SECOND, llm_config(config).vocab_size, {}
    if stage == "pretrain":
        rate, labels = PHONEMES_PER_SECOND, len(inventory())
    else:
        positions = {"positions": partial(llm_positions, prompt=PROMPT_TOKENS, stride=config.adaptor.stride)}
    return TrainingBatches(
        synthetic_cuts(config) if cuts is None else cuts,
        target=partial(_ids, a_second=rate, vocabulary=labels),
        fill=np.zeros(config.features.num_mel_bins, dtype=np.float32),
        features=config.features,
        augment=config.augment.model_copy(update={"noise_folders": []}),
        copies=2 if stage == "pretrain" else 1,
        max_duration=max_duration,
        buckets=config.engine.buckets,
        seed=0,
        waveforms=device.type == "cuda",
        **positions,
    )


def stage_module(config: Config, stage: str) -> nn.Module:
    """What the engine trains in a stage of arm `ours`, with random weights."""
    encoder = ConformerEncoder(config.encoder, config.features.num_mel_bins)
    if stage == "pretrain":
        encoder.checkpoint_activations = config.engine.activation_checkpointing
        return build("phoneme", encoder, Labels(inventory(), list), config)[0]
    from transformers import AutoModelForCausalLM

    llm = AutoModelForCausalLM.from_config(llm_config(config), dtype=torch.float32)
    adaptor = Adaptor(config.adaptor, config.encoder.width, llm.config.hidden_size)
    half = PROMPT_TOKENS // 2
    system = SpeechLLM(encoder, adaptor, llm, PromptIds([1] * half, [1] * (PROMPT_TOKENS - half), 0, 0))
    prepare(system, TRAINED[stage], config.engine.activation_checkpointing)
    if stage == "align" and config.align.ctc_weight:
        # A token a phoneme, and as many of them as an utterance of the mean length has.
        units, spoken = min(len(inventory()), llm.config.vocab_size), round(PHONEMES_PER_SECOND * MEAN_SECONDS)
        tokens = [1 + i % (units - 1) for i in range(max(spoken, units - 1))]
        return AlignmentLoss(system, config.align.ctc_weight, dict.fromkeys(map(_name, range(UTTERANCES)), tokens), 0)
    return TranscriptLoss(system)


def optimiser_steps(engine: Engine, batches: Sequence[Batch | WaveformBatch]) -> None:
    """Learn from each batch, `accumulation` of them a step, as the training loop does."""
    for batch in batches:
        loss, _ = engine(batch.to(engine.device))
        engine.backward(loss)
        engine.step()


@contextmanager
def engine_of(config: Config, stage: str, device: torch.device) -> Iterator[Engine]:
    """The engine of a stage of arm `ours`, with random weights; nothing is left of it behind the block.

    The modules are made on the device: random numbers come faster there.
    """
    with torch.device(device):
        module = stage_module(config, stage)
    scales = {"system.encoder.": config.joint_sft.encoder_lr_scale} if stage == "joint_sft" else None
    engine = Engine(module, getattr(config, stage), config.engine, device, scales)
    del module
    engine.set_lr(0)
    try:
        yield engine
    finally:
        engine.engine.destroy()  # DeepSpeed also keeps parameters in a table of its module
        engine.__dict__.clear()  # the caller's name for the engine outlives the block


def free(device: torch.device) -> None:
    """Give back what no tensor holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def stage_peak(config: Config, stage: str, batch: Batch | WaveformBatch, device: torch.device) -> int:
    """Most bytes that a stage holds, from its model's construction to its second optimiser step, above what was held before.

    Raises:
        torch.OutOfMemoryError: it does not fit on the GPU.
    """
    free(device)
    try:
        with peak_memory(device) as peak, engine_of(config, stage, device) as engine:
            optimiser_steps(engine, [batch] * (2 * engine.schedule.accumulation))
    finally:
        free(device)
    return peak.bytes


def batch_shape(config: Config, stage: str, batch: Batch | WaveformBatch) -> BatchShape:
    """What `plan.memory` asks about a batch."""
    rows, frames = len(batch.feature_lens), int(batch.feature_lens.max())
    lens = [] if stage == "pretrain" else [len(target) for target in batch.targets]
    positions = sum(llm_positions(frames, tokens, PROMPT_TOKENS, config.adaptor.stride) for tokens in lens)
    return BatchShape(rows, frames, positions, sum(len(target) for target in batch.targets))


def largest_fitting(fits: Callable[[int], bool], start: int, limit: int = 3600) -> int:
    """The largest of 1 … limit that fits, up to 5%; 0: not even 1 does.  Tries few where `start` is near.

    If something fits, so must all that is smaller.
    """
    low, high, tried = 0, limit + 1, min(max(1, start), limit)
    stride = tolerance(tried)
    while high - low > tolerance(low):
        if fits(tried):
            low = tried
        else:
            high = tried
        if low and high <= limit:
            tried = (low + high) // 2
        else:
            tried = min(low + stride, limit) if low else max(1, high - stride)
            stride *= 2
    return low


def tolerance(seconds: int) -> int:
    """How near to the largest is near enough, seconds."""
    return max(1, seconds // 20)


def seconds_per_second(engine: Engine, batches: TrainingBatches, taken: int) -> float:
    """Audio that a stage learns from, a second; of some batches as they come, after one to warm up; without loading them."""
    keys = list(islice(batches.keys(Position()), taken + 1))
    loaded = [batches[key] for key in keys]
    optimiser_steps(engine, loaded[:1])
    _synchronise(engine.device)
    begun = time.perf_counter()
    optimiser_steps(engine, loaded[1:])
    _synchronise(engine.device)
    return sum(batch.audio_seconds for batch in loaded[1:]) / (time.perf_counter() - begun)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def fastest(rates: dict[int, float]) -> int:
    """The smallest duration whose rate is within 2% of the best: what remains of the memory is safety."""
    return min(duration for duration, rate in rates.items() if rate >= 0.98 * max(rates.values()))


@dataclass(frozen=True)
class Found:
    """largest: max_duration, seconds; peak: bytes of its largest batch; rates: audio seconds a second by max_duration."""

    largest: int
    peak: int
    rates: dict[int, float]


def tune(config: Config, stage: str, device: torch.device, limit: int, cuts: CutSet, taken: int = 8) -> Found:
    """Find the largest max_duration of a stage whose largest batch takes at most `limit` bytes, and time some up to it.

    Raises:
        InputError: not even one utterance fits.
    """

    def planned(duration: int) -> bool:
        shape = batch_shape(config, stage, synthetic_batches(config, stage, duration, device, cuts).largest())
        return memory(config, stage, shape, gpu=device.type == "cuda").bytes <= limit

    peaks = {}

    def fits(duration: int) -> bool:
        batch = synthetic_batches(config, stage, duration, device, cuts).largest()
        try:
            peaks[duration] = stage_peak(config, stage, batch, device)
        except torch.OutOfMemoryError:
            peaks[duration] = math.inf
        log.info("%s: max_duration %d s takes %.6g GiB", stage, duration, peaks[duration] / 2**30)
        return peaks[duration] <= limit

    largest = largest_fitting(fits, start=largest_fitting(planned, start=round(getattr(config, stage).max_duration)))
    if not largest:
        raise InputError(
            f"{stage}: not even one utterance of {config.quality.max_duration:g} s (quality.max_duration) fits in "
            f"{limit / 2**30:.2f} GiB; set engine.activation_checkpointing, lower quality.max_duration, or take smaller modules"
        )
    rates = {}
    with engine_of(config, stage, device) as engine:
        for part in (0.25, 0.5, 0.75, 1.0):
            duration = math.ceil(part * largest)
            if duration not in rates:
                rates[duration] = seconds_per_second(engine, synthetic_batches(config, stage, duration, device, cuts), taken)
    free(device)
    return Found(largest, peaks[largest], rates)


def settings(config: Config, stage: str, duration: int) -> dict[str, int]:
    """`max_duration` of a stage, and the accumulation that leaves an optimiser step about as much audio as the config's."""
    schedule = getattr(config, stage)
    accumulation = max(1, round(schedule.max_duration * schedule.accumulation / duration))
    return {"max_duration": duration, "accumulation": accumulation}


def report(config: Config, stages: Sequence[str], memory_gib: float | None) -> None:
    """Tune stages, and print what was found, with lines for the config.

    Raises:
        InputError: unknown stage; neither a card nor a limit; not even one utterance fits.
    """
    from rich.console import Console
    from rich.table import Table

    for stage in stages:
        if stage not in STAGES:
            raise InputError(f"--stage is {stage!r}, expected one of {', '.join(STAGES)}{did_you_mean(stage, STAGES)}")
    if distributed.choose_device().type != "cuda" and memory_gib is None:
        raise InputError("this machine has no card: say with --memory-gib how much memory a stage may take")
    configure_logging()
    device = distributed.start()
    limit = memory_gib * 2**30 if memory_gib else math.inf
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        limit = min(limit, total)
        # Above it torch raises OutOfMemoryError, its allocator's fragments counted.
        torch.cuda.set_per_process_memory_fraction((1 - MARGIN) * limit / total, device)
    limit = int((1 - MARGIN) * limit)
    cuts = synthetic_cuts(config)
    title = f"batches in {limit / 2**30:.2f} GiB ({MARGIN:.0%} left free), one process"
    table = Table("stage", "max_duration, s", "largest batch, GiB", "audio s/s", "", title=title)
    lines = []
    for stage in stages or STAGES:
        found = tune(config, stage, device, limit, cuts)
        best = fastest(found.rates)
        for duration, rate in found.rates.items():
            at = f"{found.peak / 2**30:.2f}" if duration == found.largest else ""
            marks = ["largest"] * (duration == found.largest) + ["fastest"] * (duration == best)
            table.add_row(stage, str(duration), at, f"{rate:,.0f}", ", ".join(marks))
        new, old = settings(config, stage, best), getattr(config, stage)
        inside = ", ".join(f"{key}: {value}" for key, value in new.items())
        step, before = math.prod(new.values()), old.max_duration * old.accumulation
        lines.append(f"{stage}: {{{inside}}}  # an optimiser step: {step:g} s a process; in the config {before:g} s")
    console = Console()
    console.print(table)
    console.print("\n".join(lines), soft_wrap=True, highlight=False, markup=False)
    distributed.stop()
