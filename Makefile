# Everything a contributor or a CI machine runs. `make help` lists it.

PYTHON3 ?= python3
PY := .venv/bin/python
# PyTorch for the tests with real training jobs. Empty: do without, and those tests say so.
TORCH ?= torch==2.13.0 numpy
# So many tests at a time: most of them wait for something most of the time.
WORKERS ?= 3

.PHONY: help venv torch check test demo bench docs pyz new-check loss-runs clean

help:
	@echo 'make demo                     a real training job hangs, and is restarted from its last good checkpoint'
	@echo 'make check                    format, lint, types, fast tests'
	@echo 'make test                     sets everything up, then runs all tests'
	@echo 'make bench                    speed and memory, as figures and ratios'
	@echo 'make docs                     docs/checks.md and docs/codes.md, from the checks and playbooks themselves'
	@echo 'make pyz                      dist/clustertools.pyz, which runs wherever Python 3.10 is'
	@echo 'make new-check NAME=gpu_fan   the files of a new check'
	@echo 'make loss-runs INTO=DIR       trains the labelled curves that detectors are tuned on (tests/runs/loss)'
	@echo 'make clean                    removes what the above left behind'

venv: .venv/stamp

.venv/stamp: pyproject.toml
	PYTHON3='$(PYTHON3)' sh tests/lab/system-packages.sh
	test -x $(PY) || $(PYTHON3) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev,hang]'
	touch $@

torch: venv
	@if [ -z '$(TORCH)' ]; then \
	  echo 'TORCH is empty: tests that need PyTorch are not run'; \
	elif ! $(PY) -c 'import torch' 2>/dev/null; then \
	  $(PY) -m pip install --quiet --disable-pip-version-check $(TORCH); \
	fi

check: venv
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m pytest -q -n $(WORKERS) --dist worksteal -m 'not slow and not torch'

test: venv torch
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m pytest -q -n $(WORKERS) --dist worksteal $(if $(TORCH),,-m 'not torch')

demo: venv torch
	$(PY) examples/demo.py

bench: venv
	$(PY) benchmarks/run.py

docs: venv
	$(PY) docs/make_reference.py

pyz: venv
	$(PY) -m clustertools.fleet.shipping dist/clustertools.pyz

new-check: venv
	$(PY) -m clustertools new-check '$(NAME)'

INTO ?= build/tune-runs

loss-runs: venv torch
	$(PY) -m tests.lab.loss_runs make --set tune --into '$(INTO)'

clean:
	rm -rf .venv build dist demo-run *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
