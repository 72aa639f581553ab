"""Clauses drawn at random from trigram models: what stands beside what, in far more text than there is to read.

Which hanzi a syllable stands for, and which English words a blurred sound, is said by the words around it. A language model that
shall write them has to have read more than the few thousand sentences that there are; an input method's or a recogniser's
statistics have. The clauses mean little as a whole, but any two neighbours in them were seen together.

Mandarin: Debian's `sunpinyin-data`, of the open-gram project, a back-off model in SunPinyin's threaded form (its `slm.h`), the
words' numbers in one file, the words in another. English: the model of PyPI's `pocketsphinx`, a trie (its `lm_trie.c`).
"""

import math
import random
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from entropy_asr.errors import InputError

TRIES = 30  # draws of a word before a clause is given up
MOST_IN_VAIN = 10_000  # clauses given up in a row
SPHINX_HEAD = b"Trie Language Model\x03"
SPHINX_LOG = math.log(1.0001)  # of the base of its logarithms


class Clauses(NamedTuple):
    """What a clause is: the words that it comes after and ends with, what stands between its words, its least and most units.

    Units are what `join` leaves: characters where words stand side by side, else words.
    """

    start: str
    ends: frozenset[str]
    join: str
    shortest: int
    longest: int

    def units(self, words: list[str]) -> int:
        return len(words) if self.join else sum(map(len, words))


# The Mandarin model knows next to nothing of what follows a full stop.
MANDARIN = Clauses("，", frozenset("，。；？！：、…"), "", 4, 14)
ENGLISH = Clauses("<s>", frozenset({"</s>"}), " ", 3, 12)


class Trigrams:
    """Back-off trigram model: which word comes after two others, else after one.

    Args:
        words: of three levels (all words, those seen after one, those seen after two) the words, sorted among siblings.
        given: of the levels but the first, each one's probability after those before it.
        children: of the levels but the last, where each one's followers begin in the next; one more than words, the end.
        lexicon: the words by their number.
    """

    def __init__(
        self,
        words: tuple[np.ndarray, np.ndarray, np.ndarray],
        given: tuple[np.ndarray, np.ndarray],
        children: tuple[np.ndarray, np.ndarray],
        lexicon: list[str],
    ) -> None:
        self.words, self.children, self.lexicon = words, children, lexicon
        self.mass = (None, *(np.concatenate([[0.0], np.cumsum(p)]) for p in given))

    @classmethod
    def sunpinyin(cls, model: Path, lexicon: Path) -> "Trigrams":
        """model: `lm_sc.t3g`; lexicon: `pydict_sc.bin`.

        Raises:
            InputError: a file is not of the form that is expected.
        """
        data = model.read_bytes()
        head = np.frombuffer(data, "<u4", 6)
        order, logarithmic, *sizes = head.tolist()
        expected = 24 + 4 * (2**16 + 2**14) + 12 * sum(sizes[:3]) + 8 * sizes[3]
        if (order, logarithmic) != (3, 0) or len(data) != expected:
            raise InputError(f"{model}: found {len(data)} bytes, head {head.tolist()}; expected a threaded trigram model")
        probabilities = np.frombuffer(data, "<f4", 2**16, 24).astype(np.float64)
        nodes = np.frombuffer(data, "<u4", 3 * sum(sizes[:3]), 24 + 4 * (2**16 + 2**14)).reshape(-1, 3)[sizes[0] :]
        leaves = np.frombuffer(data, "<u4", 2 * sizes[3], len(data) - 8 * sizes[3]).reshape(-1, 2)
        # A node: 18 bits word, 14 back-off weight (not needed); 16 probability, 16 first child; ..., 7 first child. A leaf has
        # its probability in 14 and 2 bits. The last of a level is a sentinel, whose first child is the end of the next level.
        ids, given = nodes[:, 0] & 0x3FFFF, probabilities[nodes[:, 1] & 0xFFFF]
        child = (nodes[:, 1] >> 16) | ((nodes[:, 2] >> 25) << 16)
        ones = sizes[1]
        leaf_given = probabilities[(leaves[:, 0] >> 18) | ((leaves[:, 1] >> 25) << 14)]
        words = (ids[: ones - 1], ids[ones:-1], leaves[:-1, 0] & 0x3FFFF)
        return cls(words, (given[ones:-1], leaf_given[:-1]), (child[:ones], child[ones:]), _lexicon(lexicon))

    @classmethod
    def sphinx(cls, model: Path) -> "Trigrams":
        """model: `en-us.lm.bin`.

        Raises:
            InputError: it is not of the form that is expected.
        """
        data = np.fromfile(model, np.uint8)
        if bytes(data[: len(SPHINX_HEAD)]) != SPHINX_HEAD:
            raise InputError(f"{model}: begins with {bytes(data[:20])!r}, expected {SPHINX_HEAD!r}, a trigram model of Sphinx")
        at = len(SPHINX_HEAD)
        ones, twos, threes = (int(n) for n in data[at : at + 12].view("<u4"))
        at += 12 + 4
        pair_log, _, triple_log = data[at : at + 3 * 2**18].view("<f4").reshape(3, 2**16).astype(np.float64) * SPHINX_LOG
        at += 3 * 2**18
        first_pair = data[at : at + 12 * (ones + 1)].view("<u4")[2::3].astype(np.int64)
        at += 12 * (ones + 1)
        # A pair: word, 16 bits back-off weight (not needed), 16 probability, its first triple. A triple: word, 16 probability.
        word_bits, next_bits = ones.bit_length(), threes.bit_length()
        pairs = _Bits(data[at:], word_bits + 32 + next_bits)
        at += ((twos + 1) * pairs.size + 7) // 8 + 8
        triples = _Bits(data[at:], word_bits + 16)
        at += ((threes + 1) * triples.size + 7) // 8 + 8
        lexicon = data[at + 4 :].tobytes().decode().split("\0")[:-1]
        if len(lexicon) != ones or len(data) != at + 4 + int(data[at : at + 4].view("<u4")[0]):
            raise InputError(f"{model}: found {len(lexicon)} words, expected {ones}")
        # The trie goes from a word to the one before it and on to the one before that. It is turned round here. What its head
        # says is room for a few more than it holds.
        twos = int(first_pair[-1])
        before, after = pairs.read(twos, 0, word_bits), np.repeat(np.arange(ones), np.diff(first_pair))
        first_triple = pairs.read(twos + 1, word_bits + 32, next_bits)
        threes = int(first_triple[-1])
        pair_of = np.repeat(np.arange(twos), np.diff(first_triple))
        earlier = triples.read(threes, 0, word_bits)
        order = np.lexsort((after, before))
        key = before[order] * ones + after[order]  # of the pairs, in their new order
        mother = np.searchsorted(key, earlier * ones + before[pair_of])
        known = key[np.minimum(mother, twos - 1)] == earlier * ones + before[pair_of]
        triple_order = np.lexsort((after[pair_of], mother))
        triple_order = triple_order[known[triple_order]]
        return cls(
            (np.arange(ones), after[order], after[pair_of][triple_order]),
            (
                np.exp(pair_log[pairs.read(twos, word_bits + 16, 16)][order]),
                np.exp(triple_log[triples.read(threes, word_bits, 16)][triple_order]),
            ),
            (
                np.searchsorted(before[order], np.arange(ones + 1)),
                np.searchsorted(mother[triple_order], np.arange(twos + 1)),
            ),
            lexicon,
        )

    def _place(self, level: int, first: int, last: int, word: int) -> int | None:
        """Where a word stands among siblings, which are sorted; None if it does not."""
        place = first + int(np.searchsorted(self.words[level][first:last], word))
        return place if place < last and self.words[level][place] == word else None

    def _siblings(self, before: list[int]) -> list[tuple[int, int, int]]:
        """(level, first, last) of the words that were seen after the last two of these, and after the last one."""
        found = []
        one = self._place(0, 0, len(self.words[0]), before[-1])
        if one is not None:
            found.append((1, *map(int, self.children[0][one : one + 2])))
            two = self._place(0, 0, len(self.words[0]), before[-2]) if len(before) > 1 else None
            pair = None if two is None else self._place(1, *map(int, self.children[0][two : two + 2]), before[-1])
            if pair is not None:
                found.insert(0, (2, *map(int, self.children[1][pair : pair + 2])))
        return found

    def draw(self, before: list[int], rng: random.Random) -> int | None:
        """A word after these, by its probability; None where the model backs off to a word that was never seen after the last."""
        passed: list[tuple[int, int, int]] = []
        for level, first, last in self._siblings(before):
            mass = self.mass[level]
            chosen = rng.random()
            if chosen < mass[last] - mass[first]:
                place = int(np.searchsorted(mass, mass[first] + chosen, "right")) - 1
                word = int(self.words[level][min(place, last - 1)])
                # What was seen after both words has been passed over there, and is not meant here.
                return word if all(self._place(*siblings, word) is None for siblings in passed) else None
            passed.append((level, first, last))
        return None

    def clauses(self, form: Clauses, words: Collection[str], rng: random.Random) -> Iterator[str]:
        """Clauses of such words alone, for ever.

        Raises:
            InputError: the model has none of these words.
        """
        ends = {self.lexicon.index(mark) for mark in form.ends}
        kept = {number for number, word in enumerate(self.lexicon) if word in words} | ends
        start = self.lexicon.index(form.start)
        in_vain = 0
        while in_vain < MOST_IN_VAIN:
            in_vain += 1
            clause = [start]
            while len(clause) == 1 or clause[-1] not in ends:
                found = next((w for w in (self.draw(clause[-2:], rng) for _ in range(TRIES)) if w in kept), None)
                if found is None or form.units([self.lexicon[w] for w in clause[1:]]) > form.longest:
                    break
                clause.append(found)
            else:
                said = [self.lexicon[word] for word in clause[1:-1]]
                if form.shortest <= form.units(said) <= form.longest:
                    in_vain = 0
                    yield form.join.join(said)
        raise InputError(f"no clause in {MOST_IN_VAIN} tries: the model knows too little of the {len(words)} words asked for")


class _Bits:
    """An array of records of `size` bits each, packed."""

    def __init__(self, data: np.ndarray, size: int) -> None:
        self.data, self.size = data, size

    def read(self, records: int, offset: int, bits: int) -> np.ndarray:
        """The number in these bits, at most 25, of each of the first records."""
        place = np.arange(records, dtype=np.int64) * self.size + offset
        four = sum(self.data[(place >> 3) + k].astype(np.int64) << 8 * k for k in range(4))
        return (four >> (place & 7)) & ((1 << bits) - 1)


def _lexicon(path: Path) -> list[str]:
    """Words by their number."""
    data = path.read_bytes()
    count, _, start = np.frombuffer(data, "<u4", 3).tolist()
    words = data[start:].decode("utf-32-le", "replace").split("\0")[:count]
    if len(words) != count or "的" not in words:
        raise InputError(f"{path}: found {len(words)} words, expected {count} of a Mandarin lexicon of SunPinyin")
    return words
