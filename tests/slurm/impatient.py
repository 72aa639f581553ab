"""snakemake, asking Slurm after its jobs every two seconds.

    python tests/slurm/impatient.py --profile slurm results/tables/main.csv

The executor asks ever more rarely (11, 21, 31 s after a job's end, to 3 minutes), which a busy cluster needs; jobs that take
seconds would wait longer than they run.  Nothing else differs.
"""

import sys

from snakemake.cli import main
from snakemake_interface_executor_plugins.executors.remote import RemoteExecutor

RemoteExecutor.next_seconds_between_status_checks = property(lambda self: 2, lambda self, seconds: None)

if __name__ == "__main__":
    sys.exit(main())
