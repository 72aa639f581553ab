"""Slot grammar of in-car requests: templates and slots in `grammar.yaml`, sentences out.

    python -m entropy_asr.corpora.embedded.grammar --language zh --count 20 --seed 1

The command prints sentences to look at; `sentences` and `lm_text` draw from the same functions.
"""

import argparse
import itertools
import random
import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

GRAMMAR = Path(__file__).with_name("grammar.yaml")
SLOT = re.compile(r"\{([a-z_.]+)\}")
# fmt: off
UNITS_EN = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)
TENS_EN = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
# fmt: on
DIGITS_ZH = "零一二三四五六七八九"


def text_key(text: str) -> str:
    """Letters and digits of `text`, lowercased: two sentences with one key count as the same sentence."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).lower() if c.isalnum())


def number_en(value: int) -> str:
    """`value` (0 to 999) in English words, without hyphens: 122 -> "one hundred twenty two"."""
    if value >= 100:
        rest = f" {number_en(value % 100)}" if value % 100 else ""
        return f"{UNITS_EN[value // 100]} hundred{rest}"
    if value >= 20:
        rest = f" {UNITS_EN[value % 10]}" if value % 10 else ""
        return TENS_EN[value // 10 - 2] + rest
    return UNITS_EN[value]


def number_zh(value: int) -> str:
    """`value` (0 to 999) in hanzi: 105 -> "一百零五", 112 -> "一百一十二"."""
    if value >= 100:
        hundreds, rest = DIGITS_ZH[value // 100] + "百", value % 100
        if rest == 0:
            return hundreds
        return hundreds + (f"零{DIGITS_ZH[rest]}" if rest < 10 else ("一" if rest < 20 else "") + number_zh(rest))
    if value >= 10:
        tens = "" if value < 20 else DIGITS_ZH[value // 10]
        return tens + "十" + (DIGITS_ZH[value % 10] if value % 10 else "")
    return DIGITS_ZH[value]


@cache
def load_grammar(path: Path = GRAMMAR) -> dict[str, Any]:
    """The grammar, with number ranges spelled out and the English slots visible to `mixed` as `en.<slot>`."""
    grammar = yaml.safe_load(path.read_text(encoding="utf-8"))
    for language, spell in (("en", number_en), ("zh", number_zh)):
        for name, values in grammar[language]["slots"].items():
            if isinstance(values, dict):
                first, last = values["range"]
                grammar[language]["slots"][name] = [spell(n) for n in range(first, last + 1)]
    english = {f"en.{name}": [SLOT.sub(r"{en.\1}", value) for value in values] for name, values in grammar["en"]["slots"].items()}
    grammar["mixed"]["slots"] = grammar["zh"]["slots"] | english
    return grammar


def expand(template: str, slots: dict[str, list[str]], rng: random.Random) -> str:
    """Fill the slots of `template`, and the slots inside their values, by uniform choice."""
    return SLOT.sub(lambda match: expand(rng.choice(slots[match.group(1)]), slots, rng), template)


def generate(language: str, domain: str, rng: random.Random) -> Iterator[str]:
    """Distinct sentences of one domain, without end until 1,000 draws in a row bring nothing new."""
    part = load_grammar()[language]
    templates, slots = part["domains"][domain], part["slots"]
    seen: set[str] = set()
    misses = 0
    while misses < 1000:
        sentence = expand(rng.choice(templates), slots, rng)
        key = text_key(sentence)
        if key in seen:
            misses += 1
            continue
        misses = 0
        seen.add(key)
        yield sentence


def domains(language: str) -> list[str]:
    """The in-car domains of a language."""
    return list(load_grammar()[language]["domains"])


def main() -> None:
    """Print sentences, to look at what the grammar says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language", choices=("en", "zh", "mixed"), default="en")
    parser.add_argument("--count", type=int, default=10, help="sentences per domain")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for domain in domains(args.language):
        sentences = generate(args.language, domain, random.Random(f"{args.seed}-{domain}"))
        for sentence in itertools.islice(sentences, args.count):
            print(f"{domain}\t{sentence}")


if __name__ == "__main__":
    main()
