"""The language model that the recogniser starts from.

    python -m entropy_asr.stages.lm --config results/config/lm.json --text data/embedded/lm_text.jsonl.gz \
        --tokenizer results/text/tokenizer --seed 1 --running … --out results/text/lm

With `llm.pretrained` (Qwen3-1.7B at paper scale; the small one of `data/lm` on a laptop) the artifact is just its
name, or where its folder is.  Else a Qwen3-architecture model of a few million parameters is trained on the corpus's text, in
the same chat format: so was the small one of `data/lm` (docs/corpus.md).  A share of its samples has the phonemes
of the sentence in the user turn [O]: a web-scale LLM has read dictionaries and pinyin, and knows how words sound; a small one
has to be told.  No audio is used, and no test sentence.
"""

import hashlib
import os
from pathlib import Path

import typer

from entropy_asr.errors import InputError, friendly_exit
from entropy_asr.signals import leave_when_asked
from entropy_asr.stages.options import ConfigFile, Out, Running, Seed

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
@friendly_exit()
def main(
    config: ConfigFile,
    running: Running,
    out: Out,
    text: Path | None = typer.Option(None, help="JSONL(.gz) of {language, text}"),
    tokenizer: Path | None = typer.Option(None, help="folder of the tokenizer"),
    folder: Path | None = typer.Option(None, help="llm.pretrained, where it is a local folder"),
    seed: Seed = 1,
) -> None:
    """Train the small language model, or name the pretrained one."""
    leave_when_asked()
    from entropy_asr.config_files import load_stage
    from entropy_asr.files import sha256, write_json
    from entropy_asr.provenance import Provenance

    settings = load_stage(config)
    named, facts = settings.llm.pretrained, {}
    if named is None:
        if text is None or tokenizer is None:
            raise InputError("llm.pretrained is null: a small LM is trained, which needs data.lm_text and the tokenizer")
        provenance = Provenance("lm", config, {"text": text, "tokenizer": tokenizer / "tokenizer.json"}, seed=seed)
        facts = _train(settings, text, tokenizer, provenance.key, running, out, seed)
        weights = {name: sha256(out / name) for name in ("config.json", "model.safetensors", "tokenizer.json")}
    elif folder is None:
        provenance, weights = Provenance("lm", config, {}), None
    else:
        files = {path.name: path for path in sorted(folder.iterdir()) if path.is_file() and not path.name.startswith(".")}
        provenance = Provenance("lm", config, files)
        weights = {name: provenance.hashes[name] for name in files}
        named = os.path.relpath(folder, out)
    # The hash makes this file another one when the model is another: it stands for it as an input of later stages.
    write_json(out / "lm.json", {"pretrained": named, "revision": settings.llm.revision, "sha256": weights})
    provenance.write(out / "provenance.json", **facts)
    if settings.llm.pretrained is None:
        from entropy_asr.training import distributed

        distributed.stop()


def hold_out(sentences: list[tuple[str, str]], most: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Sentences to train on, and at most a twentieth for the validation loss, chosen by their hash: a sentence is on one side."""
    by_hash = sorted(set(sentences), key=lambda sentence: hashlib.sha256(repr(sentence).encode()).digest())
    held_out = by_hash[: min(most, len(by_hash) // 20)]
    kept = set(sentences) - set(held_out)
    return [sentence for sentence in sentences if sentence in kept], held_out


def _train(settings, text: Path, tokenizer_folder: Path, key: str, running: Path, out: Path, seed: int) -> dict:
    import torch
    from transformers import AutoTokenizer, Qwen3ForCausalLM

    from entropy_asr.config import Schedule
    from entropy_asr.models.scratch_lm import scratch_lm_config
    from entropy_asr.stages.text_batches import TextBatches, TextLoss
    from entropy_asr.text.tokenizer import read_sentences
    from entropy_asr.training import distributed
    from entropy_asr.training.engine import Engine
    from entropy_asr.training.loop import Trainer, configure_logging
    from entropy_asr.training.state import RunningState
    from entropy_asr.training.validation import Validation

    configure_logging()
    device = distributed.start()
    scratch = settings.llm.scratch
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    torch.manual_seed(seed)
    token_ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = Qwen3ForCausalLM(scratch_lm_config(scratch, len(tokenizer), **token_ids))
    sentences, held_out = hold_out(read_sentences(text, scratch.max_sentences), settings.engine.validate_utterances)
    batches = TextBatches(sentences, tokenizer, settings.prompt, scratch, seed)
    schedule = Schedule(
        optimiser=scratch.optimiser,
        steps=scratch.steps,
        peak_lr=scratch.peak_lr,
        warmup_steps=scratch.warmup_steps,
        accumulation=1,
    )
    engine = Engine(TextLoss(model), schedule, settings.engine, device)
    validation = None
    if held_out:
        held_out_batches = TextBatches(held_out, tokenizer, settings.prompt, scratch, seed).all()
        validation = Validation(TextLoss(model), held_out_batches, device)
    trainer = Trainer(engine, batches, RunningState(running, key), out / "train.jsonl", "lm", validation=validation)
    trainer.resume()
    trainer.run()
    engine.restore_full_precision()
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    trainer.state.clear()
    return {"seed": seed, **trainer.cost(), "parameters": sum(p.numel() for p in model.parameters())}


if __name__ == "__main__":
    app()
