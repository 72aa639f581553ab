"""From a corpus to lhotse cuts: the one format that every later stage reads.

    python -m entropy_asr.corpora.manifest --config manifests.json --kind embedded --corpus data/embedded \
        --audio results/audio --split en-train --split en-test --out results/manifests/embedded

For each split: ``<split>.jsonl.gz`` (cuts), ``<split>.quality.json`` (report), ``<split>.excluded.jsonl`` (what was left out
and why). A cut has the id ``<corpus>/<split>/<id in the listing>``, where the corpus is the name of the folder ``--out``:
listings may repeat an id, manifests may not. It has one recording, whose path is as the corpus was named on the command line
(relative stays relative to the working directory), and one supervision: ``text`` as written, ``language``, ``speaker``, and in
``custom`` the ``utterance_id`` of the listing, the ``normalized`` text, its ``phonemes`` (the corpus's own where it gives them,
else the dictionaries'), its ``words`` with how many of these are theirs, the ``domain`` and the ``corpus_kind`` (synthetic or
recorded).
All splits of a corpus are made in one call, because sentences of test splits are taken out of training.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import StrEnum
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import typer

from entropy_asr.errors import InputError, friendly_exit
from entropy_asr.files import write_json, write_jsonl

if TYPE_CHECKING:
    from lhotse import MonoCut
    from lhotse.cut import Cut

    from entropy_asr.config import Quality
    from entropy_asr.corpora.quality import Accepted, SplitResult
    from entropy_asr.corpora.utterance import Utterance

_PROGRESS_SECONDS = 5.0
Item = TypeVar("Item")


class Kind(StrEnum):
    """Corpus families."""

    embedded = "embedded"
    jsonl = "jsonl"


def read_utterances(kind: Kind, corpus: Path, split: str, audio: Path | None) -> list[Utterance]:
    """Utterances of one split.

    Raises:
        InputError: the listing is missing or malformed, or the embedded corpus is read without its unpacked audio.
    """
    from entropy_asr.corpora import jsonl, unpack

    if kind is Kind.jsonl:
        return jsonl.read_split(corpus, split)
    if audio is None:
        raise InputError("--kind embedded needs --audio, the folder that entropy_asr.corpora.unpack wrote")
    return unpack.read_split(corpus, split, audio)


def choose(utterances: list[Utterance], limit: int | None) -> list[Utterance]:
    """At most ``limit`` utterances, in corpus order: those whose id has the smallest hash, so that limits nest."""
    if limit is None or len(utterances) <= limit:
        return utterances
    ranked = sorted(utterances, key=lambda item: hashlib.sha256(item.id.encode()).digest())
    kept = {item.id for item in ranked[:limit]}
    return [item for item in utterances if item.id in kept]


def spread(cuts: Iterable[Cut], limit: int) -> list[Cut]:
    """At most ``limit`` cuts, as many of each language as of any other, and of each speaker in a language, while there are some.

    The choice depends on the ids, not on the order of the cuts; limits nest.
    """

    def in_turns(group: list[Cut], *facts: Callable[[Cut], str | None]) -> list[Cut]:
        if not facts:
            return sorted(group, key=lambda cut: hashlib.sha256(cut.id.encode()).digest())
        parts: dict[str, list[Cut]] = {}
        for cut in group:
            parts.setdefault(str(facts[0](cut)), []).append(cut)
        queues = [in_turns(parts[name], *facts[1:]) for name in sorted(parts)]
        return [cut for turn in zip_longest(*queues) for cut in turn if cut is not None]

    everything = in_turns(list(cuts), lambda cut: cut.supervisions[0].language, lambda cut: cut.supervisions[0].speaker)
    return everything[:limit]


def evenly(items: Sequence[Item], limit: int | None) -> list[Item]:
    """At most ``limit`` items, evenly spaced over all of them; None: all."""
    number = len(items) if limit is None else min(limit, len(items))
    return [items[i * len(items) // number] for i in range(number)]


def check_split(name: str, utterances: list[Utterance], quality: Quality, jobs: int) -> SplitResult:
    """Judge each utterance of a split; ``jobs`` threads decode (libsndfile does not hold the interpreter)."""
    from entropy_asr.corpora.quality import Accepted, Excluded, SplitResult, check

    result = SplitResult(name)
    seen: set[str] = set()
    with ThreadPoolExecutor(max_workers=jobs) as pool:
        checked = pool.map(partial(check, quality=quality), utterances)
        for utterance, verdict in zip(utterances, _progress(name, checked, len(utterances)), strict=True):
            if utterance.id in seen:
                result.excluded.append(Excluded(utterance.id, "duplicate_id", "an earlier utterance has this id"))
            elif isinstance(verdict, Accepted):
                result.accepted.append(verdict)
            else:
                result.excluded.append(verdict)
            seen.add(utterance.id)
    return result


def _progress(name: str, items: Iterator, total: int) -> Iterator:
    """Pass items through; say how far it is every few seconds."""
    said = time.monotonic()
    for count, item in enumerate(items, 1):
        if time.monotonic() - said > _PROGRESS_SECONDS:
            said = time.monotonic()
            print(f"{name}: {count} of {total} utterances checked", file=sys.stderr)
        yield item


def make_cut(item: Accepted, source: str, corpus_kind: str) -> MonoCut:
    """The lhotse cut of an accepted utterance. source: ``<corpus>/<split>``, with which its id begins."""
    from lhotse import AudioSource, MonoCut, Recording, SupervisionSegment

    utterance = item.utterance
    name = f"{source}/{utterance.id}"
    recording = Recording(
        id=name,
        sources=[AudioSource("file", list(range(item.audio.channels)), utterance.audio.as_posix())],
        sampling_rate=item.audio.sampling_rate,
        num_samples=item.audio.num_samples,
        duration=item.audio.duration,
    )
    supervision = SupervisionSegment(
        id=name,
        recording_id=name,
        start=0.0,
        duration=item.duration,
        channel=0,
        text=utterance.text,
        language=utterance.language,
        speaker=utterance.speaker,
        custom={
            "utterance_id": utterance.id,
            "normalized": item.normalized,
            "phonemes": item.pronunciation.phonemes,
            "words": [[word, len(phonemes)] for word, phonemes in item.pronunciation.words],
            "domain": utterance.domain,
            "corpus_kind": corpus_kind,
            "audio_sha256": item.audio.sha256,  # other samples make another manifest, and what was made from it stale
        },
    )
    return MonoCut(
        id=name,
        start=utterance.offset,
        duration=item.duration,
        channel=0,
        supervisions=[supervision],
        recording=recording,
    )


def write_split(result: SplitResult, shared: dict[str, int], quality: Quality, corpus_kind: str, out: Path) -> None:
    """Write exclusions and report first, so that they are there to read when too much is bad, then the cuts.

    Raises:
        InputError: more than ``quality.max_excluded_fraction`` of the split was excluded.
    """
    from entropy_asr.corpora.quality import enforce_limit, report

    write_jsonl(out / f"{result.name}.excluded.jsonl", (vars(item) for item in result.excluded))
    enforce_limit(result, quality)
    write_json(out / f"{result.name}.quality.json", {**report(result, shared), "corpus_kind": corpus_kind})
    cuts = (make_cut(item, f"{out.name}/{result.name}", corpus_kind).to_dict() for item in result.accepted)
    write_jsonl(out / f"{result.name}.jsonl.gz", cuts)


def make_manifests(
    quality: Quality,
    kind: Kind,
    corpus: Path,
    splits: list[str],
    out: Path,
    audio: Path | None = None,
    synthetic: bool = False,
    jobs: int = 1,
) -> list[SplitResult]:
    """Check a corpus and write its manifests.

    Raises:
        InputError: a listing is missing or malformed, or too much of a split is bad.
    """
    from entropy_asr.corpora.quality import exclude_duplicates

    results = []
    for split in splits:
        utterances = choose(read_utterances(kind, corpus, split, audio), quality.max_utterances)
        results.append(check_split(split, utterances, quality, jobs))
    shared = exclude_duplicates(results)
    for result in results:
        corpus_kind = "synthetic" if synthetic or kind is Kind.embedded else "recorded"
        write_split(result, shared[result.name], quality, corpus_kind, out)
    return results


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@friendly_exit()
def main(
    config: Path = typer.Option(..., help="stage JSON with the quality section"),
    kind: Kind = typer.Option(..., help="corpus family"),
    corpus: Path = typer.Option(..., help="folder of the corpus"),
    split: list[str] = typer.Option(..., help="split to make; repeat for each"),
    out: Path = typer.Option(..., help="folder to write; ids of cuts begin with its name"),
    audio: Path | None = typer.Option(None, help="unpacked audio, for --kind embedded"),
    synthetic: bool = typer.Option(False, help="the speech was made by a machine"),
    jobs: int = typer.Option(1, min=1, help="threads that decode audio"),
) -> None:
    """Check a corpus and write lhotse manifests, quality reports and lists of what was left out."""
    from entropy_asr.config_files import load_stage

    for result in make_manifests(load_stage(config).quality, kind, corpus, split, out, audio, synthetic, jobs):
        hours = sum(item.duration for item in result.accepted) / 3600
        kept, left_out = len(result.accepted), len(result.excluded)
        print(f"{result.name}: {kept} utterances, {hours:.2f} h; {left_out} excluded")


if __name__ == "__main__":
    app()
