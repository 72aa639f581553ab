# What a Slurm site adds to all rules; what is looked at before the first job; what is said at the end. Included last.
import shlex
import signal
import sys

from entropy_asr.files import atomic_write
from entropy_asr.status import failed_jobs

for site_rule in workflow.rules:
    for name, value in cluster.site_resources(SITE, gpus="gres" in site_rule.resources).items():
        site_rule.resources[name] = value


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
    if workflow.executor_plugin.name == "slurm":
        try:
            cluster.refuse_orphans(Path.cwd())
            cluster.requeue_preempted(Path.cwd())
        except InputError as error:
            raise WorkflowError(str(error))
    else:
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
