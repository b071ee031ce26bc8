# make demo | test | test-fast | test-all | lint | bench | constraints
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo test test-fast test-all lint bench constraints

demo: $(READY)
	$(PY) zoo/moving_shapes.py --out runs/demo

test: $(READY)
	$(PY) -m pytest -m "not exhaustive"

test-fast: $(READY)
	$(PY) -m pytest -m "not slow and not exhaustive"

test-all: $(READY)
	$(PY) -m pytest

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(READY)
	$(PY) benchmarks/loss.py
	$(PY) benchmarks/scale.py

# One solution for every extra at once, so that any of them can be added later.
constraints: $(READY)
	$(PY) -m pip install -q uv
	$(PY) -m uv pip compile setup.cfg --all-extras --python-version 3.11 --no-annotate \
	  --custom-compile-command "make constraints" --upgrade -o constraints.txt

$(READY): setup.cfg pyproject.toml constraints.txt
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv -q --seed --allow-existing $(VENV) && \
	  uv pip install -q -p $(PY) -c constraints.txt -e ".[test,lint]"; \
	else \
	  python3 -m venv $(VENV) && \
	  $(PY) -m pip install -q -c constraints.txt -e ".[test,lint]"; \
	fi
	@touch $@
