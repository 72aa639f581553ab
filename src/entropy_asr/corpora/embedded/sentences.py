"""Decide what is said: grammar and HSK sentences -> a plan with split, voice and speaking speed for every utterance.

    python -m entropy_asr.corpora.embedded.sentences --hsk assets/hsk.json --output plan.jsonl

Sentences are distinct after normalisation, so no test or dev sentence can occur in training; the names and places in
them are shared between the splits. Test voices, and voices averaged from them, speak in no other split. The lines of
the plan are ordered so that any prefix of it is a small corpus with all its splits.
"""

import argparse
import json
import random
import re
from itertools import combinations, cycle
from pathlib import Path
from typing import Any

from entropy_asr.corpora.embedded import grammar
from entropy_asr.corpora.embedded.grammar import text_key
from entropy_asr.files import write_jsonl

MINUTES = {"train": 60.0, "dev": 5.0, "test": 15.0}
CODE_SWITCHED_MINUTES = 4.0
SPARE = 1.06  # more than wanted is planned, because the recogniser will drop some
MOST = 1.1  # of the minutes wanted; what is read beyond it is not packed
EVERYDAY_SHARE = {"train": 0.55, "dev": 0.3, "test": 0.3}  # of the draws; short ones are put back
HIGHEST_LEVEL_READ = 4
SPEEDS = {"en": (0.9, 1.25), "zh": (0.9, 1.25), "mixed": (0.85, 1.05)}
SHORTEST, LONGEST = 1.7, 6.0  # expected seconds of an utterance

ENGLISH_TRAIN = (
    *("af_alloy", "af_aoede", "af_heart", "af_jessica", "af_nicole", "af_bella", "af_river", "af_sky"),
    *("am_adam", "am_echo", "am_fenrir", "am_liam", "am_onyx", "am_puck", "am_santa"),
    *("bf_alice", "bf_lily", "bf_emma", "bm_fable", "bm_lewis"),
)
MANDARIN_TRAIN = ("zf_xiaobei", "zf_xiaoyi", "zm_yunyang", "zm_yunxia")
VOICES: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "train": ENGLISH_TRAIN,
        "dev": ("af_kore", "af_sarah", "bm_daniel"),
        "test": ("af_nova", "am_eric", "am_michael", "bf_isabella", "bm_george"),
    },
    "zh": {
        "train": (
            *MANDARIN_TRAIN,
            *(f"{first}50-{second}50" for first, second in combinations(MANDARIN_TRAIN, 2)),
            # Four voices and their averages are too few to learn others from: each English one lends them its timbre.
            *(f"{MANDARIN_TRAIN[i % len(MANDARIN_TRAIN)]}50-{english}50" for i, english in enumerate(ENGLISH_TRAIN)),
        ),
        "dev": ("zf_xiaobei30-zf_xiaoyi70", "zm_yunyang70-zm_yunxia30"),
        "test": ("zf_xiaoxiao", "zm_yunxi", "zf_xiaoxiao50-zm_yunxi50"),
    },
    # a Mandarin and an English test voice averaged read both languages more clearly than either alone
    "mixed": {"test": ("zf_xiaoxiao50-af_nova50", "zm_yunxi70-am_michael30")},
}


def clean_zh(text: str) -> str | None:
    """An HSK sentence as hanzi, commas and a final question mark; None when anything else is in it."""
    text = re.sub(r"[“”‘’《》「」]", "", text)
    text = re.sub(r"[；：、—…]+", "，", text)
    text = re.sub(r"[。！]+$", "", re.sub(r"[。！]+(?=.)", "，", text.strip()))
    return text if re.fullmatch(r"[\u4e00-\u9fff，]+？?", text) else None


def clean_en(text: str) -> str | None:
    """An English translation as words, commas and a final question mark; None when anything else is in it."""
    text = re.sub(r"[’‘]", "'", text).replace('"', "")
    text = re.sub(r"\s*[;:—–]\s*|[.!]\s+", ", ", text)
    text = re.sub(r"[.!…]+$", "", text.strip()).replace("-", " ")
    return text if re.fullmatch(r"[A-Za-z][A-Za-z', ]*\??", text) else None


def everyday(hsk: Path, language: str) -> list[tuple[int, str]]:
    """(HSK level, sentence) of the usable everyday sentences of a language, distinct, in the table's order."""
    found: dict[str, tuple[int, str]] = {}
    for record in json.loads(hsk.read_text(encoding="utf-8")):
        raw = record["chinese"] if language == "zh" else record["translation"]["en"]
        text = clean_zh(raw) if language == "zh" else clean_en(raw)
        if text is None or "placeholder" in json.dumps(record).lower():
            continue
        length = len(text_key(text)) if language == "zh" else len(text.split())
        if (5 if language == "zh" else 4) <= length <= (14 if language == "zh" else 12):
            found.setdefault(text_key(text), (record["hsk_level"], text))
    return list(found.values())


def expected_seconds(text: str, speed: float) -> float:
    """About how long `text` will be: measured on a first batch, good to a few percent over a split."""
    hanzi = len(re.findall(r"[\u4e00-\u9fff]", text))
    latin = len(re.findall(r"[A-Za-z]", text))
    return 0.3 + (0.185 * hanzi + 0.072 * latin) / speed


class Sentences:
    """Sentences of a language: in-car domains in turn, and everyday ones (lower HSK levels only) at the share asked for."""

    def __init__(self, language: str, hsk: Path, seed: int) -> None:
        self.rng = random.Random(f"{seed}-{language}-sentences")
        names = grammar.domains(language)
        self.in_car = {d: grammar.generate(language, d, random.Random(f"{seed}-{language}-{d}")) for d in names}
        self.turn = cycle(names)
        self.everyday: list[str] = []
        if language != "mixed":
            self.everyday = [text for level, text in everyday(hsk, language) if level <= HIGHEST_LEVEL_READ]
            self.rng.shuffle(self.everyday)

    def draw(self, everyday_share: float) -> tuple[str, str]:
        """(domain, sentence)."""
        if self.everyday and self.rng.random() < everyday_share:
            return "everyday", self.everyday.pop()
        domain = next(self.turn)
        return domain, next(self.in_car[domain])


def rank_scale(split: str, share: float) -> float:
    """How much earlier than train an utterance is made: a fifth of dev and test almost at once, all of it by 60%."""
    if split == "train":
        return 1.0
    return 0.05 if share < 0.2 else 0.6


def plan_language(language: str, minutes: dict[str, float], hsk: Path, seed: int) -> list[dict[str, Any]]:
    """The utterances of one language; each gets a `rank` between 0 and 1 that says how early it is wanted."""
    rng = random.Random(f"{seed}-{language}-plan")
    sentences = Sentences(language, hsk, seed)
    seen: set[str] = set()
    plan = []
    for split in ("test", "dev", "train"):
        seconds, part, speakers = 0.0, [], []
        while split in minutes and seconds < minutes[split] * 60 * SPARE:
            domain, text = sentences.draw(EVERYDAY_SHARE[split])
            speed = round(rng.uniform(*SPEEDS[language]), 2)
            if text_key(text) in seen or not SHORTEST <= expected_seconds(text, speed) <= LONGEST:
                continue
            seen.add(text_key(text))
            if not speakers:
                speakers = rng.sample(VOICES[language][split], len(VOICES[language][split]))
            prefix = "cs" if language == "mixed" else language
            part.append(
                {
                    "id": f"{prefix}-{split}-{len(part):04d}",
                    "split": split,
                    "language": language,
                    "speaker": speakers.pop(),
                    "domain": domain,
                    "text": text,
                    "speed": speed,
                }
            )
            seconds += expected_seconds(text, speed)
        for position, utterance in enumerate(part):
            share = position / len(part)
            plan.append(utterance | {"rank": round(share * rank_scale(split, share), 6)})
    return plan


def make_plan(hsk: Path, seed: int, scale: float = 1.0) -> list[dict[str, Any]]:
    """The whole plan, in the order in which to synthesise."""
    minutes = {split: value * scale for split, value in MINUTES.items()}
    plan = plan_language("en", minutes, hsk, seed) + plan_language("zh", minutes, hsk, seed)
    plan += plan_language("mixed", {"test": CODE_SWITCHED_MINUTES * scale}, hsk, seed)
    return sorted(plan, key=lambda u: (u["rank"], u["id"]))


def main() -> None:
    """Write the plan and say how much it holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hsk", type=Path, required=True, help="sentence table from `fetch`")
    parser.add_argument("--output", type=Path, required=True, help="plan.jsonl to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the full amount of audio to plan")
    args = parser.parse_args()
    plan = make_plan(args.hsk, args.seed, args.scale)
    write_jsonl(args.output, plan)
    hours = sum(expected_seconds(u["text"], u["speed"]) for u in plan) / 3600
    print(f"{len(plan)} utterances planned, about {hours:.2f} hours")


if __name__ == "__main__":
    main()
