"""The corpus that ships with the repository: verify its archives, unpack them, list its utterances.

    python -m entropy_asr.corpora.unpack --corpus data/embedded --out results/audio

``SHA256SUMS`` names every file of the corpus; an archive that differs is refused, for a score on other audio is another
score. Opus is decoded here, once, to FLAC: decoding it anew in every epoch took a tenth of the training time on a CPU. The
speech is synthetic (docs/corpus.md).
"""

from __future__ import annotations

import hashlib
import io
import re
import shutil
import tarfile
import tempfile
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import typer

from entropy_asr.corpora.jsonl import check_row
from entropy_asr.corpora.manifest import choose
from entropy_asr.corpora.utterance import Utterance
from entropy_asr.errors import InputError, friendly_exit
from entropy_asr.files import read_jsonl, sha256, write_json

SUMS = "SHA256SUMS"
LISTING = "utterances.jsonl"
_PREFIX = {"en": "en", "zh": "zh", "mixed": "cs"}
_NUMBER = (int, float)
_REQUIRED = {"id": str, "split": str, "language": str, "speaker": str, "text": str, "duration": _NUMBER}
_OPTIONAL = {"domain": str, "phonemes": str, "sha256": str, "asr_text": str, "asr_error_rate": _NUMBER}


def verify(corpus: str | Path) -> dict[str, str]:
    """Compare every file that ``SHA256SUMS`` names; returns name to hash.

    Raises:
        InputError: the list is missing or malformed, or a file is missing or differs.
    """
    corpus = Path(corpus)
    sums = corpus / SUMS
    if not sums.is_file():
        raise InputError(f"{sums}: no such file; the embedded corpus is incomplete, check it out again")
    expected: dict[str, str] = {}
    for number, line in enumerate(sums.read_text(encoding="utf-8").splitlines(), 1):
        match = re.fullmatch(r"([0-9a-f]{64}) [ *](\S+)", line)
        if not match:
            raise InputError(f"{sums}, line {number}: found {line!r}, expected '<sha256>  <file>'")
        expected[match[2]] = match[1]
    for name, digest in expected.items():
        if not (corpus / name).is_file():
            raise InputError(f"{corpus / name}: no such file, though {SUMS} names it; check the corpus out again")
        found = sha256(corpus / name)
        if found != digest:
            raise InputError(
                f"{corpus / name}: sha256 is {found[:12]}…, expected {digest[:12]}…; the file was changed or cut off, "
                "check the corpus out again"
            )
    return expected


def unpack(corpus: str | Path, out: str | Path, limit: int | None = None, threads: int = 1) -> dict[str, int]:
    """Verify the corpus and unpack ``<split>.tar`` into ``<out>/<split>/<id>.flac``; returns files by split.

    limit: of each split only the utterances that a manifest of so many takes. A split appears whole or not at all.
    threads: that decode.

    Raises:
        InputError: the corpus does not match ``SHA256SUMS``, or an utterance differs from the hash in its listing.
    """
    corpus, out = Path(corpus), Path(out)
    digests = verify(corpus)
    listed = {row["id"]: row.get("sha256") for row in read_jsonl(corpus / LISTING)}
    counts: dict[str, int] = {}
    for archive in sorted(name for name in digests if name.endswith(".tar")):
        split = archive.removesuffix(".tar")
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=f".{split}.") as temporary:
            whole = Path(temporary) / split
            whole.mkdir()
            kept = listed if limit is None else {item.id for item in choose(read_split(corpus, split, out), limit)}
            counts[split] = _extract(corpus / archive, whole, listed, kept, threads)
            shutil.rmtree(out / split, ignore_errors=True)
            whole.rename(out / split)
    write_json(out / "unpacked.json", {"archives": digests, "utterances": counts})
    return counts


def _extract(archive: Path, folder: Path, listed: dict[str, str | None], kept: Collection[str], threads: int) -> int:
    """Decode the members that are kept to files named by us: a path inside the archive is never followed."""
    import soundfile

    def decode(name: str, content: bytes) -> None:
        if listed[name] not in (None, hashlib.sha256(content).hexdigest()):
            raise InputError(f"{archive}: utterance {name} differs from the sha256 in {LISTING}")
        try:
            samples, rate = soundfile.read(io.BytesIO(content), dtype="float32")
        except soundfile.LibsndfileError as error:
            raise InputError(f"{archive}: utterance {name} cannot be decoded: {error}") from error
        soundfile.write(folder / f"{name}.flac", samples.clip(-1.0, 1.0), rate, subtype="PCM_16")

    with tarfile.open(archive, "r:") as tar, ThreadPoolExecutor(threads) as pool:
        decoded = []
        for member in tar:
            if member.isdir():
                continue
            name = Path(member.name)
            data = tar.extractfile(member) if member.isfile() else None
            if data is None or name.suffix != ".opus" or name.stem not in listed:
                raise InputError(f"{archive}: member {member.name!r} is no utterance of {LISTING}; expected <id>.opus")
            if name.stem in kept:
                decoded.append(pool.submit(decode, name.stem, data.read()))
        for one in decoded:
            one.result()
    return len(decoded)


def read_split(corpus: str | Path, split: str, audio: str | Path) -> list[Utterance]:
    """Utterances of one split (``en-train`` … ``cs-test``), their audio under ``<audio>/<split>/``.

    Raises:
        InputError: the listing is missing or malformed, or has no such split.
    """
    path = Path(corpus) / LISTING
    utterances, splits = [], set()
    for number, row in enumerate(read_jsonl(path), 1):
        check_row(row, f"{path}, utterance {number}", _REQUIRED, _OPTIONAL)
        name = f"{_PREFIX[row['language']]}-{row['split']}"
        splits.add(name)
        if name == split:
            utterances.append(
                Utterance(
                    id=row["id"],
                    audio=Path(audio) / split / f"{row['id']}.flac",
                    text=row["text"],
                    language=row["language"],
                    speaker=row["speaker"],
                    domain=row.get("domain"),
                    phonemes=row.get("phonemes"),
                    duration=row["duration"],
                )
            )
    if not utterances:
        raise InputError(f"{path}: no utterance of split '{split}'; splits there: {', '.join(sorted(splits))}")
    return utterances


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@friendly_exit()
def main(
    corpus: Path = typer.Option(..., help="folder with SHA256SUMS, archives and utterances.jsonl"),
    out: Path = typer.Option(..., help="folder to unpack into"),
    limit: int | None = typer.Option(None, min=1, help="utterances a split; those that a manifest of so many takes"),
    threads: int = typer.Option(1, min=1, help="that decode"),
) -> None:
    """Verify the embedded corpus and unpack its audio."""
    counts = unpack(corpus, out, limit, threads)
    print(f"{corpus}: {sum(counts.values())} utterances in {len(counts)} splits")


if __name__ == "__main__":
    app()
