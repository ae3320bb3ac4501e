# make help  lists what there is
PYTHON ?= python3
# Two processes balance the pole within a minute; make train ARGS="algo=sac env=humanoid distributed=shared"
ARGS ?= algo=a3c env=cartpole distributed.max_session=2
# What make play plays: an agent in zoo/, the best on Pong if there is one
AGENT ?= $(notdir $(firstword $(wildcard zoo/pong_fast zoo/*pong* zoo/*cartpole*)))

# PPO as make bench measures it: one thread, the threads that it chooses, DPPO on all cores
ONE := distributed=off distributed.max_session=1
PPO := "$(ONE) distributed.num_threads=1","$(ONE)","distributed=synced distributed.max_session=null"

VENV := .venv
LOWEST := .venv-lowest
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_DEV := $(VENV)/.ready-dev
# whole files, in the order of tests/conftest.py
PYTEST := $(BIN)/pytest -q --dist loadfile --no-loadscope-reorder
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt

# several hundred commands of the tests would each compile asynclab
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup train play test check test-slow test-lowest drills docs bench clean

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-11s %s\n", $$1, $$2}'

setup: $(READY_DEV)  ## make .venv with exactly the packages of constraints.txt

# what training, plots and films need; always first, so that both can be made in any order
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable ".[plot,video]"
	touch $(READY)

# and what tests and benchmarks need
$(READY_DEV): $(READY)
	$(PIP) --editable ".[dev]"
	touch $(READY_DEV)

train: $(READY)  ## train; pass overrides as ARGS="algo=... env=... distributed=..."
	$(BIN)/python train.py $(ARGS)
	@echo "  to play      make play: an agent of the zoo that has learned ($(AGENT))"
	@echo "  to win Pong  make train ARGS=+experiment=pong_fast, 3 million frames: 2,000 a second on two idle cores with bf16, 500 with AVX2"

play: $(READY)  ## play and film an agent of the zoo; another one with AGENT=a3c_cartpole
	$(BIN)/python scripts/evaluate.py run=zoo/$(AGENT) episodes=1 video=true

check: $(READY_DEV)  ## lint, formatting, types and the fast tests (under 90 seconds)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST) -n 2 -m "not slow and not medium"

# three workers on two cores: many of these tests wait, for a process to end or to be missed; mypy has one core without them
test: $(READY_DEV)  ## all but the slow tests (13 minutes on two AVX2 cores)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy & types=$$!; $(PYTEST) -n 3 -m "not slow"; tests=$$?; \
	wait $$types || { echo "mypy has failed, see above"; exit 1; }; exit $$tests

test-slow: $(READY_DEV)  ## the long proofs: does it learn, do 16 sessions start
	$(BIN)/pytest -q -m slow --durations=0

test-lowest: $(LOWEST)/.ready  ## the fast tests with the lowest versions that pyproject.toml allows
	$(LOWEST)/bin/pytest -q -n 2 --dist loadfile -m "not slow and not medium" -W ignore

$(LOWEST)/.ready: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --constraint constraints-lowest.txt --editable ".[dev]"
	touch $@

drills: $(READY_DEV)  ## hurt real runs in every way of docs/reliability.md (half an hour, as estimated)
	$(BIN)/pytest -q tests/drills --durations=0

docs: $(READY_DEV)  ## make a site of docs/ that opens from the file system: outputs/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

bench: $(READY_DEV)  ## throughput of Pong and Humanoid beside their limits and stable-baselines3 (an hour)
	$(BIN)/python benchmarks/throughput.py algo=a3c env=pong sessions=[1,2,16] sb3=true
	$(BIN)/python benchmarks/throughput.py algo=ppo env=pong sb3=true sessions=[] 'variants=[$(PPO)]'
	$(BIN)/python benchmarks/throughput.py algo=sac env=humanoid distributed=shared algo.memory.capacity=200_000 sessions=[1,2,16] sb3=true

clean:  ## remove the environment and caches, not outputs/
	rm -rf $(VENV) $(LOWEST) .pytest_cache .mypy_cache .ruff_cache *.egg-info
