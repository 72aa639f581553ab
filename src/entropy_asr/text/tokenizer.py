"""A byte-level BPE tokenizer with Qwen's chat turns, for the scales that train their own small language model.

A pretrained LLM brings its tokenizer; this one stands in for it with the same interface (``AutoTokenizer``, chat
template, ``<|im_end|>`` ends a turn), so every later stage has one code path. It is trained on normalised sentences and
on their pronunciation, because the small LM learns spelling from how words sound, as a web-scale LLM has: each phoneme
becomes one unit, as does the blank between phonemes.

    python -m entropy_asr.text.tokenizer --config stage.json --text lm_text.jsonl.gz --out results/text/tokenizer
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from entropy_asr.errors import InputError, friendly_exit
from entropy_asr.files import atomic_write, read_jsonl, write_json
from entropy_asr.text.phonemes import LINE_BLANK, pronunciation_line
from entropy_asr.text.scripts import Language

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, TURN_START, TURN_END, SPEECH = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<speech>"
SPECIAL_TOKENS = (PAD, TURN_START, TURN_END, SPEECH)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# Phonemes of the pronunciation stay whole for BPE to merge: a final with its tone, an initial with its hyphen, a phone in
# capitals (normalised text has none of them). Hanzi stand alone: on a small corpus BPE would make one unit of a whole carrier
# phrase, and a new sentence would be spelled in units hardly ever trained. Then Qwen's pattern: contractions, words, single
# digits, punctuation, line ends, spaces.
_LETTER = r"[\p{L}&&[^\p{Han}]]"
_PIECES = (
    r" ?[a-z]+[1-5](?![\p{L}\p{N}])"
    r"| ?[a-z]{1,2}-"
    r"| ?[A-Z]{1,2}(?![\p{L}\p{N}])"
    r"| ?\p{Han}"
    rf"|(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?{_LETTER}+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MODEL_MAX_LENGTH = 32768


def train_tokenizer(texts: Iterable[str], vocab_size: int, whole: Sequence[str] = ()) -> Tokenizer:
    """Train byte-level BPE.

    Args:
        texts: training lines.
        vocab_size: units, special tokens, the 256 bytes and `whole` included.
        whole: what is one unit each, wherever it stands.

    Raises:
        InputError: ``vocab_size`` is too small for the bytes.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    fixed = len(SPECIAL_TOKENS) + len(whole)
    if vocab_size < len(alphabet) + fixed:
        raise InputError(
            f"vocab_size {vocab_size} is smaller than {len(alphabet)} bytes and {fixed} fixed units; raise llm.scratch.vocab_size"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(whole),
        initial_alphabet=sorted(alphabet),
        special_tokens=list(SPECIAL_TOKENS),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(unit, normalized=False) for unit in whole])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, out: str | Path) -> None:
    """Write a folder that ``transformers.AutoTokenizer.from_pretrained`` loads."""
    out = Path(out)
    atomic_write(out / "tokenizer.json", tokenizer.to_str(pretty=True) + "\n")
    write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": TURN_END,
            "pad_token": PAD,
            "additional_special_tokens": [TURN_START, SPEECH],
            "clean_up_tokenization_spaces": False,
            "model_max_length": _MODEL_MAX_LENGTH,
            "padding_side": "left",
            "chat_template": CHAT_TEMPLATE,
        },
    )


def read_sentences(path: str | Path, most: int | None = None) -> list[tuple[str, Language]]:
    """Distinct ``(normalised text, language)`` of a JSONL file of ``{language, text}``, in order.

    Args:
        most: take at most so many lines, evenly spread over the file.

    Raises:
        InputError: a line lacks a key or names an unknown language.
    """
    from entropy_asr.corpora.manifest import evenly
    from entropy_asr.text.normalize import normalize

    sentences: dict[tuple[str, Language], None] = {}
    rows = list(enumerate(read_jsonl(path), 1))
    for number, row in evenly(rows, most):
        text, language = row.get("text"), row.get("language")
        if not isinstance(text, str) or language not in ("en", "zh", "mixed"):
            found = json.dumps({"text": text, "language": language}, ensure_ascii=False)
            raise InputError(f'{path}, line {number}: found {found}, expected "text" and "language" en, zh or mixed')
        normalized = normalize(text, language)
        if normalized:
            sentences[normalized, language] = None
    return list(sentences)


def build(config: str | Path, text: str | Path, out: str | Path) -> None:
    """Train on a text file and its pronunciation, and write the tokenizer folder."""
    from entropy_asr.config_files import load_stage

    settings = load_stage(config)
    vocab_size = settings.llm.scratch.vocab_size
    sentences = read_sentences(text, settings.llm.scratch.max_sentences)
    if not sentences:
        raise InputError(f"{text}: no sentence in it; expected JSON lines with text and language")
    lines = [sentence for sentence, _ in sentences]
    lines += [f" {LINE_BLANK} {pronunciation_line(sentence, language)}" for sentence, language in sentences]
    # The chat is short, as it is in a web-scale tokenizer's units; no sentence has a line end.
    chat = (f"system\n{settings.prompt.system}", "user\n", "assistant\n")
    tokenizer = train_tokenizer(lines, vocab_size, whole=chat)
    save_tokenizer(tokenizer, out)
    print(f"tokenizer: {tokenizer.get_vocab_size()} units from {len(sentences)} sentences and their pronunciation")


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@friendly_exit()
def main(
    config: Path = typer.Option(..., help="stage JSON with the llm and prompt sections"),
    text: Path = typer.Option(..., help="JSONL(.gz) of {language, text}"),
    out: Path = typer.Option(..., help="folder to write"),
) -> None:
    """Train the byte-level BPE tokenizer of the small language model."""
    build(config, text, out)


if __name__ == "__main__":
    app()
