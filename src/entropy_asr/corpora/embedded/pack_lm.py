"""The small language model in the form that the repository ships: weights in bfloat16, tokenizer, provenance.

    python -m entropy_asr.corpora.embedded.pack_lm --lm results/text/lm --start data/lm --output results/embedded_lm

`data/lm` was made so (docs/corpus.md); `llm.pretrained: data/lm` starts from it as from any Hugging Face causal LM.

A model that went on from another one is shipped as the mean of both (Wortsman et al., 2022, arXiv 2109.01903): each has learned
what the other has not, or no longer, and two models of one descent can be averaged weight by weight.
"""

import argparse
import shutil
from pathlib import Path


def pack_lm(lm: Path, output: Path, start: Path | None = None) -> None:
    """Write the model and tokenizer of `lm` to `output`, half as large; where it went on from `start`, the mean of both."""
    import torch
    from transformers import AutoTokenizer, Qwen3ForCausalLM

    output.mkdir(parents=True, exist_ok=True)
    model = Qwen3ForCausalLM.from_pretrained(lm, dtype=torch.float32)
    if start:
        other = Qwen3ForCausalLM.from_pretrained(start, dtype=torch.float32).state_dict()
        model.load_state_dict({name: (weight + other[name]) / 2 for name, weight in model.state_dict().items()})
    model.to(torch.bfloat16).save_pretrained(output)
    AutoTokenizer.from_pretrained(lm).save_pretrained(output)
    shutil.copyfile(lm / "provenance.json", output / "provenance.json")


def main() -> None:
    """Parse the command line and pack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lm", type=Path, required=True, help="folder of a model that the lm stage trained")
    parser.add_argument("--start", type=Path, help="folder of the model that it went on from (llm.scratch.start_from)")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    pack_lm(args.lm, args.output, args.start)


if __name__ == "__main__":
    main()
