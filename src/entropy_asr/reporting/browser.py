"""What the report's error browser holds: every test utterance as each system heard it, small enough to lie inside the page.

A reference is stored once a test set. A transcript is the edits that lead from the reference to it, in order: a number is
so many tokens that are correct, ``-`` a token left out, ``~x`` one heard as x, ``+x`` an x made up. So a correct transcript
costs two bytes, and the page marks errors without aligning anything itself.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from entropy_asr.errors import InputError
from entropy_asr.evaluation.score import METRICS, Scored, read_hypotheses

MOST = 2000  # utterances of a test set, by the hash of their ids: a page of some MB at any scale
_DECODED = re.compile(r"decode/(?:peers/(?P<peer>[^/]+)|(?P<arm>[^/]+)/seed-\d+)/(?P<test_set>[^/]+)\.jsonl$")


def edits(pairs: Sequence[tuple[str | None, str | None]]) -> list[int | str]:
    """An alignment as edits of its reference: ``[2, "~now", "+please"]`` is two correct tokens, a substitution, an insertion."""
    found: list[int | str] = []
    for correct, group in groupby(pairs, key=lambda pair: pair[0] == pair[1]):
        members = list(group)
        if correct:
            found.append(len(members))
        else:
            found += ["-" if hyp is None else f"+{hyp}" if ref is None else f"~{hyp}" for ref, hyp in members]
    return found


def browsable(hyps: Sequence[Path], language_tags: dict[str, str]) -> dict[str, Any]:
    """What the page's script reads: systems, and for each test set its utterances and what each system made of them.

    Args:
        hyps: hypotheses of one seed of each system, ``…/decode/<arm>/seed-<s>/<test set>.jsonl`` or
            ``…/decode/peers/<peer>/<test set>.jsonl``.
        language_tags: unit of scoring → the page's language tag.

    Raises:
        InputError: a path is no such path, or two systems were decoded on different utterances of one test set.
    """
    sets: dict[str, dict[str, Any]] = {}
    for path in hyps:
        name = _DECODED.search(path.as_posix())
        if name is None:
            raise InputError(
                f"{path}: expected …/decode/<arm>/seed-<s>/<test set>.jsonl, or …/decode/peers/<peer>/<test set>.jsonl"
            )
        unit, utterances = read_hypotheses(path)
        shown = sorted(utterances, key=lambda item: hashlib.sha256(item.id.encode()).hexdigest())[:MOST]
        shown.sort(key=lambda item: item.id)
        said = {"ids": [item.id for item in shown], "references": [reference(item) for item in shown]}
        entry = sets.setdefault(
            name["test_set"],
            {
                "name": name["test_set"],
                "metric": METRICS[unit],
                "lang": language_tags.get(unit, "en"),
                "close": unit == "zh",
                "of": len(utterances),
                "speakers": [item.speaker or "" for item in shown],
                "seconds": [item.duration for item in shown],
                **said,
                "heard": {},
            },
        )
        if any(entry[key] != said[key] for key in said):
            raise InputError(
                f"{path}: other utterances than {next(iter(entry['heard']))} was decoded on; decode the test set again"
            )
        entry["heard"][name["peer"] or name["arm"]] = [edits(item.pairs) for item in shown]
    systems = list(dict.fromkeys(system for entry in sets.values() for system in entry["heard"]))
    return {"systems": systems, "sets": list(sets.values())}


def reference(item: Scored) -> str:
    """The reference's tokens between spaces."""
    return " ".join(ref for ref, _ in item.pairs if ref is not None)


def as_script_data(content: dict[str, Any]) -> str:
    """JSON that may stand inside a script element: no transcript can end it."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
