"""From audio files to batches: log-Mel features, augmentation, length-bucketed batches."""
