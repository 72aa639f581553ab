"""Time pretraining steps under ZeRO-2: four micro-batches a step, shared by however many processes torchrun started."""

import time

import torch

from entropy_asr.audio.batches import Batch, Position
from entropy_asr.config import Encoder, Schedule
from entropy_asr.config import Engine as EngineConfig
from entropy_asr.models.conformer import ConformerEncoder
from entropy_asr.models.ctc import CtcHead
from entropy_asr.stages.objectives import CrCtcModel
from entropy_asr.training import distributed
from entropy_asr.training.engine import Engine

MICRO_BATCHES, STEPS, WARM_UP = 4, 8, 2


def main() -> None:
    """Print the seconds of one step."""
    device = distributed.start()
    torch.manual_seed(0)
    settings = Encoder(width=144, layers=4, heads=4, feed_forward=576, conv_kernel=15, subsampling_channels=24, dropout=0.0)
    model = CrCtcModel(ConformerEncoder(settings), CtcHead(144, 260, 1), 0.2)
    accumulation = MICRO_BATCHES // distributed.world_size()
    schedule = Schedule(steps=100, peak_lr=1e-4, warmup_steps=1, accumulation=accumulation)
    engine = Engine(model, schedule, EngineConfig(precision="fp32"), device)
    lens = torch.tensor([600, 580, 560, 540])
    targets = [torch.randint(1, 260, (60,)).tolist() for _ in lens]
    batch = Batch(["a"] * 4, torch.randn(8, 600, 80), lens.repeat(2), targets, 22.8, Position(), lens.repeat(2).tolist())
    for step in range(STEPS + WARM_UP):
        if step == WARM_UP:
            begun = time.perf_counter()
        engine.set_lr(step)
        for _ in range(accumulation):
            engine.backward_and_step(engine(batch)[0])
    if distributed.rank() == 0:
        print("seconds a step:", (time.perf_counter() - begun) / STEPS)
    distributed.stop()


if __name__ == "__main__":
    main()
