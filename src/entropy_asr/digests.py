"""SHA-256 of files and folders, each file read once: what `entropy_asr.records` and the stages' config files compare."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from entropy_asr.files import sha256, write_json

MEMORY = ".hashes.json"  # in the results folder: digests with sizes, times and places of the files that were looked at


def text_digest(text: str) -> str:
    """SHA-256 of a text file with this content."""
    return hashlib.sha256(text.encode()).hexdigest()


def files_in(folder: str | Path) -> Iterator[str]:
    """Paths of all files in a folder, linked folders included, hidden ones not."""
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(root, name) for name in names if not name.startswith("."))


def listing_digest(paths: Iterable[str], start: str, times: bool = True) -> str:
    """SHA-256 of the names (as seen from `start`), sizes and modification times of files; one that is not there has none."""
    listed = hashlib.sha256()
    for path in paths:
        try:
            facts = os.stat(path)
            seen = f"{facts.st_size}\0{facts.st_mtime_ns if times else 0}"
        except OSError:
            seen = "missing"
        listed.update(f"{os.path.relpath(path, start)}\0{seen}\n".encode())
    return listed.hexdigest()


@dataclass
class Digests:
    """SHA-256 of files by path, computed once: remembered while a file's size, time and place on disk stay the same."""

    known: dict[str, list[Any]] = field(default_factory=dict)
    """path: [digest, bytes, modification time in ns, inode]"""

    @classmethod
    def remembered(cls, results: Path) -> Digests:
        """Those that earlier plans of a results folder have found."""
        return cls(read_object(results / MEMORY))

    def remember(self, results: Path) -> None:
        """Keep those of the files that are there, for the next plan."""
        here = {path: facts for path, facts in self.known.items() if os.path.exists(path)}
        if here and results.is_dir() and here != read_object(results / MEMORY):
            write_json(results / MEMORY, here)

    def of(self, path: str) -> str | None:
        """The digest of a file, or of the names and sizes in a folder; None where there is nothing."""
        try:
            facts = os.stat(path)
        except OSError:
            return None
        seen = self.known.get(path)
        if os.path.isdir(path):
            self.known[path] = [listing_digest(sorted(files_in(path)), path, times=False), 0, 0, 0]
        elif seen is None or seen[1:] != [facts.st_size, facts.st_mtime_ns, facts.st_ino]:
            self.known[path] = [sha256(path), facts.st_size, facts.st_mtime_ns, facts.st_ino]
        return self.known[path][0]

    def contents(self, folder: str | Path) -> str:
        """SHA-256 of the names and contents of all files in a folder."""
        listed = (f"{os.path.relpath(path, folder)} {self.of(path)}" for path in sorted(files_in(folder)))
        return text_digest("\n".join(listed))

    def set_time(self, path: str, seconds: float) -> None:
        """Set the modification time of a file or folder without forgetting its digest."""
        if self.of(path) is None:
            return
        os.utime(path, (os.stat(path).st_atime, seconds))
        stamp = os.path.join(path, ".snakemake_timestamp")  # Snakemake's time of a folder
        if os.path.exists(stamp):
            os.utime(stamp, (seconds, seconds))
        if not os.path.isdir(path):
            digest, size, _, inode = self.known[path]
            self.known[path] = [digest, size, os.stat(path).st_mtime_ns, inode]


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where the file is missing or cut off: what it would have said is then found out again."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
