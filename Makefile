# Everything a newcomer or CI runs. `make` alone lists the targets.
#
#   PYTHON=/path/to/python3.11   another interpreter for .venv
#   TORCH_INDEX=URL              another wheel index for PyTorch, such as https://download.pytorch.org/whl/cpu
#                                (the small CPU build on Linux) or https://download.pytorch.org/whl/cu130
#   VENV=DIR                     another place than .venv
#   MUTATION_ARGS="--minutes 5 trial_replay.py"   options and modules for the mutation tests
#   PYTEST_ARGS="-k replay -x"   options for pytest; "-n 0" runs the tests in one process, as a debugger needs it

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
TORCH_INDEX ?=
PYTEST_ARGS ?=
MUTATION_ARGS ?=
DEMO_STEPS ?= 60000

python := $(VENV)/bin/python
pip := $(python) -m pip --disable-pip-version-check install -c constraints.txt
demo := --experiment-name demo

##@ Use

.PHONY: demo
demo: install ## train on ContextDecisionMaking-v0 with a varying context, evaluate, render and analyse: a few minutes
	$(python) main.py train-neurogym $(demo) --env-arg use_expl_context=true --total-steps $(DEMO_STEPS) --plot-training --overwrite
	$(python) main.py eval $(demo) --num-eval-trials 2000
	$(python) main.py render $(demo)
	$(python) main.py analyze $(demo)
	@printf '\nThe agent and all that it left behind:\n'
	@find experiments/demo -type f -not -name '.*' | sort | sed 's/^/  /'

.PHONY: install
install: $(VENV)/.installed ## make .venv with the tested versions; a second call does nothing

.PHONY: dev
dev: $(VENV)/.installed-dev ## install, and the tools that the tests and checks need

##@ Work on it

.PHONY: test
test: dev ## the whole test suite
	$(python) -m pytest -n logical --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

.PHONY: check
check: dev ## formatting, lint, types, import rule, tests: what CI runs
	$(python) -m ruff format --check .
	$(python) -m ruff check .
	$(python) -m mypy
	$(python) tests/lint_imports.py
	$(MAKE) --no-print-directory test

.PHONY: mutation
mutation: dev ## how many random changes of maths, replay, statistics and persistence the tests detect: 30 minutes
	$(python) tests/mutation.py $(MUTATION_ARGS)

.PHONY: format
format: dev ## format the code and apply what lint can mend
	$(python) -m ruff check --fix .
	$(python) -m ruff format .

.PHONY: wheel
wheel: dev ## the sdist, and the wheel made from it, into dist/
	$(python) -I -c 'from setuptools import build_meta; build_meta.build_sdist("dist")'
	$(python) -m pip wheel --no-deps --no-build-isolation -w dist dist/mpn_rl-*.tar.gz

.PHONY: docs
docs: $(VENV)/.installed ## the documentation as a site, into site/
	$(pip) -e ".[docs]"
	$(python) -m mkdocs build --strict

.PHONY: clean
clean: ## remove .venv, caches and build leftovers; experiments/ and results stay
	rm -rf $(VENV) benchmarks/.venv-peers benchmarks/.venv-third-party build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

##@ Measure

.PHONY: bench
bench: install ## speed: the scan, acting, learning, a whole run, start-up
	$(python) benchmarks/bench_scan.py
	$(python) benchmarks/bench.py

.PHONY: bench-learning
bench-learning: install ## the table of accuracies, resumable: hours
	$(python) benchmarks/learning.py

.PHONY: bench-neurogym
bench-neurogym: install ## the scoreboard: all NeuroGym tasks, several cores, resumable: a day
	$(python) benchmarks/neurogym_board.py

.PHONY: bench-gpu
bench-gpu: install ## the CUDA kernel against the loop and cuDNN; needs an NVIDIA GPU
	$(python) benchmarks/gpu.py

.PHONY: bench-td3
bench-td3: dev ## environment steps per second of TD3 on HalfCheetah-v4, against a plain one
	$(python) benchmarks/td3.py

.PHONY: bench-ne
bench-ne: dev ## dense and growing TD3 and MPN-DQN, resumable: an hour or two
	$(python) benchmarks/expansion.py

.PHONY: bench-peers
bench-peers: install ## the same tasks with Stable-Baselines3, in a .venv of its own
	$(python) benchmarks/peers.py

.PHONY: figures
figures: install ## the documentation's pictures of agents, from new trainings into docs/images: minutes
	$(python) benchmarks/figures.py

.PHONY: torture
torture: dev ## 200 kills, 1,000 bad inputs, 3,000 hostile experiments, full disks, signals, shells: hours
	$(python) benchmarks/torture.py

.PHONY: third-party
third-party: install ## other people's tasks through train, eval, render and analyze, in a .venv of its own
	$(python) benchmarks/third_party.py

.PHONY: condor-tools
condor-tools: dev ## fetch HTCondor's own programs for the tests into ~/.cache; nothing is installed
	$(python) tests/condor_tools.py

.PHONY: condor-pool-test
condor-pool-test: dev ## a sweep on a real HTCondor pool on this machine, evicted and compared
	$(python) benchmarks/condor_pool.py

.PHONY: slurm-test
slurm-test: dev ## a sweep on a real Slurm of one node on this machine, requeued and compared; needs root
	$(python) benchmarks/slurm_cluster.py

.PHONY: bench-search
bench-search: dev ## a search against a grid of 27 settings with 3 seeds, resumable: hours
	$(python) benchmarks/search.py

.PHONY: help
help: ## this list
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@/ { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# A stamp remembers what was installed, so that only a change of the requirements installs again. PyTorch goes first and
# alone: the index that has its CPU and CUDA builds does not have the tested versions of everything else.

$(python):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
	  { echo "Python 3.11 or 3.12 is needed, '$(PYTHON)' is not; say make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(python)
ifeq ($(TORCH_INDEX),)
	@if [ "$$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null; then echo "No NVIDIA GPU was found. If pip begins" \
	  "to download CUDA (2.5 GB), stop it and say: make TORCH_INDEX=https://download.pytorch.org/whl/cpu"; fi
	$(pip) torch
else
	$(pip) --no-deps --index-url $(TORCH_INDEX) torch
endif
	$(pip) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(pip) -e ".[dev]"
	@touch $@
