"""Text for training a small language model: many sentences of the grammar, the HSK sentences nobody reads, dictionary examples.

    python -m entropy_asr.corpora.embedded.lm_text --plan plan.jsonl --assets assets --output lm_text.jsonl.gz

A language model should know words that the corpus's audio does not have: the example sentences of WordNet give it English ones,
and Mandarin ones come from jieba's dictionary, some in a row, the frequent ones.

No sentence that is read in any split is in it, compared by letters alone (`text_key`): one of dev or test would be cheating, and
what the language model knows by heart, training the recogniser would teach to say without listening.
"""

import argparse
import random
import re
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from entropy_asr.corpora.embedded import grammar
from entropy_asr.corpora.embedded.grammar import text_key
from entropy_asr.corpora.embedded.sentences import clean_en, everyday
from entropy_asr.files import read_jsonl, write_jsonl
from entropy_asr.text.normalize import normalize
from entropy_asr.text.phonemes import phonemize

REQUESTS = 8_000  # of the grammar, a language
EXAMPLES = 16_000
WORDS, WORDS_IN_A_LINE, LINES_OF_A_WORD = 16_000, 3, 2


def examples(wordnet: Path) -> list[str]:
    """The example sentences and phrases of WordNet's glosses: 3 to 12 words, all of them in the pronouncing dictionary."""
    found: dict[str, None] = {}
    for part in sorted(wordnet.glob("data.*")):
        for line in part.read_text(encoding="utf-8").splitlines():
            if line.startswith(" "):  # the licence
                continue
            for quoted in re.findall(r'"([^"]+)"', line.split("|", 1)[1]):
                text = clean_en(quoted)
                if text and 3 <= len(text.split()) <= 12 and not phonemize(normalize(text, "en"), "en").oov:
                    found[text] = None
    return list(found)


def frequent_words(dictionary: Path) -> list[str]:
    """The most frequent Mandarin words of up to four hanzi in jieba's dictionary, without names of persons."""
    rows = [line.split() for line in dictionary.read_text(encoding="utf-8").splitlines()]
    kept = [(-int(count), word) for word, count, tag in rows if re.fullmatch("[\u4e00-\u9fff]{1,4}", word) and tag[:2] != "nr"]
    return [word for _, word in sorted(kept)[:WORDS]]


def rows_of_words(words: list[str], rng: random.Random) -> Iterator[str]:
    """Lines of some words each, in random order: nobody can guess them, one has to listen."""
    for _ in range(LINES_OF_A_WORD):
        order = rng.sample(words, len(words))
        yield from ("".join(order[first : first + WORDS_IN_A_LINE]) for first in range(0, len(order), WORDS_IN_A_LINE))


def requests(language: str, seed: int) -> Iterator[tuple[str, str]]:
    """(domain, text) of the grammar, domains in turn."""
    streams = {d: grammar.generate(language, d, random.Random(f"{seed}-{language}-{d}-lm")) for d in grammar.domains(language)}
    for domain in cycle(list(streams)):
        if domain in streams:
            text = next(streams[domain], None)
            if text is None:
                del streams[domain]
            else:
                yield domain, text
        if not streams:
            return


def lm_text(plan: list[dict[str, Any]], assets: Path, seed: int) -> list[dict[str, str]]:
    """Distinct lines, shuffled within a language."""
    seen = {text_key(u["text"]) for u in plan}

    def unread(lines: Iterator[tuple[str, str]], language: str) -> Iterator[dict[str, str]]:
        for domain, text in lines:
            if (key := text_key(text)) not in seen:
                seen.add(key)
                yield {"language": language, "domain": domain, "text": text}

    records = []
    for language in ("en", "zh"):
        rng = random.Random(f"{seed}-{language}-lm")
        part = list(unread((("everyday", text) for _, text in everyday(assets / "hsk.json", language)), language))
        if language == "en":
            found = examples(assets / "wordnet")
            part += unread((("examples", text) for text in rng.sample(found, min(EXAMPLES, len(found)))), language)
        else:
            rows = rows_of_words(frequent_words(assets / "words.txt"), rng)
            part += unread((("words", text) for text in rows), language)
        part += islice(unread(requests(language, seed), language), REQUESTS)
        rng.shuffle(part)
        records += part
    return records


def main() -> None:
    """Write the gzip file, the same bytes for the same plan and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--assets", type=Path, required=True, help="folder of `fetch`: hsk.json, wordnet, words.txt")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    records = lm_text(list(read_jsonl(args.plan)), args.assets, args.seed)
    write_jsonl(args.output, records)
    print(f"{len(records)} lines")


if __name__ == "__main__":
    main()
