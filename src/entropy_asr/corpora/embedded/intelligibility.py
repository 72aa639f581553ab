"""An independent recogniser (whisper-base) reads every file back; what it cannot understand is not worth training on.

    python -m entropy_asr.corpora.embedded.intelligibility --plan plan.jsonl --opus opus --assets assets \
        --output asr.jsonl

The error rate is over words for English and over toneless pinyin syllables for Mandarin: names such as 李伟 and 李薇
cannot be told apart by a recogniser that has never seen the contact list. Digits in a transcript are spelled out in
every plausible way, and the best way counts. Run again, the command goes on with the files that are new.
"""

import argparse
import itertools
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from entropy_asr.corpora.embedded.grammar import number_en, number_zh
from entropy_asr.evaluation.whisper import Whisper
from entropy_asr.files import read_jsonl

LIMITS = {"en": 0.5, "zh": 0.4, "mixed": 0.5}
# Whisper pads to 30 seconds; a window of 8 seconds gives nearly the same transcripts five times faster
WINDOW_SECONDS, FULL_WINDOW_SECONDS = 8, 30
DIGITS_ZH = "零一二三四五六七八九"
MINUS = {" - ": [" minus ", " "]}
SIGNS = {
    "en": {"%": " percent ", "+": " plus ", "×": " times ", "*": " times ", "=": " ", "$": " ", "°": " degrees "},
    "zh": {"+": "加", "×": "乘以", "*": "乘以", "=": "等于", "°C": "度", "°": "度", "x": "乘以"},
}


def edit_distance(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Levenshtein distance between two sequences."""
    row = list(range(len(hypothesis) + 1))
    for i, wanted in enumerate(reference, 1):
        previous, row[0] = row[0], i
        for j, found in enumerate(hypothesis, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (wanted != found))
    return row[-1]


def spellings(digits: str, language: str) -> list[str]:
    """The ways in which a run of digits may have been spoken: as a number, digit by digit, as a time of day."""
    if language == "en":
        found = [" ".join(number_en(int(d)) for d in digits)]
        if len(digits) <= 3:
            found.append(number_en(int(digits)))
        if len(digits) in (3, 4):
            found.append(f"{number_en(int(digits[:-2]))} {number_en(int(digits[-2:]))}")
        return found
    found = ["".join(DIGITS_ZH[int(d)] for d in digits)]
    return [*found, number_zh(int(digits))] if len(digits) <= 3 else found


def spelled_out(text: str, language: str) -> Iterator[str]:
    """`text` without digits, in each combination of the plausible spellings of its numbers (at most 64)."""
    text = unicodedata.normalize("NFKC", text).lower()
    if language == "en":
        text = re.sub(r"(?<=\d)\s*[-–]\s*(?=\d)", " - ", text).replace(":00", " o'clock").replace(":", " ")
        text = re.sub(r"(?<=\d),(?=\d)", "", re.sub(r"(?<=\d)\.(?=\d)", " point ", text))
    else:
        text = re.sub(r"(\d+)\s*%", r"百分之\1", re.sub(r"(?<=\d)[:.](?=\d)", "点", text))
        text = re.sub(r"(?<=\d)\s*-\s*(?=\d)", "减", text)
    for sign, word in SIGNS["en" if language == "en" else "zh"].items():
        text = text.replace(sign, word)
    pieces = re.split(r"(\d+|(?<=\d) - (?=\d))", text)
    options = [spellings(p, language) if re.fullmatch(r"[0-9]+", p) else MINUS.get(p, [p]) for p in pieces]
    for choice in itertools.islice(itertools.product(*options), 64):
        yield "".join(choice)


def units(text: str, language: str) -> list[str]:
    """What is compared: English words; Mandarin syllables without tone, with Latin words as they are."""
    text = text.lower().replace("’", "'")
    if language == "en":
        return re.findall(r"[a-z']+", text)
    from pypinyin import lazy_pinyin

    found = []
    for piece in re.findall(r"[a-z']+|[\u4e00-\u9fff]+", text):
        found += [piece] if piece.isascii() else lazy_pinyin(piece)
    return found


def error_rate(reference: str, transcript: str, language: str) -> float:
    """Error rate of the best spelling of `transcript`."""
    wanted = units(reference, language)
    return min(edit_distance(wanted, units(t, language)) for t in spelled_out(transcript, language)) / len(wanted)


def character_error_rate(reference: str, transcript: str) -> float:
    """Error rate over hanzi (tones and characters count), the stricter figure reported in the docs."""
    wanted = re.findall(r"[\u4e00-\u9fff]", reference)
    best = min(edit_distance(wanted, re.findall(r"[\u4e00-\u9fff]|[a-z]+", t)) for t in spelled_out(transcript, "zh"))
    return best / len(wanted)


def understood(language: str, rate: float) -> bool:
    """The drop rule."""
    return rate <= LIMITS[language]


def listen(recogniser: Whisper, audio: np.ndarray, utterance: dict[str, Any]) -> dict[str, Any]:
    """What was heard and its error rate; what was not understood is heard again in Whisper's own 30 second window."""
    heard = []
    for window in (WINDOW_SECONDS, FULL_WINDOW_SECONDS):
        spoken = "en" if utterance["language"] == "en" else "zh"
        transcript = recogniser(audio, spoken, window)
        rate = error_rate(utterance["text"], transcript, utterance["language"])
        heard.append((rate, transcript))
        if understood(utterance["language"], rate):
            break
    rate, transcript = min(heard)
    return {"asr_text": transcript, "asr_error_rate": round(rate, 4)}


def check(plan: Path, opus: Path, assets: Path, output: Path) -> None:
    """Append a record to `output` for every file of the plan that has none yet."""
    import soundfile

    done = {record["id"] for record in read_jsonl(output)} if output.exists() else set()
    waiting = [u for u in read_jsonl(plan) if u["id"] not in done and (opus / f"{u['id']}.opus").exists()]
    recogniser = Whisper(assets / "whisper-base")
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a", encoding="utf-8") as handle:
        for number, utterance in enumerate(waiting, 1):
            audio, _ = soundfile.read(opus / f"{utterance['id']}.opus", dtype="float32")
            record = {"id": utterance["id"]} | listen(recogniser, audio, utterance)
            handle.write(json.dumps(record, ensure_ascii=False) + "\n")
            handle.flush()
            if number % 200 == 0 or number == len(waiting):
                print(f"{number}/{len(waiting)} files read back", flush=True)


def main() -> None:
    """Parse the command line and check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--opus", type=Path, required=True, help="folder of the Opus files")
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="asr.jsonl, appended to")
    args = parser.parse_args()
    check(args.plan, args.opus, args.assets, args.output)


if __name__ == "__main__":
    main()
