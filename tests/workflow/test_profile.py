"""`snakemake --profile slurm` without a cluster: what it plans, and the sbatch lines that the executor would make of it."""

import re
import resource
import shlex
import subprocess
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from repository import ENVIRONMENT, REPO

from entropy_asr.config_files import load_config

PAPER = load_config(REPO / "config/paper.yaml")
STAGES = {"pretrain_part": "pretrain", "joint_sft": "joint_sft", "decode": "decode", "decode_encoder": "decode"}
SECONDS = 10


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The dry run of the paper's experiment, typed as in the README, its results elsewhere; and a site of our own."""
    folder = tmp_path_factory.mktemp("plan")
    (folder / "site.yaml").write_text("account: speech\ngpu_partition: a100\ncpu_partition: cpu\ngpu_constraint: 80gb\n")
    environment = ENVIRONMENT | {"ENTROPY_ASR_SITE": str(folder / "site.yaml")}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = ["snakemake", "--profile", "slurm", "--directory", str(folder), "-n", "results/tables/main.csv"]
    done = subprocess.run(command, cwd=REPO, env=environment, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert cpu_seconds < SECONDS, "planning is slow"  # CPU time: the same on a busy machine
    return done.stdout


def jobs(plan: str) -> list[tuple[str, dict[str, str]]]:
    """Rule and resources of each planned job that is not local."""
    found, rule = [], None
    for line in plan.splitlines():
        if match := re.match(r" *(local)?(?:rule|checkpoint) (\w+):$", line):
            rule = (match[2], bool(match[1]))
        elif (match := re.match(r" +resources: (.*)$", line)) and rule:
            if not rule[1]:
                found.append((rule[0], dict(word.split("=", 1) for word in match[1].split(", "))))
            rule = None
    return found


def sbatch(asked: dict[str, str]) -> list[str]:
    """The line that the executor plugin makes of a job's resources."""
    from snakemake_executor_plugin_slurm.submit_string import get_submit_command
    from snakemake_executor_plugin_slurm.utils import set_gres_string

    class Asked(dict):
        __getattr__ = dict.__getitem__

    typed = Asked({name: int(value) if value.isdigit() else value for name, value in asked.items()})
    job = SimpleNamespace(resources=typed, threads=1)
    words = {"run_uuid": "run", "slurm_logfile": "log", "comment_str": "rule", "workdir": "here"}
    words |= {"account": f"-A {typed.slurm_account}", "partition": f"-p {typed.slurm_partition}"}
    settings = SimpleNamespace(**profile_settings())
    return shlex.split(get_submit_command(job, words, settings=settings) + set_gres_string(job))


def profile_settings() -> dict[str, object]:
    profile = yaml.safe_load((REPO / "slurm/config.v9+.yaml").read_text())
    given = {name.removeprefix("slurm-").replace("-", "_"): value for name, value in profile.items() if name.startswith("slurm-")}
    return {"requeue": False, "no_requeue": False, "qos": None, "reservation": None} | given


def test_the_whole_experiment_is_planned_by_stage(plan: str) -> None:
    count = Counter(rule for rule, _ in jobs(plan))
    seeds, arms, tests = len(PAPER.seeds), len(PAPER.arms), len(PAPER.data.test)
    assert (seeds, arms) == (3, 7)
    assert count["pretrain_part"] == seeds * len(PAPER.objectives)  # the later parts, and align, follow from the first
    assert count["joint_sft"] == seeds * arms
    assert count["decode"] == seeds * arms * tests and count["decode_encoder"] == seeds * tests * 2  # those with a CTC head
    table = plan[plan.rindex("Job stats:") :]
    assert re.search(rf"^joint_sft +{seeds * arms}$", table, re.MULTILINE)


def test_a_stage_asks_for_whole_nodes_and_a_decoder_for_one_gpu(plan: str) -> None:
    seen = set()
    for rule, asked in jobs(plan):
        if rule not in STAGES:
            continue
        seen.add(rule)
        line, wanted = sbatch(asked), PAPER.resources.of(STAGES[rule])
        assert f"--gres=gpu:a100:{wanted.gpus_per_node}" in line
        assert f"--nodes={wanted.nodes}" in line and f"--cpus-per-task={wanted.cpus}" in line
        assert line[line.index("-t") + 1] == str(wanted.runtime) and line[line.index("--mem") + 1] == str(wanted.mem_mb)
        assert (
            line[line.index("-p") + 1] == "a100"
            and line[line.index("-A") + 1] == "speech"
            and line[line.index("-C") + 1] == "80gb"
        )
        assert ("--signal=TERM@900" in line) == (rule in ("pretrain_part", "joint_sft"))
        assert "--requeue" in line
    assert seen == set(STAGES)


def test_a_small_step_asks_for_one_core_of_the_other_partition(plan: str) -> None:
    small = [asked for rule, asked in jobs(plan) if rule in ("score", "table_main", "feature_stats")]
    assert small
    for asked in small:
        line = sbatch(asked)
        assert not [word for word in line if "gres" in word or "signal" in word]
        assert line[line.index("-p") + 1] == "cpu" and "-C" not in line and "--cpus-per-task=1" in line


def test_a_few_hundred_files_are_not_a_few_hundred_jobs(plan: str) -> None:
    profile = yaml.safe_load((REPO / "slurm/config.v9+.yaml").read_text())
    grouped = dict(word.split("=") for word in profile["groups"])
    size = {name: int(count) for name, count in (word.split("=") for word in profile["group-components"])}
    count = Counter(grouped.get(rule, rule) for rule, _ in jobs(plan))
    assert -(-count["scores"] // size["scores"]) < count["scores"] / 10


def test_every_name_in_the_profile_is_a_rule_or_an_option() -> None:
    profile = yaml.safe_load((REPO / "slurm/config.v9+.yaml").read_text())
    rules = set(
        re.findall(r"^(?:rule|checkpoint) (\w+):", "".join(p.read_text() for p in REPO.glob("workflow/rules/*.smk")), re.M)
    )
    assert {word.split("=")[0] for word in profile["groups"]} <= rules
    help_text = subprocess.run(["snakemake", "--help"], env=ENVIRONMENT, capture_output=True, text=True, check=True).stdout
    missing = [name for name in profile if not re.search(rf"--{re.escape(name)}\b", help_text)]
    assert missing == [] and Path(REPO / profile["configfile"][0]).is_file()
