# Every target sets up what it needs in .venv; PYTHON picks the interpreter it is made with.
PYTHON ?= python3
VENV := .venv
COMPAT := .venv-compat
PIP := -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-slow test-compat check bench clean

demo: $(VENV)/.demo
	$(VENV)/bin/python -m builder.demo --work demo-work

test: $(VENV)/.dev
	$(VENV)/bin/python -m pytest

test-slow: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -m slow

test-compat: $(COMPAT)/.installed
	$(COMPAT)/bin/python -m pytest -m compat tests/test_sqid.py tests/sqid_lib/test_schemas.py tests/builder/release/test_release.py

check: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

bench: $(VENV)/.dev
	@echo "each script in benchmarks/ says how it is run and what it needs:"
	@for script in benchmarks/*.py; do $(VENV)/bin/python $$script --help | head -n 1; done

$(VENV)/.demo: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP) -c constraints.txt -e ".[build,eval]"
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PIP) -c constraints.txt -e ".[dev]"
	touch $@

# datasets 3.6 with the newest of everything it allows: what a person who cannot move to 5.x has
$(COMPAT)/.installed: pyproject.toml
	test -x $(COMPAT)/bin/python || $(PYTHON) -m venv $(COMPAT)
	$(COMPAT)/bin/python $(PIP) -e . "datasets==3.6.0" pydantic pytest hypothesis
	touch $@

clean:
	rm -rf $(VENV) $(COMPAT) build dist *.egg-info
