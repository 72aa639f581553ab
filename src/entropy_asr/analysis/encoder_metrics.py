"""NSE, PAI and CSAI of one encoder, by layer.

    python -m entropy_asr.analysis.encoder_metrics --config results/config/metrics.json --alignment results/metrics/alignment \
        --encoder results/encoders/phoneme/seed-1/part-3/encoder.safetensors --manifests … --out part-3.json

The encoder sees each utterance once.  Kept of it are a sample of frames and of text units for the probes, the covariances for
NSE, and the frames of a few utterances (`--frames`), from which `analysis.drift` computes CKA between encoders.
"""

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor

from entropy_asr.analysis.alignment import SETS, Alignment, read_alignments
from entropy_asr.analysis.frames import Frames, frames_of
from entropy_asr.analysis.probes import (
    HashSample,
    ProbeOptions,
    homophones,
    information,
    phoneme_samples,
    probe_scores,
    unit_samples,
)
from entropy_asr.analysis.spectral import SpectralEntropy
from entropy_asr.config import Features, Metrics
from entropy_asr.errors import InputError, friendly_exit

log = logging.getLogger(__name__)
Rows = list[dict[str, Any]]


class Collector:
    """What is kept of an encoder's frames while they stream by; its size depends on the settings, not on the frames."""

    def __init__(self, metrics: Metrics) -> None:
        self.metrics = metrics
        self.nse: list[SpectralEntropy] = []
        self.phonemes: dict[tuple[str, int], HashSample] = {}
        self.units: dict[tuple[str, int], HashSample] = {}
        self.drift: dict[str, list[Tensor]] = {}

    def update(self, part: str, frames: Frames, alignment: Alignment, keep: bool) -> None:
        """One utterance of the `part` of the data; keep: its frames are for CKA, too."""
        labels = alignment.labels(frames.centres)
        spoken = torch.tensor([label is not None for label in labels])
        facts = [(label, "en" if label.isupper() else "zh") for label in labels if label is not None]
        spans = [torch.from_numpy(span) for span in alignment.spans(frames.centres)]
        sounds = [" ".join(alignment.phonemes[unit.first : unit.last + 1]) for unit in alignment.units]
        said = [(unit.text, sound, unit.language) for unit, sound in zip(alignment.units, sounds, strict=True)]
        for layer in self.probed(len(frames.layers)):
            values = frames.layers[layer]
            self._sample(self.phonemes, part, layer, self.metrics.frames).update(frames.id, values[spoken], facts)
            pooled = torch.stack([values[span].mean(0) for span in spans])
            self._sample(self.units, part, layer, self.metrics.units).update(frames.id, pooled, said)
        if part == "test":
            counted = torch.ones_like(spoken) if self.metrics.silence else spoken
            self.nse = self.nse or [SpectralEntropy(self.metrics.groups) for _ in frames.layers]
            for entropy, values in zip(self.nse, frames.layers, strict=True):
                entropy.update(frames.id, values[counted])
            if keep:
                self.drift[frames.id] = [values[counted].clone() for values in frames.layers]

    def probed(self, layers: int) -> list[int]:
        """Layers for the probes as places from 0. Raises InputError where one does not exist."""
        wrong = [layer for layer in self.metrics.layers if not -layers <= layer < layers]
        if wrong:
            raise InputError(f"metrics.layers names {wrong}; the encoder has layers 0 to {layers - 1}, or -{layers} to -1")
        return sorted({layer % layers for layer in self.metrics.layers})

    @staticmethod
    def _sample(samples: dict[tuple[str, int], HashSample], part: str, layer: int, size: int) -> HashSample:
        return samples.setdefault((part, layer), HashSample(size))

    def nse_rows(self) -> Rows:
        """NSE of every layer."""
        return [{"layer": layer, **asdict(entropy.estimate())} for layer, entropy in enumerate(self.nse)]

    def pai_rows(self, layer: int, *families: ProbeOptions) -> Rows:
        """PAI of a layer, family by family: all phonemes, and those of each language."""
        samples = [self.phonemes[part, layer] for part in SETS]
        languages = [fact[1] for fact in samples[2].arrays()[1]]
        inventory = sorted({fact[0] for sample in samples for fact in sample.arrays()[1]})
        train, held_out, test = (phoneme_samples(sample, inventory) for sample in samples)
        found = zip(probe_scores(train, held_out, test, *families), families, strict=True)
        return [row for scores, options in found for row in _by_language(scores, options, languages, [], layer)]

    def csai_rows(self, layer: int, *families: ProbeOptions) -> Rows:
        """CSAI of a layer, family by family: all units, Mandarin characters, English words."""
        arrays = [self.units[part, layer].arrays() for part in SETS]
        lexicon = homophones([fact[:2] for fact in arrays[0][1]])
        (train, _), (held_out, _), (test, known) = (unit_samples(*array, lexicon) for array in arrays)
        languages = [fact[2] for fact in arrays[2][1]]
        named = [language for language, k in zip(languages, known, strict=True) if k]
        lost = [language for language, k in zip(languages, known, strict=True) if not k]
        found = zip(probe_scores(train, held_out, test, *families), families, strict=True)
        return [row for scores, options in found for row in _by_language(scores, options, named, lost, layer)]

    def results(self) -> dict[str, Rows]:
        """NSE of every layer, PAI and CSAI of those that are probed."""
        chosen = self.metrics
        linear = ProbeOptions("linear", chosen.probe_seeds, chosen.max_epochs, chosen.mlp_hidden, chosen.resamples)
        mlp = ProbeOptions("mlp", 1, chosen.max_epochs, chosen.mlp_hidden, chosen.resamples)
        found: dict[str, Rows] = {"nse": self.nse_rows(), "pai": [], "csai": []}
        for layer in self.probed(len(self.nse)):
            found["pai"] += self.pai_rows(layer, linear, mlp)
            found["csai"] += self.csai_rows(layer, linear, mlp)
            log.info("layer %d: PAI and CSAI done", layer)
        return found


def _by_language(scores, options: ProbeOptions, languages: list[str], lost: list[str], layer: int) -> Rows:
    rows = []
    for language in ("all", *sorted(set(languages))):
        chosen = torch.tensor([language in ("all", mine) for mine in languages])
        left_out = sum(language in ("all", mine) for mine in lost)
        found = information(scores, options, chosen, left_out)
        rows.append({"layer": layer, "family": options.family, "language": language, **asdict(found)})
    return rows


def read_sets(manifests: Iterable[Path], alignment: Path) -> dict[str, tuple[list, dict[str, Alignment]]]:
    """Cuts and alignments of fit, held_out and test.

    Raises:
        InputError: an aligned utterance is in no manifest.
    """
    from entropy_asr.audio.batches import read_cuts

    cuts = {cut.id: cut for cut in read_cuts(list(dict.fromkeys(manifests)))}
    sets = {}
    for name in SETS:
        aligned = read_alignments(alignment / f"{name}.jsonl.gz")
        missing = sorted(aligned.keys() - cuts.keys())
        if missing:
            raise InputError(
                f"{alignment}: {len(missing)} aligned utterances are in no manifest, as {missing[0]}; name all manifests"
            )
        sets[name] = ([cuts[i] for i in sorted(aligned)], aligned)
    return sets


def measure(
    encoder: Path,
    sets: dict,
    features: Features,
    metrics: Metrics,
    change: Callable[[Frames], Frames] = lambda frames: frames,
    window: float = 30.0,
) -> tuple[dict[str, Any], dict[str, list[Tensor]]]:
    """All metrics of one encoder, and the frames that are kept for CKA, by utterance.

    Args:
        change: done to the frames of each utterance before anything is measured.
        window: seconds that a Whisper of CTranslate2 pads an utterance to.
    """
    from entropy_asr.corpora.manifest import choose

    collector, seconds = Collector(metrics), 0.0
    kept = {cut.id for cut in choose(sets["test"][0], metrics.drift_utterances)}
    frames_a_second = 0.0
    for name, (cuts, aligned) in sets.items():
        for frames in map(change, frames_of(encoder, cuts, features, metrics.max_duration, window)):
            collector.update(name, frames, aligned[frames.id], frames.id in kept)
            frames_a_second = 1 / float(frames.centres[1] - frames.centres[0]) if len(frames.centres) > 1 else frames_a_second
        seconds += sum(cut.duration for cut in cuts)
    kinds = sorted({cut.supervisions[0].custom.get("corpus_kind", "unknown") for cuts, _ in sets.values() for cut in cuts})
    result = {
        "encoder": str(encoder),
        "layers": len(collector.nse),
        "frames_per_second": round(frames_a_second, 3),
        "audio_hours": seconds / 3600,
        "corpus_kind": " and ".join(kinds),
        "settings": metrics.model_dump(mode="json"),
        **collector.results(),
    }
    return result, collector.drift


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@friendly_exit()
def main(
    config: Path = typer.Option(..., help="sections of this stage"),
    encoder: Path = typer.Option(..., help="model file of this project, or another encoder as `entropy-asr probe` takes it"),
    manifests: list[Path] = typer.Option(..., help="all manifests that the alignment took utterances from"),
    alignment: Path = typer.Option(..., help="folder of the reference alignment"),
    out: Path = typer.Option(..., help="metrics, JSON"),
    frames: Path | None = typer.Option(None, help="frames for CKA, safetensors"),
    output_alone: bool = typer.Option(False, help="probe the output, whatever metrics.layers names: another encoder has others"),
    window: float = typer.Option(30.0, help="seconds that a Whisper of CTranslate2 pads an utterance to"),
) -> None:
    """Measure one encoder."""
    from entropy_asr.config_files import load_stage
    from entropy_asr.files import sha256, write_json
    from entropy_asr.training.engine import write_tensors
    from entropy_asr.training.loop import configure_logging

    configure_logging()
    settings = load_stage(config)
    metrics = settings.metrics.model_copy(update={"layers": [-1]}) if output_alone else settings.metrics
    result, kept = measure(encoder, read_sets(manifests, alignment), settings.features, metrics, window=window)
    files = [encoder] if encoder.is_file() else sorted(path for path in encoder.iterdir() if path.is_file())
    result["sha256"] = {path.name: sha256(path) for path in files} | {"alignment": sha256(alignment / "test.jsonl.gz")}
    if frames is not None:
        order = sorted(kept)
        tensors = {f"layer-{i}": torch.cat([kept[name][i] for name in order]) for i in range(result["layers"])}
        lens = [len(kept[name][0]) for name in order]
        write_tensors(frames, tensors, {"utterances": json.dumps(order), "frames": json.dumps(lens)})
    write_json(out, result)


if __name__ == "__main__":
    app()
