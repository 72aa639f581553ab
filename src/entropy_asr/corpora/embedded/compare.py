"""Hold a corpus made from scratch to the committed one: every committed utterance again, same text, same speaker, same phonemes.

    python -m entropy_asr.corpora.embedded.compare --made results/corpus_from_scratch/data --committed data/embedded

Texts and speakers follow from the seed, phonemes from the text and the voice; they must agree. Audio bytes and the
recogniser's verdicts may differ between processors and library versions, so those are counted, not judged.
"""

import argparse
from pathlib import Path
from typing import Any

from entropy_asr.files import read_jsonl

FIELDS = ("text", "speaker", "language", "phonemes")


def every_utterance(directory: Path) -> dict[str, dict[str, Any]]:
    """Kept and dropped utterances of a corpus by id."""
    records = [*read_jsonl(directory / "utterances.jsonl"), *read_jsonl(directory / "dropped.jsonl")]
    return {record["id"]: record for record in records}


def compare(made: Path, committed: Path) -> tuple[list[str], str]:
    """The committed ids that are missing or have another text, speaker or phonemes, and a line that says how alike the two are.

    The plan may ask for more than is committed; what is new is no difference.
    """
    new, old = every_utterance(made), every_utterance(committed)
    same = [i for i in old if i in new and all(new[i].get(k) == old[i].get(k) for k in FIELDS)]
    different = sorted(old.keys() - set(same))
    audio = sum(new[i]["sha256"] == old[i]["sha256"] for i in same)
    seconds = sum(abs(new[i]["duration"] - old[i]["duration"]) for i in same)
    line = (
        f"{len(same)} of {len(old)} committed utterances have the same text, speaker and phonemes; {audio} of them the same "
        f"audio bytes; durations differ by {seconds:.1f} s in all"
    )
    return different, line


def main() -> None:
    """Print the comparison, write it to a file, and fail where texts, speakers or phonemes differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--made", type=Path, required=True)
    parser.add_argument("--committed", type=Path, required=True)
    parser.add_argument("--output", type=Path, help="text file for the result")
    args = parser.parse_args()
    different, line = compare(args.made, args.committed)
    report = "\n".join([line, *(f"differs: {i}" for i in different)]) + "\n"
    print(report, end="")
    if args.output:
        args.output.write_text(report, encoding="utf-8")
    if different:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
