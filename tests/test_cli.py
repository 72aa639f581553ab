"""The command line starts quickly, and says what to do where something is missing."""

import os
import subprocess
import sys
from pathlib import Path

from repository import REPO


def cli(*arguments: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "entropy_asr.cli", *arguments]
    return subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(REPO / "src")}, capture_output=True, text=True, check=False
    )


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, entropy_asr.cli; print(sorted({'torch', 'transformers', 'lhotse', 'pandas'} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(REPO / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
    assert "transcribe" in cli("--help").stdout


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    for arguments, words in (
        (("show", str(tmp_path)), "make reproduce"),
        (("config", "check", str(tmp_path / "none.yaml")), "none.yaml does not exist"),
        (("transcribe", str(tmp_path), str(tmp_path / "a.wav")), "no such audio file"),
        (("reference", str(tmp_path)), "not a finished run"),
    ):
        done = cli(*arguments)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
        assert words in done.stderr
