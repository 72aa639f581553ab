"""`entropy-asr probe`: the metrics of any encoder on any manifest, with nothing of a run but an aligner.

    entropy-asr probe --encoder whisper-base --manifest results/manifests/embedded/en-test.jsonl.gz \
        --aligner results/encoders/phoneme/seed-1/part-3/encoder.safetensors

The manifest's utterances are dealt by the hash of their ids: three fifths to fit probes on, a fifth to end the fitting, a fifth
to score.  The labels come from the aligner, not from the encoder, so that two encoders are asked the same questions.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any

from entropy_asr.analysis.alignment import SETS, align
from entropy_asr.analysis.encoder_metrics import measure
from entropy_asr.config import Features, Metrics
from entropy_asr.errors import InputError

log = logging.getLogger(__name__)
PEERS = Path("results/peers")


def deal(cuts: list) -> dict[str, list]:
    """fit, held_out and test utterances."""
    dealt: dict[str, list] = {name: [] for name in SETS}
    for cut in sorted(cuts, key=lambda cut: cut.id):
        share = int.from_bytes(hashlib.sha256(cut.id.encode()).digest()[:4], "big") / 2**32
        dealt["fit" if share < 0.6 else "held_out" if share < 0.8 else "test"].append(cut)
    return dealt


def packaged(encoder: Path) -> Path:
    """Where the rules keep a packaged recogniser that is called by its name; anything else is what it is.

    Raises:
        InputError: the packages were not fetched yet.
    """
    from entropy_asr.corpora.embedded.fetch import RECOGNISERS

    if encoder.exists() or str(encoder) not in RECOGNISERS:
        return encoder
    folder = PEERS / encoder
    if not (folder / "model.bin").is_file():
        fetch = f"python -m entropy_asr.corpora.embedded.fetch --recogniser {encoder} --output {PEERS}"
        raise InputError(f"{encoder} is not in {PEERS}; a run that has it as a peer fetches its packages, or: {fetch}")
    return folder


def probe(encoder: Path, manifest: Path, aligner: Path, metrics: Metrics, window: float = 30.0) -> dict[str, Any]:
    """NSE, PAI and CSAI of an encoder, as `analysis.encoder_metrics` writes them.

    Args:
        encoder: anything that `frames_of` reads, or the name of a packaged recogniser.
        window: seconds that a Whisper of CTranslate2 pads an utterance to.

    Raises:
        InputError: the encoder or the manifest does not exist, or the manifest is too small to be dealt.
    """
    from entropy_asr.audio.batches import read_cuts
    from entropy_asr.models.artifacts import read_header

    if not manifest.is_file():
        raise InputError(
            f"manifest {manifest} does not exist; `python -m entropy_asr.corpora.manifest` makes one of your own speech"
        )
    encoder = packaged(encoder)
    if not encoder.exists():
        raise InputError(
            f"encoder {encoder} does not exist; name a model file, a Hugging Face or CTranslate2 folder, a folder of "
            "saved frames, or whisper-base"
        )
    features = Features(num_mel_bins=read_header(aligner)["num_mel_bins"])
    sets = {}
    for name, cuts in deal(list(read_cuts([manifest]))).items():
        if not cuts:
            raise InputError(f"{manifest}: too few utterances, none is left for the part '{name}'")
        aligned, report = align(cuts, aligner, features, metrics.min_alignment_score, metrics.max_duration)
        log.info("%s: %d of %d utterances aligned", name, report["aligned"], report["utterances"])
        by_id = {item.id: item for item in aligned}
        sets[name] = ([cut for cut in cuts if cut.id in by_id], by_id)
    return measure(encoder, sets, features, metrics, window=window)[0]


def summary(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rows for people: metric, layer, language, probe, value, interval, n."""

    def number(value: float | None) -> str:
        return "undefined" if value is None else f"{value:.3f}"

    rows = []
    for item in result["nse"]:
        interval = f"{number(item['low'])} … {number(item['high'])}"
        rows.append(("NSE", str(item["layer"]), "all", "", number(item["value"]), interval, f"{item['frames']} frames"))
    for metric, unit in (("pai", "frames"), ("csai", "units")):
        for item in result[metric]:
            interval = "" if item["low"] is None else f"{number(item['low'])} … {number(item['high'])}"
            who = (metric.upper(), str(item["layer"]), item["language"], item["family"])
            rows.append((*who, number(item["value"]), interval, f"{item['samples']} {unit}"))
    return rows
