"""Chat-formatted text batches for the small language model: how a sentence sounds (or nothing) is asked, its text answered."""

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entropy_asr.audio.batches import Position
from entropy_asr.config import Prompt, ScratchLM
from entropy_asr.models.flops import llm_flops
from entropy_asr.models.speech_llm import PromptIds
from entropy_asr.text.phonemes import misheard, pronunciation_line
from entropy_asr.text.scripts import Language

IGNORED = -100


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
        """Batches from `start` on; `workers` is not needed for text."""
        epoch, skip = start
        while True:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.pairs))
            for drawn, first in enumerate(range(0, len(order), self.config.batch_size), 1):
                if drawn > skip:
                    yield self._batch(epoch, order[first : first + self.config.batch_size], Position(epoch, drawn))
            epoch, skip = epoch + 1, 0

    def largest(self) -> TextBatch:
        """The batch that needs most memory: the longest sentences."""
        order = sorted(range(len(self.pairs)), key=lambda i: -sum(map(len, self.pairs[i])))
        return self._batch(0, np.array(order[: self.config.batch_size]), Position())

    def _batch(self, epoch: int, chosen: np.ndarray, position: Position) -> TextBatch:
        rows, labels = [], []
        for index in chosen:
            spoken, sentence = self.pairs[index]
            rng = random.Random(f"{self.seed}/{epoch}/{index}")
            told = rng.random() < self.config.pronunciation_fraction
            heard = " " + misheard(spoken, self.config.pronunciation_noise, rng) if told else ""
            question = [*self.prompt.before, *self._ids(heard), *self.prompt.after]
            answer = [*self._ids(sentence), self.prompt.end]
            rows.append(torch.tensor(question + answer))
            labels.append(torch.tensor([IGNORED] * len(question) + answer))
        pad = nn.utils.rnn.pad_sequence
        input_ids = pad(rows, batch_first=True, padding_value=self.prompt.pad)
        lens = torch.tensor([len(row) for row in rows])
        mask = torch.arange(input_ids.size(1))[None, :] < lens[:, None]
        return TextBatch(input_ids, pad(labels, batch_first=True, padding_value=IGNORED), mask.long(), position)

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
