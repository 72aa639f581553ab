"""The whole workflow at the smoke scale, for real: it runs, it is asynchronous, and it runs again only what must."""

import csv
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from repository import REPO, snakemake, with_other_alignment

from entropy_asr.config import ENCODERS, Config
from entropy_asr.config_files import load_config
from entropy_asr.files import sha256
from entropy_asr.records import Begun, begun_path, read_begun, record_path

SMOKE, ARMS, ALL_ARMS = (
    REPO / name for name in ("config/smoke.yaml", "tests/workflow/arms.yaml", "tests/workflow/all_arms.yaml")
)


class Run(NamedTuple):
    """A finished run, and the files of its config."""

    folder: Path
    files: tuple[Path, ...]
    at_once: list[str]
    """Rules of the jobs that ran when the first IA-SFT iteration had begun and pretraining part 1 was held."""

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
    made, over = Run(folder, request.param, []), threading.Event()
    watch = threading.Thread(target=hold_part_1, args=(made, over), daemon=True)
    watch.start()
    done = snakemake(folder, "all", *made.options)
    over.set()
    assert done.returncode == 0, done.stdout + done.stderr
    watch.join(1)
    yield made
    shutil.rmtree(folder)


HELD_SECONDS = 1800  # at most: an iteration that waits for the part would otherwise never begin


def hold_part_1(run: Run, over: threading.Event) -> None:
    """Suspend pretraining part 1 until IA-SFT iteration 0 has begun. At this scale stages take seconds, and their order in time
    is luck: held, the part can only run beside the iteration if the iteration does not wait for it."""

    def begun(output: str) -> Begun | None:
        path = begun_path(run.results / output)
        return Begun.read(path) if path.exists() else None

    def wait_for(output: str) -> Begun:
        deadline = time.monotonic() + HELD_SECONDS
        while (job := begun(output)) is None:
            assert not over.is_set() and time.monotonic() < deadline, output
            time.sleep(0.1)
        return job

    part = wait_for("encoders/phoneme/seed-1/part-1/encoder.safetensors")
    held = [psutil.Process(part.process), *psutil.Process(part.process).children(recursive=True)]
    for process in held:
        process.suspend()
    iteration = "systems/ours/seed-1/ia_sft/iter-0/model.safetensors"
    try:
        if (run.results / iteration).exists():  # among many arms the part may come later
            return
        wait_for(iteration)
        run.at_once.extend(job.rule for job in read_begun(run.results) if psutil.pid_exists(job.process))
    finally:
        for process in held:
            process.resume()


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
    # And they do run at once, when the part is held until the iteration has begun, if that was not over before.
    over_before = span(ours / "ia_sft/iter-0")[1] <= span(parts[1])[0]
    assert {"pretrain_part", "ia_sft_iteration"} <= set(run.at_once) or (not run.at_once and over_before)


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


def test_touched_inputs_and_a_copied_tree_have_nothing_to_do(run: Run) -> None:
    for path in (
        REPO / "data/embedded/utterances.jsonl",
        REPO / "data/embedded/SHA256SUMS",
        REPO / "data/embedded/lm_text.jsonl.gz",
    ):
        os.utime(path)
    assert planned(run.folder, "all", *run.options) == set()
    copy = run.folder.with_name("test-smoke-copy")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run.folder, copy, copy_function=shutil.copy)  # without times
    try:
        assert planned(copy, "all", *run.options) == set()
    finally:
        shutil.rmtree(copy)


def test_a_model_changed_by_hand_is_made_again(run: Run) -> None:
    model = run.results / "systems/ours/seed-1/align/model.safetensors"
    content = model.read_bytes()
    model.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    rules = planned(run.folder, "all", *run.options)
    assert {"align", "ia_sft_iteration", "ia_sft_gate", "joint_sft", "decode"} <= rules
    assert not rules & {"pretrain_part", "lm", "decode_encoder"}
    model.write_bytes(content)
    assert planned(run.folder, "all", *run.options) == set()


@contextmanager
def remade(run: Run, path: Path, first: Path, content: bytes) -> Iterator[None]:
    """As if the job with this first output had been run again, by a call of its own, and had made another file."""
    kept = {path: path.read_bytes(), record_path(first): record_path(first).read_bytes()}
    record = json.loads(kept[record_path(first)])
    try:
        path.write_bytes(content)
        record["outputs"][f"results/{path.relative_to(run.results)}"] = sha256(path)
        record_path(first).write_text(json.dumps(record))
        yield
    finally:
        for file, old in kept.items():
            file.write_bytes(old)
    assert planned(run.folder, "all", *run.options) == set()


def test_another_model_of_an_iteration_is_another_gate_and_another_joint_sft(run: Run) -> None:
    model = run.results / "systems/ours/seed-1/ia_sft/iter-0/model.safetensors"
    content = model.read_bytes()
    with remade(run, model, model, content[:-1] + bytes([content[-1] ^ 1])):
        assert "joint_sft" in planned(run.folder, "step_joint_sft", *run.options)
        assert "ia_sft_gate" in planned(run.folder, "step_ia_sft", *run.options)


def test_a_pretraining_that_ends_in_fewer_parts_is_another_gate(run: Run) -> None:
    """What joint SFT goes on from is the last iteration on an encoder that there is."""
    part = run.results / "encoders/phoneme/seed-1/part-0/part.json"
    ended = json.dumps(json.loads(part.read_text()) | {"ended_by": "last_step"}).encode()
    with remade(run, part, part.with_name("encoder.safetensors"), ended):
        done = snakemake(run.folder, "-n", "step_joint_sft", *run.options)
        gates = re.findall(r"output: results/systems/ours/seed-1/ia_sft/gate-(\d)\.json", done.stdout)
        assert len(set(gates)) == run.config.cka.max_parts, done.stdout[-2000:]
        assert "rule joint_sft:" in done.stdout
        assert "output: results/systems/ours/seed-1/align/" not in done.stdout  # its encoder is that of part 0 still


def test_a_lost_model_is_reported_and_made_again_where_it_was_interrupted(run: Run) -> None:
    """Ctrl-C in `-R joint_sft --until joint_sft`: the model is gone, what was made from the earlier one is there."""
    model = run.results / "systems/ours/seed-1/joint_sft/model.safetensors"
    aside = model.with_name("aside")
    model.rename(aside)
    done = snakemake(run.folder, "-n", "all", *run.options)
    assert "missing: results/systems/ours/seed-1/joint_sft/model.safetensors" in done.stdout + done.stderr
    outputs = json.loads(record_path(model).read_text())["outputs"]
    words = ["host", "1", "folder", "joint_sft", "log", *outputs, "--", "results/config/joint_sft.json"]
    begun_path(model).write_text("\n".join([*words, ""]))
    try:
        assert {"joint_sft", "decode", "table_main"} <= planned(run.folder, "all", *run.options)
    finally:
        begun_path(model).unlink()
        aside.rename(model)
    assert planned(run.folder, "all", *run.options) == set()


def test_without_an_arm_only_what_compares_arms_runs_again(run: Run, tmp_path: Path) -> None:
    less = tmp_path / "less.yaml"
    less.write_text(f"arms: {[arm for arm in run.config.arms if arm != 'joint_only']}\n")
    rules = planned(run.folder, "all", *run.options, str(less))
    assert {"significance", "drift", "table_entropy", "table_main", "report"} <= rules
    assert not rules & {"pretrain_part", "align", "ia_sft_iteration", "joint_sft", "decode", "score", "manifests_embedded"}
    assert planned(run.folder, "all", *run.options) == set()


def test_without_snakemakes_notes_a_changed_parameter_is_seen(run: Run, tmp_path: Path) -> None:
    changed = tmp_path / "changed.yaml"
    changed.write_text(with_other_alignment((REPO / "config/smoke.yaml").read_text()))
    notes, aside = run.folder / ".snakemake", run.folder / "notes"
    notes.rename(aside)
    try:
        assert planned(run.folder, "all", *run.options) == set()
        rules = planned(run.folder, "all", "--configfile", str(changed), *map(str, run.files[1:]))
        assert "align" in rules and "pretrain_part" not in rules
    finally:
        shutil.rmtree(notes, ignore_errors=True)
        aside.rename(notes)


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
