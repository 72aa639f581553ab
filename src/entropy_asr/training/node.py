"""One node's share of a training job that Slurm started on several: its place among the others, then torchrun.

    srun --nodes=2 --ntasks-per-node=1 python -m entropy_asr.training.node --nproc-per-node=8 -m entropy_asr.stages.pretrain ...

The first node of the step is where ranks meet, on a port that follows from the job's number.  Nothing but Slurm's own
variables is used, so that it works inside a container without Slurm's commands.
"""

import os
import re
import sys

from entropy_asr.errors import InputError, friendly_exit


def first_host(nodelist: str) -> str:
    """First name of Slurm's compressed list: `gpu[03-05,9],login1` is gpu03, `a1,b[2-3]` is a1."""
    name = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodelist)
    return re.sub(r"\[(\d+)[^\]]*\]", r"\1", name.group() if name else "")


def rendezvous(environment: dict[str, str]) -> list[str]:
    """torchrun's options for this node.

    Raises:
        InputError: not started by srun.
    """
    try:
        nodes, rank = environment["SLURM_STEP_NUM_NODES"], environment["SLURM_NODEID"]
        host, job = first_host(environment["SLURM_STEP_NODELIST"]), int(environment["SLURM_JOB_ID"])
    except KeyError as error:
        raise InputError(f"{error.args[0]} is not set: start this by srun, or on one node by torchrun") from None
    return [f"--nnodes={nodes}", f"--node-rank={rank}", f"--master-addr={host}", f"--master-port={20000 + job % 20000}"]


def main() -> None:
    """Become torchrun."""
    with friendly_exit():
        options = rendezvous(dict(os.environ))
    os.execv(sys.executable, [sys.executable, "-m", "torch.distributed.run", *options, *sys.argv[1:]])


if __name__ == "__main__":
    main()
