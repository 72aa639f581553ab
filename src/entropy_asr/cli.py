"""The command line for people: look at results, check a config, transcribe a file.

    entropy-asr config check config/mini.yaml
    entropy-asr plan config/paper.yaml
    entropy-asr tune-batch config/paper.yaml
    entropy-asr status
    entropy-asr show results
    entropy-asr score --refs refs.jsonl --hyps hyps.jsonl --language en --out scores
    entropy-asr transcribe results/systems/ours/seed-1/joint_sft my.wav
    entropy-asr probe --encoder whisper-base --manifest en-test.jsonl.gz --aligner …/part-3/encoder.safetensors

Stages and evaluations are commands of their own modules (`python -m entropy_asr.stages.align --help`); the workflow calls those.
"""

from pathlib import Path
from typing import Annotated

import typer

from entropy_asr.errors import InputError, friendly_exit

Configs = Annotated[list[Path], typer.Argument(help="config, then what is laid over it")]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help=__doc__)
config_app = typer.Typer(no_args_is_help=True, help="Check an experiment's config; generate the reference of all keys.")
app.add_typer(config_app, name="config")


@config_app.command()
@friendly_exit()
def check(paths: Configs) -> None:
    """Validate a config and say what it describes."""
    from entropy_asr.config_files import load_config

    config = load_config(*paths)
    arms, seeds = ", ".join(config.arms), ", ".join(map(str, config.seeds))
    print(f"{' + '.join(map(str, paths))}: valid. '{config.name}': arms {arms}; seeds {seeds}")


@config_app.command()
@friendly_exit()
def docs(folder: Path = Path("docs")) -> None:
    """Write the JSON schema and the reference page of all keys, from the schema in the code."""
    from entropy_asr.config_docs import json_schema, reference_page
    from entropy_asr.files import atomic_write

    atomic_write(folder / "config.schema.json", json_schema())
    atomic_write(folder / "config.md", reference_page())


@app.command()
@friendly_exit()
def plan(
    paths: Configs,
    mfu: float = typer.Option(0.4, min=0.01, max=1.0, help="share of the peak that training reaches"),
    peak_tflops: float = typer.Option(312.0, min=0.001, help="of one GPU; 312: A100, bf16"),
) -> None:
    """Say what an experiment will cost, from its config alone: parameters, memory a GPU, steps, GPU-hours."""
    from rich.console import Console
    from rich.table import Table

    from entropy_asr.config_files import load_config
    from entropy_asr.plan import parameters, stage_costs

    config = load_config(*paths)
    console, sizes = Console(), parameters(config)
    table = Table("module", "parameters", title=f"{' + '.join(map(str, paths))}: parameters")
    for name, size in [*sizes.items(), ("recogniser", sum(sizes.values()) - sizes["phoneme head"])]:
        table.add_row(name, f"{size / 1e6:,.1f} M")
    console.print(table)
    columns = ("stage", "GPUs", "steps", "audio h", "weights", "grads", "Adam", "activ.", "GiB", "GPU h")
    table = Table(*columns, title="arm ours, one seed, ZeRO-2", padding=(0, 0), collapse_padding=True)
    costs = stage_costs(config)
    for cost in costs:
        peak = cost.peak
        memory = (peak.weights, peak.gradients, peak.optimiser, peak.activations, peak.bytes)
        table.add_row(
            cost.stage,
            str(cost.processes),
            f"{cost.steps:,}",
            f"{cost.audio_hours:,.0f}",
            *(f"{value / 2**30:.2f}" for value in memory),
            f"{cost.gpu_hours(peak_tflops * 1e12, mfu):,.0f}",
        )
    console.print(table)
    when = ", ".join(f"{cost.stage} {cost.peak.name}" for cost in costs)
    note = "Memory is of one GPU, in GiB, when it is most: weights, gradients, float32 master weights and moments, activations."
    console.print(f"{note} That is at: {when}. GPU-hours at {mfu:.0%} of {peak_tflops:g} TFLOP/s.", soft_wrap=True)


@app.command()
@friendly_exit()
def tune_batch(
    paths: Configs,
    stage: list[str] = typer.Option([], help="pretrain, align, ia_sft, joint_sft; repeat; without it all of them"),
    memory_gib: float | None = typer.Option(None, min=0.001, help="what a stage may take, GiB; needed without a card"),
) -> None:
    """Find the largest and the fastest batch of each stage on this machine's card: `max_duration` for the config."""
    from entropy_asr.config_files import load_config
    from entropy_asr.tune_batch import report

    report(load_config(*paths), stage, memory_gib)


@app.command()
@friendly_exit()
def show(results: Path = typer.Argument(Path("results"))) -> None:
    """Print the main table of a run and say where its report is."""
    import csv

    from rich.console import Console
    from rich.table import Table

    path = results / "tables" / "main.csv"
    if not path.is_file():
        raise InputError(f"{path} does not exist; `make reproduce`, or snakemake with your config, makes it")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    table = Table("arm", "seed", "test set", "metric", "%", "real-time factor", "speech", title=str(path))
    for row in rows:
        table.add_row(*(row[column] for column in ("arm", "seed", "test_set", "metric", "value_percent", "rtf", "corpus_kind")))
    console = Console()
    console.print(table)
    console.print(f"report: {results / 'report' / 'index.html'}", soft_wrap=True)


@app.command()
@friendly_exit()
def score(
    refs: Path = typer.Option(..., help="references, JSONL of {id, text}, with `speaker` where it is known"),
    hyps: Path = typer.Option(..., help="hypotheses of the same utterances, JSONL of {id, text}"),
    language: str = typer.Option(..., help="en: WER, zh: CER, mixed: MER (hanzi and Latin words)"),
    out: Path = typer.Option(..., help="folder: score.json, errors.txt (alignments, confusions), utterances.csv"),
) -> None:
    """Score any system's transcripts; needs no model."""
    from entropy_asr.evaluation.score import METRICS, one_line, read_pairs, write_scores

    languages = [name for name in METRICS if name != "phonemes"]
    if language not in languages:
        raise InputError(f"--language is {language!r}, expected one of {', '.join(languages)}")
    print(one_line(hyps.name, write_scores(*read_pairs(refs, hyps, language), out)))


@app.command()
@friendly_exit()
def status(folder: Path = typer.Argument(Path(), help="working directory of the run")) -> None:
    """Show the stages of a run: their Slurm jobs, progress, time left, and the last lines of the log where one failed."""
    from entropy_asr.status import run_status, show

    if not (folder / "results").is_dir():
        raise InputError(f"{folder / 'results'} does not exist: name the folder that snakemake was called for (--directory)")
    show(run_status(folder))


@app.command()
@friendly_exit()
def dvc(path: Path = typer.Argument(Path("config/mini.yaml"), help="config, as seen from the root of the repository")) -> None:
    """Write dvc.yaml: the steps of this config's experiment as DVC stages."""
    from entropy_asr.pipeline import write_dvc_yaml

    write_dvc_yaml(path)


@app.command()
@friendly_exit()
def restore(path: Path = typer.Argument(Path("config/mini.yaml"), help="config that dvc.yaml was written for")) -> None:
    """After `dvc pull`: have Snakemake take the pulled results as made, if this config made them."""
    from entropy_asr.pipeline import restore as restore_results

    restore_results(path)


@app.command()
@friendly_exit()
def reference(
    results: Path = typer.Argument(Path("results")),
    folder: Path = typer.Argument(Path("docs/results")),
    command: str = typer.Option("make reproduce", help="what made them"),
) -> None:
    """Copy the small files of a finished run to where git keeps them."""
    from entropy_asr.reporting.reference import publish

    publish(results, folder, command)


@app.command()
@friendly_exit()
def transcribe(
    system: Path = typer.Argument(help="folder of a joint SFT"),
    audio: list[Path] = typer.Argument(help="audio files"),
    beams: int = typer.Option(1, min=1, help="1: greedy"),
) -> None:
    """Transcribe audio files with a finished system."""
    from lhotse import MonoCut, Recording

    from entropy_asr.audio.batches import pad_features
    from entropy_asr.audio.features import load_audio, log_mel
    from entropy_asr.config import Decode, Features
    from entropy_asr.models.artifacts import load_system

    missing = [str(path) for path in audio if not path.is_file()]
    if missing:
        raise InputError(f"no such audio file: {', '.join(missing)}")
    model, tokenizer = load_system(system)
    features, decode = Features(num_mel_bins=model.encoder.num_mel_bins), Decode()
    for path in audio:
        recording = Recording.from_file(path)
        cut = MonoCut(recording.id, 0, recording.duration, 0, recording=recording)
        limit = int(decode.max_tokens_per_second * cut.duration) + decode.max_tokens_constant
        ids = model.generate(*pad_features([log_mel(load_audio(cut, features), features)]), [limit], beams)[0]
        print(f"{path}\t{tokenizer.decode(ids, skip_special_tokens=True).strip()}")


@app.command()
@friendly_exit()
def probe(
    encoder: Path = typer.Option(
        ...,
        help="model file of this project, Hugging Face folder (Whisper or wav2vec-style), Whisper converted by CTranslate2, "
        "folder of saved frames (<id>.npy), or the name of a packaged recogniser: whisper-base",
    ),
    manifest: Path = typer.Option(..., help="lhotse manifest as the rules make it, JSONL(.gz)"),
    aligner: Path = typer.Option(..., help="encoder.safetensors of a phoneme pretraining part: it says when what is said"),
    layers: list[int] = typer.Option([-1], help="layers to probe; 0: before the first block, -1: the output; repeat"),
    min_alignment_score: float = typer.Option(-1.5, help="drop utterances whose alignment scores less, nats a frame"),
    seeds: int = typer.Option(3, min=1, help="probes a number"),
    window: float = typer.Option(30.0, help="seconds that a Whisper of CTranslate2 pads an utterance to"),
    out: Path | None = typer.Option(None, help="JSON to write"),
) -> None:
    """Measure NSE, PAI and CSAI of any speech encoder."""
    from rich.console import Console
    from rich.table import Table

    from entropy_asr.analysis.probe_command import probe as measure
    from entropy_asr.analysis.probe_command import summary
    from entropy_asr.config import Metrics
    from entropy_asr.files import write_json

    metrics = Metrics(layers=layers, min_alignment_score=min_alignment_score, probe_seeds=seeds)
    result = measure(encoder, manifest, aligner, metrics, window)
    table = Table("metric", "layer", "language", "probe", "value", "95% interval", "of")
    for row in summary(result):
        table.add_row(*row)
    console = Console()
    console.print(f"{encoder}: {result['corpus_kind']} speech; values are shares of 1 (docs/metrics.md)", soft_wrap=True)
    console.print(table)
    if out is not None:
        write_json(out, result)


if __name__ == "__main__":
    app()
