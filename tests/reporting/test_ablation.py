"""The arms side by side hold what the other tables say, each arm against the pretraining that it starts from."""

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from entropy_asr.errors import InputError
from entropy_asr.files import read_table, write_table
from entropy_asr.reporting import ablation, entropy
from entropy_asr.reporting.report import arms_compared
from entropy_asr.reporting.tables import MAIN_COLUMNS

ARMS = {"ours": "encoder", "no_ia_sft": "encoder", "char_ctc": "encoder_character"}
RATES = {"ours": (10.0, 12.0), "no_ia_sft": (15.0, 18.0), "char_ctc": (11.0, 13.0)}  # of two seeds, percent
PAI = {
    "encoder": (0.9, 0.9),
    "encoder_character": (0.6, 0.6),
    "ours": (0.88, 0.9),
    "no_ia_sft": (0.7, 0.74),
    "char_ctc": (0.5, 0.6),
}


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, Path]:
    """main, significance and entropy of three arms and two seeds."""
    main: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for seed in (1, 2):
        for arm, encoder in ARMS.items():
            same = {"test_set": "english", "metric": "WER", "kind": "measured", "corpus_kind": "synthetic"}
            main.append({**same, "arm": arm, "seed": seed, "value_percent": RATES[arm][seed - 1]})
            after = {"arm": arm, "seed": seed, "encoder": encoder, "stage": "joint_sft", "layer": 2, "language": "all"}
            after |= {"corpus_kind": "synthetic"}
            rows.append({**after, "metric": "pai", "probe": "linear", "value": PAI[arm][seed - 1]})
            rows.append({**after, "metric": "eer", "probe": "linear", "value": 0.4})
        for encoder in ("encoder", "encoder_character"):
            before = {"arm": encoder, "seed": seed, "encoder": encoder, "stage": "pretrain", "part": 0, "layer": 2}
            before |= {"language": "all", "corpus_kind": "synthetic"}
            rows.append({**before, "metric": "pai", "probe": "linear", "value": PAI[encoder][seed - 1]})
            for arm, cka in (("ours", 0.99), ("no_ia_sft", 0.8), ("char_ctc", 0.7 if encoder == "encoder_character" else 0.1)):
                rows.append({**before, "metric": "cka", "compared_with": f"{arm}/joint_sft", "value": cka})
    main.append({**main[0], "arm": "encoder_character", "value_percent": 50.0})
    main.append({**main[0], "arm": "theirs", "seed": "", "value_percent": 5.0})
    paths = {name: tmp_path / f"{name}.csv" for name in ("main", "significance", "entropy")}
    write_table(paths["main"], main, MAIN_COLUMNS)
    write_table(paths["entropy"], rows, entropy.COLUMNS)
    columns = ("test_set", "system", "against", "difference_points", "low_points", "high_points")
    tests = ("p_bootstrap", "p_bootstrap_holm", "p_matched_pairs", "p_seeds")
    test = {"test_set": "english", "system": "ours", "against": "no_ia_sft", "difference_points": -5.5}
    test |= {"low_points": -7, "high_points": -4, **dict.fromkeys(tests, 0.01)}
    write_table(paths["significance"], [test], (*columns, *tests))
    return paths


def ablated(tables: dict[str, Path], baseline: str = "ours") -> dict[tuple[str, str], dict[str, Any]]:
    rows = ablation.ablation_rows(*(read_table(tables[name]) for name in ("main", "significance", "entropy")), baseline)
    return {(row["arm"], row["metric"]): row for row in rows}


def test_error_rates_are_means_with_the_tests_of_the_significance_table(tables: dict[str, Path]) -> None:
    rows = ablated(tables)
    assert {arm for arm, _ in rows} == set(ARMS)  # neither peers nor encoders alone
    other = rows["no_ia_sft", "WER"]
    assert (other["mean"], other["seeds"], other["unit"]) == (16.5, 2, "percent") and other["std"] == pytest.approx(3 / 2**0.5)
    assert (other["difference"], other["low"], other["high"], other["p_seeds"]) == (5.5, 4.0, 7.0, "0.01")  # the arm minus ours
    assert "difference" not in rows["ours", "WER"]


def test_metrics_after_joint_sft_are_compared_seed_by_seed(tables: dict[str, Path]) -> None:
    from scipy.stats import ttest_rel

    rows = ablated(tables)
    assert rows["ours", "pai"]["mean"] == pytest.approx(0.89) and "difference" not in rows["ours", "pai"]
    other = rows["char_ctc", "pai"]
    assert other["difference"] == pytest.approx(0.55 - 0.89)
    assert other["p_seeds"] == pytest.approx(ttest_rel(PAI["char_ctc"], PAI["ours"]).pvalue, rel=1e-2)
    assert rows["no_ia_sft", "eer"]["mean"] == pytest.approx(0.4) and rows["no_ia_sft", "eer"]["p_seeds"] is None  # all the same


def test_drift_is_from_the_pretraining_that_an_arm_starts_from(tables: dict[str, Path]) -> None:
    rows = ablated(tables)
    assert rows["char_ctc", "drift_cka"]["mean"] == pytest.approx(0.7) and rows["ours", "drift_cka"]["mean"] == pytest.approx(
        0.99
    )
    item = next(item for item in entropy.shifts(read_table(tables["entropy"])) if item["arm"] == "char_ctc")
    assert item["pai"]["before"]["value"] == "0.6"


def test_the_command_line_writes_what_the_report_shows(tables: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "ablation.csv"
    options = [f"--{name}={path}" for name, path in tables.items()]
    done = CliRunner().invoke(ablation.app, [*options, "--baseline=ours", f"--out={out}"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    cost = [
        {"arm": "ours", "seed": seed, "model_flops": flops, "wall_seconds": "60", "cpu_seconds": "30", "audio_hours": "1"}
        for seed, flops in (("1", "1e15"), ("1", "2e15"), ("2", "3e15"))
    ]
    shown = arms_compared(read_table(out), cost)
    line = next(line for line in shown["lines"] if line["arm"] == "ours")
    assert line["cost"]["model_flops"] == 3e15 and line["cost"]["wall_seconds"] == 90
    place = shown["metrics"].index(("WER", "english", "percent"))
    assert float(line["cells"][place]["mean"]) == 11.0


def test_a_baseline_that_was_not_run_is_refused(tables: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="no row of 'aed'"):
        ablated(tables, "aed")
