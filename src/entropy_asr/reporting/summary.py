"""The main table as nested JSON, for `dvc metrics show` and `dvc metrics diff`.

python -m entropy_asr.reporting.summary --main results/tables/main.csv --out results/tables/summary.json
"""

import csv
from pathlib import Path
from typing import Any

import typer

from entropy_asr.errors import friendly_exit
from entropy_asr.files import write_json

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def summary(main: Path) -> dict[str, Any]:
    """Arm, seed, test set: the error rate in percent under the name of its metric, and the real-time factor."""
    found: dict[str, Any] = {}
    with main.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            numbers = {f"{row['metric']}_percent": float(row["value_percent"])}
            if row["rtf"]:
                numbers["rtf"] = float(row["rtf"])
            found.setdefault(row["arm"], {}).setdefault(f"seed-{row['seed']}", {})[row["test_set"]] = numbers
    return found


@app.command()
@friendly_exit()
def write(
    main: Path = typer.Option(..., help="main.csv"),
    out: Path = typer.Option(..., help="JSON to write"),
) -> None:
    """Write the summary."""
    write_json(out, summary(main))


if __name__ == "__main__":
    app()
