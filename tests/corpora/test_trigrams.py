"""Clauses from a trigram model: a small file written here in SunPinyin's form, whose every continuation is known."""

import random
import struct
from itertools import islice
from pathlib import Path

import pytest

from entropy_asr.corpora.embedded.trigrams import Trigrams
from entropy_asr.errors import InputError

WORDS = ["", *"，。；？！：、…", "的", "我们", "作家", "座", "写书", "读书"]
COMMA, STOP = WORDS.index("，"), WORDS.index("。")
WE, AUTHOR, SEAT, WRITE, READ = (WORDS.index(word) for word in ("我们", "作家", "座", "写书", "读书"))
# After a word: what was seen, with its probability; and after two. The sentence ends as the chances say.
PAIRS = {
    COMMA: {WE: 0.5, AUTHOR: 0.5},
    WE: {STOP: 0.1, WRITE: 0.5, READ: 0.4},
    AUTHOR: {WRITE: 0.9, SEAT: 0.1},
    WRITE: {STOP: 0.5},
    READ: {STOP: 1.0},
}
TRIPLES = {(COMMA, AUTHOR): {READ: 1.0}, (AUTHOR, WRITE): {STOP: 1.0}}


def write_model(folder: Path) -> tuple[Path, Path]:
    chances = sorted({p for table in (*PAIRS.values(), *TRIPLES.values()) for p in table.values()} | {0.0})
    place = {chance: index for index, chance in enumerate(chances)}
    ones, twos, threes = [], [], []
    for word in range(len(WORDS)):
        ones.append((word, place[0.0], len(twos)))
        for second, chance in sorted(PAIRS.get(word, {}).items()):
            twos.append((second, place[chance], len(threes)))
            threes += [(third, place[p]) for third, p in sorted(TRIPLES.get((word, second), {}).items())]
    ones.append((1, 0, len(twos)))
    twos.append((0, 0, len(threes)))
    threes.append((0, 0))
    data = struct.pack("<6I", 3, 0, 1, len(ones), len(twos), len(threes))
    data += struct.pack(f"<{2**16}f", *chances, *[0.0] * (2**16 - len(chances))) + struct.pack(f"<{2**14}f", *[1.0] * 2**14)
    for word, chance, child in [(0, 0, 0), *ones, *twos]:
        data += struct.pack("<3I", word, chance | (child & 0xFFFF) << 16, child >> 16 << 25)
    for word, chance in threes:
        data += struct.pack("<2I", word | (chance & 0x3FFF) << 18, chance >> 14 << 25)
    (folder / "lm_sc.t3g").write_bytes(data)
    words = "".join(word + "\0" for word in WORDS).encode("utf-32-le")
    (folder / "pydict_sc.bin").write_bytes(struct.pack("<3I", len(WORDS), 0, 12) + words)
    return folder / "lm_sc.t3g", folder / "pydict_sc.bin"


def test_words_come_as_often_as_the_model_says(tmp_path: Path) -> None:
    trigrams = Trigrams(*write_model(tmp_path))
    rng = random.Random(0)
    drawn = [trigrams.draw([WE], rng) for _ in range(4000)]
    for word, chance in PAIRS[WE].items():
        assert drawn.count(word) / len(drawn) == pytest.approx(chance, abs=0.03)
    assert {trigrams.draw([COMMA, AUTHOR], rng) for _ in range(100)} == {READ}, "two words are better than one"
    assert {trigrams.draw([READ, WRITE], rng) for _ in range(100)} == {STOP, None}, "half of it was never seen"
    assert {trigrams.draw([SEAT], rng) for _ in range(20)} == {None}


def test_clauses_are_of_the_words_asked_for(tmp_path: Path) -> None:
    trigrams = Trigrams(*write_model(tmp_path))
    assert set(islice(trigrams.clauses(set(WORDS), random.Random(0)), 200)) == {"我们写书", "我们读书", "作家读书"}
    assert set(islice(trigrams.clauses({"我们", "读书"}, random.Random(0)), 50)) == {"我们读书"}
    first, again = (list(islice(trigrams.clauses(set(WORDS), random.Random(1)), 9)) for _ in range(2))
    assert first == again


def test_words_without_a_clause_end_it(tmp_path: Path) -> None:
    trigrams = Trigrams(*write_model(tmp_path))
    with pytest.raises(InputError, match=r"no clause in .* of the 1 words asked for"):
        next(trigrams.clauses({"座"}, random.Random(0)))


def test_another_file_is_refused(tmp_path: Path) -> None:
    model, lexicon = write_model(tmp_path)
    with pytest.raises(InputError, match=r"pydict_sc.bin: found \d+ bytes.*expected a threaded trigram model"):
        Trigrams(lexicon, lexicon)
    with pytest.raises(InputError, match=r"lm_sc.t3g: .*expected .* of a Mandarin lexicon"):
        Trigrams(model, model)
