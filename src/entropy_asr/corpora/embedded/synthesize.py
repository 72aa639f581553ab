"""Read the plan aloud: one Ogg-Opus file an utterance. Interrupted, it goes on where it stopped.

    python -m entropy_asr.corpora.embedded.synthesize --plan plan.jsonl --assets assets --output opus --workers 2

The files follow the order of the plan, so that what exists at any time is a small corpus with all its splits.
"""

import argparse
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from entropy_asr.corpora.embedded import kokoro, opus
from entropy_asr.files import read_jsonl

EDGE_SECONDS = 0.12  # silence kept before and after the speech
SILENCE = 0.01  # of the peak
LEVEL = 0.07  # root mean square of every file
PEAK = 0.95


def finish(audio: np.ndarray) -> np.ndarray:
    """Trim the silence at both ends, resample to 16 kHz, bring to one level."""
    from scipy.signal import resample_poly

    loud = np.flatnonzero(np.abs(audio) > SILENCE * np.abs(audio).max())
    edge = int(EDGE_SECONDS * kokoro.SAMPLE_RATE)
    speech = audio[max(0, loud[0] - edge) : loud[-1] + edge]
    speech = resample_poly(speech, 2, 3).astype(np.float32)
    speech *= LEVEL / np.sqrt(np.mean(speech**2))
    return np.clip(speech, -PEAK, PEAK)


_model: kokoro.Kokoro | None = None


def _start(assets: Path) -> None:
    global _model
    _model = kokoro.Kokoro(assets)


def _read(job: tuple[dict[str, Any], Path]) -> float:
    """Synthesise one utterance; the file appears only when it is whole. Returns its seconds."""
    utterance, path = job
    assert _model is not None
    audio = finish(_model(utterance["text"], utterance["language"], utterance["speaker"], utterance["speed"]))
    part = path.with_suffix(".part")
    part.write_bytes(opus.encode(audio))
    os.replace(part, path)
    return len(audio) / opus.SAMPLE_RATE


def synthesize(plan: Path, assets: Path, output: Path, workers: int) -> None:
    """Make every file of the plan that is missing in `output`."""
    output.mkdir(parents=True, exist_ok=True)
    utterances = list(read_jsonl(plan))
    jobs = [(u, output / f"{u['id']}.opus") for u in utterances if not (output / f"{u['id']}.opus").exists()]
    done, seconds, start = len(utterances) - len(jobs), 0.0, time.monotonic()
    with multiprocessing.get_context("spawn").Pool(workers, _start, (assets,)) as pool:
        for number, length in enumerate(pool.imap_unordered(_read, jobs), 1):
            seconds += length
            if number % 50 == 0 or number == len(jobs):
                wall = time.monotonic() - start
                left = wall / number * (len(jobs) - number) / 60
                print(
                    f"{done + number}/{len(utterances)} utterances, {seconds / 60:.1f} minutes of audio in "
                    f"{wall / 60:.1f}, about {left:.0f} minutes left",
                    flush=True,
                )


def main() -> None:
    """Parse the command line and synthesise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--assets", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="folder of the Opus files")
    parser.add_argument("--workers", type=int, default=2, help="processes, one thread each")
    args = parser.parse_args()
    synthesize(args.plan, args.assets, args.output, args.workers)


if __name__ == "__main__":
    main()
