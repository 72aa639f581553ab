# What the rules share: the validated config, where results lie, what is out of date, how a training job is started.
import os
from pathlib import Path

import yaml

from entropy_asr import cluster, records
from entropy_asr.config import CTC_OBJECTIVES, ENCODERS
from entropy_asr.config_files import load_config, missing_folders, stage_json, stage_names
from entropy_asr.digests import Digests
from entropy_asr.errors import InputError

try:
    CONFIG = load_config(dict(config))
    SITE = cluster.load_site(Path(workflow.basedir) / "slurm")
except InputError as error:
    raise WorkflowError(str(error))

# Results of the default config lie in the repository's results/; those of another in runs/<name>/results/, unless the call
# names a --directory. Targets are typed alike: results/tables/main.csv. The snakemake of a Slurm job is not told the --directory
# of its coordinator: it is called there, and a .snakemake says so.
HOME = Path(workflow.basedir) / CONFIG.folder
CALLED_IN = Path.cwd()
BELOW = CALLED_IN.is_relative_to(workflow.basedir) and (CALLED_IN == Path(workflow.basedir) or not Path(".snakemake").is_dir())
if workflow.overwrite_workdir is None and BELOW and CALLED_IN != HOME:
    workdir: str(HOME)
    # Slurm's jobs start there, too, and are known by it (cluster.slurm_jobs). The executor asks for the folder of the call, and
    # Snakemake has no other way to change it.
    workflow._workdir_init = str(HOME)
REPO = os.path.relpath(workflow.basedir, os.getcwd())
SEEDS, ARMS, TESTS = CONFIG.seeds, CONFIG.arms, sorted(CONFIG.data.test)
OBJECTIVES = CONFIG.objectives
HEARD = {ENCODERS[objective]: objective for objective in OBJECTIVES if objective in CTC_OBJECTIVES}  # encoders with rows of their own
MADE = CONFIG.all_arms  # and those whose stages an arm shares
REPORTED = "ours" if "ours" in ARMS else ARMS[0]  # whose transcripts the report shows, and what others are compared with

wildcard_constraints:
    arm="|".join(MADE),
    seed=r"\d+",
    part=r"\d+",
    iteration=r"\d+",
    stage=r"[\w.+-]+",
    objective="|".join(ENCODERS),
    heard="|".join(HEARD) or "none",
    corpus="|".join(CONFIG.data.corpora),
    testset="|".join(TESTS),
    peer="|".join(CONFIG.peers) or "none",
    model=r"[\w.-]+",


def in_repo(path):
    return os.path.normpath(os.path.join(REPO, path))


def manifest(split):
    return f"results/manifests/{split}.jsonl.gz"


TRAIN = [manifest(split) for split in CONFIG.data.train]
TRAINED_ON = [f"results/audio/features/{split}.jsonl.gz" for split in CONFIG.data.train] if CONFIG.engine.precompute_features else TRAIN
DEV = [manifest(split) for split in CONFIG.data.dev]
# Of the stages that may need GPUs: what their jobs ask Slurm for, and the words that start their processes.
CLUSTER_STAGES = ["lm", "pretrain", "align", "ia_sft", "joint_sft", "decode", "metrics"]
# Only executors of a cluster have a number of nodes (`jobs`), and a snakemake inside of a job is never the main process.
HERE = workflow.is_main_process and workflow.resource_settings.nodes is None
RESOURCES = {stage: cluster.stage_resources(CONFIG.resources, stage, SITE, HERE) for stage in CLUSTER_STAGES}


class Launch:
    """The words before a stage's module. Asked for when a job starts: only then is it certain which executor starts it."""

    def __getitem__(self, stage):
        here = workflow.is_main_process and getattr(workflow.executor_plugin, "name", None) == "local"
        return cluster.launch(CONFIG.resources, stage, SITE, here)


LAUNCH = Launch()
# Each rule's shell begins with RECORD: it notes beside its first output what the job was made from. Inputs that only decide when
# a job runs (`ancient`) are left out.
shell.prefix((cluster.shell_prefix(SITE) + records.SHELL).replace("{", "{{").replace("}", "}}"))
def recording(inputs="{input:q}"):
    return "record {rule} {log:q} {output:q} -- " + inputs + "; "


RECORD = recording()
ANCHOR = in_repo("workflow/rules/common.smk")


def stage_file(name):
    return f"results/config/{name}.json"


OUTSIDE = Digests.remembered(Path("results"))


def stage_text(name):
    return stage_json(CONFIG, name, Path(REPO), OUTSIDE)


RESOLVED = yaml.safe_dump(CONFIG.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def written_from_config():
    """Text of each file that the rules write from the config, by path."""
    return {stage_file(name): stage_text(name) + "\n" for name in stage_names(CONFIG)} | {"results/config/resolved.yaml": RESOLVED}


def one_experiment():
    """Refuse a results folder of another experiment: the two would overwrite each other."""
    owner = Path("results/config/experiment")
    found = owner.read_text().strip() if owner.exists() else None
    if found is None and next(Path("results").glob("config/*.json"), None):
        raise WorkflowError(
            f"{Path.cwd() / 'results'} has results, but not which experiment made them (results/config/experiment). Pulled by DVC: "
            "`entropy-asr restore CONFIG`. Made by an older version of this repository: move them away."
        )
    if found not in (None, CONFIG.name):
        raise WorkflowError(
            f"{Path.cwd() / 'results'} belongs to the experiment '{found}', and this config is '{CONFIG.name}'. Leave --directory out: "
            f"its results then lie in runs/{CONFIG.name}; or name another folder."
        )


def folders_are_there():
    """Refuse to plan where data that results were made from are gone, as when a disk is not mounted: all would count as stale."""
    lost = missing_folders(CONFIG, Path(REPO))
    if lost and next(Path("results/manifests").glob("*/.*.record.json"), None):
        raise WorkflowError(f"{lost[0]} is not there, but these results were made from it: mount it, or change the config")


one_experiment()
folders_are_there()
if workflow.is_main_process and any(Path(".snakemake/locks").glob("*")):
    logger.info("another snakemake runs here, or was killed: contents are not compared now (if it was killed: --unlock)")
elif workflow.is_main_process:
    try:
        FOUND = records.reconcile(Path("results"), written_from_config(), Path(ANCHOR), OUTSIDE)
    except InputError as error:
        raise WorkflowError(str(error))
    for line in FOUND.lines():
        logger.info(line)


rule stage_config:
    # One file a stage with the sections that it reads: a stage runs again when its own parameters change, and only then.
    input:
        ANCHOR,
    output:
        "results/config/{stage}.json",
    params:
        text=lambda wildcards: stage_text(wildcards.stage),
    localrule: True
    priority: 50  # a stage that waits for its config could not go before what matters less
    shell:
        "printf '%s\\n' {params.text:q} > {output}"
