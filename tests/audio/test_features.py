"""Log-Mel features: faster steps, the same numbers as lhotse's Kaldi filterbank."""

import numpy as np
import pytest
from lhotse import Fbank, FbankConfig

from entropy_asr.audio.features import log_mel
from entropy_asr.config import Features

RNG = np.random.default_rng(0)
SIGNALS = {
    "noise": RNG.normal(scale=0.1, size=16_000 * 3),
    "soft, with an offset": 0.3 + RNG.normal(scale=1e-4, size=16_000),
    "tone": 0.5 * np.sin(2 * np.pi * 440 * np.arange(9_999) / 16_000),
    "digital silence": np.zeros(8_000),
    "shorter than a window": RNG.normal(scale=0.1, size=300),
}


@pytest.mark.parametrize("name", SIGNALS)
def test_log_mel_is_lhotse_fbank(name):
    samples = SIGNALS[name].astype(np.float32)
    given = samples.copy()
    expected = Fbank(FbankConfig(num_filters=80, dither=0.0)).extract(samples, 16_000)
    mel = log_mel(samples, Features())
    assert mel.shape == expected.shape and mel.dtype == np.float32
    # Where a filter holds next to nothing, rounding decides; so energies are compared, as shares of the loudest.
    np.testing.assert_allclose(np.exp(mel), np.exp(expected), rtol=1e-3, atol=1e-6 * np.exp(expected).max())
    assert np.array_equal(samples, given)


def test_other_settings_reach_the_filterbank():
    samples = SIGNALS["noise"].astype(np.float32)
    config = Features(num_mel_bins=40, frame_shift=0.02)
    expected = Fbank(FbankConfig(num_filters=40, frame_shift=0.02, dither=0.0)).extract(samples, 16_000)
    np.testing.assert_allclose(log_mel(samples, config), expected, atol=2e-3)
