"""Pretraining with real processes: killed and resumed is uninterrupted, cut into parts is one run, inputs are checked."""

import json
import resource
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import psutil
import pytest
from repository import ENVIRONMENT, REPO
from safetensors import safe_open
from typer.testing import CliRunner

from entropy_asr.config_files import STAGE_SECTIONS, load_config
from entropy_asr.errors import InputError
from entropy_asr.evaluation import decode_encoder
from entropy_asr.files import sha256
from entropy_asr.models.artifacts import load_ctc_head, load_encoder
from entropy_asr.text.phonemes import write_tokens
from entropy_asr.text.units import train_units

STEPS = 16
TEXTS = ["aa b ch", "ch aa"]  # the transcripts of the tones are of these words


@pytest.fixture
def job(tones: Path, tmp_path: Path):
    """A function that gives the command of a part, with some keys of its config changed."""
    tokens, units = write_tokens(tmp_path / "tokens.txt"), tmp_path / "tokenizer.json"
    train_units(TEXTS, word_pieces=3).save(str(units))
    stats = tmp_path / "stats.json"
    stats.write_text(json.dumps({"mean": [-8.0] * 80, "std": [4.0] * 80, "frames": 1}))
    smoke = load_config(REPO / "config/smoke.yaml").model_dump(mode="json")
    smoke["encoder"].update(width=32, layers=1, feed_forward=32, dropout=0.1)
    smoke["pretrain"].update(steps=STEPS, warmup_steps=2, max_duration=12)
    smoke["cka"].update(warmup_steps=3, every=3, threshold=0.0)
    smoke["engine"].update(save_every=2, log_every=1)

    def command(
        name: str, part: int = 0, previous: Path | None = None, processes: int = 1, objective: str = "phoneme", **changes: dict
    ) -> list[str]:
        sections = STAGE_SECTIONS["pretrain_attention" if objective == "attention" else "pretrain"]
        settings = {section: smoke[section] | changes.get(section, {}) for section in sections}
        config = tmp_path / f"{name}.json"
        config.write_text(json.dumps(settings))
        words = f"--config {config} --train {tones} --dev {tones} --stats {stats} --part {part} --seed 3"
        words += f" --objective {objective} --labels {tokens if objective == 'phoneme' else units}"
        words += f" --running {tmp_path / 'state' / name} --out {tmp_path / name}" + (
            f" --previous {previous}" if previous else ""
        )
        launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
        return [sys.executable, *launch, "-m", "entropy_asr.stages.pretrain", *words.split()]

    def sections(stage: str) -> str:
        path = tmp_path / f"{stage}-sections.json"
        path.write_text(json.dumps({section: smoke[section] for section in STAGE_SECTIONS[stage]}))
        return str(path)

    command.sections = sections
    return command


def run(command: list[str]) -> None:
    subprocess.run(command, check=True, env=ENVIRONMENT, capture_output=True)


def start_until_saved(command: list[str], state: Path) -> subprocess.Popen:
    """Start a job in a process group of its own and come back when it has saved a state."""
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL, start_new_session=True)
    while not list(state.glob("state-*.safetensors")):
        assert process.poll() is None, "it ended before its first save"
        time.sleep(0.02)
    return process


def weights(folder: Path) -> list[str]:
    return [sha256(folder / name) for name in ("encoder.safetensors", "training_state.safetensors")]


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in map(json.loads, (folder / "train.jsonl").read_text().splitlines())]


def signal_all(process: subprocess.Popen, number: int) -> None:
    """To every process of a job, as Slurm and a terminal do."""
    for one in [*psutil.Process(process.pid).children(recursive=True), process]:
        one.send_signal(number)


@pytest.mark.parametrize("workers", [0, 2])
def test_killed_or_asked_to_stop_then_resumed_is_uninterrupted(job, workers: int, tmp_path: Path) -> None:
    engine = {"workers": workers}
    run(job("whole", engine=engine))
    for name, number, code in (("killed", signal.SIGKILL, -9), ("slurm", signal.SIGTERM, 75), ("ctrl-c", signal.SIGINT, 75)):
        process = start_until_saved(job(name, engine=engine), tmp_path / "state" / name)
        signal_all(process, number)
        if number == signal.SIGINT:  # once more, while it saves
            signal_all(process, number)
        assert process.wait(timeout=120) == code
        assert not (tmp_path / name / "encoder.safetensors").exists()
        run(job(name, engine=engine))
        assert losses(tmp_path / name)[-1][0] == STEPS
        assert [loss for _, loss in losses(tmp_path / name)] == [loss for _, loss in losses(tmp_path / "whole")]
        assert not (tmp_path / "state" / name).exists()
        # the header of a state holds wall times; its tensors are compared through the encoder and the log
        assert weights(tmp_path / name)[0] == weights(tmp_path / "whole")[0]


def test_parts_are_one_run(job, tmp_path: Path) -> None:
    run(job("whole"))
    run(job("part-0", cka={"threshold": 1.0}))
    first = json.loads((tmp_path / "part-0/part.json").read_text())
    assert first["ended_by"] == "cka" and 3 < first["end_step"] < STEPS
    run(job("part-1", part=1, previous=tmp_path / "part-0/training_state.safetensors", cka={"threshold": 0.0}))
    last = json.loads((tmp_path / "part-1/part.json").read_text())
    assert last["ended_by"] == "last_step" and last["end_step"] == STEPS
    assert weights(tmp_path / "part-1")[0] == weights(tmp_path / "whole")[0]
    assert losses(tmp_path / "part-0") + losses(tmp_path / "part-1") == losses(tmp_path / "whole")


def test_the_other_kinds_learn_too_on_the_same_budget(job, tones: Path, tmp_path: Path) -> None:
    run(job("phoneme"))
    run(job("character", objective="character"))
    run(job("part-0", objective="attention", cka={"threshold": 1.0}, aed={"layers": 1}))
    previous = tmp_path / "part-0/training_state.safetensors"
    run(job("attention", part=1, previous=previous, objective="attention", cka={"threshold": 0.0}, aed={"layers": 1}))
    assert json.loads((tmp_path / "part-0/part.json").read_text())["ended_by"] == "cka"
    for curve in (losses(tmp_path / "character"), losses(tmp_path / "part-0") + losses(tmp_path / "attention")):
        assert [step for step, _ in curve] == list(range(1, STEPS + 1)) and curve[-1][1] < curve[0][1]
    kinds = ("phoneme", "character", "attention")
    costs = {name: json.loads((tmp_path / name / "provenance.json").read_text()) for name in kinds}
    for fact in ("end_step", "audio_hours"):  # the same data, the same steps
        assert len({costs[name][fact] for name in kinds}) == 1
    flops = [costs[name]["model_flops"] for name in kinds]
    assert flops[0] == flops[1] < flops[2]  # the decoder's are counted
    assert all(costs[name]["training_cpu_seconds"] > 0 for name in kinds)
    assert load_encoder(tmp_path / "attention/encoder.safetensors").config.width == 32
    with pytest.raises(InputError, match="no CTC head in it"):
        load_ctc_head(tmp_path / "attention/encoder.safetensors")
    decoded = tmp_path / "hyps.jsonl"
    labels = load_ctc_head(tmp_path / "character/encoder.safetensors")[1]
    assert labels[:3] == ["<blk>", "<unk>", "<sos/eos>"] and "▁" in "".join(labels)
    sections = Path(job.sections("decode"))
    searches = {(1, 0.0): "greedy", (3, 0.25): "prefix beam of 3, blank penalty 0.25", (1, 100.0): "greedy, blank penalty 100"}
    for kind, ((beams, penalty), search) in product(("character", "phoneme"), searches.items()):
        changed = json.loads(sections.read_text())
        changed["decode"] |= {"num_beams": beams, "blank_penalty": penalty}
        sections.write_text(json.dumps(changed))
        encoder = tmp_path / kind / "encoder.safetensors"
        words = ["--config", str(sections), "--cuts", str(tones), "--encoder", str(encoder), "--out", str(decoded)]
        assert CliRunner().invoke(decode_encoder.app, words, catch_exceptions=False).exit_code == 0
        rows = [json.loads(line) for line in decoded.read_text().splitlines()]
        assert {row["decoding"] for row in rows} == {search}
        if kind == "character":
            assert {(row["language"], row["reference"]) for row in rows} == {("en", "tone")}  # text
            assert set("".join(row["hypothesis"] for row in rows)) <= set("abch ")
        else:
            assert {row["language"] for row in rows} == {"phonemes"}
            # No frame is a blank. A phoneme is always shown; a unit that only starts a word would be no text.
            assert penalty < 100 or all(row["hypothesis"] for row in rows)


def test_more_text_units_than_frames_are_refused_before_training(tones: Path) -> None:
    from entropy_asr.audio.batches import read_cuts
    from entropy_asr.stages.objectives import Labels, check_ctc_fits

    cuts = read_cuts([tones])
    check_ctc_fits(cuts, Labels([], lambda cut: [1, 2] * 5), 1.1)
    with pytest.raises(
        InputError, match=r"training utterances have more text units than frames at 1\.1 times the speed, as tone"
    ):
        check_ctc_fits(cuts, Labels([], lambda cut: [1] * 20), 1.1)


def test_state_of_another_config_is_set_aside(job, tmp_path: Path) -> None:
    process = start_until_saved(job("changed"), tmp_path / "state/changed")
    process.kill()
    process.wait()
    run(job("changed", pretrain={"peak_lr": 1e-4}))
    assert losses(tmp_path / "changed")[0][0] == 1
    assert [path.name[:13] for path in (tmp_path / "state").iterdir()] == ["changed.aside"]


@pytest.mark.parametrize("workers", [0, 2])
def test_one_of_two_processes_dies_then_resumed_is_uninterrupted(job, workers: int, tmp_path: Path) -> None:
    engine = {"workers": workers}
    run(job("whole", processes=2, engine=engine))
    process = start_until_saved(job("halved", processes=2, engine=engine), tmp_path / "state/halved")
    ranks = psutil.Process(process.pid).children()
    assert len(ranks) == 2
    ranks[1].kill()
    assert process.wait(timeout=120) not in (0, None)  # torchrun ends the other rank
    assert not psutil.pid_exists(ranks[0].pid)
    assert not (tmp_path / "halved/encoder.safetensors").exists()

    # Ctrl-C at two of them: both save, and torchrun does not kill one that is still saving.
    process = start_until_saved(job("ctrl-c", processes=2, engine=engine), tmp_path / "state/ctrl-c")
    ranks = psutil.Process(process.pid).children()
    before = {path.name for path in (tmp_path / "state/ctrl-c").glob("state-*")}
    signal_all(process, signal.SIGINT)
    assert process.wait(timeout=120) != 0
    assert not any(psutil.pid_exists(rank.pid) for rank in ranks)
    assert {path.name for path in (tmp_path / "state/ctrl-c").glob("state-*")} != before

    for name in ("halved", "ctrl-c"):
        run(job(name, processes=2, engine=engine))
        assert losses(tmp_path / name) == losses(tmp_path / "whole")
        assert weights(tmp_path / name)[0] == weights(tmp_path / "whole")[0]


def test_the_validation_loss_is_logged_and_leaves_training_alone(job, tmp_path: Path) -> None:
    run(job("once", engine={"validate_every": 1000}))
    process = start_until_saved(job("often", engine={"validate_every": 4, "log_every": 3}), tmp_path / "state/often")
    process.kill()
    process.wait()
    run(job("often", engine={"validate_every": 4, "log_every": 3}))
    run(job("two", processes=2, engine={"validate_every": 4}))
    assert weights(tmp_path / "often")[0] == weights(tmp_path / "once")[0]
    lines = {name: [*map(json.loads, (tmp_path / name / "train.jsonl").open())] for name in ("once", "often", "two")}
    measured = {name: {line["step"]: line["valid_loss"] for line in lines[name] if "valid_loss" in line} for name in lines}
    assert list(measured["once"]) == [STEPS] and list(measured["often"]) == list(measured["two"]) == [4, 8, 12, STEPS]
    assert measured["often"][STEPS] == measured["once"][STEPS] < measured["often"][4]


def test_it_saves_before_its_end_whatever_the_config_says(job, tmp_path: Path) -> None:
    """In time for a part that CKA ends at its first measurement, too."""
    process = start_until_saved(job("seldom", engine={"save_every": 1000}), tmp_path / "state/seldom")
    process.kill()
    process.wait()
    assert min(path.name for path in (tmp_path / "state/seldom").glob("state-*")) <= "state-000000003.safetensors"


def test_asked_to_stop_before_training_begins_it_ends_at_once(job, tmp_path: Path) -> None:
    process = subprocess.Popen(job("early"), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    while not catches(process.pid, signal.SIGTERM):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 75 and "before training began" in error and "Traceback" not in error
    assert not (tmp_path / "state/early").exists()


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for a signal."""
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(line.split()[1], 16) >> (number - 1) & 1)


def test_a_full_disk_while_saving_loses_nothing_older(job, tmp_path: Path) -> None:
    """Without loading processes: the limit that stands for a full disk would also be one on the memory that they share."""
    run(job("whole"))
    state = tmp_path / "state/full"
    process = start_until_saved(job("full"), state)
    process.kill()
    process.wait()
    before = {path.name: sha256(path) for path in state.glob("state-*.safetensors")}
    largest = min(path.stat().st_size for path in state.glob("state-*.safetensors")) // 2
    limited = subprocess.run(
        job("full"),
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest)),
    )
    assert limited.returncode not in (0, 75)
    assert "File too large" in limited.stderr
    assert {path.name: sha256(path) for path in state.glob("state-*.safetensors")} == before
    assert not list(state.glob(".*"))
    run(job("full"))
    assert losses(tmp_path / "full") == losses(tmp_path / "whole")
    assert weights(tmp_path / "full")[0] == weights(tmp_path / "whole")[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_without_finite_loss_is_kept_and_skipped_and_too_many_end_the_run(job, workers: int, tmp_path: Path) -> None:
    command = job("diverges", pretrain={"peak_lr": 1e30}, engine={"max_nonfinite": 2, "workers": workers})
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode not in (0, 75)
    assert "3 batches gave a non-finite loss (engine.max_nonfinite)" in done.stderr
    kept = sorted((tmp_path / "diverges").glob("nonfinite-*-rank0.safetensors"))
    assert len(kept) == 3
    with safe_open(kept[0], framework="pt") as file:
        assert json.loads(file.metadata()["ids"])[0].startswith("tone-")
        assert file.get_tensor("features").shape[2] == 80
    assert not (tmp_path / "diverges/encoder.safetensors").exists()


def test_a_wrong_key_stops_it_before_anything_is_loaded(job) -> None:
    command = job("wrong", encoder={"widht": 3})
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "unknown key 'encoder.widht'; did you mean 'width'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_tensorboard_shows_what_the_log_says(job, tmp_path: Path) -> None:
    process = start_until_saved(job("shown"), tmp_path / "state/shown")
    process.kill()
    process.wait()
    run(job("shown"))
    files = sorted((tmp_path / "shown/tensorboard").iterdir())
    assert len(files) == 2  # before it was killed, and after
    shown = {step: loss for path in files for step, loss in scalars(path, "loss")}  # the later file wins, as in TensorBoard
    assert shown == pytest.approx(dict(losses(tmp_path / "shown")), rel=1e-6)


def scalars(path: Path, tag: str) -> list[tuple[int, float]]:
    """(step, value) of a tag in an event file: records of length, checksum, protocol buffer, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data, at, found = path.read_bytes(), 0, []
    while at + 12 <= len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        event = Event.FromString(data[at + 12 : at + 12 + length])
        found += [(event.step, value.simple_value) for value in event.summary.value if value.tag == tag]
        at += 16 + length
    return found
