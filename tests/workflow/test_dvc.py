"""DVC and Snakemake say the same (fast); a whole smoke experiment by `dvc repro`, pushed and pulled (`make test-dvc`)."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from repository import ENVIRONMENT, REPO, snakemake, with_other_alignment

from entropy_asr.config_files import load_config
from entropy_asr.files import sha256
from entropy_asr.pipeline import dvc_yaml, steps
from entropy_asr.reporting.rulegraph import records

SMOKE = "config/smoke.yaml"
PLACE = "runs/smoke/"  # of the smoke config's results
NOT_VERSIONED = ("results/audio/embedded/", "results/audio/features/", "results/logs/", "results/benchmarks/", "results/state/")


def test_the_committed_dvc_yaml_is_that_of_the_default_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    assert Path("dvc.yaml").read_text() == dvc_yaml(Path("config/mini.yaml")), "run: entropy-asr dvc"


@pytest.mark.parametrize("scale", ["smoke", "mini", "paper"])
def test_each_step_is_a_target_and_takes_only_what_earlier_steps_make(scale: str) -> None:
    targets = set(re.findall(r"^rule (step_\w+):", (REPO / "workflow/rules/steps.smk").read_text(), re.MULTILINE))
    config = load_config(REPO / f"config/{scale}.yaml")
    found = steps(config)
    assert {f"step_{step.name}" for step in found} == targets
    made: set[str] = set()
    for step in found:
        assert {dep for dep in step.deps if dep.startswith("results/")} <= made, step
        made |= set(step.outs)


def test_each_planned_file_belongs_to_one_step(tmp_path: Path) -> None:
    plan = snakemake(tmp_path, f"--configfile={REPO / SMOKE}", "-n", "step_report").stdout
    outputs = [name for line in re.findall(r"^ +output: (.*)$", plan, re.MULTILINE) for name in line.split(", ")]
    assert len(outputs) > 30
    for name in outputs:
        assert len(steps_with(name)) == (0 if name.startswith(NOT_VERSIONED) else 1), name


def steps_with(name: str) -> list[str]:
    """The steps that have a file among their outputs."""
    found = []
    for step in steps(load_config(REPO / SMOKE)):
        outs = [*step.outs, *(f"results/config/{stage}.json" for stage in step.configs)]
        found += [step.name for out in outs if name == out or name.startswith(f"{out}/")]
    return found


# -- for real --------------------------------------------------------------------------------------------------------------


def run(folder: Path, command: str) -> str:
    environment = ENVIRONMENT | {"PYTHONPATH": str(folder / "src"), "DVC_NO_ANALYTICS": "1", "COLUMNS": "200"}
    done = subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def commit(folder: Path, message: str) -> None:
    run(folder, f"git add -A && git -c user.name=test -c user.email=test@localhost commit -q -m '{message}'")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A clean checkout of the working tree, for the smoke config, after `dvc repro`."""
    folder = tmp_path_factory.mktemp("dvc") / "repository"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPO, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (REPO / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPO / name, folder / name)
    run(folder, "git init -q")
    run(folder, f"python -m entropy_asr.cli dvc {SMOKE}")
    run(folder, f"dvc remote add -q -d store {folder.parent / 'store'}")
    commit(folder, "start")
    run(folder, "dvc repro")
    commit(folder, "the smoke run")
    yield folder
    shutil.rmtree(folder.parent)


def planned(folder: Path, *words: str) -> tuple[set[str], set[str]]:
    """Steps that DVC finds changed with all that follow them, and steps that have a file which snakemake would make."""
    changed = set(re.findall(r"Running stage '(\w+)'", run(folder, "dvc repro --dry")))
    stages = yaml.safe_load((folder / "dvc.yaml").read_text())["stages"]
    for name, stage in stages.items():  # a dry run makes nothing, so DVC does not see yet what will follow
        makers = {other for other in changed for out in stages[other]["outs"] for path in out if path in stage.get("deps", [])}
        changed |= {name} if makers else set()
    plan = run(folder, f"snakemake -n --configfile={SMOKE} step_report {' '.join(words)}")
    files = [name for line in re.findall(r"^ +output: (.*)$", plan, re.MULTILINE) for name in line.split(", ")]
    return changed, {step for name in files for step in steps_with(name)}


@pytest.mark.dvc
def test_repro_makes_the_table_and_a_second_one_does_nothing(made: Path) -> None:
    assert (made / PLACE / "results/tables/main.csv").stat().st_size > 100
    assert "Data and pipelines are up to date" in run(made, "dvc repro")
    assert planned(made) == (set(), set())
    assert "Running stage" not in run(made, "dvc repro score")


@pytest.mark.dvc
def test_every_file_made_and_every_file_read_is_in_dvc_yaml(made: Path) -> None:
    """Each rule's inputs are outputs of its own step or of the steps that dvc.yaml has as dependencies of it."""
    rows = records(made / PLACE)
    assert len(rows) > 60
    stages = yaml.safe_load((made / "dvc.yaml").read_text())["stages"]
    for output, (_, inputs) in rows.items():
        owner = steps_with(output)
        assert len(owner) == (0 if output.startswith(NOT_VERSIONED) else 1), output
        for name in inputs if owner else []:
            if name.startswith(NOT_VERSIONED) or not name.startswith("results/") or steps_with(name) == owner:
                continue
            places = [*(dep.removeprefix(PLACE) for dep in stages[owner[0]]["deps"]), "results/config"]
            assert any(name == place or name.startswith(f"{place}/") for place in places), (output, name)


@pytest.mark.dvc
def test_metrics_plots_and_params_are_shown(made: Path) -> None:
    shown = json.loads(run(made, "dvc metrics show --json").splitlines()[0])
    values = shown[""]["data"][f"{PLACE}results/tables/summary.json"]["data"]
    assert values["ours"]["seed-1"]["english"]["WER_percent"] >= 0
    run(made, "dvc plots show -q")
    assert (made / "dvc_plots/index.html").stat().st_size > 1000
    shutil.rmtree(made / "dvc_plots")


@pytest.mark.dvc
def test_a_changed_parameter_reruns_the_same_steps_in_both_tools(made: Path) -> None:
    text = (made / SMOKE).read_text()
    try:
        (made / SMOKE).write_text(with_other_alignment(text))
        by_dvc, by_snakemake = planned(made)
        assert by_dvc == by_snakemake == {"align", "ia_sft", "joint_sft", "decode", "score", "metrics", "report"}
        assert "align.peak_lr" in run(made, "dvc params diff")
    finally:
        (made / SMOKE).write_text(text)


@pytest.mark.dvc
def test_repro_after_a_changed_parameter_makes_joint_sft_from_the_new_alignment(made: Path) -> None:
    """Each step is a call of snakemake of its own: that alignment is another must be seen by those after it."""
    text, models = (made / SMOKE).read_text(), sorted((made / PLACE / "results/systems").rglob("joint_sft/model.safetensors"))
    before = [sha256(path) for path in models]
    try:
        (made / SMOKE).write_text(with_other_alignment(text))
        run(made, "dvc repro joint_sft")
        assert models and all(sha256(path) != old for path, old in zip(models, before, strict=True))
    finally:
        run(made, f"git checkout -q dvc.lock {SMOKE} && dvc checkout -q")
    assert [sha256(path) for path in models] == before
    assert planned(made) == (set(), set())  # what was checked out is what this config made


@pytest.mark.dvc
def test_a_fresh_clone_has_nothing_to_do_after_pull_and_restore(made: Path) -> None:
    run(made, "dvc push -q")
    clone = made.parent / "clone"
    run(made.parent, f"git clone -q {made} {clone}")
    run(clone, "dvc pull -q")
    run(clone, f"python -m entropy_asr.cli restore {SMOKE}")
    plan = run(clone, f"snakemake -n --configfile={SMOKE} results/tables/main.csv")
    assert "Nothing to be done" in plan
    assert planned(clone) == (set(), set())
    for lost, rules in (("decode/ours/seed-1/english.jsonl", {"decode"}), ("tables/main.csv", {"table_main"})):
        (clone / PLACE / "results" / lost).unlink()
        plan = run(clone, f"snakemake -n --configfile={SMOKE} results/{lost}")
        assert set(re.findall(r"^(?:local)?(?:rule|checkpoint) (\w+):", plan, re.MULTILINE)) == rules
    text = (clone / SMOKE).read_text()
    (clone / SMOKE).write_text(text.replace("max_tokens_per_second: 4", "max_tokens_per_second: 3"))
    restore = [sys.executable, "-m", "entropy_asr.cli", "restore", SMOKE]
    refused = subprocess.run(restore, cwd=clone, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert refused.returncode == 2 and f"{PLACE}results/config/decode.json differs" in refused.stderr
    shutil.rmtree(clone)


@pytest.mark.dvc
def test_an_experiment_reruns_what_follows_and_its_metrics_differ(made: Path) -> None:
    before = {path: path.read_text() for path in (made / PLACE / "results").rglob("joint_sft/provenance.json")}  # with times
    printed = run(made, f"dvc exp run -S {SMOKE}:decode.max_tokens_per_second=2 -S {SMOKE}:decode.max_duration=50")
    assert "Running stage 'decode'" in printed and "Running stage 'joint_sft'" not in printed
    assert before and before == {path: path.read_text() for path in before}
    assert "decode.max_duration" in run(made, "dvc params diff")
    assert "summary.json" in run(made, "dvc metrics diff --all")
