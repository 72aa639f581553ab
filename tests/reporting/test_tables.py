"""The main table holds what the artifacts say: errors with their uncertainty, cumulative hours once."""

import json
import re
from pathlib import Path

import pytest
from reporting.conftest import of_all, provenance
from repository import REPO

from entropy_asr.errors import InputError
from entropy_asr.files import read_table, write_json
from entropy_asr.reporting.jobs import cka_rows, cost_rows, curve_rows
from entropy_asr.reporting.tables import as_latex, as_markdown, breakdown_rows, headline_cells, main_rows, published_rows


def main_table(run: Path) -> list[dict]:
    return main_rows(
        of_all(run, "score/*/seed-1/*.json"),
        of_all(run, "provenance.json"),
        ["english"],
        read_table(run / "tables/significance.csv"),
    )


def test_breakdown_has_a_row_a_domain_and_a_speaker(run: Path) -> None:
    rows = breakdown_rows(of_all(run, "score/*/seed-1/*.json"), ["english"])
    found = [(row["arm"], row["test_set"], row["by"], row["group"], row["value_percent"], row["corpus_kind"]) for row in rows]
    assert found == [
        ("ours", "english", "domain", "media", 12.5, "synthetic"),
        ("ours", "mandarin", "domain", "media", 12.5, "recorded"),
        ("ours", "english", "speaker", "af_nova", 10.0, "synthetic"),
        ("ours", "mandarin", "speaker", "af_nova", 10.0, "recorded"),
    ]


def test_cost_counts_pretraining_once_and_adds_the_stages_of_the_arm(run: Path) -> None:
    rows = {(row["arm"], row["test_set"]): row for row in main_table(run)}
    ours, other = rows["ours", "english"], rows["no_ia_sft", "english"]
    assert ours["audio_hours_encoder"] == other["audio_hours_encoder"] == 4.0
    assert ours["audio_hours_llm_side"] == 0.5 + 3 * 0.25 + 0.75
    assert ours["llm_side_steps"] == other["llm_side_steps"] == 250
    assert [ours[f"parameters_{name}"] for name in ("encoder", "adaptor", "llm")] == [1000, 200, 3000]


def test_stages_that_an_arm_shares_count_for_it(run: Path) -> None:
    ours, frozen = run / "systems/ours/seed-1", run / "systems/frozen_encoder/seed-1/joint_sft/provenance.json"
    facts = json.loads((ours / "joint_sft/provenance.json").read_text())
    write_json(frozen, {**facts, "end_step": 70})  # it was given what `ours` was given
    score = run / "metrics/score/frozen_encoder/seed-1/english.json"
    write_json(score, json.loads((run / "metrics/score/ours/seed-1/english.json").read_text()))
    row = next(row for row in main_table(run) if row["arm"] == "frozen_encoder")
    assert row["llm_side_steps"] == 50 + 3 * 50 + 70  # not the joint SFT of `ours`
    assert row["audio_hours_llm_side"] == 0.5 + 3 * 0.25 + 0.75


def test_an_arm_costs_the_pretraining_that_it_starts_from(run: Path) -> None:
    for i, hours in enumerate((2.0, 5.0)):
        provenance(run / f"encoders/character/seed-1/part-{i}/provenance.json", (0, 9), 70 * (i + 1), hours)
    ours = json.loads((run / "systems/ours/seed-1/joint_sft/provenance.json").read_text())
    given = {"encoder": "results/encoders/character/seed-1/part-1/encoder.safetensors", "lm": "results/text/lm/lm.json"}
    write_json(run / "systems/char_ctc/seed-1/joint_sft/provenance.json", {**ours, "inputs": given})
    for system in ("char_ctc", "encoder_character"):
        score = run / f"metrics/score/{system}/seed-1/english.json"
        write_json(score, json.loads((run / "metrics/score/ours/seed-1/english.json").read_text()))
    hours = {row["arm"]: row["audio_hours_encoder"] for row in main_table(run)}
    assert hours == {"ours": 4.0, "no_ia_sft": 4.0, "encoder": 4.0, "char_ctc": 5.0, "encoder_character": 5.0}
    costs = [row for row in cost_rows(of_all(run, "provenance.json")) if row["arm"] == "char_ctc"]
    assert [row["made_for"] for row in costs] == ["encoder_character", "encoder_character", "char_ctc"]
    traces = {("encoder_character", 1), ("encoder", 1)}
    (run / "encoders/character/seed-1/part-0/part.json").write_text(
        json.dumps({"part": 0, "ended_by": "cka", "cka": [{"step": 60, "cka": 0.5, "part": 0}]})
    )
    rows = cka_rows(of_all(run, "part.json"), {})
    assert {(row["encoder"], row["seed"]) for row in rows} == traces
    assert [row["cka"] for row in rows if row["step"] == 60] == [0.85, 0.5] and rows[-1]["swapped"]
    assert {row["loss_unit"] for row in curve_rows(of_all(run, "train.jsonl"))[0]} == {"nats/frame", "nats/token"}


def test_scores_become_percent_with_language_and_corpus_kind(run: Path) -> None:
    rows = {(row["arm"], row["test_set"]): row for row in main_table(run)}
    row = rows["ours", "english"]
    assert (row["value_percent"], row["metric"], row["language"], row["corpus_kind"]) == (
        10.0,
        "WER",
        "en",
        "synthetic",
    )
    assert rows["ours", "mandarin"]["language"] == "zh" and rows["ours", "mandarin"]["corpus_kind"] == "recorded"
    encoder = rows["encoder", "english"]
    assert (encoder["metric"], encoder["language"], encoder["parameters_encoder"]) == ("PER", "phonemes", 1000)
    assert encoder["parameters_llm"] is None and encoder["llm_side_steps"] == 0


def test_test_sets_together_are_synthetic_if_each_of_them_is(run: Path) -> None:
    score = (run / "metrics/score/encoder/seed-1/english.json").read_text()
    (run / "metrics/score/encoder/seed-1/english+mandarin.json").write_text(score)
    scores, jobs = of_all(run, "score/encoder/seed-1/*.json"), of_all(run, "provenance.json")
    for synthetic, kind in ((["english", "mandarin"], "synthetic"), (["english"], "recorded and synthetic"), ([], "recorded")):
        rows = {row["test_set"]: row["corpus_kind"] for row in main_rows(scores, jobs, synthetic, [])}
        assert rows["english+mandarin"] == kind


def test_rates_come_with_their_interval_and_their_difference_to_ours(run: Path) -> None:
    rows = {(row["arm"], row["test_set"]): row for row in main_table(run)}
    other = rows["no_ia_sft", "english"]
    assert (other["low_percent"], other["value_percent"], other["high_percent"]) == pytest.approx((13.0, 15.0, 18.0))
    assert [rows[arm, "mandarin"]["p_against_ours"] for arm in ("ours", "no_ia_sft", "encoder")] == [None, "0.004", None]


def test_a_peer_has_a_score_and_no_training(run: Path) -> None:
    peer = run / "metrics/score/peers/whisper-base/english.json"
    peer.parent.mkdir(parents=True)
    peer.write_text((run / "metrics/score/ours/seed-1/english.json").read_text())
    rows = main_rows([peer, *of_all(run, "score/ours/seed-1/*.json")], of_all(run, "provenance.json"), [], [])
    (row,) = [row for row in rows if row["arm"] == "whisper-base"]
    assert (row["seed"], row["value_percent"], row["kind"]) == (None, 10.0, "measured")
    assert "llm_side_steps" not in row


def test_published_figures_are_marked_and_sourced() -> None:
    rows = published_rows(REPO / "data/published.csv")
    assert len(rows) > 200 and {row["kind"] for row in rows} == {"published"}
    source = re.compile(r"(arXiv \d{4}\.\d{5}v\d table \d|README of [\w./-]+ at [0-9a-f]{7}); .")
    assert all(source.match(row["source"]) and 0 <= float(row["value_percent"]) < 100 for row in rows)
    cells = [(row["arm"], row["test_set"], row["metric"]) for row in rows]
    assert len(set(cells)) == len(cells)  # or the table for a paper would take two sources of one figure for two seeds
    for system in ("Fun-ASR", "FireRedASR", "Qwen3-ASR", "Qwen3-Omni", "Step-Audio", "Kimi-Audio", "Seed-ASR", "Whisper"):
        assert any(row["arm"].startswith(system) for row in rows)


def test_the_table_for_a_paper() -> None:
    empty = dict.fromkeys(("low_percent", "high_percent", "p_against_ours", "corpus_kind"), "")
    english = {**empty, "test_set": "english", "metric": "WER", "kind": "measured", "corpus_kind": "synthetic"}
    rows = [
        {**english, "arm": "ours", "value_percent": "10", "low_percent": "9", "high_percent": "11.5"},
        {**english, "arm": "no_ia_sft", "value_percent": "12", "p_against_ours": "0.01"},
        {**english, "arm": "no_ia_sft", "value_percent": "14", "p_against_ours": "0.01"},
        {**empty, "test_set": "AISHELL-1", "metric": "CER", "kind": "published", "arm": "theirs", "value_percent": "1.6"},
    ]
    columns, cells = headline_cells(rows)
    assert columns == ["system", "figures", "english WER %", "AISHELL-1 CER %"]
    assert cells[0] == ["ours", "measured, synthetic speech", "10.00 [9.0, 11.5]", "–"]
    assert cells[1] == ["no_ia_sft", "measured, synthetic speech", "13.00 ± 1.41*", "–"]
    assert cells[2] == ["theirs", "published", "–", "1.60"]
    assert as_markdown(columns, cells).splitlines()[2].startswith("| ours | measured, synthetic speech | 10.00 [9.0, 11.5] |")
    latex = as_latex(columns, cells).splitlines()
    assert latex[0] == r"\begin{tabular}{llll}"
    assert latex[5] == r"no\_ia\_sft & measured, synthetic speech & 13.00 $\pm$ 1.41* & -- \\"


def test_scores_of_another_normaliser_are_refused(run: Path) -> None:
    path = run / "metrics/score/ours/seed-1/english.json"
    path.write_text(path.read_text().replace('"normalizer_version": "1"', '"normalizer_version": "0"'))
    with pytest.raises(InputError, match=r"ours/seed-1/english\.json: version 0"):
        main_table(run)


def test_a_score_without_training_behind_it_is_refused(run: Path) -> None:
    scores = of_all(run, "score/ours/seed-1/*.json")
    with pytest.raises(InputError, match="no provenance of arm ours, seed 1"):
        main_rows(scores, of_all(run, "part-*/provenance.json"), [], [])
