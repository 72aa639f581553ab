"""Errors that a person has to act on: wrong input, wrong config, broken audio.

An :class:`InputError` names the file, line or key, what was found, what was expected, and how to put it right.
Command lines print its message without a traceback and end with status 2; any other exception is a defect of ours
and keeps its traceback.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from entropy_asr.signals import stop_with_coordinator

EXIT_INPUT = 2


class InputError(ValueError):
    """What the user gave cannot be used; the message says what to change."""


@contextmanager
def friendly_exit() -> Iterator[None]:
    """Turn an :class:`InputError` inside the block into its message on stderr and exit status 2.

    Around every command: one that a rule started also ends with the snakemake behind it, and holds the cards that it was given.
    """
    from entropy_asr.cards import hold

    stop_with_coordinator()
    try:
        hold()
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(EXIT_INPUT) from None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the nearest known one, else all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean '{close[0]}'?" if close else f"; known: {', '.join(known)}" if known else ""
