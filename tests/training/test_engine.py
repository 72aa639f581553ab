"""The engine with real processes: on one or two it computes what plain PyTorch does, and either takes up the other's state."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from engine_worker import MICRO_BATCHES, RENEW, STEPS, Network, data, schedule
from repository import ENVIRONMENT
from torch import nn

from entropy_asr.training.engine import cosine_lr, linear_matrices
from entropy_asr.training.muon import muon_directions

WORKER = Path(__file__).with_name("engine_worker.py")


def train(
    optimiser: str, out: Path, processes: int, save_at: int = 0, resume: Path | None = None, spoiled: int | None = None
) -> dict:
    """Run the worker; returns its losses by step and its last weights."""
    out.mkdir()
    launch = [sys.executable]
    if processes > 1:
        launch += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    options = {"optimiser": optimiser, "out": str(out), "save_at": save_at, "resume": resume and str(resume), "spoiled": spoiled}
    command = [*launch, str(WORKER), json.dumps(options)]
    # Two processes, also where there is one GPU.
    environment = ENVIRONMENT | {"ENTROPY_ASR_DEVICE": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "result.json").read_text())


@pytest.fixture(scope="module", params=["adamw", "muon"])
def optimiser(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def peer(optimiser: str) -> dict:
    """Plain PyTorch, all micro-batches of a step in one process, each matrix of Muon's by itself."""
    network = Network()
    network.frozen.requires_grad_(False)
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    matrices = {name: torch.zeros_like(p) for name, p in named.items() if optimiser == "muon" and p.ndim == 2}
    directions: dict[str, torch.Tensor] = {}
    scales = {name: 0.5 if name.startswith("first.") else 1.0 for name in named}
    groups = [
        {"params": [p], "weight_decay": 0.1 if p.ndim > 1 else 0.0, "scale": scales[name]}
        for name, p in named.items()
        if name not in matrices
    ]
    adam = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.9))
    pairs, losses = data(), []
    for step in range(STEPS):
        lr = cosine_lr(step, schedule(1, optimiser))
        for group in adam.param_groups:
            group["lr"] = group["scale"] * lr
        batch = [network(pair)[0] for pair in pairs[step * MICRO_BATCHES : (step + 1) * MICRO_BATCHES]]
        loss = torch.stack(batch).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(named.values(), 1.0)
        for name, momentum in matrices.items():
            momentum.mul_(0.95).add_(0.05 * named[name].grad)
            if step % RENEW == 0:
                (directions[name],) = muon_directions([0.95 * momentum + 0.05 * named[name].grad])
            named[name].data.mul_(1 - 0.1 * scales[name] * lr).sub_(scales[name] * lr * directions[name])
        adam.step()
        network.zero_grad()
        losses.append(loss.item())
    return {"losses": losses, "weights": {name: p.tolist() for name, p in network.named_parameters()}}


def assert_same(found: dict, expected: dict) -> None:
    assert found["losses"] == pytest.approx(expected["losses"][-len(found["losses"]) :], rel=1e-4)
    for name, weights in expected["weights"].items():
        torch.testing.assert_close(torch.tensor(found["weights"][name]), torch.tensor(weights), rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("processes", [1, 2])
def test_same_as_plain_pytorch_on_the_same_global_batch(optimiser: str, processes: int, peer: dict, tmp_path: Path) -> None:
    found = train(optimiser, tmp_path / "run", processes)
    assert found["losses"][-1] < 0.8 * found["losses"][0]
    assert_same(found, peer)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on(optimiser: str, before: int, after: int, peer: dict, tmp_path: Path) -> None:
    train(optimiser, tmp_path / "first", before, save_at=5)
    found = train(optimiser, tmp_path / "second", after, resume=tmp_path / "first/state.safetensors")
    assert len(found["losses"]) == STEPS - 5
    assert_same(found, peer)


@pytest.mark.parametrize(("processes", "spoiled"), [(1, 0), (1, 3), (2, 1)])
def test_what_is_discarded_leaves_no_trace(optimiser: str, processes: int, spoiled: int, peer: dict, tmp_path: Path) -> None:
    """Also where it came last before the optimiser step."""
    assert_same(train(optimiser, tmp_path / "run", processes, spoiled=spoiled), peer)


def test_muon_takes_what_is_neither_an_embedding_nor_a_vector_nor_a_convolution() -> None:
    layers = {"in": nn.Embedding(5, 3), "hidden": nn.Linear(3, 4), "conv": nn.Conv1d(4, 3, 1), "out": nn.Linear(3, 5)}
    network = nn.ModuleDict(layers)
    assert linear_matrices(network) == {network["hidden"].weight, network["out"].weight}
    network["out"].weight = network["in"].weight
    assert linear_matrices(network) == {network["hidden"].weight}
