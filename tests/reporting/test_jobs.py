"""The tables of training jobs: each CKA point once, overlap from the clock, costs by who made what."""

import json
from pathlib import Path

import pytest
from reporting.conftest import of_all, provenance
from typer.testing import CliRunner

from entropy_asr.errors import InputError
from entropy_asr.files import read_table, write_json
from entropy_asr.reporting.jobs import Job, app, cka_rows, cost_rows, curve_rows, overlap_minutes, timeline_rows


def test_cost_has_each_job_behind_an_arm_and_says_whose_it_is(run: Path) -> None:
    ours = run / "systems/ours/seed-1/joint_sft/provenance.json"
    write_json(run / "systems/frozen_encoder/seed-1/joint_sft/provenance.json", json.loads(ours.read_text()))
    provenance(run / "text/lm/provenance.json", (0, 1), 50, 0.0)
    rows = cost_rows(of_all(run, "provenance.json"))
    frozen = [row for row in rows if row["arm"] == "frozen_encoder"]
    owners = ["lm", *["encoder"] * 3, *["ours"] * 4, "frozen_encoder"]
    assert sorted(row["made_for"] for row in frozen) == sorted(owners)
    parts = [row for row in frozen if row["stage"] == "pretrain"]
    assert [row["steps"] for row in parts] == [60, 40, 40]  # one run that counts on: 60, 100, 140
    assert [row["audio_hours"] for row in parts] == [1.0, 1.5, 1.5]
    assert [row["model_flops"] for row in parts] == [60e9, 40e9, 40e9]
    assert [row["cpu_seconds"] for row in parts] == [180.0, 120.0, 120.0]
    by_arm = {arm: sum(row["steps"] for row in rows if row["arm"] == arm) for arm in ("ours", "no_ia_sft", "frozen_encoder")}
    assert by_arm["ours"] == by_arm["frozen_encoder"] == 50 + 140 + 50 + 150 + 50 and by_arm["no_ia_sft"] == 50 + 140 + 50 + 200


def test_seed_and_stage_come_from_the_path(run: Path) -> None:
    job = Job.of(run / "systems/ours/seed-1/ia_sft/iter-2/provenance.json")
    assert job == Job("ours", 1, "ia_sft", 2)  # the file itself says seed 102, that of its random generators
    with pytest.raises(InputError, match="not the file of a training job"):
        Job.of(run / "tables/main.csv")


def test_cka_points_are_kept_once_and_the_last_of_a_part_is_its_swap(run: Path) -> None:
    rows = cka_rows(of_all(run, "part.json"), {"threshold": 0.9, "warmup_steps": 20})
    assert [row["step"] for row in rows] == [40, 60, 80, 100, 120]
    assert [row["swapped"] for row in rows] == [False, True, False, True, False]
    assert {row["threshold"] for row in rows} == {0.9}


def test_overlap_is_the_time_that_both_ran(run: Path) -> None:
    timeline = timeline_rows(of_all(run, "provenance.json"))
    assert overlap_minutes(timeline, 1) == 6.5  # part 1: 10 to 20.5; iteration 0: 14 to 22
    assert overlap_minutes(timeline, 2) is None
    assert [row["job"] for row in timeline][:2] == ["pretraining part 0", "ours: alignment"]


def test_jobs_that_follow_each_other_do_not_overlap(run: Path) -> None:
    timeline = timeline_rows(of_all(run, "provenance.json"))
    for row in timeline:
        if row["stage"] == "ia_sft" and row["index"] == 0:
            row["started"], row["ended"] = "2026-01-01T10:21:00+00:00", "2026-01-01T10:22:00+00:00"
    assert overlap_minutes(timeline, 1) == 0.0


def test_curves_name_the_unit_of_the_loss(run: Path) -> None:
    rows, columns = curve_rows(of_all(run, "train.jsonl"))
    assert {row["loss_unit"] for row in rows if row["stage"] == "pretrain"} == {"nats/frame"}
    assert {row["loss_unit"] for row in rows if row["stage"] != "pretrain"} == {"nats/token"}
    assert "unix_time_seconds" in columns and "time" not in columns


def test_of_a_loss_with_ctc_the_curve_is_the_transcripts_part(run: Path) -> None:
    log = run / "systems/ours/seed-1/align/train.jsonl"
    log.write_text(json.dumps({"step": 1, "loss": 7.0, "transcript_loss": 2.0, "pronunciation_ctc": 5.0}) + "\n")
    row = curve_rows([log])[0][0]
    assert (row["loss"], row["loss_unit"], row["pronunciation_ctc_nats_per_unit"]) == (2.0, "nats/token", 5.0)


def test_command_lines_write_csv(run: Path) -> None:
    parts = [argument for path in of_all(run, "part.json") for argument in ("--parts", str(path))]
    out = run / "tables/cka.csv"
    done = CliRunner().invoke(app, ["cka", *parts, "--config", str(run / "config/pretrain.json"), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert read_table(out)[1] == {
        "encoder": "encoder",
        "seed": "1",
        "part": "0",
        "step": "60",
        "cka": "0.85",
        "swapped": "true",
        "threshold": "0.9",
        "warmup_steps": "20",
    }
