"""Written to spoken: a table of cases, each as a reader would say it, and what must hold for any text at all."""

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
    # numbers
    "0": "zero",
    "15 people": "fifteen people",
    "300": "three hundred",
    "2,000": "two thousand",
    "１２３": "one hundred and twenty three",
    "0.5": "zero point five",
    "9.99": "nine point nine nine",
    "1.5 million": "one point five million",
    "-10": "negative ten",
    "−10": "negative ten",
    "3/4": "three quarters",
    "½ cup": "one half cup",
    "100%": "one hundred percent",
    "the 12th man": "the twelfth man",
    "COVID-19": "covid nineteen",
    "5G": "five g",
    "x²": "x two",
    # dates and times
    "in 1984": "in nineteen eighty four",
    "in 2020": "in twenty twenty",
    "May 5, 2012": "may fifth twenty twelve",
    "May 1st": "may first",
    "3 p.m.": "three pm",
    "3:05 pm": "three o five pm",
    "at 9:00": "at nine o'clock",
    "in the '90s": "in the nineties",
    "in the 80s": "in the eighties",
    # money
    "$1": "one dollar",
    "$0.99": "ninety nine cents",
    "$1.01": "one dollar and one cent",
    "$2 million": "two million dollars",
    "€20": "twenty euros",
    # units
    "1 km": "one kilometer",
    "10 kg": "ten kilograms",
    "60 mph": "sixty miles per hour",
    "5 ft": "five feet",
    "10°C": "ten degrees celsius",
    # signs
    "C++": "c plus plus",
    "AT&T": "at and t",
    "user@example.com": "user at example dot com",
    # fillers stay: they were said
    "um, I think, uh, yes": "um i think uh yes",
    "Hmm... mm-hmm, er, ah!": "hmm mm hmm er ah",
    # punctuation and hyphens
    "“Hello,” she said.": "hello she said",
    "well-known e-mail": "well known e mail",
    "yes/no (or maybe) [noise]": "yes no or maybe noise",
    "first;second:third": "first second third",
    "tab\tand\nnewline": "tab and newline",
    "a—b–c": "a b c",
    # full width, ligatures, accents
    "Ｗｈａｔ’ｓ　ｕｐ？": "what's up",
    "Zoë’s façade": "zoe's facade",
    "Ⅷ": "viii",
    # apostrophes
    "'twas the dog's": "twas the dog's",
    "rock'n'roll": "rock'n'roll",
    "they'd've": "they'd've",
    "O`Neil": "o'neil",
    "l´amour": "l'amour",
    # abbreviations
    "Mr Bean": "mister bean",
    "the U.K. and the U.S.": "the uk and the us",
    # mixed script
    "说hello": "说 hello",
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
    # numbers
    "3个人": "三个人",
    "12个月": "十二个月",
    "110米": "一百一十米",
    "1001夜": "一千零一夜",
    "10500": "一万零五百",
    "１２３": "一百二十三",
    "0.5%": "百分之零点五",
    "100%": "百分之百",
    "1/2": "二分之一",
    "-10度": "负十度",
    "3+5=8": "三加五等于八",
    "比分是3:2": "比分是三比二",
    "3-5天": "三到五天",
    "第12章": "第十二章",
    "①号": "一号",
    # dates and times
    "1998年": "一九九八年",
    "90年代": "九十年代",
    "12月31日": "十二月三十一日",
    "2024-05-01": "二零二四年五月一日",
    "2024/5/1": "二零二四年五月一日",
    "下午2点": "下午两点",
    "2月2日": "二月二日",
    "12:00": "十二点",
    "8:05": "八点零五分",
    # money
    "$100": "一百美元",
    "€50": "五十欧元",
    "¥9.9": "九点九元",
    "1,000元": "一千元",
    # units
    "5kg": "五千克",
    "180cm": "一百八十厘米",
    "60km/h": "六十公里每小时",
    "25°C": "二十五摄氏度",
    "约2.5小时": "约二点五小时",
    "2楼": "二楼",
    # fillers stay: they were said
    "嗯，我想想": "嗯我想想",
    "呃……那个，啊": "呃那个啊",
    "在这儿": "在这儿",
    # punctuation
    "「你好」～世界…": "你好世界",
    "史蒂夫·乔布斯": "史蒂夫乔布斯",
    "一——二、三；四：五": "一二三四五",
    # full width and other scripts
    "卡拉ＯＫ": "卡拉 ok",
    "Ｋ歌": "k 歌",
    "3D电影": "三 d 电影",
    "G20峰会": "g 二十峰会",
    "5G网络": "五 g 网络",
    "CEO说don’t": "ceo 说 don't",
    # traditional
    "體育館後面": "体育馆后面",
    "我的電腦裡": "我的电脑里",
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
    "打开Wi-Fi": "打开 wi fi",
    "我买了2个iPhone": "我买了两个 iphone",
    "这个app要5美元": "这个 app 要五美元",
    "Let’s去KTV": "let's 去 ktv",
    "he said 你好": "he said 你好",
    "meet at 7 我们走": "meet at seven 我们走",
    "今天temperature是25℃": "今天 temperature 是二十五摄氏度",
    "用50%的CPU": "用百分之五十的 cpu",
    "３个ＡＰＰ": "三个 app",
    "嗯 OK 呃 um fine": "嗯 ok 呃 um fine",
    "John’s電話": "john's 电话",
    "版本2.0 is out": "版本二点零 is out",
    "I have 2 dogs，你呢？": "i have two dogs 你呢",
    "2024年的iOS 18": "二零二四年的 ios eighteen",
    "café里有3位guest": "cafe 里有三位 guest",
}
TABLES = {"en": ENGLISH, "zh": MANDARIN, "mixed": MIXED}
CASES = [(text, language, spoken) for language, table in TABLES.items() for text, spoken in table.items()]
LANGUAGES = ("en", "zh", "mixed")


@pytest.mark.parametrize(("text", "language", "spoken"), CASES)
def test_case(text: str, language: str, spoken: str) -> None:
    assert normalize(text, language) == spoken
    assert normalize(spoken, language) == spoken


def test_there_are_enough_cases() -> None:
    assert len(ENGLISH) + len(MANDARIN) >= 150
    assert len(CASES) >= 190


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
