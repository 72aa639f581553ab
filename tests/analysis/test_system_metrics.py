"""EER, LER and AR of a whole system: the same tokens under prior, probe and system."""

import pytest
import torch
from torch.nn import functional as F

from entropy_asr.analysis.alignment import Alignment, Unit
from entropy_asr.analysis.system_metrics import TokenScorer, measure, pooled, token_times
from entropy_asr.audio.batches import evaluation_batches
from entropy_asr.config import Features, Metrics


def test_system_entropy_is_the_training_loss_and_the_prior_hears_nothing(models, tokenizer, sets) -> None:
    system, prior = models
    cuts, aligned = sets["test"]
    scorer = TokenScorer(system, prior, tokenizer, list(range(len(tokenizer))))
    encode = tokenizer.backend_tokenizer.encode
    scored: dict[str, list] = {}
    for batch, mels, lens in evaluation_batches(cuts, Features(), 60.0):
        for utterance, _, facts in scorer.batch(batch, mels, lens, aligned, Features()):
            scored[utterance] = facts
    for batch, mels, lens in evaluation_batches(cuts, Features(), 0.1):  # one by one
        (cut,) = batch
        text = cut.supervisions[0].custom["normalized"]
        item = encode(text, add_special_tokens=False)
        said = [place for place, (first, last) in enumerate(item.offsets) if text[first:last].strip()]  # not a space alone
        with torch.no_grad():
            loss, tokens = system(mels, lens, [item.ids])
            heard = F.cross_entropy(*system.answer_logits(*system.speech_embeddings(mels, lens), [item.ids]), reduction="none")
            row = torch.tensor([[*prior.prompt.before, *prior.prompt.after, *item.ids]])
            alone = prior.llm(row).logits[0, -len(item.ids) - 1 : -1]
            silent = F.cross_entropy(alone, torch.tensor(item.ids), reduction="none")
        assert tokens == len(heard) == len(item.ids) + 1 and heard.sum().item() == pytest.approx(loss.item(), rel=1e-5)
        assert [fact[2] for fact in scored[cut.id]] == pytest.approx(heard[said].tolist(), abs=1e-4)
        assert [fact[1] for fact in scored[cut.id]] == pytest.approx(silent[said].tolist(), abs=1e-4)


def test_what_few_classes_cannot_tell_apart_stays_with_the_prior(models, tokenizer, sets) -> None:
    """With the probe's classes cut down, class prior and rest still give the prior's own H0."""
    cuts, aligned = sets["test"]
    scorer = TokenScorer(*models, tokenizer, [5, 6, 270, 280])
    for batch, mels, lens in evaluation_batches(cuts, Features(), 60.0):
        for _, vectors, facts in scorer.batch(batch, mels, lens, aligned, Features()):
            prior = vectors[:, -5:]
            assert torch.allclose(prior.logsumexp(1), torch.zeros(len(prior)), atol=1e-5)
            for row, (label, h0, _, rest, _) in zip(prior, facts, strict=True):
                assert rest - row[label].item() == pytest.approx(h0, abs=1e-4)
                assert rest == pytest.approx(0.0, abs=1e-4) if label < 4 else rest > 0


def test_an_allocation_comes_out_with_its_control(models, tokenizer, sets) -> None:
    metrics = Metrics(probe_seeds=1, max_epochs=3, resamples=50)
    found = measure(*models, tokenizer, sets, Features(), metrics)
    assert set(found) == {"all", "en", "zh"}
    total = found["all"]
    assert total["tokens"] == found["en"]["tokens"] + found["zh"]["tokens"] > 20
    assert total["eer"] == pytest.approx((total["prior"] - total["probe"]) / total["prior"])
    assert total["ler"] == pytest.approx((total["probe"] - total["system"]) / total["prior"])
    assert abs(total["control_eer"]) < 0.05


def test_tokens_get_their_share_of_the_words_time() -> None:
    item = Alignment("a", ["K"] * 3, [0.0, 1.0, 1.5], [1.0, 1.5, 2.0], [Unit("ab", 0, 0, "en"), Unit("cdef", 1, 2, "en")], 0.0)
    text = "ab cdef!"
    offsets = [(0, 1), (1, 2), (2, 5), (5, 7), (7, 8), (0, 7)]
    assert token_times(text, offsets, item) == [(0.0, 0.5), (0.5, 1.0), (1.0, 1.5), (1.5, 2.0), None, (0.0, 2.0)]


def test_frames_are_pooled_over_the_time_of_a_token() -> None:
    frames = torch.arange(10.0)[:, None]  # centres 35 ms, 75 ms, …
    vectors = pooled(frames, [(0.0, 0.08), (0.116, 0.117)], 0.01)
    assert vectors[:, 0].tolist() == [0.5, 2.0]
