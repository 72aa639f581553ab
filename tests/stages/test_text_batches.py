"""Batches of text for the small language model: what is asked and answered, each sentence once, from any position."""

from collections import Counter
from itertools import islice

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from entropy_asr.audio.batches import Position
from entropy_asr.config import Prompt, ScratchLM
from entropy_asr.stages.text_batches import IGNORED, POOL, TextBatches
from entropy_asr.text.tokenizer import save_tokenizer, train_tokenizer

# One epoch is two pools of sorted batches and part of a third.
SENTENCES = [(f"turn the {name} {way}", "en") for name in ("light", "fan", "radio", "seat") for way in ("on", "off", "up")] * 3
SIZE = 1


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerBase:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer([sentence for sentence, _ in SENTENCES], 300), folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def batches(tokenizer: PreTrainedTokenizerBase) -> TextBatches:
    config = ScratchLM(batch_size=SIZE, pronunciation_noise=0.1)
    return TextBatches(SENTENCES, tokenizer, Prompt(), config, seed=1)


def test_an_epoch_has_each_sentence_once(batches: TextBatches) -> None:
    assert len(SENTENCES) > 2 * POOL * SIZE
    drawn = [tuple(b.labels[b.labels != IGNORED].tolist()) for b in islice(batches.loader(Position(), 0), len(SENTENCES))]
    wanted = [(*batches.encode(sentence).ids, batches.prompt.end) for sentence, _ in SENTENCES]
    assert Counter(drawn) == Counter(wanted)


@pytest.mark.parametrize(("done", "workers"), [(1, 0), (15, 0), (16, 0), (17, 0), (35, 0), (36, 0), (40, 0), (17, 2)])
def test_batches_go_on_from_any_position(batches: TextBatches, done: int, workers: int) -> None:
    drawn = list(islice(batches.loader(Position(), 0), 45))
    again = list(islice(batches.loader(drawn[done - 1].position, workers), 45 - done))
    assert [b.position for b in again] == [b.position for b in drawn[done:]]
    assert all(one.input_ids.equal(other.input_ids) for one, other in zip(again, drawn[done:], strict=True))


def test_sentences_of_a_batch_are_of_like_length(tokenizer: PreTrainedTokenizerBase) -> None:
    sentences = [(" ".join(["fan"] * count), "en") for count in range(1, 65)]
    config = ScratchLM(batch_size=4, pronunciation_fraction=0.0)
    batches = TextBatches(sentences, tokenizer, Prompt(), config, seed=1)
    for batch in islice(batches.loader(Position(), 0), 16):  # an epoch, one pool: neighbours in length
        lengths = sorted(batch.attention_mask.sum(1).tolist())
        assert lengths[-1] - lengths[0] <= 3 * len(batches.encode(" fan").ids)


def test_blanks_come_in_over_the_first_epochs(tokenizer: PreTrainedTokenizerBase) -> None:
    """None in the first epoch; in the last of the ramp and after it as many as without one."""

    def ids(ramp: int, epoch: int) -> list[list[list[int]]]:
        config = ScratchLM(batch_size=8, pronunciation_fraction=1.0, blanks_ramp_epochs=ramp)
        batches = TextBatches(SENTENCES, tokenizer, Prompt(), config, seed=1)
        return [batch.input_ids.tolist() for batch in islice(batches.loader(Position(epoch, 0), 0), 5)]

    clean = ScratchLM(batch_size=8, pronunciation_fraction=1.0, pronunciation_blanks=0.0)
    without = TextBatches(SENTENCES, tokenizer, Prompt(), clean, seed=1)
    assert ids(2, 0) == [batch.input_ids.tolist() for batch in islice(without.loader(Position(), 0), 5)]
    assert ids(2, 1) != ids(0, 1)
    assert ids(2, 2) == ids(0, 2) and ids(2, 3) == ids(0, 3)
