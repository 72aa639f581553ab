"""Written to spoken: a table of cases, and what must hold for any text at all."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_asr.text.normalize import normalize
from entropy_asr.text.scripts import tokens_for_scoring

ENGLISH = {
    "Call Dr. Lee at 3:30 p.m., it's 5 km.": "call doctor lee at three thirty pm it's five kilometers",
    "Mr. and Mrs. Smith": "mister and missus smith",
    "see you at 7": "see you at seven",
    "at 07:05": "at seven o five",
    "10:00 a.m.": "ten am",
    "set it to 72 degrees": "set it to seventy two degrees",
    "It's 72°F": "it's seventy two degrees fahrenheit",
    "-5 degrees": "negative five degrees",
    "25% off & more": "twenty five percent off and more",
    "the 2nd of May 1999": "the second of may nineteen ninety nine",
    "1st 3rd 21st": "first third twenty first",
    "in the 1990s": "in the nineteen nineties",
    "in 2008": "in two thousand eight",
    "1000 miles": "one thousand miles",
    "I have 1,234 items": "i have one thousand two hundred and thirty four items",
    "12,345": "twelve thousand three hundred and forty five",
    "100,000,000": "one hundred million",
    "channel 104.5 FM": "channel one hundred and four point five fm",
    "3.14": "three point one four",
    "1/2": "one half",
    "$5": "five dollars",
    "$3.50": "three dollars and fifty cents",
    "$1,000,000": "one million dollars",
    "£3": "three pounds",
    "call 555-1234 now": "call five five five one two three four now",
    "dial 13800138000": "dial one three eight zero zero one three eight zero zero zero",
    "Route 66": "route sixty six",
    "A4 paper": "a four paper",
    "F-16": "f sixteen",
    "twenty-five": "twenty five",
    "Rock ’n’ Roll": "rock n roll",
    "the dogs' 'best' friend’s": "the dogs best friend's",
    "don't": "don't",
    "U.S.A.": "usa",
    "naïve café": "naive cafe",
    "Ｆｕｌｌ　ｗｉｄｔｈ": "full width",
    "ﬁne": "fine",
    "co\u00adoperate": "cooperate",
    "wait... what?!": "wait what",
    "播放3次": "播放 three 次",
    "": "",
    "?!": "",
}
MANDARIN = {
    "你好，世界！": "你好世界",
    "你 好 吗": "你好吗",
    "温度调到２５℃，播放 Yesterday！": "温度调到二十五摄氏度播放 yesterday",
    "温度是-5°C": "温度是负五摄氏度",
    "2024年5月1日": "二零二四年五月一日",
    "二〇二四年": "二零二四年",
    "打电话给13812345678": "打电话给幺三八幺二三四五六七八",
    "010-62345678": "零一零六二三四五六七八",
    "10:30出发": "十点三十分出发",
    "早上7点半": "早上七点半",
    "第3名": "第三名",
    "50%": "百分之五十",
    "10%~20%": "百分之十到百分之二十",
    "2/3": "三分之二",
    "3.14": "三点一四",
    "100,000": "十万",
    "￥30": "三十元",
    "每小时60公里": "每小时六十公里",
    "100km": "一百公里",
    "102路": "一百零二路",
    "5号线": "五号线",
    "2个苹果": "两个苹果",
    "A4纸": "a 四纸",
    "F-16战机": "f 十六战机",
    "iPhone 15 Pro": "iphone 十五 pro",
    "導航去台北車站": "导航去台北车站",
    "著名的乾隆皇帝": "著名的乾隆皇帝",
    "《青花瓷》（周杰伦）": "青花瓷周杰伦",
}
MIXED = {
    "播放Taylor Swift的Love Story": "播放 taylor swift 的 love story",
    "播放 Taylor Swift 的 Love Story 第3首": "播放 taylor swift 的 love story 第三首",
    "收藏Johnny Cash的I'm on Fire": "收藏 johnny cash 的 i'm on fire",
    "导航到 central park 2号门": "导航到 central park 二号门",
    "播放3次 Hello 3": "播放三次 hello three",
    "请把volume调到50%": "请把 volume 调到百分之五十",
    "明天 10:30 开会 OK": "明天十点三十分开会 ok",
    "5 minutes": "five minutes",
    "3 apples 给我": "three apples 给我",
    "你 好 world": "你好 world",
}
TABLES = {"en": ENGLISH, "zh": MANDARIN, "mixed": MIXED}
CASES = [(text, language, spoken) for language, table in TABLES.items() for text, spoken in table.items()]
LANGUAGES = ("en", "zh", "mixed")


@pytest.mark.parametrize(("text", "language", "spoken"), CASES)
def test_case(text: str, language: str, spoken: str) -> None:
    assert normalize(text, language) == spoken
    assert normalize(spoken, language) == spoken


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize(
    "text",
    [
        "he may march in august and see one of two friends in no time",
        "i'll pay a hundred and five dollars at half past ten o'clock",
        "what is twenty one minus six point five percent",
        "st john read nato and a m p m to dr",
    ],
)
def test_spoken_english_passes_unchanged(text: str) -> None:
    assert normalize(text, "en") == text.replace(" dr", " doctor")


TEXT = st.text(
    alphabet=st.one_of(
        st.sampled_from("abcXYZ 0123456789.,:;-/%$°'’&@+点一二年月日号導北去播放çé①Ⅷ℃〇kms\u00ad\u0301"),
        st.characters(),
    ),
    max_size=40,
)


@settings(max_examples=400, deadline=None)
@given(TEXT, st.sampled_from(LANGUAGES))
def test_any_text(text: str, language: str) -> None:
    once = normalize(text, language)
    assert normalize(once, language) == once
    assert all(character.isalpha() or character in " '" for character in once)
    assert once == once.strip() and "  " not in once
    assert once == once.lower()


def test_unknown_language() -> None:
    with pytest.raises(ValueError, match="'de' is none of"):
        normalize("hallo", "de")


def test_importing_and_spoken_text_load_no_grammar() -> None:
    code = "import sys; from entropy_asr.text.normalize import normalize; normalize('hello', 'en'); "
    code += "sys.exit('wetext' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_units() -> None:
    assert tokens_for_scoring("播放 night train 吧", "zh") == [*"播放nighttrain吧"]
    assert tokens_for_scoring("it's a test", "en") == ["it's", "a", "test"]
    assert tokens_for_scoring("播放 night train 吧", "mixed") == ["播", "放", "night", "train", "吧"]
    assert tokens_for_scoring("", "mixed") == []
