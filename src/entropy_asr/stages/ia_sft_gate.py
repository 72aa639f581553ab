"""Which IA-SFT iteration there is behind a possible pretraining part: what joint SFT waits for, one gate a part.

    python -m entropy_asr.stages.ia_sft_gate --model results/systems/ours/seed-1/ia_sft/iter-0/model.safetensors --out gate-0.json

The gate names the iteration's folder and holds its model's hash, so that another model is another gate.  Without `--model`
pretraining ended before that part, and the gate names nothing.
"""

from pathlib import Path

import typer

from entropy_asr.errors import friendly_exit

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@friendly_exit()
def main(
    out: Path = typer.Option(..., help="JSON to write"),
    model: Path | None = typer.Option(None, help="model.safetensors of the iteration"),
) -> None:
    """Write one gate."""
    from entropy_asr.files import sha256, write_json

    write_json(out, {"iteration": str(model.parent) if model else None, "sha256": sha256(model) if model else None})


if __name__ == "__main__":
    app()
