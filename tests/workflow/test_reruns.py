"""What runs again after which change: the rows of the table in docs/workflow.md, on a recorded corpus of a few seconds.

Rows that need trained models are in test_smoke.py.
"""

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from repository import ENVIRONMENT, REPO

DATA = {"manifests_mine", "feature_stats"}
SENTENCES = {"train": ["open the door", "close the window", "stop the music"], "dev": ["good morning"], "test": ["good night"]}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory in which `step_data` is done: manifests, feature statistics, phonemes."""
    folder = tmp_path_factory.mktemp("reruns") / "finished"
    corpus, rng = folder / "corpus", np.random.default_rng(0)
    for split, sentences in SENTENCES.items():
        (corpus / "wav").mkdir(parents=True, exist_ok=True)
        lines = []
        for i, text in enumerate(sentences):
            soundfile.write(corpus / f"wav/{split}-{i}.wav", 0.1 * rng.normal(size=32000), 16000)
            lines.append(f'{{"id": "{i:04d}", "audio": "wav/{split}-{i}.wav", "text": "{text}", "language": "en"}}\n')
        (corpus / f"{split}.jsonl").write_text("".join(lines))
    config = yaml.safe_load((REPO / "config/smoke.yaml").read_text())
    config["data"] |= {
        "corpora": {"mine": {"path": str(corpus), "splits": list(SENTENCES)}},
        "train": ["mine/train"],
        "dev": ["mine/dev"],
        "test": {"english": {"split": "mine/test", "language": "en"}},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert call(folder) == {*DATA, "stage_config", "phonemes"}
    return folder


@pytest.fixture
def run(finished: Path) -> Path:
    """A copy of the finished working directory; as a copy it has new times."""
    copy = finished.parent / "copy"
    shutil.copytree(finished, copy, copy_function=shutil.copy)
    yield copy
    shutil.rmtree(copy)


def call(folder: Path, *words: str, source: Path = REPO / "src", target: str = "step_data") -> set[str]:
    """Rules that a call of snakemake runs, or with -n would run."""
    command = ["snakemake", "--snakefile", str(REPO / "Snakefile"), "--directory", str(folder), "--cores", "1", target, *words]
    command += ["--configfile", str(folder / "config.yaml")]
    environment = ENVIRONMENT | {"PYTHONPATH": str(source)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "said").write_text(done.stdout + done.stderr)
    rules = set(re.findall(r"^(?:local)?(?:rule|checkpoint) (\w+):", done.stdout + done.stderr, re.MULTILINE))
    return rules - {"step_data", "step_pretrain"}


def corpus_of(folder: Path) -> Path:
    """The corpus that the config of a run names: the finished one's, which its copies share."""
    return Path(yaml.safe_load((folder / "config.yaml").read_text())["data"]["corpora"]["mine"]["path"])


def own_corpus(folder: Path) -> Path:
    """Have a run use its own copy of the corpus, with the times of the original."""
    old = corpus_of(folder)
    shutil.rmtree(folder / "corpus")
    shutil.copytree(old, folder / "corpus")
    text = (folder / "config.yaml").read_text().replace(str(old), str(folder / "corpus"))
    (folder / "config.yaml").write_text(text)
    assert call(folder) <= {*DATA, "stage_config"}  # another path is another corpus
    assert call(folder, "-n") == set()
    return folder / "corpus"


def change(folder: Path, **sections: dict) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for name, values in sections.items():
        config.setdefault(name, {}).update(values)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def test_a_second_call_has_nothing_to_do(finished: Path) -> None:
    assert call(finished, "-n") == set()


def test_a_copied_tree_has_nothing_to_do(run: Path) -> None:
    assert call(run, "-n") == set()


def test_touched_files_have_nothing_to_do(run: Path) -> None:
    for i, path in enumerate(sorted(path for path in (run / "results").rglob("*") if path.is_file())):
        os.utime(path, (time.time() - 7 * i, time.time() - 7 * i))
    assert call(run, "-n") == set()


def test_without_snakemakes_notes_there_is_nothing_to_do_and_a_changed_config_is_seen(run: Path) -> None:
    shutil.rmtree(run / ".snakemake")
    assert call(run, "-n") == set()
    shutil.rmtree(run / ".snakemake")
    change(run, quality={"min_duration": 0.6})
    assert call(run, "-n") == {*DATA, "stage_config"}
    assert "results/config/manifests.mine.json changed" in (run / "said").read_text()
    change(run, quality={"min_duration": 0.5})
    assert call(run, "-n") == set()


def test_a_dry_run_changes_no_content(run: Path) -> None:
    change(run, quality={"min_duration": 0.6})
    before = {path: path.read_bytes() for path in (run / "results").rglob("*") if path.is_file() and "logs" not in path.parts}
    call(run, "-n")
    after = {path: path.read_bytes() for path in (run / "results").rglob("*") if path.is_file() and "logs" not in path.parts}
    same = {path for path in before if path.name != ".hashes.json"}
    assert before.keys() <= after.keys() and all(before[path] == after[path] for path in same)


def test_a_changed_listing_is_seen(run: Path) -> None:
    listing = own_corpus(run) / "train.jsonl"
    listing.write_text(listing.read_text().replace("stop the music", "play the music"))
    assert call(run, "-n") == {*DATA, "stage_config"}


def test_a_changed_audio_file_is_seen_and_reaches_what_was_made_from_it(run: Path) -> None:
    audio = own_corpus(run) / "wav/train-1.wav"
    before = (run / "results/manifests/mine/train.jsonl.gz").read_bytes()
    samples, rate = soundfile.read(audio)
    soundfile.write(audio, 0.5 * samples, rate)  # as many bytes
    assert call(run, "-n") == {*DATA, "stage_config"}
    assert call(run) == {*DATA, "stage_config"}
    assert (run / "results/manifests/mine/train.jsonl.gz").read_bytes() != before  # the manifest stands for its audio


def test_another_version_of_the_normaliser_is_seen(run: Path, tmp_path: Path) -> None:
    source = tmp_path / "src"
    shutil.copytree(REPO / "src/entropy_asr", source / "entropy_asr", ignore=shutil.ignore_patterns("__pycache__"))
    versions = source / "entropy_asr/versions.py"
    versions.write_text(re.sub(r'(NORMALIZER_VERSION = )".*?"', r'\1"next"', versions.read_text()))
    assert call(run, "-n", source=source) == {*DATA, "stage_config"}


def test_a_file_changed_by_hand_is_made_again(run: Path) -> None:
    stats = run / "results/features/stats.json"
    stats.write_text(stats.read_text().replace("1", "2"))
    assert call(run, "-n") == {"feature_stats"}
    assert "results/features/stats.json (it was changed by hand)" in (run / "said").read_text()


def test_a_deleted_file_that_only_finished_work_was_made_from_is_reported(run: Path) -> None:
    target, lost = "results/features/stats.json", run / "results/manifests/mine/train.jsonl.gz"
    lost.unlink()
    assert call(run, "-n", target=target) == set()
    assert "missing: results/manifests/mine/train.jsonl.gz" in (run / "said").read_text()
    assert call(run, target="results/manifests/mine/train.jsonl.gz") == {"manifests_mine"}
    assert call(run, "-n") == set()  # the same content as before


def test_an_interrupted_job_runs_again(run: Path) -> None:
    """As after Ctrl-C: its outputs are gone, what was made from the earlier ones is there."""
    manifests = run / "results/manifests/mine"
    record = manifests / ".train.jsonl.gz.record.json"
    words = [
        "host",
        "1",
        "folder",
        "manifests_mine",
        "log",
        *(f"results/manifests/mine/{path.name}" for path in manifests.glob("[!.]*")),
    ]
    (manifests / ".train.jsonl.gz.begun").write_text("\n".join([*words, "--", "results/config/manifests.mine.json", ""]))
    assert record.exists()
    for path in manifests.glob("[!.]*"):
        path.unlink()
    assert call(run, "-n", target="results/features/stats.json") == DATA
    assert "interrupted: manifests_mine" in (run / "said").read_text()
    assert call(run, target="results/features/stats.json") == DATA
    assert not list((run / "results").rglob(".*.begun"))
    assert call(run, "-n") == set()


def test_an_input_that_changes_while_a_job_runs_makes_it_stale(run: Path) -> None:
    record = run / "results/features/.stats.json.record.json"
    record.write_text(re.sub(r'("results/manifests/mine/train.jsonl.gz": )".*?"', r"\1null", record.read_text()))
    assert call(run, "-n") == {"feature_stats"}


def test_results_of_another_experiment_are_refused(run: Path) -> None:
    change(run, data={})
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("name: smoke", "name: other"))
    with pytest.raises(AssertionError, match=r"belongs to the experiment 'smoke', and this config is 'other'.*runs/other"):
        call(run, "-n")


def test_a_config_that_is_changed_and_changed_back_has_nothing_to_do(run: Path) -> None:
    change(run, quality={"min_duration": 0.6})
    assert call(run, target="results/config/manifests.mine.json") == {"stage_config"}
    change(run, quality={"min_duration": 0.5})
    assert call(run, "-n") == set()


def test_times_in_the_future_are_set_right_or_refused(run: Path) -> None:
    later = time.time() + 7200
    for path in (run / "results").rglob("*"):
        os.utime(path, (later, later))
    assert call(run, "-n") == set()
    assert max(path.stat().st_mtime for path in (run / "results").rglob("*.jsonl.gz")) <= time.time()
    stats = run / "results/features/stats.json"
    stats.unlink()
    assert call(run) == {"feature_stats"}  # and Snakemake keeps what it made


def test_a_corpus_that_is_not_mounted_costs_nothing(run: Path) -> None:
    corpus = own_corpus(run)
    corpus.rename(run / "away")
    with pytest.raises(AssertionError, match="is not there, but these results were made from it: mount it"):
        call(run)
    (run / "away").rename(corpus)
    assert (run / "results/manifests/mine/train.jsonl.gz").exists() and call(run, "-n") == set()


def test_audio_behind_a_link_and_outside_the_corpus_is_watched(run: Path) -> None:
    corpus = own_corpus(run)
    (corpus / "wav").rename(run / "audio")
    (corpus / "wav").symlink_to(run / "audio")
    listing = corpus / "test.jsonl"
    (run / "audio/test-0.wav").rename(run / "alone.wav")
    listing.write_text(listing.read_text().replace("wav/test-0.wav", str(run / "alone.wav")))
    (corpus / "dangling").symlink_to("nowhere")
    assert call(run) == {*DATA, "stage_config"}
    for audio in (run / "audio/train-0.wav", run / "alone.wav"):
        content = audio.read_bytes()
        audio.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert call(run, "-n") == {*DATA, "stage_config"}, audio
        assert call(run) >= {"manifests_mine", "stage_config"}


def test_a_lock_is_said(run: Path) -> None:
    change(run, quality={"min_duration": 0.6})
    (run / ".snakemake/locks").mkdir(parents=True, exist_ok=True)
    (run / ".snakemake/locks/0.input.lock").write_text("")
    call(run, "-n")
    assert "contents are not compared now" in (run / "said").read_text()


def test_commands_in_the_docs_name_targets_before_configs() -> None:
    """`--configfile` takes all words up to the next option."""
    files = [
        *(REPO / name for name in ("README.md", "Makefile", "Snakefile")),
        *REPO.glob("docs/*.md"),
        *REPO.glob("config/*.yaml"),
    ]
    found = 0
    for path in files:
        for line in re.findall(r"snakemake .*--configfile (.*)", path.read_text()):
            words = re.split(r"`|#|;|\)|  ", line)[0].split()
            found += 1
            assert words and all(word.endswith(".yaml") or word.startswith("-") for word in words), (path, line)
    assert found > 6


def test_every_rule_keeps_a_record() -> None:
    """But those that write a file from the config: their text is compared."""
    shells = [line for path in REPO.glob("workflow/rules/*.smk") for line in re.findall(r"\n +shell:\n +(.*)", path.read_text())]
    assert len(shells) > 40
    without = [line for line in shells if not line.startswith(("RECORD + ", "recording("))]
    assert len(without) == 2 and all(line.startswith('"printf ') and "{params.text:q}" in line for line in without)
