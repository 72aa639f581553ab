"""Text for training a small language model: sentences of the grammar, the HSK sentences nobody reads, examples, clauses, words.

    python -m entropy_asr.corpora.embedded.lm_text --plan plan.jsonl --assets assets --output lm_text.jsonl.gz

A language model should know words that the corpus's audio does not have. The example sentences of WordNet give it English ones;
clauses drawn from trigram models (`trigrams`) say which words, and which of many hanzi of one sound, stand beside which; and the
frequent words of both languages stand in rows, at random, where each is as frequent as the next: in sentences a word that is
among the first three thousand may occur a few times only, which is too little to learn how it sounds.

No sentence that is read in any split is in it, compared by letters alone (`text_key`): one of dev or test would be cheating, and
what the language model knows by heart, training the recogniser would teach to say without listening.
"""

import argparse
import gzip
import random
import re
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import msgpack

from entropy_asr.corpora.embedded import grammar
from entropy_asr.corpora.embedded.grammar import text_key
from entropy_asr.corpora.embedded.sentences import clean_en, everyday
from entropy_asr.corpora.embedded.trigrams import ENGLISH, MANDARIN, Trigrams
from entropy_asr.errors import InputError
from entropy_asr.files import read_jsonl, write_jsonl
from entropy_asr.text.normalize import normalize
from entropy_asr.text.phonemes import phonemize

REQUESTS = 5_000  # of the grammar, a language
EXAMPLES = 20_000
CLAUSES, WORDS_IN_CLAUSES = 100_000, 8_000  # of the most frequent words
ROWS = ((8_000, 2), (3_000, 2))  # so many of the most frequent words, each in so many rows
COARSE = re.compile("fuck|shit|bitch|cunt|nigg|fag|pussy|whore|slut|rape|porn")  # what is frequent, but not for a shipped text
WORDS_IN_A_ROW = {"en": 4, "zh": 3}


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


def frequent_words(table: Path, language: str) -> list[str]:
    """The words of a frequency table of wordfreq, the most frequent first.

    English ones that the pronouncing dictionary has, Mandarin ones of up to four hanzi.
    """
    header, *by_frequency = msgpack.unpackb(gzip.decompress(table.read_bytes()))
    if header != {"format": "cB", "version": 1}:
        raise InputError(f"{table}: found {header}, expected a frequency table of wordfreq, format cB, version 1")
    words = [word for same in by_frequency for word in same]
    if language == "zh":
        return [word for word in words if re.fullmatch("[\u4e00-\u9fff]{1,4}", word)]
    plain = (word for word in words if re.fullmatch("a|i|[a-z][a-z']+", word) and not COARSE.match(word))
    return [word for word in plain if not phonemize(word, "en").oov]


def rows_of_words(words: list[str], language: str, rng: random.Random) -> Iterator[str]:
    """Lines of some words each, in random order: nobody can guess them, one has to listen."""
    a_row = WORDS_IN_A_ROW[language]
    for most, rows in ROWS:
        for _ in range(rows):
            order = rng.sample(words[:most], len(words[:most]))
            for first in range(0, len(order), a_row):
                yield ("" if language == "zh" else " ").join(order[first : first + a_row])


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
        words = frequent_words(assets / f"words-{language}.msgpack.gz", language)
        if language == "en":
            trigrams, form = Trigrams.sphinx(assets / "sphinx/en-us.lm.bin"), ENGLISH
        else:
            sunpinyin = assets / "sunpinyin"
            trigrams, form = Trigrams.sunpinyin(sunpinyin / "lm_sc.t3g", sunpinyin / "pydict_sc.bin"), MANDARIN
        drawn = trigrams.clauses(form, set(words[:WORDS_IN_CLAUSES]), rng)
        part += islice(unread((("clauses", text) for text in drawn), language), CLAUSES)
        rows = rows_of_words(words, language, rng)
        part += unread((("words", text) for text in rows), language)
        part += islice(unread(requests(language, seed), language), REQUESTS)
        rng.shuffle(part)
        records += part
    return records


def main() -> None:
    """Write the gzip file, the same bytes for the same plan and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument(
        "--assets", type=Path, required=True, help="folder of `fetch`: hsk.json, wordnet, trigrams, tables of words"
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    records = lm_text(list(read_jsonl(args.plan)), args.assets, args.seed)
    write_jsonl(args.output, records)
    print(f"{len(records)} lines")


if __name__ == "__main__":
    main()
