"""The report is one file that needs nothing else, and says what the tables say."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
from reporting.conftest import HEARD, hypotheses
from typer.testing import CliRunner

from entropy_asr.errors import InputError
from entropy_asr.evaluation.score import Scored
from entropy_asr.files import write_table
from entropy_asr.reporting import jobs, tables
from entropy_asr.reporting.browser import as_script_data, browsable, edits
from entropy_asr.reporting.report import Piece, app, by_domain, choose_examples, headline, pieces, who_decided

VOID = {"meta", "img", "br", "input"}
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
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        values = dict(attrs)
        assert tag not in {"link", "iframe"}
        self.links += [values["href"]] if "href" in values else []
        self.loaded += [values["src"]] if "src" in values else []
        self.in_best = values.get("class") == "best"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)
        elif "style" not in self.open:
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
    write_table(folder / "main.csv", rows, tables.MAIN_COLUMNS)
    parts = tables.breakdown_rows(found("score/*/seed-1/*.json"), synthetic)
    write_table(folder / "breakdown.csv", parts, tables.BREAKDOWN_COLUMNS)
    cka = jobs.cka_rows(found("part.json"), {"threshold": 0.9})
    write_table(folder / "cka.csv", cka, jobs.CKA_COLUMNS)
    write_table(folder / "timeline.csv", jobs.timeline_rows(found("provenance.json")), jobs.TIMELINE_COLUMNS)
    (root / "figures").mkdir()
    (root / "figures/errors.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    options = [f"--{name}={folder / name}.csv" for name in ("main", "breakdown", "cka", "timeline")]
    options += [f"--figures={root / 'figures/errors.svg'}", f"--config={root / 'config/resolved.yaml'}"]
    options += [f"--hallucinations={root / 'metrics/hallucination/examples.jsonl'}"]
    options += [f"--hyps={path}" for path in found("decode/ours/seed-1/*.jsonl")]
    options += [f"--browse={path}" for path in found("decode/*/seed-1/*.jsonl")]
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
    (source,) = (source for source in page.loaded if source.startswith("data:audio"))
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(source.split(",")[1])), dtype="int16")
    assert rate == 16000 and np.array_equal(samples, HEARD[8000:12000])


def browse(address: str, tmp_path: Path, *options: str) -> subprocess.CompletedProcess:
    """Open a page in a headless Chromium."""
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=1200,3000"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", *options, address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_browser_shows_it_without_complaint(page: Page, run: Path, tmp_path: Path) -> None:
    done = browse((run / "report/index.html").as_uri(), tmp_path, f"--screenshot={tmp_path / 'page.png'}")
    assert done.returncode == 0 and (tmp_path / "page.png").stat().st_size > 10_000
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line or "ERR_" in line]
    assert not complaints


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.parametrize(
    ("chosen", "summary", "cards"),
    [
        ("", "9 of 13 utterances.", 9),  # those with an error
        ("?min=0", "13 of 13 utterances.", 13),
        ("?min=0&max=0", "7 of 13 utterances.", 7),  # in some system none
        ("?set=english", "3 of 13 utterances.", 3),
        ("?set=english&system=no_ia_sft", "1 of 13 utterances.", 1),
        ("?min=2", "2 of 13 utterances.", 2),
        ("?q=空条", "6 of 13 utterances.", 6),
        ("?min=0&q=EN-00", "1 of 13 utterances.", 1),
        ("?q=nothing like it", "0 of 13 utterances.", 0),
    ],
)
def test_the_error_browser_filters(page: Page, run: Path, tmp_path: Path, chosen: str, summary: str, cards: int) -> None:
    done = browse(f"{(run / 'report/index.html').as_uri()}#browser{chosen}", tmp_path, "--dump-dom")
    assert done.returncode == 0 and "CONSOLE" not in done.stderr
    shown = done.stdout.split('<ol id="browser-list">')[1].split("</ol>")[0]
    assert summary in done.stdout
    assert shown.count("<li>") == cards


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_the_error_browser_marks_errors(page: Page, run: Path, tmp_path: Path) -> None:
    done = browse(f"{(run / 'report/index.html').as_uri()}#browser?set=english&system=no_ia_sft", tmp_path, "--dump-dom")
    shown = done.stdout.split('<ol id="browser-list">')[1].split("</ol>")[0]
    assert "en-05, 2.0 s, 2 words" in shown and '<div class="said" lang="en">stop it</div>' in shown
    assert '<span lang="en">stop <del>it</del></span>' in shown
    mandarin = browse(f"{(run / 'report/index.html').as_uri()}#browser?set=mandarin", tmp_path, "--dump-dom").stdout
    assert '打开空<span class="sub"><del>调</del><ins>条</ins></span></span>' in mandarin


def test_edits_lead_from_the_reference_to_the_transcript() -> None:
    pairs = [("a", "a"), ("b", "b"), ("c", "x"), (None, "y"), ("d", None), ("e", "e")]
    assert edits(pairs) == [2, "~x", "+y", "-", 1]
    assert edits([("a", "a")]) == [1] and edits([]) == []


def test_no_transcript_can_end_the_script() -> None:
    text = as_script_data({"a": "</script><!--"})
    assert "<" not in text and json.loads(text) == {"a": "</script><!--"}


def test_systems_decoded_on_other_utterances_are_refused(run: Path) -> None:
    hypotheses(run / "decode/no_ia_sft/seed-1/english.jsonl", "en", [("play blues", "play blues")])
    with pytest.raises(InputError, match="other utterances than ours"):
        browsable([run / f"decode/{arm}/seed-1/english.jsonl" for arm in ("ours", "no_ia_sft")], {})


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


def test_domains_are_counted_over_seeds_and_a_system_without_one_has_no_figure() -> None:
    def row(arm: str, seed: str, group: str, errors: int, tokens: int, by: str = "domain") -> dict[str, str]:
        names = {"arm": arm, "seed": seed, "test_set": "english", "metric": "WER", "by": by, "group": group}
        return {**names, "errors": str(errors), "reference_tokens": str(tokens)}

    rows = [row("ours", "1", "calls", 1, 10), row("ours", "2", "calls", 3, 10), row("other", "1", "calls", 0, 10)]
    rows += [row("ours", "1", "media", 5, 10), row("ours", "1", "af_nova", 9, 9, "speaker")]
    (found,) = by_domain(rows)
    assert (found["test_set"], found["systems"]) == ("english", ["ours", "other"])
    assert {line["domain"]: line["percents"] for line in found["domains"]} == {"calls": [20.0, 0.0], "media": [50.0, None]}


def test_the_report_has_the_errors_of_each_domain(page: Page) -> None:
    assert "By domain: error rates in percent" in page.text
    assert re.search(r"media\s*12\.5\s*40", page.text)


def test_the_report_says_whether_the_threshold_decided_a_swap() -> None:
    def row(part: int, cka: float, swapped: bool, encoder: str = "encoder") -> dict[str, str]:
        said = {"encoder": encoder, "seed": "1", "part": str(part), "cka": str(cka), "swapped": str(swapped).lower()}
        return {**said, "step": "0", "threshold": "0.975"}

    at_once = [row(0, 0.9, True), row(1, 0.8, True), row(2, 0.99, False), row(0, 0.99, False, "encoder_character")]
    assert who_decided(at_once).startswith("Every part that CKA ended (2) was below the threshold at its first check.")
    later = [row(0, 0.98, False), row(0, 0.9, True), row(1, 0.8, True), row(2, 0.99, False)]
    assert who_decided(later).startswith("Of 2 parts that CKA ended, 1 ended at their first check; the threshold decided")
    assert who_decided([row(0, 0.99, False)]) == "" == who_decided([])
