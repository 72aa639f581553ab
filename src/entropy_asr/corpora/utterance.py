"""What every corpus family yields: one utterance, before anything about it has been checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from entropy_asr.text.scripts import Language


@dataclass(frozen=True)
class Utterance:
    """A stretch of an audio file and what is said in it.

    Attributes:
        id: unique in its split.
        audio: the file, relative to the working directory or absolute, as the corpus was named.
        text: transcript as written.
        language: ``en``, ``zh`` or ``mixed``.
        speaker: None where the corpus does not say.
        phonemes: of its words, ` | ` between them, where the corpus knows them better than a dictionary does; else None.
        domain: kind of sentence or of recording; None where the corpus does not say.
        offset: start in the file, seconds.
        duration: seconds; None to the end of the file.
    """

    id: str
    audio: Path
    text: str
    language: Language
    speaker: str | None = None
    domain: str | None = None
    phonemes: str | None = None
    offset: float = 0.0
    duration: float | None = None
