"""The report is one file that needs nothing else, and says what the tables say."""

import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

from entropy_asr.evaluation.score import Scored
from entropy_asr.reporting import tables
from entropy_asr.reporting.report import Piece, app, choose_examples, headline, pieces

VOID = {"meta", "img", "br"}
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


class Page(HTMLParser):
    """Checks nesting; keeps the text, the links and what would be loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.text = ""
        self.bold: list[str] = []
        self.in_best = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        values = dict(attrs)
        assert tag not in {"script", "link", "iframe"}
        self.links += [values["href"]] if "href" in values else []
        self.loaded += [values["src"]] if "src" in values else []
        self.in_best = values.get("class") == "best"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
            if self.in_best:
                self.bold.append(data)
                self.in_best = False


@pytest.fixture
def page(run: Path, monkeypatch: pytest.MonkeyPatch) -> Page:
    monkeypatch.chdir(run.parent)
    root = Path("results")

    def found(pattern: str) -> list[Path]:
        return sorted(root.rglob(pattern))

    folder = root / "tables"
    synthetic = ["english", "mandarin"]
    rows = tables.main_rows(found("score/*/seed-1/*.json"), found("provenance.json"), synthetic, [])
    tables.write_table(folder / "main.csv", rows, tables.MAIN_COLUMNS)
    cka = tables.cka_rows(found("part.json"), {"threshold": 0.9})
    tables.write_table(folder / "cka.csv", cka, tables.CKA_COLUMNS)
    tables.write_table(folder / "timeline.csv", tables.timeline_rows(found("provenance.json")), tables.TIMELINE_COLUMNS)
    (root / "figures").mkdir()
    (root / "figures/errors.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    options = [f"--{name}={folder / name}.csv" for name in ("main", "cka", "timeline")]
    options += [f"--figures={root / 'figures/errors.svg'}", f"--config={root / 'config/resolved.yaml'}"]
    options += [f"--hallucinations={root / 'metrics/hallucination/examples.jsonl'}"]
    options += [f"--hyps={path}" for path in found("decode/ours/seed-1/*.jsonl")]
    options += [f"--quality={path}" for path in found("*.quality.json")]
    options += [f"--provenance={path}" for path in found("provenance.json")]
    done = CliRunner().invoke(app, [*options, f"--out={root / 'report/index.html'}"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    page = Page()
    page.feed((root / "report/index.html").read_text(encoding="utf-8"))
    page.close()
    assert not page.open
    return page


def test_nothing_is_loaded_from_elsewhere(page: Page, run: Path) -> None:
    assert {source.split(",")[0] for source in page.loaded} == {"data:image/svg+xml;base64", "data:audio/flac;base64"}
    files = [link for link in page.links if not link.startswith("#")]
    assert files and all((run / "report" / link).is_file() for link in files)


def test_it_says_what_the_tables_say(page: Page) -> None:
    assert "ran at the same time for 6.5 minutes" in page.text
    assert page.bold == ["10.00 %", "4.00 %"]  # ours is best in English, the other arm in Mandarin; PER has no rival
    assert page.text.count("synthetic speech") >= 6
    assert "duplicate across splits: 2" in page.text
    assert "ours: IA-SFT iteration 1 at 10:22:00" in page.text
    assert "a" * 40 in page.text and "torch 2.9.0" in page.text


def test_hallucinations_can_be_heard(page: Page) -> None:
    assert "thank you" in page.text and "(nothing)" in page.text
    assert "data:audio/flac;base64,ZkxhQw==" in page.loaded


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_shows_it_without_complaint(page: Page, run: Path, tmp_path: Path) -> None:
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=1200,3000"]
    command += [
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--screenshot={tmp_path / 'page.png'}",
        str(run / "report/index.html"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and (tmp_path / "page.png").stat().st_size > 10_000
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line or "ERR_" in line]
    assert not complaints


def test_transcripts_are_marked(page: Page) -> None:
    assert "2 of 6 utterances have an error" in page.text
    assert "6 of 7 utterances have an error" in page.text


def scored(name: str, wrong: bool) -> Scored:
    return Scored(name, None, [("a", "b" if wrong else "a")], None, None)


def test_examples_are_first_wrong_then_clean_and_do_not_depend_on_the_order() -> None:
    utterances = [scored(f"utt-{i}", i % 2 == 0) for i in range(40)]
    chosen = choose_examples(utterances)
    assert [item.pairs[0][1] for item in chosen] == ["b", "b", "b", "a", "a"]
    assert choose_examples(utterances[::-1]) == chosen


@pytest.mark.parametrize(
    ("wrong", "clean", "expected"), [(0, 9, "aaaaa"), (1, 9, "baaaa"), (9, 1, "bbbba"), (9, 0, "bbbbb"), (1, 1, "ba")]
)
def test_examples_fill_up_where_one_kind_is_rare(wrong: int, clean: int, expected: str) -> None:
    utterances = [scored(f"w{i}", True) for i in range(wrong)] + [scored(f"c{i}", False) for i in range(clean)]
    assert "".join(str(item.pairs[0][1]) for item in choose_examples(utterances)) == expected


def test_pieces_join_tokens_as_they_are_written() -> None:
    pairs = [("打", "打"), ("开", "开"), ("空", "恐"), ("调", "条"), (None, "了")]
    assert pieces(pairs, "zh") == [
        Piece("correct", "打开", "打开"),
        Piece("substitution", "空调", "恐条"),
        Piece("insertion", "", "了"),
    ]
    assert pieces([("call", "call"), ("my", "my"), ("mom", None)], "en") == [
        Piece("correct", "call my", "call my"),
        Piece("deletion", "mom", ""),
    ]
    assert pieces([("播", "播"), ("放", "放"), ("hey", "hey"), ("jude", "jude")], "mixed")[0].reference == "播放 hey jude"


def test_headline_averages_seeds_and_marks_the_best() -> None:
    row = {"test_set": "english", "metric": "WER", "corpus_kind": "recorded", "rtf": "", "reference_tokens": "10"}
    row |= dict.fromkeys(["substitutions", "deletions", "insertions", "llm_side_steps"], "1")
    row |= {"audio_hours_encoder": "2", "audio_hours_llm_side": "1", "low_percent": "7", "high_percent": "12"}
    row |= {"p_against_ours": "0.03"}
    row |= {f"parameters_{part}": "" for part in ("encoder", "adaptor", "llm")}
    values = [("ours", "1", "8"), ("ours", "2", "10"), ("no_ia_sft", "1", "9.5")]
    (group,) = headline([{**row, "arm": arm, "seed": seed, "value_percent": value} for arm, seed, value in values])
    ours, other = group["systems"]
    assert (ours["arm"], ours["percent"], ours["seeds"], ours["best"]) == ("ours", 9.0, 2, True)
    assert ours["spread"] == pytest.approx(2**0.5) and other["spread"] is None and not other["best"]
    assert (ours["interval"], other["interval"], other["p"]) == (None, [7.0, 12.0], 0.03)
    assert group["speech"] == "recorded speech"
