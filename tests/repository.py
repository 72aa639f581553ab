"""Where the repository is, and how its commands are run: shared by tests."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "PYTHONPATH": str(REPO / "src"),
}


def snakemake(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """The workflow with `folder` as working directory, on two cores; variables: of its environment."""
    command = ["snakemake", "--snakefile", str(REPO / "Snakefile"), "--directory", str(folder), "--cores", "2", *arguments]
    return subprocess.run(command, env=ENVIRONMENT | variables, capture_output=True, text=True, check=False)


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> object:
    """What a condition gives when it is met; it has to be within so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds:.0f} s"
        time.sleep(0.1)
    return found


def with_other_alignment(config: str) -> str:
    """The text of a config with another learning rate of alignment."""
    changed, count = re.subn(r"(\nalign:\n(?:  .*\n)*?  peak_lr:) \S+", r"\1 1.0e-3", config)
    assert count == 1 and changed != config
    return changed
