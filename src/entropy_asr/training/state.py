"""Running state of a job that may die: where it lies, which file counts, when it must not be used.

It lies outside the workflow's declared outputs, which Snakemake deletes when a job fails.  A state belongs to one
fingerprint (config and inputs); another one's is set aside with its name, never resumed and never deleted.  It also belongs
to one process at a time, the last that opened it: a job on a node that Slurm lost may go on beside the one that replaced it.
"""

import logging
import shutil
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from entropy_asr.training import distributed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunningState:
    """The folder of one job's running state."""

    folder: Path
    key: str
    owner: str = field(default_factory=lambda: uuid.uuid4().hex)

    def open(self) -> Path | None:
        """The newest state of this fingerprint, or None; a state of another one is moved aside. Collective: rank 0 looks."""
        newest = self._open() if distributed.rank() == 0 else -1
        newest = distributed.from_first(newest)
        return self.path(newest) if newest >= 0 else None

    def _open(self) -> int:
        mark = self.folder / "fingerprint"
        if self.folder.exists() and (not mark.exists() or mark.read_text() != self.key):
            aside = self.folder.with_name(f"{self.folder.name}.aside-{mark.read_text()[:12] if mark.exists() else 'unmarked'}")
            shutil.rmtree(aside, ignore_errors=True)
            self.folder.rename(aside)
            log.warning("running state in %s was made with another config or other inputs: set aside as %s", self.folder, aside)
        self.folder.mkdir(parents=True, exist_ok=True)
        mark.write_text(self.key)
        (self.folder / "owner").write_text(self.owner)
        for unfinished in self.folder.glob(".*.tmp"):  # of a process that died while saving
            unfinished.unlink()
        states = self._states()
        return int(states[-1].stem.removeprefix("state-")) if states else -1

    def check_owner(self) -> None:
        """Call on rank 0 before anything is written.

        Raises:
            RuntimeError: another process has taken the job over; torchrun then ends this one's ranks.
        """
        owner = self.folder / "owner"
        if not owner.exists() or owner.read_text() != self.owner:
            raise RuntimeError(f"{self.folder}: another process has taken this job over; this one ends without writing anything")

    def path(self, step: int) -> Path:
        return self.folder / f"state-{step:09d}.safetensors"

    def prune(self, keep_last: int) -> None:
        """Delete all but the last few."""
        for old in self._states()[:-keep_last]:
            old.unlink()

    def clear(self) -> None:
        """The job's outputs are written; its running state is no longer needed."""
        shutil.rmtree(self.folder)

    def _states(self) -> list[Path]:
        return sorted(self.folder.glob("state-*.safetensors"))
