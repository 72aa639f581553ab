"""The speech-LLM: a transcript depends on its own audio alone; the loss sees answer tokens alone."""

from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F
from transformers import LogitsProcessorList, Qwen3Config, Qwen3ForCausalLM

from entropy_asr.config import Adaptor as AdaptorConfig
from entropy_asr.config import Encoder
from entropy_asr.errors import InputError
from entropy_asr.models.adaptor import Adaptor
from entropy_asr.models.conformer import ConformerEncoder
from entropy_asr.models.packed_attention import PACKED, _packed
from entropy_asr.models.packing import Packing
from entropy_asr.models.speech_llm import PromptIds, SpeechLLM, _OwnLimit
from entropy_asr.training.engine import freeze

PROMPT = PromptIds(before=[5, 6, 7], after=[8, 9], end=2, pad=0)


@pytest.fixture(params=[4, 2, 1], ids=["stride4", "stride2", "stride1"])
def system(request: pytest.FixtureRequest) -> SpeechLLM:
    torch.manual_seed(3)
    encoder = ConformerEncoder(
        Encoder(width=32, layers=2, heads=2, feed_forward=64, conv_kernel=7, subsampling_channels=4, dropout=0.0)
    )
    llm = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
            intermediate_size=64, eos_token_id=2, pad_token_id=0, bos_token_id=None,
        )
    )  # fmt: skip
    adaptor = Adaptor(AdaptorConfig(stack=4, stride=request.param, hidden=48), 32, 32)
    with torch.no_grad():
        adaptor.layers[-1].weight *= 4  # what is heard must weigh more than the prompt, also in a network of random weights
    return SpeechLLM(encoder, adaptor, llm, PROMPT).eval()


def mixed_lengths(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    lens = torch.randint(20, 300, (count,))
    return torch.randn(count, 300, 80), lens


def test_loss_of_a_batch_is_the_sum_of_each_alone(system: SpeechLLM) -> None:
    features, lens = mixed_lengths(6)
    transcripts = [[10 + i, 11, 12 + i][: 1 + i % 3] for i in range(6)]
    loss, tokens = system(features, lens, transcripts)
    alone = [system(features[i : i + 1, : lens[i]], lens[i : i + 1], transcripts[i : i + 1]) for i in range(6)]
    assert tokens == sum(len(t) + 1 for t in transcripts) == sum(n for _, n in alone)
    assert loss.item() == pytest.approx(sum(value.item() for value, _ in alone), rel=1e-5)


def test_packed_attention_equals_a_mask_over_the_row(system: SpeechLLM) -> None:
    features, lens = mixed_lengths(4)
    transcripts = [[10 + i, 11, 12 + i][: 1 + i % 3] for i in range(4)]
    found = []
    for implementation in (PACKED, "sdpa"):
        system.llm.set_attn_implementation(implementation)
        system.zero_grad(set_to_none=True)
        loss, _ = system(features, lens, transcripts)
        loss.backward()
        found.append((loss, {name: p.grad for name, p in system.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"sliding_window": 4}, {"scaling": 1.0}])
def test_an_llm_with_another_attention_is_refused(options: dict) -> None:
    qkv, packing = [torch.randn(1, 2, 9, 16) for _ in range(3)], Packing.of([4, 5], torch.device("cpu"))
    with pytest.raises(InputError, match=r"llm\.pretrained: this LLM attends"):
        _packed(torch.nn.Identity(), *qkv, None, packing=packing, **options)


def test_loss_equals_the_plain_way_with_all_logits(system: SpeechLLM) -> None:
    features, lens = mixed_lengths(1)
    transcript = [10, 11, 12]
    speech = system.speech_embeddings(features[:, : lens[0]], lens)[0][0]
    embed = system.llm.get_input_embeddings()
    prompt = torch.cat([embed(torch.tensor(PROMPT.before)), speech, embed(torch.tensor(PROMPT.after))])
    row = torch.cat([prompt, embed(torch.tensor(transcript))])
    logits = system.llm(inputs_embeds=row[None]).logits[0]
    expected = F.cross_entropy(logits[prompt.size(0) - 1 :], torch.tensor([*transcript, PROMPT.end]), reduction="sum")
    assert system(features, lens, [transcript])[0].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_batched_transcripts_equal_one_by_one(system: SpeechLLM, num_beams: int) -> None:
    features, lens = mixed_lengths(50)
    limits = [3 + int(length) // 30 for length in lens]
    batched = system.generate(features, lens, limits, num_beams)
    alone = [system.generate(features[i : i + 1, : lens[i]], lens[i : i + 1], limits[i : i + 1], num_beams)[0] for i in range(50)]
    assert batched == alone
    assert len({tuple(t) for t in batched}) > 25  # the audio decides, not the prompt


def test_beam_search_is_that_of_transformers_from_the_start(system: SpeechLLM) -> None:
    features, lens = mixed_lengths(12)
    embed = system.llm.get_input_embeddings()
    before, after = embed(torch.tensor(PROMPT.before)), embed(torch.tensor(PROMPT.after))
    limit = LogitsProcessorList([_OwnLimit([5], 3, PROMPT.end)])
    expected = []
    for speech, length in zip(*system.speech_embeddings(features, lens), strict=True):
        row = torch.cat([before, speech[:length], after])[None]
        (ids,) = system.llm.generate(
            inputs_embeds=row, num_beams=3, do_sample=False, max_new_tokens=6, eos_token_id=PROMPT.end, logits_processor=limit
        )
        expected.append(ids.tolist()[: ids.tolist().index(PROMPT.end)])
    assert system.generate(features, lens, [5] * 12, num_beams=3) == expected


def test_the_guard_against_loops(system: SpeechLLM) -> None:
    features, lens = mixed_lengths(8)
    free = system.generate(features, lens, [30] * 8)
    guarded = system.generate(features, lens, [30] * 8, no_repeat_ngram=2)

    def repeats(ids: list[int]) -> bool:
        pairs = list(pairwise(ids))
        return len(pairs) != len(set(pairs))

    assert any(repeats(ids) for ids in free) and not any(repeats(ids) for ids in guarded)


def test_only_what_trains_gets_gradients(system: SpeechLLM) -> None:
    freeze(system.encoder)
    freeze(system.llm)
    features, lens = mixed_lengths(2)
    system(features, lens, [[10], [11, 12]])[0].backward()
    assert all(p.grad is None for p in [*system.encoder.parameters(), *system.llm.parameters()])
    assert all(p.grad.abs().sum() > 0 for p in system.adaptor.parameters())
    assert not system.encoder.training and not system.llm.training
