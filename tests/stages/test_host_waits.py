"""No training step asks the GPU for a number: on the meta device, whose tensors hold none, reading one is an error.

On a GPU PyTorch itself reports every wait; there the whole loop is looked at.
"""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen3Config, Qwen3ForCausalLM

from entropy_asr.audio.batches import Batch, Position
from entropy_asr.config import Adaptor as AdaptorConfig
from entropy_asr.config import Aed, Ctc, Encoder
from entropy_asr.models.adaptor import Adaptor
from entropy_asr.models.conformer import ConformerEncoder
from entropy_asr.models.speech_llm import PromptIds, SpeechLLM, checkpoint_layers
from entropy_asr.stages.objectives import Labels, build
from entropy_asr.stages.sft import AlignmentLoss, TranscriptLoss
from entropy_asr.text.units import SENTENCE_END
from entropy_asr.training.engine import freeze

SIZES = Encoder(width=32, layers=2, heads=2, feed_forward=64, conv_kernel=7, subsampling_channels=4, dropout=0.1)
LABELS = Labels(["<blank>", "a", "b", SENTENCE_END], lambda cut: [1])


def system() -> SpeechLLM:
    llm = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
            intermediate_size=64, eos_token_id=2, pad_token_id=0, bos_token_id=None,
        )
    )  # fmt: skip
    adaptor = Adaptor(AdaptorConfig(stack=4, stride=4, hidden=48), 32, 32)
    return SpeechLLM(ConformerEncoder(SIZES), adaptor, llm, PromptIds([5, 6, 7], [8, 9], 2, 0))


def pretraining(objective: str) -> torch.nn.Module:
    settings = SimpleNamespace(encoder=SIZES, aed=Aed(layers=1), ctc=Ctc())
    return build(objective, ConformerEncoder(SIZES), LABELS, settings)[0]


def alignment() -> torch.nn.Module:
    whole = system()
    freeze(whole.encoder)
    freeze(whole.llm)
    checkpoint_layers(whole.llm)
    return AlignmentLoss(whole, 0.5, {"x": [10, 11], "y": [12]}, 13)


STEPS: dict[str, tuple[Callable[[], torch.nn.Module], int]] = {
    "phoneme": (lambda: pretraining("phoneme"), 2),
    "attention": (lambda: pretraining("attention"), 2),
    "alignment": (alignment, 1),
    "joint SFT": (lambda: TranscriptLoss(system()), 1),
}


def batch(copies: int) -> Batch:
    lens = torch.tensor([120, 80] * copies)
    return Batch(["x", "y"], torch.randn(2 * copies, 120, 80), lens, [[1, 2], [1]], 2.0, Position())


def train(module: torch.nn.Module, given: Batch, device: torch.device) -> None:
    loss, _ = module.train()(given.to(device))
    loss.backward()


def shape_of_ctc_loss(
    log_probs: Tensor, targets: Tensor, lens: Tensor, target_lens: Tensor, blank: int = 0, reduction: str = "mean", **_: bool
) -> Tensor:
    """PyTorch's has no kernel for the meta device. It reads the lengths on the CPU."""
    assert {lens.device.type, target_lens.device.type} == {"cpu"} and targets.device == log_probs.device
    return log_probs.sum((0, 2)) if reduction == "none" else log_probs.sum()


@pytest.mark.parametrize("name", STEPS)
def test_a_step_reads_nothing_from_the_device(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "ctc_loss", shape_of_ctc_loss)
    build_module, copies = STEPS[name]
    module = build_module().to("meta")
    train(module, batch(copies), torch.device("meta"))
    assert any(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("reads", [lambda x: x.item(), lambda x: x.tolist(), bool, lambda x: x.cpu(), lambda x: x.nonzero()])
def test_reading_is_noticed(reads: Callable) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        reads(torch.ones((), device="meta"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["joint SFT"])  # PyTorch's CTC copies its lengths, and waits for that
def test_a_step_waits_for_nothing_on_a_gpu(name: str) -> None:
    build_module, copies = STEPS[name]
    module, given = build_module().to("cuda", torch.bfloat16), batch(copies)
    train(module, given, torch.device("cuda"))  # what is made once
    torch.cuda.set_sync_debug_mode("error")
    try:
        train(module, given, torch.device("cuda"))
    finally:
        torch.cuda.set_sync_debug_mode("default")
