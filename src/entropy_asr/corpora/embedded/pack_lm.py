"""The small language model in the form that the repository ships: weights in bfloat16, tokenizer, provenance.

    python -m entropy_asr.corpora.embedded.pack_lm --lm results/text/lm --output results/embedded_lm

`data/lm` was made so (docs/corpus.md); `llm.pretrained: data/lm` starts from it as from any Hugging Face causal LM.
"""

import argparse
import shutil
from pathlib import Path


def pack_lm(lm: Path, output: Path) -> None:
    """Write the model and tokenizer of `lm` to `output`, half as large."""
    import torch
    from transformers import AutoTokenizer, Qwen3ForCausalLM

    output.mkdir(parents=True, exist_ok=True)
    Qwen3ForCausalLM.from_pretrained(lm, dtype=torch.bfloat16).save_pretrained(output)
    AutoTokenizer.from_pretrained(lm).save_pretrained(output)
    shutil.copyfile(lm / "provenance.json", output / "provenance.json")


def main() -> None:
    """Parse the command line and pack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lm", type=Path, required=True, help="folder of a model that the lm stage trained")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    pack_lm(args.lm, args.output)


if __name__ == "__main__":
    main()
