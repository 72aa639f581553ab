"""What a pretrained encoder hears: CTC phonemes of a test set, or text from one that was pretrained on characters.

The format is that of `decode`, and so are the beams: one is greedy, more are prefix beam search.

    python -m entropy_asr.evaluation.decode_encoder --config results/config/decode.json --cuts … \
        --encoder results/encoders/phoneme/seed-1/part-3/encoder.safetensors --out hyps.jsonl
"""

import time
from pathlib import Path

import typer

from entropy_asr.errors import friendly_exit

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@friendly_exit()
def main(
    config: Path = typer.Option(..., help="sections of this stage"),
    cuts: Path = typer.Option(..., help="manifest of the test set"),
    encoder: Path = typer.Option(..., help="encoder.safetensors with its CTC head"),
    out: Path = typer.Option(..., help="hypotheses, JSONL"),
) -> None:
    """Decode one test set."""
    import torch

    from entropy_asr.audio.batches import evaluation_batches, read_cuts
    from entropy_asr.config_files import load_stage
    from entropy_asr.files import write_jsonl
    from entropy_asr.models.artifacts import load_ctc_head, load_encoder, read_header
    from entropy_asr.models.ctc import BLANK_ID, ctc_greedy, ctc_prefix_beam
    from entropy_asr.text.units import join_units
    from entropy_asr.training.distributed import choose_device

    settings = load_stage(config)
    device = choose_device()
    conformer = load_encoder(encoder).to(device).eval()
    head, labels = load_ctc_head(encoder)
    phonemes = read_header(encoder)["objective"] == "phoneme"
    head.to(device).eval()
    beams, penalty = settings.decode.num_beams, settings.decode.blank_penalty
    search = "greedy" if beams == 1 else f"prefix beam of {beams}"
    if penalty:
        search += f", blank penalty {penalty:g}"
    rows = []
    for batch, features, lens in evaluation_batches(read_cuts([cuts]), settings.features, settings.decode.max_duration):
        begun = time.perf_counter()
        with torch.inference_mode():
            encoder_out, encoder_out_lens = conformer(features.to(device), lens)
            log_probs = head(encoder_out)
            log_probs[..., BLANK_ID] -= penalty
            paths = ctc_greedy(log_probs, encoder_out_lens) if beams == 1 else ctc_prefix_beam(log_probs, encoder_out_lens, beams)
        seconds = (time.perf_counter() - begun) / sum(cut.duration for cut in batch)
        for cut, ids in zip(batch, paths, strict=True):
            said, heard = cut.supervisions[0], [labels[i] for i in ids]
            rows.append(
                {
                    "id": cut.id,
                    "language": "phonemes" if phonemes else said.language,
                    "speaker": said.speaker,
                    "domain": said.custom.get("domain"),
                    "reference": " ".join(said.custom["phonemes"]) if phonemes else said.text,
                    "hypothesis": " ".join(heard) if phonemes else join_units(heard),
                    "duration": round(cut.duration, 3),
                    "decoding": search,
                    "decode_seconds": round(seconds * cut.duration, 4),
                }
            )
    write_jsonl(out, sorted(rows, key=lambda row: row["id"]))


if __name__ == "__main__":
    app()
