"""One versioned normaliser, for training labels and for scoring alike.

A score means something only together with the normaliser behind it, so the version is written beside every score and
every manifest, and any change of output below is a new version. wetext (finite-state grammars in the WeTextProcessing
tradition, offline) turns digits, dates and units into spoken words; around it stand rules for what it gets wrong, each
with the case that called for it.

    >>> normalize("Call Dr. Lee at 3:30 p.m., it's 5 km.", "en")
    "call doctor lee at three thirty pm it's five kilometers"
    >>> normalize("温度调到２５℃，播放 Yesterday！", "zh")
    '温度调到二十五摄氏度播放 yesterday'

Limits: fillers (um, 嗯) are words that were said and stay, so a system that leaves them out is charged for it. What is read in
several ways is read in one: short numbers as numbers ("911" is nine hundred and eleven, 110 is 一百一十), "St." not at all; a
traditional character is replaced alone, so one whose simple form depends on the word (乾, 著) stays.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import TYPE_CHECKING

from entropy_asr.text.scripts import HANZI, Language, has_hanzi

if TYPE_CHECKING:
    from wetext import Normalizer

_ENGLISH_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_HANZI_DIGITS = "零一二三四五六七八九"
_TENS = ("", "", "twenties", "thirties", "forties", "fifties", "sixties", "seventies", "eighties", "nineties")
# Written only, never spoken; with and without the full stop.
_ABBREVIATIONS = {"mr": "mister", "mrs": "missus", "dr": "doctor"}
# Single characters that other characters stand for: apostrophes and primes, the hanzi zero (no letter to Unicode), full width.
_FOLD = str.maketrans("’‘ʼ`´′〇⁄−–", "'" * 6 + "零/--")
_FOLD |= {ord("！") + i: chr(ord("!") + i) for i in range(94) if chr(ord("!") + i) != "`"} | {ord("｀"): "'", ord("　"): " "}
# What folding leaves as it is, and what has no punctuation left: most transcripts, for which Unicode's tables are a slow way.
_FOLDED = re.compile("[ -~、。\u4e00-\u9fa5]*")
_SPOKEN = re.compile("(?:[a-z ]|(?<=[a-z])'(?=[a-z])|[\u4e00-\u9fa5])*")

# Control, surrogate, unassigned and private characters part words; soft hyphens and zero-width joiners do not.
_CONTROL = {"Cc": " ", "Cs": " ", "Cn": " ", "Co": " ", "Cf": ""}

# A Latin word: not the unit after a number ("10km"), but with the digits behind an ordinal ("2nd").
_LATIN = re.compile(r"\d+(?:st|nd|rd|th)\b|(?<![0-9a-z°])[a-z]+(?:'[a-z]+)*(?![a-z])", re.IGNORECASE | re.ASCII)
_DATE = re.compile(  # May 5, 2012
    r"\b(jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?|"
    r"nov(?:ember)?|dec(?:ember)?)\.? (\d\d?)(?=,? \d{4}\b|[,.!?]|$)",
    re.IGNORECASE,
)
_SPEED = re.compile(r"(?<=\d)\s?km/h(?![a-z])", re.IGNORECASE)
_LATIN_RUN = re.compile(f"[^{HANZI}]*[a-z][^{HANZI}]*", re.IGNORECASE)


def normalize(text: str, language: Language) -> str:
    """Spoken form of a transcript: numbers and signs in words, no punctuation, lower case, simplified hanzi.

    Args:
        text: a transcript or a hypothesis; any Unicode, any script, also of another language than ``language``.
        language: how digits are read where the script around them does not say: ``en`` English, ``zh`` Mandarin,
            ``mixed`` the language of the run that they stand in.

    Returns:
        Words with single spaces; no space between hanzi, one between hanzi and a word of another script. Apostrophes
        inside English words stay. ``normalize`` of the result is the result.
    """
    if language not in ("en", "zh", "mixed"):
        raise ValueError(f"language {language!r} is none of 'en', 'zh', 'mixed'")
    return _normalize(text, language)


@lru_cache(maxsize=1 << 16)
def _normalize(text: str, language: Language) -> str:
    text = _fold(text)
    text = re.sub(r"(?<=[a-z])-(?=\d)", " ", text, flags=re.I)  # f-16 is no negative number
    text = re.sub(r"\b([a-z](?:\.[a-z])+)\b\.?", lambda m: m[0].replace(".", ""), text, flags=re.I)  # p.m., U.S.
    spoken = _spoken_by_script(text, language) if _needs_words(text) else text
    spoken = _fold(spoken.translate(_SIMPLIFIED)).lower()
    words = _space_scripts(_strip_punctuation(spoken)).split()
    return " ".join(_ABBREVIATIONS.get(word, word) for word in words)


def _fold(text: str) -> str:
    """Compatibility forms to plain ones (full width, ligatures, ①), accents off, any script's digits to 0-9."""
    folded = text.translate(_FOLD)
    if _FOLDED.fullmatch(folded):
        return folded
    text = "".join(_CONTROL.get(unicodedata.category(c), c) for c in text)
    text = unicodedata.normalize("NFKC", text.translate(_FOLD)).translate(_FOLD)  # first: NFKC makes a space of an acute
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not "\u0300" <= c <= "\u036f")
    text = unicodedata.normalize("NFKC", text).translate(_FOLD)
    return "".join(str(unicodedata.decimal(c)) if c.isdecimal() else c for c in text)


def _needs_words(text: str) -> bool:
    """Only text with digits or spoken signs goes through the grammars: words that are spoken already stay untouched."""
    return re.search(r"[0-9&%@+$£€¥=°]", text) is not None


def _spoken_by_script(text: str, language: Language) -> str:
    """Cut where the language of the digits changes, and read each piece in its own."""
    if language == "en":
        pieces = [(piece, "zh" if has_hanzi(piece) else "en") for piece in _cut(text, f"[{HANZI}]+")]
    elif language == "zh":
        text = _SPEED.sub("公里每小时", text)  # else its h is a Latin word of its own
        pieces = [(piece, "en" if _LATIN.fullmatch(piece) else "zh") for piece in _cut(text, _LATIN.pattern)]
    else:
        pieces = _mixed_pieces(_SPEED.sub("公里每小时", text) if has_hanzi(text) else text)
    return " ".join(_english(piece) if reading == "en" else _mandarin(piece) for piece, reading in pieces)


def _cut(text: str, pattern: str) -> list[str]:
    return [piece for piece in re.split(f"({pattern})", text, flags=re.I | re.A) if piece and not piece.isspace()]


def _mixed_pieces(text: str) -> list[tuple[str, str]]:
    """Digits that touch hanzi are Mandarin; others follow the word before them, or the one after it at the start."""
    pieces: list[tuple[str, str]] = []
    number = r"-?\d[\d.,:/%]*(?:(?:°[cf]|km|cm|mm|kg)(?![a-z]))?"
    for run in _cut(text, f"(?:{number})?(?:[{HANZI}]+(?:{number})?)+"):
        if has_hanzi(run):
            pieces.append((run, "zh"))
        elif _LATIN_RUN.fullmatch(run):
            head = re.match(r"[^a-z]*\d[^a-z]*(?=\s)", run, re.I | re.A) if pieces else None
            cut = head.end() if head else 0
            pieces += [(piece, reading) for piece, reading in ((run[:cut], "zh"), (run[cut:], "en")) if piece]
        else:
            pieces.append((run, "zh"))
    return pieces


def _english(text: str) -> str:
    """Digits and signs in English words."""
    text = re.sub(r"\b\d{3,4}-\d{3,8}(?:-\d{4})?\b|\b\d{7,}\b", lambda m: _spell(m[0], "en"), text)  # telephone numbers
    text = re.sub(r"\b(1[1-9]|20)([2-9])0s\b", lambda m: f"{_english(m[1])} {_TENS[int(m[2])]}", text)  # 1990s
    text = _DATE.sub(lambda m: f"{m[1]} {_ordinal(int(m[2]))}", text)  # wetext: "may five twenty twelve"
    text = re.sub(r"\$([\d,]+)\.(\d\d)\b", lambda m: _dollars(m[1], int(m[2])), text)  # wetext: "three point five dollars"
    text = re.sub(r"(?<![\d,.])([1-9])000(?![\d,.])", r"\1,000", text)  # wetext: "ten hundred"
    text = re.sub(r"(?<![\d,$])(\$?1,\d{3})(?![\d,])", r"one \1", text)  # wetext: "thousand two hundred" for 1,200
    return _symbols(_digits_left(_wetext(text, "en"), "en"), "en")


def _ordinal(day: int) -> str:
    ending = "th" if 10 < day < 20 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return _wetext(f"{day}{ending}", "en")


def _dollars(dollars: str, cents: int) -> str:
    parts = [] if dollars == "0" and cents else [f"${dollars}"]
    if cents:
        parts.append(f"{cents} {'cent' if cents == 1 else 'cents'}")
    return " and ".join(parts)


def _mandarin(text: str) -> str:
    """Digits and signs in Mandarin words."""
    text = re.sub(r"(?<!\d)\d{3,4}-\d{3,8}(?!\d)", lambda m: _spell(m[0], "zh"), text)  # telephone numbers
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)  # wetext: "一,两百" for 1,200
    text = re.sub(r"(?<![\d.])100%", "百分之百", text)
    text = re.sub(r"(?<![\d.:])2(?=点(?!\d+(?!\d*分)))", "两", text)  # wetext: 二点; but 2点5 is a decimal
    text = re.sub(r"(?<![\d.])2(?=日)", "二", text)  # wetext: 两日
    return _symbols(_digits_left(_wetext(text, "zh"), "zh"), "zh")


def _spell(text: str, language: Language) -> str:
    digits = [int(c) for c in text if c.isascii() and c.isdigit()]
    if language == "en":
        return " " + " ".join(_ENGLISH_DIGITS[d] for d in digits) + " "
    return "".join(_HANZI_DIGITS[d] for d in digits)


def _digits_left(text: str, language: Language) -> str:
    """Digits that no grammar took are spelled one by one: none may be left."""
    return re.sub(r"\d+", lambda m: _spell(m[0], language), text, flags=re.ASCII)


def _symbols(text: str, language: Language) -> str:
    signs = {"&": " and ", "%": " percent ", "@": " at ", "+": " plus "} if language == "en" else {"+": "加"}
    return "".join(signs.get(character, character) for character in text)


def _wetext(text: str, language: str) -> str:
    """wetext's written-to-spoken grammar; text that it has no path for comes back unchanged, to be spelled."""
    if not text.strip():
        return text
    try:
        return _normalizer(language).normalize(text)
    except (AssertionError, RuntimeError):  # the English grammar on a character that it has never seen
        return text


class _Simplified(dict[int, str]):
    """Traditional hanzi to simplified, for `str.translate`: wetext's table, asked once a character, which is all it looks at."""

    def __missing__(self, code: int) -> str:
        self[code] = _wetext(chr(code), "zh") if has_hanzi(chr(code)) else chr(code)
        return self[code]


_SIMPLIFIED = _Simplified()


@lru_cache(maxsize=2)
def _normalizer(language: str) -> Normalizer:
    from wetext import Normalizer

    return Normalizer(lang=language, operator="tn", traditional_to_simple=language == "zh")


def _strip_punctuation(text: str) -> str:
    """Everything but letters becomes a space, save apostrophes between ASCII letters."""
    if _SPOKEN.fullmatch(text):
        return text
    text = re.sub(r"(?<![a-z])'|'(?![a-z])", " ", text)
    return "".join(c if c.isalpha() or c == "'" else " " for c in text)


def _space_scripts(text: str) -> str:
    text = re.sub(f"(?<=[{HANZI}])(?=[^\\s{HANZI}])|(?<=[^\\s{HANZI}])(?=[{HANZI}])", " ", text)
    return re.sub(f"(?<=[{HANZI}])\\s+(?=[{HANZI}])", "", text)
