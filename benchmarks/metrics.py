"""What the full set of metrics costs beyond the encoder's forward pass, and whether memory grows with the speech.

    OMP_NUM_THREADS=2 python benchmarks/metrics.py --output docs/metrics_cost.json
    python benchmarks/metrics.py --hours 0.05 --layers 2 --width 32 --output /tmp/try.json     # whether it runs at all

One hour of speech as a 12-layer encoder would give it: 13 layers at 25 frames a second, made up, with real texts and their
phonemes; each phoneme has a place of its own, in noise that gets weaker from layer to layer.  All 13 are probed, with the
default settings.  Making the frames up is not counted.

Memory is measured in two processes of their own, of which the second streams ten times the speech of the first, with samples
small enough that both fill them: what is kept is then all that memory could grow by.
"""

import gzip
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer

from entropy_asr.analysis.alignment import Alignment, units_of
from entropy_asr.analysis.encoder_metrics import Collector
from entropy_asr.analysis.frames import Frames
from entropy_asr.config import Metrics
from entropy_asr.files import atomic_write
from entropy_asr.text.normalize import normalize
from entropy_asr.text.phonemes import inventory, phonemize

REPOSITORY = Path(__file__).resolve().parents[1]
FRAME_SECONDS, PHONEME_SECONDS, SILENCE_SECONDS = 0.04, 0.08, 0.1
TIMES = 10  # as much speech in the second measurement of memory
FEW = 500  # frames and units that are kept there, each at most


def sentences() -> Iterator[tuple[str, str]]:
    """(language, normalised text), over and over: every twentieth line, in an order that mixes both languages."""
    with gzip.open(REPOSITORY / "data/embedded/lm_text.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    rows = sorted(rows, key=lambda row: hashlib.sha256(row["text"].encode()).digest())[::20]
    yield from cycle((row["language"], normalize(row["text"], row["language"])) for row in rows)


def speech(hours: float, layers: int, width: int) -> Iterator[tuple[str, Frames, Alignment]]:
    """Part, frames and alignment of made-up utterances: three fifths to fit on, a fifth held out, a fifth to score."""
    generator = torch.Generator().manual_seed(0)
    ids = {phoneme: i for i, phoneme in enumerate(inventory())}
    table = torch.randn(len(ids) + 1, width, generator=generator)
    seconds = 0.0
    for number, (language, text) in enumerate(sentences()):
        if seconds >= hours * 3600:
            return
        phonemes = phonemize(text, language).phonemes
        starts = SILENCE_SECONDS + PHONEME_SECONDS * np.arange(len(phonemes))
        duration = starts[-1] + PHONEME_SECONDS + SILENCE_SECONDS
        name = f"utterance-{number}"
        ends = starts + PHONEME_SECONDS
        aligned = Alignment(name, phonemes, starts.tolist(), ends.tolist(), units_of(text, language, phonemes), 0.0)
        centres = np.arange(FRAME_SECONDS / 2, duration, FRAME_SECONDS)
        said = torch.tensor([len(ids) if label is None else ids[label] for label in aligned.labels(centres)])
        noise = torch.randn(len(said), width, generator=generator)
        stack = [table[said] + (5.0 - 4.0 * layer / layers) * noise.roll(layer, 1) for layer in range(layers)]
        part = ("fit", "fit", "fit", "held_out", "test")[number % 5]
        yield part, Frames(name, stack, centres), aligned
        seconds += duration


def collected(metrics: Metrics, hours: float, layers: int, width: int) -> tuple[Collector, dict[str, float]]:
    """The collector after all speech; seconds that it took, by the clock and of the CPU, and how many utterances and frames."""
    collector = Collector(metrics)
    spent = {"wall": 0.0, "cpu": 0.0, "utterances": 0, "frames": 0}
    for part, frames, aligned in speech(hours, layers, width):
        begun = time.perf_counter(), time.process_time()
        collector.update(part, frames, aligned, keep=False)
        spent["wall"] += time.perf_counter() - begun[0]
        spent["cpu"] += time.process_time() - begun[1]
        spent["utterances"] += 1
        spent["frames"] += len(frames.centres)
    return collector, spent


def memory(hours: float, layers: int, width: int) -> float:
    """Peak memory of a process that does nothing but stream so much speech, MiB."""
    words = [f"--hours={hours}", f"--layers={layers}", f"--width={width}", "--stream"]
    done = subprocess.run([sys.executable, __file__, *words], check=True, capture_output=True, text=True)
    return float(done.stdout.split("MiB:")[1])


def peak_memory() -> float:
    """Of this process since its program started, MiB. Not `ru_maxrss`: a child's begins at what its parent has."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def sentence(found: dict[str, Any]) -> str:
    """What was found, for people."""
    peaks = found["memory"]
    return (
        f"{found['audio_hours']:g} h of speech, {found['layers']} layers of {found['width']} dimensions, all probed: "
        f"{found['cpu_seconds']:.0f} CPU-seconds ({found['threads']} threads, {found['processor']}). "
        f"Peak memory while {peaks['hours'][0]:g} h of speech streams by: {peaks['mib'][0]:.0f} MiB; "
        f"{peaks['hours'][1]:g} h: {peaks['mib'][1]:.0f} MiB."
    )


def processor() -> str:
    """Name of the CPU."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")


def main(
    output: Path | None = typer.Option(None, help="JSON to write"),
    hours: float = typer.Option(1.0, help="of speech"),
    layers: int = typer.Option(13, help="a 12-layer encoder has 13: what enters the first block, too"),
    width: int = typer.Option(512, help="dimensions"),
    memory_hours: float = typer.Option(
        1.0, help="of speech in the first measurement of memory; the second has ten times as much"
    ),
    memory_width: int = typer.Option(64, help="dimensions in the measurements of memory"),
    stream: bool = typer.Option(False, help="only stream, and print the peak memory: what the memory's processes do"),
) -> None:
    """Measure, and write the JSON."""
    if stream:
        collected(Metrics(layers=list(range(layers)), frames=FEW, units=FEW), hours, layers, width)
        print(f"MiB: {peak_memory()}")
        return
    collector, spent = collected(Metrics(layers=list(range(layers))), hours, layers, width)
    print(f"collected: {spent['wall']:.1f} s by the clock, {spent['cpu']:.1f} CPU-seconds, {spent['frames']} frames", flush=True)
    begun = time.perf_counter(), time.process_time()
    results = collector.results()
    spent["wall"] += time.perf_counter() - begun[0]
    spent["cpu"] += time.process_time() - begun[1]
    pai = [row["value"] for row in results["pai"] if (row["family"], row["language"]) == ("linear", "all")]
    print(f"all: {spent['wall']:.1f} s, {spent['cpu']:.1f} CPU-seconds; PAI by layer {[round(v, 3) for v in pai]}", flush=True)
    sizes = [memory_hours, TIMES * memory_hours]
    found = {
        "audio_hours": hours, "layers": layers, "width": width, "frames": spent["frames"], "utterances": spent["utterances"],
        "seconds": round(spent["wall"], 1), "cpu_seconds": round(spent["cpu"], 1), "threads": torch.get_num_threads(),
        "processor": processor(), "torch": torch.__version__,
        "memory": {"hours": sizes, "width": memory_width, "mib": [round(memory(h, layers, memory_width)) for h in sizes]},
    }  # fmt: skip
    print(sentence(found))
    if output is not None:
        atomic_write(output, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
