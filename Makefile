# `make demo` and `make test` make what they need: an own .venv with a CPU build of torch. See `make help`.

SHELL := /bin/sh
VENV ?= .venv
BIN := $(VENV)/bin
# Without --no-compile pip compiles every module of every package, a minute and a half, of which few are ever imported. Those
# are compiled when they first are, and kept: where PYTHONDONTWRITEBYTECODE is set, as in many containers, every process would
# compile them again, 22 seconds for what `r3 train` imports and 5 without.
unexport PYTHONDONTWRITEBYTECODE
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints-cpu.txt
DEMO_OUT ?= runs/demo
DEMO_MINUTES ?= 6
SEED ?= 0
PROCESSES ?= 2

.PHONY: help demo test check wheel clean

help:
	@echo "make demo    train the embedded model with R3 for $(DEMO_MINUTES) minutes, before and after in $(DEMO_OUT)/report.html"
	@echo "make test    run every test in $(PROCESSES) processes"
	@echo "make check   style, types, import contracts, spelling"
	@echo "make wheel   build the wheel into dist/"
	@echo "make clean   remove $(VENV), dist and caches (runs/ stays)"

demo: $(VENV)/.train-ready
	$(BIN)/r3 demo --out $(DEMO_OUT) --seed $(SEED) --minutes $(DEMO_MINUTES)

# A file's tests stay in one process, since they share what it makes; each process has one thread. Files come in the order
# of their names: by their number of tests, the long ones, which have few, would all be left to the end.
test: $(VENV)/.dev-ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -p no:cacheprovider --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder

check: $(VENV)/.dev-ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/codespell

wheel: $(VENV)/.dev-ready
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean:
	rm -rf $(VENV) dist build *.egg-info .mypy_cache .ruff_cache .pytest_cache

# A stamp is newer than what it was made from, so nothing is installed again until that changes. The egg-info of an
# earlier build would hide new scorers from a Python that starts in this folder.
$(VENV)/.train-ready: $(VENV)/.torch-ready pyproject.toml constraints-cpu.txt
	@rm -rf *.egg-info
	$(PIP_INSTALL) --editable ".[train]"
	@$(BIN)/python -c "import r3_rl.evaluate.run"
	@touch $@

$(VENV)/.dev-ready: $(VENV)/.train-ready pyproject.toml constraints-cpu.txt
	@rm -rf *.egg-info
	$(PIP_INSTALL) --editable ".[train,balance,clip,judge,serve,rewards,deepspeed,dev]"
	@touch $@

# torch first: the CPU build where the configured index has it, else the pinned version as it comes, which is larger and
# works too. Point pip at PyTorch's own CPU index (PIP_EXTRA_INDEX_URL) to save the download.
$(VENV)/.torch-ready: $(VENV)/bin/python constraints-cpu.txt
	@torch=$$(sed -n 's/^torch==//p' constraints-cpu.txt); \
	if [ "$$(uname -s)" != Linux ]; then wanted="torch==$$torch"; else wanted="torch==$$torch+cpu"; fi; \
	echo "installing $$wanted"; \
	$(PIP_INSTALL) "$$wanted" 2>/dev/null \
	|| { echo "no CPU build in the configured index; installing torch==$$torch as it comes"; $(PIP_INSTALL) "torch==$$torch"; }
	@touch $@

$(VENV)/bin/python:
	@for python in python3.11 python3.12 python3.13 python3; do \
	  if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "making $(VENV) with $$($$python --version)"; exec $$python -m venv $(VENV); fi; done; \
	echo "no Python 3.11 or newer with venv found; install one (Debian, Ubuntu: apt install python3 python3-venv)" >&2; exit 1
