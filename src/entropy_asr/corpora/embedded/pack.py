"""Put the corpus into its committed form: tars, `utterances.jsonl`, `dropped.jsonl`, `lm_text.jsonl.gz`, `SHA256SUMS`.

    python -m entropy_asr.corpora.embedded.pack --plan plan.jsonl --opus opus --asr asr.jsonl --phonemes phonemes.jsonl \
        --lm-text lm_text.jsonl.gz --output data/embedded

The same input gives the same bytes: names are sorted and the tars carry no times or owners. Utterances that the
recogniser did not understand go to `dropped.jsonl`; those without audio, and those that make a split too long, are left out
and counted.
"""

import argparse
import hashlib
import io
import shutil
import tarfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from entropy_asr.corpora.embedded.intelligibility import understood
from entropy_asr.corpora.embedded.sentences import MINUTES, MOST
from entropy_asr.files import atomic_write, read_jsonl, sha256, write_jsonl

SUMS = "SHA256SUMS"
FIELDS = (
    *("id", "split", "language", "speaker", "domain", "text", "phonemes"),
    *("duration", "sha256", "asr_text", "asr_error_rate"),
)


def write_tar(path: Path, files: dict[str, bytes]) -> None:
    """A tar of `files`, sorted by name, without times and owners."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(files):
            info = tarfile.TarInfo(name)
            info.size = len(files[name])
            info.mode = 0o644
            archive.addfile(info, io.BytesIO(files[name]))


def write_sums(directory: Path) -> None:
    """`SHA256SUMS` over the data files, in the format of sha256sum."""
    names = sorted(p.name for p in directory.iterdir() if p.suffix in {".tar", ".jsonl", ".gz"})
    lines = [f"{sha256(directory / name)}  {name}\n" for name in names]
    atomic_write(directory / SUMS, "".join(lines))


def describe(utterance: dict[str, Any], data: bytes, asr: dict[str, Any]) -> dict[str, Any]:
    """The line of an utterance: the plan's fields, its phonemes if any, then duration, hash, and what the recogniser heard."""
    import soundfile

    record = utterance | {
        "duration": round(soundfile.info(io.BytesIO(data)).frames / 16_000, 3),
        "sha256": hashlib.sha256(data).hexdigest(),
        "asr_text": asr.get("asr_text"),
        "asr_error_rate": asr.get("asr_error_rate"),
    }
    return {field: record[field] for field in FIELDS if field in record}


def pack(plan: Path, opus: Path, asr: Path | None, phonemes: Path | None, lm_text: Path, output: Path) -> None:
    """Write every file of the corpus to `output`."""
    said = {record["id"]: record for record in read_jsonl(phonemes)} if phonemes else {}
    transcripts = {record["id"]: record for record in read_jsonl(asr)} if asr else {}
    kept: list[dict[str, Any]] = []
    dropped: list[dict[str, Any]] = []
    archives: dict[str, dict[str, bytes]] = defaultdict(dict)
    minutes: Counter[str] = Counter()
    missing, surplus = 0, 0
    for utterance in sorted(read_jsonl(plan), key=lambda u: u["id"]):
        path = opus / f"{utterance['id']}.opus"
        if not path.exists():
            missing += 1
            continue
        data = path.read_bytes()
        record = describe(utterance | said.get(utterance["id"], {}), data, transcripts.get(utterance["id"], {}))
        rate = record["asr_error_rate"]
        if rate is not None and not understood(record["language"], rate):
            dropped.append(record)
            continue
        split = f"{record['language']}-{record['split']}"
        if minutes[split] + record["duration"] / 60 > MOST * MINUTES[record["split"]]:
            surplus += 1
            continue
        minutes[split] += record["duration"] / 60
        kept.append(record)
        archives[utterance["id"].rpartition("-")[0]][path.name] = data
    output.mkdir(parents=True, exist_ok=True)
    for name, files in archives.items():
        write_tar(output / f"{name}.tar", files)
    write_jsonl(output / "utterances.jsonl", kept)
    write_jsonl(output / "dropped.jsonl", dropped)
    shutil.copyfile(lm_text, output / "lm_text.jsonl.gz")
    write_sums(output)
    summary = ", ".join(f"{name} {value:.1f} min" for name, value in sorted(minutes.items()))
    print(f"{len(kept)} utterances ({summary}); {len(dropped)} dropped, {missing} without audio, {surplus} too many")


def main() -> None:
    """Parse the command line and pack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--opus", type=Path, required=True, help="folder of the Opus files")
    parser.add_argument("--asr", type=Path, help="asr.jsonl of `intelligibility`; without it nothing is dropped")
    parser.add_argument("--phonemes", type=Path, help="phonemes.jsonl of `pronounce`; without it they follow from the text")
    parser.add_argument("--lm-text", type=Path, required=True, help="lm_text.jsonl.gz of `lm_text`")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    pack(args.plan, args.opus, args.asr, args.phonemes, args.lm_text, args.output)


if __name__ == "__main__":
    main()
