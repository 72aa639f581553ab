"""Versions of the code that defines an output. Raise a number together with a change of what a stage writes.

They are in the stages' config files (`config_files.stage_json`): with another number, what was made with the old one is stale.
A change of speed, of messages or of names in the code needs no new number.
"""

NORMALIZER_VERSION = "2"  # text.normalize
PHONEMES_VERSION = "1"  # text.phonemes

STAGE_VERSIONS: dict[str, int] = {
    "unpack": 1,
    "manifests": 2,
    "phonemes": 1,
    "units": 1,
    "tokenizer": 1,
    "feature_stats": 1,
    "precompute_features": 1,
    "lm": 1,
    "pretrain": 3,
    "align": 2,
    "ia_sft": 2,
    "joint_sft": 2,
    "decode": 1,
    "conditions": 1,
    "metrics": 2,
    "score": 1,
    "report": 1,
}
