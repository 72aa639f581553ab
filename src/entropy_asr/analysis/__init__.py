"""What the encoder knows and how far it moved, measured on saved artifacts (docs/metrics.md).

from entropy_asr.analysis import normalized_spectral_entropy
normalized_spectral_entropy(frames)  # (L, d) tensor
"""

from entropy_asr.analysis.allocation import entropy_allocation
from entropy_asr.analysis.cka import linear_cka
from entropy_asr.analysis.probes import conditional_semantic_accessible_information, phonetic_accessible_information
from entropy_asr.analysis.spectral import normalized_spectral_entropy

__all__ = [
    "conditional_semantic_accessible_information",
    "entropy_allocation",
    "linear_cka",
    "normalized_spectral_entropy",
    "phonetic_accessible_information",
]
