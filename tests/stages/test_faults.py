"""The long fault test (`make test-faults`): every stage of a smoke run dies again and again, and ends as if it had not.

One process and two, with loading processes and without, and each dies four times: SIGKILL to every process, SIGKILL to
one rank, SIGTERM and SIGINT to every process, each at a random moment after the attempt has started to train.  States are saved
at every step, so most deaths hit a save in flight.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from repository import ENVIRONMENT, REPO, snakemake
from safetensors import safe_open

from entropy_asr.files import sha256

pytestmark = pytest.mark.faults
DEATHS = ("all", "rank", "slurm", "ctrl-c")
TRAIN = "--train results/manifests/embedded/en-train.jsonl.gz --train results/manifests/embedded/zh-train.jsonl.gz"
SYSTEMS, ENCODERS = "results/systems/ours/seed-1", "results/encoders/phoneme/seed-1"
STAGES = {
    "lm": f"--text {REPO / 'data/embedded/lm_text.jsonl.gz'} --tokenizer results/text/tokenizer",
    "pretrain": f"{TRAIN} --dev results/manifests/embedded/en-dev.jsonl.gz --objective phoneme"
    " --labels results/text/phonemes/tokens.txt --stats results/features/stats.json --part 0",
    "align": f"{TRAIN} --encoder {ENCODERS}/part-0/encoder.safetensors --lm results/text/lm",
    "ia_sft": f"{TRAIN} --encoder {ENCODERS}/part-0/encoder.safetensors --lm results/text/lm --previous {SYSTEMS}/align"
    f" --iteration 0 --part {ENCODERS}/part-0/part.json",
    "joint_sft": f"{TRAIN} --encoder {ENCODERS}/part-0/encoder.safetensors --lm results/text/lm --previous {SYSTEMS}/align",
}


@pytest.fixture(scope="module")
def run() -> Iterator[Path]:
    """A finished smoke run, whose files the stages start from."""
    folder = REPO / "runs" / "test-faults"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    done = snakemake(folder, f"--configfile={REPO / 'config/smoke.yaml'}", "all")
    assert done.returncode == 0, done.stdout + done.stderr
    yield folder
    shutil.rmtree(folder)


def command(run: Path, stage: str, name: str, processes: int, workers: int) -> list[str]:
    """The stage as the workflow calls it, with a save at every step and more steps."""
    config = json.loads((run / f"results/config/{stage}.json").read_text())
    if "engine" in config:
        config["engine"].update(save_every=1, log_every=1, workers=workers)
    if stage in config:
        config[stage].update(steps=40)
    path = run / f"faults/{stage}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(config))
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    words = f"{STAGES[stage]} --config {path} --seed 1 --running faults/state-{name} --out faults/{name}"
    return [sys.executable, *launch, "-m", f"entropy_asr.stages.{stage}", *words.split()]


def start(words: list[str], run: Path) -> subprocess.Popen:
    return subprocess.Popen(
        words, cwd=run, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )


def newest(state: Path) -> float:
    return max((path.stat().st_mtime for path in state.glob("*") if path.exists()), default=0.0)


def die_once(process: subprocess.Popen, state: Path, kind: str, wait: float, processes: int) -> None:
    """End the job some seconds after it has begun to write; it may be done before."""
    before = newest(state)

    def training() -> bool:
        """Ranks of a killed torchrun may still write when the next one has none yet."""
        return newest(state) > before and (processes == 1 or bool(psutil.Process(process.pid).children()))

    while process.poll() is None and not training():
        time.sleep(0.01)
    time.sleep(wait)
    if process.poll() is not None:
        return
    everyone = [*psutil.Process(process.pid).children(recursive=True), process]  # torchrun's ranks are no group of its own
    if kind == "rank":
        (everyone[0] if processes > 1 else process).kill()
    else:  # as Slurm and a terminal do
        for one in everyone:
            with suppress(psutil.NoSuchProcess):
                one.send_signal({"all": signal.SIGKILL, "slurm": signal.SIGTERM, "ctrl-c": signal.SIGINT}[kind])
    code = process.wait(timeout=180)
    assert code != 0 or kind in ("slurm", "ctrl-c")  # asked to stop after its last step, it may as well finish


@pytest.mark.parametrize(("processes", "workers"), [(1, 0), (1, 2), (2, 0), (2, 2)])
@pytest.mark.parametrize("stage", STAGES)
def test_dying_again_and_again_ends_as_if_it_had_not(run: Path, stage: str, processes: int, workers: int) -> None:
    if stage == "lm" and processes == 2:
        pytest.skip("the workflow trains the small LM in one process")
    whole, broken = (f"{stage}-{processes}-{workers}-{kind}" for kind in ("whole", "broken"))
    assert start(command(run, stage, whole, processes, workers), run).wait() == 0
    rng, state = random.Random(f"{stage}{processes}{workers}"), run / f"faults/state-{broken}"
    for kind in DEATHS:
        die_once(start(command(run, stage, broken, processes, workers), run), state, kind, rng.uniform(0.0, 0.6), processes)
        for path in state.glob("state-*.safetensors"):
            with safe_open(path, framework="pt") as file:
                assert all(file.get_tensor(name) is not None for name in file.keys())  # noqa: SIM118
    if not (run / f"faults/{broken}/train.jsonl").exists() or state.exists():
        assert start(command(run, stage, broken, processes, workers), run).wait() == 0
    models = sorted(
        path.name for path in (run / "faults" / whole).glob("*.safetensors") if path.name != "training_state.safetensors"
    )
    assert models
    for name in models:
        assert sha256(run / "faults" / broken / name) == sha256(run / "faults" / whole / name)
