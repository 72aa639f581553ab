"""The architecture of the small language model: Qwen3's, at the config's size."""

from typing import Any

from transformers import Qwen3Config

from entropy_asr.config import ScratchLM


def scratch_lm_config(scratch: ScratchLM, vocab_size: int, **token_ids: Any) -> Qwen3Config:
    """The transformers configuration of `llm.scratch`; vocab_size and token_ids are the tokenizer's."""
    return Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=scratch.hidden_size,
        num_hidden_layers=scratch.layers,
        num_attention_heads=scratch.heads,
        num_key_value_heads=scratch.kv_heads,
        head_dim=scratch.hidden_size // scratch.heads,
        intermediate_size=scratch.intermediate_size,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        initializer_range=scratch.hidden_size**-0.5,  # Qwen3's 0.02 is made for wide models: a narrow one hardly starts
        **token_ids,
    )
