"""`tune-batch` finds the largest batch that fits and names the fastest; here on a CPU, at toy size, in the memory it is given."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from repository import ENVIRONMENT

from entropy_asr.config import Config
from entropy_asr.tune_batch import fastest, largest_fitting, settings

SCHEDULE = {"steps": 10, "peak_lr": 1e-3, "warmup_steps": 1, "accumulation": 4, "max_duration": 20}
TOY = {
    "encoder": {"width": 32, "layers": 1, "heads": 2, "feed_forward": 64, "conv_kernel": 7, "subsampling_channels": 4},
    "llm": {
        "pretrained": None,
        "scratch": {"vocab_size": 300, "hidden_size": 32, "layers": 1, "heads": 2, "kv_heads": 1, "intermediate_size": 64},
    },
    "adaptor": {"hidden": 32},
    "engine": {"precision": "fp32"},
    "quality": {"max_duration": 4.0},
    "cka": {"warmup_steps": 5},
    **dict.fromkeys(("pretrain", "align", "ia_sft", "joint_sft"), SCHEDULE),
}
ENVIRONMENT = ENVIRONMENT | {"ENTROPY_ASR_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}


@given(threshold=st.integers(0, 4000), more=st.integers(0, 4000), start=st.integers(0, 5000))
def test_the_search_ends_just_below_the_threshold_in_few_tries(threshold: int, more: int, start: int) -> None:
    tried = []

    def fits(seconds: int) -> bool:
        tried.append(seconds)
        return seconds <= threshold

    found = largest_fitting(fits, start)
    assert found <= threshold
    assert (found == 0) == (threshold == 0)
    assert found == 3600 or threshold < found + max(2, 0.05 * found + 1)
    assert all(1 <= seconds <= 3600 for seconds in tried) and len(tried) <= 24
    assert largest_fitting(lambda seconds: seconds <= threshold + more, start) >= found


def test_near_the_estimate_few_are_tried() -> None:
    tried = []
    assert 190 <= largest_fitting(lambda seconds: tried.append(seconds) or seconds <= 200, start=195) <= 200
    assert len(tried) <= 3


def test_the_smallest_of_the_fastest_is_named() -> None:
    assert fastest({40: 70.0, 80: 99.0, 120: 100.0, 160: 99.9}) == 80
    assert fastest({40: 97.9, 80: 100.0}) == 80


def test_an_optimiser_step_keeps_its_audio() -> None:
    config = Config(pretrain=SCHEDULE | {"max_duration": 120, "accumulation": 4}, cka={"warmup_steps": 5})
    assert settings(config, "pretrain", 160) == {"max_duration": 160, "accumulation": 3}
    assert settings(config, "pretrain", 900) == {"max_duration": 900, "accumulation": 1}


def cli(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    path = folder / "toy.yaml"
    path.write_text(json.dumps(TOY))
    command = [sys.executable, "-m", "entropy_asr.cli", "tune-batch", str(path), *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)


def test_what_is_found_fits_and_the_next_does_not(tmp_path: Path) -> None:
    """The log has every try; the printed lines are laid over a config."""
    done = cli(tmp_path, "--stage", "ia_sft", "--memory-gib", "0.012")
    assert done.returncode == 0, done.stderr
    tried = {}
    for line in done.stderr.splitlines():
        if " takes " in line:
            words = line.split("max_duration ")[1].split()
            tried[int(words[0])] = float(words[3])
    limit = 0.95 * 0.012
    fit = [seconds for seconds, gib in tried.items() if gib <= limit]
    over = [seconds for seconds, gib in tried.items() if gib > limit]
    assert max(fit) < min(over) <= max(fit) + max(2, 0.05 * max(fit) + 1)
    rows = [line for line in done.stdout.splitlines() if "largest" in line and f" {max(fit)} " in line]
    assert len(rows) == 1
    printed = yaml.safe_load(done.stdout[done.stdout.index("ia_sft: {") :])
    assert 0 < printed["ia_sft"]["max_duration"] <= max(fit)
    changed = Config(**TOY | {"ia_sft": SCHEDULE | printed["ia_sft"]})
    assert changed.ia_sft.max_duration == printed["ia_sft"]["max_duration"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--stage", "alingn", "--memory-gib", "1"), "did you mean 'align'?"),
        ((), "--memory-gib"),
        (("--stage", "align", "--memory-gib", "0.001"), "not even one utterance of 4 s"),
    ],
)
def test_an_error_says_what_to_do(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    done = cli(tmp_path, *arguments)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr
    assert words in done.stderr
