"""Stage 1, one part: the Conformer learns phonemes by CR-CTC, until CKA says that it has moved, or to the last step.

    python -m entropy_asr.stages.pretrain --config results/config/pretrain.json --train … --dev … --objective phoneme \
        --labels results/text/phonemes/tokens.txt --stats results/features/stats.json --part 0 --seed 1 --running … --out …

`--objective character` and `attention` are the baselines' pretraining: other labels and another head, all else the same.

Part i+1 continues from the state that part i ended with (`--previous`), as if there had been no cut: the parts are one
run, and its encoder is handed over where one part ends.
"""

from pathlib import Path

import typer

from entropy_asr.config import Objective
from entropy_asr.errors import friendly_exit
from entropy_asr.signals import leave_when_asked
from entropy_asr.stages.options import ConfigFile, Out, Running, Seed, Train

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@friendly_exit()
def main(
    config: ConfigFile,
    train: Train,
    seed: Seed,
    running: Running,
    out: Out,
    dev: list[Path] = typer.Option(..., help="development manifests: frames for CKA, validation loss"),
    objective: Objective = typer.Option(..., help="what is learned"),
    labels: Path = typer.Option(..., help="tokens.txt of phonemes, or tokenizer.json of text units"),
    stats: Path = typer.Option(..., help="mean and deviation of the features"),
    part: int = typer.Option(..., help="0, 1, …"),
    previous: Path | None = typer.Option(None, help="training_state.safetensors of the part before"),
) -> None:
    """Run one part of encoder pretraining."""
    leave_when_asked()
    import torch

    from entropy_asr.audio.batches import TrainingBatches, read_cuts, validation_batches
    from entropy_asr.config_files import load_stage
    from entropy_asr.files import read_json, write_json
    from entropy_asr.models.artifacts import save_modules
    from entropy_asr.models.conformer import ConformerEncoder
    from entropy_asr.provenance import Provenance
    from entropy_asr.stages.handover import CkaMonitor
    from entropy_asr.stages.objectives import build, check_ctc_fits, read_labels
    from entropy_asr.training import distributed
    from entropy_asr.training.engine import Engine
    from entropy_asr.training.loop import Trainer, configure_logging
    from entropy_asr.training.state import RunningState
    from entropy_asr.training.validation import Validation

    configure_logging()
    settings = load_stage(config)
    inputs = {f"train-{i}": path for i, path in enumerate(train)} | {f"dev-{i}": path for i, path in enumerate(dev)}
    inputs |= {"labels": labels, "stats": stats} | ({"previous": previous} if previous else {})
    provenance = Provenance("pretrain", config, inputs, seed=seed, part=part, objective=objective)
    device = distributed.start()
    torch.manual_seed(seed)

    # The model: features are normalised inside the encoder, by statistics that travel with it.
    cuts, found = read_cuts(train), read_labels(objective, labels)
    if objective == "character":
        check_ctc_fits(cuts, found, max(settings.augment.speed_factors))
    encoder = ConformerEncoder(settings.encoder, settings.features.num_mel_bins)
    statistics = read_json(stats)
    encoder.feature_mean.copy_(torch.tensor(statistics["mean"]))
    encoder.feature_std.copy_(torch.tensor(statistics["std"]))
    encoder.checkpoint_activations = settings.engine.activation_checkpointing
    model, head_facts = build(objective, encoder, found, settings)

    # The data: two maskings of the same utterance, and its labels.
    batches = TrainingBatches(
        cuts,
        target=found.encode,
        fill=encoder.feature_mean.numpy(),
        features=settings.features,
        augment=settings.augment,
        copies=2,
        max_duration=settings.pretrain.max_duration,
        buckets=settings.engine.buckets,
        seed=seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        waveforms=device.type == "cuda",
    )

    # The loop, ended by CKA or by the last step.
    torch.manual_seed(seed * 1000 + distributed.rank())
    engine = Engine(model, settings.pretrain, settings.engine, device)
    monitor = CkaMonitor(encoder, settings.cka, read_cuts(dev), settings.features, device, part)
    held_out = validation_batches(
        read_cuts(dev),
        found.encode,
        settings.features,
        settings.engine.validate_utterances,
        settings.pretrain.max_duration,
        copies=2,
    )
    state, validation = RunningState(running, provenance.key), Validation(model, held_out, device)
    trainer = Trainer(engine, batches, state, out / "train.jsonl", f"pretrain part {part}", monitor, validation)
    trainer.resume(initial=previous)
    first_step, first_audio = trainer.counters.step, trainer.counters.audio_seconds
    ended_by = {"monitor": "cka", "last_step": "last_step"}[trainer.run()]

    # The artifact: encoder and head for those who use it, the whole state for the next part.
    trainer.save(out / "training_state.safetensors")
    engine.restore_full_precision()
    if distributed.rank() == 0:
        header = {"encoder": settings.encoder.model_dump(), "num_mel_bins": settings.features.num_mel_bins}
        header |= {"objective": objective, "labels": found.names, **head_facts}
        save_modules(out / "encoder.safetensors", {"encoder": encoder, "head": model.head}, header)
        facts = {"seed": seed, "part": part, **trainer.cost()}
        facts |= {
            "first_step_of_this_process": first_step,
            "audio_hours_of_this_process": (trainer.counters.audio_seconds - first_audio) / 3600,
        }
        provenance.write(out / "provenance.json", **facts)
        write_json(
            out / "part.json",
            {"part": part, "end_step": trainer.counters.step, "ended_by": ended_by, "cka": monitor.trace},
        )
        trainer.state.clear()
    distributed.stop()


if __name__ == "__main__":
    app()
