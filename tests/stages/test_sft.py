"""Losses of alignment and SFT: CTC adds to the transcript's, moves the adaptor alone, and expects nothing of silence."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from entropy_asr.audio.batches import Batch, Position, read_cuts
from entropy_asr.config import Adaptor as AdaptorConfig
from entropy_asr.config import Encoder
from entropy_asr.models.adaptor import Adaptor
from entropy_asr.models.conformer import ConformerEncoder
from entropy_asr.models.ctc import EMBEDDING_SCALE
from entropy_asr.models.speech_llm import PromptIds, SpeechLLM, checkpoint_layers
from entropy_asr.stages.sft import AlignmentLoss, TranscriptLoss, data_seed, pronunciations
from entropy_asr.training.engine import freeze

LM = Path(__file__).parents[2] / "data" / "lm"
SPOKEN = {"a": [30, 31, 30], "b": [33]}
BLANK = 40


@pytest.fixture
def system() -> SpeechLLM:
    torch.manual_seed(0)
    encoder = ConformerEncoder(
        Encoder(width=32, layers=1, heads=2, feed_forward=64, conv_kernel=7, subsampling_channels=4, dropout=0.0)
    )
    llm = Qwen3ForCausalLM(
        Qwen3Config(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=16)
    )
    freeze(encoder)
    freeze(llm)
    return SpeechLLM(encoder, Adaptor(AdaptorConfig(stack=4, stride=2, hidden=48), 32, 32), llm, PromptIds([5, 6], [8], 2, 0))


def batch(targets: list[list[int]]) -> Batch:
    features = torch.randn(2, 120, 80, generator=torch.Generator().manual_seed(1))
    return Batch(["a", "b"], features, torch.tensor([120, 90]), targets, 2.1, Position(), [120, 90])


def test_ctc_is_added_with_its_weight(system: SpeechLLM) -> None:
    given = batch([[10, 11], [12]])
    loss, parts = AlignmentLoss(system, 0.5, SPOKEN, BLANK)(given)
    assert parts["transcript_loss"].item() == pytest.approx(TranscriptLoss(system)(given)[0].item(), rel=1e-6)
    assert loss.item() == pytest.approx((parts["transcript_loss"] + 0.5 * parts["pronunciation_ctc"]).item(), rel=1e-6)
    loss.backward()
    trained = {name for name, parameter in system.named_parameters() if parameter.grad is not None}
    assert trained == {f"adaptor.{name}" for name, _ in system.adaptor.named_parameters()}


def test_of_audio_without_speech_blanks_alone_are_expected(system: SpeechLLM) -> None:
    silent = batch([[], []])  # their transcripts are empty: the audio was replaced
    units = system.llm.get_input_embeddings().weight[[BLANK, 30, 31, 33]]
    expected = 0.0
    for vectors in system.speech_embeddings(silent.features, silent.feature_lens):
        logits = EMBEDDING_SCALE * vectors @ units.T
        expected -= logits.log_softmax(-1)[:, 0].sum().item()
    assert AlignmentLoss(system, 1.0, SPOKEN, BLANK)(silent)[1]["pronunciation_ctc"].item() == pytest.approx(expected, rel=1e-4)


def test_alignment_expects_the_manifests_phonemes(tones: Path) -> None:
    cuts = read_cuts([tones])  # their text, "aa b", is read otherwise by the dictionary
    tokenizer = AutoTokenizer.from_pretrained(LM)
    expected = pronunciations(cuts, tokenizer)
    assert len(expected) == len(cuts)
    for name, tokens in expected.items():
        assert tokenizer.decode(tokens).split() == cuts[name].supervisions[0].custom["phonemes"]


def test_no_two_stages_meet_the_data_in_one_order() -> None:
    stages = ["align", *(f"ia_sft iteration {number}" for number in range(20)), "joint_sft"]
    assert len({data_seed(seed, stage) for stage in stages for seed in (1, 2, 3)}) == 3 * len(stages)


def test_checkpointing_a_frozen_llm_changes_no_gradient(system: SpeechLLM) -> None:
    given = batch([[10, 11], [12]])
    found = []
    for checkpointed in (False, True):
        if checkpointed:
            checkpoint_layers(system.llm)
        system.adaptor.zero_grad()
        TranscriptLoss(system)(given)[0].backward()
        found.append([parameter.grad.clone() for parameter in system.adaptor.parameters()])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(again, plain)
