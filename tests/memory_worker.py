"""What each stage holds at most, and what the plan says, for the cases of `test_plan.py`; the last line is JSON."""

import json
import sys

from entropy_asr import plan, tune_batch
from entropy_asr.config import Config
from entropy_asr.training import distributed

SCHEDULE = {"steps": 10, "peak_lr": 1e-3, "warmup_steps": 1, "accumulation": 2}
ENCODER = {"width": 96, "layers": 3, "heads": 4, "feed_forward": 256, "conv_kernel": 7, "subsampling_channels": 8}
SCRATCH = {"vocab_size": 700, "hidden_size": 64, "layers": 3, "heads": 4, "kv_heads": 2, "intermediate_size": 160}


def config_of(case: dict, ctc_weight: float) -> Config:
    schedule = SCHEDULE | case.get("schedule", {}) | {"max_duration": case.get("seconds", 6)}
    return Config(
        encoder=ENCODER | case.get("encoder", {}),
        llm={"pretrained": None, "scratch": SCRATCH | case.get("llm", {}).get("scratch", {})},
        adaptor={"hidden": 128},
        engine={"precision": "fp32"} | case.get("engine", {}),
        augment={"noise_probability": 0.0},
        quality={"max_duration": 2.0},
        cka={"warmup_steps": 5},
        pretrain=schedule,
        align=schedule | {"ctc_weight": ctc_weight},
        ia_sft=schedule,
        joint_sft=schedule,
    )


def compare(config: Config, stage: str, device) -> tuple[float, float, str]:
    cuts = tune_batch.synthetic_cuts(config).subset(first=50)
    batch = tune_batch.synthetic_batches(config, stage, config.pretrain.max_duration, device, cuts).largest()
    planned = plan.memory(config, stage, tune_batch.batch_shape(config, stage, batch), gpu=False)
    return tune_batch.stage_peak(config, stage, batch, device), planned.bytes, planned.name


if __name__ == "__main__":
    device = distributed.start()
    found = {}
    for name, case in json.loads(sys.argv[1]).items():
        found[name] = {stage: compare(config_of(case, 0.0), stage, device) for stage in plan.STAGES}
        found[name]["align, CTC"] = compare(config_of(case, 0.3), "align", device)
    print(json.dumps(found))
    distributed.stop()
