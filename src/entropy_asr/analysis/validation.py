"""Do the metrics move the right way when an encoder is damaged on purpose?

    python -m entropy_asr.analysis.validation --config results/config/metrics.json --alignment results/metrics/alignment \
        --encoder results/encoders/phoneme/seed-1/part-3/encoder.safetensors --manifests … --out metric_validation.csv

The same encoder and utterances, whole and damaged: noise added to its frames, their signs alone, four of its dimensions alone,
its upper half of layers taken off, and, for the probes, vectors shuffled against their labels.  Each damage has an expectation
that was written down before; one that fails is shown as failed, and `undecided` where the intervals overlap.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import typer
from torch import Tensor

from entropy_asr.analysis.frames import Frames
from entropy_asr.errors import friendly_exit

COLUMNS = (
    "damage", "metric", "expectation", "whole", "whole_low", "whole_high", "damaged", "damaged_low", "damaged_high", "outcome",
    "corpus_kind",
)  # fmt: skip
KEPT_DIMENSIONS = 4
NOTHING = 0.02  # a control above it would not be "about 0"


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


def output_of(result: dict[str, Any], metric: str) -> dict[str, Any]:
    """Value and interval of a metric at the output, all languages, linear probe."""
    if metric == "nse":
        return result["nse"][-1]
    return next(row for row in result[metric] if row["family"] == "linear" and row["language"] == "all")


def outcome(whole: dict[str, Any], damaged: dict[str, Any], expected: str) -> str:
    """met, failed, or undecided where the intervals overlap."""
    if None in (whole["low"], damaged["low"]) or (damaged["low"] <= whole["high"] and whole["low"] <= damaged["high"]):
        return "undecided"
    return "met" if (damaged["value"] < whole["value"]) == (expected == "falls") else "failed"


def validate(measured: Callable[[Callable[[Frames], Frames]], dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the table. measured: the metrics of the encoder with its frames changed so."""
    whole = measured(lambda frames: frames)
    rows = []
    for damage in DAMAGES:
        result = measured(damage.change)
        for metric, expected in damage.expected.items():
            before, after = output_of(whole, metric), output_of(result, metric)
            row = {"damage": damage.name, "metric": metric, "expectation": expected, "corpus_kind": whole["corpus_kind"]}
            row |= {"whole": before["value"], "whole_low": before["low"], "whole_high": before["high"]}
            row |= {"damaged": after["value"], "damaged_low": after["low"], "damaged_high": after["high"]}
            rows.append({**row, "outcome": outcome(before, after, expected)})
    for metric in ("pai", "csai"):
        before = output_of(whole, metric)
        row = {"damage": "vectors shuffled", "metric": metric, "expectation": "about 0", "corpus_kind": whole["corpus_kind"]}
        row |= {"whole": before["value"], "whole_low": before["low"], "whole_high": before["high"], "damaged": before["control"]}
        undefined = before["control"] is None
        met = not undefined and abs(before["control"]) < NOTHING
        rows.append({**row, "outcome": "undecided" if undefined else "met" if met else "failed"})
    return rows


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@friendly_exit()
def main(
    config: Path = typer.Option(..., help="sections of this stage"),
    encoder: Path = typer.Option(..., help="model file of this project"),
    manifests: list[Path] = typer.Option(..., help="all manifests that the alignment took utterances from"),
    alignment: Path = typer.Option(..., help="folder of the reference alignment"),
    out: Path = typer.Option(..., help="CSV to write"),
) -> None:
    """Damage one encoder and look whether its metrics answer as they should."""
    from entropy_asr.analysis.encoder_metrics import measure, read_sets
    from entropy_asr.config import load_stage
    from entropy_asr.files import write_table

    settings = load_stage(config)
    metrics = settings.metrics.model_copy(update={"layers": [-1]})
    sets = read_sets(manifests, alignment)
    rows = validate(lambda change: measure(encoder, sets, settings.features, metrics, change)[0])
    write_table(out, rows, COLUMNS)
    for row in rows:
        damaged = "undefined" if row["damaged"] is None else f"{row['damaged']:.3f}"
        print(f"{row['outcome']}: {row['damage']}: {row['metric']} {row['expectation']}, {row['whole']} -> {damaged}")


if __name__ == "__main__":
    app()
