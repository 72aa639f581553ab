"""Text units for encoders that learn to write: single hanzi, and word pieces of every other script.

The labels of the objectives `character` and `attention` (arms `char_ctc` and `aed`), where `phoneme` has sounds.  As in
FireRedASR (Xu et al., 2025, arXiv 2501.14350) a hanzi is one unit and English is cut by BPE, here into `units.word_pieces`
merged pieces beside the single characters of the training text; a word begins with ``▁``.  The LLM's own tokenizer would do
worse: Qwen's has 151k units, most never said, makes one unit of several hanzi, and several of a rare one.

    python -m entropy_asr.text.units --config results/config/units.json --cuts results/manifests/…-train.jsonl.gz … \
        --out results/text/units/tokenizer.json
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from entropy_asr.errors import InputError, friendly_exit
from entropy_asr.files import atomic_write
from entropy_asr.text.scripts import is_hanzi, mixed_units

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BLANK, UNKNOWN, SENTENCE_END = "<blk>", "<unk>", "<sos/eos>"
SPECIAL = (BLANK, UNKNOWN, SENTENCE_END)  # their places are their labels: 0 is CTC's blank
WORD_START = "▁"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def spell(text: str) -> str:
    """Normalised text as the tokenizer reads it: hanzi and words apart, each word marked; ``播放 jazz`` is ``播 放 ▁jazz``."""
    return " ".join(unit if is_hanzi(unit[0]) else WORD_START + unit for unit in mixed_units(text))


def train_units(texts: Iterable[str], word_pieces: int) -> Tokenizer:
    """Learn the units of normalised training transcripts.

    Args:
        word_pieces: merges, at most; a small corpus has fewer pairs.

    Raises:
        InputError: there is no text.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    spelled = [spell(text) for text in texts]
    alphabet = {character for line in spelled for character in line if not character.isspace()}
    if not alphabet:
        raise InputError("no training transcript has a character: nothing to make text units of")
    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # no piece goes over a border of words or hanzi
    trainer = trainers.BpeTrainer(
        vocab_size=len(SPECIAL) + len(alphabet) + word_pieces, special_tokens=list(SPECIAL), show_progress=False
    )
    tokenizer.train_from_iterator(spelled, trainer)
    return tokenizer


def read_units(path: Path) -> Tokenizer:
    """The units that :func:`train_units` made.

    Raises:
        InputError: the file is missing, or holds another tokenizer.
    """
    from tokenizers import Tokenizer

    if not path.is_file():
        raise InputError(f"text units {path} do not exist; run the rule `units`")
    tokenizer = Tokenizer.from_file(str(path))
    if [tokenizer.id_to_token(i) for i in range(len(SPECIAL))] != list(SPECIAL):
        raise InputError(f"{path}: the first units are not {' '.join(SPECIAL)}; run the rule `units` again")
    return tokenizer


def encode_text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Labels of a normalised text."""
    return tokenizer.encode(spell(text), add_special_tokens=False).ids


def join_units(units: Iterable[str]) -> str:
    """Units as text: special ones left out, a space before each word."""
    return "".join(unit for unit in units if unit not in SPECIAL).replace(WORD_START, " ").strip()


@app.command()
@friendly_exit()
def main(
    config: Path = typer.Option(..., help="stage JSON with the units section"),
    cuts: list[Path] = typer.Option(..., help="training manifests"),
    out: Path = typer.Option(..., help="tokenizer.json to write"),
) -> None:
    """Make the units of the training transcripts."""
    from entropy_asr.audio.batches import read_cuts
    from entropy_asr.config_files import load_stage

    texts = [cut.supervisions[0].custom["normalized"] for cut in read_cuts(cuts)]
    tokenizer = train_units(texts, load_stage(config).units.word_pieces)
    atomic_write(out, tokenizer.to_str(pretty=True) + "\n")
    print(f"units: {tokenizer.get_vocab_size()} from {len(texts)} transcripts")


if __name__ == "__main__":
    app()
