"""What each artifact was made from, and whether the same inputs would make it today: content decides, not times.

Snakemake compares times and the notes that it keeps in `.snakemake`.  A `touch`, a checkout or a copy changes the times; a
deleted `.snakemake` loses the notes.  So each job leaves a record beside its first output, `.<name>.record.json`, with the
SHA-256 of every input and output.  Before Snakemake plans, :func:`reconcile` compares the records with the files and sets the
files' times accordingly: outputs of a stale job become older than its inputs, outputs of all others newer.

While a job runs, `.<name>.begun` lies beside its first output.  A job that was interrupted leaves it there, and runs again.

    record align LOG results/…/align/model.safetensors -- results/config/align.json …   # how the shell of a rule begins
    python -m entropy_asr.records results/…/align/.model.safetensors.begun $$           # how it ends, if the job succeeded
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from entropy_asr.digests import Digests, read_object, text_digest
from entropy_asr.errors import InputError
from entropy_asr.files import atomic_write, write_json

STALE_TIME = 1.0  # seconds after the epoch: older than any input
CLOCK_SKEW = 60.0  # seconds that a file server's clock may be ahead
RECORD, BEGUN = ".record.json", ".begun"
WITHOUT_ARTIFACTS = ("state", "logs", "benchmarks")  # folders of the results folder

# For the start of every rule's shell: the function `record RULE LOG OUTPUT… -- INPUT…`. Its trap runs however the shell ends.
# Stages stop when the process that wanted them, Snakemake's, is gone (training.loop).
SHELL = r"""
record() {
  BEGUN="$(dirname "$3")/.$(basename "$3").begun"; export ENTROPY_ASR_COORDINATOR="$(uname -n) $PPID"
  mkdir -p "$(dirname "$3")"; printf '%s\n' "$(uname -n)" "$$" "$PWD" "$@" > "$BEGUN"
  trap 'end_record $?' EXIT
}
end_record() {
  trap - EXIT
  if [ "$1" -eq 0 ]; then python -m entropy_asr.records "$BEGUN" "$$" || exit 1; fi
  exit "$1"
}
"""


def record_path(output: str | Path) -> Path:
    """Where the record of the job lies whose first output this is."""
    return Path(output).with_name(f".{Path(output).name}{RECORD}")


def begun_path(output: str | Path) -> Path:
    """Where the mark of the running job lies whose first output this is."""
    return Path(output).with_name(f".{Path(output).name}{BEGUN}")


@dataclass
class Record:
    """One finished job: digests of its inputs and outputs by path, and no times: to DVC it changes only with them."""

    rule: str
    inputs: dict[str, str | None]
    outputs: dict[str, str]

    @property
    def path(self) -> Path:
        return record_path(next(iter(self.outputs)))

    def write(self) -> None:
        write_json(self.path, vars(self))


@dataclass
class Begun:
    """A job that has begun and not succeeded: it runs, was interrupted, or failed.

    host, process, folder: where its shell runs or ran; since: when it began, seconds since the epoch.
    """

    host: str
    process: int
    folder: str
    rule: str
    log: Path
    outputs: list[str]
    inputs: list[str]
    since: float

    @classmethod
    def read(cls, path: Path) -> Begun | None:
        """None where the file is gone, or was cut off."""
        try:
            words, since = path.read_text(encoding="utf-8").splitlines(), path.stat().st_mtime
        except OSError:
            return None
        if len(words) < 7 or "--" not in words or not words[1].isdigit():
            return None
        end = words.index("--")
        return cls(words[0], int(words[1]), words[2], words[3], Path(words[4]), words[5:end], words[end + 1 :], since)

    @property
    def alive(self) -> bool | None:
        """Whether its shell still runs; None on another host, where that cannot be seen."""
        import psutil

        if self.host != os.uname().nodename:
            return None
        try:  # another process may have the number now, or a copy of the folder the same mark
            shell = psutil.Process(self.process)
            return shell.cwd() == self.folder and any(self.outputs[0] in word for word in shell.cmdline())
        except psutil.AccessDenied:
            return True
        except psutil.Error:
            return False


def stop_jobs(results: Path) -> int:
    """Ask this folder's jobs that run on this host to stop, as Ctrl-C in a terminal does; returns how many there are."""
    import psutil

    here = os.path.realpath(results.parent)
    jobs = [job for job in read_begun(results) if job.alive and os.path.realpath(job.folder) == here]
    for job in jobs:
        with contextlib.suppress(psutil.Error):
            for process in psutil.Process(job.process).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    process.terminate()
    return len(jobs)


@dataclass
class Findings:
    """What reconciling found.

    stale: first output of each stale job, and why; missing: files that are gone, although what was made from them is here and
    up to date; interrupted: jobs that did not end; trouble: why times could not be set.
    """

    stale: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    interrupted: list[Begun] = field(default_factory=list)
    trouble: str = ""

    def lines(self, most: int = 8) -> list[str]:
        """For people, at most so many of a kind."""
        stale = [f"stale: {output} ({reason})" for output, reason in self.stale.items()]
        broken = [f"interrupted: {job.rule}, {job.outputs[0]}" for job in self.interrupted]
        again = "; what was made from it is up to date. To make it again, name it as a target"
        missing = [f"missing: {path}{again}" for path in self.missing]
        trouble = [self.trouble] if self.trouble else []
        return [
            line
            for kind in (stale, broken, missing, trouble)
            for line in [*kind[:most], *([f"  and {len(kind) - most} more"] if len(kind) > most else [])]
        ]


def finish(begun: Path, process: int) -> None:
    """Write the record of a job that has succeeded, and take its mark away.

    Where the mark is another job's, that one makes the same outputs now, and nothing is written.  An input whose content changed
    after the job began gets no digest: it is not known which content the job read, so the job is stale.

    Args:
        process: of the job's shell.
    """
    job = Begun.read(begun)
    if job is None or (job.host, job.process) != (os.uname().nodename, process):
        return
    digests = _all_digests(Path("results"))
    inputs = {}
    for name in job.inputs:
        before = digests.known.get(name, [None])[0]
        newer = os.path.exists(name) and os.stat(name).st_mtime > job.since
        inputs[name] = digests.of(name)
        if newer and inputs[name] != before:
            inputs[name] = None
    for name in job.outputs:
        digests.known.pop(name, None)
        if digests.of(name) is None:
            raise SystemExit(f"{job.rule} ended without its output {name}")
    Record(job.rule, inputs, {name: digests.known[name][0] for name in job.outputs}).write()
    begun.unlink(missing_ok=True)


def reconcile(results: Path, texts: dict[str, str], anchor: Path, outside: Digests | None = None) -> Findings:
    """Find stale artifacts, and give files the times that make Snakemake find the same.

    Args:
        results: the results folder, relative to the working directory, as the rules name it.
        texts: text by path of the files that the rules write from the config; what they will say counts, not what they say.
        anchor: input of the rule that writes those.
        outside: digests of files that no job made, as far as they are known already.

    Returns:
        what is stale, missing or interrupted. Jobs that follow a stale one are not listed: Snakemake adds them.

    Raises:
        InputError: a file outside the results has a time in the future; what is made from it would never be newer.
    """
    records, begun = read_records(results), read_begun(results)
    digests = _all_digests(results, records)
    for name, seen in outside.known.items() if outside else ():
        digests.known.setdefault(name, seen)
    producer = {name: record for record in records for name in record.outputs}
    unfinished = {name for job in begun for name in job.outputs}
    findings = Findings(interrupted=begun)
    aged = set(unfinished)  # files that Snakemake shall take for old
    prefix, fresh = f"{results.as_posix()}/", []
    for record in records:
        if unfinished & record.outputs.keys():
            continue
        reason = _why_stale(record, texts, digests, unfinished)
        if reason is None:
            fresh.append(record)
        else:
            findings.stale[next(iter(record.outputs))] = reason
            aged |= record.outputs.keys()
        aged |= {name for name in record.inputs if name.startswith(prefix) and name not in producer and name not in texts}
    needed = {name for record in fresh for name in record.inputs if name.startswith(prefix) and name not in texts}
    findings.missing = sorted(name for name in needed if not os.path.exists(name))
    try:
        _write_times(fresh, aged, texts, anchor, digests, results)
        digests.remember(results)
    except OSError as error:
        findings.trouble = f"{error}: times could not be set, so the plan may say less than the lines above"
    return findings


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
    for name, digest in record.outputs.items():
        if digests.of(name) not in (None, digest):
            return "it was changed by hand"
    return None


def _write_times(
    fresh: list[Record], aged: set[str], texts: dict[str, str], anchor: Path, digests: Digests, results: Path
) -> None:
    """Make files old that are stale; make the others newer than their inputs, if one of them is not; none later than now."""
    now, fresh, aged = time.time(), list(fresh), set(aged)
    read = {name for record in fresh for name in record.inputs}
    for name, text in texts.items():
        if not os.path.exists(name):
            continue
        if digests.of(name) != text_digest(text):
            if name not in read:
                aged.add(name)
                continue
            atomic_write(name, text)  # it was changed, and changed back: what was made with this text is here
        fresh.append(Record("config", {str(anchor): None}, {name: text_digest(text)}))
    for name in sorted(aged):
        if os.path.exists(name) and os.stat(name).st_mtime != STALE_TIME:
            digests.set_time(name, STALE_TIME)
    inputs = {name for record in fresh for name in record.inputs if name not in aged and os.path.exists(name)}
    outputs = {name for record in fresh for name in record.outputs if os.path.exists(name)}
    times = {name: _time_of(name) for name in inputs | outputs}
    future = sorted(name for name in inputs - outputs if times[name] > now + CLOCK_SKEW)
    if future:
        raise InputError(
            f"{future[0]} has a time in the future ({time.ctime(times[future[0]])}): what is made from it could not be newer. "
            f"Check the clock, or: touch {shlex.quote(future[0])}"
        )
    now = max([now, *(times[name] for name in inputs - outputs)])
    in_order = all(
        times[source] <= times[name] <= now
        for record in fresh
        for source in record.inputs.keys() & times.keys() - aged
        for name in record.outputs.keys() & times.keys()
    )
    if not in_order:
        for name in sorted(outputs):
            digests.set_time(name, now)
    newest = now if not in_order else max(times.values(), default=0.0)
    for benchmark in (results / "benchmarks").rglob("*.tsv"):  # which Snakemake takes for outputs
        if not newest <= benchmark.stat().st_mtime <= now:
            os.utime(benchmark, (newest, newest))


def _time_of(path: str) -> float:
    stamp = os.path.join(path, ".snakemake_timestamp")
    return os.stat(stamp if os.path.exists(stamp) else path).st_mtime


# -- files -----------------------------------------------------------------------------------------------------------------


def read_records(results: Path) -> list[Record]:
    """The records of all finished jobs under a results folder, in the order of their paths."""
    found = []
    for path in _walk(results, RECORD):
        row = read_object(path)
        parts = [row.get(name) for name in ("inputs", "outputs")]
        whole = row.keys() == {"rule", "inputs", "outputs"} and all(isinstance(part, dict) and part for part in parts[1:])
        if whole and all(isinstance(digest, str) for digest in parts[1].values()):
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
    digests = Digests.remembered(results)
    for record in read_records(results) if records is None else records:
        for name, digest in record.outputs.items():
            if digests.known.get(name, [None])[0] != digest:  # what the job made; whether it still is has to be looked at
                digests.known[name] = [digest, -1, -1, -1]
    return digests


if __name__ == "__main__":
    finish(Path(sys.argv[1]), int(sys.argv[2]))
