"""The figures of docs/corpus.md, counted from the committed data and written between the page's two markers.

    python -m entropy_asr.corpora.embedded.tables --data data/embedded --page docs/corpus.md

A test makes the tables again and compares, so the page cannot drift from the data.
"""

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from entropy_asr.corpora.embedded.intelligibility import character_error_rate, units
from entropy_asr.files import atomic_write, read_jsonl

START, END = "<!-- tables: start -->", "<!-- tables: end -->"
SPLITS = ("en-train", "en-dev", "en-test", "zh-train", "zh-dev", "zh-test", "cs-test")
Records = list[dict[str, Any]]


def split_name(record: dict[str, Any]) -> str:
    """`en-train` … `cs-test`, the name of the record's archive."""
    return record["id"].rpartition("-")[0]


def grouped(records: Iterable[dict[str, Any]], key: Callable[[dict[str, Any]], Any]) -> dict[Any, Records]:
    """Records by `key`."""
    groups: dict[Any, Records] = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return groups


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def percent(part: float, whole: float) -> str:
    """A percentage with one decimal, or a dash where there is nothing to divide by."""
    return f"{100 * part / whole:.1f}%" if whole else "–"


def pooled_error(records: Records) -> str:
    """Errors over reference units of all checked records together."""
    checked = [(r["asr_error_rate"], len(units(r["text"], r["language"]))) for r in records if r["asr_text"] is not None]
    return percent(sum(rate * n for rate, n in checked), sum(n for _, n in checked))


def pooled_cer(records: Records) -> str:
    """Errors over hanzi of all checked Mandarin records together."""
    checked = [
        (character_error_rate(r["text"], r["asr_text"]), len(units(r["text"], "zh")))
        for r in records
        if r["language"] == "zh" and r["asr_text"] is not None
    ]
    return percent(sum(rate * n for rate, n in checked), sum(n for _, n in checked))


def minutes(records: Records) -> str:
    """Minutes of audio with one decimal."""
    return f"{sum(r['duration'] for r in records) / 60:.1f}"


def splits_table(kept: dict[str, Records]) -> str:
    """Size of every split."""
    rows = []
    for name in SPLITS:
        records = kept[name]
        seconds = sorted(r["duration"] for r in records)
        everyday = sum(r["domain"] == "everyday" for r in records)
        spread = f"{seconds[0]:.1f} / {seconds[len(seconds) // 2]:.1f} / {seconds[-1]:.1f}"
        speakers = len({r["speaker"] for r in records})
        rows.append([name, len(records), minutes(records), spread, speakers, percent(everyday, len(records))])
    header = ["split", "utterances", "minutes", "seconds: shortest / median / longest", "speakers", "everyday share"]
    return markdown(header, rows)


def domains_table(kept: dict[str, Records]) -> str:
    """Utterances of every domain in every split."""
    names = sorted({r["domain"] for records in kept.values() for r in records})
    counts = {name: grouped(kept[name], lambda r: r["domain"]) for name in SPLITS}
    return markdown(["domain", *SPLITS], [[d, *(len(counts[name][d]) for name in SPLITS)] for d in names])


def intelligibility_table(kept: dict[str, Records], dropped: dict[str, Records]) -> str:
    """What the recogniser understood of every split, before anything was dropped."""
    rows = []
    for name in SPLITS:
        records = kept[name] + dropped[name]
        checked = [r for r in records if r["asr_text"] is not None]
        perfect = sum(r["asr_error_rate"] == 0 for r in checked)
        figures = [pooled_error(records), pooled_cer(records), percent(perfect, len(checked))]
        rows.append([name, len(records), len(checked), *figures, len(dropped[name])])
    header = ["split", "made", "checked", "error rate", "CER", "without error", "dropped"]
    return markdown(header, rows)


def voices_table(kept: Records, dropped: Records) -> str:
    """The same by voice."""
    gone = grouped(dropped, lambda r: (split_name(r), r["speaker"]))
    rows = []
    for (name, speaker), records in sorted(grouped(kept, lambda r: (split_name(r), r["speaker"])).items()):
        away = gone.get((name, speaker), [])
        rows.append([speaker, name, len(records), minutes(records), pooled_error(records + away), len(away)])
    return markdown(["voice", "split", "utterances", "minutes", "error rate", "dropped"], rows)


def dropped_table(dropped: Records) -> str:
    """What was dropped, by domain."""
    groups = grouped(dropped, lambda r: (r["language"], r["domain"]))
    return markdown(["language, domain", "dropped"], [[", ".join(key), len(groups[key])] for key in sorted(groups)])


def tables(data: Path) -> str:
    """All tables, with their headings."""
    kept, dropped = list(read_jsonl(data / "utterances.jsonl")), list(read_jsonl(data / "dropped.jsonl"))
    by_split, gone = grouped(kept, split_name), grouped(dropped, split_name)
    parts = [
        ("Splits", splits_table(by_split)),
        ("Utterances by domain", domains_table(by_split)),
        ("Intelligibility by split", intelligibility_table(by_split, gone)),
        ("Dropped, by domain", dropped_table(dropped)),
        ("Intelligibility by voice", voices_table(kept, dropped)),
    ]
    return "\n\n".join(f"### {title}\n\n{table}" for title, table in parts)


def main() -> None:
    """Write the tables into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--page", type=Path, required=True)
    args = parser.parse_args()
    before, _, rest = args.page.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    atomic_write(args.page, f"{before}{START}\n\n{tables(args.data)}\n\n{END}{after}")


if __name__ == "__main__":
    main()
