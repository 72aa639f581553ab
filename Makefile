# The commands that must always work. Each makes the environment first, if it is not there.
PYTHON ?= python3
CORES ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
RUN := PATH="$(CURDIR)/$(BIN):$$PATH"

.PHONY: reproduce study test test-arms test-faults test-slurm test-dvc smoke benchmark gpu gpu-wheels lint clean

reproduce: $(READY)  ## the default scale (mini), from audio to report
	$(RUN) snakemake --cores $(CORES) all
	$(RUN) entropy-asr show results

smoke: $(READY)  ## the same workflow, a few minutes, its own results in runs/smoke
	$(RUN) snakemake --cores $(CORES) all --configfile config/smoke.yaml
	$(RUN) entropy-asr show runs/smoke/results

study: $(READY)  ## all seven arms, three seeds, at the default scale: hours; its own results in runs/study
	$(RUN) snakemake --cores $(CORES) all --configfile config/mini.yaml config/study.yaml
	$(RUN) entropy-asr show runs/study/results

test: $(READY)
	$(RUN) pytest -n $(CORES) --dist loadfile

test-faults: $(READY)  ## every stage killed again and again, about 30 minutes
	$(RUN) pytest -m faults

test-arms: $(READY)  ## a smoke run of all seven arms, about 5 minutes
	$(RUN) pytest -m arms tests/workflow

test-slurm: $(READY)  ## a real Slurm on this machine, about 8 minutes; as root: apt-get install slurm-wlm munge
	$(RUN) pytest -m slurm tests/slurm

test-dvc: $(READY)  ## a smoke run by dvc repro, pushed, pulled and restored, about 7 minutes
	$(RUN) pytest -m dvc tests/workflow

benchmark: $(READY)  ## speed against named peers, as ratios; docs/benchmarks.md
	OMP_NUM_THREADS=1 $(RUN) python benchmarks/run.py

gpu: $(READY)  ## what has to be known on a GPU, at most 8 minutes; docs/gpu.md
	$(RUN) PYTHONPATH=src $(PYTHON) benchmarks/gpu.py

gpu-wheels: $(READY)  ## what `make gpu` needs on a machine that cannot fetch packages, for Python 3.12, in .whl
	$(BIN)/pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
	  $(foreach version,2_35 2_34 2_31 2_28 2_27 2_24 2_17,--platform manylinux_$(version)_x86_64) \
	  -c constraints.txt -d .whl $$(grep -v -e '^#' -e deepspeed benchmarks/gpu_requirements.txt)
	DS_BUILD_OPS=0 $(BIN)/pip wheel --quiet --no-deps --no-build-isolation -w .whl $$(grep '^deepspeed==' constraints.txt)

lint: $(READY)
	$(RUN) ruff check .
	$(RUN) ruff format --check .

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; name another: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[slurm,peers,dev]"
	touch $@

clean:
	rm -rf $(VENV) runs
