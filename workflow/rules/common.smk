# What the rules share: the validated config, the stages' own sections of it, and how a training job is started.
import os
from pathlib import Path

from entropy_asr import cluster
from entropy_asr.config import CTC_OBJECTIVES, ENCODERS
from entropy_asr.config_files import load_config, stage_json
from entropy_asr.errors import InputError

try:
    CONFIG = load_config(dict(config))
    SITE = cluster.load_site(Path(workflow.basedir) / "slurm")
except InputError as error:
    raise WorkflowError(str(error))

# The repository as seen from the working directory: results/ of another scale live elsewhere, data and code do not.
REPO = os.path.relpath(workflow.basedir, os.getcwd())
SEEDS, ARMS, TESTS = CONFIG.seeds, CONFIG.arms, sorted(CONFIG.data.test)
OBJECTIVES = CONFIG.objectives
HEARD = {ENCODERS[objective]: objective for objective in OBJECTIVES if objective in CTC_OBJECTIVES}  # encoders with rows of their own
MADE = list(dict.fromkeys([*ARMS, *CONFIG.arms_with("align")]))  # and those whose stages an arm shares
REPORTED = "ours" if "ours" in ARMS else ARMS[0]  # whose transcripts the report shows, and what others are compared with

wildcard_constraints:
    arm="|".join(MADE),
    seed=r"\d+",
    part=r"\d+",
    iteration=r"\d+",
    stage=r"[a-z_]+",
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
RESOURCES = {stage: cluster.stage_resources(CONFIG.resources, stage, SITE) for stage in CLUSTER_STAGES}
LAUNCH = {stage: cluster.launch(CONFIG.resources, stage, SITE) for stage in CLUSTER_STAGES}
shell.prefix(cluster.shell_prefix(SITE).replace("{", "{{").replace("}", "}}"))


rule stage_config:
    # One file a stage with the sections that it reads: a stage runs again when its own parameters change, and only then.
    output:
        "results/config/{stage}.json",
    params:
        text=lambda wildcards: stage_json(CONFIG, wildcards.stage),
    localrule: True
    priority: 50  # a stage that waits for its config could not go before what matters less
    shell:
        "printf '%s\\n' {params.text:q} > {output}"
