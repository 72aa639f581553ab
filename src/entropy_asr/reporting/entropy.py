"""The entropy-allocation metrics of a run as one tidy table, and the figures that are drawn from it.

    python -m entropy_asr.reporting.entropy table --encoders results/metrics/encoder/phoneme/seed-1/part-0.json … \
        --systems results/metrics/system/ours/seed-1.json … --drift results/metrics/drift/seed-1.json … \
        --out results/tables/entropy.csv --spectrum results/tables/spectrum.csv
    python -m entropy_asr.reporting.entropy figures --entropy …/entropy.csv --spectrum …/spectrum.csv --out results/figures

A row is one metric of one checkpoint.  `arm` is `encoder` for the parts of phoneme pretraining, which the arms of a seed share
(`encoder_character`, `encoder_attention` for the other kinds); `encoder` says of every checkpoint which pretraining it comes
from; `layer` 0 is what enters the first block; `compared_with` is the later checkpoint of a CKA.  `low` and `high` are 95%
intervals over utterances, and empty where there is none.  Rows of the stage `peer` are of another recogniser's encoder: `arm` and
`encoder` are its name; it has no seed, and no `layer` where it gives its output alone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import typer

from entropy_asr.config import ENCODERS
from entropy_asr.errors import InputError, friendly_exit
from entropy_asr.files import read_json, read_table, write_table
from entropy_asr.reporting.figures import _by, add_legend, arms_of, look, save
from entropy_asr.reporting.jobs import ENCODER, SHARED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Sequence[dict[str, str]]

COLUMNS = (
    "arm", "seed", "encoder", "stage", "part", "layer", "metric", "language", "probe", "compared_with", "unit", "value",
    "low", "high", "seed_std", "n", "n_unit", "corpus_kind",
)  # fmt: skip
SPECTRUM_COLUMNS = ("arm", "seed", "stage", "part", "layer", "rank", "variance_share", "cumulative_share", "corpus_kind")
FIGURES = ("shift", "drift", "spectrum", "allocation")
CONVENTIONAL = ("no_ia_sft", "joint_only", "aed")  # arms whose encoder the whole joint training pulls at
PEER = "peer"  # stage of the rows of other recognisers' encoders
NO_VARIANCE = 1e-9  # share of the total: rounding

_ENCODER_PATH = re.compile(r"encoder/([^/]+)/seed-(\d+)/(part-(\d+)|joint_sft)\.json$")
_PEER_PATH = re.compile(r"encoder/peers/([^/]+)\.json$")
_SEED_PATH = re.compile(r"(?:system/([^/]+)|drift)/seed-(\d+)\.json$")


def _checkpoint(owner: str, name: str) -> dict[str, Any]:
    """arm, stage and part of a checkpoint as `<owner>/<part-i or joint_sft>` names it."""
    if name == "joint_sft":
        return {"arm": owner, "stage": "joint_sft", "part": None}
    return {"arm": ENCODERS[owner], "stage": "pretrain", "part": int(name.removeprefix("part-"))}


def _measured(path: Path) -> dict[str, Any]:
    """arm, stage, part and seed of a file of encoder metrics, by its place."""
    if peer := _PEER_PATH.search(path.as_posix()):
        return {"arm": peer[1], "stage": PEER, "part": None, "seed": None}
    found = _ENCODER_PATH.search(path.as_posix())
    if found is None:
        raise InputError(
            f"{path}: expected …/encoder/<objective or arm>/seed-<s>/<part-i or joint_sft>.json, or …/peers/<name>.json"
        )
    return {**_checkpoint(found[1], found[3]), "seed": int(found[2])}


def encoder_rows(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of one encoder's NSE, PAI and CSAI; and of the spectrum of its output."""
    who = _measured(path)
    facts = read_json(path)
    who["corpus_kind"] = facts["corpus_kind"]
    layers = len(facts["nse"])
    rows = []
    for item in facts["nse"]:
        same = {**who, "layer": _layer(item, layers), "language": "all", "unit": "ratio", "n": item["frames"], "n_unit": "frames"}
        rows.append({**same, "metric": "nse", "value": item["value"], "low": item["low"], "high": item["high"]})
        rows.append({**same, "metric": "nse_bias", "value": item["bias"]})
    for metric, unit in (("pai", "frame"), ("csai", "unit")):
        for item in facts[metric]:
            same = {**who, "layer": _layer(item, layers), "language": item["language"], "probe": item["family"]}
            same |= {"n": item["samples"], "n_unit": f"{unit}s"}
            interval = {name: item[name] for name in ("value", "low", "high", "seed_std")}
            rows.append({**same, "metric": metric, "unit": "ratio", **interval})
            control = {"value": item["control"], "low": item["control_low"], "high": item["control_high"]}
            rows.append({**same, "metric": f"{metric}_control", "unit": "ratio", **control})
            rows.append({**same, "metric": f"{metric}_nats", "unit": f"nats/{unit}", "value": item["nats"]})
            rows.append({**same, "metric": f"{metric}_entropy", "unit": f"nats/{unit}", "value": item["entropy"]})
    output = facts["nse"][-1]
    total, spectrum = 0.0, []
    for rank, share in enumerate(output["spectrum"], 1):
        total += share
        spectrum.append(
            {**who, "layer": _layer(output, layers), "rank": rank, "variance_share": share, "cumulative_share": total}
        )
    return rows, spectrum


def _layer(item: dict[str, Any], layers: int) -> int | None:
    """None where an encoder gives one layer alone: 0 would say that this is what enters its first block."""
    return item["layer"] if layers > 1 else None


def _seed_of(path: Path) -> tuple[str | None, int]:
    found = _SEED_PATH.search(path.as_posix())
    if found is None:
        raise InputError(f"{path}: expected …/system/<arm>/seed-<s>.json or …/drift/seed-<s>.json")
    return found[1], int(found[2])


def system_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of one system's EER, LER and AR, and of the entropies behind them."""
    arm, seed = _seed_of(path)
    facts = read_json(path)
    rows = []
    for language, item in facts["allocation"].items():
        same = {"arm": arm, "seed": seed, "stage": "joint_sft", "language": language, "probe": "linear"}
        same |= {"n": item["tokens"], "n_unit": "tokens", "corpus_kind": facts["corpus_kind"]}
        for name in ("eer", "ler", "ar"):
            low, high = item[f"{name}_interval"] or (None, None)
            rows.append({**same, "metric": name, "unit": "ratio", "value": item[name], "low": low, "high": high})
        low, high = item["control_eer_interval"]
        rows.append({**same, "metric": "eer_control", "unit": "ratio", "value": item["control_eer"], "low": low, "high": high})
        for metric, name in (("h0", "prior"), ("h1", "probe"), ("h2", "system")):
            rows.append({**same, "metric": metric, "unit": "nats/token", "value": item[name]})
    return rows


def drift_rows(path: Path, corpus_kind: str) -> list[dict[str, Any]]:
    """Rows of CKA between two checkpoints."""
    _, seed = _seed_of(path)
    rows = []
    for item in read_json(path):
        row = {**_checkpoint(*item["first"].split("/")), "seed": seed, "layer": item["layer"], "metric": "cka", "unit": "ratio"}
        row |= {"compared_with": item["second"], "value": item["cka"], "low": item["low"], "high": item["high"]}
        row |= {"n": item["frames"], "n_unit": "frames"}
        rows.append({**row, "language": "all", "corpus_kind": corpus_kind})
    return rows


def without_peers(rows: Rows) -> list[dict[str, str]]:
    """The rows of what this run trained."""
    return [row for row in rows if row["stage"] != PEER]


def _chosen(rows: Rows, **cells: str) -> list[dict[str, str]]:
    return [row for row in rows if all(row[name] == cell for name, cell in cells.items())]


def encoder_of(rows: Rows, arm: str) -> str:
    """The pretraining that an arm starts from, as the table says it."""
    return next(row["encoder"] for row in rows if row["arm"] == arm)


def pretraining_line(rows: Rows, metric: str, seed: str, encoder: str) -> list[dict[str, str]]:
    """The rows of the parts of a pretraining, in order: the output layer, all languages, linear probe."""
    return sorted(_outputs(rows, metric, seed, arm=encoder), key=lambda row: int(row["part"]))


def before_and_after(rows: Rows, metric: str, seed: str, arm: str) -> tuple[dict[str, str] | None, dict[str, str] | None]:
    """The row of the last pretraining part that an arm starts from, and that of the arm after joint SFT."""
    before = pretraining_line(rows, metric, seed, encoder_of(rows, arm))
    after = _outputs(rows, metric, seed, arm=arm)
    return before[-1] if before else None, after[0] if after else None


def _outputs(rows: Rows, metric: str, seed: str, arm: str) -> list[dict[str, str]]:
    rows = [r for r in _chosen(rows, metric=metric, seed=seed, language="all") if r["probe"] in ("", "linear") and r["value"]]
    last = max((int(row["layer"]) for row in rows), default=0)
    return _chosen(rows, layer=str(last), arm=arm)


def shifts(rows: Rows) -> list[dict[str, Any]]:
    """What joint SFT did to the encoder's output, a row a seed and arm: each metric before and after, drift, EER, LER, AR."""
    rows, found = without_peers(rows), []
    for seed in dict.fromkeys(row["seed"] for row in rows):
        for arm in arms_of(rows):
            item: dict[str, Any] = {"seed": seed, "arm": arm}
            for metric in ("nse", "pai", "csai"):
                before, after = before_and_after(rows, metric, seed, arm)
                item[metric] = _compared(before, after) if before and after else None
            cka = _chosen(rows, metric="cka", seed=seed, arm=encoder_of(rows, arm), compared_with=f"{arm}/joint_sft")
            last = max(cka, key=lambda row: (int(row["part"]), int(row["layer"])), default=None)
            item["cka"], item["drift"] = float(last["value"]) if last else None, last
            for metric in ("eer", "ler", "ar"):
                item[metric] = next(iter(_chosen(rows, arm=arm, seed=seed, metric=metric, language="all")), None)
            found.append(item)
    return found


def _compared(before: dict[str, str], after: dict[str, str]) -> dict[str, Any]:
    """Both values with their intervals, and whether these are apart: then a change is shown, else it is not."""
    apart = _apart(before, after)
    change = float(after["value"]) - float(before["value"])
    said = ("rises" if change > 0 else "falls") if apart else "no change is shown"
    return {"before": before, "after": after, "change": change, "said": said}


def _apart(first: dict[str, str], second: dict[str, str]) -> bool:
    """Whether two values have intervals that do not overlap."""
    known = all(row[name] for row in (first, second) for name in ("low", "high"))
    return known and (float(second["low"]) > float(first["high"]) or float(second["high"]) < float(first["low"]))


def expectation(found: list[dict[str, Any]]) -> list[str]:
    """What the paper's Figure 1 leads one to expect of `ours`, seed by seed, and what was measured.

    Intervals decide. Where they overlap, or there are none, nothing is called met or not met.
    """
    sentences = []
    for item in found:
        same = [other for other in found if other["seed"] == item["seed"] and other["cka"] is not None]
        others = [other for other in same if other["arm"] in CONVENTIONAL]
        if item["arm"] != "ours" or item["cka"] is None or item["pai"] is None:
            continue
        pai = item["pai"]
        kept = "not met" if pai["said"] == "falls" else "met" if pai["said"] == "rises" else "no change is shown"
        sentences.append(
            f"Seed {item['seed']}, the recipe keeps PAI high in joint SFT: {kept} "
            f"({pai['change']:+.3f}; before {_interval(pai['before'])}, after {_interval(pai['after'])})."
        )
        for other in others:
            less = "no difference is shown"
            if _apart(item["drift"], other["drift"]):
                less = "met" if item["cka"] > other["cka"] else "not met"
            sentences.append(
                f"Seed {item['seed']}, its encoder drifts less than that of {other['arm']}: {less} "
                f"(CKA {_interval(item['drift'])}, against {_interval(other['drift'])})."
            )
    return sentences


def _interval(row: dict[str, str]) -> str:
    shown = f"{float(row['value']):.3f}"
    if not row["low"]:
        return f"{shown}, no interval can be given"
    return f"{shown}, 95% interval {float(row['low']):.3f} to {float(row['high']):.3f}"


def _error_bar(row: dict[str, str]) -> list[list[float]] | None:
    if not row["low"]:
        return None
    value = float(row["value"])
    return [[max(0.0, value - float(row["low"]))], [max(0.0, float(row["high"]) - value)]]


def draw_shift(rows: Rows) -> Figure:
    """NSE, PAI and CSAI of the encoder's output through pretraining and, arm by arm, after joint SFT; peers as a level."""
    import matplotlib.pyplot as plt

    peers, rows = _chosen(rows, stage=PEER, language="all"), without_peers(rows)
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4))
    arms, encoders, first = arms_of(rows), _encoders(rows), rows[0]["seed"]
    for ax, metric in zip(axes, ("nse", "pai", "csai"), strict=True):
        lines = {
            (seed, encoder): pretraining_line(rows, metric, seed, encoder)
            for seed in dict.fromkeys(row["seed"] for row in rows)
            for encoder in encoders
        }
        parts = max(map(len, lines.values()))
        for (seed, encoder), line in lines.items():
            drawn = look(encoder, rows)
            places, values = [int(row["part"]) for row in line], [float(row["value"]) for row in line]
            label = "pretraining" if encoder == ENCODER else f"{encoder.removeprefix('encoder_')} pretraining"
            style = {"linestyle": drawn.dash, "color": drawn.color, "marker": "o"}
            ax.plot(places, values, label=label if seed == first else None, **style)
            for row in line:
                ax.errorbar(int(row["part"]), float(row["value"]), _error_bar(row), color=drawn.color, capsize=2, linewidth=0.9)
            for number, arm in enumerate(arms):
                before, row = before_and_after(rows, metric, seed, arm)
                if before is None or row is None or encoder_of(rows, arm) != encoder:
                    continue
                drawn, x = look(arm, rows), parts + 0.3 * number
                style = {"linestyle": drawn.dash, "color": drawn.color, "linewidth": 1.0}
                ax.plot([int(before["part"]), x], [float(before["value"]), float(row["value"])], **style)
                ax.errorbar(x, float(row["value"]), _error_bar(row), color=drawn.color, capsize=2, linewidth=0.9)
                marker = "sD^vP*X"[number % 7]
                ax.plot([x], [float(row["value"])], marker, color=drawn.color, label=arm if seed == first else None)
        for (peer,), same in _by(
            [r for r in peers if r["metric"] == metric and r["probe"] in ("", "linear") and r["value"]], "arm"
        ):
            ax.axhline(float(same[-1]["value"]), color="#8a94a0", linestyle=(0, (1, 1)), linewidth=1.0, label=peer)
        ticks = [*range(parts), parts + 0.15 * (len(arms) - 1)]
        ax.set_xticks(ticks, [*(f"part {part}" for part in range(parts)), "after\njoint SFT"])
        ax.set(title=metric.upper(), ylabel=f"{metric.upper()}, share of 1")
        ax.grid(axis="x", visible=False)
    axes[1].set_xlabel(_speech(rows))
    add_legend(axes[0], *axes[0].get_legend_handles_labels(), loc="best")
    return figure


def _encoders(rows: Rows) -> list[str]:
    """The kinds of pretraining in a table."""
    return [name for name in SHARED if name in {row["arm"] for row in rows}]


def draw_drift(rows: Rows) -> Figure:
    """CKA between the outputs of all checkpoints of the first seed; and of each layer, before against after joint SFT."""
    import matplotlib.pyplot as plt

    seed = rows[0]["seed"]
    cka = _chosen(rows, metric="cka", seed=seed)
    last = str(max((int(row["layer"]) for row in cka), default=0))
    final = {name: max(int(row["part"]) for row in _chosen(rows, arm=name)) for name in _encoders(rows)}
    names = list(dict.fromkeys(name for row in _chosen(cka, layer=last) for name in (_name(row), _later(row))))
    if len(final) > 1:  # too many for one map: of each pretraining its last part
        ends = {_name({"arm": name, "part": str(part), "stage": "pretrain"}) for name, part in final.items()}
        names = [name for name in names if name in ends or name in arms_of(rows)]
    figure, (ax, lines) = plt.subplots(1, 2, figsize=(10, 4), width_ratios=[1.1, 1])
    grid = [[1.0 if a == b else float("nan") for b in names] for a in names]
    for row in (r for r in _chosen(cka, layer=last) if _name(r) in names and _later(r) in names):
        i, j = names.index(_name(row)), names.index(_later(row))
        grid[i][j] = grid[j][i] = float(row["value"])
    ax.imshow(grid, cmap="Greys_r", vmin=min((v for line in grid for v in line if v == v), default=0.0) - 0.1, vmax=1.0)
    for i, line in enumerate(grid):
        for j, value in enumerate(line):
            ax.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color="black" if value > 0.8 else "white")
    ax.set_xticks(range(len(names)), names, rotation=40, ha="right")
    ax.set_yticks(range(len(names)), names)
    ax.grid(visible=False)
    ax.set_title(f"CKA between outputs, seed {seed}")
    for arm in arms_of(rows):
        before = encoder_of(rows, arm)
        chosen = _chosen(cka, arm=before, part=str(final[before]), compared_with=f"{arm}/joint_sft")
        drawn = look(arm, rows)
        layers, values = [int(row["layer"]) for row in chosen], [float(row["value"]) for row in chosen]
        lines.plot(layers, values, linestyle=drawn.dash, color=drawn.color, marker="o", label=arm)
    lines.set(
        title="Last part against joint SFT, by layer",
        xlabel=f"layer (0: before the first block)\n{_speech(rows)}",
        ylabel="linear CKA",
    )
    lines.set_xticks(sorted({int(row["layer"]) for row in cka}))
    add_legend(lines, *lines.get_legend_handles_labels(), loc="best")
    return figure


def _name(row: dict[str, str]) -> str:
    kind = row["arm"].removeprefix(ENCODER).removeprefix("_")
    return f"{kind} part {row['part']}".strip() if row["stage"] == "pretrain" else row["arm"]


def _later(row: dict[str, str]) -> str:
    owner, name = row["compared_with"].split("/")
    return _name({key: str(value) for key, value in _checkpoint(owner, name).items()})


def draw_spectrum(rows: Rows) -> Figure:
    """Eigenvalues of the output's covariance, largest first, and the variance that the first directions hold."""
    import matplotlib.pyplot as plt

    figure, (decay, total) = plt.subplots(1, 2, figsize=(10, 3.4))
    rows = [row for row in rows if row["seed"] == rows[0]["seed"]]
    final = {name: max((row["part"] for row in _chosen(rows, arm=name)), key=int) for name in _encoders(rows)}
    for (arm, part), line in _by([row for row in rows if row["part"] in ("", "0", final.get(row["arm"]))], "arm", "part"):
        drawn = look(arm, rows)
        label = _name(line[0]) + ("" if part else ", after joint SFT")
        dash = ":" if part == "0" and final[arm] != "0" else drawn.dash
        ranks = [int(row["rank"]) for row in line]
        # A direction without variance (LayerNorm makes one) has no place on a logarithmic axis.
        shares = [share if share > NO_VARIANCE else float("nan") for share in (float(row["variance_share"]) for row in line)]
        decay.plot(ranks, shares, linestyle=dash, color=drawn.color, label=label)
        total.plot(ranks, [float(row["cumulative_share"]) for row in line], linestyle=dash, color=drawn.color)
    decay.set(
        yscale="log", xscale="log", title="Eigenvalue decay", xlabel=f"rank\n{_speech(rows)}", ylabel="share of the variance"
    )
    total.set(xscale="log", title="Cumulated", xlabel="rank", ylabel="share of the variance")
    add_legend(decay, *decay.get_legend_handles_labels(), loc="lower left")
    return figure


def draw_allocation(rows: Rows) -> Figure:
    """What each arm starts from, what its encoder leaves, what its system leaves, nats a token; and EER and LER."""
    import matplotlib.pyplot as plt

    figure, (nats, shares) = plt.subplots(1, 2, figsize=(10, 3.4))
    chosen = _chosen(rows, language="all")
    arms = [arm for arm in arms_of(rows) if _chosen(chosen, arm=arm, metric="h0")]
    for ax, metrics, labels in (
        (nats, ("h0", "h1", "h2"), ("H0: LLM alone", "H1: + encoder probe", "H2: system")),
        (shares, ("eer", "ler"), ("EER: encoder", "LER: LLM")),
    ):
        width = 0.8 / max(1, len(arms))
        for number, arm in enumerate(arms):
            drawn = look(arm, rows)
            for place, metric in enumerate(metrics):
                same = _chosen(chosen, arm=arm, metric=metric)
                x, value = place + (number - (len(arms) - 1) / 2) * width, fmean(float(row["value"]) for row in same)
                bar = {"color": drawn.color, "edgecolor": "white", "hatch": drawn.hatch}
                ax.bar(x, value, width * 0.92, label=arm if place == 0 else None, **bar)
                if len(same) == 1 and same[0]["low"]:
                    ax.errorbar(x, value, _error_bar(same[0]), color="black", capsize=2, linewidth=0.9)
                if len(same) > 1:
                    dots = [float(row["value"]) for row in same]
                    ax.plot([x] * len(dots), dots, "o", color="white", markeredgecolor="black", linestyle="none")
                bounds = [float(row[name]) for row in same for name in ("value", "low", "high") if row[name]]
                end, up = (max(bounds), 3) if value >= 0 else (min(bounds), -11)
                turned = 90 if len(arms) > 3 else 0
                shown = {"textcoords": "offset points", "ha": "center", "fontsize": 8, "rotation": turned}
                ax.annotate(f"{value:.2f}", (x, end), xytext=(0, up - 12 * (turned > 0 > value)), **shown)
        ax.set_xticks(range(len(metrics)), labels)
        ax.axhline(0, color="#5b6672", linewidth=0.8)
        ax.margins(y=0.15)
        ax.grid(axis="x", visible=False)
    nats.set(title="Uncertainty about the transcript", ylabel="nats a token", xlabel=_speech(rows))
    shares.set(title="Who removes it", ylabel="share of H0")
    add_legend(nats, *nats.get_legend_handles_labels(), loc="upper right")
    return figure


def _speech(rows: Rows) -> str:
    return " and ".join(sorted({f"{row['corpus_kind']} speech" for row in rows}))


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True, help=__doc__)


@app.command()
@friendly_exit()
def table(
    encoders: list[Path] = typer.Option(
        ..., help="…/encoder/<owner>/seed-<s>/<checkpoint>.json, …/encoder/peers/<name>.json; repeat"
    ),
    systems: list[Path] = typer.Option([], help="…/system/<arm>/seed-<s>.json; repeat"),
    drift: list[Path] = typer.Option([], help="…/drift/seed-<s>.json; repeat"),
    start: list[str] = typer.Option([], help="arm=pretraining that it starts from, where that is not of phonemes; repeat"),
    out: Path = typer.Option(..., help="entropy.csv"),
    spectrum: Path = typer.Option(..., help="spectrum.csv"),
) -> None:
    """Write both tables."""
    rows, shares = [], []
    for path in encoders:
        found, eigenvalues = encoder_rows(path)
        rows += found
        shares += eigenvalues
    kind = " and ".join(sorted({row["corpus_kind"] for row in rows}))
    rows += [row for path in systems for row in system_rows(path)] + [row for path in drift for row in drift_rows(path, kind)]
    starts = dict(item.split("=") for item in start)
    for row in rows:
        row["encoder"] = (
            row["arm"] if row["arm"] in SHARED or row["stage"] == PEER else ENCODERS[starts.get(row["arm"], "phoneme")]
        )
    write_table(out, rows, COLUMNS)
    write_table(spectrum, shares, SPECTRUM_COLUMNS)


@app.command()
@friendly_exit()
def figures(
    entropy: Path = typer.Option(..., help="entropy.csv"),
    spectrum: Path = typer.Option(..., help="spectrum.csv"),
    out: Path = typer.Option(..., help="folder to write"),
) -> None:
    """Draw every figure."""
    import matplotlib

    matplotlib.use("Agg")
    rows, shares = read_table(entropy), without_peers(read_table(spectrum))
    save(lambda: draw_shift(rows), out / "shift")
    for name, draw in (("drift", draw_drift), ("allocation", draw_allocation)):
        save(lambda draw=draw: draw(without_peers(rows)), out / name)
    save(lambda: draw_spectrum(shares), out / "spectrum")


if __name__ == "__main__":
    app()
