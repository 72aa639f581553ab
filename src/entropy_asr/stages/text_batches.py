"""Chat-formatted text batches for the small language model: how a sentence sounds (or nothing) is asked, its text answered."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entropy_asr.audio.batches import Position, load_in_order
from entropy_asr.config import Prompt, ScratchLM
from entropy_asr.models.flops import llm_flops
from entropy_asr.models.speech_llm import PromptIds
from entropy_asr.text.phonemes import as_frames, misheard, pronunciation_line
from entropy_asr.text.scripts import Language

IGNORED = -100
POOL = 16  # batches whose sentences are sorted by length, against padding


class Row(NamedTuple):
    """Token ids of a sample: chat up to the answer, answer with its end token."""

    question: list[int]
    answer: list[int]


@dataclass(frozen=True)
class TextBatch:
    """input_ids, labels, attention_mask: (N, L); labels are IGNORED before the answer and on padding."""

    input_ids: Tensor
    labels: Tensor
    attention_mask: Tensor
    position: Position
    audio_seconds: float = 0.0
    ids: tuple[str, ...] = ()

    def to(self, device: torch.device) -> "TextBatch":
        return replace(self, **{name: tensor.to(device) for name, tensor in self.tensors().items()})

    @property
    def weight(self) -> int:
        """Answer tokens."""
        return int((self.labels != IGNORED).sum())

    @property
    def padding(self) -> float:
        """Share of the positions that are padding."""
        return 1.0 - self.attention_mask.float().mean().item()

    def tensors(self) -> dict[str, Tensor]:
        """What to keep of a batch that went wrong."""
        return {"input_ids": self.input_ids, "labels": self.labels, "attention_mask": self.attention_mask}


class TextBatches:
    """Endless shuffled batches of sentences, from any position.

    An epoch has each sentence once, with its phonemes in the user turn or alone.
    """

    def __init__(
        self,
        sentences: list[tuple[str, Language]],
        tokenizer: PreTrainedTokenizerBase,
        prompt: Prompt,
        config: ScratchLM,
        seed: int,
    ) -> None:
        """sentences: (normalised text, language)."""
        self.encode = tokenizer.backend_tokenizer.encode
        self.prompt = PromptIds.from_tokenizer(tokenizer, prompt)
        self.config, self.seed = config, seed
        self.pairs = [(pronunciation_line(sentence, language), sentence) for sentence, language in sentences]

    def loader(self, start: Position, workers: int) -> Iterator[TextBatch]:
        """Batches from `start` on."""
        return (batch for pool in load_in_order(self, start, workers) for batch in pool)

    def keys(self, start: Position) -> Iterator[tuple[Position, np.ndarray, int]]:
        """(position before it, sentences, batches to leave out) of each pool, for ever, from the one that `start` lies in."""
        epoch, skip = start
        while True:
            drawn = 0
            for pool in self._pools(epoch):
                batches = -(-len(pool) // self.config.batch_size)
                if drawn + batches > skip:
                    yield Position(epoch, drawn), pool, max(0, skip - drawn)
                drawn += batches
            epoch, skip = epoch + 1, 0

    def __getitem__(self, key: tuple[Position, np.ndarray, int]) -> list[TextBatch]:
        """The batches of a pool."""
        (epoch, drawn), pool, skip = key
        batches = self._batches(epoch, pool)
        return [self._batch(rows, Position(epoch, drawn + number)) for number, rows in enumerate(batches, 1) if number > skip]

    def largest(self) -> TextBatch:
        """The batch that needs most memory: the longest sentences."""
        order = sorted(range(len(self.pairs)), key=lambda i: -sum(map(len, self.pairs[i])))
        all_blanks_in = self.config.blanks_ramp_epochs
        return self._batch([self._row(all_blanks_in, index) for index in order[: self.config.batch_size]], Position())

    def all(self) -> list[TextBatch]:
        """Every sentence once, as late in training: for validation."""
        rows = [self._row(self.config.blanks_ramp_epochs, index) for index in range(len(self.pairs))]
        rows.sort(key=lambda row: len(row.question) + len(row.answer))
        size = self.config.batch_size
        return [self._batch(rows[first : first + size], Position()) for first in range(0, len(rows), size)]

    def _pools(self, epoch: int) -> list[np.ndarray]:
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.pairs))
        return np.split(order, range(POOL * self.config.batch_size, len(order), POOL * self.config.batch_size))

    def _batches(self, epoch: int, pool: np.ndarray) -> list[list[Row]]:
        """Batches of rows of like length, in random order."""
        rows = sorted((self._row(epoch, index) for index in pool), key=lambda row: len(row.question) + len(row.answer))
        batches = [rows[first : first + self.config.batch_size] for first in range(0, len(rows), self.config.batch_size)]
        random.Random(f"{self.seed}/{epoch}/{pool[0]}").shuffle(batches)
        return batches

    def _row(self, epoch: int, index: int) -> Row:
        spoken, sentence = self.pairs[index]
        rng = random.Random(f"{self.seed}/{epoch}/{index}")
        told = rng.random() < self.config.pronunciation_fraction
        heard = " " + self._heard(spoken, epoch, rng) if told else ""
        question = [*self.prompt.before, *self._ids(heard), *self.prompt.after]
        return Row(question, [*self._ids(sentence), self.prompt.end])

    def _batch(self, chosen: list[Row], position: Position) -> TextBatch:
        rows = [torch.tensor(row.question + row.answer) for row in chosen]
        labels = [torch.tensor([IGNORED] * len(row.question) + row.answer) for row in chosen]
        pad = nn.utils.rnn.pad_sequence
        input_ids = pad(rows, batch_first=True, padding_value=self.prompt.pad)
        lens = torch.tensor([len(row) for row in rows])
        mask = torch.arange(input_ids.size(1))[None, :] < lens[:, None]
        return TextBatch(input_ids, pad(labels, batch_first=True, padding_value=IGNORED), mask.long(), position)

    def _heard(self, spoken: str, epoch: int, rng: random.Random) -> str:
        """As an encoder and the adaptor would say it: some utterances with few errors, some with many."""
        line = misheard(spoken, 2 * self.config.pronunciation_noise * rng.random(), rng)
        ramp = self.config.blanks_ramp_epochs
        blanks = self.config.pronunciation_blanks * (min(epoch / ramp, 1.0) if ramp else 1.0)
        return as_frames(line, blanks, rng)

    def _ids(self, text: str) -> list[int]:
        return self.encode(text, add_special_tokens=False).ids


class TextLoss(nn.Module):
    """Mean negative log-likelihood of the answers, nats a token."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: TextBatch) -> tuple[Tensor, dict[str, Tensor]]:
        hidden = self.model.get_decoder()(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False
        ).last_hidden_state
        labels = batch.labels[:, 1:]
        answers = hidden[:, :-1][labels != IGNORED]
        return F.cross_entropy(self.model.get_output_embeddings()(answers).float(), labels[labels != IGNORED]), {}

    def flops(self, batch: TextBatch) -> float:
        """Of forward and backward on the batch's real tokens."""
        tokens, answers = batch.attention_mask.sum(1).tolist(), (batch.labels != IGNORED).sum(1).tolist()
        return 3 * sum(llm_flops(self.model.config, *row) for row in zip(tokens, answers, strict=True))
