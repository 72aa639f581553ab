"""The whole workflow at the smoke scale, for real: it runs, it is asynchronous, and it runs again only what must."""

import csv
import json
import re
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from repository import REPO, snakemake

ARMS = ("ours", "no_ia_sft", "joint_only", "frozen_encoder")
SMOKE = (
    "--configfile",
    str(REPO / "config/smoke.yaml"),
    str(REPO / "tests/workflow/arms.yaml"),
)  # last: it takes all that follows


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished smoke run. It lies two folders below the repository, as `make smoke` has it."""
    folder = REPO / "runs" / "test-smoke"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    done = snakemake(folder, "all", *SMOKE)
    assert done.returncode == 0, done.stdout + done.stderr
    yield folder
    shutil.rmtree(folder)


def planned(folder: Path, *arguments: str) -> set[str]:
    """Names of the rules that a dry run would execute."""
    done = snakemake(folder, "-n", *arguments)
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"^(?:local)?(?:rule|checkpoint) (\w+):", done.stdout + done.stderr, re.MULTILINE))


def test_table_and_report_are_there(run: Path) -> None:
    with (run / "results/tables/main.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["arm"], row["test_set"]) for row in rows} >= {(arm, test) for arm in ARMS for test in ("english", "mandarin")}
    assert {row["corpus_kind"] for row in rows} == {"synthetic"}
    assert len({row["llm_side_steps"] for row in rows if row["arm"] != "encoder"}) == 1  # equal for all arms
    assert (run / "results/report/index.html").stat().st_size > 10_000


def test_the_metrics_of_every_stage_are_there(run: Path) -> None:
    with (run / "results/tables/entropy.csv").open() as file:
        rows = list(csv.DictReader(file))
    parts = len(list((run / "results/encoders/phoneme/seed-1").glob("part-*")))
    stages = {("encoder", "pretrain", str(part)) for part in range(parts)}
    stages |= {(arm, "joint_sft", "") for arm in ARMS}
    for metric in ("nse", "pai", "csai"):
        assert {(row["arm"], row["stage"], row["part"]) for row in rows if row["metric"] == metric} == stages
    for metric in ("eer", "ler", "h0", "h1", "h2"):
        assert {row["arm"] for row in rows if row["metric"] == metric and row["value"]} == set(ARMS)
    pairs = {(row["arm"], row["part"], row["compared_with"]) for row in rows if row["metric"] == "cka"}
    assert len(pairs) == (parts + len(ARMS)) * (parts + len(ARMS) - 1) // 2  # every pair of checkpoints
    assert {row["corpus_kind"] for row in rows} == {"synthetic"}
    assert "Entropy allocation" in (run / "results/report/index.html").read_text()


def test_the_frozen_encoder_stays_and_shares_stages(run: Path) -> None:
    with (run / "results/tables/entropy.csv").open() as file:
        cka = [row for row in csv.DictReader(file) if row["metric"] == "cka"]
    last = max(row["part"] for row in cka)
    kept = [float(row["value"]) for row in cka if row["compared_with"] == "frozen_encoder/joint_sft" and row["part"] == last]
    assert kept and min(kept) > 1 - 1e-9
    moved = [float(row["value"]) for row in cka if row["compared_with"] == "joint_only/joint_sft" and row["part"] == last]
    assert min(moved) < 1 - 1e-6
    assert sorted(path.name for path in (run / "results/systems/frozen_encoder/seed-1").iterdir()) == ["joint_sft"]


def test_ia_sft_ran_beside_pretraining(run: Path) -> None:
    def span(path: str) -> tuple[datetime, datetime]:
        record = json.loads((run / "results" / path / "provenance.json").read_text())
        return datetime.fromisoformat(record["started"]), datetime.fromisoformat(record["ended"])

    assert json.loads((run / "results/encoders/phoneme/seed-1/part-0/part.json").read_text())["ended_by"] == "cka"
    pretraining, beside = span("encoders/phoneme/seed-1/part-1"), span("systems/ours/seed-1/align")
    assert beside[0] < pretraining[1] and pretraining[0] < beside[1]


def test_every_trained_artifact_says_where_it_comes_from(run: Path) -> None:
    found = [path for name in ("encoders", "systems", "text") for path in (run / "results" / name).rglob("*.safetensors")]
    models = [path for path in found if "training_state" not in path.name]
    assert len(models) >= 8
    for model in models:
        record = json.loads((model.parent / "provenance.json").read_text())
        assert record["sha256"]["config"] and record["packages"]["torch"] and record["wall_seconds"] > 0
    assert not list((run / "results").rglob("*.pt")) and not list((run / "results").rglob("*.bin"))


def test_the_rule_graph_in_the_docs_is_this_runs(run: Path) -> None:
    from entropy_asr.reporting.rulegraph import page

    assert (REPO / "docs/rulegraph.md").read_text() == page(run), "run: python -m entropy_asr.reporting.rulegraph <run>"


def test_a_second_call_has_nothing_to_do(run: Path) -> None:
    assert planned(run, "all", *SMOKE) == set()


def test_a_parameter_of_align_reruns_align_and_what_follows(run: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.yaml"
    text = (REPO / "config/smoke.yaml").read_text()
    changed.write_text(re.sub(r"(align:\n  steps: 8\n  peak_lr:) \S+", r"\1 1.0e-3", text))
    assert changed.read_text() != text
    rules = planned(run, f"--configfile={changed}", "results/tables/main.csv")
    assert {"stage_config", "align", "ia_sft_iteration", "joint_sft", "decode", "score", "table_main"} <= rules
    assert not rules & {"pretrain_part", "lm", "tokenizer", "manifests_embedded", "feature_stats", "decode_encoder"}


def test_forcing_joint_sft_reruns_it_and_what_follows(run: Path) -> None:
    rules = planned(run, "results/tables/main.csv", "-R", "joint_sft", *SMOKE)
    assert {"joint_sft", "decode", "score", "table_main"} <= rules
    assert not rules & {"pretrain_part", "align", "ia_sft_iteration", "lm", "manifests_embedded", "decode_encoder"}
