"""Each definition against cases whose answer is plain, and the table from such cases."""

from pathlib import Path

import pytest

from entropy_asr.errors import InputError
from entropy_asr.evaluation.hallucination import is_hallucination, is_loop, length_outlier, overlap, table
from entropy_asr.files import write_jsonl


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("turn it up", "thank you for watching this video", True),  # twice as long, nothing in common
        ("turn it up", "turn it up turn it up now", False),  # long, but it is what was said
        ("turn it up", "call my mother", False),  # wrong, not longer
        ("a b c d e f", "z z z z z z z z z", False),  # exactly 50% longer is not more than 50%
        ("a b c d e f", "z z z z z z z z z z", True),
        ("a b c d e", "a z z z z z z z", False),  # one of five is 20%: not under it
        ("a b c d e f", "a z z z z z z z z z", True),  # one of six is
        ("turn it up", "", False),
        ("", "", False),
        ("", "you", True),  # nobody spoke
    ],
)
def test_hallucination(reference: str, hypothesis: str, expected: bool) -> None:
    assert is_hallucination(reference.split(), hypothesis.split()) is expected


def test_overlap_counts_a_token_as_often_as_both_have_it() -> None:
    assert overlap(["a", "a", "b"], ["a", "c"]) == pytest.approx(1 / 3)
    assert overlap(["a", "a", "b"], ["a", "a", "a", "b", "b"]) == 1.0


@pytest.mark.parametrize(
    ("reference", "hypothesis", "expected"),
    [
        ("go home", "go home go home go home go home", True),
        ("go home", "go home go home go home", False),  # three times
        ("八 八 八 八 八", "八 八 八 八 八", False),
        ("no", "no no no no no no", True),
        ("no no no no no no", "no no no no no no", False),  # it was said
        ("no no no no no no", "no no no no no no no", True),  # more often than it was said
        ("", "a b c a b c a b c a b c", True),
        ("a", "", False),
    ],
)
def test_repetition_loop(reference: str, hypothesis: str, expected: bool) -> None:
    assert is_loop(reference.split(), hypothesis.split()) is expected


def test_length_outlier() -> None:
    four = ["a", "b", "c", "d"]
    found = [length_outlier(four, ["x"] * length) for length in (0, 1, 2, 8, 9)]
    assert found == ["too_short", "too_short", None, None, "too_long"]
    assert length_outlier([], ["x"]) is None


def decoded(folder: Path, arm: str, transcripts: dict[str, tuple[str, str]]) -> Path:
    path = folder / f"decode/{arm}/seed-1/conditions/english.jsonl"
    rows = [
        {"id": name, "condition": name.split("@")[1], "language": "en", "reference": said, "hypothesis": heard}
        for name, (said, heard) in transcripts.items()
    ]
    write_jsonl(
        path, [{**row, "corpus_kind": "synthetic", "audio": "english.flac", "audio_start": 0.0, "duration": 1.0} for row in rows]
    )
    return path


def test_table_counts_by_condition(tmp_path: Path) -> None:
    heard = {f"u{i}@babble_0db": ("turn it up", "thank you for watching this" if i < 2 else "turn it") for i in range(8)}
    heard |= {f"u{i}@clean": ("turn it up", "turn it up") for i in range(8)}
    heard |= {f"u{i}@silence": ("", "" if i < 6 else "you") for i in range(8)}
    path = decoded(tmp_path, "ours", heard)
    rows, examples = table([path])
    assert [row["condition"] for row in rows] == ["clean", "babble_0db", "silence"]
    clean, babble, silence = rows
    assert (clean["hallucinations"], clean["rate_percent"], clean["error_rate_percent"]) == (0, 0.0, 0.0)
    assert clean["high_percent"] == pytest.approx(32.44, abs=0.01)  # Wilson's interval of 0 of 8
    assert (babble["hallucinations"], babble["rate_percent"]) == (2, 25.0)
    assert babble["error_rate_percent"] == pytest.approx(100 * (2 * 5 + 6) / 24, abs=1e-3)
    assert (silence["hallucinations"], silence["error_metric"], silence["error_rate_percent"]) == (2, None, None)
    assert {example["id"] for example in examples} == {"u0@babble_0db", "u1@babble_0db", "u6@silence", "u7@silence"}
    other = decoded(tmp_path, "other", {name: pair for name, pair in heard.items() if name != "u3@clean"})
    with pytest.raises(InputError, match="other, seed 1, lacks 'u3@clean'"):
        table([path, other])
