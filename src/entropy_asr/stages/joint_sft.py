"""Stage 4, late joint SFT: encoder, adaptor and LLM train end to end; with `--freeze-encoder`, adaptor and LLM alone.

    python -m entropy_asr.stages.joint_sft --config results/config/joint_sft.json --train … --dev … --gates gate-0.json … \
        --encoder results/encoders/phoneme/seed-1/part-3/encoder.safetensors --lm results/text/lm --seed 1 --running … --out …

`ours` starts from the last IA-SFT iteration, which the gates name.  `no_ia_sft` starts from the alignment (`--previous`) and
takes all of IA-SFT's steps in addition: equal LLM-side steps for every arm.  `joint_only` has neither: it starts with a new
adaptor, and takes alignment's steps, too.
"""

from pathlib import Path

import typer

from entropy_asr.errors import friendly_exit
from entropy_asr.signals import leave_when_asked
from entropy_asr.stages.options import ConfigFile, Dev, Encoder, Lm, Out, Running, Seed, Train

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


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
    gates: list[Path] = typer.Option([], help="gate-i.json of each possible iteration"),
    previous: Path | None = typer.Option(None, help="folder of the alignment, for an arm without IA-SFT"),
    freeze_encoder: bool = typer.Option(False, help="the encoder stays as pretraining left it"),
) -> None:
    """Train the whole system."""
    leave_when_asked()
    import torch

    from entropy_asr.config_files import load_stage
    from entropy_asr.files import read_json
    from entropy_asr.models.adaptor import Adaptor
    from entropy_asr.models.artifacts import load_adaptor, load_encoder, load_into, load_llm
    from entropy_asr.models.speech_llm import PromptIds, SpeechLLM
    from entropy_asr.provenance import Provenance
    from entropy_asr.stages.sft import train_system
    from entropy_asr.training.loop import configure_logging

    configure_logging()
    settings = load_stage(config)
    if gates:
        previous = [Path(gate["iteration"]) for gate in map(read_json, gates) if gate["iteration"]][-1]
    steps = settings.joint_sft.steps
    steps += 0 if gates else settings.cka.max_parts * settings.ia_sft.steps
    steps += 0 if previous else settings.align.steps
    schedule = settings.joint_sft.model_copy(update={"steps": steps})
    inputs = (
        {f"train-{i}": path for i, path in enumerate(train)}
        | {f"dev-{i}": path for i, path in enumerate(dev)}
        | {"encoder": encoder, "lm": lm / "lm.json"}
    )
    inputs |= {"previous": previous / "model.safetensors"} if previous else {}
    provenance = Provenance("joint_sft", config, inputs, seed=seed, freeze_encoder=freeze_encoder)

    llm, tokenizer = load_llm(lm)
    if gates:
        load_into(previous / "model.safetensors", "llm", llm)
    conformer = load_encoder(encoder)
    torch.manual_seed(seed)
    adaptor = (
        load_adaptor(previous / "model.safetensors")
        if previous
        else Adaptor(settings.adaptor, conformer.config.width, llm.config.hidden_size)
    )
    system = SpeechLLM(conformer, adaptor, llm, PromptIds.from_tokenizer(tokenizer, settings.prompt))
    train_system(
        "joint_sft",
        system,
        tokenizer,
        trained=("adaptor", "llm") if freeze_encoder else ("encoder", "adaptor", "llm"),
        schedule=schedule,
        settings=settings,
        train=train,
        dev=dev,
        provenance=provenance,
        running=running,
        out=out,
        seed=seed,
        facts={"previous": str(previous) if previous else None},
        lr_scales={"system.encoder.": settings.joint_sft.encoder_lr_scale},
        saved=("encoder", "adaptor", "llm"),
    )


if __name__ == "__main__":
    app()
