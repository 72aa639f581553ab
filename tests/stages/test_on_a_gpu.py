"""The ordinary commands on a GPU, in bf16: killed and resumed is uninterrupted, to rounding. `test_bf16.py` runs every stage."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from repository import ENVIRONMENT
from test_bf16 import Stages

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
STEPS = 30


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "train.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_and_resumed_is_uninterrupted(workers: int, tmp_path: Path, tones: Path) -> None:
    stages = Stages(tmp_path, tones)
    stages.smoke["pretrain"].update(steps=STEPS)
    stages.smoke["engine"].update(save_every=1, workers=workers)
    whole, killed = (stages.pretraining(name) for name in ("whole", "killed"))
    subprocess.run(whole, env=ENVIRONMENT, check=True)
    process = subprocess.Popen(killed, env=ENVIRONMENT, start_new_session=True)
    while len(list((tmp_path / "state/killed").glob("state-*.safetensors"))) < 2:
        assert process.poll() is None, "it ended before its second save"
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed/encoder.safetensors").exists()
    subprocess.run(killed, env=ENVIRONMENT, check=True)
    assert len(losses(tmp_path / "killed")) == STEPS
    assert losses(tmp_path / "killed") == pytest.approx(losses(tmp_path / "whole"), rel=0.02)
    provenance = json.loads((tmp_path / "killed/provenance.json").read_text())
    assert provenance["hardware"]["gpus"] and provenance["attention"] in ("torch varlen", "flash-attn")
