"""The memory probe works with checkpointed activations, and leaves no gradient and no random draw behind."""

from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen3ForCausalLM

from entropy_asr.config import ScratchLM
from entropy_asr.models.scratch_lm import scratch_lm_config
from entropy_asr.stages.text_batches import TextBatch, TextLoss
from entropy_asr.training.engine import Engine
from entropy_asr.training.memory import LiveBytes


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_probe_leaves_nothing_behind(checkpointing: bool) -> None:
    scratch = ScratchLM(vocab_size=50, hidden_size=16, layers=2, heads=2, kv_heads=1, intermediate_size=32)
    model = Qwen3ForCausalLM(scratch_lm_config(scratch, 50))
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable()
    loss = TextLoss(model)
    calls = []
    loss.register_forward_hook(lambda *_: calls.append(torch.rand(())))  # draws a number, as dropout does
    trainable = {name: p for name, p in loss.named_parameters() if p.requires_grad}
    engine = SimpleNamespace(device=torch.device("cpu"), module=loss, trainable=trainable, accumulated_bytes=10**7)
    ids = torch.randint(0, 50, (2, 9))
    before = torch.get_rng_state()
    with LiveBytes() as live:
        Engine.probe(engine, TextBatch(ids, ids, torch.ones_like(ids), None))
    assert live.most > 10**7 > live.now()  # what other micro-batches have left was there, and is gone
    assert len(calls) == 1
    assert all(p.grad is None for p in trainable.values())
    assert torch.equal(torch.get_rng_state(), before)
