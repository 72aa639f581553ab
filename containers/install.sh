#!/bin/bash
# The GPU environment, for both container recipes: a CUDA build of torch, then flash-attn compiled against it, then the rest.
# Versions: constraints.txt, and the extra `gpu` of pyproject.toml. Run it in a folder that holds the repository.
set -euo pipefail

python3 -m venv /opt/venv
export PATH=/opt/venv/bin:$PATH
pip install --no-cache-dir --upgrade pip
pip install --no-cache-dir -c constraints.txt torch numpy packaging ninja setuptools wheel

# flash-attn is compiled: that needs the compiler of the CUDA version that torch was built for, else it fails after an hour.
python - <<'CHECK'
import re, subprocess, sys, torch
compiler = re.search(r"release (\d+)\.", subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout)[1]
built_for = (torch.version.cuda or "none").split(".")[0]
if compiler != built_for:
    sys.exit(f"torch {torch.__version__} is built for CUDA {built_for}, the image has nvcc {compiler}: choose another base image")
CHECK
MAX_JOBS=${MAX_JOBS:-4} pip install --no-cache-dir --no-build-isolation -c constraints.txt ".[gpu]"
pip check
