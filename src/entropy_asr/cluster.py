"""What a stage's job asks Slurm for, how its processes are started on the nodes, and what one site needs for that.

The rules take two things from here: `stage_resources`, the words of the `sbatch` line, and `launch`, the words before the
stage's module.  On one machine without Slurm, the first are Snakemake's own resources, and the second take the job's cards.
Numbers come from the config's `resources`, names (account, partition, ...) from one file that a site writes:

    cp slurm/site.example.yaml slurm/site.yaml      # edit it; ENTROPY_ASR_SITE names another file
    snakemake --profile slurm results/tables/main.csv
"""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from entropy_asr.config import ONE_PROCESS, ClusterStage, Resources, Section
from entropy_asr.errors import InputError

# What the libraries under PyTorch and NumPy read. They have to agree: PyTorch heeds MKL's variable before OpenMP's.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
# The first is for our own code, the second for libraries that look for a card themselves.
NO_CARDS = "env ENTROPY_ASR_DEVICE=cpu CUDA_VISIBLE_DEVICES="


class Site(Section):
    """What differs from one cluster to another."""

    account: str | None = Field(None, description="who pays")
    gpu_partition: str | None = Field(None, description="of stages with GPUs; null: the cluster's default")
    cpu_partition: str | None = Field(None, description="of all other steps")
    gpu_constraint: str | None = Field(None, description="feature that a GPU node must have, as `a100_80gb`")
    gpu_type: str = Field("a100", description="name of the GPU in `--gres=gpu:<type>:<count>`")
    qos: str | None = Field(None, description="quality of service")
    scratch: str | None = Field(None, description="folder for temporary files on the node; shell variables are filled in there")
    setup: list[str] = Field(default_factory=list, description="shell lines before every step, on its node: modules, variables")
    container: str | None = Field(None, description="words before the command of a GPU stage, as `apptainer exec --nv image.sif`")


def load_site(folder: Path) -> Site:
    """The site file: ENTROPY_ASR_SITE, else site.yaml in a folder, else nothing special.

    Raises:
        InputError: the file that ENTROPY_ASR_SITE names is missing, or a key is unknown or does not fit.
    """
    named = os.environ.get("ENTROPY_ASR_SITE")
    path = Path(named) if named else folder / "site.yaml"
    if not path.is_file():
        if named:
            raise InputError(f"ENTROPY_ASR_SITE names {path}, which does not exist; start from slurm/site.example.yaml")
        return Site()
    if named:
        os.environ["ENTROPY_ASR_SITE"] = str(path.resolve())  # jobs read it in another working directory
    try:
        return Site.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except (yaml.YAMLError, ValidationError) as error:
        raise InputError(f"{path}: {error}; known keys: {', '.join(Site.model_fields)}") from None


def site_resources(site: Site, gpus: bool) -> dict[str, str]:
    """What a site adds to the `sbatch` line of a job."""
    found = {"slurm_account": site.account, "qos": site.qos}
    found |= {"slurm_partition": site.gpu_partition if gpus else site.cpu_partition}
    found |= {"constraint": site.gpu_constraint if gpus else None}
    return {name: value for name, value in found.items() if value is not None}


def stage_resources(resources: Resources, stage: ClusterStage, site: Site, here: bool = False) -> dict[str, Any]:
    """One stage's resources, in the words of Snakemake's Slurm executor.

    Where jobs run on this machine (`here`), GPUs are the resource `gpu`, of which Snakemake gives away no more than there are.
    The Slurm executor would take it for another way to say `gres`.

    `--signal` has Slurm send SIGTERM to the stage's processes before its time is up: they save and end, and the next attempt
    goes on.  Memory grows with the attempts, time does not.
    """
    asked = resources.of(stage)
    found: dict[str, Any] = {
        "nodes": asked.nodes,
        "cpus_per_task": asked.cpus,
        "mem_mb": _growing(asked.mem_mb, resources.max_mem_mb),
        "runtime": asked.runtime,
        "slurm_extra": "--open-mode=append",  # a job that Slurm starts again keeps its log
    }
    if stage not in ("decode", "metrics"):  # these do not resume
        found["slurm_extra"] += f" --signal=TERM@{resources.warn_seconds}"
    if asked.gpus_per_node:
        found |= {"gpu": asked.gpus_per_node} if here else {"gres": _gres(asked.gpus_per_node, site), "tasks_per_gpu": 0}
    if asked.nodes > 1:
        # The executor's name for a job whose own command calls srun.
        found |= {"mpi": "srun", "tasks": asked.nodes}
    return found | site_resources(site, gpus=asked.gpus_per_node > 0)


def _growing(mem_mb: int, most: int | None) -> Callable[..., int]:
    """Half as much again at each attempt after the first, up to `most`."""
    return lambda wildcards, attempt: min(mem_mb * (attempt + 1) // 2, max(most or 0, mem_mb))


def launch(resources: Resources, stage: ClusterStage, site: Site, here: bool = False) -> str:
    """The words before a stage's module: one process, or torchrun on one node, or srun and torchrun on several.

    Where jobs run on this machine (`here`), a stage with GPUs first waits for cards of its own.  A stage without GPUs has none,
    even where there are some.
    """
    asked = resources.of(stage)
    # Threads of one process: Snakemake, which sets the same variables, would give each rank those of the whole node.
    threads = max(1, asked.cpus // max(1, asked.gpus_per_node))
    variables = " ".join(f"{name}={threads}" for name in THREAD_VARIABLES)
    words = [f"env {variables} ENTROPY_ASR_DEVICE={resources.device}"] if asked.gpus_per_node else [NO_CARDS]
    words = [f"python -m entropy_asr.cards {asked.gpus_per_node} --", *words] if here and asked.gpus_per_node else words
    words += [site.container] if asked.gpus_per_node and site.container else []
    if asked.nodes == 1 and (not asked.gpus_per_node or stage in ONE_PROCESS):
        return " ".join([*words, "python -m"])
    # Ranks that were asked to stop may take as long to save as Slurm lets them; torchrun alone would kill them after 30 s.
    torchrun = f"--nproc-per-node={max(1, asked.gpus_per_node)} --shutdown-timeout={resources.warn_seconds}"
    if asked.nodes == 1:
        return " ".join([*words, f"torchrun --standalone {torchrun} -m"])
    n = asked.nodes
    srun = [f"srun --nodes={n} --ntasks={n} --ntasks-per-node=1 --cpus-per-task={asked.cpus} --kill-on-bad-exit=1"]
    srun += [f"--gres={_gres(asked.gpus_per_node, site)}"] if asked.gpus_per_node else []
    return " ".join([*srun, *words, f"python -m entropy_asr.training.node {torchrun} -m"])


def _gres(gpus: int, site: Site) -> str:
    return f"gpu:{site.gpu_type}:{gpus}"


def shell_prefix(site: Site) -> str:
    """What every rule's shell starts with.

    Slurm's warning reaches all processes of a job step, Ctrl-C all of a terminal's.  The shell and `tee` must outlive the stage
    that is saving, or its log and its exit status would be lost; the stage itself, and any other command, gets the signal as
    usual.
    """
    traps = ["trap : TERM INT HUP", "tee() { trap '' TERM INT HUP; command tee \"$@\"; }"]
    lines = ["set -euo pipefail", *traps, *site.setup]
    if site.scratch:
        lines += [f'export TMPDIR="{site.scratch}"', 'mkdir -p "$TMPDIR"']
    return "; ".join(lines) + "; "


# -- jobs of a coordinator that is gone --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """A Slurm job of a workflow, as `squeue` shows it."""

    id: str
    state: str
    step: str
    reason: str
    elapsed: str
    limit: str
    nodes: str
    gres: str


REQUEUE_SECONDS = 30  # Slurm forgets an ended job after MinJobAge, 300 s
ENDED_BADLY = ("BOOT_FAIL", "CANCELLED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")


def slurm_jobs(folder: Path, ended: bool = False) -> list[Job]:
    """This user's jobs that a workflow submitted from a folder, oldest first; none where there is no Slurm.

    Raises:
        InputError: Slurm does not answer.
    """
    if shutil.which("squeue") is None:
        return []
    columns = "%i|%T|%k|%r|%M|%l|%N|%b|%Z"
    command = ["squeue", "--me", "-h", "-S", "i", "-o", columns, *(["--states=all"] if ended else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise InputError(f"squeue failed: {done.stderr.strip()}")
    rows = [line.split("|") for line in done.stdout.splitlines() if line.count("|") == columns.count("|")]
    return [Job(*row[:-1]) for row in rows if row[-1] == str(folder.resolve()) and row[2].startswith("rule_")]


def refuse_orphans(folder: Path) -> None:
    """Stop a coordinator where jobs of another one still wait or run: each would be submitted a second time.

    Raises:
        InputError: there are such jobs.
    """
    orphans = slurm_jobs(folder)
    if orphans:
        listing = "\n".join(f"  {job.id}  {job.state:<10} {job.step}" for job in orphans)
        raise InputError(
            f"jobs that another coordinator submitted from {folder.resolve()} are still there:\n{listing}\n"
            "Wait until they have ended (`entropy-asr status` shows them): what they finish is kept. Or end them, losing at most "
            f"one save interval: scancel {' '.join(job.id for job in orphans)}. Then call snakemake again."
        )


def requeue_preempted(folder: Path) -> None:
    """From now on put jobs that Slurm cancels for others (`PreemptMode=CANCEL`) back in the queue, as it does with `REQUEUE`.

    The executor waits for a preempted job to come back, whatever the mode of the cluster, its partition or its QOS.  Those of
    an earlier coordinator are left alone: this one submits their stages itself.  Ends with the process.
    """
    others = {job.id for job in slurm_jobs(folder, ended=True)}

    def watch() -> None:
        while True:
            time.sleep(REQUEUE_SECONDS)
            try:
                found = [job.id for job in slurm_jobs(folder, ended=True) if job.state == "PREEMPTED" and job.id not in others]
            except InputError:  # Slurm is away; the executor complains
                continue
            for job in found:
                done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
                if done.returncode == 0:
                    print(f"job {job} was preempted: back in the queue", file=sys.stderr)
                else:
                    others.add(job)
                    print(f"job {job} was preempted; end this snakemake, call it again: {done.stderr.strip()}", file=sys.stderr)

    threading.Thread(target=watch, daemon=True).start()
