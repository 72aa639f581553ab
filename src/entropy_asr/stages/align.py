"""Stage 2, alignment: the adaptor learns to speak the LLM's language; encoder and LLM are frozen.

    python -m entropy_asr.stages.align --config results/config/align.json --train … --dev … \
        --encoder results/encoders/phoneme/seed-1/part-0/encoder.safetensors --lm results/text/lm --seed 1 --running … --out …
"""

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
) -> None:
    """Train the adaptor."""
    leave_when_asked()
    import torch

    from entropy_asr.config_files import load_stage
    from entropy_asr.models.adaptor import Adaptor
    from entropy_asr.models.artifacts import load_encoder, load_llm
    from entropy_asr.models.speech_llm import PromptIds, SpeechLLM
    from entropy_asr.provenance import Provenance
    from entropy_asr.stages.sft import train_system
    from entropy_asr.training.loop import configure_logging

    configure_logging()
    settings = load_stage(config)
    inputs = (
        {f"train-{i}": path for i, path in enumerate(train)}
        | {f"dev-{i}": path for i, path in enumerate(dev)}
        | {"encoder": encoder, "lm": lm / "lm.json"}
    )
    provenance = Provenance("align", config, inputs, seed=seed)
    torch.manual_seed(seed)

    conformer = load_encoder(encoder)
    llm, tokenizer = load_llm(lm)
    adaptor = Adaptor(settings.adaptor, conformer.config.width, llm.config.hidden_size)
    system = SpeechLLM(conformer, adaptor, llm, PromptIds.from_tokenizer(tokenizer, settings.prompt))
    train_system(
        "align",
        system,
        tokenizer,
        trained=("adaptor",),
        schedule=settings.align,
        settings=settings,
        train=train,
        dev=dev,
        provenance=provenance,
        running=running,
        out=out,
        seed=seed,
        facts={},
        ctc_weight=settings.align.ctc_weight,
    )


if __name__ == "__main__":
    app()
