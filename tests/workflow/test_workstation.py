"""`snakemake --profile workstation`: the workflow on one machine with GPUs, which are pretended here."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from repository import ENVIRONMENT, REPO, snakemake

TARGETS = [f"results/encoders/phoneme/seed-{seed}/part-0/provenance.json" for seed in (1, 2)]


def call(folder: Path, cards: str, *words: str) -> subprocess.CompletedProcess:
    """The workflow where there are these cards, shared with nobody."""
    environment = {"CUDA_VISIBLE_DEVICES": cards, "TMPDIR": str(folder)}
    return snakemake(folder, *words, "--configfile", str(folder / "config.yaml"), **environment)


def smoke_with(folder: Path, **changes: Any) -> None:
    """A config of the smoke scale with other values in some sections."""
    config = yaml.safe_load((REPO / "config/smoke.yaml").read_text())
    for name, section in changes.items():
        config[name] = config[name] | section if isinstance(section, dict) else section
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pretrainings of a few steps, each on a card that computes like a CPU; what goes before them is made."""
    folder = tmp_path_factory.mktemp("workstation")
    sections = {"engine": {"precompute_features": False}, "pretrain": {"steps": 12}, "cka": {"max_parts": 1}}
    smoke_with(folder, seeds=[1, 2], resources={"gpus_per_node": 1, "device": "cpu"}, **sections)
    done = call(folder, "0", "step_data", "results/config/pretrain.json")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize(("cards", "expected"), [("7", ["7", "7"]), ("7,8", ["7", "8"])], ids=["one card", "two cards"])
def test_each_job_has_cards_of_its_own(cards: str, expected: list[str], experiment: Path) -> None:
    """On one card one after the other. On two side by side: a job that begins after the other's end would have the first card."""
    shutil.rmtree(experiment / "results/encoders", ignore_errors=True)
    done = call(experiment, cards, *TARGETS)
    assert done.returncode == 0, done.stderr
    made = [json.loads((experiment / target).read_text()) for target in TARGETS]
    assert sorted(facts["hardware"]["cuda_visible_devices"] for facts in made) == expected
    if expected[0] == expected[1]:
        first, second = sorted(made, key=lambda facts: facts["started"])
        assert first["ended"] <= second["started"]
    logs = [(experiment / f"results/logs/pretrain/phoneme/seed-{seed}/part-0.log").read_text() for seed in (1, 2)]
    assert "waiting for" not in "".join(logs), "Snakemake starts no job for which there is no card"


def test_a_run_that_needs_more_cards_ends_before_any_job(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        (REPO / "config/smoke.yaml").read_text().replace("  cpus: 1", "  gpus_per_node: 2\n  cpus: 2")
    )
    done = call(tmp_path, "0", TARGETS[0])
    assert done.returncode != 0
    assert "pretrain_part needs 2 card(s) (GPUs), and this machine has 1 (CUDA_VISIBLE_DEVICES is '0')" in done.stderr
    assert "`resources.gpus_per_node`" in done.stderr and not (tmp_path / "results/config").exists()
    done = call(tmp_path, "0,1", TARGETS[0], "--resources", "gpu=1")
    assert done.returncode != 0
    assert "pretrain_part needs 2 card(s), and this call allows --resources gpu=1" in done.stderr
    done = call(tmp_path, "", "results/config/pretrain.json")
    assert done.returncode == 0, "no card, no job that needs one"
    assert "a stage asks for 2 card(s), more than the 0 here" in done.stderr


def test_several_nodes_are_for_slurm(tmp_path: Path) -> None:
    smoke_with(tmp_path, resources={"nodes": 2})
    done = call(tmp_path, "", TARGETS[0])
    assert done.returncode != 0
    assert "pretrain_part asks for 2 nodes" in done.stderr and not (tmp_path / "results/config").exists()


@pytest.mark.parametrize("scale", ["mini", "paper"])
def test_the_profile_plans_an_experiment_for_this_machine(scale: str, tmp_path: Path) -> None:
    """As in docs/gpu.md. Results are those of the experiment: the overlay has no name."""
    words = ["snakemake", "--profile", "workstation", "-n", "results/tables/main.csv", "--directory", str(tmp_path)]
    words += ["--configfile", "config/paper.yaml", "config/workstation.yaml"] if scale == "paper" else []
    environment = ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": "0,1"}
    done = subprocess.run(words, cwd=REPO, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "rule table_main:" in done.stdout and ("unpack_corpus" in done.stdout) == (scale == "mini")
    asked = dict(re.findall(r"^(?:rule|checkpoint) (\w+):\n(?:    .*\n)*?    resources: (.*)$", done.stdout, re.MULTILINE))
    for rule in ("pretrain_part", "joint_sft", "decode", "decode_encoder"):
        assert "gpu=1" in asked[rule].split(", ") and "gres" not in asked[rule]
    assert not [rule for rule in ("feature_stats", "score", "table_main") if "gpu" in asked[rule]]
