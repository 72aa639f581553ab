"""The bootstrap over utterances that scores, comparisons and metrics share (Bisani & Ney, 2004).

An utterance is what is drawn: errors, frames and tokens inside one depend on each other.
"""

import numpy as np

CONFIDENCE = 0.95
DRAWS_AT_ONCE = 4_000_000  # bounds the memory, whatever the number of utterances and resamples


def resampled_sums(values: np.ndarray, resamples: int, seed: int = 0) -> np.ndarray:
    """(K, resamples) sums of (K, N) values over N utterances drawn with replacement."""
    rng = np.random.default_rng(seed)
    utterances = values.shape[1]
    chunk = max(1, DRAWS_AT_ONCE // utterances)
    sums = []
    for start in range(0, resamples, chunk):
        drawn = rng.integers(utterances, size=(min(chunk, resamples - start), utterances), dtype=np.int32)
        sums.append(np.stack([row[drawn].sum(axis=1) for row in values]))
    return np.concatenate(sums, axis=1)


def percentile_interval(statistics: np.ndarray) -> tuple[float, float]:
    """95% interval from the statistic of each resample, (resamples,)."""
    low, high = np.quantile(statistics, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
