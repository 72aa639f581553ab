"""Train a small network under the engine for some steps and write what came of it: `test_engine.py` runs this by torchrun.

Every rank takes its own share of the same micro-batches, so that the global batch is the same whatever the number of processes.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from entropy_asr.config import Engine as EngineConfig
from entropy_asr.config import Schedule
from entropy_asr.training import distributed
from entropy_asr.training.engine import Engine, freeze

MICRO_BATCHES, STEPS = 4, 12  # a step
RENEW = 3  # steps between two of Muon's directions


@dataclass
class Pair:
    x: torch.Tensor
    y: torch.Tensor


def data() -> list[Pair]:
    generator = torch.Generator().manual_seed(1)
    inputs = [torch.randn(3, 5, generator=generator) for _ in range(MICRO_BATCHES * STEPS)]
    return [Pair(x, x[:, :2].sign()) for x in inputs]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.frozen, self.second = nn.Linear(5, 7), nn.Linear(7, 7), nn.Linear(7, 2)

    def forward(self, pair: Pair) -> tuple[torch.Tensor, dict]:
        return (self.second(torch.tanh(self.frozen(torch.tanh(self.first(pair.x))))) - pair.y).square().mean(), {}


def schedule(accumulation: int, optimiser: str = "adamw") -> Schedule:
    peak_lr = {"adamw": 0.1, "muon": 0.3}[optimiser]
    return Schedule(
        optimiser=optimiser,
        muon_renew=RENEW,
        steps=STEPS,
        peak_lr=peak_lr,
        warmup_steps=2,
        accumulation=accumulation,
        weight_decay=0.1,
        beta2=0.9,
    )


def main(optimiser: str, out: str, save_at: int, resume: str | None, spoiled: int | None) -> None:
    """spoiled: so many micro-batches into each step comes one whose loss is not a number, and all of them are dropped."""
    device = distributed.start()
    network = Network()
    freeze(network.frozen)
    accumulation = MICRO_BATCHES // distributed.world_size()
    engine = Engine(network, schedule(accumulation, optimiser), EngineConfig(precision="fp32"), device, {"first.": 0.5})
    start = engine.load(Path(resume))[0]["step"] if resume else 0
    losses = []
    pairs = data()
    for step in range(start, STEPS):
        engine.set_lr(step)
        mine = [pairs[step * MICRO_BATCHES + k * distributed.world_size() + distributed.rank()] for k in range(accumulation)]
        if spoiled is not None:
            for pair in mine[:spoiled]:
                engine.backward(engine(pair)[0])
                engine.step()
            bad = torch.nan if distributed.rank() == 0 else 1.0
            loss, _ = engine(Pair(mine[0].x * bad, mine[0].y))
            wrong = distributed.agree_later(~loss.isfinite())
            engine.backward(loss)
            assert wrong()
            engine.discard()
        total = 0.0
        for pair in mine:
            loss, _ = engine(pair)
            total += loss.item()
            engine.backward(loss)
            engine.step()
        losses.append(distributed.totals(total)[0] / MICRO_BATCHES)
        if step + 1 == save_at:
            engine.save(Path(out) / "state.safetensors", {"step": step + 1}, {})
    if distributed.rank() == 0:
        weights = {name: p.tolist() for name, p in network.named_parameters()}
        (Path(out) / "result.json").write_text(json.dumps({"losses": losses, "weights": weights}))
    distributed.stop()


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
