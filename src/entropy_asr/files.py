"""Small files, read and written safely.

Everything here writes to a temporary name in the same directory and renames: a reader, or a Snakemake job that looks
at time stamps, never sees half a file. Written files carry no clock: the same content gives the same bytes, gzip
included, so that hashes mean something.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from entropy_asr.errors import InputError


def atomic_write(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """Write ``content`` (text as UTF-8) to ``path``, making its directory; the old file stays until then."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode("utf-8") if isinstance(content, str) else content
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def sha256(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: str | os.PathLike[str]) -> Any:
    """A JSON file. Raises :class:`InputError` where it is missing or broken."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a JSON file")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not valid JSON ({error}); correct or regenerate the file") from None


def write_json(path: str | os.PathLike[str], value: Any) -> Path:
    """Write indented JSON in UTF-8; NaN and infinity are refused (``ValueError``)."""
    return atomic_write(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[dict[str, Any]]:
    """Objects of a JSON-lines file, gzipped where the name ends in ``.gz``; blank lines are skipped.

    Raises :class:`InputError` with file and line number where the file is missing or a line is no JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected JSON lines")
    number = 0
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                value = json.loads(line)
                if not isinstance(value, dict):
                    raise InputError(f"{path}, line {number}: found {type(value).__name__}, expected a JSON object")
                yield value
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {number}: not valid JSON ({error}); expected one object a line") from None
    except (EOFError, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise InputError(f"{path}, after line {number}: unreadable ({error}); the file is cut off or corrupt") from None


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[dict[str, Any]]) -> Path:
    """Write one JSON object a line, gzipped where the name ends in ``.gz`` (no time stamp in the header)."""
    path = Path(path)
    data = "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows).encode("utf-8")
    if path.suffix == ".gz":
        buffer = io.BytesIO()
        with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as file:
            file.write(data)
        data = buffer.getvalue()
    return atomic_write(path, data)


def write_table(path: Path, rows: Iterable[dict[str, Any]], columns: Sequence[str]) -> None:
    """Write tidy CSV; None is an empty cell, truth is ``true`` or ``false``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: str(v).lower() if isinstance(v, bool) else v for name, v in row.items()})
    atomic_write(path, text.getvalue())


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV table, all cells text. Raises :class:`InputError` where it is missing or has no column."""
    if not path.is_file():
        raise InputError(f"{path}: no such table; snakemake {path} makes it")
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if not reader.fieldnames:
            raise InputError(f"{path}: empty; expected a CSV table with a header")
        return list(reader)
