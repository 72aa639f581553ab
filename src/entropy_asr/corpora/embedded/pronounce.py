"""English words as the voice was told to say them: of CMUdict's pronunciations, the one nearest to the TTS model's input.

    python -m entropy_asr.corpora.embedded.pronounce --plan plan.jsonl --output phonemes.jsonl

A dictionary does not know which of its pronunciations is meant: "to" has T UW first, and the voices say T AH before a
consonant. For read speech an aligner would choose by the audio, as Kaldi's recipes do; here what was said is known. CMUdict is
American; for a British voice each of its pronunciations may also lose the R sounds that such a voice does not say
(:func:`non_rhotic`). Words that CMUdict lacks start from the phonemes of :func:`entropy_asr.text.phonemes.phonemize`. Mandarin
keeps pypinyin's.
"""

import argparse
import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from entropy_asr.files import read_jsonl, write_jsonl
from entropy_asr.text.normalize import normalize
from entropy_asr.text.phonemes import VOWEL_PHONES, phonemize, readings

_SYMBOLS = (
    "tʃ CH/dʒ JH/eɪ EY/aɪ AY/ɔɪ OY/aʊ AW/oʊ OW/əʊ OW/ɜː ER/iː IY/uː UW/ɑː AA/ɔː AO/oː AO/eə EH R/ɪə IH R/iə IH R/ʊə UH R/"
    "aɪə AY ER/aʊə AW ER/t T/n N/s S/d D/l L/m M/k K/ð DH/z Z/p P/f F/w W/v V/b B/h HH/ʃ SH/ŋ NG/ɡ G/j Y/θ TH/ʒ ZH/ɹ R/ɾ D/"
    "i IY/ɪ IH/ᵻ IH/ɛ EH/e EH/æ AE/a AE/ɐ AH/ʌ AH/ə AH/ᵊ AH/ɚ ER/ɑ AA/ɒ AA/ɔ AO/ʊ UH/u UW/o OW"
)
IPA_TO_ARPABET = {ipa: phones for ipa, *phones in map(str.split, _SYMBOLS.split("/"))}
_LONGEST_FIRST = re.compile("|".join(sorted(IPA_TO_ARPABET, key=len, reverse=True)))
_NO_SOUND = re.compile("[ˈˌ,.? ]")


def arpabet(ipa: str) -> list[str]:
    """The nearest ARPAbet phones of Kokoro's English symbols; a flap is D.

    Raises:
        ValueError: a symbol is none of them.

    >>> arpabet("tə pˈɑːɹɾi")
    ['T', 'AH', 'P', 'AA', 'R', 'D', 'IY']
    """
    plain = _NO_SOUND.sub("", ipa)
    unknown = set(_LONGEST_FIRST.sub("", plain))
    if unknown:
        raise ValueError(f"{ipa!r}: no ARPAbet phone for {sorted(unknown)}")
    return [phone for match in _LONGEST_FIRST.finditer(plain) for phone in IPA_TO_ARPABET[match[0]]]


def non_rhotic(phones: Sequence[str]) -> list[list[str]]:
    """What an American pronunciation may be in an accent without R in "car" and "water"; as it is first.

    An R before no vowel of the word may be silent (before a vowel of the next word it is not), ER may be AH, before a vowel AH R.
    The vowels of "near", "square" and "cure", which have no ARPAbet phone, stay with their R where `arpabet` gives one.

    >>> non_rhotic(["K", "AA", "R"])
    [['K', 'AA', 'R'], ['K', 'AA']]
    """
    ways = []
    for phone, following in zip(phones, [*phones[1:], ""], strict=True):
        before_vowel = following in VOWEL_PHONES
        if phone == "R" and not before_vowel:
            ways.append([["R"], []])
        elif phone == "ER":
            ways.append([["ER"], ["AH", "R"] if before_vowel else ["AH"]])
        else:
            ways.append([[phone]])
    return [[phone for part in parts for phone in part] for parts in product(*ways)]


def nearest(words: list[tuple[str, list[str]]], said: list[str], rhotic: bool = True) -> list[list[str]]:
    """Phones of each word, chosen from the left so that all of them are as few edits from what was said as possible.

    The dictionary's first pronunciation stays where another is no nearer.

    Args:
        rhotic: whether the accent says every R; otherwise :func:`non_rhotic` adds to the dictionary.
    """
    from kaldialign import edit_distance

    def distance(phones: list[list[str]]) -> int:
        return edit_distance([phone for word in phones for phone in word], said)["total"]

    chosen = [phones for _, phones in words]
    least = distance(chosen)
    for index, (word, first) in enumerate(words):
        known = [list(phones) for phones in readings(word)] or [first]
        for reading in known if rhotic else [other for phones in known for other in non_rhotic(phones)]:
            other = [*chosen[:index], reading, *chosen[index + 1 :]]
            edits = distance(other)
            if edits < least:
                least, chosen = edits, other
    return chosen


def pronounce(plan: Path, output: Path) -> None:
    """Write `{id, phonemes}` for every English utterance of the plan."""
    from entropy_asr.corpora.embedded.kokoro import Phonemiser

    phonemise = Phonemiser()
    rows, words, changed = [], 0, 0
    for utterance in read_jsonl(plan):
        if utterance["language"] != "en":
            continue
        first = phonemize(normalize(utterance["text"], "en"), "en").words
        said = arpabet(phonemise(utterance["text"], "en", utterance["speaker"]))
        american = utterance["speaker"].startswith("a")  # Kokoro's English voices: a for American, b for British
        chosen = nearest(first, said, rhotic=american)
        words += len(first)
        changed += sum(phones != other for (_, phones), other in zip(first, chosen, strict=True))
        rows.append({"id": utterance["id"], "phonemes": " | ".join(map(" ".join, chosen))})
    write_jsonl(output, rows)
    print(f"{len(rows)} utterances; {changed} of {words} words are not said as CMUdict has them first")


def main() -> None:
    """Parse the command line and choose."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    pronounce(args.plan, args.output)


if __name__ == "__main__":
    main()
