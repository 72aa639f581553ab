"""The tokenizer stands in for a pretrained one: loads, round-trips, speaks Qwen's chat format."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from entropy_asr.errors import InputError
from entropy_asr.files import write_jsonl
from entropy_asr.text.phonemes import LINE_BLANK, pronunciation_line
from entropy_asr.text.tokenizer import SPECIAL_TOKENS, build, read_sentences, train_tokenizer

EN = ["navigate to central park", "call james at five thirty", "play the night train", "what's the weather in boston"]
ZH = ["导航去北京大学", "给李明打电话", "播放周杰伦的青花瓷", "今天上海天气怎么样"]


def make(folder: Path, vocab_size: int = 700) -> Path:
    rows = [{"text": text, "language": "en"} for text in EN] + [{"text": text, "language": "zh"} for text in ZH]
    write_jsonl(folder / "lm_text.jsonl.gz", rows)
    (folder / "stage.json").write_text(json.dumps({"llm": {"scratch": {"vocab_size": vocab_size}}, "prompt": {}}))
    build(folder / "stage.json", folder / "lm_text.jsonl.gz", folder / "tokenizer")
    return folder / "tokenizer"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(make(tmp_path_factory.mktemp("tokenizer")))


def test_special_tokens(tokenizer) -> None:
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == [0, 1, 2, 3]
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")
    assert tokenizer("a<speech>b").input_ids.count(3) == 1


def test_chat_template(tokenizer) -> None:
    turns = [{"role": "system", "content": "Transcribe."}, {"role": "user", "content": "<speech>"}]
    prompt = "<|im_start|>system\nTranscribe.<|im_end|>\n<|im_start|>user\n<speech><|im_end|>\n"
    assert tokenizer.apply_chat_template(turns, tokenize=False) == prompt
    asked = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert asked == prompt + "<|im_start|>assistant\n"
    answered = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": "你好"}], tokenize=False)
    assert answered == asked + "你好<|im_end|>\n"


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_round_trip(tokenizer, text: str) -> None:
    if any(token in text for token in SPECIAL_TOKENS):
        return
    assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=False) == text


def test_each_phoneme_and_the_blank_are_one_unit(tokenizer) -> None:
    for text in EN + ZH:
        line = f" {LINE_BLANK} {pronunciation_line(text, 'mixed')} {LINE_BLANK}"
        units = [tokenizer.decode([unit]) for unit in tokenizer(line).input_ids]
        assert units == [f" {phoneme}" for phoneme in line.split()]


def test_the_chat_is_short(tokenizer) -> None:
    chat = "<|im_start|>system\nTranscribe the speech.<|im_end|>\n<|im_start|>user\n<speech><|im_end|>\n<|im_start|>assistant\n"
    assert len(tokenizer(chat).input_ids) == 11


def test_digits_and_hanzi_stand_alone_and_words_do_not_cross_a_space(tokenizer) -> None:
    pieces = [tokenizer.decode([unit]) for unit in tokenizer("play the night train").input_ids]
    assert len(pieces) < len("play the night train") / 2 and not any(" " in piece.strip() for piece in pieces)
    assert [tokenizer.decode([unit]) for unit in tokenizer("mp31234").input_ids][-5:] == [*"31234"]
    assert [tokenizer.decode([unit]) for unit in tokenizer("北京大学").input_ids] == [*"北京大学"]


def test_training_is_deterministic(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        make(tmp_path / name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "one/tokenizer" / file).read_bytes() == (tmp_path / "two/tokenizer" / file).read_bytes()


def test_a_vocabulary_too_small_says_which_key() -> None:
    with pytest.raises(InputError, match=r"256 bytes and 4 fixed units; raise llm.scratch.vocab_size"):
        train_tokenizer(EN, 200)


def test_training_text(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    lines = [("At 5.", "en"), ("at five", "en"), ("?", "zh")]
    write_jsonl(path, [{"text": text, "language": language} for text, language in lines])
    assert read_sentences(path) == [("at five", "en")]
    write_jsonl(path, [{"text": "x", "language": "fr"}])
    with pytest.raises(InputError, match=r"line 1: found .*\"fr\".* expected"):
        read_sentences(path)
