"""The loop under all stages: DeepSpeed ZeRO-2, exact resume, progress.  It knows nothing of stages."""
