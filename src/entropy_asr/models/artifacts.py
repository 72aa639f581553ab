"""Models as files: one safetensors file, weights by name, the configuration as JSON in its header.

A file is complete: `load_encoder(path)` and `load_system(folder)` need nothing else.  Weights that a model shares between two
places (tied embeddings) are stored once.  A missing or a surplus weight is an error that names it.  transformers is imported
where an LLM is: it takes seconds, and half of the jobs are an encoder's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from entropy_asr.config import Adaptor as AdaptorConfig
from entropy_asr.config import Encoder, Prompt
from entropy_asr.errors import InputError
from entropy_asr.files import read_json
from entropy_asr.models.adaptor import Adaptor
from entropy_asr.models.conformer import ConformerEncoder
from entropy_asr.models.ctc import CtcHead
from entropy_asr.training.engine import write_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from entropy_asr.models.speech_llm import SpeechLLM


def _weights(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters (a tied one once) and persistent buffers."""
    persistent = module.state_dict().keys()
    return dict(module.named_parameters()) | {name: buffer for name, buffer in module.named_buffers() if name in persistent}


def save_modules(path: Path, modules: dict[str, nn.Module], header: dict[str, Any]) -> None:
    """Write modules under their names as prefixes; `header` becomes JSON in the file's metadata."""
    tensors = {f"{prefix}.{name}": tensor for prefix, module in modules.items() for name, tensor in _weights(module).items()}
    write_tensors(path, tensors, {"header": json.dumps(header, sort_keys=True)})


def read_header(path: Path) -> dict[str, Any]:
    """The configuration in a file's header.

    Raises:
        InputError: no such file, or not one of ours.
    """
    if not path.is_file():
        raise InputError(f"model file {path} does not exist; run the rule that makes it")
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {})["header"])
    except (SafetensorError, KeyError) as error:
        raise InputError(f"{path} is not a model file of this project ({error}); make it again") from None


@torch.no_grad()
def load_into(path: Path, prefix: str, module: nn.Module) -> None:
    """Fill a module from a file; every weight must be there, and none may be left over."""
    weights = _weights(module)
    with safe_open(path, framework="pt") as file:
        stored = {key.removeprefix(f"{prefix}.") for key in file.keys() if key.startswith(f"{prefix}.")}  # noqa: SIM118
        if stored != weights.keys():
            raise InputError(f"{path}: weights of '{prefix}' do not fit: {sorted(stored ^ weights.keys())[:4]} on one side only")
        for name, tensor in weights.items():
            tensor.copy_(file.get_tensor(f"{prefix}.{name}"))


def load_encoder(path: Path) -> ConformerEncoder:
    """The encoder of any file that holds one (`encoder.safetensors`, or a whole system)."""
    header = read_header(path)
    encoder = ConformerEncoder(Encoder(**header["encoder"]), header["num_mel_bins"])
    load_into(path, "encoder", encoder)
    return encoder


def load_ctc_head(path: Path) -> tuple[CtcHead, list[str]]:
    """The CTC head of a pretraining part, and the labels that its outputs stand for: phonemes, or text units.

    Raises:
        InputError: the encoder was pretrained without one.
    """
    header = read_header(path)
    if "head_layers" not in header:
        raise InputError(
            f"{path}: no CTC head in it (pretraining: {header.get('objective', 'none')}); name a part of another kind"
        )
    head = CtcHead(header["encoder"]["width"], len(header["labels"]), header["head_layers"])
    load_into(path, "head", head)
    return head, header["labels"]


def load_adaptor(path: Path) -> Adaptor:
    """The adaptor of any file that holds one."""
    header = read_header(path)
    adaptor = Adaptor(AdaptorConfig(**header["adaptor"]), header["encoder_width"], header["llm_width"])
    load_into(path, "adaptor", adaptor)
    return adaptor


def load_llm(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The language model that `lm.json` names: the small one beside it, or a pretrained one (a folder as seen from there)."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    named = read_json(folder / "lm.json")
    source, revision = named["pretrained"] or ".", named["revision"] or "main"
    if (folder / source).is_dir():
        source = str(folder / source)
    model = AutoModelForCausalLM.from_pretrained(source, revision=revision, dtype=torch.float32)
    return model, AutoTokenizer.from_pretrained(source, revision=revision)


def save_system(
    folder: Path, system: SpeechLLM, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, modules: tuple[str, ...]
) -> None:
    """Write `model.safetensors` with the named modules; with all three, the tokenizer too, so that the folder is complete."""
    header = {
        "encoder": system.encoder.config.model_dump(),
        "num_mel_bins": system.encoder.num_mel_bins,
        "adaptor": system.adaptor.config.model_dump(),
        "encoder_width": system.encoder.config.width,
        "llm_width": system.llm.config.hidden_size,
        "llm": system.llm.config.to_dict(),
        "prompt": prompt.model_dump(),
    }
    if len(modules) == 3:
        tokenizer.save_pretrained(folder / "tokenizer")
    save_modules(folder / "model.safetensors", {name: getattr(system, name) for name in modules}, header)


def load_system(folder: Path) -> tuple[SpeechLLM, PreTrainedTokenizerBase]:
    """A whole speech recogniser from the folder of a joint SFT, in evaluation mode."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from entropy_asr.models.speech_llm import PromptIds, SpeechLLM

    path = Path(folder) / "model.safetensors"
    header = read_header(path)
    tokenizer = AutoTokenizer.from_pretrained(Path(folder) / "tokenizer")
    llm_config = dict(header["llm"])
    llm = AutoModelForCausalLM.from_config(AutoConfig.for_model(llm_config.pop("model_type"), **llm_config), dtype=torch.float32)
    load_into(path, "llm", llm)
    system = SpeechLLM(
        load_encoder(path), load_adaptor(path), llm, PromptIds.from_tokenizer(tokenizer, Prompt(**header["prompt"]))
    )
    return system.eval(), tokenizer
