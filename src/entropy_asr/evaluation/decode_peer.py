"""Another system's transcripts of a test set, in the format of `decode`: the same audio, references and scorer as ours.

    python -m entropy_asr.evaluation.decode_peer --kind ctranslate2 --path results/peers/whisper-base --cuts … --out hyps.jsonl
    python -m entropy_asr.evaluation.decode_peer --kind huggingface --path openai/whisper-small --cuts … --out hyps.jsonl
    python -m entropy_asr.evaluation.decode_peer --kind hypotheses --path theirs.jsonl --cuts … --out hyps.jsonl

A system that has to be told the language is told it (mixed speech counts as Mandarin).  Decoding is greedy, one utterance at a
time; the real-time factor says how long it took here.
"""

import logging
import time
import zlib
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path

import numpy as np
import typer

from entropy_asr.errors import InputError, friendly_exit
from entropy_asr.evaluation.whisper import RATE, Whisper

log = logging.getLogger(__name__)
Transcribe = Callable[[np.ndarray, str], str]
NAMES = {"en": "english", "zh": "chinese"}


class Kind(StrEnum):
    """As in `config.Peer`."""

    ctranslate2 = "ctranslate2"
    huggingface = "huggingface"
    hypotheses = "hypotheses"


def ctranslate2_whisper(path: str, window: float) -> Transcribe:
    """A Whisper in CTranslate2's format; what loops in a short window is heard again in Whisper's own of 30 seconds."""
    whisper = Whisper(Path(path))

    def transcribe(samples: np.ndarray, language: str) -> str:
        told = "en" if language == "en" else "zh"
        text = whisper(samples, told, window)
        return whisper(samples, told) if window < 30 and loops(text) else text

    return transcribe


def loops(text: str) -> bool:
    """Whether a transcript compresses as only repetition does: Whisper's own sign of a failure (Radford et al., 2022, 4.5)."""
    data = text.encode()
    return len(data) > 2.4 * len(zlib.compress(data))


def huggingface(path: str) -> Transcribe:
    """Any model of transformers' automatic-speech-recognition pipeline."""
    from transformers import pipeline

    from entropy_asr.training.distributed import choose_device

    recognise = pipeline("automatic-speech-recognition", model=path, device=choose_device())
    generates = recognise.type in ("seq2seq", "seq2seq_whisper")

    def transcribe(samples: np.ndarray, language: str) -> str:
        tell = recognise.type == "seq2seq_whisper" and language in NAMES
        options = {"language": NAMES[language], "task": "transcribe"} if tell else {}
        told = {"generate_kwargs": {"num_beams": 1, "do_sample": False, **options}} if generates else {}
        return recognise({"raw": samples, "sampling_rate": RATE}, **told)["text"].strip()

    return transcribe


def transcripts(transcribe: Transcribe, cuts: list) -> Iterator[tuple[str, float]]:
    """(text, seconds that it took) of each cut."""
    from entropy_asr.audio.features import load_audio
    from entropy_asr.config import Features

    for number, cut in enumerate(cuts, 1):
        samples = load_audio(cut, Features(sampling_rate=RATE))
        begun = time.perf_counter()
        text = transcribe(samples, cut.supervisions[0].language)
        yield text, time.perf_counter() - begun
        if number % 100 == 0 or number == len(cuts):
            log.info("decode_peer %d/%d utterances", number, len(cuts))


def given(path: Path, cuts: list) -> Iterator[tuple[str, None]]:
    """Transcripts from a file, of which none may be missing and none left over, by the ids of the corpus's own listing.

    In a manifest that says none, the ids are those of its cuts.
    """
    from entropy_asr.evaluation.score import read_by_id

    own = [(cut.supervisions[0].custom or {}).get("utterance_id", cut.id) for cut in cuts]
    rows, ids = read_by_id(path, ("id", "text")), set(own)
    if rows.keys() != ids:
        side = "has no line for" if ids - rows.keys() else "has a line for the unknown utterance"
        raise InputError(f"{path}: {side} {min(ids - rows.keys() or rows.keys() - ids)!r}; it must be of this test set, whole")
    yield from ((rows[name]["text"], None) for name in own)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@friendly_exit()
def main(
    kind: Kind = typer.Option(...),
    path: str = typer.Option(..., help="model, or hypotheses"),
    window: float = typer.Option(30.0, help="seconds that ctranslate2 pads an utterance to"),
    cuts: Path = typer.Option(..., help="manifest of the test set"),
    out: Path = typer.Option(..., help="hypotheses, JSONL"),
) -> None:
    """Decode one test set with another system."""
    from entropy_asr.audio.batches import read_cuts
    from entropy_asr.files import write_jsonl
    from entropy_asr.training.loop import configure_logging

    configure_logging()
    everything = sorted(read_cuts([cuts]), key=lambda cut: cut.id)
    if kind is Kind.hypotheses:
        heard: Iterator[tuple[str, float | None]] = given(Path(path), everything)
    else:
        transcribe = ctranslate2_whisper(path, window) if kind is Kind.ctranslate2 else huggingface(path)
        heard = transcripts(transcribe, everything)
    rows = []
    for cut, (text, seconds) in zip(everything, heard, strict=True):
        spoken = cut.supervisions[0]
        row = {"id": cut.id, "language": spoken.language, "speaker": spoken.speaker, "reference": spoken.text, "hypothesis": text}
        row |= {"domain": (spoken.custom or {}).get("domain")}
        row |= {} if kind is Kind.hypotheses else {"decoding": "greedy"}
        rows.append({**row, "duration": round(cut.duration, 3), "decode_seconds": seconds and round(seconds, 4)})
    write_jsonl(out, rows)


if __name__ == "__main__":
    app()
