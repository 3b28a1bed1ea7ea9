# Two commands: `make demo` (the main job) and `make test`. Each sets itself up on a fresh machine; a second call installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Processes that tests start share what Python compiles, also where the environment turns that off.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test test-processes test-slow torture mutation lint types bench speed gpu docs release clean

demo: $(INSTALLED)
	$(BIN)/t5peft bench --suite quick --workers 2 --output outputs/demo

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# What runs processes of its own for seconds: kills, several processes, servers, a browser.
test-processes: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2 -m 'processes and not slow'

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow --numprocesses 2

# MINUTES bounds each campaign; all but the soak go on where they ended.
MINUTES ?= 20
TORTURE := OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python -W ignore tests/torture
RECORD = --minutes $(MINUTES) --record outputs/torture
torture: $(INSTALLED)
	$(TORTURE)/damage.py $(RECORD)/damage.json
	$(TORTURE)/kills.py $(RECORD)/kills.json
	$(TORTURE)/processes.py $(RECORD)/processes.json
	$(TORTURE)/operations.py kills $(RECORD)/commands.json
	$(TORTURE)/operations.py storage $(RECORD)/storage.json
	$(TORTURE)/non_finite.py $(RECORD)/non_finite.json
	$(TORTURE)/soak.py $(RECORD)/soak.json

mutation: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/mutation.py --minutes $(MINUTES)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/language.py

types: $(INSTALLED)
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/t5peft bench --suite embedded

speed: $(INSTALLED)
	$(BIN)/python benchmarks/throughput.py

# On a machine with a GPU, without a network, within ten minutes: the tests that need one, then speed and memory against peft.
# Without a GPU it says so in one line, and make ends with 2.
GPU_CHECK = import sys, torch; torch.cuda.is_available() or sys.exit("make gpu: Got no GPU that torch can use; expected one.")
gpu: $(INSTALLED)
	@$(BIN)/python -c '$(GPU_CHECK)'
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m gpu --numprocesses 0
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/throughput.py --device cuda --shapes t5-base t5-3b --repeats 2 --record benchmarks/records/gpu.json

# Reads from the disk: outputs/site/index.html. Warnings, dead links and whatever would need the network are errors.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Builds dist/ and checks it: metadata, size, licenses, and the wheel in an empty environment.
release: $(INSTALLED)
	$(BIN)/python scripts/release.py

# torch comes first and by its exact version, so that nothing else draws another build of it.
$(INSTALLED): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	touch $(INSTALLED)

# The tests of law on the oldest releases that pyproject.toml allows, on those of constraints.txt and on the newest, each set in an
# environment of its own. torch is of one build in all of them; `make test-versions-newest TORCH=torch` takes the newest (gigabytes).
VERSION_SETS := oldest pinned newest
VERSION_TESTS := $(wildcard tests/methods/test_laws*.py tests/test_stack*.py) tests/training/test_splits.py
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: test-versions $(VERSION_SETS:%=test-versions-%)
test-versions: $(VERSION_SETS:%=test-versions-%)

test-versions-oldest: VERSIONS := --constraint constraints-oldest.txt
test-versions-pinned: VERSIONS := --constraint constraints.txt
test-versions-newest: VERSIONS := --upgrade --upgrade-strategy eager
$(VERSION_SETS:%=test-versions-%): test-versions-%:
	test -d .venv-$* || $(PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip install --quiet --disable-pip-version-check $(VERSIONS) "$(TORCH)" --editable ".[test]"
	OMP_NUM_THREADS=1 .venv-$*/bin/python -m pytest --numprocesses 0 $(VERSION_TESTS)

clean:
	rm -rf $(VENV) .venv-* build dist *.egg-info outputs
