"""The picture of which rule feeds which, drawn from what a finished run did.

    python -m entropy_asr.reporting.rulegraph runs/smoke --out docs/rulegraph.md

`snakemake --rulegraph` draws a plan, and in a plan nothing is known behind a checkpoint: alignment and IA-SFT would be missing.
The records of a finished run have all.
"""

from pathlib import Path

import typer

from entropy_asr.errors import InputError, friendly_exit
from entropy_asr.files import atomic_write
from entropy_asr.records import read_records

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
HEADER = """\
# Which rule feeds which

Drawn by `python -m entropy_asr.reporting.rulegraph` from the records of a finished smoke run; a test compares it. Left out: the
stages' own config files, which `stage_config` writes, and every arrow that a longer way implies. A rule that feeds itself
goes on from its last part or iteration.

"""


def records(folder: Path) -> dict[str, tuple[str, list[str]]]:
    """Rule and inputs of each output that a job made in a working directory.

    Raises:
        InputError: there are no records.
    """
    jobs = read_records(folder / "results")
    if not jobs:
        raise InputError(f"{folder / 'results'} has no records: no snakemake ran in {folder}")
    return {output: (job.rule, list(job.inputs)) for job in jobs for output in job.outputs}


def edges(made: dict[str, tuple[str, list[str]]]) -> list[tuple[str, str]]:
    """Which rule made an input of which, without those pairs that a longer way joins; the manifests of all corpora are one."""

    def name(rule: str) -> str:
        return "manifests" if rule.startswith("manifests_") else rule

    found = {(name(made[source][0]), name(rule)) for rule, inputs in made.values() for source in inputs if source in made}
    return sorted((source, target) for source, target in found if source == target or not _joined(source, target, found))


def _joined(source: str, target: str, pairs: set[tuple[str, str]]) -> bool:
    """Whether a way of two steps or more leads from one rule to another."""
    reached: set[str] = set()
    ahead = [b for a, b in pairs if a == source and b not in (source, target)]
    while ahead:
        here = ahead.pop()
        if (here, target) in pairs:
            return True
        reached.add(here)
        ahead += [b for a, b in pairs if a == here and b not in reached]
    return False


def page(folder: Path) -> str:
    """docs/rulegraph.md, with the graph in Mermaid's language."""
    lines = [f"  {source} --> {target}" for source, target in edges(records(folder))]
    return HEADER + "```mermaid\nflowchart TB\n" + "\n".join(lines) + "\n```\n"


@app.command()
@friendly_exit()
def write(
    folder: Path = typer.Argument(help="working directory of a finished run"),
    out: Path = typer.Option(Path("docs/rulegraph.md"), help="page to write"),
) -> None:
    """Draw the rule graph of a run."""
    atomic_write(out, page(folder))


if __name__ == "__main__":
    app()
