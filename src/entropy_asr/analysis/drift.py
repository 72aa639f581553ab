"""Drift: linear CKA, layer by layer, between the encoders of a run.

    python -m entropy_asr.analysis.drift --frames results/metrics/encoder/phoneme/seed-1/part-0.safetensors … --out drift.json

The frames are those that `analysis.encoder_metrics` kept: the same utterances, in the same order, for every encoder.
"""

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import typer

from entropy_asr.errors import InputError, friendly_exit


def checkpoint_of(path: Path) -> str:
    """`<owner>/<part-i or joint_sft>` of …/<owner>/seed-<s>/<name>.safetensors."""
    return f"{path.parent.parent.name}/{path.stem}"


def drift_rows(paths: list[Path]) -> list[dict[str, Any]]:
    """CKA of every pair of encoders, every layer that both have, with its 95% interval over utterances.

    Raises:
        InputError: two files hold frames of different utterances.
    """
    from safetensors import safe_open

    from entropy_asr.analysis.cka import cka_estimate

    rows, utterances, lens = [], {}, {}
    for path in paths:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata()
        utterances[path], lens[path] = json.loads(facts["utterances"]), json.loads(facts["frames"])
    for first, second in combinations(paths, 2):
        if utterances[first] != utterances[second]:
            raise InputError(f"{first} and {second} hold frames of different utterances; measure both with the same settings")
        with safe_open(first, framework="pt") as one, safe_open(second, framework="pt") as other:
            shared = sorted(set(one.keys()) & set(other.keys()), key=lambda name: int(name.removeprefix("layer-")))
            for name in shared:  # two layers in memory at a time
                x, y = one.get_tensor(name), other.get_tensor(name)
                if lens[first] != lens[second]:
                    raise InputError(
                        f"{first} has {len(x)} frames, {second} has {len(y)}: CKA compares encoders of one frame rate"
                    )
                layer = int(name.removeprefix("layer-"))
                pair = {"first": checkpoint_of(first), "second": checkpoint_of(second)}
                found = cka_estimate(x, y, lens[first])
                interval = {"cka": found.value, "low": found.low, "high": found.high}
                rows.append({**pair, "layer": layer, **interval, "frames": len(x), "utterances": len(lens[first])})
    return rows


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@friendly_exit()
def main(
    frames: list[Path] = typer.Option(..., help="<owner>/seed-<s>/<part-i or joint_sft>.safetensors, in the order of training"),
    out: Path = typer.Option(..., help="JSON to write"),
) -> None:
    """Compare every pair of encoders."""
    from entropy_asr.files import write_json

    write_json(out, drift_rows(frames))


if __name__ == "__main__":
    app()
