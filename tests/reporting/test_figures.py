"""Figures follow from their tables: the same bytes each time, and what they are of is said in them."""

from pathlib import Path

import pytest

from entropy_asr.files import write_table
from entropy_asr.reporting import figures, jobs, tables


@pytest.fixture
def drawn_from(run: Path) -> dict[str, Path]:
    """The tables of the run."""
    provenance, scores = sorted(run.rglob("provenance.json")), sorted(run.rglob("score/*/seed-1/*.json"))
    paths = {name: run / f"tables/{name}.csv" for name in ("main", "curves", "cka", "timeline", "hallucination")}
    write_table(paths["main"], tables.main_rows(scores, provenance, ["english", "mandarin"], []), tables.MAIN_COLUMNS)
    write_table(paths["curves"], *jobs.curve_rows(sorted(run.rglob("train.jsonl"))))
    settings = {"threshold": 0.9, "warmup_steps": 20}
    write_table(paths["cka"], jobs.cka_rows(sorted(run.rglob("part.json")), settings), jobs.CKA_COLUMNS)
    write_table(paths["timeline"], jobs.timeline_rows(provenance), jobs.TIMELINE_COLUMNS)
    return paths


def texts(figure: object) -> str:
    import matplotlib.text

    return " | ".join(text.get_text() for text in figure.findobj(matplotlib.text.Text))


def test_drawn_twice_gives_the_same_bytes(drawn_from: dict[str, Path], tmp_path: Path) -> None:
    for name in ("first", "second"):
        figures.draw_all(drawn_from, True, tmp_path / name)
    for name in figures.FIGURES:
        for kind in ("svg", "png"):
            first, second = (tmp_path / folder / f"{name}.{kind}" for folder in ("first", "second"))
            assert first.read_bytes() == second.read_bytes(), first.name
        assert b"<dc:date>" not in (tmp_path / f"first/{name}.svg").read_bytes()


def test_each_says_that_speech_is_synthetic(drawn_from: dict[str, Path]) -> None:
    for draw, table in (
        (figures.draw_curves, "curves"),
        (figures.draw_cka, "cka"),
        (figures.draw_timeline, "timeline"),
        (figures.draw_errors, "main"),
        (figures.draw_hallucination, "hallucination"),
    ):
        assert "synthetic speech" in texts(draw(tables.read_table(drawn_from[table]), "trained on synthetic speech"))


def test_swaps_threshold_and_overlap_are_labelled(drawn_from: dict[str, Path]) -> None:
    shown = texts(figures.draw_cka(tables.read_table(drawn_from["cka"]), "speech"))
    assert "alignment\nstep 60" in shown and "swap 1\nstep 100" in shown and "threshold 0.9" in shown
    assert "IA-SFT iteration 0 beside pretraining part 1: 6.5 min" in texts(
        figures.draw_timeline(tables.read_table(drawn_from["timeline"]), "speech")
    )


def test_every_seeds_jobs_are_in_the_timeline_whenever_it_ran(drawn_from: dict[str, Path]) -> None:
    first = tables.read_table(drawn_from["timeline"])
    day_later = [{**row, "seed": "2"} | {at: row[at].replace("-01T", "-02T") for at in ("started", "ended")} for row in first]
    assert [row["started"] for row in day_later] != [row["started"] for row in first]
    figure = figures.draw_timeline(first + day_later, "speech")
    bars = [[(bar.get_x(), bar.get_width()) for group in ax.containers for bar in group] for ax in figure.axes]
    assert len(bars[0]) == len(first) and bars[0] == bars[1]
    for ax, drawn in zip(figure.axes, bars, strict=True):
        left, right = ax.get_xlim()
        assert left == 0 and max(begin + width for begin, width in drawn) < right


def test_iterations_that_count_anew_are_put_in_a_row() -> None:
    rows = [{"index": i, "step": s} for i, s in (("0", "10"), ("0", "20"), ("1", "10"), ("1", "20"), ("2", "10"))]
    assert figures._continuous_steps(rows) == ([10, 20, 30, 40, 50], [20, 40])


def test_iterations_with_a_single_line_each_are_put_in_a_row_too() -> None:
    rows = [{"index": str(i), "step": "30"} for i in range(3)]
    assert figures._continuous_steps(rows) == ([30, 60, 90], [30, 60])


def test_swaps_of_the_first_seed_alone_are_named(drawn_from: dict[str, Path]) -> None:
    rows = tables.read_table(drawn_from["cka"])
    both = texts(figures.draw_cka([*rows, *({**row, "seed": "2"} for row in rows)], "speech"))
    assert both.count("swap 1\nstep 100") == 1 and "seed 2" in both


def test_parts_that_go_on_in_one_count_keep_it() -> None:
    rows = [{"index": i, "step": s} for i, s in (("0", "10"), ("0", "20"), ("1", "30"))]
    assert figures._continuous_steps(rows) == ([10, 20, 30], [20])


def test_a_run_without_a_measurement_has_a_cka_figure_that_says_so() -> None:
    assert "no CKA measurement" in texts(figures.draw_cka([], "speech"))
