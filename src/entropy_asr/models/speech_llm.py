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

    def speech_embeddings(self, features: Tensor, feature_lens: Tensor) -> list[Tensor]:
        """One (L_i, llm_width) tensor an utterance, padding cut off."""
        trains_encoder = next(self.encoder.parameters()).requires_grad
        # no_grad where frozen, not inference_mode: that is no faster (0.98 and 1.03 of the time at two sizes, on a CPU), and its
        # tensors may not be saved for a backward pass: only the adaptor's padding, which copies, would stand between.
        with torch.set_grad_enabled(trains_encoder and torch.is_grad_enabled()):
            encoder_out, lens = self.encoder(features, feature_lens)
        embedded, lens = self.adaptor(encoder_out, lens)
        return [row[:length] for row, length in zip(embedded, lens.tolist(), strict=True)]

    def _embed(self, ids: Sequence[int]) -> Tensor:
        table = self.llm.get_input_embeddings()
        return table(torch.tensor(list(ids), dtype=torch.long, device=table.weight.device))

    def forward(self, features: Tensor, feature_lens: Tensor, transcripts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Negative log-likelihood of the transcripts and their end tokens.

        Args:
            features: (N, T, num_mel_bins); feature_lens: (N,).
            transcripts: token ids of each utterance, without the end token.

        Returns:
            loss: nats summed over all transcript tokens; tokens: how many there are.
        """
        logits, labels = self.answer_logits(self.speech_embeddings(features, feature_lens), transcripts)
        return F.cross_entropy(logits, labels, reduction="sum"), torch.tensor(labels.numel(), device=logits.device)

    def answer_logits(self, speech: Sequence[Tensor], transcripts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """What is predicted where a transcript token or an end token comes next.

        Args:
            speech: one (L_i, llm_width) an utterance; L_i = 0 asks the LLM without audio.
            transcripts: token ids of each utterance, without the end token.

        Returns:
            logits: (tokens, V) float32; labels: (tokens,), utterance after utterance, each with its end token.
        """
        # One look-up for all texts: the backward pass of each would fill a gradient of the whole table, 151k rows for Qwen.
        texts = [self.prompt.before, self.prompt.after, *transcripts]
        before, after, *embedded = self._embed([i for ids in texts for i in ids]).split([len(ids) for ids in texts])
        rows, answer_starts, targets = [], [], []
        for heard, text, ids in zip(speech, embedded, transcripts, strict=True):
            rows.append(torch.cat([before, heard.to(before.dtype), after, text]))
            answer_starts.append(rows[-1].size(0) - len(ids) - 1)  # the last prompt position predicts the first token
            targets.append([*ids, self.prompt.end])
        lens = [row.size(0) for row in rows]
        # Packed: all utterances in one row, and positions that begin anew tell the attention where each one starts.
        inputs = torch.cat(rows)[None]  # (1, sum of lengths, D)
        positions = torch.cat([torch.arange(length, device=inputs.device) for length in lens])[None]
        options = {"row_lens": lens} if self.llm.config._attn_implementation == PACKED else {}
        hidden = self.llm.get_decoder()(
            inputs_embeds=inputs, position_ids=positions, use_cache=False, **options
        ).last_hidden_state
        answers = torch.cat([row[start:] for row, start in zip(hidden[0].split(lens), answer_starts, strict=True)])
        logits = self.llm.get_output_embeddings()(answers).float()  # (tokens, V)
        return logits, torch.tensor([i for row in targets for i in row], device=logits.device)

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
        rows = [torch.cat([before, speech.to(before.dtype), after]) for speech in self.speech_embeddings(features, feature_lens)]
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
