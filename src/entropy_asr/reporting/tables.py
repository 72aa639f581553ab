"""The main table, tidy and for people: error rates with their uncertainty, and what each system cost; its rates in parts.

    python -m entropy_asr.reporting.tables main --scores results/metrics/score/ours/seed-1/english.json … \
        --significance results/tables/significance.csv \
        --provenance results/systems/ours/seed-1/joint_sft/provenance.json … --synthetic english --out …/main.csv
    python -m entropy_asr.reporting.tables breakdown --scores …/seed-1/english.json … --out …/breakdown.csv
    python -m entropy_asr.reporting.tables render --main …/main.csv --markdown …/main.md --latex …/main.tex
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import typer

from entropy_asr.errors import InputError, friendly_exit
from entropy_asr.evaluation.score import BREAKDOWNS
from entropy_asr.files import atomic_write, read_json, read_table, write_table
from entropy_asr.reporting.jobs import SHARED, Job, jobs_behind

LANGUAGES = {"WER": "en", "CER": "zh", "MER": "mixed", "PER": "phonemes"}
MAIN_COLUMNS = (
    "arm",
    "seed",
    "test_set",
    "language",
    "metric",
    "value_percent",
    "low_percent",
    "high_percent",
    "p_against_ours",
    "substitutions",
    "deletions",
    "insertions",
    "reference_tokens",
    "utterances",
    "parameters_encoder",
    "parameters_adaptor",
    "parameters_llm",
    "rtf",
    "decoding",
    "audio_hours_encoder",
    "audio_hours_llm_side",
    "llm_side_steps",
    "corpus_kind",
    "kind",
    "normalizer_version",
    "source",
)
BREAKDOWN_COLUMNS = (
    "arm",
    "seed",
    "test_set",
    "metric",
    "by",
    "group",
    "value_percent",
    "errors",
    "reference_tokens",
    "utterances",
    "corpus_kind",
)
_PEER_PATH = re.compile(r"score/peers/([^/]+)/([^/]+)\.json$")
_SCORE_PATH = re.compile(r"score/([^/]+)/seed-(\d+)/([^/]+)\.json$")


def main_rows(
    scores: Sequence[Path], provenance: Sequence[Path], synthetic: Sequence[str], significance: Sequence[dict[str, str]]
) -> list[dict[str, Any]]:
    """One row a score, with its interval, its difference to `ours` (corrected p of the paired bootstrap) and its cost.

    Raises:
        InputError: a score has no training behind it, or scores of text were made with different normalisers.
    """
    p_values = {(row["test_set"], row["against"]): row["p_bootstrap_holm"] for row in significance}
    _check_normalisers({path: read_json(path)["normalizer_version"] for path in scores})
    jobs = {Job.of(path): read_json(path) for path in provenance}
    rows = []
    for path in scores:
        arm, seed, test_set = _owner(path)
        score = read_json(path)
        row = {
            "arm": arm,
            "seed": seed,
            "test_set": test_set,
            "language": LANGUAGES[score["metric"]],
            "metric": score["metric"],
            **{f"{name}_percent": round(100 * score[name], 4) for name in ("value", "low", "high")},
            "p_against_ours": p_values.get((test_set, arm)),
            "rtf": None if score["rtf"] is None else round(score["rtf"], 5),
            "decoding": score["decoding"],
            "corpus_kind": _corpus_kind(test_set, synthetic),
            "kind": "measured",
        }
        same = ("substitutions", "deletions", "insertions", "reference_tokens", "utterances", "normalizer_version")
        cost = {} if seed is None else _cost(jobs, arm, seed, path)
        rows.append({**row, **{name: score[name] for name in same}, **cost})
    return sorted(rows, key=lambda row: (row["arm"] in SHARED, row["test_set"], row["seed"] is None, row["arm"], row["seed"]))


def published_rows(path: Path) -> list[dict[str, Any]]:
    """Others' figures as their papers print them: not measured here, often on other audio, with another normaliser."""
    return [
        {
            "arm": row["system"],
            "test_set": " ".join(filter(None, (row["test_set"], row["split"]))),
            **{name: row[name] for name in ("language", "metric", "value_percent")},
            "kind": "published",
            "source": "; ".join(filter(None, (row["source"], row["note"]))),
        }
        for row in read_table(path)
    ]


def breakdown_rows(scores: Sequence[Path], synthetic: Sequence[str]) -> list[dict[str, Any]]:
    """One row a score and a domain or speaker of it: the errors of `main.csv` in parts."""
    rows = []
    for path in scores:
        arm, seed, test_set = _owner(path)
        score = read_json(path)
        for kind in BREAKDOWNS:
            for group, part in score.get(f"per_{kind}", {}).items():
                rows.append(
                    {"arm": arm, "seed": seed, "test_set": test_set, "metric": score["metric"], "by": kind, "group": group}
                    | {"value_percent": None if part["value"] is None else round(100 * part["value"], 4)}
                    | {name: part[name] for name in ("errors", "reference_tokens", "utterances")}
                    | {"corpus_kind": _corpus_kind(test_set, synthetic)}
                )
    return sorted(rows, key=lambda row: (row["by"], row["test_set"], row["metric"], row["group"]))


def _corpus_kind(test_set: str, synthetic: Sequence[str]) -> str:
    """Of one test set, or of several that are counted together: `english+mandarin`."""
    names = [test_set] if test_set in synthetic else test_set.split("+")
    kinds = {"synthetic" if name in synthetic else "recorded" for name in names}
    return " and ".join(sorted(kinds))


def _owner(score: Path) -> tuple[str, int | None, str]:
    """System, seed and test set of a score; a peer was not trained here and has no seed."""
    if found := _PEER_PATH.search(score.as_posix()):
        return found[1], None, found[2]
    found = _SCORE_PATH.search(score.as_posix())
    if found is None:
        raise InputError(f"{score}: expected …/score/<system>/seed-<s>/<test set>.json, or …/score/peers/<peer>/<test set>.json")
    return found[1], int(found[2]), found[3]


def _check_normalisers(versions: dict[Path, str | None]) -> None:
    """Refuse to put scores of different normalisers into one table."""
    of_text = {path: version for path, version in versions.items() if version is not None}
    if len(set(of_text.values())) > 1:
        listed = "; ".join(f"{path}: version {version}" for path, version in of_text.items())
        raise InputError(f"scores of different normalisers do not belong in one table: {listed}; run the rule score again")


def _cost(jobs: dict[Job, dict[str, Any]], arm: str, seed: int, score: Path) -> dict[str, Any]:
    """Parameters, hours and steps behind one score.

    Pretraining's parts are one run and their hours are counted on from part to part: the last part's are the sum. The
    stages of an arm each count from zero and are added, and so are those that it shares with the arm that it goes on from.
    """
    joint = Job(arm, seed, "joint_sft")
    if arm not in SHARED and joint not in jobs:
        raise InputError(f"{score}: no provenance of arm {arm}, seed {seed}; give it with --provenance")
    behind = [job for job in jobs if (job.arm, job.seed) == (arm, seed)] if arm in SHARED else jobs_behind(jobs, arm, seed)
    pretraining = [job for job in behind if job.stage == "pretrain"]
    if not pretraining:
        raise InputError(f"{score}: no provenance of pretraining, seed {seed}; give it with --provenance")
    own = [jobs[job] for job in behind if job.stage in ("align", "ia_sft", "joint_sft")]
    if arm in SHARED:
        same_seed = (facts for job, facts in jobs.items() if job.seed == seed)
        known: dict[str, int] = next((facts["parameters"] for facts in same_seed if "parameters" in facts), {})
        parameters = {"encoder": known.get("encoder")}
    else:
        parameters = jobs[joint].get("parameters", {})
    return {
        **{f"parameters_{name}": parameters.get(name) for name in ("encoder", "adaptor", "llm")},
        "audio_hours_encoder": round(jobs[pretraining[-1]]["audio_hours"], 4),
        "audio_hours_llm_side": round(sum(facts["audio_hours"] for facts in own), 4),
        "llm_side_steps": sum(facts["end_step"] for facts in own),
    }


def headline_cells(rows: Sequence[dict[str, str]]) -> tuple[list[str], list[list[str]]]:
    """The main table for a paper: a row a system, a column a test set; columns, and cells as text.

    Of one seed the rate with its 95% interval over utterances, of several mean ± standard deviation; a star where the difference
    to `ours` has p < 0.05 (paired bootstrap, Holm). The encoder's phoneme errors have rows of their own.
    """
    tests = list(dict.fromkeys((row["test_set"], row["metric"]) for row in rows))
    systems = list(dict.fromkeys((row["arm"], row["kind"], row["corpus_kind"]) for row in rows))
    cells = []
    for arm, kind, speech in systems:
        line = [arm, f"{kind}, {speech} speech" if speech else kind]
        for test in tests:
            same = [row for row in rows if (row["arm"], row["test_set"], row["metric"]) == (arm, *test)]
            line.append(_cell(same) if same else "–")
        cells.append(line)
    return ["system", "figures", *(f"{test_set} {metric} %" for test_set, metric in tests)], cells


def _cell(same: Sequence[dict[str, str]]) -> str:
    values = [float(row["value_percent"]) for row in same]
    star = "*" if same[0]["p_against_ours"] and float(same[0]["p_against_ours"]) < 0.05 else ""
    if len(values) > 1:
        return f"{fmean(values):.2f} ± {stdev(values):.2f}{star}"
    interval = f" [{float(same[0]['low_percent']):.1f}, {float(same[0]['high_percent']):.1f}]" if same[0]["low_percent"] else ""
    return f"{values[0]:.2f}{star}{interval}"


def as_markdown(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [columns, ["---"] * len(columns), *cells]) + "\n"


def as_latex(columns: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A LaTeX tabular for the package booktabs."""

    def row(line: Sequence[str]) -> str:
        escaped = (re.sub(r"([%_&#$])", r"\\\1", cell).replace("±", r"$\pm$").replace("–", "--") for cell in line)
        return " & ".join(escaped) + r" \\"

    body = [row(columns), r"\midrule", *map(row, cells)]
    return "\n".join([rf"\begin{{tabular}}{{{'l' * len(columns)}}}", r"\toprule", *body, r"\bottomrule", r"\end{tabular}"]) + "\n"


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help=__doc__)


@app.command()
@friendly_exit()
def main(
    scores: list[Path] = typer.Option(..., help="…/score/<system>/seed-<s>/<test set>.json; repeat"),
    provenance: list[Path] = typer.Option(..., help="provenance.json of every training job; repeat"),
    significance: Path = typer.Option(..., help="significance.csv"),
    synthetic: list[str] = typer.Option([], help="test set whose speech was made by a machine; repeat"),
    published: Path | None = typer.Option(None, help="CSV of published results"),
    out: Path = typer.Option(..., help="CSV to write"),
) -> None:
    """Error rates with their uncertainty and what each system cost; published ones last."""
    rows = main_rows(scores, provenance, synthetic, read_table(significance))
    write_table(out, rows + (published_rows(published) if published else []), MAIN_COLUMNS)


@app.command()
@friendly_exit()
def breakdown(
    scores: list[Path] = typer.Option(..., help="…/score/<system>/seed-<s>/<test set>.json; repeat"),
    synthetic: list[str] = typer.Option([], help="test set whose speech was made by a machine; repeat"),
    out: Path = typer.Option(..., help="CSV to write"),
) -> None:
    """The error rates of each domain and each speaker."""
    write_table(out, breakdown_rows(scores, synthetic), BREAKDOWN_COLUMNS)


@app.command()
@friendly_exit()
def render(
    main: Path = typer.Option(..., help="main.csv"),
    markdown: Path = typer.Option(..., help="to write"),
    latex: Path = typer.Option(..., help="to write"),
) -> None:
    """The main table for a page and for a paper."""
    columns, cells = headline_cells(read_table(main))
    atomic_write(markdown, as_markdown(columns, cells))
    atomic_write(latex, as_latex(columns, cells))


if __name__ == "__main__":
    app()
