"""What each artifact was made from, and whether the same inputs would make it today: content decides, not times.

Snakemake compares times and the notes that it keeps in `.snakemake`.  A `touch`, a checkout or a copy changes the times; a
deleted `.snakemake` loses the notes.  So each job leaves a record beside its first output, `.<name>.record.json`, with the
SHA-256 of every input and output.  Before Snakemake plans, :func:`reconcile` compares the records with the files and sets the
files' times accordingly: outputs of a stale job become older than its inputs, outputs of all others newer.

While a job runs, `.<name>.begun` lies beside its first output.  A job that was interrupted leaves it there, and runs again.

    record align LOG results/…/align/model.safetensors -- results/config/align.json …   # how the shell of a rule begins
    python -m entropy_asr.records results/…/align/.model.safetensors.begun              # how it ends, if the job succeeded
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STALE_TIME = 1.0  # seconds after the epoch: older than any input
RECORD, BEGUN = ".record.json", ".begun"
MEMORY = ".hashes.json"  # in the results folder: digests of files that no job made
WITHOUT_ARTIFACTS = ("state", "logs", "benchmarks")  # folders of the results folder

# For the start of every rule's shell: the function `record RULE LOG OUTPUT… -- INPUT…`. Its trap runs however the shell ends.
# Stages stop when the process that wanted them, Snakemake's, is gone (training.loop).
SHELL = r"""
record() {
  BEGUN="$(dirname "$3")/.$(basename "$3").begun"; export ENTROPY_ASR_COORDINATOR="$HOSTNAME $PPID"
  mkdir -p "$(dirname "$3")"; printf '%s\n' "$HOSTNAME" "$$" "$@" > "$BEGUN"
  trap 'end_record $?' EXIT
}
end_record() {
  trap - EXIT
  if [ "$1" -eq 0 ]; then python -m entropy_asr.records "$BEGUN" || exit 1; fi
  exit "$1"
}
"""


def record_path(output: str | Path) -> Path:
    """Where the record of the job lies whose first output this is."""
    return Path(output).with_name(f".{Path(output).name}{RECORD}")


def begun_path(output: str | Path) -> Path:
    """Where the mark of the running job lies whose first output this is."""
    return Path(output).with_name(f".{Path(output).name}{BEGUN}")


def text_digest(text: str) -> str:
    """SHA-256 of a text file with this content."""
    return hashlib.sha256(text.encode()).hexdigest()


def folder_digest(folder: str | Path, times: bool = True) -> str:
    """SHA-256 of the names, sizes and (with `times`) modification times of all files in a folder, except hidden ones."""
    listed = hashlib.sha256()
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            path = os.path.join(root, name)
            facts = os.stat(path)
            time_ns = facts.st_mtime_ns if times else 0
            listed.update(f"{os.path.relpath(path, folder)}\0{facts.st_size}\0{time_ns}\n".encode())
    return listed.hexdigest()


@dataclass
class Digests:
    """SHA-256 of files by path, computed once: remembered while a file's size and time stay the same."""

    known: dict[str, list[Any]] = field(default_factory=dict)
    """path: [digest, bytes, modification time in ns]"""

    def of(self, path: str) -> str | None:
        """The digest of a file, or of the names and sizes in a folder; None where there is nothing."""
        try:
            facts = os.stat(path)
        except OSError:
            return None
        seen = self.known.get(path)
        if os.path.isdir(path):
            self.known[path] = [folder_digest(path, times=False), 0, 0]
        elif seen is None or seen[1:] != [facts.st_size, facts.st_mtime_ns]:
            with open(path, "rb") as file:
                self.known[path] = [hashlib.file_digest(file, "sha256").hexdigest(), facts.st_size, facts.st_mtime_ns]
        return self.known[path][0]

    def set_time(self, path: str, seconds: float) -> None:
        """Set the modification time of a file or folder without forgetting its digest."""
        if self.of(path) is None:
            return
        os.utime(path, (seconds, seconds))
        stamp = os.path.join(path, ".snakemake_timestamp")  # Snakemake's time of a folder
        if os.path.exists(stamp):
            os.utime(stamp, (seconds, seconds))
        if not os.path.isdir(path):
            self.known[path][2] = os.stat(path).st_mtime_ns


@dataclass
class Record:
    """One finished job. inputs: digest by path; outputs: [digest, bytes, modification time in ns] by path."""

    rule: str
    inputs: dict[str, str | None]
    outputs: dict[str, list[Any]]

    @property
    def path(self) -> Path:
        return record_path(next(iter(self.outputs)))

    def write(self) -> None:
        _write_json(self.path, vars(self))


@dataclass
class Begun:
    """A job that has begun and not succeeded: it runs, was interrupted, or failed.

    host, process: where its shell runs or ran; since: when it began, seconds since the epoch.
    """

    host: str
    process: int
    rule: str
    log: Path
    outputs: list[str]
    inputs: list[str]
    since: float

    @classmethod
    def read(cls, path: Path) -> Begun | None:
        """None where the file was cut off."""
        words = path.read_text(encoding="utf-8").splitlines()
        if len(words) < 6 or "--" not in words or not words[1].isdigit():
            return None
        end = words.index("--")
        return cls(words[0], int(words[1]), words[2], Path(words[3]), words[4:end], words[end + 1 :], path.stat().st_mtime)

    @property
    def alive(self) -> bool | None:
        """Whether its shell still runs; None on another host, where that cannot be seen."""
        if self.host != socket.gethostname():
            return None
        command = Path(f"/proc/{self.process}/cmdline")
        if Path("/proc/self").exists():  # another process may have the number now
            return command.exists() and self.outputs[0].encode() in command.read_bytes()
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True


def stop_jobs(results: Path) -> int:
    """Ask the jobs that run on this host to stop, as Ctrl-C in a terminal does; returns how many there are."""
    jobs = [job for job in read_begun(results) if job.alive]
    rows = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout.split()
    children: dict[int, list[int]] = {}
    for process, parent in zip(rows[::2], rows[1::2], strict=True):
        children.setdefault(int(parent), []).append(int(process))
    for job in jobs:
        below = list(children.get(job.process, []))
        for process in below:
            below += children.get(process, [])
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
    return len(jobs)


@dataclass
class Findings:
    """What reconciling found.

    stale: first output of each stale job, and why; missing: outputs of finished jobs that are gone, although what was made
    from them is here; interrupted: jobs that did not end.
    """

    stale: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    interrupted: list[Begun] = field(default_factory=list)

    def lines(self, most: int = 8) -> list[str]:
        """For people, at most so many of a kind."""
        stale = [f"stale: {output} ({reason})" for output, reason in self.stale.items()]
        broken = [f"interrupted: {job.rule}, {job.outputs[0]}" for job in self.interrupted]
        again = "; what was made from it is up to date. To make it again, name it as a target"
        missing = [f"missing: {path}{again}" for path in self.missing]
        return [
            line
            for kind in (stale, broken, missing)
            for line in [*kind[:most], *([f"  and {len(kind) - most} more"] if len(kind) > most else [])]
        ]


def finish(begun: Path) -> None:
    """Write the record of a job that has succeeded, and take its mark away.

    An input that changed after the job began gets no digest: it is not known which content the job read, so the job is stale.
    """
    job = Begun.read(begun)
    if job is None:
        raise SystemExit(f"{begun}: cut off; the job has to run again")
    digests = _all_digests(Path("results"))
    inputs = {}
    for name in job.inputs:
        changed = os.path.exists(name) and os.stat(name).st_mtime > job.since
        inputs[name] = None if changed else digests.of(name)
    for name in job.outputs:
        digests.known.pop(name, None)
        if digests.of(name) is None:
            raise SystemExit(f"{job.rule} ended without its output {name}")
    Record(job.rule, inputs, {name: digests.known[name] for name in job.outputs}).write()
    begun.unlink()


def reconcile(results: Path, texts: dict[str, str], anchor: Path) -> Findings:
    """Find stale artifacts, and give files the times that make Snakemake find the same.

    Args:
        results: the results folder, relative to the working directory, as the rules name it.
        texts: text by path of the files that the rules write from the config; what they will say counts, not what they say.
        anchor: input of the rule that writes those.

    Returns:
        what is stale, missing or interrupted. Jobs that follow a stale one are not listed: Snakemake adds them.
    """
    records, begun = read_records(results), read_begun(results)
    digests = _all_digests(results, records)
    producer = {name: record for record in records for name in record.outputs}
    unfinished = {name for job in begun for name in job.outputs}
    findings = Findings(interrupted=begun)
    aged = set(unfinished)  # files that Snakemake shall take for old
    fresh = []
    for record in records:
        if unfinished & record.outputs.keys():
            continue
        reason = _why_stale(record, texts, digests, unfinished)
        if reason is None:
            fresh.append(record)
        else:
            findings.stale[next(iter(record.outputs))] = reason
            aged |= record.outputs.keys()
        prefix = f"{results.as_posix()}/"
        aged |= {name for name in record.inputs if name.startswith(prefix) and name not in producer and name not in texts}
    needed = {name for record in fresh for name in record.inputs}
    findings.missing = sorted(n for record in fresh for n in record.outputs if n in needed and not os.path.exists(n))
    for name, text in texts.items():
        if os.path.exists(name):
            if digests.of(name) == text_digest(text):
                fresh.append(Record("config", {str(anchor): None}, {name: digests.known[name]}))
            else:
                aged.add(name)
    _set_times(fresh, aged, digests, results)
    for record in records:
        seen = {name: digests.known.get(name, was) for name, was in record.outputs.items()}
        if seen != record.outputs and digests_equal(seen, record.outputs):
            Record(record.rule, record.inputs, seen).write()
    outside = {name: seen for name, seen in digests.known.items() if name not in producer and os.path.exists(name)}
    memory = results / MEMORY
    if outside and outside != _read_json(memory):
        _write_json(memory, outside)
    return findings


def digests_equal(one: dict[str, list[Any]], other: dict[str, list[Any]]) -> bool:
    """Whether two listings of outputs are of the same contents."""
    return {name: seen[0] for name, seen in one.items()} == {name: seen[0] for name, seen in other.items()}


def _why_stale(record: Record, texts: dict[str, str], digests: Digests, unfinished: set[str]) -> str | None:
    """What of a job's inputs or outputs is another than when it ran; None where it is up to date.

    A missing file alone does not make it stale: who deletes features to save disk does not want to pretrain again.
    """
    for name, digest in record.inputs.items():
        now = text_digest(texts[name]) if name in texts else digests.of(name)
        if digest is None:
            return f"{name} changed while it ran"
        if now is None and name in unfinished:
            return f"{name} is being made again"
        if now is not None and now != digest:
            return f"{name} changed"
    for name, seen in record.outputs.items():
        if digests.of(name) not in (None, seen[0]):
            return "it was changed by hand"
    return None


def _set_times(fresh: list[Record], aged: set[str], digests: Digests, results: Path) -> None:
    """Make files old that are stale; make the others newer than their inputs, if one of them is not."""
    for name in sorted(aged):
        if os.path.exists(name) and os.stat(name).st_mtime != STALE_TIME:
            digests.set_time(name, STALE_TIME)
    inputs = {name for record in fresh for name in record.inputs if name not in aged and os.path.exists(name)}
    outputs = {name for record in fresh for name in record.outputs if os.path.exists(name)}
    times = {name: _time_of(name) for name in inputs | outputs}
    in_order = all(
        times[source] <= times[name]
        for record in fresh
        for source in record.inputs.keys() & times.keys() - aged
        for name in record.outputs.keys() & times.keys()
    )
    newest = max(times.values(), default=0.0)
    if not in_order:
        newest = max(time.time(), *(times[name] for name in inputs - outputs))
        for name in sorted(outputs):
            digests.set_time(name, newest)
    for benchmark in (results / "benchmarks").rglob("*.tsv"):  # which Snakemake takes for outputs
        if benchmark.stat().st_mtime < newest:
            os.utime(benchmark, (newest, newest))


def _time_of(path: str) -> float:
    stamp = os.path.join(path, ".snakemake_timestamp")
    return os.stat(stamp if os.path.exists(stamp) else path).st_mtime


# -- files -----------------------------------------------------------------------------------------------------------------


def read_records(results: Path) -> list[Record]:
    """The records of all finished jobs under a results folder, in the order of their paths."""
    found = []
    for path in _walk(results, RECORD):
        row = _read_json(path)
        if row.keys() == {"rule", "inputs", "outputs"} and row["outputs"]:
            found.append(Record(**row))
    return found


def read_begun(results: Path) -> list[Begun]:
    """All jobs under a results folder that have begun and not succeeded."""
    return [job for path in _walk(results, BEGUN) if (job := Begun.read(path)) is not None]


def _walk(results: Path, suffix: str) -> list[Path]:
    found = []
    for root, folders, names in os.walk(results):
        if Path(root) == results:
            folders[:] = [name for name in folders if name not in WITHOUT_ARTIFACTS]
        found += [Path(root) / name for name in names if name.startswith(".") and name.endswith(suffix)]
    return sorted(found)


def _all_digests(results: Path, records: list[Record] | None = None) -> Digests:
    known = dict(_read_json(results / MEMORY))
    for record in read_records(results) if records is None else records:
        known |= record.outputs
    return Digests(known)


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is missing or cut off: what it would have said is then found out again."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


if __name__ == "__main__":
    finish(Path(sys.argv[1]))
