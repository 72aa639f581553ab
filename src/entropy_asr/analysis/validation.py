"""Do the metrics move the right way when an encoder, or a whole system, is damaged on purpose?

    python -m entropy_asr.analysis.validation --config results/config/metrics.json --alignment results/metrics/alignment \
        --encoder results/encoders/phoneme/seed-1/part-3/encoder.safetensors --manifests … \
        --system results/systems/ours/seed-1/joint_sft --lm results/text/lm --out metric_validation.csv

The same encoder and utterances, whole and damaged: noise added to its frames, their signs alone, four of its dimensions alone,
its upper half of layers taken off, and, for the probes, vectors shuffled against their labels.  And the same system: half of its
LLM's layers taken off, noise added to its encoder's frames, half of the encoder's layers taken off, transcripts shuffled against
their audio; nothing is trained again but the probes.  Each damage has an expectation that was written down before; one that fails
is shown as failed, and `undecided` where the intervals overlap or the metric is undefined.  What should be about 0 is met if its
interval lies within NOTHING of 0, failed if the interval lies beyond, and undecided if it does neither.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor, nn

from entropy_asr.analysis.frames import Frames
from entropy_asr.errors import friendly_exit
from entropy_asr.models.speech_llm import SpeechLLM

COLUMNS = (
    "damage", "metric", "expectation", "whole", "whole_low", "whole_high", "damaged", "damaged_low", "damaged_high", "outcome",
    "corpus_kind",
)  # fmt: skip
KEPT_DIMENSIONS = 4
NOTHING = 0.02  # of the uncertainty: less is "about 0"


@dataclass(frozen=True)
class Damage:
    """What is done to the frames of an utterance, and how each metric should answer: falls or rises."""

    name: str
    change: Callable[[Frames], Frames]
    expected: dict[str, str]


def _each_layer(change: Callable[[Tensor, torch.Generator], Tensor]) -> Callable[[Frames], Frames]:
    def changed(frames: Frames) -> Frames:
        generator = torch.Generator().manual_seed(sum(frames.id.encode()))
        return frames._replace(layers=[change(layer, generator) for layer in frames.layers])

    return changed


def _noised(layer: Tensor, generator: torch.Generator) -> Tensor:
    return layer + layer.std(0) * torch.randn(layer.shape, generator=generator)


def _signs(layer: Tensor, _: torch.Generator) -> Tensor:
    return (layer - layer.mean(0)).sign()


def _few_dimensions(layer: Tensor, _: torch.Generator) -> Tensor:
    return torch.cat([layer[:, :KEPT_DIMENSIONS], torch.zeros_like(layer[:, KEPT_DIMENSIONS:])], 1)


def _lower_half(frames: Frames) -> Frames:
    return frames._replace(layers=frames.layers[: (len(frames.layers) + 1) // 2])


DAMAGES = (
    Damage("noise as strong as the signal", _each_layer(_noised), {"nse": "rises", "pai": "falls"}),
    Damage("signs alone (one bit a dimension)", _each_layer(_signs), {"pai": "falls"}),
    Damage(f"{KEPT_DIMENSIONS} dimensions alone", _each_layer(_few_dimensions), {"nse": "falls", "pai": "falls"}),
    Damage("upper half of the layers taken off", _lower_half, {"pai": "falls"}),
)


class _NoisyEncoder(nn.Module):
    """An encoder with noise as strong as the signal on its frames, the same at each call."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, features: Tensor, feature_lens: Tensor) -> tuple[Tensor, Tensor]:
        out, lens = self.encoder(features, feature_lens)
        noisy = torch.zeros_like(out)
        for row, length in enumerate(lens.tolist()):
            generator = torch.Generator().manual_seed(int(feature_lens[row]))
            noisy[row, :length] = _noised(out[row, :length].cpu(), generator).to(out.device)
        return noisy, lens


def _half_of(layers: nn.ModuleList) -> nn.ModuleList:
    return layers[: (len(layers) + 1) // 2]


def _halved_llm(system: SpeechLLM, sets: dict) -> tuple[SpeechLLM, dict]:
    llm = copy.deepcopy(system.llm)
    llm.get_decoder().layers = _half_of(llm.get_decoder().layers)
    return SpeechLLM(system.encoder, system.adaptor, llm, system.prompt).eval(), sets


def _halved_encoder(system: SpeechLLM, sets: dict) -> tuple[SpeechLLM, dict]:
    encoder = copy.deepcopy(system.encoder)
    encoder.layers = _half_of(encoder.layers)
    return SpeechLLM(encoder, system.adaptor, system.llm, system.prompt).eval(), sets


def _noisy_encoder(system: SpeechLLM, sets: dict) -> tuple[SpeechLLM, dict]:
    return SpeechLLM(_NoisyEncoder(system.encoder), system.adaptor, system.llm, system.prompt).eval(), sets


def _audio_of_the_next(system: SpeechLLM, sets: dict) -> tuple[SpeechLLM, dict]:
    """Each transcript, said when it was, over the audio of the next utterance of its part."""
    from lhotse.utils import fastcopy

    def shuffled(cuts: list) -> list:
        pairs = zip(cuts, [*cuts[1:], *cuts[:1]], strict=True)
        return [fastcopy(cut, recording=other.recording, start=other.start, duration=other.duration) for cut, other in pairs]

    return system, {name: (shuffled(cuts), aligned) for name, (cuts, aligned) in sets.items()}


@dataclass(frozen=True)
class SystemDamage:
    """What is done to a system, or to the utterances that it is measured on, and how EER, LER and AR should answer."""

    name: str
    change: Callable[[SpeechLLM, dict], tuple[SpeechLLM, dict]]
    expected: dict[str, str]


SYSTEM_DAMAGES = (
    SystemDamage("upper half of the LLM's layers taken off", _halved_llm, {"ler": "falls", "ar": "rises"}),
    SystemDamage("system: noise as strong as the encoder's signal", _noisy_encoder, {"eer": "falls"}),
    SystemDamage("system: upper half of the encoder's layers taken off", _halved_encoder, {"eer": "falls"}),
    SystemDamage("transcripts shuffled against audio", _audio_of_the_next, {"eer": "about 0 or less", "ler": "falls"}),
)


def output_of(result: dict[str, Any], metric: str) -> dict[str, Any]:
    """Value and interval of a metric at the output, all languages, linear probe."""
    if metric == "nse":
        return result["nse"][-1]
    return next(row for row in result[metric] if row["family"] == "linear" and row["language"] == "all")


def outcome(whole: dict[str, Any], damaged: dict[str, Any], expected: str) -> str:
    """met, failed, or undecided: by the intervals, never by the values alone."""
    if expected.startswith("about 0"):
        if damaged["low"] is None:
            return "undecided"
        least = -math.inf if expected == "about 0 or less" else -NOTHING
        within, beyond = least < damaged["low"] and damaged["high"] < NOTHING, damaged["high"] < least or damaged["low"] > NOTHING
        return "met" if within else "failed" if beyond else "undecided"
    if None in (whole["low"], damaged["low"]) or (damaged["low"] <= whole["high"] and whole["low"] <= damaged["high"]):
        return "undecided"
    return "met" if (damaged["value"] < whole["value"]) == (expected == "falls") else "failed"


def _row(damage: str, metric: str, expected: str, before: dict[str, Any], after: dict[str, Any], kind: str) -> dict[str, Any]:
    row = {"damage": damage, "metric": metric, "expectation": expected, "corpus_kind": kind}
    row |= {"whole": before["value"], "whole_low": before["low"], "whole_high": before["high"]}
    row |= {"damaged": after["value"], "damaged_low": after["low"], "damaged_high": after["high"]}
    return {**row, "outcome": outcome(before, after, expected)}


def validate_system(measured: Callable[..., dict[str, dict[str, Any]]], kind: str) -> list[dict[str, Any]]:
    """Rows of the damages to a system.

    Args:
        measured: its allocation by language, as `system_metrics.measure` gives it, with the system and the utterances changed so.
        kind: of the speech.
    """

    def total(change: Callable[[SpeechLLM, dict], tuple[SpeechLLM, dict]]) -> dict[str, dict[str, Any]]:
        found = measured(change)["all"]
        intervals = {metric: found[f"{metric}_interval"] or (None, None) for metric in ("eer", "ler", "ar")}
        return {metric: {"value": found[metric], "low": low, "high": high} for metric, (low, high) in intervals.items()}

    whole, rows = total(lambda system, sets: (system, sets)), []
    for damage in SYSTEM_DAMAGES:
        damaged = total(damage.change)
        rows += [_row(damage.name, m, expected, whole[m], damaged[m], kind) for m, expected in damage.expected.items()]
    return rows


def validate(measured: Callable[[Callable[[Frames], Frames]], dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the damages to an encoder. measured: its metrics with its frames changed so."""
    whole = measured(lambda frames: frames)
    rows = []
    for damage in DAMAGES:
        result = measured(damage.change)
        for metric, expected in damage.expected.items():
            before, after = output_of(whole, metric), output_of(result, metric)
            rows.append(_row(damage.name, metric, expected, before, after, whole["corpus_kind"]))
    for metric in ("pai", "csai"):
        before = output_of(whole, metric)
        after = {"value": before["control"], "low": before["control_low"], "high": before["control_high"]}
        rows.append(_row("vectors shuffled", metric, "about 0", before, after, whole["corpus_kind"]))
    return rows


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@friendly_exit()
def main(
    config: Path = typer.Option(..., help="sections of this stage"),
    encoder: Path = typer.Option(..., help="model file of this project"),
    manifests: list[Path] = typer.Option(..., help="all manifests that the alignment took utterances from"),
    alignment: Path = typer.Option(..., help="folder of the reference alignment"),
    system: Path = typer.Option(..., help="folder of a joint SFT"),
    lm: Path = typer.Option(..., help="folder of the language model that it started from"),
    out: Path = typer.Option(..., help="CSV to write"),
) -> None:
    """Damage one encoder and one system, and look whether their metrics answer as they should."""
    from entropy_asr.analysis import system_metrics
    from entropy_asr.analysis.encoder_metrics import measure, read_sets
    from entropy_asr.config_files import load_stage
    from entropy_asr.files import write_table

    settings = load_stage(config)
    metrics = settings.metrics.model_copy(update={"layers": [-1]})
    sets = read_sets(manifests, alignment)
    rows = validate(lambda change: measure(encoder, sets, settings.features, metrics, change)[0])
    model, prior, tokenizer = system_metrics.load(system, lm)

    def measured(change: Callable[[SpeechLLM, dict], tuple[SpeechLLM, dict]]) -> dict[str, dict[str, Any]]:
        changed, utterances = change(model, sets)
        return system_metrics.measure(changed, prior, tokenizer, utterances, settings.features, metrics)

    rows += validate_system(measured, rows[0]["corpus_kind"])
    write_table(out, rows, COLUMNS)
    for row in rows:
        whole, damaged = ("undefined" if row[name] is None else f"{row[name]:.3f}" for name in ("whole", "damaged"))
        print(f"{row['outcome']}: {row['damage']}: {row['metric']} {row['expectation']}, {whole} -> {damaged}")


if __name__ == "__main__":
    app()
