"""The plan's arithmetic against what autograd keeps and what the stages hold."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from repository import ENVIRONMENT, REPO
from transformers import AutoModelForCausalLM

from entropy_asr import plan
from entropy_asr.config import Config, Encoder
from entropy_asr.config_files import load_config
from entropy_asr.errors import InputError
from entropy_asr.models.conformer import ConformerEncoder
from entropy_asr.models.packed_attention import PACKED
from entropy_asr.models.packing import Packing
from entropy_asr.training.engine import freeze
from entropy_asr.training.memory import LiveBytes

ENCODER = Encoder(width=96, layers=3, heads=4, feed_forward=256, conv_kernel=7, subsampling_channels=8, dropout=0.1)
SCRATCH = {"vocab_size": 700, "hidden_size": 64, "layers": 3, "heads": 4, "kv_heads": 2, "intermediate_size": 160}
SMALL = Config(encoder=ENCODER, llm={"pretrained": None, "scratch": SCRATCH}, engine={"precision": "fp32"})


def test_encoder_blocks_keep_what_the_plan_counts() -> None:
    rows, frames = 3, 407
    for checkpointing in (False, True):
        encoder = ConformerEncoder(ENCODER)
        encoder.checkpoint_activations = checkpointing
        features = torch.randn(rows, frames, 80)
        with LiveBytes() as live:
            out, _ = encoder(features, torch.full((rows,), frames))
            kept = live.now()
        others = sum(p.nbytes for p in encoder.parameters()) + features.nbytes + out.nbytes
        batch, how = plan.BatchShape(rows, frames, 0, 0), plan.Arithmetic(4, gpu=False, checkpointing=checkpointing)
        counted = plan.encoder_activations(ENCODER, batch, how).kept + plan.subsampling_bytes(ENCODER, 80, batch, how)
        assert counted == pytest.approx(kept - others, rel=0.03)


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_llm_layers_keep_what_the_plan_counts_be_they_frozen(dtype: torch.dtype, trained: bool) -> None:
    """In alignment they are frozen, and gradients go through them to the adaptor."""
    llm = plan.llm_config(SMALL)
    model = AutoModelForCausalLM.from_config(llm, dtype=dtype).train()
    model.set_attn_implementation(PACKED)
    if not trained:
        freeze(model)
    packing = Packing.of([100] * 4, torch.device("cpu"))
    embeddings = torch.randn(1, packing.total, llm.hidden_size, dtype=dtype, requires_grad=True)
    options = {"packing": packing, "position_ids": packing.positions[None], "attention_mask": embeddings.new_empty(1, 1, 1, 1)}
    with LiveBytes() as live:
        hidden = model.get_decoder()(inputs_embeds=embeddings, use_cache=False, **options).last_hidden_state
        kept = live.now()
    others = hidden.nbytes + sum(p.nbytes for p in model.get_decoder().parameters()) - model.get_input_embeddings().weight.nbytes
    if dtype == torch.bfloat16:
        others += embeddings.nbytes  # the first norm keeps a copy in float32; in float32 it keeps the embeddings themselves
    how = plan.Arithmetic(embeddings.element_size(), gpu=False, checkpointing=False)
    counted = plan.llm_activations(llm, packing.total, how, trained).kept
    assert counted == pytest.approx(kept - others, rel=0.03)


ENCODER_HEAVY = {"encoder": {"width": 128, "layers": 5, "feed_forward": 384}}
LLM_HEAVY = {"llm": {"scratch": {"hidden_size": 128, "layers": 5, "intermediate_size": 384, "vocab_size": 5000}}, "seconds": 10}
WEIGHTS = {"encoder": {"width": 192, "layers": 5, "feed_forward": 768, "subsampling_channels": 4}, "seconds": 2}
CHECKPOINTING = {"activation_checkpointing": True}
CASES = {
    "LLM-heavy with a large vocabulary, checkpointing": LLM_HEAVY | {"engine": CHECKPOINTING},
    "small vocabulary, bf16": {"llm": {"scratch": {"vocab_size": 60}}, "engine": {"precision": "bf16"}},
    "encoder-heavy, checkpointing, bf16": ENCODER_HEAVY | {"engine": CHECKPOINTING | {"precision": "bf16"}},
    "weights above all, bf16": WEIGHTS | {"engine": {"precision": "bf16"}},
    "weights above all, Muon": WEIGHTS | {"schedule": {"optimiser": "muon"}},
}


@pytest.fixture(scope="module")
def measured() -> dict[str, dict[str, list[float]]]:
    """Bytes of each case and stage: what a process held at most, and what the plan says; and where the plan says it is."""
    command = [sys.executable, str(Path(__file__).with_name("memory_worker.py")), json.dumps(CASES)]
    environment = ENVIRONMENT | {"ENTROPY_ASR_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("stage", [*plan.STAGES, "align, CTC"])
@pytest.mark.parametrize("case", CASES)
def test_a_stage_holds_at_most_what_the_plan_says(measured: dict, case: str, stage: str) -> None:
    """Of the real modules and engine, from their construction over two optimiser steps of the largest batch."""
    held, planned, moment = measured[case][stage]
    assert planned == pytest.approx(held, rel=0.15 if "Muon" in case else 0.05), moment


def test_paper_is_the_papers_size_and_fits_a_gpu() -> None:
    paper = load_config(REPO / "config/paper.yaml")
    sizes = plan.parameters(paper)
    assert sum(sizes.values()) == pytest.approx(2.3e9, rel=0.03)
    assert sizes["encoder"] == pytest.approx(600e6, rel=0.03)
    stages = {stage.stage: stage for stage in plan.stage_costs(paper)}
    assert all(0 < stage.peak.bytes < 80e9 for stage in stages.values())
    assert stages["align"].peak.optimiser < stages["ia_sft"].peak.optimiser < stages["joint_sft"].peak.optimiser
    assert stages["pretrain"].gpu_hours(312e12, 0.4) == pytest.approx(2 * stages["pretrain"].gpu_hours(312e12, 0.8))


def test_an_unknown_pretrained_llm_is_an_error() -> None:
    with pytest.raises(InputError, match="is no local folder"):
        plan.parameters(Config(llm={"pretrained": "nobody/nothing"}))
