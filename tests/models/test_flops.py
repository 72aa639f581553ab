"""The FLOPs that planning and utilisation take are those that torch counts."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import Qwen3ForCausalLM

from entropy_asr.audio.batches import Batch, Position
from entropy_asr.config import Adaptor as AdaptorConfig
from entropy_asr.config import Encoder, ScratchLM
from entropy_asr.models.adaptor import Adaptor
from entropy_asr.models.aed import AttentionDecoder
from entropy_asr.models.conformer import ConformerEncoder, subsampled_length
from entropy_asr.models.flops import decoder_flops, encoder_flops, llm_flops, matmul_rate
from entropy_asr.models.scratch_lm import scratch_lm_config
from entropy_asr.models.speech_llm import PromptIds, SpeechLLM
from entropy_asr.stages.objectives import AedModel
from entropy_asr.stages.sft import TranscriptLoss
from entropy_asr.training.engine import freeze

ENCODER = Encoder(width=96, layers=3, heads=4, feed_forward=256, conv_kernel=7, subsampling_channels=8, dropout=0.0)
SCRATCH = ScratchLM(vocab_size=700, hidden_size=64, layers=3, heads=4, kv_heads=2, intermediate_size=160)


def test_encoder_flops_are_what_torch_counts() -> None:
    encoder = ConformerEncoder(ENCODER)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # it does not know the CPU's fused attention
        encoder(torch.randn(1, 407, 80), torch.tensor([407]))
    depthwise = 2 * ENCODER.layers * subsampled_length(407) * ENCODER.conv_kernel * ENCODER.width
    counted = counter.get_total_flops()
    assert encoder_flops(ENCODER, 80, 407) == pytest.approx(counted, rel=0.01, abs=depthwise)


def test_llm_flops_are_what_torch_counts() -> None:
    llm = scratch_lm_config(SCRATCH, SCRATCH.vocab_size)
    model = Qwen3ForCausalLM(llm)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        hidden = model.get_decoder()(torch.randint(0, 700, (1, 50)), use_cache=False).last_hidden_state
        model.get_output_embeddings()(hidden[:, -9:])
    assert llm_flops(llm, 50, 9) == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("frozen", [(), ("encoder",), ("encoder", "llm")])
def test_a_training_step_is_what_torch_counts(frozen: tuple[str, ...]) -> None:
    adaptor = Adaptor(AdaptorConfig(stack=4, hidden=8), 96, 64)
    llm = Qwen3ForCausalLM(scratch_lm_config(SCRATCH, SCRATCH.vocab_size))
    system = SpeechLLM(ConformerEncoder(ENCODER), adaptor, llm, PromptIds(list(range(9)), [1, 2], 3, 0))
    for name in frozen:
        freeze(getattr(system, name))
    loss = TranscriptLoss(system)
    batch = Batch(["a"], torch.randn(1, 407, 80), torch.tensor([407]), [[5] * 30], 4.0, Position(), [407])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss(batch)[0].backward()
    # Left out on purpose: the adaptor; and gradients that stop at the inputs or at a frozen look-up table.
    assert loss.flops(batch) == pytest.approx(counter.get_total_flops(), rel=0.12)


def test_decoder_flops_are_what_torch_counts() -> None:
    decoder = AttentionDecoder(96, 4, 256, layers=2, vocab_size=50, sos_eos=2, dropout=0.0)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        decoder(torch.full((1, 31), 5), torch.randn(1, 100, 96), torch.tensor([100]))
    assert decoder_flops(decoder, 100, 31) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_a_step_of_attention_pretraining_is_what_torch_counts() -> None:
    model = AedModel(ConformerEncoder(ENCODER), AttentionDecoder(96, 4, 256, 2, 50, 2, 0.0), 0.1)
    batch = Batch(["a"], torch.randn(2, 407, 80), torch.tensor([407, 407]), [[5] * 30], 4.0, Position(), [407, 407])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(batch)[0].backward()
    assert model.flops(batch) == pytest.approx(counter.get_total_flops(), rel=0.12)  # as above


def test_the_rate_of_a_matrix_product_is_one_that_a_processor_can_have() -> None:
    assert 1e8 < matmul_rate(torch.device("cpu"), torch.float32) < 1e14
