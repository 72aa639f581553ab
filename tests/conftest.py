"""Fixtures shared by all tests: one thread a process, and a tiny corpus of tones."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: the test runner starts a process a core

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of 24 utterances, each tone a `phoneme`: enough for a network to learn something in a few steps."""
    import soundfile
    from lhotse import CutSet, MonoCut, Recording, SupervisionSegment

    folder = tmp_path_factory.mktemp("tones")
    rng = np.random.default_rng(0)
    names = ["AA", "B", "CH"]
    cuts = []
    for i in range(24):
        units = rng.integers(0, 3, size=rng.integers(3, 7))
        tone = [np.sin(2 * np.pi * (300 + 500 * u) * np.arange(4000) / 16000) for u in units]
        samples = (0.3 * np.concatenate(tone) + 0.01 * rng.normal(size=4000 * len(units))).astype(np.float32)
        path = folder / f"tone-{i:02d}.flac"
        soundfile.write(path, samples, 16000)
        recording = Recording.from_file(path)
        custom = {"phonemes": [names[u] for u in units], "normalized": " ".join(names[u].lower() for u in units)}
        custom |= {"corpus_kind": "synthetic"}
        supervision = SupervisionSegment(
            path.stem,
            path.stem,
            0.0,
            recording.duration,
            text="tone",
            language="en",
            speaker=f"s{i % 3}",
            custom=custom,
        )
        cuts.append(MonoCut(path.stem, 0.0, recording.duration, 0, supervisions=[supervision], recording=recording))
    CutSet.from_cuts(cuts).to_file(folder / "tones.jsonl.gz")
    return folder / "tones.jsonl.gz"
