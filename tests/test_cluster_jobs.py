"""What a stage asks Slurm for and how it is started, from config and site file alone; no cluster needed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from entropy_asr.cluster import THREAD_VARIABLES, Site, launch, load_site, shell_prefix, stage_resources
from entropy_asr.config import Resources
from entropy_asr.config_files import load_config
from entropy_asr.errors import InputError
from entropy_asr.training.node import first_host, rendezvous

PAPER = {"gpus_per_node": 8, "cpus": 64, "mem_mb": 800_000, "max_mem_mb": 1_000_000, "runtime": 2880}


def test_a_stage_without_its_own_numbers_has_the_shared_ones() -> None:
    resources = Resources(**PAPER, stages={"pretrain": {"nodes": 4, "runtime": 4000}})
    assert resources.of("pretrain")._asdict() == {
        "nodes": 4,
        "gpus_per_node": 8,
        "cpus": 64,
        "mem_mb": 800_000,
        "runtime": 4000,
    }
    assert resources.of("align").nodes == 1
    assert resources.of("decode")._asdict() == {"nodes": 1, "gpus_per_node": 1, "cpus": 8, "mem_mb": 100_000, "runtime": 2880}


def test_the_first_and_the_last_part_of_pretraining_may_take_more_cores() -> None:
    resources = Resources(first_part_cpus=4, stages={"pretrain": {"cpus": 2}})
    assert [resources.pretrain_cpus(part, 3) for part in (0, 1, 2)] == [4, 2, 2]
    resources = resources.model_copy(update={"last_part_cpus": 3})
    assert [resources.pretrain_cpus(part, 4) for part in (0, 1, 2, 3)] == [4, 2, 2, 3]
    assert resources.pretrain_cpus(0, 1) == 4
    assert Resources(cpus=3).pretrain_cpus(0, 3) == 3
    for key in ("first_part_cpus", "last_part_cpus"):
        with pytest.raises(ValueError, match="without GPUs"):
            Resources(**PAPER, **{key: 4})


def test_memory_grows_with_the_attempts_up_to_the_node_and_time_does_not() -> None:
    asked = stage_resources(Resources(**PAPER), "align", Site())
    assert [asked["mem_mb"](None, attempt) for attempt in (1, 2, 3)] == [800_000, 1_000_000, 1_000_000]
    assert asked["runtime"] == 2880
    unbounded = stage_resources(Resources(mem_mb=1000), "align", Site())
    assert [unbounded["mem_mb"](None, attempt) for attempt in (1, 2, 3)] == [1000, 1000, 1000]


def test_one_node_is_torchrun_several_are_srun_and_a_cpu_is_python() -> None:
    resources = Resources(**PAPER, stages={"pretrain": {"nodes": 2}, "align": {"gpus_per_node": 0}})
    site = Site(container="apptainer exec --nv a.sif")
    several, one = launch(resources, "pretrain", site), launch(resources, "joint_sft", site)
    threads = " ".join(f"{name}=8" for name in THREAD_VARIABLES)
    container = f"env {threads} ENTROPY_ASR_DEVICE=cuda apptainer exec --nv a.sif"
    assert one == f"{container} torchrun --standalone --nproc-per-node=8 --shutdown-timeout=600 -m"
    assert several == (
        "srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=64 --kill-on-bad-exit=1 --gres=gpu:a100:8"
        f" {container} python -m entropy_asr.training.node --nproc-per-node=8 --shutdown-timeout=600 -m"
    )
    assert launch(resources, "align", site) == "env ENTROPY_ASR_DEVICE=cpu CUDA_VISIBLE_DEVICES= python -m"
    assert launch(resources, "decode", site) == f"{container} python -m"
    asked = stage_resources(resources, "pretrain", site)
    assert (asked["mpi"], asked["tasks"], asked["nodes"]) == ("srun", 2, 2)
    assert "mpi" not in stage_resources(resources, "joint_sft", site)


def test_on_one_machine_a_stage_with_gpus_takes_cards_before_all_else() -> None:
    resources, site = Resources(**PAPER, stages={"align": {"gpus_per_node": 0}}), Site(container="apptainer exec --nv a.sif")
    for stage, cards in {"pretrain": 8, "joint_sft": 8, "lm": 1, "decode": 1, "metrics": 1}.items():
        on_slurm = launch(resources, stage, site)
        assert launch(resources, stage, site, here=True) == f"python -m entropy_asr.cards {cards} -- {on_slurm}"
        asked = stage_resources(resources, stage, site, here=True)
        assert asked["gpu"] == cards and "gres" not in asked
        assert "gpu" not in stage_resources(resources, stage, site)  # the Slurm executor would ask for as many again
    assert launch(resources, "align", site, here=True) == launch(resources, "align", site)
    assert "gpu" not in stage_resources(resources, "align", site, here=True)


def test_a_rank_has_its_own_threads_whatever_the_node_has() -> None:
    """Snakemake's shell says the node's threads in every variable; PyTorch would follow MKL's."""
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, "4")
    resources = Resources(
        **PAPER | {"gpus_per_node": 4, "cpus": 8}, device="cpu", stages={"align": {"gpus_per_node": 1, "cpus": 2}}
    )
    rank = launch(resources, "decode", Site())  # one process of one GPU
    assert launch(resources, "align", Site()).startswith(rank.removesuffix("python -m"))
    told = "import os, sys; print(*(os.environ[name] for name in sys.argv[1:]))"
    line = f"{rank.removesuffix('-m')} -c '{told}' {' '.join(THREAD_VARIABLES)}"
    done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2"] * len(THREAD_VARIABLES)

    by_hand = environment | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "2", "ENTROPY_ASR_DEVICE": "cpu"}
    code = "import torch; from entropy_asr.training import distributed; distributed.start(); print(torch.get_num_threads())"
    done = subprocess.run([sys.executable, "-c", code], env=by_hand, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "1"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_shell_and_tee_outlive_a_stage_that_saves(number: int, tmp_path: Path) -> None:
    """The signal goes to the whole process group, as from Slurm or a terminal."""
    stage = (
        "import signal, sys, time; signal.signal(int(sys.argv[1]), lambda *_: (time.sleep(0.3), print('saved'), sys.exit(75)))"
    )
    stage += "; print('training', flush=True); time.sleep(60)"
    line = f'{shell_prefix(Site())}{sys.executable} -c "{stage}" {int(number)} 2>&1 | tee {tmp_path / "log"}; echo not reached'
    process = subprocess.Popen(["bash", "-c", line], start_new_session=True, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "training\n"
    os.killpg(process.pid, number)
    assert process.communicate(timeout=30)[0] == "saved\n"
    assert process.returncode == 75
    assert (tmp_path / "log").read_text() == "training\nsaved\n"


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [("n1", "n1"), ("n[1-2]", "n1"), ("gpu[03-05,9],login1", "gpu03"), ("a1,b[2-3]", "a1"), ("r[1-2]n[04-05]", "r1n04")],
)
def test_the_first_host_of_slurms_lists(nodelist: str, host: str) -> None:
    assert first_host(nodelist) == host


def test_a_node_knows_its_place_from_slurm_alone() -> None:
    slurm = {"SLURM_STEP_NUM_NODES": "4", "SLURM_NODEID": "2", "SLURM_STEP_NODELIST": "g[7-10]", "SLURM_JOB_ID": "123456"}
    assert rendezvous(slurm) == ["--nnodes=4", "--node-rank=2", "--master-addr=g7", "--master-port=23456"]
    with pytest.raises(InputError, match="start this by srun"):
        rendezvous({})


def test_what_cannot_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"stages\.decode runs in one process"):
        Resources(stages={"decode": {"nodes": 2}})
    with pytest.raises(ValueError, match="max_mem_mb"):
        Resources(mem_mb=2, max_mem_mb=1)
    with pytest.raises(InputError, match=r"resources\.stages"):
        load_config({"resources": {"stages": {"aling": {"nodes": 2}}}})


def test_the_example_of_a_site_is_valid_and_names_every_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    example = Path(__file__).resolve().parent.parent / "slurm/site.example.yaml"
    monkeypatch.setenv("ENTROPY_ASR_SITE", str(example))
    site = load_site(tmp_path)
    assert None not in site.model_dump().values() and site.setup
    assert 'export TMPDIR="/scratch/$USER/$SLURM_JOB_ID"' in shell_prefix(site)
    monkeypatch.delenv("ENTROPY_ASR_SITE")
    assert load_site(tmp_path) == Site()
    (tmp_path / "site.yaml").write_text("acount: mine\n")
    with pytest.raises(InputError, match="acount"):
        load_site(tmp_path)


def test_a_stage_that_was_given_gpus_does_not_fall_back_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from entropy_asr.training.distributed import choose_device

    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    monkeypatch.setenv("ENTROPY_ASR_DEVICE", "cuda")
    with pytest.raises(InputError, match="this stage was given GPUs"):
        choose_device()
    monkeypatch.setenv("ENTROPY_ASR_DEVICE", "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device().type == "cpu", "no GPUs in the config: none is used, even where there is one"
