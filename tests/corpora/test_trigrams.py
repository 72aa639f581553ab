"""Clauses from trigram models: small files of SunPinyin's and Sphinx's form are written here, with every continuation known."""

import math
import random
import struct
from itertools import islice
from pathlib import Path

import pytest

from entropy_asr.corpora.embedded.trigrams import ENGLISH, MANDARIN, SPHINX_HEAD, SPHINX_LOG, Trigrams
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
    trigrams = Trigrams.sunpinyin(*write_model(tmp_path))
    rng = random.Random(0)
    drawn = [trigrams.draw([WE], rng) for _ in range(4000)]
    for word, chance in PAIRS[WE].items():
        assert drawn.count(word) / len(drawn) == pytest.approx(chance, abs=0.03)
    assert {trigrams.draw([COMMA, AUTHOR], rng) for _ in range(100)} == {READ}, "two words are better than one"
    assert {trigrams.draw([READ, WRITE], rng) for _ in range(100)} == {STOP, None}, "half of it was never seen"
    assert {trigrams.draw([SEAT], rng) for _ in range(20)} == {None}


def test_clauses_are_of_the_words_asked_for(tmp_path: Path) -> None:
    trigrams = Trigrams.sunpinyin(*write_model(tmp_path))
    assert set(islice(trigrams.clauses(MANDARIN, set(WORDS), random.Random(0)), 200)) == {"我们写书", "我们读书", "作家读书"}
    assert set(islice(trigrams.clauses(MANDARIN, {"我们", "读书"}, random.Random(0)), 50)) == {"我们读书"}
    first, again = (list(islice(trigrams.clauses(MANDARIN, set(WORDS), random.Random(1)), 9)) for _ in range(2))
    assert first == again


def test_words_without_a_clause_end_it(tmp_path: Path) -> None:
    trigrams = Trigrams.sunpinyin(*write_model(tmp_path))
    with pytest.raises(InputError, match=r"no clause in .* of the 1 words asked for"):
        next(trigrams.clauses(MANDARIN, {"座"}, random.Random(0)))


def test_another_file_is_refused(tmp_path: Path) -> None:
    model, lexicon = write_model(tmp_path)
    with pytest.raises(InputError, match=r"pydict_sc.bin: found \d+ bytes.*expected a threaded trigram model"):
        Trigrams.sunpinyin(lexicon, lexicon)
    with pytest.raises(InputError, match=r"lm_sc.t3g: .*expected .* of a Mandarin lexicon"):
        Trigrams.sunpinyin(model, model)


SAID = ["</s>", "<s>", "a", "cat", "dog", "is", "the"]
AFTER = {"<s>": {"the": 0.75, "a": 0.25}, "the": {"dog": 0.6, "cat": 0.3}, "a": {"cat": 1.0}}
AFTER |= {"dog": {"is": 1.0}, "is": {"</s>": 1.0}, "cat": {"is": 0.5, "</s>": 0.5}}
AFTER_TWO = {("the", "cat"): {"is": 1.0}, ("<s>", "the"): {"cat": 0.8}}


def write_sphinx(folder: Path) -> Path:
    """A trie from each word to those before it; records packed by bits, the room for one more than there are."""
    number = {word: index for index, word in enumerate(SAID)}
    pairs = sorted((number[word], number[before], p) for before, found in AFTER.items() for word, p in found.items())
    longer = ((word, *before[::-1], p) for before, found in AFTER_TWO.items() for word, p in found.items())
    triples = sorted((*(number[word] for word in words), p) for *words, p in longer)
    chances = [sorted({row[-1] for row in rows}) for rows in (pairs, triples)]
    tables = [[math.log(p) / SPHINX_LOG for p in known] + [0.0] * (2**16 - len(known)) for known in chances]
    head = (len(SAID), len(pairs) + 1, len(triples) + 1)
    word_bits, next_bits = head[0].bit_length(), head[2].bit_length()
    first_pair = [sum(pair[0] < word for pair in pairs) for word in range(len(SAID) + 1)]
    first_triple = [sum(triple[:2] < pair[:2] for triple in triples) for pair in pairs] + [len(triples)]

    def packed(records: list[int], bits: int, room: int) -> bytes:
        return sum(record << bits * place for place, record in enumerate(records)).to_bytes((room * bits + 7) // 8 + 8, "little")

    middle = [
        before | chances[0].index(p) << word_bits + 16 | first << word_bits + 32
        for (_, before, p), first in zip(pairs, first_triple, strict=False)
    ] + [first_triple[-1] << word_bits + 32]
    longest = [earlier | chances[1].index(p) << word_bits for *_, earlier, p in triples]
    data = SPHINX_HEAD + struct.pack("<4I", *head, 1)
    for table in (tables[0], [0.0] * 2**16, tables[1]):
        data += struct.pack(f"<{2**16}f", *table)
    data += b"".join(struct.pack("<2fI", 0.0, 0.0, first) for first in first_pair)
    data += packed(middle, word_bits + 32 + next_bits, head[1] + 1) + packed(longest, word_bits + 16, head[2] + 1)
    words = "".join(word + "\0" for word in SAID).encode()
    path = folder / "en-us.lm.bin"
    path.write_bytes(data + struct.pack("<I", len(words)) + words)
    return path


def test_sphinx_words_come_as_often_as_the_model_says(tmp_path: Path) -> None:
    trigrams, rng = Trigrams.sphinx(write_sphinx(tmp_path)), random.Random(0)
    drawn = [trigrams.draw([SAID.index("the")], rng) for _ in range(4000)]
    for word, chance in AFTER["the"].items():
        assert drawn.count(SAID.index(word)) / len(drawn) == pytest.approx(chance, abs=0.03)
    assert {trigrams.draw([SAID.index("the"), SAID.index("cat")], rng) for _ in range(100)} == {SAID.index("is")}
    both = [trigrams.draw([SAID.index("<s>"), SAID.index("the")], rng) for _ in range(4000)]
    assert both.count(SAID.index("cat")) / len(both) == pytest.approx(0.8, abs=0.03), "it backs off to dog alone, or to nothing"
    assert both.count(SAID.index("dog")) / len(both) == pytest.approx(0.2 * 0.6, abs=0.03)
    clauses = set(islice(trigrams.clauses(ENGLISH, set(SAID), rng), 200))
    assert clauses == {"the dog is", "the cat is", "a cat is"}, "a cat alone is too short"


def test_another_file_is_no_sphinx_model(tmp_path: Path) -> None:
    path = write_sphinx(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with pytest.raises(InputError, match=r"en-us.lm.bin: found \d words, expected 7"):
        Trigrams.sphinx(path)
    path.write_bytes(b"Another" + whole)
    with pytest.raises(InputError, match=r"expected .*Trie Language Model"):
        Trigrams.sphinx(path)
