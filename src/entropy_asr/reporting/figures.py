"""The figures of a run, each drawn from one table and nothing else.

    python -m entropy_asr.reporting.figures --main results/tables/main.csv --curves results/tables/curves.csv \
        --cka results/tables/cka.csv --timeline results/tables/timeline.csv --hallucination results/tables/hallucination.csv \
        --synthetic --out results/figures

``curves`` the training loss of each stage; ``cka`` when pretraining handed its encoder over; ``timeline`` what ran beside
what; ``errors`` the error rates; ``hallucination`` how often something is made up. Each as SVG and PNG. The same tables give
the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

from entropy_asr.errors import friendly_exit
from entropy_asr.files import atomic_write, read_table
from entropy_asr.reporting.jobs import ENCODER, LM, SHARED, overlap_minutes, parse_time

if TYPE_CHECKING:
    from datetime import datetime

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[dict[str, str]]

STYLE = Path(__file__).with_name("style.mplstyle")
FIGURES = ("curves", "cka", "timeline", "errors", "hallucination")
STAGES = {
    "lm": "Language model (text only)",
    "pretrain": "Encoder pretraining (CR-CTC)",
    "align": "Alignment",
    "ia_sft": "IA-SFT, all iterations",
    "joint_sft": "Late joint SFT",
}


class Look(NamedTuple):
    """How one owner of jobs is drawn, everywhere the same; dash and hatch say it without colour."""

    color: str
    hatch: str
    dash: Any


_SHARED = {
    ENCODER: Look("#4fa3a0", "...", "-"),
    "encoder_character": Look("#b5651d", "--", "--"),
    "encoder_attention": Look("#5c7cbe", "||", "-."),
    LM: Look("#8a94a0", "", "-"),
    "small_lm": Look("#bcc4cc", "//", "--"),
}
_ARMS = (
    Look("#16324f", "", "-"),
    Look("#d1702b", "///", "--"),
    Look("#7a5195", "xx", "-."),
    Look("#a3b18a", "\\\\", ":"),
    Look("#9a1f40", "++", (0, (6, 2))),
    Look("#d9b310", "oo", (0, (1, 2))),
    Look("#3d3d3d", "--", (0, (4, 1, 1, 1, 1, 1))),
)
_IN_A_PANEL = 4  # entries of a legend
_LOG_FROM = 5.0  # a loss that falls by less than this factor is clearer on a linear axis


def save(draw: Callable[[], Figure], stem: Path) -> None:
    """Draw in the house style and write ``<stem>.svg`` and ``<stem>.png``, without a date in them."""
    import matplotlib.pyplot as plt

    with plt.style.context(STYLE):
        figure = draw()
        for kind, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, metadata=metadata)
            atomic_write(stem.with_suffix(f".{kind}"), buffer.getvalue())
        plt.close(figure)


def arms_of(rows: Rows) -> list[str]:
    """The arms of a table, `ours` first."""
    return sorted({row["arm"] for row in rows} - _SHARED.keys(), key=lambda arm: (arm != "ours", arm))


def look(owner: str, rows: Rows) -> Look:
    """The look of an arm, of the encoder or of the language model."""
    return _SHARED.get(owner) or _ARMS[arms_of(rows).index(owner) % len(_ARMS)]


def add_legend(ax: Axes, handles: Sequence[Any], labels: Sequence[str], loc: str) -> None:
    """A legend in the panel, or, of many entries, below the figure, where it hides nothing."""
    if len(labels) > _IN_A_PANEL:
        ax.figure.legend(handles, labels, loc="outside lower center", ncols=4)
    elif labels:
        ax.legend(handles, labels, loc=loc)


def draw_curves(rows: Rows, speech: str) -> Figure:
    """Training loss, a panel a stage, and points of the loss on development data.

    IA-SFT's iterations follow each other; a dotted line at each encoder swap.
    """
    import matplotlib.pyplot as plt

    found = dict.fromkeys((row["stage"], row["loss_unit"]) for row in rows)  # losses in one unit share a panel
    stages = sorted(found, key=lambda panel: (list(STAGES).index(panel[0]), panel[1]))
    columns = 3 if len(stages) > 4 else 2
    lines = max(1, -(-len(stages) // columns))
    figure, grid = plt.subplots(lines, columns, figsize=(9, 2.7 * lines), squeeze=False)
    axes = list(grid.flat)
    for (stage, unit), ax in zip(stages, axes[: len(stages)], strict=True):
        chosen = [row for row in rows if (row["stage"], row["loss_unit"]) == (stage, unit)]
        for (arm, _), line in _by(chosen, "arm", "seed"):
            drawn = look(arm, rows)
            steps, swaps = _continuous_steps(line)
            label = None if arm in (ENCODER, LM) else arm
            losses = [float(row["loss"]) for row in line]
            ax.plot(steps, losses, color=drawn.color, linestyle=drawn.dash, label=label)
            valid = [(step, float(row["valid_loss"])) for step, row in zip(steps, line, strict=True) if row.get("valid_loss")]
            ax.plot([step for step, _ in valid], [loss for _, loss in valid], "o", color=drawn.color, markersize=3)
            if stage in ("ia_sft", "pretrain"):
                for swap in swaps:
                    ax.axvline(swap, color="#5b6672", linewidth=0.9, linestyle=":")
        values = [float(row[name]) for row in chosen for name in ("loss", "valid_loss") if row.get(name)]
        if min(values) > 0 and max(values) / min(values) > _LOG_FROM:
            ax.set_yscale("log")
        heard = "" if stage == "lm" else f"\n{speech}"
        title = "Encoder pretraining (attention)" if unit == "nats/unit" else STAGES[stage]
        ax.set(title=title, xlabel=f"optimiser steps{heard}", ylabel=f"loss, {unit}")
    for ax in axes[len(stages) :]:
        ax.set_axis_off()
    labelled = {label: h for ax in axes for h, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    handles = {arm: labelled[arm] for arm in (*arms_of(rows), *_SHARED) if arm in labelled}
    host = axes[-1] if len(stages) < len(axes) else axes[len(stages) - 1]
    loc = "center" if host is not axes[len(stages) - 1] else "best"
    add_legend(host, list(handles.values()), list(handles), loc)
    return figure


def _continuous_steps(line: Rows) -> tuple[list[int], list[int]]:
    """Steps along a sequence of jobs, and where the next job begins. Jobs that count from 1 again are put in a row."""
    steps, borders = [], []
    offset = 0
    for position, row in enumerate(line):
        step = int(row["step"])
        if position and row["index"] != line[position - 1]["index"]:
            if step <= int(line[position - 1]["step"]):
                offset = steps[-1]
            borders.append(steps[-1])
        steps.append(offset + step)
    return steps, borders


def draw_cka(rows: Rows, speech: str) -> Figure:
    """CKA to the encoder that was handed over last; a part ends, and the encoder is swapped, where it falls too low."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(8, 3.6))
    settings = rows[0] if rows else {"threshold": "", "warmup_steps": ""}
    seeds = list(dict.fromkeys(row["seed"] for row in rows))
    shown: set[str] = set()
    for (encoder, seed, _), line in _by(rows, "encoder", "seed", "part"):
        color, dash = _ARMS[seeds.index(seed) % len(_ARMS)].color, _SHARED[encoder].dash
        steps, values = [int(row["step"]) for row in line], [float(row["cka"]) for row in line]
        name = f"seed {seed}" if encoder == ENCODER else f"{encoder.removeprefix('encoder_')}, seed {seed}"
        ax.plot(steps, values, linestyle=dash, marker="o", color=color, label=None if name in shown else name)
        shown.add(name)
    swaps = [row for row in rows if row["swapped"] == "true" and row["encoder"] == ENCODER]
    for row in swaps:
        step, value = int(row["step"]), float(row["cka"])
        ax.axvline(step, color="#8a94a0", linewidth=0.9, linestyle=":")
        color = _ARMS[seeds.index(row["seed"]) % len(_ARMS)].color if len(seeds) > 1 else "#d1702b"
        ax.plot([step], [value], "v", color=color, markeredgecolor="black", markersize=9, zorder=4)
        if row["seed"] != seeds[0]:  # the words would lie on each other
            continue
        label = (f"swap {row['part']}" if int(row["part"]) else "alignment") + f"\nstep {step}"
        ax.annotate(label, (step, value), xytext=(7, -4), textcoords="offset points", fontsize=8, va="top")
    if settings["threshold"]:
        threshold = float(settings["threshold"])
        ax.axhline(threshold, color="black", linewidth=1.1, linestyle="--", label=f"threshold {threshold:g}")
    if settings["warmup_steps"]:
        end = int(settings["warmup_steps"])
        ax.axvspan(0, end, facecolor="#e3e7eb", hatch="///", edgecolor="#c3cad1", linewidth=0, label=f"warm-up, {end} steps")
    if not rows:
        ax.text(0.5, 0.5, "no CKA measurement in this run", transform=ax.transAxes, ha="center")
    ax.margins(y=0.18)
    ax.set_xlim(left=0)
    ax.set(xlabel=f"pretraining steps\n{speech}", ylabel="linear CKA to the reference encoder")
    ax.set_title("Pretraining hands its encoder over when it has changed enough")
    if ax.get_legend_handles_labels()[0]:
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def draw_timeline(rows: Rows, speech: str) -> Figure:
    """What ran when: a row a job, pretraining above, the arms below; the band is what ran at the same time."""
    import matplotlib.pyplot as plt

    seeds = sorted({int(row["seed"]) for row in rows if row["seed"]})
    shown = {seed: _timeline_order([row for row in rows if row["seed"] in ("", str(seed))]) for seed in seeds}
    heights = [max(3, len(lines)) for lines in shown.values()]
    figure, grid = plt.subplots(
        len(seeds), figsize=(9, 0.9 + 0.27 * sum(heights)), sharex=True, squeeze=False, height_ratios=heights
    )
    last = 0.0
    for ax, (seed, lines) in zip(grid.flat, shown.items(), strict=True):
        origin = min(parse_time(row["started"]) for row in lines)  # a seed may run a day after the one before

        def minutes(text: str, origin: datetime = origin) -> float:
            return (parse_time(text) - origin).total_seconds() / 60

        for place, row in enumerate(lines):
            drawn = look(row["arm"], rows)
            begin, end = minutes(row["started"]), minutes(row["ended"])
            colors = {"color": drawn.color, "edgecolor": "white", "hatch": drawn.hatch}
            ax.barh(place, max(end - begin, 1e-3), left=begin, height=0.72, **colors)
            ax.text(end, place, f" {end - begin:.1f} min", va="center", fontsize=7, color="#2b333b")
        ax.set_yticks(range(len(lines)), [row["job"] for row in lines])
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        ax.set_title(f"Seed {seed}" if len(seeds) > 1 else "What ran when")
        both = [r for r in lines if (r["arm"], r["stage"], r["index"]) in ((ENCODER, "pretrain", "1"), ("ours", "ia_sft", "0"))]
        shared = overlap_minutes(lines, seed)
        if shared:
            begin = max(minutes(row["started"]) for row in both)
            label = f"IA-SFT iteration 0 beside pretraining part 1: {shared:.1f} min"
            ax.axvspan(begin, begin + shared, facecolor="#f2d9c4", edgecolor="#d1702b", linewidth=0.8, zorder=0, label=label)
            ax.legend(loc="upper right")
        last = max(last, *(minutes(row["ended"]) for row in lines))
    grid.flat[-1].set_xlim(0, 1.1 * last)
    grid.flat[-1].set_xlabel(f"minutes since the first job{' of the seed' if len(seeds) > 1 else ''} started; {speech}")
    return figure


def _timeline_order(rows: Rows) -> list[dict[str, str]]:
    """Language model, pretraining parts, then each arm; `ours` first, it runs beside pretraining."""
    stages = list(STAGES)
    first = {"ours": len(SHARED)} | {name: place for place, name in enumerate(SHARED)}
    return sorted(rows, key=lambda r: (first.get(r["arm"], len(first)), r["arm"], stages.index(r["stage"]), int(r["index"])))


def draw_errors(rows: Rows, speech: str) -> Figure:
    """Error rates by test set and arm: of one seed with its 95% interval over utterances, of several their mean and a dot each.

    What encoders hear alone, phonemes or text, has its own panel.
    """
    import matplotlib.pyplot as plt

    rows = [row for row in rows if row["kind"] == "measured"]
    systems, encoder = [r for r in rows if r["arm"] not in SHARED], [r for r in rows if r["arm"] in SHARED]
    shown = [part for part in (systems, encoder) if part]
    sizes = [len({(row["arm"], row["test_set"]) for row in part}) + 1 for part in shown]
    figure, grid = plt.subplots(1, len(shown), figsize=(8, 3.6), squeeze=False, width_ratios=sizes)
    for ax, part in zip(grid.flat, shown, strict=True):
        _bars(ax, part, rows)
        title = "Speech-LLM, after joint SFT" if part is systems else "Encoder alone"
        ax.set(title=title, ylabel="error rate, %", xlabel=_speech_of(part, speech))
    return figure


def _bars(ax: Axes, rows: Rows, everything: Rows) -> None:
    tests = list(dict.fromkeys((row["test_set"], row["metric"]) for row in rows))
    arms = arms_of(rows) or [name for name in SHARED if name in {row["arm"] for row in rows}]
    width = 0.8 / len(arms)
    for number, arm in enumerate(arms):
        drawn = look(arm, everything)
        for place, test in enumerate(tests):
            same = [r for r in rows if (r["arm"], r["test_set"], r["metric"]) == (arm, *test)]
            if not same:
                continue
            chosen = [float(r["value_percent"]) for r in same]
            x = place + (number - (len(arms) - 1) / 2) * width
            mean = fmean(chosen)
            bar = {"color": drawn.color, "edgecolor": "white", "hatch": drawn.hatch}
            named = arm in ax.get_legend_handles_labels()[1]
            ax.bar(x, mean, width * 0.92, label=None if named else arm, **bar)
            ends = [(float(r["low_percent"]), float(r["high_percent"])) for r in same]
            top = max(chosen)
            if len(chosen) == 1:
                ((low, top),) = ends
                ax.errorbar(x, mean, [[mean - low], [top - mean]], color="black", capsize=3, linewidth=1)
            if len(chosen) > 1:
                ax.plot([x] * len(chosen), chosen, "o", color="white", markeredgecolor="black", linestyle="none")
            turned = 90 if len(arms) > _IN_A_PANEL else 0
            shown = {"textcoords": "offset points", "ha": "center", "fontsize": 8, "rotation": turned}
            ax.annotate(f"{mean:.1f}", (x, top), xytext=(0, 3), **shown)
    ax.set_xticks(range(len(tests)), [f"{test_set}\n{metric}" for test_set, metric in tests])
    ax.set_xlim(-0.6, len(tests) - 0.4)
    ax.margins(y=0.15)
    ax.grid(axis="x", visible=False)
    if len(arms) > 1:
        add_legend(ax, *ax.get_legend_handles_labels(), loc="upper right")


def draw_hallucination(rows: Rows, speech: str) -> Figure:
    """Rate of hallucinations by condition, a panel a test set, with the 95% interval; of several seeds the means."""
    import matplotlib.pyplot as plt

    tests, arms = list(dict.fromkeys(row["test_set"] for row in rows)), arms_of(rows)
    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    height = 0.9 + 0.16 * len(conditions) * len(arms) + 0.1 * len(conditions)
    figure, grid = plt.subplots(1, len(tests), figsize=(9, height), sharey=True, squeeze=False)
    for ax, test_set in zip(grid.flat, tests, strict=True):
        for number, arm in enumerate(arms):
            drawn = look(arm, rows)
            for place, condition in enumerate(conditions):
                same = [r for r in rows if (r["test_set"], r["arm"], r["condition"]) == (test_set, arm, condition)]
                rate, low, high = (fmean(float(r[f"{name}_percent"]) for r in same) for name in ("rate", "low", "high"))
                y = place + (number - (len(arms) - 1) / 2) * 0.8 / len(arms)
                bar = {"color": drawn.color, "edgecolor": "white", "hatch": drawn.hatch}
                ax.barh(y, rate, 0.74 / len(arms), label=arm if place == 0 else None, **bar)
                ax.errorbar(rate, y, xerr=[[rate - low], [high - rate]], color="black", capsize=2, linewidth=0.8)
        ax.set_yticks(range(len(conditions)), [name.replace("_", " ").replace("db", " dB") for name in conditions])
        ax.set(title=test_set, xlabel=f"hallucinated transcripts, %\n{_speech_of(rows, speech)}", xlim=(0, 103))
        ax.grid(axis="y", visible=False)
    grid.flat[0].invert_yaxis()
    if len(arms) > 1:
        add_legend(grid.flat[-1], *grid.flat[-1].get_legend_handles_labels(), loc="upper right")
    return figure


def _speech_of(rows: Rows, otherwise: str) -> str:
    """What the test sets of these rows are: the table says it, and it wins over what training speech is."""
    kinds = sorted({row["corpus_kind"] for row in rows})
    return " and ".join(f"{kind} speech" for kind in kinds) if kinds else otherwise


def _by(rows: Rows, *names: str) -> list[tuple[tuple[str, ...], list[dict[str, str]]]]:
    """Rows in groups of equal cells, both in the order of the table."""

    def key(row: dict[str, str]) -> tuple[str, ...]:
        return tuple(row[name] for name in names)

    order = {value: place for place, value in enumerate(dict.fromkeys(key(row) for row in rows))}
    return [(value, list(group)) for value, group in groupby(sorted(rows, key=lambda r: order[key(r)]), key=key)]


def draw_all(tables: dict[str, Path], synthetic: bool, out: Path) -> None:
    """All figures. tables: main, curves, cka, timeline, hallucination."""
    import matplotlib

    matplotlib.use("Agg")
    speech = "trained on synthetic speech" if synthetic else "trained on recorded speech"
    drawings: dict[str, tuple[Any, str]] = {
        "curves": (draw_curves, "curves"),
        "cka": (draw_cka, "cka"),
        "timeline": (draw_timeline, "timeline"),
        "errors": (draw_errors, "main"),
        "hallucination": (draw_hallucination, "hallucination"),
    }
    for name in FIGURES:
        draw, table = drawings[name]
        rows = read_table(tables[table])
        save(lambda draw=draw, rows=rows: draw(rows, speech), out / name)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@friendly_exit()
def main(
    main: Path = typer.Option(..., help="main.csv"),
    curves: Path = typer.Option(..., help="curves.csv"),
    cka: Path = typer.Option(..., help="cka.csv"),
    timeline: Path = typer.Option(..., help="timeline.csv"),
    hallucination: Path = typer.Option(..., help="hallucination.csv"),
    synthetic: bool = typer.Option(False, help="the training speech was made by a machine"),
    out: Path = typer.Option(..., help="folder to write"),
) -> None:
    """Draw every figure."""
    tables = {"main": main, "curves": curves, "cka": cka, "timeline": timeline, "hallucination": hallucination}
    draw_all(tables, synthetic, out)


if __name__ == "__main__":
    app()
