# Each target sets up what it needs. See README.md.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := .tools/bin/uv
export UV_SYSTEM_CERTS := 1

.PHONY: setup jail lab test lint bench torture lock clean

setup: $(VENV)/.ready  ## the private environment, then the default runtime (with progress)
	@$(BIN)/taxiway runtimes build

lab: setup  ## the whole path on this machine, checked: make lab [DATA=folder with taxi-train.csv and taxi-valid.csv] [LARGE=1]
	@$(BIN)/python scripts/lab.py $(if $(DATA),--data "$(DATA)") $(if $(LARGE),--large)

test: setup  ## every test but the long rounds
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not torture" $(TESTS)

torture: setup  ## the long rounds: crash tests by the hundred
	@$(BIN)/python -m pytest -m torture --timeout=3600 $(TESTS)

jail:  ## optional: bubblewrap, without which jobs run beside the server's own files
	@if command -v bwrap >/dev/null; then bwrap --version; \
	elif ! command -v apt-get >/dev/null; then echo "Install bubblewrap (the program bwrap) by your system's own means."; \
	else $$([ "$$(id -u)" = 0 ] || echo sudo) apt-get install --yes --no-install-recommends bubblewrap util-linux \
	  || echo "bubblewrap could not be installed: jobs run without a jail, and their logs say so."; fi

lint: $(VENV)/.ready  ## style, formatting, strict types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: setup  ## the figures of benchmarks/RESULTS.md, measured here and now
	@for each in benchmarks/[a-z]*.py; do echo "== $$each"; $(BIN)/python $$each || exit 1; done

lock: $(UV)  ## pin everything anew, with hashes
	@scripts/lock $(UV)

clean:
	rm -rf $(VENV) .tools .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info build

$(UV): requirements/tools.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	  || { echo "Taxiway needs Python 3.10 or newer; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv --clear .tools \
	  || { echo "$(PYTHON) cannot make virtual environments; on Debian: apt install python3-venv"; exit 1; }
	@.tools/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/tools.lock
	@touch $(UV)

$(VENV)/.ready: $(UV) requirements/dev.lock pyproject.toml
	@echo "Setting up Taxiway's own environment in $(VENV) ..."
	@$(UV) venv --quiet --clear --python "$$($(PYTHON) -c 'import sys; print(sys.executable)')" $(VENV)
	@$(UV) pip sync --quiet --python $(BIN)/python --require-hashes requirements/dev.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@
