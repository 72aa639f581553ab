"""What kind of character is this: hanzi, Latin, or neither.

Normalisation, pronunciation and scoring all cut text where the script changes; they share this one definition, so a
transcript is cut alike for training labels and for error rates.
"""

from __future__ import annotations

import re
from typing import Literal

Language = Literal["en", "zh", "mixed"]

# CJK ideographs (with extension A, compatibility forms and the supplementary planes) and kana: written without spaces,
# one character one unit.
HANZI = "\u3005\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_UNIT = re.compile(f"[{HANZI}]|[^\\s{HANZI}]+")
_RUN = re.compile(f"[{HANZI}](?:\\s*[{HANZI}])*|[^\\s{HANZI}]+")
_IS_HANZI = re.compile(f"[{HANZI}]")


def is_hanzi(character: str) -> bool:
    """Whether one character is written and counted as a hanzi."""
    return _IS_HANZI.match(character) is not None


def has_hanzi(text: str) -> bool:
    """Whether any character of the text is a hanzi."""
    return _IS_HANZI.search(text) is not None


def mixed_units(text: str) -> list[str]:
    """Single hanzi and whole words of other scripts, in order: ``"去 central park 吧"`` gives 去, central, park, 吧."""
    return _UNIT.findall(text)


def script_runs(text: str) -> list[str]:
    """Maximal runs of hanzi (spaces inside dropped) and single words of other scripts, in order."""
    return [re.sub(r"\s+", "", run) for run in _RUN.findall(text)]


def tokens_for_scoring(text: str, language: Language) -> list[str]:
    """The units that an error rate counts, of text that :func:`~entropy_asr.text.normalize.normalize` has made.

    Characters without spaces for ``zh`` (CER; a Latin letter counts as one, as in AISHELL scoring), words for ``en``
    (WER), hanzi and Latin words for ``mixed`` (MER).
    """
    if language == "zh":
        return [character for character in text if not character.isspace()]
    return text.split() if language == "en" else mixed_units(text)
