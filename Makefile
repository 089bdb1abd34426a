# make train | make test | make test-fast | make soak | make bench | make bench-gyms | make reference | make lint | make setup | make clean
EXTRA  ?= cpu
RECIPE ?= recipes/cpu-quickstart.toml
RUN    ?=
ONLY   ?=
QUICK  ?=
ARGS   ?=

# Tests start hundreds of processes: each would compile the whole project anew.
unexport PYTHONDONTWRITEBYTECODE

BIN   := .venv/bin
READY := .venv/.ready-$(EXTRA)

ifeq ($(filter $(EXTRA),cpu gpu),)
$(error EXTRA=$(EXTRA): known are cpu and gpu)
endif

.PHONY: setup train test test-fast soak bench bench-gyms reference lint clean

setup: $(READY)
	@:

train: setup
	$(BIN)/userrl train $(RECIPE) $(if $(RUN),--run $(RUN)) $(ARGS)

test: setup
	$(BIN)/pytest -n auto -m "not slow and not soak and not gpu" $(ARGS)
	$(BIN)/python -m tests.run_slow_files

# What an edit needs: the laws that take milliseconds.
test-fast: setup
	$(BIN)/pytest -n auto -m "not medium and not slow and not soak and not gpu" $(ARGS)

# Hours: all random cases, many kills of a real run, chaos. Run by hand.
soak: setup
	USERRL_SOAK=1 $(BIN)/pytest -n auto -m "not slow and not soak and not gpu" $(ARGS)
	USERRL_SOAK=1 USERRL_TEST_KILLS=20 $(BIN)/python -m tests.run_slow_files "slow or soak or gpu"

bench-gyms: setup
	$(BIN)/python bench/gyms.py $(ARGS)

bench: setup
	$(BIN)/python -m bench $(if $(ONLY),--only $(ONLY)) $(if $(QUICK),--quick) $(ARGS)

reference: setup
	$(BIN)/python -m cluster.config.recipe_docs > docs/recipes.md.new
	mv docs/recipes.md.new docs/recipes.md

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

clean:
	rm -rf .venv .setup.lock userrl.egg-info .pytest_cache .ruff_cache .hypothesis

# The first Python that runs and is new enough: a name on PATH may be a shim that does not.
$(READY): pyproject.toml requirements/$(EXTRA).txt requirements/install.py
	@for python in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	        exec $$python requirements/install.py $(EXTRA); \
	    fi; \
	done; \
	echo "set-up failed: no Python 3.11 or newer found: install one, or name it: make setup PYTHON=/path/to/python3" >&2; \
	exit 1
