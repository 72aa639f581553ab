"""The speech-LLM: prompt, speech embeddings in place of `<speech>`, transcript.

One utterance is ``before + speech + after + transcript + end``.  For training, the utterances of a batch are packed into one
row without padding, and each attends to itself alone; for generation they are padded to the left, and padding is masked.  So a
transcript does not depend on the rest of its batch.  The LM head runs on the positions that predict a transcript token only:
with Qwen's 151k units it would otherwise cost more than the rest of the step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache, LogitsProcessor, LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from entropy_asr.config import Prompt
from entropy_asr.models.adaptor import Adaptor
from entropy_asr.models.conformer import ConformerEncoder
from entropy_asr.models.packed_attention import PACKED
from entropy_asr.models.packing import Packing, counted, to_device


@dataclass(frozen=True)
class PromptIds:
    """The chat template as token ids, cut at `<speech>`."""

    before: list[int]
    after: list[int]
    end: int
    pad: int

    @classmethod
    def from_tokenizer(cls, tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> "PromptIds":
        """Render the tokenizer's own chat template and cut it where the speech goes."""
        messages = [{"role": "system", "content": prompt.system}, {"role": "user", "content": prompt.user}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        before, after = text.split("<speech>")
        encode = tokenizer.backend_tokenizer.encode
        return cls(
            encode(before, add_special_tokens=False).ids,
            encode(after, add_special_tokens=False).ids,
            tokenizer.eos_token_id,
            tokenizer.pad_token_id,
        )


def checkpoint_layers(llm: PreTrainedModel) -> None:
    """From now on keep the inputs of the layers for the backward pass, and compute the rest again, whether the LLM trains or not.

    transformers' own switch works in training mode alone, which would also turn on the dropout of a frozen LLM.
    """
    for layer in llm.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.forward = partial(_checkpointed, layer.forward)


def _checkpointed(forward: Callable, *args: Any, **kwargs: Any) -> Any:
    if torch.is_grad_enabled():
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return forward(*args, **kwargs)


class SpeechLLM(nn.Module):
    """Encoder, adaptor and LLM."""

    def __init__(self, encoder: ConformerEncoder, adaptor: Adaptor, llm: PreTrainedModel, prompt: PromptIds) -> None:
        super().__init__()
        self.encoder = encoder
        self.adaptor = adaptor
        self.llm = llm
        self.prompt = prompt
        llm.set_attn_implementation(PACKED)

    def speech_embeddings(self, features: Tensor, feature_lens: Tensor) -> tuple[Tensor, Tensor]:
        """(N, L, llm_width), anything on padding, and the positions of each utterance, (N,), on the CPU."""
        trains_encoder = next(self.encoder.parameters()).requires_grad
        # no_grad where frozen, not inference_mode: that is no faster (0.98 and 1.03 of the time at two sizes, on a CPU), and its
        # tensors may not be saved for a backward pass: only the adaptor's padding, which copies, would stand between.
        with torch.set_grad_enabled(trains_encoder and torch.is_grad_enabled()):
            encoder_out, lens = self.encoder(features, feature_lens)
        return self.adaptor(encoder_out, lens)

    def _embed(self, ids: Sequence[int]) -> Tensor:
        table = self.llm.get_input_embeddings()
        return table(to_device(ids, table.weight.device))

    def forward(self, features: Tensor, feature_lens: Tensor, transcripts: Sequence[Sequence[int]]) -> tuple[Tensor, int]:
        """Negative log-likelihood of the transcripts and their end tokens.

        Args:
            features: (N, T, num_mel_bins); feature_lens: (N,).
            transcripts: token ids of each utterance, without the end token.

        Returns:
            loss: nats summed over all transcript tokens; tokens: how many there are.
        """
        logits, labels = self.answer_logits(*self.speech_embeddings(features, feature_lens), transcripts)
        return F.cross_entropy(logits, labels, reduction="sum"), labels.numel()

    def answer_logits(self, speech: Tensor, speech_lens: Tensor, transcripts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """What is predicted where a transcript token or an end token comes next.

        Args:
            speech: (N, L, llm_width); speech_lens: (N,) positions of each utterance, on the CPU; 0 asks the LLM without audio.
            transcripts: token ids of each utterance, without the end token.

        Returns:
            logits: (tokens, V) float32; labels: (tokens,), utterance after utterance, each with its end token.
        """
        prompt, device = self.prompt, speech.device
        heard, said = speech_lens.numpy(), np.array([len(ids) for ids in transcripts])
        before, after = len(prompt.before), len(prompt.after)
        # One look-up for all texts: the backward pass of each would fill a gradient of the whole table, 151k rows for Qwen.
        texts = [token for ids in transcripts for token in (*prompt.before, *prompt.after, *ids)]
        embedded = self._embed(texts)
        # Each row is three stretches of what lies here: its text up to the speech, its speech, the rest of its text.
        text_lens = before + after + said
        starts = np.cumsum(text_lens) - text_lens
        first = np.stack([starts, len(texts) + speech.size(1) * np.arange(len(said)), starts + before], axis=1)
        lens = np.stack([np.full_like(said, before), heard, after + said], axis=1)
        source = torch.cat([embedded, speech.flatten(0, 1).to(embedded.dtype)])
        inputs = source.index_select(0, to_device(counted(lens.ravel(), first.ravel()), device))
        packing = Packing.of(lens.sum(axis=1), device)
        if self.llm.config._attn_implementation == PACKED:
            # No mask is read where there is a packing; one of four dimensions keeps transformers from making one of its own.
            options = {"packing": packing, "attention_mask": inputs.new_empty(1, 1, 1, 1)}
        else:
            options = {}  # positions that begin anew tell transformers where each row starts
        hidden = self.llm.get_decoder()(
            inputs_embeds=inputs[None], position_ids=packing.positions[None], use_cache=False, **options
        ).last_hidden_state[0]
        # The last prompt position predicts the first token, the last token the end.
        ends = np.cumsum(lens.sum(axis=1))
        answers = hidden.index_select(0, to_device(counted(said + 1, ends - said - 1), device))
        logits = self.llm.get_output_embeddings()(answers).float()  # (tokens, V)
        return logits, to_device([token for ids in transcripts for token in (*ids, prompt.end)], device)

    @torch.inference_mode()
    def generate(
        self, features: Tensor, feature_lens: Tensor, max_new_tokens: Sequence[int], num_beams: int = 1, no_repeat_ngram: int = 0
    ) -> list[list[int]]:
        """Transcribe a batch: greedy search, or beam search, with a key-value cache.

        Args:
            max_new_tokens: limit of each utterance (from its own length, so that it does not depend on the batch).
            no_repeat_ngram: no run of so many tokens is said twice; 0: no such guard.

        Returns:
            token ids of each transcript, end token removed.
        """
        before, after = self._embed(self.prompt.before), self._embed(self.prompt.after)
        speech, speech_lens = self.speech_embeddings(features, feature_lens)
        heard = [row[:length].to(before.dtype) for row, length in zip(speech, speech_lens.tolist(), strict=True)]
        rows = [torch.cat([before, row, after]) for row in heard]
        longest = max(row.size(0) for row in rows)
        inputs = torch.stack([F.pad(row, (0, 0, longest - row.size(0), 0)) for row in rows])
        lens = torch.tensor([row.size(0) for row in rows], device=inputs.device)
        mask = (torch.arange(longest, device=inputs.device)[None, :] >= longest - lens[:, None]).long()
        cache = DynamicCache(config=self.llm.config)
        if num_beams > 1:
            # All but the last position is read here, once; `generate` would read it once a beam.
            self.llm.get_decoder()(
                inputs_embeds=inputs[:, :-1],
                attention_mask=mask[:, :-1],
                position_ids=(mask.cumsum(1) - 1).clamp(min=0)[:, :-1],
                past_key_values=cache,
                use_cache=True,
            )
            cache.batch_repeat_interleave(num_beams)
        output = self.llm.generate(
            inputs_embeds=inputs,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=max(max_new_tokens) + 1,  # its end token
            num_beams=num_beams,
            no_repeat_ngram_size=no_repeat_ngram,
            do_sample=False,
            eos_token_id=self.prompt.end,
            pad_token_id=self.prompt.pad,
            logits_processor=LogitsProcessorList([_OwnLimit(max_new_tokens, num_beams, self.prompt.end)]),
        )
        return [ids[: ids.index(self.prompt.end)] if self.prompt.end in ids else ids for ids in output.tolist()]


class _OwnLimit(LogitsProcessor):
    """Ends each transcript at its own limit, in the beam too, as if it were decoded alone."""

    def __init__(self, limits: Sequence[int], num_beams: int, end: int) -> None:
        self.limits = torch.tensor(list(limits)).repeat_interleave(num_beams)
        self.end = end

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids: (N * num_beams, tokens so far)."""
        over = input_ids.size(1) >= self.limits.to(scores.device)
        others = torch.arange(scores.size(1), device=scores.device) != self.end
        return scores.masked_fill(over[:, None] & others[None, :], -torch.inf)
