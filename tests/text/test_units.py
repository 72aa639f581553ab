"""Text units: hanzi alone, words in pieces, and text comes back from them."""

from pathlib import Path

import pytest

from entropy_asr.errors import InputError
from entropy_asr.text.units import SPECIAL, encode_text, join_units, read_units, spell, train_units

TEXTS = ["播放 hey jude", "play some jazz", "打开空调", "play the radio", "it's raining"]


def test_hanzi_stand_alone_and_words_are_marked() -> None:
    assert spell("播放 hey jude") == "播 放 ▁hey ▁jude"


def test_text_comes_back(tmp_path: Path) -> None:
    made = train_units(TEXTS, word_pieces=10)
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    units = read_units(path)
    names = [units.id_to_token(i) for i in range(units.get_vocab_size())]
    assert names[:3] == list(SPECIAL)
    for text in TEXTS:
        assert join_units(names[i] for i in encode_text(units, text)) == text
    assert len(encode_text(units, "打开空调")) == 4  # never two hanzi in one
    characters = {c for text in TEXTS for c in spell(text) if c != " "}
    assert len(names) == len(SPECIAL) + len(characters) + 10
    assert len(encode_text(units, "play")) < len("▁play")  # pieces, where words repeat
    assert [names[i] for i in encode_text(units, "é")][-1] == "<unk>"


def test_the_same_text_gives_the_same_units() -> None:
    assert train_units(TEXTS, 10).to_str() == train_units(TEXTS, 10).to_str()


def test_no_text_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to make text units of"):
        train_units([], 10)
    with pytest.raises(InputError, match="do not exist; run the rule `units`"):
        read_units(tmp_path / "none.json")
    from tokenizers import Tokenizer, models

    Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "c": 2}, merges=[])).save(str(tmp_path / "other.json"))
    with pytest.raises(InputError, match="the first units are not <blk>"):
        read_units(tmp_path / "other.json")
