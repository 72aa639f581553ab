"""Text for training a small language model: train sentences, many more of the grammar's, the rest of the HSK sentences.

    python -m entropy_asr.corpora.embedded.lm_text --plan plan.jsonl --hsk assets/hsk.json --output lm_text.jsonl.gz

No sentence of dev or test is in it: sentences are compared by their letters alone (`text_key`).
"""

import argparse
import random
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

from entropy_asr.corpora.embedded import grammar
from entropy_asr.corpora.embedded.grammar import text_key
from entropy_asr.corpora.embedded.sentences import everyday
from entropy_asr.files import read_jsonl, write_jsonl

LINES = 15_000


def candidates(language: str, plan: list[dict[str, Any]], hsk: Path, seed: int) -> Iterator[tuple[str, str]]:
    """(domain, text): first the train sentences, then the HSK sentences of every level, then the grammar, in turn."""
    for utterance in plan:
        if utterance["split"] == "train" and utterance["language"] == language:
            yield utterance["domain"], utterance["text"]
    for _, text in everyday(hsk, language):
        yield "everyday", text
    names = grammar.domains(language)
    streams = {d: grammar.generate(language, d, random.Random(f"{seed}-{language}-{d}-lm")) for d in names}
    for domain in cycle(names):
        if domain in streams:
            text = next(streams[domain], None)
            if text is None:
                del streams[domain]
            else:
                yield domain, text
        if not streams:
            return


def lm_text(plan: list[dict[str, Any]], hsk: Path, seed: int, lines: int = LINES) -> list[dict[str, str]]:
    """Up to `lines` distinct lines a language, shuffled."""
    held_out = {text_key(u["text"]) for u in plan if u["split"] != "train"}
    records = []
    for language in ("en", "zh"):
        seen = set(held_out)
        part: list[dict[str, str]] = []
        for domain, text in candidates(language, plan, hsk, seed):
            key = text_key(text)
            if key not in seen:
                seen.add(key)
                part.append({"language": language, "domain": domain, "text": text})
            if len(part) == lines:
                break
        random.Random(f"{seed}-{language}-shuffle").shuffle(part)
        records += part
    return records


def main() -> None:
    """Write the gzip file, the same bytes for the same plan and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--hsk", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    records = lm_text(list(read_jsonl(args.plan)), args.hsk, args.seed)
    write_jsonl(args.output, records)
    print(f"{len(records)} lines")


if __name__ == "__main__":
    main()
