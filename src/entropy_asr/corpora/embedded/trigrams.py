"""Mandarin clauses drawn at random from a trigram model: what stands beside what, in the words of the open-gram project's text.

Which hanzi a syllable stands for is said by the words around it. A language model that shall write hanzi for what it hears has to
have read far more than the few thousand sentences that there are to read; an input method's statistics have. The clauses mean
little as a whole, but any two neighbours in them were seen together.

The file is Debian's `sunpinyin-data`: a back-off model in SunPinyin's threaded form (its `slm.h`), numbers of words in one file,
the words in another.
"""

import random
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

from entropy_asr.errors import InputError

ENDS = "，。；？！：、…"
LONGEST, SHORTEST = 14, 4  # hanzi of a clause
TRIES = 30  # draws of a word before a clause is given up
MOST_IN_VAIN = 10_000  # clauses given up in a row


class Trigrams:
    """Back-off trigram model: which word comes after two others, else after one."""

    def __init__(self, model: Path, lexicon: Path) -> None:
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
        self.words = (ids[: ones - 1], ids[ones:-1], leaves[:-1, 0] & 0x3FFFF)
        self.mass = tuple(np.concatenate([[0.0], np.cumsum(p)]) for p in (given[: ones - 1], given[ones:-1], leaf_given[:-1]))
        self.children = (child[:ones], child[ones:])
        self.lexicon = _lexicon(lexicon)

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

    def clauses(self, words: Collection[str], rng: random.Random) -> Iterator[str]:
        """Clauses of such words alone, from one punctuation mark to the next, for ever.

        Raises:
            InputError: the model has none of these words.
        """
        ends = {self.lexicon.index(mark) for mark in ENDS}
        kept = {number for number, word in enumerate(self.lexicon) if word in words} | ends
        start = self.lexicon.index("，")  # the model knows next to nothing of what follows a full stop
        in_vain = 0
        while in_vain < MOST_IN_VAIN:
            in_vain += 1
            clause = [start]
            while len(clause) == 1 or clause[-1] not in ends:
                found = next((w for w in (self.draw(clause[-2:], rng) for _ in range(TRIES)) if w in kept), None)
                if found is None or sum(len(self.lexicon[w]) for w in clause[1:]) > LONGEST:
                    break
                clause.append(found)
            else:
                text = "".join(self.lexicon[word] for word in clause[1:-1])
                if SHORTEST <= len(text) <= LONGEST:
                    in_vain = 0
                    yield text
        raise InputError(f"no clause in {MOST_IN_VAIN} tries: the model knows too little of the {len(words)} words asked for")


def _lexicon(path: Path) -> list[str]:
    """Words by their number."""
    data = path.read_bytes()
    count, _, start = np.frombuffer(data, "<u4", 3).tolist()
    words = data[start:].decode("utf-32-le", "replace").split("\0")[:count]
    if len(words) != count or "的" not in words:
        raise InputError(f"{path}: found {len(words)} words, expected {count} of a Mandarin lexicon of SunPinyin")
    return words
