# make demo | test | test-fast | test-all | coverage | lint | bench | constraints
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
# Two workers; tests that share what is dear to make are marked as a group for one of them.
PYTEST := $(PY) -m pytest -n 2 --dist loadgroup
# By path, so that beside a checkout named grw_keras its folder is not taken for the package.
EDITABLE := --config-settings editable_mode=compat
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: demo test test-fast test-all coverage lint bench constraints

demo: $(READY)
	$(PY) zoo/demo.py --out runs/demo

test: $(READY)
	$(PYTEST) -m "not exhaustive"

test-fast: $(READY)
	$(PYTEST) -m "not slow and not exhaustive"

test-all: $(READY)
	$(PYTEST)

coverage: $(READY)
	$(PYTEST) -m "not exhaustive" --cov

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(READY)
	$(PY) benchmarks/loss.py
	$(PY) benchmarks/scale.py
	$(PY) benchmarks/step.py

# One solution for every extra at once, so that any of them can be added later. By pip's own
# resolver: uv's takes no notice of upper bounds on the Python version.
constraints: $(READY)
	$(PY) -m pip install -q pip-tools
	CUSTOM_COMPILE_COMMAND="make constraints" $(PY) -m piptools compile -q --all-extras \
	  --strip-extras --no-annotate --no-emit-index-url --no-emit-find-links --upgrade \
	  --pip-args "--use-pep517" \
	  -o constraints.txt setup.cfg

$(READY): setup.cfg pyproject.toml constraints.txt
	@if command -v uv >/dev/null 2>&1; then \
	  uv venv -q --seed --allow-existing $(VENV) && \
	  uv pip install -q -p $(PY) -c constraints.txt $(EDITABLE) -e ".[edge,test,lint]"; \
	else \
	  python3 -m venv $(VENV) && \
	  $(PY) -m pip install -q -c constraints.txt $(EDITABLE) -e ".[edge,test,lint]"; \
	fi
	@touch $@
