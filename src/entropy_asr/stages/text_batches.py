"""Chat-formatted text batches for the small language model: phonemes (or nothing) in the user turn, the sentence as answer."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entropy_asr.audio.batches import Position
from entropy_asr.config import Prompt, ScratchLM
from entropy_asr.models.speech_llm import PromptIds
from entropy_asr.text.phonemes import phonemize
from entropy_asr.text.scripts import Language

IGNORED = -100
Word = tuple[str, tuple[str, ...]]  # spelling, phonemes


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
        return TextBatch(self.input_ids.to(device), self.labels.to(device), self.attention_mask.to(device), self.position)


class TextBatches:
    """Endless shuffled batches of sentences, from any position.

    An epoch has each sentence once, in one of three forms: with its phonemes in the user turn; as words in no order, taken
    from this and other sentences, with their phonemes; or alone.  Words in no order cannot be guessed, only read: without
    them a small model learns the phrases of the corpus long before it learns to spell.
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
        self.sentences: dict[str, list[list[Word]]] = {}
        for sentence, language in sentences:
            words = phonemize(sentence, language).words
            if words:
                self.sentences.setdefault(language, []).append([(word, tuple(phonemes)) for word, phonemes in words])
        self.index = [(language, i) for language, sentences in self.sentences.items() for i in range(len(sentences))]

    def loader(self, start: Position, workers: int) -> Iterator[TextBatch]:
        """Batches from `start` on; `workers` is not needed for text."""
        epoch, skip = start
        while True:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.index))
            for drawn, first in enumerate(range(0, len(order), self.config.batch_size), 1):
                if drawn > skip:
                    yield self._batch(epoch, order[first : first + self.config.batch_size], Position(epoch, drawn))
            epoch, skip = epoch + 1, 0

    def _batch(self, epoch: int, chosen: np.ndarray, position: Position) -> TextBatch:
        rows, labels = [], []
        for index in chosen:
            spoken, sentence = self._sample(*self.index[index], np.random.default_rng([self.seed, epoch, index]))
            question = [*self.prompt.before, *spoken, *self.prompt.after]
            answer = [*sentence, self.prompt.end]
            rows.append(torch.tensor(question + answer))
            labels.append(torch.tensor([IGNORED] * len(question) + answer))
        pad = nn.utils.rnn.pad_sequence
        input_ids = pad(rows, batch_first=True, padding_value=self.prompt.pad)
        lens = torch.tensor([len(row) for row in rows])
        mask = torch.arange(input_ids.size(1))[None, :] < lens[:, None]
        return TextBatch(input_ids, pad(labels, batch_first=True, padding_value=IGNORED), mask.long(), position)

    def _sample(self, language: str, i: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        """Token ids of the user turn (phonemes, or nothing) and of the answer."""
        words, form = self.sentences[language][i], rng.random()
        told = form < self.config.pronunciation_fraction
        if form < self.config.pronunciation_fraction * self.config.unordered_fraction:
            words = []
            for _ in range(rng.integers(1, 5)):
                source = self.sentences[language][rng.integers(len(self.sentences[language]))]
                words.append(source[rng.integers(len(source))])
        text = ("" if language == "zh" else " ").join(word for word, _ in words)
        spoken = "".join(f" {phoneme}" for _, phonemes in words for phoneme in phonemes)
        return self.encode(spoken, add_special_tokens=False).ids if told else [], self.encode(text, add_special_tokens=False).ids


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
