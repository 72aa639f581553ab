"""EER, LER and the allocation ratio of a finished system: the encoder's share of the work, and the LLM's.

    python -m entropy_asr.analysis.system_metrics --config results/config/metrics.json --alignment results/metrics/alignment \
        --system results/systems/ours/seed-1/joint_sft --lm results/text/lm --manifests … --out ours.json

H0 is of the LLM that the arm started from, asked with the same prompt and no speech; H1 of a linear probe on the system's own
encoder (its last layer, pooled over the span in which a token is said) that corrects H0's distribution; H2 of the system.  All
three score the same tokens: those of the test transcripts that are pronounced; the end token is not said and not counted.

The probe tells apart the CLASSES most frequent tokens of the transcripts that it is fitted on; all others share one class, in
which the LLM's own distribution holds.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from entropy_asr.analysis.alignment import FIRST_CENTRE, MODEL_FRAMES, SETS, Alignment
from entropy_asr.analysis.allocation import entropy_allocation
from entropy_asr.analysis.encoder_metrics import read_sets
from entropy_asr.analysis.probes import HashSample, ProbeOptions, Samples, probe_scores
from entropy_asr.config import Features, Metrics
from entropy_asr.errors import friendly_exit
from entropy_asr.models.speech_llm import SpeechLLM

log = logging.getLogger(__name__)
CLASSES = 4000


def token_times(text: str, offsets: list[tuple[int, int]], alignment: Alignment) -> list[tuple[float, float] | None]:
    """Start and end of each token, seconds; None where it holds nothing that is said.

    A token that is a part of a word gets its share of the word's time, by letters.
    """
    pieces, place = [], 0
    for unit in alignment.units:
        begin = text.index(unit.text, place)
        place = begin + len(unit.text)
        pieces.append((begin, place, alignment.starts[unit.first], alignment.ends[unit.last]))
    found: list[tuple[float, float] | None] = []
    for first, last in offsets:
        touched = [piece for piece in pieces if piece[0] < last and first < piece[1]]
        if not touched:
            found.append(None)
            continue
        (a, b, start, end), (c, d, begin, stop) = touched[0], touched[-1]
        found.append(
            (start + (max(first, a) - a) / (b - a) * (end - start), begin + (min(last, d) - c) / (d - c) * (stop - begin))
        )
    return found


def pooled(frames: Tensor, times: list[tuple[float, float]], frame_seconds: float) -> Tensor:
    """Mean of the (T, d) frames in each span, (tokens, d); of a span without a frame, the nearest one."""
    centres = (MODEL_FRAMES * np.arange(len(frames)) + FIRST_CENTRE) * frame_seconds
    rows = []
    for start, end in times:
        inside = np.flatnonzero((centres >= start) & (centres < end))
        inside = inside if len(inside) else np.array([np.abs(centres - (start + end) / 2).argmin()])
        rows.append(frames[torch.from_numpy(inside)].mean(0))
    return torch.stack(rows)


class TokenScorer:
    """Scores tokens under the prior and the system, and keeps the encoder's frames at them."""

    def __init__(self, system: SpeechLLM, prior: SpeechLLM, tokenizer, classes: list[int]) -> None:
        self.system, self.prior = system, prior
        self.encode = tokenizer.backend_tokenizer.encode
        self.classes = torch.tensor(classes)
        self.place = {token: i for i, token in enumerate(classes)}

    @torch.inference_mode()
    def batch(
        self, batch: list, mels: Tensor, lens: Tensor, aligned: dict, features: Features
    ) -> Iterator[tuple[str, Tensor, list[tuple]]]:
        """Of each utterance: id, (tokens, d + classes + 1) frames and prior, (class, H0, H2, rest, language) of each token."""
        encoded = [self.encode(cut.supervisions[0].custom["normalized"], add_special_tokens=False) for cut in batch]
        ids = [item.ids for item in encoded]
        encoder_out, out_lens = self.system.encoder(mels, lens)
        embedded, embedded_lens = self.system.adaptor(encoder_out, out_lens)
        heard, labels = self.system.answer_logits(embedded, embedded_lens, ids)
        alone, _ = self.prior.answer_logits(embedded, torch.zeros_like(embedded_lens), ids)
        rows = torch.arange(len(labels), device=labels.device)
        system = -heard.log_softmax(-1)[rows, labels]
        alone = alone.log_softmax(-1)
        prior = -alone[rows, labels]
        others = alone.clone()
        others[:, self.classes] = -torch.inf
        weights = torch.cat([alone[:, self.classes], others.logsumexp(-1, keepdim=True)], 1)
        start = 0
        for place, (cut, item) in enumerate(zip(batch, encoded, strict=True)):
            here = slice(start, start + len(item.ids))
            start += len(item.ids) + 1  # the end token
            text, language = cut.supervisions[0].custom["normalized"], cut.supervisions[0].language
            times = token_times(text, item.offsets, aligned[cut.id])
            said = torch.tensor([time is not None for time in times])
            if not said.any():
                continue
            frames = encoder_out[place, : int(out_lens[place])].float().cpu()
            vectors = pooled(frames, [time for time in times if time], features.frame_shift)
            weight = weights[here].cpu()[said]
            columns = (values[here].cpu()[said].tolist() for values in (labels, prior, system))
            facts = []
            for token, h0, h2, row in zip(*columns, weight, strict=True):
                label = self.place.get(token, len(self.classes))
                facts.append((label, h0, h2, h0 + row[label].item(), language))
            yield cut.id, torch.cat([vectors, weight], 1), facts


def _samples(sample: HashSample, classes: int) -> Samples:
    inputs, facts, utterances = sample.arrays()
    labels = torch.tensor([fact[0] for fact in facts])
    return Samples(inputs[:, :-classes], labels, utterances, inputs[:, -classes:], torch.arange(len(labels)))


def measure(
    system: SpeechLLM, prior: SpeechLLM, tokenizer, sets: dict, features: Features, metrics: Metrics
) -> dict[str, dict[str, Any]]:
    """Allocation over all test tokens, and in each language."""
    from entropy_asr.audio.batches import evaluation_batches

    encode = tokenizer.backend_tokenizer.encode
    texts = [cut.supervisions[0].custom["normalized"] for cut in sets["fit"][0]]
    counts = Counter(i for text in texts for i in encode(text, add_special_tokens=False).ids)
    scorer = TokenScorer(system, prior, tokenizer, sorted(token for token, _ in counts.most_common(CLASSES)))
    device = next(system.parameters()).device
    kept = {name: HashSample(metrics.units) for name in SETS}
    for name, (cuts, aligned) in sets.items():
        for batch, mels, lens in evaluation_batches(cuts, features, metrics.max_duration):
            for utterance, vectors, facts in scorer.batch(batch, mels.to(device), lens, aligned, features):
                kept[name].update(utterance, vectors, facts)
    classes = len(scorer.classes) + 1
    options = ProbeOptions("linear", metrics.probe_seeds, metrics.max_epochs, metrics.mlp_hidden, metrics.resamples)
    train, held_out, test = (_samples(kept[name], classes) for name in SETS)
    (scores,) = probe_scores(train, held_out, test, options, with_bias=False)
    facts = kept["test"].arrays()[1]
    h0, h2, rest = (torch.tensor([fact[i] for fact in facts], dtype=torch.float64) for i in (1, 2, 3))
    h1 = scores.given.mean(0) + rest  # what a token costs within its class; only that of all others is not 0
    found = {}
    for language in ("all", *sorted({fact[4] for fact in facts})):
        chosen = torch.tensor([language in ("all", fact[4]) for fact in facts])
        allocation = entropy_allocation(h0[chosen], h1[chosen], h2[chosen], scores.utterances[chosen], metrics.resamples)
        control = entropy_allocation(
            h0[chosen], (scores.control + rest)[chosen], h2[chosen], scores.utterances[chosen], metrics.resamples
        )
        found[language] = asdict(allocation) | {"control_eer": control.eer, "control_eer_interval": control.eer_interval}
    return found


def load(system: Path, lm: Path) -> tuple[SpeechLLM, SpeechLLM, PreTrainedTokenizerBase]:
    """A finished system, the LLM that it started from with the same prompt, and their tokenizer."""
    from entropy_asr.models.artifacts import load_llm, load_system
    from entropy_asr.training.distributed import choose_device

    model, tokenizer = load_system(system)
    prior = SpeechLLM(model.encoder, model.adaptor, load_llm(lm)[0], model.prompt)
    return model.to(choose_device()).eval(), prior.to(choose_device()).eval(), tokenizer


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@friendly_exit()
def main(
    config: Path = typer.Option(..., help="sections of this stage"),
    system: Path = typer.Option(..., help="folder of a joint SFT"),
    lm: Path = typer.Option(..., help="folder of the language model that it started from"),
    manifests: list[Path] = typer.Option(..., help="all manifests that the alignment took utterances from"),
    alignment: Path = typer.Option(..., help="folder of the reference alignment"),
    out: Path = typer.Option(..., help="metrics, JSON"),
) -> None:
    """Measure one system."""
    from entropy_asr.config_files import load_stage
    from entropy_asr.files import sha256, write_json
    from entropy_asr.training.loop import configure_logging

    configure_logging()
    settings = load_stage(config)
    sets = read_sets(manifests, alignment)
    found = measure(*load(system, lm), sets, settings.features, settings.metrics)
    kinds = sorted({cut.supervisions[0].custom.get("corpus_kind", "unknown") for cut in sets["test"][0]})
    facts = {"system": str(system), "prior": str(lm), "corpus_kind": " and ".join(kinds)}
    hashes = {"system": sha256(system / "model.safetensors"), "alignment": sha256(alignment / "test.jsonl.gz")}
    write_json(out, {**facts, "sha256": hashes, "allocation": found})
    for language, item in found.items():
        log.info("%s: H0 %.3f, H1 %.3f, H2 %.3f nats/token", language, item["prior"], item["probe"], item["system"])


if __name__ == "__main__":
    app()
