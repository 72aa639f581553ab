# What a Slurm site adds to all rules; the cards of this machine; what is looked at before the first job; what is said at the end.
# Included last.
import shlex
import signal
import sys

from entropy_asr import cards
from entropy_asr.files import atomic_write
from entropy_asr.status import failed_jobs

for site_rule in workflow.rules:
    for name, value in cluster.site_resources(SITE, gpus="gres" in site_rule.resources).items():
        site_rule.resources[name] = value

MOST_CARDS = max((rule.resources["gpu"].value for rule in workflow.rules if "gpu" in rule.resources), default=0)
if MOST_CARDS:
    if "gpu" not in workflow.global_resources:
        workflow.register_resource("gpu", len(cards.cards_here()))
    if MOST_CARDS > workflow.global_resources["gpu"].value:
        logger.info(f"a stage asks for {MOST_CARDS} card(s), more than the {workflow.global_resources['gpu'].value} here: a plan only")


def enough_for_all_jobs():
    """Refuse a run on this machine that would come to a job which cannot run here. A plan can be looked at anywhere."""
    for job in workflow.dag.needrun_jobs():
        asked = {name: job.rule.resources[name].value for name in ("gpu", "nodes") if name in job.rule.resources}
        if asked.get("nodes", 1) > 1:
            raise WorkflowError(
                f"{job.rule.name} asks for {asked['nodes']} nodes (`resources.nodes`, or that of the stage in `resources.stages`): "
                "several run with `--profile slurm` only. Set it to 1."
            )
        if "gpu" in asked:
            cards.require(asked["gpu"], job.rule.name)
            if asked["gpu"] > (given := workflow.global_resources["gpu"].value):
                raise WorkflowError(f"{job.rule.name} needs {asked['gpu']} card(s), and this call allows --resources gpu={given}")


def stop_local_jobs(number, frame):
    """Ctrl-C or SIGTERM: the jobs save and end, then snakemake does. Again: the jobs are told once more, and it goes on waiting,
    because a job that saves needs its time."""
    count = records.stop_jobs(Path("results"))
    logger.info(f"asked to stop: {count} job(s) save and end; kill -9 would lose what they have not saved")
    if stop_local_jobs.first:
        stop_local_jobs.first = False
        raise KeyboardInterrupt


stop_local_jobs.first = True


onstart:
    # Only the coordinator comes here, not the snakemake inside of a job.
    try:
        if workflow.executor_plugin.name == "slurm":
            cluster.refuse_orphans(Path.cwd())
            cluster.requeue_preempted(Path.cwd())
        elif workflow.executor_plugin.name == "local":
            enough_for_all_jobs()
    except InputError as error:
        raise WorkflowError(str(error))
    if workflow.executor_plugin.name != "slurm":
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, stop_local_jobs)
    atomic_write("results/config/experiment", CONFIG.name + "\n")
    logger.info(f"experiment '{CONFIG.name}': results go to {Path.cwd() / 'results'}")


def command():
    """What was typed."""
    return shlex.join(["snakemake", *sys.argv[1:]])


onerror:
    # Which jobs did not end, where their logs are, and how to go on.
    for line in failed_jobs(Path("results"), command()):
        logger.error(line)


onsuccess:
    logger.info(f"results: {Path.cwd() / 'results'}")
