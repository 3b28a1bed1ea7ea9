# Two commands: `make demo` (the main job) and `make test`. Each sets itself up on a fresh machine; a second call installs nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow lint types bench speed clean

demo: $(INSTALLED)
	$(BIN)/t5peft bench --suite quick --output outputs/demo

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow --numprocesses 2

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

# torch comes first and by its exact version, so that nothing else draws another build of it.
$(INSTALLED): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[test]"
	touch $(INSTALLED)

clean:
	rm -rf $(VENV) build dist *.egg-info outputs
