"""Stage 4, late joint SFT: encoder, adaptor and LLM train end to end.

    python -m entropy_asr.stages.joint_sft --config results/config/joint_sft.json --train … --gates gate-0.json gate-1.json … \
        --encoder results/encoders/phoneme/seed-1/part-3/encoder.safetensors --lm results/text/lm --seed 1 --running … --out …

`ours` starts from the last IA-SFT iteration, which the gates name.  `no_ia_sft` starts from the alignment (`--previous`) and
takes IA-SFT's steps in addition, once for each pretraining part (`--parts`; equal LLM-side steps for every arm).
"""

from pathlib import Path

import typer

from entropy_asr.errors import friendly_exit
from entropy_asr.stages.options import ConfigFile, Encoder, Lm, Out, Running, Seed, Train

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
    gates: list[Path] = typer.Option([], help="gate-i.json of each possible iteration"),
    previous: Path | None = typer.Option(None, help="folder of the alignment, for an arm without IA-SFT"),
    parts: list[Path] = typer.Option([], help="part.json of each pretraining part; IA-SFT's steps are added for each"),
) -> None:
    """Train the whole system."""
    from entropy_asr.config import load_stage
    from entropy_asr.files import read_json
    from entropy_asr.models.artifacts import load_adaptor, load_encoder, load_into, load_llm
    from entropy_asr.models.speech_llm import PromptIds, SpeechLLM
    from entropy_asr.provenance import Provenance
    from entropy_asr.stages.sft import train_system
    from entropy_asr.training.loop import configure_logging

    configure_logging()
    settings = load_stage(config)
    if gates:
        previous = [Path(gate["iteration"]) for gate in map(read_json, gates) if gate["iteration"]][-1]
    schedule = settings.joint_sft.model_copy(update={"steps": settings.joint_sft.steps + len(parts) * settings.ia_sft.steps})
    inputs = {f"train-{i}": path for i, path in enumerate(train)}
    inputs |= {"encoder": encoder, "previous": previous / "model.safetensors", "lm": lm / "lm.json"}
    provenance = Provenance("joint_sft", config, inputs)

    llm, tokenizer = load_llm(lm)
    if gates:
        load_into(previous / "model.safetensors", "llm", llm)
    adaptor = load_adaptor(previous / "model.safetensors")
    system = SpeechLLM(load_encoder(encoder), adaptor, llm, PromptIds.from_tokenizer(tokenizer, settings.prompt))
    train_system(
        "joint_sft",
        system,
        tokenizer,
        trained=("encoder", "adaptor", "llm"),
        schedule=schedule,
        settings=settings,
        train=train,
        provenance=provenance,
        running=running,
        out=out,
        seed=seed,
        facts={"previous": str(previous)},
        lr_scales={"system.encoder.": settings.joint_sft.encoder_lr_scale},
    )


if __name__ == "__main__":
    app()
