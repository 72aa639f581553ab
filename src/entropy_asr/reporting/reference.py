"""Reference results: the small files of a finished run, copied where git keeps them, with what made them.

    entropy-asr reference results docs/results

`results/` itself is not in git: a committed table would make Snakemake think that the work behind it is done.
"""

import csv
from pathlib import Path

from entropy_asr.errors import InputError
from entropy_asr.files import atomic_write, read_json, read_table
from entropy_asr.reporting.report import who_decided

FILES = [
    *(f"tables/{name}.csv" for name in ("main", "breakdown", "significance", "ablation", "cost")),
    *(f"tables/{name}.csv" for name in ("hallucination", "entropy", "cka", "timeline")),
    *(f"figures/{name}.svg" for name in ("cka", "timeline", "curves", "errors", "hallucination")),
    *(f"figures/{name}.svg" for name in ("shift", "drift", "spectrum", "allocation")),
]
OPTIONAL = ["tables/metric_validation.csv"]  # made on request
COLUMNS = {
    "arm": "arm",
    "seed": "seed",
    "test_set": "test set",
    "metric": "metric",
    "value_percent": "%",
    "low_percent": "95% from",
    "high_percent": "to",
    "p_against_ours": "p against ours",
    "utterances": "utterances",
    "rtf": "real-time factor",
}


def publish(results: Path, folder: Path, command: str) -> None:
    """Copy tables and figures, and write a README that shows the main table, the command, the commit and the machine.

    Raises:
        InputError: the run is not finished.
    """
    missing = [name for name in FILES if not (results / name).is_file()]
    if missing:
        raise InputError(f"{results} is not a finished run: {', '.join(missing)} missing; run `{command}` first")
    records = [read_json(path) for path in sorted(results.rglob("provenance.json"))]
    commits = sorted({f"`{r['git_commit']}`" + (" with uncommitted changes" if r["git_dirty"] else "") for r in records})
    with (results / "tables/main.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    kinds = " and ".join(sorted({row["corpus_kind"] for row in rows}))
    with (results / "tables/timeline.csv").open(encoding="utf-8", newline="") as file:
        jobs = list(csv.DictReader(file))
    minutes = sum(float(job["wall_seconds"]) for job in jobs) / 60
    memory = max(float(job["peak_memory_gib"]) for job in jobs)
    seeds = ", ".join(sorted({row["seed"] for row in rows if row["seed"]}))
    lines = [
        "# Reference results",
        "",
        f"Made by `{command}` at commit {', '.join(commits)}; seeds {seeds}. "
        f"Copied here by `entropy-asr reference`. All speech is **{kinds}** (docs/corpus.md): compare the rows with each other, "
        "not with results on recorded speech.",
        "",
        "| " + " | ".join(COLUMNS.values()) + " |",
        "|" + "---|" * len(COLUMNS),
        *("| " + " | ".join(row[column] for column in COLUMNS) + " |" for row in rows),
        "",
        "Row `encoder` is the pretrained encoder alone: phoneme error rate of its CTC. Rows without a step of ours, "
        "such as whisper-base, are peers, measured on the same audio. Intervals: bootstrap over utterances; p: paired bootstrap, "
        "Holm (docs/evaluation.md).",
        "",
        f"Training jobs: {minutes:.0f} minutes in all (two beside each other), {memory:.1f} GiB of memory at most in one.",
        "",
        who_decided(read_table(results / "tables/cka.csv")),
        "",
        *(f"![{Path(name).stem}]({Path(name).name})" for name in FILES if name.endswith(".svg")),
    ]
    for name in [*FILES, *(name for name in OPTIONAL if (results / name).is_file())]:
        atomic_write(folder / Path(name).name, (results / name).read_bytes())
    atomic_write(folder / "README.md", "\n".join(lines) + "\n")
