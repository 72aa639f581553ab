"""What loading processes are given travels by pickle where they are not forked: no lambdas, no closures."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from repository import REPO
from transformers import AutoTokenizer

from entropy_asr.audio.batches import Position, TrainingBatches, read_cuts
from entropy_asr.config import Augment, Features, Prompt, ScratchLM
from entropy_asr.stages.objectives import read_labels
from entropy_asr.stages.sft import Transcripts, llm_positions
from entropy_asr.stages.text_batches import TextBatches
from entropy_asr.text.phonemes import write_tokens
from entropy_asr.text.units import train_units


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_loading_processes_that_get_everything_by_pickle_give_the_same(method: str, tones: Path, tmp_path: Path) -> None:
    """As Python 3.14 starts processes."""
    source = TrainingBatches(
        read_cuts([tones]), read_labels("phoneme", write_tokens(tmp_path / "tokens.txt")).encode, np.zeros(80, np.float32),
        Features(), Augment(), 2, max_duration=6.0, buckets=2, seed=1,
    )  # fmt: skip
    here = list(islice(source.loader(Position(), workers=0), 2))
    default = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        with closing(source.loader(Position(), workers=1)) as loader:
            there = list(islice(loader, 2))
    finally:
        multiprocessing.set_start_method(default, force=True)
    assert all(a.features.equal(b.features) and a.targets == b.targets for a, b in zip(here, there, strict=True))


def test_what_every_stage_gives_its_loading_processes_works_in_another(tones: Path, tmp_path: Path) -> None:
    train_units(["aa b ch", "ch aa"], word_pieces=3).save(str(tmp_path / "units.json"))
    tokenizer = AutoTokenizer.from_pretrained(REPO / "data/lm")
    text = TextBatches([("turn on the light", "en")], tokenizer, Prompt(), ScratchLM(), seed=1)
    encoders = [read_labels("character", tmp_path / "units.json").encode, Transcripts(tokenizer.backend_tokenizer)]
    cut = read_cuts([tones])[0]
    positions = partial(llm_positions, prompt=3, stride=2)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as another:
        for encode in encoders:
            assert another.submit(encode, cut).result() == encode(cut)
        assert another.submit(positions, 100, 5).result() == positions(100, 5)
        assert another.submit(text._row, 0, 0).result() == text._row(0, 0)
