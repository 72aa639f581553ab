"""Any corpus, as JSON lines: how you bring your own data, or AISHELL, LibriSpeech, GigaSpeech.

One file a split, ``<corpus>/<split>.jsonl`` (or ``.jsonl.gz``), one utterance a line::

    {"id": "bac009s0002w0122", "audio": "wav/S0002/bac009s0002w0122.wav", "text": "而对楼市成交抑制作用最大的限购", "language": "zh"}

Optional keys: ``speaker``, ``domain``, ``phonemes`` (of each word, `` | `` between words), ``offset`` and ``duration``
(seconds, for a stretch of a long recording). Audio paths are relative to the file that names them; any format that
libsndfile reads, any sampling rate, first channel.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from entropy_asr.corpora.utterance import Utterance
from entropy_asr.errors import InputError
from entropy_asr.files import read_jsonl

_REQUIRED = {"id": str, "audio": str, "text": str, "language": str}
_OPTIONAL = {"speaker": str, "domain": str, "phonemes": str, "offset": (int, float), "duration": (int, float)}
_LANGUAGES = ("en", "zh", "mixed")


def read_split(corpus: str | Path, split: str) -> list[Utterance]:
    """Utterances of ``<corpus>/<split>.jsonl[.gz]`` in file order; nothing about the audio is checked here.

    Raises:
        InputError: there is no such file, or a line lacks a key, has an unknown one, or one of the wrong kind.
    """
    plain, zipped = Path(corpus) / f"{split}.jsonl", Path(corpus) / f"{split}.jsonl.gz"
    path = zipped if zipped.is_file() and not plain.is_file() else plain
    return list(_utterances(path))


def _utterances(path: Path) -> Iterator[Utterance]:
    for number, row in enumerate(read_jsonl(path), 1):
        check_row(row, f"{path}, utterance {number}", _REQUIRED, _OPTIONAL)
        yield Utterance(**{**row, "audio": path.parent / row["audio"]})


def check_row(row: dict[str, Any], where: str, required: dict[str, Any], optional: dict[str, Any]) -> None:
    """Raise :class:`InputError` unless the keys of a line are known, complete and of the right type."""
    for key, kind in required.items():
        if not isinstance(row.get(key), kind):
            raise InputError(f"{where}: key '{key}' is {row.get(key)!r}, expected {_names(kind)}")
    for key, value in row.items():
        if key not in required and key not in optional:
            raise InputError(f"{where}: unknown key '{key}'; known: {', '.join([*required, *optional])}")
        if key in optional and value is not None and (not isinstance(value, optional[key]) or isinstance(value, bool)):
            raise InputError(f"{where}: key '{key}' is {value!r}, expected {_names(optional[key])}")
    if row["language"] not in _LANGUAGES:
        raise InputError(f"{where}: language is {row['language']!r}, expected one of {', '.join(_LANGUAGES)}")


def _names(kind: Any) -> str:
    return "text" if kind is str else "a number"
