"""Experiments and stages as files: YAML of the whole schema in, one JSON file a stage out.

A stage never sees the whole experiment: the workflow writes one JSON file a stage, with just the sections that the stage
lists in ``STAGE_SECTIONS``.  A parameter of alignment can therefore not make pretraining run again, and a stage that reads
a section it did not list fails at once.

An experiment may be several files, each laid over those before it, as Snakemake's `--configfile a.yaml b.yaml` does.

    entropy-asr config check config/mini.yaml
    entropy-asr config check config/mini.yaml config/study.yaml
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from entropy_asr.config import Config
from entropy_asr.errors import InputError, did_you_mean

# What each stage may read. A change in any other section does not run the stage again.
STAGE_SECTIONS: dict[str, list[str]] = {
    "manifests": ["quality"],
    "units": ["units"],
    "tokenizer": ["llm", "prompt"],
    "small_tokenizer": ["small_llm", "prompt"],
    "feature_stats": ["features"],
    "precompute_features": ["features", "augment"],
    "lm": ["llm", "prompt", "engine"],
    "small_lm": ["small_llm", "prompt", "engine"],
    "pretrain": ["features", "augment", "encoder", "ctc", "pretrain", "cka", "engine"],
    "pretrain_attention": ["features", "augment", "encoder", "aed", "pretrain", "cka", "engine"],
    "align": ["features", "augment", "adaptor", "prompt", "align", "engine"],
    "ia_sft": ["features", "augment", "prompt", "cka", "ia_sft", "engine"],
    "joint_sft": ["features", "augment", "prompt", "cka", "ia_sft", "joint_sft", "engine"],
    # For an arm without alignment: its new adaptor, and the steps that it takes on.
    "joint_sft_alone": ["features", "augment", "adaptor", "prompt", "align", "cka", "ia_sft", "joint_sft", "engine"],
    "decode": ["features", "prompt", "decode"],
    "conditions": ["features", "hallucination"],
    "metrics": ["features", "metrics"],
}


def stage_json(config: Config, stage: str) -> str:
    """The sections of one stage as canonical JSON; the workflow tracks this text as the rule's parameters.

    A stage of the small LLM finds its section under the name `llm`: the same code makes both.
    """
    sections = {name.removeprefix("small_"): getattr(config, name).model_dump(mode="json") for name in STAGE_SECTIONS[stage]}
    return json.dumps(sections, indent=1, sort_keys=True, ensure_ascii=False)


def load_stage(path: str | Path) -> SimpleNamespace:
    """Read a stage's JSON file: a namespace of validated sections, with no others.

    Raises:
        InputError: a key is unknown or a value does not fit.
    """
    raw = json.loads(Path(path).read_text(encoding="utf-8"))
    sections = {}
    for name, values in raw.items():
        field = Config.model_fields.get(name)
        if field is None:
            raise InputError(f"{path}: unknown section '{name}'{did_you_mean(name, Config.model_fields)}")
        sections[name] = _validate(field.annotation, values, str(path), name)
    return SimpleNamespace(**sections)


def load_config(source: str | Path | dict[str, Any], *overlays: str | Path) -> Config:
    """Read and validate an experiment from YAML files, later ones laid over (or from a mapping that Snakemake has read).

    Raises:
        InputError: a file is missing or not YAML, a key is unknown (with the nearest known one), or a value does not fit.
    """
    if isinstance(source, dict):
        return _validate(Config, source, "config", "")
    merged: dict[str, Any] = {}
    for path in (source, *overlays):
        merged = _laid_over(merged, _read_yaml(Path(path)))
    return _validate(Config, merged, " + ".join(map(str, (source, *overlays))), "")


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(f"config file {path} does not exist; the ones that ship are in config/")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected a mapping of sections, found {type(raw).__name__}")
    return raw


def _laid_over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Sections key by key, lists and values whole: what Snakemake does with several config files."""
    both = {
        key: _laid_over(below[key], above[key]) for key in below.keys() & above.keys() if _are_sections(below[key], above[key])
    }
    return {**below, **above, **both}


def _are_sections(*values: Any) -> bool:
    return all(isinstance(value, dict) for value in values)


def _validate(model: Any, values: Any, where: str, prefix: str) -> Any:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_human(item, model, prefix) for item in error.errors()]
        raise InputError(f"{where}:\n" + "\n".join(f"  {line}" for line in lines)) from None


def _human(item: Any, model: type[BaseModel], prefix: str) -> str:
    path = [str(part) for part in item["loc"]]
    key = ".".join([prefix, *path] if prefix else path) or "(whole file)"
    if item["type"] == "extra_forbidden":
        return f"unknown key '{key}'{did_you_mean(path[-1], _keys_beside(model, path))}"
    if item["type"] == "missing":
        return f"key '{key}' is missing"
    message = item["msg"].removeprefix("Value error, ")
    shown = item["input"] if not isinstance(item["input"], (dict, BaseModel)) else None
    return f"{key}: {message}" + (f" (found {shown!r})" if shown is not None else "")


def _keys_beside(model: type[BaseModel], path: list[str]) -> list[str]:
    """Names that would have been allowed where the unknown key stands."""
    for part in path[:-1]:
        field = model.model_fields.get(part)
        if field is None or not isinstance(field.annotation, type) or not issubclass(field.annotation, BaseModel):
            return []
        model = field.annotation
    return list(model.model_fields)
