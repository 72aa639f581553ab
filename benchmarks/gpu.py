"""What has to be known on a GPU, at the paper's sizes, in bf16, in one go: `make gpu`.

    python benchmarks/gpu.py                              # all, at most 8 minutes; docs/benchmarks_gpu.json and its page
    python benchmarks/gpu.py --only steps,encoder
    python benchmarks/gpu.py --toy --output /tmp/try.json  # whether it runs at all, on a CPU

Weights are random and audio is noise: speed and memory do not depend on what they say.  Each entry is written as soon as it is
measured, and one that fails says why and stops no other.  An entry that misses its goal tells where its time goes.
"""

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import run as small
import soundfile
import torch
import typer
from lhotse import CutSet, MonoCut, Recording
from torch import Tensor, nn

from entropy_asr import plan, tune_batch
from entropy_asr.audio.batches import Batch, Position, TrainingBatches
from entropy_asr.config import Config
from entropy_asr.config_files import load_config
from entropy_asr.files import atomic_write
from entropy_asr.models import attention
from entropy_asr.models.adaptor import Adaptor
from entropy_asr.models.conformer import ConformerEncoder, length_mask, subsampled_length
from entropy_asr.models.flops import matmul_rate
from entropy_asr.models.speech_llm import PromptIds, SpeechLLM
from entropy_asr.training import distributed

PROMPT = PromptIds(list(range(2, 14)), list(range(20, 28)), 1, 0)


@dataclass
class Entry:
    """One line of the table. numbers: what was measured, by name with its unit; met: the goal; None: there is none."""

    name: str
    numbers: dict[str, float]
    goal: str = ""
    met: bool | None = None
    note: str = ""
    where: dict[str, float] = field(default_factory=dict)
    """Share of the step's time by kind of work, where the goal was missed."""


@dataclass(frozen=True)
class Setting:
    """What is measured, and where."""

    config: Config
    device: torch.device
    dtype: torch.dtype
    turns: int
    toy: bool

    @property
    def seconds(self) -> list[float]:
        """Utterances of a length-bucketed batch of about `max_duration`."""
        longest = 1.0 if self.toy else 9.5
        return [longest * (1 - 0.01 * i) for i in range(max(2, int(self.config.joint_sft.max_duration / 9)))]


# -- measuring -----------------------------------------------------------------------------------------------------------


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(step: Callable[[], Any], setting: Setting) -> float:
    """Median seconds of a call, after three that warm up."""
    for _ in range(1 if setting.toy else 3):
        step()
    seconds = []
    for _ in range(setting.turns):
        wait(setting.device)
        begun = time.perf_counter()
        step()
        wait(setting.device)
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


KINDS = {  # of kernels, by what their names contain
    "attention": ("flash", "fmha", "attention", "softmax"),
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "aten::mm", "aten::addmm", "aten::bmm"),
    "convolutions": ("conv", "wgrad", "dgrad", "depthwise"),
    "optimiser": ("adam", "multi_tensor", "foreach"),
    "copies": ("memcpy", "copy", "memset", "cat", "index"),
    "other kernels": ("",),
}


def where_time_goes(step: Callable[[], Any], setting: Setting) -> dict[str, float]:
    """Share of a step's time in each kind of kernel; the rest, in which no kernel ran, is waiting for the host."""
    gpu = setting.device.type == "cuda"
    step()
    wait(setting.device)
    with torch.profiler.profile() as profiler:
        begun = time.perf_counter()
        step()
        wait(setting.device)
        whole = time.perf_counter() - begun
    spent = dict.fromkeys(KINDS, 0.0)
    for event in profiler.key_averages():
        seconds = (event.self_device_time_total if gpu else event.self_cpu_time_total) / 1e6
        name = event.key.lower()
        spent[next(kind for kind, parts in KINDS.items() if any(part in name for part in parts))] += seconds
    found = {kind: round(seconds / whole, 3) for kind, seconds in spent.items()}
    return found | {"waiting for the host": round(max(0.0, 1 - sum(found.values())), 3)}


def judged(entry: Entry, met: bool, step: Callable[[], Any], setting: Setting) -> Entry:
    """With its verdict, and where the time goes if it is bad."""
    entry.met = met
    if not met:
        entry.where = where_time_goes(step, setting)
    return entry


def free() -> None:
    """Give back the memory of what is no longer used."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


# -- what is measured ----------------------------------------------------------------------------------------------------


def system(setting: Setting, llm: str = "llm") -> SpeechLLM:
    """The speech-LLM at the config's sizes with random weights, in the precision that is measured."""
    from transformers import AutoModelForCausalLM

    config = setting.config
    sizes = plan.llm_config(config.model_copy(update={"llm": getattr(config, llm)}))
    torch.set_default_dtype(setting.dtype)
    try:
        with setting.device:
            language = AutoModelForCausalLM.from_config(sizes)
            encoder = ConformerEncoder(config.encoder, config.features.num_mel_bins)
            adaptor = Adaptor(config.adaptor, config.encoder.width, sizes.hidden_size)
    finally:
        torch.set_default_dtype(torch.float32)
    return SpeechLLM(encoder, adaptor, language, PROMPT).to(setting.device, setting.dtype)


def batch(setting: Setting, copies: int, vocabulary: int) -> Batch:
    """A typical batch: features that mean nothing, four target ids a second."""
    lens = torch.tensor([int(100 * seconds) for seconds in setting.seconds] * copies)
    features = torch.randn(len(lens), int(lens.max()), setting.config.features.num_mel_bins)
    ids = [[30 + (7 * i + k) % (vocabulary - 30) for k in range(max(1, int(4 * s)))] for i, s in enumerate(setting.seconds)]
    return Batch([str(i) for i in range(len(ids))], features, lens, ids, sum(setting.seconds), Position())


def machine(setting: Setting) -> Iterator[Entry]:
    """The card: its rate of matrix products, and of copies."""
    size = 2**20 if setting.toy else 2**30
    source, target = (torch.zeros(size, dtype=torch.uint8, device=setting.device) for _ in range(2))
    copied = 2 * size / timed(lambda: target.copy_(source), setting)
    yield Entry(
        "the card",
        {"TFLOP/s": matmul_rate(setting.device, setting.dtype) / 1e12, "TB/s copied": copied / 1e12},
        note=f"attention by {attention.kernel(setting.device.type, setting.dtype, 128)}",
    )


def plain_step(setting: Setting, model: SpeechLLM, given: Batch, trains_encoder: bool) -> Callable[[], None]:
    """Forward and backward of a straightforward implementation: rows padded to one length, logits everywhere, SDPA."""
    features = given.features.to(setting.device)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        model.llm.set_attn_implementation("sdpa")
        try:
            with torch.set_grad_enabled(trains_encoder):
                encoded = model.encoder(features, given.feature_lens)
            small.plain_loss(model, *encoded, given.targets).backward()
        finally:
            model.llm.set_attn_implementation(attention.PACKED)

    return step


def steps(setting: Setting) -> Iterator[Entry]:
    """An optimiser step of each stage under the engine, its memory against the plan, and the plain way."""
    for stage in ("joint_sft", "ia_sft", "align", "pretrain"):
        schedule = getattr(setting.config, stage)
        source = tune_batch.synthetic_batches(setting.config, stage, schedule.max_duration, setting.device)
        batches = [batch.to(setting.device) for batch in islice(source.loader(Position(), 0), schedule.accumulation)]
        with tune_batch.engine_of(setting.config, stage, setting.device) as engine:
            step = partial(tune_batch.optimiser_steps, engine, batches)
            seconds = timed(step, setting)
            flops = sum(engine.module.flops(batch) for batch in batches)
            mfu = flops / seconds / matmul_rate(setting.device, setting.dtype)
            audio = sum(batch.audio_seconds for batch in batches)
            goal = "MFU ≥ 0.45" if stage in ("joint_sft", "pretrain") else ""
            entry = Entry(f"{stage}, an optimiser step", {"audio seconds a second": audio / seconds, "MFU": mfu}, goal)
            yield judged(entry, mfu >= 0.45, step, setting) if goal else entry
        del engine, step, batches
        largest = source.largest()
        peak = tune_batch.stage_peak(setting.config, stage, largest, setting.device)
        shape = tune_batch.batch_shape(setting.config, stage, largest)
        planned = plan.memory(setting.config, stage, shape, gpu=setting.device.type == "cuda").bytes
        numbers = {"GB": peak / 1e9, "planned GB": planned / 1e9}
        yield Entry(f"{stage}, memory of the largest batch", numbers, "within 15%", abs(planned / peak - 1) <= 0.15)
        del largest
        free()
    for stage, trains_encoder in (("joint_sft", True), ("align", False)):
        free()
        model = system(setting).train()
        if not trains_encoder:
            model.encoder.requires_grad_(False)
            model.llm.requires_grad_(False)
        given = batch(setting, 1, model.llm.config.vocab_size)
        features = given.features.to(setting.device)

        def ours(model: SpeechLLM = model, given: Batch = given, features: Tensor = features) -> None:
            model.zero_grad(set_to_none=True)
            loss, tokens = model(features, given.feature_lens, given.targets)
            (loss / tokens).backward()

        mine, theirs = timed(ours, setting), timed(plain_step(setting, model, given, trains_encoder), setting)
        numbers = {"ratio": theirs / mine, "ms": 1e3 * mine, "plain ms": 1e3 * theirs}
        entry = Entry(f"{stage}, forward and backward, against the plain way", numbers, "ratio ≥ 1.5")
        yield judged(entry, theirs >= 1.5 * mine, ours, setting)


def data(setting: Setting) -> Iterator[Entry]:
    """Features on the card, against a step of alignment and against a CPU; and whether the loader keeps up with it."""
    config, gpu = setting.config, setting.device.type == "cuda"
    seconds, workers = (1.0, 1) if setting.toy else (9.5, 16)
    with tempfile.TemporaryDirectory() as folder, tune_batch.engine_of(config, "align", setting.device) as engine:
        cuts = noise_files(Path(folder), 8 if setting.toy else 200, seconds, config.features.sampling_rate)
        make = partial(
            TrainingBatches, cuts, target=some_ids, fill=np.zeros(config.features.num_mel_bins, np.float32),
            features=config.features, augment=config.augment.model_copy(update={"noise_folders": []}), copies=1,
            max_duration=config.align.max_duration, buckets=2, seed=0,
        )  # fmt: skip
        source, by_cpu = make(waveforms=True), make(waveforms=False)
        key = next(source.keys(Position()))
        host = source[key].pin_memory() if gpu else source[key]
        ready = host.to(setting.device)
        # In training the step of an accumulated micro-batch is its forward and backward pass.
        step = timed(lambda: tune_batch.optimiser_steps(engine, [ready]), setting)
        here = timed(lambda: host.to(setting.device), setting)
        slow = Setting(config, torch.device("cpu"), torch.float32, 2, True)
        loaded, cpu = (timed(partial(batches.__getitem__, key), slow) for batches in (source, by_cpu))
        numbers = {"share of alignment's step": here / step, "ms": 1e3 * here, "ms on one CPU core": 1e3 * (cpu - loaded)}
        entry = Entry("features and augmentation of a batch, on the card", numbers, "under 3% of a step", here <= 0.03 * step)
        if not entry.met:
            entry.where = where_time_goes(lambda: host.to(setting.device), setting)
        yield entry
        waited, count = 0.0, 2 if setting.toy else 40
        with closing(source.loader(Position(), workers)) as loader:
            for _ in range(2 if setting.toy else 16):  # workers start, and fill their queues
                next(loader)
            begun = time.perf_counter()
            heard = 0.0
            for _ in range(count):
                asked = time.perf_counter()
                loaded_batch = next(loader)
                waited += time.perf_counter() - asked
                heard += loaded_batch.audio_seconds
                tune_batch.optimiser_steps(engine, [loaded_batch])
            wait(setting.device)
        whole = time.perf_counter() - begun
        numbers = {"data wait": waited / whole, "audio seconds a second": heard / whole}
        yield Entry(f"alignment from {workers} loading processes", numbers, "data wait under 2%", waited <= 0.02 * whole)


def some_ids(cut: MonoCut) -> list[int]:
    """Four target ids a second."""
    return [1 + i % 100 for i in range(max(1, int(4 * cut.duration)))]


def noise_files(folder: Path, count: int, seconds: float, rate: int) -> CutSet:
    """FLAC files of noise, as a corpus."""
    rng, cuts = np.random.default_rng(0), []
    for index in range(count):
        path = folder / f"{index}.flac"
        soundfile.write(path, rng.normal(0.0, 0.1, int(seconds * (1 - 0.001 * index) * rate)).clip(-1, 1), rate)
        cuts.append(Recording.from_file(path).to_cut())
    return CutSet.from_cuts(cuts)


def encoder(setting: Setting) -> Iterator[Entry]:
    """Forward and backward of the encoder against transformers' of the same size."""
    from transformers import ParakeetEncoderConfig, Wav2Vec2ConformerConfig
    from transformers.models.parakeet.modeling_parakeet import ParakeetEncoder
    from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import Wav2Vec2ConformerEncoder

    sizes, given = setting.config.encoder, batch(setting, 1, 1000)
    features, lens = given.features.to(setting.device), subsampled_length(given.feature_lens)
    inputs, mask = features.to(setting.dtype), length_mask(given.feature_lens, features.size(1)).long().to(setting.device)
    frames = torch.randn(len(lens), int(lens.max()), sizes.width, device=setting.device, dtype=setting.dtype)
    real = length_mask(lens, frames.size(1)).to(setting.device)

    def ours(whole: bool) -> Callable[[], None]:
        """From log-Mel, or the blocks alone, from frames at 25 Hz."""
        mine = ConformerEncoder(sizes).to(setting.device, setting.dtype).train()
        forward = lambda: mine(features, given.feature_lens)[0] if whole else small.blocks(mine, frames, lens.tolist())  # noqa: E731
        return small.trained(mine, forward)

    def parakeet() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
        config = ParakeetEncoderConfig(
            hidden_size=sizes.width, num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.heads, intermediate_size=sizes.feed_forward, conv_kernel_size=sizes.conv_kernel,
            subsampling_factor=4, subsampling_conv_channels=sizes.subsampling_channels, attn_implementation="sdpa",
        )  # fmt: skip
        return ParakeetEncoder(config), lambda peer: peer(inputs, attention_mask=mask).last_hidden_state

    def wav2vec2(positions: str) -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
        config = Wav2Vec2ConformerConfig(
            hidden_size=sizes.width, num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads,
            intermediate_size=sizes.feed_forward, conv_depthwise_kernel_size=sizes.conv_kernel,
            position_embeddings_type=positions, layerdrop=0.0,
        )  # fmt: skip
        return Wav2Vec2ConformerEncoder(config), lambda peer: peer(frames, attention_mask=real).last_hidden_state

    for whole, name, make in (
        (True, "encoder from log-Mel against transformers' Parakeet FastConformer, 4x", parakeet),
        (False, "encoder blocks against transformers' Wav2Vec2-Conformer, relative", partial(wav2vec2, "relative")),
        (False, "encoder blocks against transformers' Wav2Vec2-Conformer, rotary", partial(wav2vec2, "rotary")),
    ):
        free()
        with setting.device:
            peer, forward = make()
        peer = peer.to(setting.dtype).train()
        theirs = timed(small.trained(peer, partial(forward, peer)), setting)
        del peer
        free()
        step = ours(whole)
        mine = timed(step, setting)
        numbers = {"ratio": theirs / mine, "ms": 1e3 * mine, "peer's ms": 1e3 * theirs}
        yield judged(Entry(f"{name}, forward and backward", numbers, "ratio > 1"), theirs > mine, step, setting)
        del step


@contextmanager
def only_kernel(name: str) -> Iterator[None]:
    """Attention by this kernel alone."""
    usual = attention.kernel
    attention.kernel = lambda *_: name  # type: ignore[assignment]
    try:
        yield
    finally:
        attention.kernel = usual


def kernels(setting: Setting) -> Iterator[Entry]:
    """The encoder and the LLM by each kernel of attention, and with compiled blocks."""
    try:
        flash = [f"flash-attn {version('flash_attn')}"]
    except PackageNotFoundError:
        flash = []
    known = ["torch SDPA", *(["torch varlen", *(["flash-attn"] if flash else [])] if setting.device.type == "cuda" else [])]
    model = system(setting).train()
    given = batch(setting, 1, model.llm.config.vocab_size)
    features, lens = given.features.to(setting.device), given.feature_lens
    with torch.no_grad():
        speech, speech_lens = model.speech_embeddings(features, lens)
    ways = {
        "encoder": small.trained(model.encoder, lambda: model.encoder(features, lens)[0]),
        "LLM": small.trained(model.llm, lambda: model.answer_logits(speech, speech_lens, given.targets)[0]),
    }
    for part, step in ways.items():
        free()
        numbers = {}
        for name in known:
            with only_kernel(name):
                numbers[f"{name}, ms"] = 1e3 * timed(step, setting)
        chosen = attention.kernels(getattr(model, part.lower()), setting.device, setting.dtype)
        fastest = min(numbers, key=numbers.__getitem__).removesuffix(", ms")
        entry = Entry(f"{part}, forward and backward, by kernel of attention", numbers, "the default is the fastest")
        yield judged(entry, chosen == fastest, step, setting)
    if not setting.toy:
        for layer in model.encoder.layers:
            layer.compile(dynamic=True)
        begun = time.perf_counter()
        ways["encoder"]()
        wait(setting.device)
        numbers = {"compiling, s": time.perf_counter() - begun, "ms": 1e3 * timed(ways["encoder"], setting)}
        yield Entry("encoder, forward and backward, blocks by torch.compile", numbers)


def decoding(setting: Setting) -> Iterator[Entry]:
    """Transcription of 64 utterances, against generate of transformers on rows without speech encoder tricks."""
    model = system(setting).eval()
    with torch.no_grad():  # random weights must not end a transcript: all shall write as many tokens
        model.llm.get_input_embeddings().weight[PROMPT.end] = 0.0
    count, seconds, tokens = (2, 1.0, 3) if setting.toy else (64, 10.0, 40)
    frames = int(100 * seconds)
    features = torch.randn(count, frames, setting.config.features.num_mel_bins).to(setting.device, setting.dtype)
    lens = torch.full((count,), frames)

    @torch.inference_mode()
    def plain(beams: int) -> None:
        speech, _ = model.speech_embeddings(features, lens)
        before, after = (model._embed(ids)[None].expand(count, -1, -1) for ids in (PROMPT.before, PROMPT.after))
        inputs = torch.cat([before, speech.to(before.dtype), after], dim=1)
        mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=setting.device)
        model.llm.generate(
            inputs_embeds=inputs, attention_mask=mask, max_new_tokens=tokens + 1, do_sample=False, num_beams=beams,
            eos_token_id=PROMPT.end, pad_token_id=PROMPT.pad,
        )  # fmt: skip

    once = Setting(setting.config, setting.device, setting.dtype, 1 if setting.toy else 3, True)
    for beams in (1, 4):
        ours = lambda beams=beams: model.generate(features, lens, [tokens] * count, beams)  # noqa: E731
        mine, theirs = timed(ours, once), timed(lambda beams=beams: plain(beams), once)
        name = "greedy" if beams == 1 else f"beam of {beams}"
        numbers = {"ratio": theirs / mine, "real-time factor": mine / (count * seconds), "s": mine, "generate s": theirs}
        entry = Entry(f"decoding {count} utterances of {seconds:g} s, {name}", numbers, "ratio ≥ 1.5")
        yield judged(entry, theirs >= 1.5 * mine, ours, once)


def tests(setting: Setting) -> Iterator[Entry]:
    """The tests that need a card: kernels, host waits, features, and the ordinary commands in bf16, killed and resumed."""
    repository = Path(__file__).resolve().parents[1]
    names = ["tests/models/test_attention.py", "tests/stages/test_host_waits.py", "tests/audio/test_waveforms.py"]
    names += [] if setting.toy else ["tests/stages/test_on_a_gpu.py", "tests/stages/test_bf16.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-x", *(name for name in names if (repository / name).exists())]
    begun = time.perf_counter()
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-300:]
    numbers = {"s": time.perf_counter() - begun}
    yield Entry("tests that need a card", numbers, "all pass", done.returncode == 0, last)


def largest(setting: Setting) -> Iterator[Entry]:
    """max_duration of each stage: the largest that fits this card, and the fastest."""
    cuts = tune_batch.synthetic_cuts(setting.config)
    gpu = setting.device.type == "cuda"
    memory = torch.cuda.get_device_properties(setting.device).total_memory if gpu else 2**28
    limit = int((1 - tune_batch.MARGIN) * memory)
    for stage in ("joint_sft", "pretrain", "ia_sft", "align"):
        found = tune_batch.tune(setting.config, stage, setting.device, limit, cuts, taken=2)
        best = tune_batch.fastest(found.rates)
        numbers = {"largest, s": found.largest, "fastest, s": best, "audio seconds a second": found.rates[best]}
        yield Entry(f"{stage}, max_duration in {memory / 1e9:.0f} GB", numbers)


SECTIONS: dict[str, Callable[[Setting], Iterator[Entry]]] = {
    "machine": machine,
    "steps": steps,
    "encoder": encoder,
    "tests": tests,
    "data": data,
    "decoding": decoding,
    "kernels": kernels,
    "largest": largest,
}


# -- writing -------------------------------------------------------------------------------------------------------------


def render(found: dict[str, Any]) -> str:
    """The page of the JSON."""
    lines = [
        "# On a GPU",
        "",
        "Made by `make gpu` from `docs/benchmarks_gpu.json`. Sizes are the paper's (`config/paper.yaml`), weights random, audio",
        "noise, precision bf16, one card. Medians after a warm-up. MFU counts the FLOPs of the models' matrix products, without",
        "what is recomputed, against the rate of a large matrix product on the same card.",
        "",
    ]
    if not found["entries"]:
        return "\n".join([*lines, "Not measured yet: no card was at hand.", ""])
    lines += [f"{', '.join(f'{key} {value}' for key, value in found['machine'].items())}; commit {found['commit'][:7]}.", ""]
    lines += ["| measured | | goal | met |", "| --- | --- | --- | --- |"]
    for entry in found["entries"]:
        numbers = ", ".join(f"{name} {value:.3g}" for name, value in entry["numbers"].items())
        met = {True: "yes", False: "**no**", None: ""}[entry["met"]]
        note = f" ({entry['note']})" if entry["note"] else ""
        lines.append(f"| {entry['name']}{note} | {numbers} | {entry['goal']} | {met} |")
    missed = [entry for entry in found["entries"] if entry["where"]]
    if missed:
        lines += ["", "## Where the time goes", "", "Of what missed its goal: share of a step in each kind of kernel.", ""]
    for entry in missed:
        lines.append(f"- {entry['name']}: " + ", ".join(f"{kind} {share:.0%}" for kind, share in entry["where"].items()) + ".")
    return "\n".join(lines) + "\n"


def toy(config: Config) -> Config:
    """Sizes with which everything runs on a CPU in a minute."""
    small_encoder = config.encoder.model_copy(
        update={"width": 32, "layers": 1, "heads": 2, "feed_forward": 64, "conv_kernel": 7, "subsampling_channels": 4}
    )
    scratch = config.llm.scratch.model_copy(
        update={"vocab_size": 300, "hidden_size": 32, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate_size": 64}
    )
    llm = config.llm.model_copy(update={"pretrained": None, "scratch": scratch})
    stages = {name: getattr(config, name) for name in ("pretrain", "align", "ia_sft", "joint_sft")}
    stages = {name: stage.model_copy(update={"max_duration": 10.0, "accumulation": 1}) for name, stage in stages.items()}
    engine = config.engine.model_copy(update={"precision": "fp32"})
    return config.model_copy(update={"encoder": small_encoder, "llm": llm, "engine": engine, **stages})


def measured(sections: Sequence[str], setting: Setting, budget: float) -> Iterator[Entry]:
    """Entries one by one; a section that fails is an entry that says why, one for which no time is left one that says so."""
    begun = time.monotonic()
    for name in sections:
        if time.monotonic() - begun > budget:
            yield Entry(name, {}, note=f"not measured: {budget:.0f} s were over")
            continue
        try:
            yield from SECTIONS[name](setting)
        except Exception as error:  # a peer that does not fit must not cost the other measurements
            traceback.print_exc()
            yield Entry(
                name, {}, "runs", False, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300]
            )
        free()


def main(
    output: Path = typer.Option(Path("docs/benchmarks_gpu.json"), help="what is measured again replaces what was there"),
    only: str = typer.Option(",".join(SECTIONS), help="which, with commas"),
    config: Path = typer.Option(Path("config/paper.yaml"), help="sizes"),
    turns: int = typer.Option(5, min=1, help="repeats of each measurement"),
    budget: float = typer.Option(420.0, help="seconds after which no section is begun"),
    on_cpu: bool = typer.Option(False, "--toy", help="tiny sizes, on a CPU"),
) -> None:
    """Measure, and write the JSON and the page beside it after each entry."""
    if not on_cpu and not torch.cuda.is_available():
        raise SystemExit("there is no GPU here (--toy: whether the script runs, on a CPU)")
    if on_cpu:
        os.environ["ENTROPY_ASR_DEVICE"] = "cpu"
    device, sizes = (torch.device("cpu"), toy(load_config(config))) if on_cpu else (torch.device("cuda"), load_config(config))
    setting = Setting(sizes, device, torch.float32 if on_cpu else torch.bfloat16, 1 if on_cpu else turns, on_cpu)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    found = json.loads(output.read_text()) if output.exists() else {"entries": []}
    distributed.start()
    torch.manual_seed(0)
    for entry in measured(only.split(","), setting, budget):
        found |= {"machine": software(device), "commit": commit or "unknown"}
        found["entries"] = [e for e in found["entries"] if e["name"] != entry.name] + [asdict(entry)]
        numbers = ", ".join(f"{name} {value:.3g}" for name, value in entry.numbers.items())
        print(
            f"{entry.name}: {numbers} {entry.goal} {'' if entry.met is None else 'met' if entry.met else 'MISSED'} {entry.note}"
        )
        sys.stdout.flush()
        atomic_write(output, json.dumps(found, indent=1) + "\n")
        atomic_write(output.with_suffix(".md"), render(found))


def software(device: torch.device) -> dict[str, str]:
    """The card, and the versions of what computes."""
    card = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    return {"card": card} | {name: version(name) for name in ("torch", "transformers", "deepspeed")}


if __name__ == "__main__":
    typer.run(main)
