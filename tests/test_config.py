"""The schema says what is wrong in words, its generated pages are up to date, and the configs that ship are valid."""

import json
from pathlib import Path

import pytest
import yaml
from repository import REPO

from entropy_asr.config import RECIPES, Config
from entropy_asr.config_docs import json_schema, reference_page
from entropy_asr.config_files import STAGE_SECTIONS, load_config, load_stage, stage_json, stage_names
from entropy_asr.errors import InputError
from entropy_asr.plan import parameters

STUDY = (REPO / "config/mini.yaml", REPO / "config/study.yaml")
CONFIGS = [(path,) for path in sorted((REPO / "config").glob("*.yaml")) if path != STUDY[-1]] + [STUDY]


def refusal(source: dict | Path) -> str:
    with pytest.raises(InputError) as error:
        load_config(source)
    return str(error.value)


def test_unknown_key_names_the_nearest_known_one() -> None:
    assert "unknown key 'pretrian'; did you mean 'pretrain'?" in refusal({"pretrian": {}})


def test_unknown_nested_key_is_suggested_from_its_own_section() -> None:
    message = refusal({"llm": {"scratch": {"hiden_size": 64}}})
    assert "unknown key 'llm.scratch.hiden_size'; did you mean 'hidden_size'?" in message


def test_wrong_values_are_named_with_what_was_found() -> None:
    message = refusal({"engine": {"precision": "fp64"}, "cka": {"threshold": 1.5}, "align": {"peak_lr": 1.0}})
    assert "engine.precision:" in message and "'fp64'" in message
    assert "cka.threshold:" in message and "1.5" in message
    assert "key 'align.steps' is missing" in message


@pytest.mark.parametrize("stage", [{"llm": {"scratch": {"steps": 50}}}, {"align": {"steps": 50, "peak_lr": 1e-3}}])
def test_warm_up_ends_before_the_stage(stage: dict) -> None:
    assert "must be below steps 50" in refusal(stage)


def test_an_adaptor_leaves_no_frame_out() -> None:
    assert "stride 4 must not be above stack 2: frames would be left out" in refusal({"adaptor": {"stack": 2}})


def test_a_split_must_be_one_of_a_corpus() -> None:
    corpora = {"toy": {"path": "toy", "splits": ["train"]}}
    message = refusal({"data": {"corpora": corpora, "train": ["toy/trian"]}})
    assert "split 'toy/trian' is not in data.corpora; did you mean 'toy/train'?" in message


def test_speed_perturbation_stays_within_what_quality_checks() -> None:
    message = refusal({"augment": {"speed_factors": [0.9, 1.3]}})
    assert "speed_factors go up to 1.3, quality.max_speed is 1.1" in message


def test_missing_file_and_broken_yaml(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    assert "not valid YAML" in refusal(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    assert "expected a mapping" in refusal(tmp_path / "list.yaml")


def test_a_stage_reads_its_sections_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "align.json"
    path.write_text(stage_json(Config(), "align"))
    settings = load_stage(path)
    assert settings.align == Config().align
    assert not hasattr(settings, "pretrain")


def test_a_stage_refuses_an_unknown_section_and_an_unknown_key(tmp_path: Path) -> None:
    path = tmp_path / "align.json"
    path.write_text(json.dumps({"engin": {}}))
    with pytest.raises(InputError, match=r"unknown section 'engin'; did you mean 'engine'\?"):
        load_stage(path)
    path.write_text(json.dumps({"engine": {"bukets": 3}}))
    with pytest.raises(InputError, match=r"unknown key 'engine.bukets'; did you mean 'buckets'\?"):
        load_stage(path)


@pytest.mark.parametrize("stage", STAGE_SECTIONS)
def test_stages_name_real_sections(stage: str) -> None:
    assert set(STAGE_SECTIONS[stage]) <= set(Config.model_fields)


def test_a_parameter_of_alignment_changes_no_other_stage() -> None:
    changed = Config(align=Config().align.model_copy(update={"peak_lr": 0.5}))
    different = {stage for stage in stage_names(Config()) if stage_json(changed, stage) != stage_json(Config(), stage)}
    assert different == {"align", "joint_sft_alone"}  # the latter takes alignment's steps on, where an arm has none


def test_a_new_arm_is_a_few_lines(tmp_path: Path) -> None:
    config = Config(arms=["ours", "mine"], recipes={"mine": {"ia_sft": False, "train_encoder": False}})
    assert config.arms_with("align") == ["ours", "mine"] and config.arms_with("ia_sft") == ["ours"]
    assert Config(arms=["frozen_encoder", "joint_only"]).arms_with("ia_sft") == ["ours"]
    assert not config.recipe("mine").train_encoder and config.recipe("mine").align and config.recipe("ours").ia_sft
    assert "arm 'our' is not known; did you mean 'ours'?" in refusal({"arms": ["our"]})
    assert "ia_sft needs align" in refusal({"recipes": {"mine": {"align": False}}})
    assert "no such stages of its own to share" in refusal({"recipes": {"mine": {"shares": "frozen_encoder"}}})
    assert "no such stages of its own to share" in refusal({"recipes": {"mine": {"shares": "no_ia_sft"}}})
    assert "'ours' is taken" in refusal({"recipes": {"ours": {"ia_sft": False}}})


@pytest.mark.parametrize("paths", CONFIGS, ids=lambda paths: paths[-1].stem)
def test_shipped_configs_are_valid(paths: tuple[Path, ...]) -> None:
    config = load_config(*paths)
    named = yaml.safe_load(paths[-1].read_text()).get("name")
    # Those without a name add rows to the experiment below them, or say where it runs.
    assert named == paths[-1].stem or (named is None and paths[-1].stem in ("peers", "workstation"))
    assert named in (None, config.name)
    assert config.quality.max_speed >= max(config.augment.speed_factors)


def test_generated_pages_are_current() -> None:
    """After a change to the schema: `entropy-asr config docs`."""
    assert (REPO / "docs/config.md").read_text(encoding="utf-8") == reference_page()
    assert (REPO / "docs/config.schema.json").read_text(encoding="utf-8") == json_schema()


def test_a_peer_is_measured_on_the_languages_that_it_knows() -> None:
    raw = yaml.safe_load((REPO / "config/mini.yaml").read_text())
    raw["peers"] = {"all": {"kind": "hypotheses", "path": "theirs"}}
    with pytest.raises(InputError, match="no encoder to measure"):
        load_config(raw | {"peers": {"all": {"kind": "hypotheses", "path": "theirs", "encoder_metrics": True}}})
    raw["peers"]["tiny"] = {"kind": "ctranslate2", "path": "packaged-tiny.en", "languages": ["en"]}
    config = load_config(raw)
    assert config.tests_of_peer("all") == ["english", "mandarin"]
    assert config.tests_of_peer("tiny") == ["english"]
    assert (config.peers["all"].packaged, config.peers["tiny"].packaged) == (None, "whisper-tiny.en")


def test_a_config_is_laid_over_another_key_by_key(tmp_path: Path) -> None:
    below, above = tmp_path / "below.yaml", tmp_path / "above.yaml"
    below.write_text("seeds: [1, 2]\ncka: {every: 7, threshold: 0.5}\n")
    above.write_text("seeds: [3]\ncka: {threshold: 0.9}\n")
    config = load_config(below, above)
    assert (config.seeds, config.cka.every, config.cka.threshold) == ([3], 7, 0.9)
    above.write_text("cka: {treshold: 0.9}\n")
    with pytest.raises(InputError, match=r"below\.yaml \+ .*above\.yaml:\n.*'cka\.treshold'; did you mean 'threshold'"):
        load_config(below, above)


def test_study_and_paper_run_every_arm_of_the_method_with_three_seeds() -> None:
    for paths in (STUDY, (REPO / "config/paper.yaml",)):
        config = load_config(*paths)
        assert set(config.arms) == set(RECIPES) and len(config.seeds) == 3


@pytest.mark.parametrize("paths", [STUDY, (REPO / "config/paper.yaml",)], ids=["study", "paper"])
def test_the_small_llm_has_about_half_the_parameters(paths: tuple[Path, ...]) -> None:
    config = load_config(*paths)
    small = config.model_copy(update={"llm": config.small_llm})
    assert 0.3 < parameters(small)["llm"] / parameters(config)["llm"] < 0.6


def test_a_parameter_of_one_pretraining_head_changes_no_other_kind() -> None:
    def changed(**sections: object) -> set[str]:
        config = Config(**sections)
        return {stage for stage in stage_names(Config()) if stage_json(config, stage) != stage_json(Config(), stage)}

    assert changed(aed={"layers": 2}) == {"pretrain_attention"}
    assert changed(ctc={"consistency": 0.1}) == {"pretrain"}
    assert changed(units={"word_pieces": 9}) == {"units"}
    assert changed(small_llm={"pretrained": None}) == {"small_lm", "small_tokenizer"}


def test_both_language_models_are_read_under_one_name(tmp_path: Path) -> None:
    for stage, expected in (("lm", "Qwen/Qwen3-1.7B"), ("small_lm", "Qwen/Qwen3-0.6B")):
        path = tmp_path / f"{stage}.json"
        path.write_text(stage_json(Config(), stage))
        assert load_stage(path).llm.pretrained == expected


def test_arms_say_which_encoders_and_language_models_are_needed() -> None:
    config = Config(arms=["ours", "frozen_encoder", "aed", "small_llm"])
    assert config.objectives == ["phoneme", "attention"] and list(config.llms) == ["lm", "small_lm"]
    assert config.lm_of("aed") == "lm" and config.lm_of("small_llm") == "small_lm"
    assert Config(arms=["char_ctc"]).objectives == ["character"]
    message = refusal({"recipes": {"mine": {"shares": "ours", "objective": "character"}}})
    assert "no such stages of its own to share" in message
    assert "'encoder_mine' is taken" in refusal({"recipes": {"encoder_mine": {}}})
