"""One optimiser step in bf16 of four micro-batches, whose gradients differ much: `test_precision.py` runs this by torchrun."""

import torch
from torch import nn

from entropy_asr.config import Engine as EngineConfig
from entropy_asr.config import Schedule
from entropy_asr.training import distributed
from entropy_asr.training.engine import Engine

SLOPES = [1.0, 0.00299072265625, 0.00299072265625, 0.00299072265625]  # exact in bf16; their sum is not


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, slope: float) -> tuple[torch.Tensor, dict]:
        return slope * self.weight.sum(), {}


if __name__ == "__main__":
    device = distributed.start()
    world = distributed.world_size()
    schedule = Schedule(steps=2, peak_lr=0.1, warmup_steps=1, accumulation=len(SLOPES) // world)
    engine = Engine(Line(), schedule, EngineConfig(precision="bf16", gradient_clip=100.0), device)
    for k in range(schedule.accumulation):
        loss, _ = engine(SLOPES[k * world + distributed.rank()])
        engine.backward(loss)
        engine.step()
    if distributed.rank() == 0:
        print("norm", engine.gradient_norm())
    distributed.stop()
