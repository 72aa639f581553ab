"""One optimiser step on any number of processes, and its state in one file.

DeepSpeed ZeRO-2 does the work at every scale.  Its own checkpoints are pickles bound to a number of GPUs; ours is one
safetensors file with float32 weights and moments by parameter name, whole, and the counters as JSON in its header.  So no
pickle is ever loaded, another number of processes resumes from the same file, and the file is whole or it is not there.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from entropy_asr.config import Engine as EngineConfig
from entropy_asr.config import Schedule
from entropy_asr.training import distributed
from entropy_asr.training.muon import MuonAdamW

REDUCE_BUCKET = 50_000_000
"""Gradients that are reduced together: enough to fill a network, and a tenth of the memory that DeepSpeed's default takes."""


def cosine_lr(step: int, schedule: Schedule) -> float:
    """Learning rate of optimiser step `step` (from 0): linear warm-up to the peak, then cosine to zero at the last step."""
    if step < schedule.warmup_steps:
        return schedule.peak_lr * (step + 1) / schedule.warmup_steps
    progress = (step - schedule.warmup_steps) / max(1, schedule.steps - schedule.warmup_steps)
    return schedule.peak_lr * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def freeze(module: nn.Module) -> None:
    """No gradients, no optimiser state, no dropout: a frozen module computes as it does in evaluation."""
    module.requires_grad_(False)
    module.eval()


def linear_matrices(module: nn.Module) -> set[nn.Parameter]:
    """The weights of linear layers that are not also an embedding: what Muon moves, where a schedule asks for it."""
    found = {layer.weight for layer in module.modules() if isinstance(layer, nn.Linear)}
    return found - {layer.weight for layer in module.modules() if isinstance(layer, nn.Embedding)}


class Engine:
    """A module's trainable parameters under DeepSpeed.

    Args:
        module: maps a micro-batch to (its mean loss, dict of numbers to log).
        lr_scales: learning-rate factor by prefix of parameter name; 1 where none fits.
    """

    def __init__(
        self,
        module: nn.Module,
        schedule: Schedule,
        config: EngineConfig,
        device: torch.device,
        lr_scales: dict[str, float] | None = None,
    ) -> None:
        import deepspeed

        self.schedule, self.device, self.config = schedule, device, config
        self.trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
        frozen = [m for m in module.modules() if list(m.parameters()) and not any(p.requires_grad for p in m.parameters())]
        matrices = linear_matrices(module) if schedule.optimiser == "muon" else set()
        groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
        for name, parameter in self.trainable.items():
            scale = next((s for prefix, s in (lr_scales or {}).items() if name.startswith(prefix)), 1.0)
            decay = schedule.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((scale, decay, parameter in matrices), []).append(parameter)
        gpu = device.type == "cuda"
        self.lr_scales = [scale for scale, _, _ in groups]
        learned = sum(parameter.numel() for parameter in self.trainable.values())
        self.accumulated_bytes = 4 * (learned // distributed.world_size() + (2 * REDUCE_BUCKET if gpu else 0))
        optimiser = MuonAdamW(
            [
                {
                    "params": parameters,
                    "weight_decay": decay,
                    "matrices": [tuple(p.shape) for p in parameters] if muon else [],
                    "renew": schedule.muon_renew,
                    "taken": 0,
                }
                for (_, decay, muon), parameters in groups.items()
            ],
            lr=schedule.peak_lr,
            betas=(0.9, schedule.beta2),
            eps=1e-8,
            fused=True,
        )
        self.engine, self.optimiser, _, _ = deepspeed.initialize(
            model=module.to(device),
            optimizer=optimiser,
            dist_init_required=False,
            config={
                "train_micro_batch_size_per_gpu": 1,  # batches are formed by duration; DeepSpeed only counts them
                "gradient_accumulation_steps": schedule.accumulation,
                "gradient_clipping": config.gradient_clip,
                "bf16": {"enabled": config.precision == "bf16"},
                # In bf16 a sum of gradients, over micro-batches or processes, would lose those that are small beside it.
                "data_types": {"grad_accum_dtype": "fp32"},
                "communication_data_type": "fp32",
                # Copying gradients to one buffer saves GPU memory; for a small model on a CPU it is a fifth of the step.
                "zero_optimization": {
                    "stage": 2,
                    "overlap_comm": gpu,
                    "contiguous_gradients": gpu,
                    "reduce_bucket_size": REDUCE_BUCKET,
                },
                "zero_allow_untested_optimizer": True,
                "steps_per_print": 2**31,
            },
        )
        self.moments: dict[str, tuple[str, ...]] = {}
        names = {parameter: name for name, parameter in self.trainable.items()}
        for (_, _, muon), members, partition in zip(
            groups, groups.values(), self.optimiser.single_partition_of_fp32_groups, strict=True
        ):
            # What Adam makes at its first step. Made before, because DeepSpeed links parameters to these tensors after the
            # first parameter group has moved, when those of the other groups would not be there yet.
            moments = ("exp_avg", "direction") if muon else ("exp_avg", "exp_avg_sq")
            self.moments |= dict.fromkeys((names[p] for p in members), moments)
            state = {moment: torch.zeros_like(partition) for moment in moments}
            self.optimiser.optimizer.state[partition] = {"step": torch.tensor(0.0, device=partition.device), **state}
        self.optimiser._lazy_init_hp_params_optimizer_state()
        self.engine.train()
        for module in frozen:
            module.eval()

    @property
    def module(self) -> nn.Module:
        return self.engine.module

    def __call__(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        return self.engine(batch)

    def set_lr(self, step: int) -> float:
        lr = cosine_lr(step, self.schedule)
        for group, scale in zip(self.optimiser.param_groups, self.lr_scales, strict=True):
            group["lr"] = lr * scale
        return lr

    def backward(self, loss: Tensor) -> None:
        """Of one micro-batch; its gradients join those of the others since the last optimiser step."""
        self.engine.backward(loss)

    def step(self) -> None:
        """After each backward; the optimiser moves at the accumulation boundary."""
        self.engine.step()

    def discard(self) -> None:
        """After a backward, in place of `step`: forget the gradients of all micro-batches since the last optimiser step."""
        self.engine.micro_steps -= self.engine.micro_steps % self.schedule.accumulation
        # As DeepSpeed does where gradients overflow.
        self.optimiser.zero_grad()
        for group in range(len(self.optimiser.bit16_groups)):
            self.optimiser.averaged_gradients[group] = None
            self.optimiser.all_grad_tensors[group] = None

    def probe(self, batch: Any) -> None:
        """Forward and backward of one batch that leave nothing behind: no gradient, no random number drawn.

        It holds what a step in the middle of its accumulation holds beside them: gradients so far, buckets that are reduced.

        Raises:
            torch.OutOfMemoryError: it does not fit on the GPU.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            held = torch.empty(self.accumulated_bytes, dtype=torch.uint8, device=self.device)
            loss, _ = self.module(batch.to(self.device))
            # Not loss.backward(): DeepSpeed's hooks would count it as a micro-batch.
            torch.autograd.grad(loss, list(self.trainable.values()), allow_unused=True)
            del held

    def gradient_norm(self) -> float:
        """Of the last optimiser step, before clipping."""
        norm = self.engine.get_global_grad_norm()
        return float(norm) if norm is not None else math.nan

    def restore_full_precision(self) -> None:
        """Put the float32 master weights into rank 0's module, on the CPU, for its artifact; training is over. Collective.

        In bf16 the module holds roundings of them, and a stage that goes on from the artifact would start from these.
        """
        from deepspeed.utils import safe_get_full_fp32_param

        for parameter in self.trainable.values():
            weight = safe_get_full_fp32_param(parameter)
            if distributed.rank() == 0:
                parameter.data = weight.to("cpu", copy=True)

    # -- state ---------------------------------------------------------------------------------------------------------

    def save(self, path: Path, counters: dict[str, Any], extra: dict[str, Tensor]) -> None:
        """Write weights, moments, random states, `extra` tensors and counters to one file, atomically. Collective."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        tensors = {f"extra.{name}": tensor for name, tensor in extra.items()}
        writes = distributed.rank() == 0
        for name, parameter in self.trainable.items():
            values = {"weight": safe_get_full_fp32_param(parameter)}
            for moment in self.moments[name]:
                values[moment] = safe_get_full_optimizer_state(parameter, moment)
            if writes:
                tensors.update({f"{kind}.{name}": value.to("cpu", copy=True) for kind, value in values.items()})
        for index, state in enumerate(distributed.gather(torch.get_rng_state())):
            tensors[f"rng.{index}"] = state
        if self.device.type == "cuda":
            for index, state in enumerate(distributed.gather(torch.cuda.get_rng_state())):
                tensors[f"cuda_rng.{index}"] = state
        counters = {**counters, "optimiser_step": self.optimiser.param_groups[0]["taken"]}
        if writes:
            write_tensors(path, tensors, {"counters": json.dumps(counters)})
        distributed.wait()

    def load(self, path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Take up a saved state; returns the counters and the `extra` tensors."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        with safe_open(path, framework="pt", device="cpu") as file:
            counters = json.loads(file.metadata()["counters"])
            for group in self.optimiser.param_groups:
                group["taken"] = counters["optimiser_step"]
            for partition in self.optimiser.single_partition_of_fp32_groups:
                self.optimiser.optimizer.state[partition]["step"].fill_(counters["optimiser_step"])
            for name, parameter in self.trainable.items():
                weight = file.get_tensor(f"weight.{name}").to(self.device)
                parameter.data.copy_(weight)
                safe_set_full_fp32_param(parameter, weight)
                for moment in self.moments[name]:
                    safe_set_full_optimizer_state(parameter, file.get_tensor(f"{moment}.{name}").to(self.device), moment)
            names = set(file.keys())
            if f"rng.{distributed.rank()}" in names:
                torch.set_rng_state(file.get_tensor(f"rng.{distributed.rank()}"))
            if self.device.type == "cuda" and f"cuda_rng.{distributed.rank()}" in names:
                torch.cuda.set_rng_state(file.get_tensor(f"cuda_rng.{distributed.rank()}"))
            extra = {name.removeprefix("extra."): file.get_tensor(name) for name in names if name.startswith("extra.")}
        return counters, extra


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file to a temporary name, flush it to disk, rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        save_file({name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}, temporary, metadata)
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
