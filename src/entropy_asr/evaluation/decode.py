"""Transcribe a test set with a finished system; raw hypotheses are stored, scores come later.

    python -m entropy_asr.evaluation.decode --config results/config/decode.json --cuts … --system …/joint_sft --out hyps.jsonl

A line an utterance: id, language, reference and hypothesis (both unnormalised), duration (s), decode_seconds (its share of its
batch's wall time).  The longest transcript allowed depends on the utterance's own length, never on its batch.
"""

import logging
import time
from pathlib import Path

import typer

from entropy_asr.errors import friendly_exit

log = logging.getLogger(__name__)
KEPT = ("domain", "condition", "corpus_kind", "audio", "audio_start")  # of a cut, for those who count by them
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@friendly_exit()
def main(
    config: Path = typer.Option(..., help="sections of this stage"),
    cuts: Path = typer.Option(..., help="manifest of the test set"),
    system: Path = typer.Option(..., help="folder of a joint SFT"),
    out: Path = typer.Option(..., help="hypotheses, JSONL"),
) -> None:
    """Decode one test set."""
    from entropy_asr.audio.batches import evaluation_batches, read_cuts
    from entropy_asr.config_files import load_stage
    from entropy_asr.files import write_jsonl
    from entropy_asr.models.artifacts import load_system
    from entropy_asr.training.distributed import choose_device
    from entropy_asr.training.loop import configure_logging

    configure_logging()
    settings = load_stage(config)
    device = choose_device()
    model, tokenizer = load_system(system)
    model.to(device)
    everything = read_cuts([cuts])
    rows = []
    for batch, features, lens in evaluation_batches(everything, settings.features, settings.decode.max_duration):
        begun = time.perf_counter()
        limits = [
            int(settings.decode.max_tokens_per_second * cut.duration) + settings.decode.max_tokens_constant for cut in batch
        ]
        options = settings.decode
        found = model.generate(features.to(device), lens, limits, options.num_beams, options.no_repeat_ngram)
        seconds = (time.perf_counter() - begun) / sum(cut.duration for cut in batch)
        for cut, ids in zip(batch, found, strict=True):
            rows.append(
                {
                    "id": cut.id,
                    "language": cut.supervisions[0].language,
                    "speaker": cut.supervisions[0].speaker,
                    "reference": cut.supervisions[0].text,
                    "hypothesis": tokenizer.decode(ids, skip_special_tokens=True).strip(),
                    "duration": round(cut.duration, 3),
                    "decode_seconds": round(seconds * cut.duration, 4),
                    "decoding": settings.decode.words,
                    **{key: cut.supervisions[0].custom[key] for key in KEPT if key in cut.supervisions[0].custom},
                }
            )
        log.info("decode %d/%d utterances  real-time factor %.3f", len(rows), len(everything), seconds)
    write_jsonl(out, sorted(rows, key=lambda row: row["id"]))


if __name__ == "__main__":
    app()
