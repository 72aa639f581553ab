"""Errors that a person has to act on: wrong input, wrong config, broken audio.

An :class:`InputError` names the file, line or key, what was found, what was expected, and how to put it right.
Command lines print its message without a traceback and end with status 2; any other exception is a defect of ours
and keeps its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_INPUT = 2


class InputError(ValueError):
    """What the user gave cannot be used; the message says what to change."""


@contextmanager
def friendly_exit() -> Iterator[None]:
    """Turn an :class:`InputError` inside the block into its message on stderr and exit status 2."""
    try:
        yield
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(EXIT_INPUT) from None
