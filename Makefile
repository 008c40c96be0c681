# make demo    sets up and runs the main job: convert, operate, fine-tune, compare
# make test    sets up and passes the tests, on two ONNX Runtimes
# make lint    ruff and mypy
# make operators  writes docs/operators.md: which gradient is proven how
# make clean   removes what these made

# The first Python from 3.10 to 3.12, the ones onnxruntime-training has wheels for.
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
# A second ONNX Runtime, the newest stock one, in a folder that stands before the first when it is on PYTHONPATH.
STOCK ?= .stock

.PHONY: demo test test-fast lint operators clean

demo: $(VENV)/demo.done
	$(VENV)/bin/surgery demo -o out/demo

test: $(VENV)/dev.done $(STOCK)/done
	$(VENV)/bin/python -m pytest
	PYTHONPATH=$(STOCK) $(VENV)/bin/python -m pytest -m training

test-fast: $(VENV)/dev.done
	$(VENV)/bin/python -m pytest -m "not slow"

lint: $(VENV)/dev.done
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

operators: $(VENV)/dev.done $(STOCK)/done
	$(VENV)/bin/python -m tests.autodiff.table $(STOCK)

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "Python 3.10, 3.11 or 3.12 is needed; name one: make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip

$(VENV)/demo.done: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet -e '.[cpu,train]'
	@touch $@

$(VENV)/dev.done: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet -e '.[cpu,dev]'
	@touch $@ $(VENV)/demo.done

$(STOCK)/done: | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --no-deps --target $(STOCK) onnxruntime
	@touch $@

clean:
	rm -rf $(VENV) $(STOCK) out .pytest_cache .mypy_cache .ruff_cache
