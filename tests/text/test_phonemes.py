"""Pronunciation: known words, rules for unknown ones, and one closed inventory."""

import random
from itertools import groupby

import kaldialign
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_asr.errors import InputError
from entropy_asr.text.normalize import normalize
from entropy_asr.text.phonemes import (
    ARPABET,
    FINALS,
    INITIALS,
    LINE_BLANK,
    TONES,
    as_frames,
    inventory,
    misheard,
    phonemize,
    pronunciation_line,
    read_tokens,
    write_tokens,
)

INVENTORY = inventory()


def test_inventory() -> None:
    assert INVENTORY[0] == "<blk>"
    assert len(INVENTORY) == len(set(INVENTORY)) == 1 + 39 + 21 + 36 * 5
    english = [symbol for symbol in INVENTORY if symbol.isupper()]
    assert len(english) == 39
    assert not {symbol.lower() for symbol in english} & set(english)


def test_tokens_file_round_trip(tmp_path) -> None:
    write_tokens(tmp_path / "tokens.txt")
    assert (tmp_path / "tokens.txt").read_text().splitlines()[:2] == ["<blk> 0", "AA 1"]
    assert read_tokens(tmp_path / "tokens.txt") == {symbol: index for index, symbol in enumerate(INVENTORY)}
    (tmp_path / "bad.txt").write_text("AA 0\n<blk> 1\n")
    with pytest.raises(InputError, match="expected '<blk> 0'"):
        read_tokens(tmp_path / "bad.txt")


@pytest.mark.parametrize(
    ("text", "phonemes"),
    [
        ("hello world", "HH AH L OW W ER L D"),
        ("i'm", "AY M"),
        ("你好", "n i2 h ao3"),  # third-tone sandhi
        ("不是", "b u2 sh i4"),
        ("一个", "i2 g e4"),
        ("导航去北京大学", "d ao3 h ang2 q v4 b ei3 j ing1 d a4 x ve2"),
        ("长城", "ch ang2 ch eng2"),
        ("银行", "in2 h ang2"),
        ("绿色女儿", "l v4 s e4 n v3 er2"),
        ("优秀文队", "iou1 x iou4 uen2 d uei4"),
        ("嗯好的", "en2 h ao3 d e5"),
        ("播放 hello 吧", "b o1 f ang4 HH AH L OW b a5"),
    ],
)
def test_known_pronunciations(text: str, phonemes: str) -> None:
    assert " ".join(phonemize(text, "mixed").phonemes) == phonemes
    assert phonemize(text, "mixed").oov == []


def test_pronunciation_line_is_phonemes_without_word_boundaries() -> None:
    assert pronunciation_line("hello world 吧", "mixed") == "HH AH L OW W ER L D b- a5"
    assert pronunciation_line("一个 hello", "mixed") == "i2 g- e4 HH AH L OW"


@pytest.mark.parametrize(
    ("word", "phonemes"),
    [
        ("teslas", "T EH S L AH Z"),  # suffix, voiced
        ("laptop's", "L AE P T AA P S"),  # suffix, voiceless
        ("hashtagged", "HH AE SH T AE G D"),  # consonant undoubled
        ("recirculation", "R IY S ER K Y AH L EY SH AH N"),  # prefix
        ("carplay", "K AA R P L EY"),  # compound
        ("sunshade", "S AH N SH EY D"),  # compound, not suns + hade
        ("hsk", "EY CH EH S K EY"),  # no vowel: letter names
        ("kroxel", "K R AA K S EH L"),  # spelling rules
        ("xylor", "Z IH L AO R"),
    ],
)
def test_rules_for_unknown_words(word: str, phonemes: str) -> None:
    found = phonemize(word, "en")
    assert " ".join(found.phonemes) == phonemes
    assert found.oov == [word]


def test_words_group_the_phonemes() -> None:
    found = phonemize("播放 night 吧", "mixed")
    assert found.words == [("播", ["b", "o1"]), ("放", ["f", "ang4"]), ("night", ["N", "AY", "T"]), ("吧", ["b", "a5"])]


def test_a_character_without_a_reading_is_reported() -> None:
    found = phonemize("去うた", "zh")
    assert (found.phonemes, found.oov) == (["q", "v4"], ["う", "た"])


@settings(max_examples=300, deadline=None)
@given(st.text(st.one_of(st.characters(), st.characters(min_codepoint=0x4E00, max_codepoint=0x9FFF)), max_size=20))
def test_any_text_stays_in_the_inventory(text: str) -> None:
    found = phonemize(normalize(text, "mixed"), "mixed")
    assert set(found.phonemes) <= set(INVENTORY[1:])
    assert found.phonemes == [phoneme for _, phonemes in found.words for phoneme in phonemes]


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyz'", min_size=1, max_size=14))
def test_every_latin_word_is_pronounced(word: str) -> None:
    normalized = normalize(word, "en")
    found = phonemize(normalized, "en")
    assert set(found.phonemes) <= set(INVENTORY[1:])
    assert len(found.words) == len(normalized.split())
    assert all(phonemes for _, phonemes in found.words)


def test_misheard_has_the_share_of_errors_asked_for() -> None:
    line = pronunciation_line("navigate to the central park 播放周杰伦的青花瓷", "mixed")
    assert misheard(line, 0.0, random.Random(1)) == line
    phonemes = line.split()
    rounds = [misheard(line, 0.4, random.Random(i)).split() for i in range(1000)]
    count = len(phonemes) * len(rounds)
    assert sum(map(len, rounds)) / count == pytest.approx(1.0 - 0.4 / 8, abs=0.02)  # a quarter missed, an eighth one too many
    # A phoneme may be replaced by itself, and a missed one beside one too many is one error.
    assert 0.32 < sum(kaldialign.edit_distance(phonemes, heard)["total"] for heard in rounds) / count <= 0.41


def test_every_phoneme_is_misheard_as_others_of_the_inventory() -> None:
    phonemes = [*ARPABET, *(f"{initial}-" for initial in INITIALS), *(final + tone for final in FINALS for tone in TONES)]
    for phoneme in phonemes:
        heard = {other for i in range(40) for other in misheard(phoneme, 1.0, random.Random(i)).split()}
        assert len(heard - {phoneme}) > 1 and heard <= set(phonemes), phoneme


def test_a_line_as_frames_is_what_ctc_makes_the_line_of() -> None:
    line = pronunciation_line("call lee now 北京", "mixed")  # K AO L L IY: two equal phonemes in a row
    frames = [as_frames(line, 1.5, random.Random(i)).split() for i in range(2000)]
    for drawn in frames:
        assert " ".join(phoneme for phoneme, _ in groupby(drawn) if phoneme != LINE_BLANK) == line
    # Beside the blanks after phonemes, 1.5 on average, there are up to six before and behind: and some repetitions; and in one
    # line of ten a pause of up to 39.
    blanks = sum(drawn.count(LINE_BLANK) for drawn in frames) / len(frames)
    assert blanks == pytest.approx(1.5 * len(line.split()) + 6 + 0.1 * 19.5, rel=0.05)
    longest = [max(len(list(run)) for symbol, run in groupby(drawn) if symbol == LINE_BLANK) for drawn in frames]
    assert 0.01 < sum(run > 20 for run in longest) / len(frames) < 0.1
    assert as_frames(line, 0.0, random.Random(1)) == line
