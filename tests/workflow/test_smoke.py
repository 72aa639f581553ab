"""The whole workflow at the smoke scale, for real: it runs, it is asynchronous, and it runs again only what must."""

import base64
import csv
import json
import re
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from repository import REPO, snakemake, with_other_alignment

from entropy_asr.config import ENCODERS, Config
from entropy_asr.config_files import load_config

SMOKE, ARMS, ALL_ARMS = (
    REPO / name for name in ("config/smoke.yaml", "tests/workflow/arms.yaml", "tests/workflow/all_arms.yaml")
)


class Run(NamedTuple):
    """A finished run, and the files of its config."""

    folder: Path
    files: tuple[Path, ...]

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def config(self) -> Config:
        return load_config(*self.files)

    @property
    def options(self) -> tuple[str, ...]:
        return ("--configfile", *map(str, self.files))  # last on a command line: it takes all that follows

    def table(self, name: str) -> list[dict[str, str]]:
        with (self.results / f"tables/{name}.csv").open() as file:
            return list(csv.DictReader(file))


@pytest.fixture(scope="module", params=[(SMOKE, ARMS), pytest.param((SMOKE, ARMS, ALL_ARMS), marks=pytest.mark.arms)], ids=len)
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """A finished smoke run. It lies two folders below the repository, as `make smoke` has it."""
    folder = REPO / "runs" / "test-smoke"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    made = Run(folder, request.param)
    done = snakemake(folder, "all", *made.options)
    assert done.returncode == 0, done.stdout + done.stderr
    yield made
    shutil.rmtree(folder)


def planned(folder: Path, *arguments: str) -> set[str]:
    """Names of the rules that a dry run would execute."""
    done = snakemake(folder, "-n", *arguments)
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"^(?:local)?(?:rule|checkpoint) (\w+):", done.stdout + done.stderr, re.MULTILINE))


def test_table_and_report_are_there(run: Run) -> None:
    rows = run.table("main")
    assert {(row["arm"], row["test_set"]) for row in rows} >= {
        (arm, test) for arm in run.config.arms for test in ("english", "mandarin")
    }
    assert {row["corpus_kind"] for row in rows} == {"synthetic"}
    heard = {("encoder", "PER"), ("encoder_character", "WER"), ("encoder_character", "CER")}  # attention has no CTC head
    found = {(row["arm"], row["metric"]) for row in rows if row["arm"].startswith("encoder")}
    assert found == {pair for pair in heard if pair[0] in {ENCODERS[name] for name in run.config.objectives}}
    assert (run.results / "report/index.html").stat().st_size > 10_000


def test_every_arm_has_the_same_budget(run: Run) -> None:
    """The same data, the same pretraining steps, the same LLM-side steps: whatever CKA did, whatever an arm leaves out."""
    rows = run.table("cost")
    config = run.config
    llm_side = config.align.steps + config.cka.max_parts * config.ia_sft.steps + config.joint_sft.steps
    assert config.engine.precompute_features
    train = {f"results/audio/features/{split}.jsonl.gz" for split in config.data.train}
    for arm in config.arms:
        objective, lm = config.recipe(arm).objective, config.lm_of(arm)
        behind = [row for row in rows if row["arm"] == arm]
        pretraining = [row for row in behind if row["stage"] == "pretrain"]
        assert {row["made_for"] for row in pretraining} == {ENCODERS[objective]}
        assert [row["made_for"] for row in behind if row["stage"] == "lm"] == [lm]
        assert sum(int(row["steps"]) for row in pretraining) == config.pretrain.steps
        assert sum(int(row["steps"]) for row in behind if row["stage"] not in ("lm", "pretrain")) == llm_side
        for row in behind:
            assert float(row["model_flops"]) > 0 and float(row["cpu_seconds"]) > 0 and float(row["peak_memory_gib"]) > 0
    heard = {sum(float(r["audio_hours"]) for r in rows if (r["arm"], r["stage"]) == (arm, "pretrain")) for arm in config.arms}
    assert max(heard) - min(heard) < 1e-3
    for path in run.results.glob("*/*/seed-1/**/provenance.json"):
        inputs = json.loads(path.read_text())["inputs"]
        assert {name for key, name in inputs.items() if key.startswith("train-")} == train


def test_shared_stages_are_computed_once(run: Run) -> None:
    made = {path.relative_to(run.results).parts[1] for path in run.results.glob("systems/*/seed-1/align")}
    assert made == set(run.config.arms) - {"joint_only", "frozen_encoder"}
    assert {path.name for path in (run.results / "encoders").iterdir()} == set(run.config.objectives)


def test_the_arms_are_compared_side_by_side(run: Run) -> None:
    rows = run.table("ablation")
    metrics = {("WER", "english"), ("CER", "mandarin"), *((name, "") for name in ("nse", "pai", "eer", "ler", "drift_cka"))}
    for arm in run.config.arms:
        assert {(row["metric"], row["test_set"]) for row in rows if row["arm"] == arm} >= metrics
    assert all(row["p_bootstrap"] for row in rows if row["unit"] == "percent" and row["arm"] != "ours")
    assert "Arms side by side" in (run.results / "report/index.html").read_text()


def test_the_metrics_of_every_stage_are_there(run: Run) -> None:
    rows = run.table("entropy")
    parts = [path.relative_to(run.results / "encoders").parts for path in (run.results / "encoders").glob("*/seed-1/part-*")]
    stages = {(ENCODERS[objective], "pretrain", part.removeprefix("part-")) for objective, _, part in parts}
    stages |= {(arm, "joint_sft", "") for arm in run.config.arms}
    assert {(row["arm"], row["encoder"]) for row in rows if row["stage"] == "joint_sft"} == {
        (arm, ENCODERS[run.config.recipe(arm).objective]) for arm in run.config.arms
    }
    for metric in ("nse", "pai", "csai"):
        assert {(row["arm"], row["stage"], row["part"]) for row in rows if row["metric"] == metric} == stages
    for metric in ("eer", "ler", "h0", "h1", "h2"):
        assert {row["arm"] for row in rows if row["metric"] == metric and row["value"]} == set(run.config.arms)
    pairs = {(row["arm"], row["part"], row["compared_with"]) for row in rows if row["metric"] == "cka"}
    assert len(pairs) == len(stages) * (len(stages) - 1) // 2  # every pair of checkpoints
    assert {row["corpus_kind"] for row in rows} == {"synthetic"}
    assert "Entropy allocation" in (run.results / "report/index.html").read_text()


def test_the_frozen_encoder_stays_and_shares_stages(run: Run) -> None:
    cka = [row for row in run.table("entropy") if row["metric"] == "cka"]
    cka = [row for row in cka if row["arm"] == "encoder"]
    last = max(row["part"] for row in cka)
    kept = [float(row["value"]) for row in cka if row["compared_with"] == "frozen_encoder/joint_sft" and row["part"] == last]
    assert kept and min(kept) > 1 - 1e-9
    moved = [float(row["value"]) for row in cka if row["compared_with"] == "joint_only/joint_sft" and row["part"] == last]
    assert min(moved) < 1 - 1e-6
    assert sorted(path.name for path in (run.results / "systems/frozen_encoder/seed-1").iterdir()) == ["joint_sft"]


def job_span(folder: Path, output: Path) -> tuple[float, float]:
    """When the job that made a file started and ended, seconds."""
    name = base64.urlsafe_b64encode(str(output.relative_to(folder)).encode()).decode()
    record = json.loads((folder / ".snakemake/metadata" / name).read_text())
    return record["starttime"], record["endtime"]


def test_ia_sft_ran_beside_pretraining(run: Run) -> None:
    def record(folder: Path) -> dict:
        return json.loads((folder / "provenance.json").read_text())

    def span(folder: Path) -> tuple[datetime, datetime]:
        facts = record(folder)
        return datetime.fromisoformat(facts["started"]), datetime.fromisoformat(facts["ended"])

    ours = run.results / "systems/ours/seed-1"
    parts = [path.parent for path in sorted((run.results / "encoders/phoneme/seed-1").glob("part-*/part.json"))]
    assert len(parts) > 1 and json.loads((parts[0] / "part.json").read_text())["ended_by"] == "cka"
    # Whatever the load: neither waits for the other, and alignment has begun before pretraining ends.
    assert "/part-0/" in record(ours / "align")["inputs"]["encoder"]
    assert not any("systems/" in path for part in parts for path in record(part)["inputs"].values())
    assert span(parts[0])[1] < span(ours / "align")[0] < span(parts[-1])[1]
    # And they did run at once; which stage beside which part, and of which kind of pretraining, is for the scheduler to say.
    # Whole jobs are compared, by Snakemake's own record: at this scale most of a job is the start of its process.
    pretraining = [job_span(run.folder, path) for path in run.results.glob("encoders/*/seed-1/part-*/part.json")]
    models = [ours / "align/model.safetensors", *ours.glob("ia_sft/iter-[0-9]*/model.safetensors")]
    llm_side = [job_span(run.folder, path) for path in models]
    assert any(a < d and c < b for a, b in llm_side for c, d in pretraining)


def test_every_trained_artifact_says_where_it_comes_from(run: Run) -> None:
    found = [path for name in ("encoders", "systems", "text") for path in (run.results / name).rglob("*.safetensors")]
    models = [path for path in found if "training_state" not in path.name]
    assert len(models) >= 8
    for model in models:
        record = json.loads((model.parent / "provenance.json").read_text())
        assert record["sha256"]["config"] and record["packages"]["torch"] and record["wall_seconds"] > 0
    assert not list(run.results.rglob("*.pt")) and not list(run.results.rglob("*.bin"))


def test_the_rule_graph_in_the_docs_is_this_runs(run: Run) -> None:
    from entropy_asr.reporting.rulegraph import page

    if ALL_ARMS in run.files:
        pytest.skip("the picture is of the smaller run: the small LLM's rules are those of the other")
    assert (REPO / "docs/rulegraph.md").read_text() == page(run.folder), "run: python -m entropy_asr.reporting.rulegraph <run>"


def test_a_second_call_has_nothing_to_do(run: Run) -> None:
    assert planned(run.folder, "all", *run.options) == set()


def test_snakemakes_own_report_has_tables_and_figures_with_captions(run: Run, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    done = snakemake(run.folder, "all", "--report", str(page), *run.options)
    assert done.returncode == 0, done.stdout + done.stderr
    text = page.read_text()
    assert all(f'"{path}"' in text for path in ("results/tables/main.csv", "results/figures/errors.svg"))
    assert "Tidy table, made by rule" in text and '"Tables"' in text and '"Figures"' in text


def test_a_parameter_of_align_reruns_align_and_what_follows(run: Run, tmp_path: Path) -> None:
    changed = tmp_path / "changed.yaml"
    changed.write_text(with_other_alignment((REPO / "config/smoke.yaml").read_text()))
    rules = planned(run.folder, "results/tables/main.csv", "--configfile", str(changed), *map(str, run.files[1:]))
    assert {"stage_config", "align", "ia_sft_iteration", "joint_sft", "decode", "score", "table_main"} <= rules
    assert not rules & {"pretrain_part", "lm", "tokenizer", "manifests_embedded", "feature_stats", "decode_encoder"}


def test_forcing_joint_sft_reruns_it_and_what_follows(run: Run) -> None:
    rules = planned(run.folder, "results/tables/main.csv", "-R", "joint_sft", *run.options)
    assert {"joint_sft", "decode", "score", "table_main"} <= rules
    assert not rules & {"pretrain_part", "align", "ia_sft_iteration", "lm", "manifests_embedded", "decode_encoder"}


def test_joint_sft_can_be_run_again_alone(run: Run) -> None:
    rules = planned(run.folder, "results/tables/main.csv", "-R", "joint_sft", "--until", "joint_sft", *run.options)
    assert rules == {"joint_sft"}
