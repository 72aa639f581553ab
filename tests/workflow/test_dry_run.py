"""Plans of a fresh checkout: every scale can be planned, a wrong config stops before any rule."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from repository import ENVIRONMENT, REPO, snakemake


@pytest.mark.parametrize("scale", ["smoke", "mini", "study", "paper"])
def test_a_fresh_checkout_can_be_planned(scale: str, tmp_path: Path) -> None:
    configs = ["mini", "study"] if scale == "study" else [scale]
    paths = [str(REPO / f"config/{name}.yaml") for name in configs]
    done = snakemake(tmp_path, "-n", "results/tables/main.csv", "--configfile", *paths)
    assert done.returncode == 0, done.stderr
    assert "pretrain_part" in done.stdout
    assert ("unpack_corpus" in done.stdout) == (scale != "paper")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("target", "rule"), [("corpus_from_scratch", "corpus_synthesize"), ("results/embedded_lm/model.safetensors", "lm")]
)
def test_what_ships_can_be_made_again(target: str, rule: str, tmp_path: Path) -> None:
    """The embedded corpus and the small LM, which the experiment only reads."""
    configs = [str(REPO / f"config/{name}.yaml") for name in ("mini", "embedded_lm")]
    done = snakemake(tmp_path, "-n", target, "--configfile", *configs)
    assert done.returncode == 0, done.stderr
    assert f"rule {rule}:" in done.stdout


def test_the_encoder_of_a_peer_is_measured_where_the_config_says_so(tmp_path: Path) -> None:
    name = "results/metrics/encoder/peers/{}.json"
    configs = [str(REPO / f"config/{name}.yaml") for name in ("mini", "peers")]
    done = snakemake(tmp_path, "-n", name.format("whisper-base"), "--configfile", *configs)
    assert done.returncode == 0, done.stderr
    assert "rule peer_encoder_metrics" in done.stdout and "rule peer_packaged" in done.stdout


@pytest.mark.parametrize(("seeds", "priority"), [("[1]", "14"), ("[1, 2]", "10")])
def test_the_first_part_has_both_cores_and_an_only_pretraining_goes_first(seeds: str, priority: str, tmp_path: Path) -> None:
    target, config = "results/encoders/phoneme/seed-1/part-1/encoder.safetensors", str(REPO / "config/mini.yaml")
    done = snakemake(tmp_path, "-n", target, "--configfile", config, "--config", f"seeds={seeds}")
    assert done.returncode == 0, done.stderr
    planned = re.findall(
        r"^checkpoint pretrain_part:.*?part=(\d+)\n +priority: (\d+)(?:\n +threads: (\d+))?\n +resources: .*?cpus_per_task=(\d+)",
        done.stdout,
        re.MULTILINE | re.DOTALL,
    )
    assert sorted(planned) == [("0", priority, "2", "2"), ("1", priority, "", "1")]


@pytest.mark.parametrize("running", [True, False])
def test_the_snakemake_of_a_slurm_job_stays_in_its_coordinators_folder(running: bool) -> None:
    """It gets no --directory; one that a user calls below the repository goes to the folder of its config's name."""
    folder = REPO / "runs/test-called-here"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "results/config").mkdir(parents=True)
    (folder / "results/config/experiment").write_text("other\n")  # whoever works here is refused
    if running:
        (folder / ".snakemake").mkdir()
    command = ["snakemake", "--snakefile", str(REPO / "Snakefile"), "-n", "--configfile", str(REPO / "config/smoke.yaml")]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    shutil.rmtree(folder)
    assert (f"{folder / 'results'} belongs to the experiment 'other'" in done.stdout + done.stderr) == running


def test_a_wrong_key_stops_before_any_rule(tmp_path: Path) -> None:
    config = tmp_path / "wrong.yaml"
    config.write_text((REPO / "config/smoke.yaml").read_text().replace("align:", "algin:"))
    done = snakemake(tmp_path, "--configfile", str(config), "-n")
    assert done.returncode != 0
    assert "unknown key 'algin'; did you mean 'align'?" in done.stderr + done.stdout
