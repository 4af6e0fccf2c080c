# Every target installs what it needs into a virtual environment of its own; PYTHON is the interpreter they are made with.
PYTHON ?= python3
VENV := .venv
COMPAT := .venv-compat
BARE := .venv-bare
PIP := -m pip install --quiet --disable-pip-version-check
PINNED := $(PIP) -c constraints.txt
# with all cores: pip would use one; some packages hold templates that cannot be compiled
COMPILE := -m compileall -qq -j 0
# large parts of packages that nothing here imports
NOT_IMPORTED := /tests/|/ray/(llm|rllib|serve|train|tune)/|/torch/_inductor/(codegen|fx_passes|kernel)/

.PHONY: demo test test-slow test-compat check torture torture-short bare dry-run-extras dist bench clean

demo: $(VENV)/.demo
	$(VENV)/bin/python -m builder.demo --work demo-work

# in a process for each core; the tests of one file stay together, since they share what is costly to make, and files are
# started in the order of tests/conftest.py
test: $(VENV)/.dev
	$(VENV)/bin/python $(COMPILE) sqid.py sqid_lib builder tests/support
	$(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -m slow

# the loading tests under datasets 3.6
test-compat: $(COMPAT)/.installed
	$(COMPAT)/bin/python -m pytest -m compat tests/test_sqid.py tests/sqid_lib/test_schemas.py tests/builder/release/test_release.py tests/builder/release/test_catalogue.py

check: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# kills, full disks, flipped bits, hostile files: 20 minutes, or `make torture SEED=7 MINUTES=60`
SEED ?= 1
MINUTES ?= 20
torture: $(VENV)/.dev
	$(VENV)/bin/python -m torture --seed $(SEED) --minutes $(MINUTES)

torture-short: $(VENV)/.dev
	$(VENV)/bin/python -m torture --short

# the README's first steps with nothing but the wheel, and with the extra build, in fresh environments
bare: export PYTHONPATH :=
bare:
	rm -rf $(BARE)
	$(PYTHON) -m venv $(BARE)/build
	$(PYTHON) -m venv $(BARE)/base
	$(BARE)/base/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps -w $(BARE)/dist .
	wheel=$$(ls $(CURDIR)/$(BARE)/dist/*.whl) && $(BARE)/build/bin/python $(PINNED) "$$wheel[build]"
	$(BARE)/base/bin/python $(PINNED) $(BARE)/dist/*.whl
	$(BARE)/build/bin/python tests/bare/first_steps.py build $(BARE)/made
	$(BARE)/base/bin/python tests/bare/first_steps.py load $(BARE)/made/sqid

# every extra of pyproject.toml, alone and all together, without installing it
dry-run-extras: $(VENV)/.dev
	$(VENV)/bin/python .ci/dry_run_extras.py

# wheel and sdist, in dist/
dist: $(VENV)/.dev
	$(VENV)/bin/python -m hatchling build

# a short form of every benchmark, and a table of ratios with their goals: under 15 minutes on 2 quiet cores
bench: $(VENV)/.dev
	$(VENV)/bin/python benchmarks/bench.py --markdown bench.md

$(VENV)/.demo: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PINNED) --no-compile -e ".[build,eval]"
	$(VENV)/bin/python $(COMPILE) -x '$(NOT_IMPORTED)' $(VENV)/lib || true
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python $(PINNED) --no-compile -e ".[dev]"
	$(VENV)/bin/python $(COMPILE) -x '$(NOT_IMPORTED)' $(VENV)/lib || true
	touch $@

# without constraints: datasets 3.6 with the newest of everything it allows, as for a user who cannot move to 5.x
$(COMPAT)/.installed: pyproject.toml
	test -x $(COMPAT)/bin/python || $(PYTHON) -m venv $(COMPAT)
	$(COMPAT)/bin/python $(PIP) -e . "datasets==3.6.0" hypothesis "pydantic>=2.10" pytest
	touch $@

clean:
	rm -rf $(VENV) $(COMPAT) $(BARE) build dist *.egg-info
