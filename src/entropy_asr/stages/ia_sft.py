"""Stage 3, one iteration of IA-SFT: adaptor and LLM train on a frozen encoder, while pretraining goes on beside them.

    python -m entropy_asr.stages.ia_sft --config results/config/ia_sft.json --train … --dev … --iteration 1 \
        --encoder results/encoders/phoneme/seed-1/part-1/encoder.safetensors \
        --part results/encoders/phoneme/seed-1/part-1/part.json --previous results/systems/ours/seed-1/ia_sft/iter-0 \
        --lm results/text/lm --seed 1 --running … --out …

Iteration i takes the encoder of pretraining part i: the hot swap.  Adaptor and LLM go on from `--previous`: the alignment
(adaptor only) for iteration 0, else the iteration before.  Optimiser and schedule start anew with each encoder [O].

How many parts there are is for CKA to say, and another kind of pretraining or another seed has another number.  So that every
arm takes the same number of steps, all iterations take `cka.max_parts` times `ia_sft.steps` together: the one on the final
encoder also takes those of the parts that did not come.  In the paper, too: 1M, 1M, and 2M on the last of three [P].
"""

from pathlib import Path

import typer

from entropy_asr.errors import friendly_exit
from entropy_asr.signals import leave_when_asked
from entropy_asr.stages.options import ConfigFile, Dev, Encoder, Lm, Out, Running, Seed, Train

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def iteration_steps(steps: int, max_parts: int, iteration: int, last: bool) -> int:
    """Optimiser steps of an iteration. last: pretraining ended with this part."""
    return steps * (max_parts - iteration if last else 1)


@app.command()
@friendly_exit()
def main(
    config: ConfigFile,
    train: Train,
    encoder: Encoder,
    lm: Lm,
    seed: Seed,
    running: Running,
    out: Out,
    dev: Dev = (),
    part: Path = typer.Option(..., help="part.json of the encoder's pretraining part: whether it was the last"),
    previous: Path = typer.Option(..., help="folder of the alignment or of the iteration before"),
    iteration: int = typer.Option(..., help="0, 1, …"),
) -> None:
    """Train adaptor and LLM on this encoder."""
    leave_when_asked()
    from entropy_asr.config_files import load_stage
    from entropy_asr.files import read_json
    from entropy_asr.models.artifacts import load_adaptor, load_encoder, load_into, load_llm
    from entropy_asr.models.speech_llm import PromptIds, SpeechLLM
    from entropy_asr.provenance import Provenance
    from entropy_asr.stages.sft import train_system
    from entropy_asr.training.loop import configure_logging

    configure_logging()
    settings = load_stage(config)
    inputs = {f"train-{i}": path for i, path in enumerate(train)} | {f"dev-{i}": path for i, path in enumerate(dev)}
    inputs |= {"encoder": encoder, "part": part, "previous": previous / "model.safetensors", "lm": lm / "lm.json"}
    provenance = Provenance("ia_sft", config, inputs, seed=seed, iteration=iteration)

    last = read_json(part)["ended_by"] == "last_step"
    steps = iteration_steps(settings.ia_sft.steps, settings.cka.max_parts, iteration, last)
    schedule = settings.ia_sft.model_copy(update={"steps": steps})

    llm, tokenizer = load_llm(lm)
    if iteration > 0:
        load_into(previous / "model.safetensors", "llm", llm)
    adaptor = load_adaptor(previous / "model.safetensors")
    system = SpeechLLM(load_encoder(encoder), adaptor, llm, PromptIds.from_tokenizer(tokenizer, settings.prompt))
    train_system(
        f"ia_sft iteration {iteration}",
        system,
        tokenizer,
        trained=("adaptor", "llm"),
        schedule=schedule,
        settings=settings,
        train=train,
        dev=dev,
        provenance=provenance,
        running=running,
        out=out,
        seed=seed * 100 + iteration,  # another order of the data, and other augmentation, than the iteration before
        facts={"iteration": iteration, "encoder_part": str(encoder.parent)},
    )


if __name__ == "__main__":
    app()
