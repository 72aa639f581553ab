"""A finished run in small: two arms, three pretraining parts, with numbers that can be checked by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from entropy_asr.files import write_json, write_jsonl

HOURS = {"part-0": 1.0, "part-1": 2.5, "part-2": 4.0}  # cumulative, as pretraining writes them
TRACE = [
    {"step": 40, "cka": 0.95, "part": 0},
    {"step": 60, "cka": 0.85, "part": 0},
    {"step": 80, "cka": 0.97, "part": 1},
    {"step": 100, "cka": 0.88, "part": 1},
    {"step": 120, "cka": 0.99, "part": 2},
]

RATES = {"ours": (0.10, 0.05), "no_ia_sft": (0.15, 0.04)}
CONDITIONS = {"clean": 1, "babble_0db": 5, "silence": 20}
HEARD = np.arange(16000, dtype="int16")  # a second of audio


def provenance(path: Path, minutes: tuple[float, float], steps: int, hours: float, **facts: object) -> None:
    """A job that ran between two minutes of one hour."""
    begin, end = (f"2026-01-01T10:{int(m):02d}:{int(60 * (m % 1)):02d}+00:00" for m in minutes)
    common = {"git_commit": "a" * 40, "git_dirty": False, "python": "3.12.1", "packages": {"torch": "2.9.0"}}
    machine = {"processor": "x86_64", "cpu_threads": 1, "gpus": [], "world_size": 1}
    seconds = 60 * (minutes[1] - minutes[0])
    measured = {"started": begin, "ended": end, "wall_seconds": seconds, "peak_memory_gib": 1.5, "end_step": steps}
    measured |= {"model_flops": 1e9 * steps, "training_seconds": 2.0 * steps, "training_cpu_seconds": 3.0 * steps}
    write_json(path, {**common, "hardware": machine, **measured, "audio_hours": hours, **facts})
    lines = [
        {"step": s, "loss": 5.0 / s, "lr": 1e-3, "gradient_norm": 1.0, "time": 0.0}
        | ({"valid_loss": 6.0 / s} if s == steps else {})
        for s in range(steps - 40, steps + 1, 10)
    ]
    write_jsonl(path.with_name("train.jsonl"), lines)


def of_all(run: Path, name: str) -> list[Path]:
    """All files of the run that match a pattern."""
    return sorted(run.rglob(name))


def hypotheses(path: Path, language: str, pairs: list[tuple[str, str]]) -> None:
    rows = [{"id": f"{language}-{i:02d}", "reference": r, "hypothesis": h} for i, (r, h) in enumerate(pairs)]
    write_jsonl(path, [{**row, "language": language, "duration": 2.0, "decode_seconds": 0.2} for row in rows])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The `results` folder of the run."""
    root = tmp_path / "results"
    times = {"part-0": (0, 10), "part-1": (10, 20.5), "part-2": (20.5, 30)}
    for i, (part, minutes) in enumerate(times.items()):
        folder = root / f"encoders/phoneme/seed-1/{part}"
        provenance(folder / "provenance.json", minutes, [60, 100, 140][i], HOURS[part])
        trace = [point for point in TRACE if point["part"] <= i]
        ended_by = "last_step" if i == 2 else "cka"
        write_json(folder / "part.json", {"part": i, "end_step": [60, 100, 140][i], "ended_by": ended_by, "cka": trace})
    ours, other = root / "systems/ours/seed-1", root / "systems/no_ia_sft/seed-1"
    parameters = {"encoder": 1000, "adaptor": 200, "llm": 3000}
    provenance(ours / "align/provenance.json", (10, 14), 50, 0.5)
    provenance(ours / "ia_sft/iter-0/provenance.json", (14, 22), 50, 0.25, seed=100)
    provenance(ours / "ia_sft/iter-1/provenance.json", (22, 25), 50, 0.25, seed=101)
    provenance(ours / "ia_sft/iter-2/provenance.json", (30, 33), 50, 0.25, seed=102)
    given = {"encoder": "results/encoders/phoneme/seed-1/part-2/encoder.safetensors", "lm": "results/text/lm/lm.json"}
    begun = {"previous": "results/systems/ours/seed-1/ia_sft/iter-2/model.safetensors"}
    provenance(ours / "joint_sft/provenance.json", (33, 40), 50, 0.75, parameters=parameters, inputs=given | begun)
    provenance(other / "align/provenance.json", (30, 34), 50, 0.5)
    begun = {"previous": "results/systems/no_ia_sft/seed-1/align/model.safetensors"}
    provenance(other / "joint_sft/provenance.json", (34, 50), 200, 1.5, parameters=parameters, inputs=given | begun)

    english = [("play jazz", "play jazz")] * 3 + [("call my mother", "call mother now")] * 2 + [("stop it", "stop it")]
    hypotheses(root / "decode/ours/seed-1/english.jsonl", "en", english)
    other_words = [*english[:3], ("call my mother", "call my mother"), ("call my mother", "call my mother"), ("stop it", "stop")]
    hypotheses(root / "decode/no_ia_sft/seed-1/english.jsonl", "en", other_words)
    hypotheses(root / "decode/ours/seed-1/mandarin.jsonl", "zh", [("打开空调", "打开空条")] * 6 + [("你好", "你好")])
    counts = {"substitutions": 1, "deletions": 2, "insertions": 3, "reference_tokens": 60, "utterances": 6}
    for system, rates in {**RATES, "encoder": (0.07, 0.06)}.items():
        for test_set, metric, rate in zip(("english", "mandarin"), ("WER", "CER"), rates, strict=True):
            score = {"metric": "PER" if system == "encoder" else metric, "value": rate, "rtf": 0.1, "decoding": "greedy"}
            score |= {"low": rate - 0.02, "high": rate + 0.03}
            score["normalizer_version"] = None if system == "encoder" else "1"
            if system == "ours":
                score["per_domain"] = {"media": {"value": 0.125, "errors": 5, "reference_tokens": 40, "utterances": 4}}
                score["per_speaker"] = {"af_nova": {"value": 0.1, "errors": 6, "reference_tokens": 60, "utterances": 6}}
            write_json(root / f"metrics/score/{system}/seed-1/{test_set}.json", {**score, **counts})
    quality = {"split": "en-test", "hours": 0.25, "utterances": 300, "speakers": 4, "excluded": 2}
    quality |= {"excluded_by_reason": {"duplicate_across_splits": 2}, "corpus_kind": "synthetic"}
    write_json(root / "manifests/embedded/en-test.quality.json", quality)
    significance = "test_set,against,p_bootstrap_holm\nenglish,no_ia_sft,0.25\nmandarin,no_ia_sft,0.004\n"
    (root / "tables").mkdir()
    (root / "tables/significance.csv").write_text(significance)
    columns = "arm,seed,test_set,condition,utterances,hallucinations,rate_percent,low_percent,high_percent,corpus_kind"
    counted = [f"{arm},1,english,{c},50,{n},{2 * n},{n},{3 * n},synthetic" for arm in RATES for c, n in CONDITIONS.items()]
    (root / "tables/hallucination.csv").write_text("\n".join([columns, *counted]) + "\n")
    audio = root / "audio/english.flac"
    audio.parent.mkdir()
    soundfile.write(audio, HEARD, 16000, subtype="PCM_16")
    example = {"arm": "ours", "test_set": "english", "condition": "silence", "id": "u1@silence", "reference": ""}
    example |= {"hypothesis": "thank you", "corpus_kind": "synthetic", "audio": str(audio), "audio_start": 0.5, "duration": 0.25}
    write_jsonl(root / "metrics/hallucination/examples.jsonl", [example])
    write_json(root / "config/pretrain.json", {"cka": {"threshold": 0.9, "warmup_steps": 20}})
    (root / "config/resolved.yaml").write_text(json.dumps({"name": "toy"}))
    return root
