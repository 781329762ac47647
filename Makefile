# Everything a fresh machine needs: `make quickstart` or `make test`.
PYTHON ?= $(shell for v in 11 12 13 10; do p=python3.$$v; $$p -c 0 2>/dev/null && echo $$p && exit; done; echo python3)
# `current` is what current-stack.txt names, `conservative` what the metadata of mosaicml allows.
STACK ?= current
$(if $(filter current conservative,$(STACK)),,$(error found STACK=$(STACK), expected current or conservative))
VENV := .venv$(if $(filter conservative,$(STACK)),-conservative)
OVERRIDES := $(if $(filter current,$(STACK)),current-stack.txt)
INSTALL = $(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python \
	$(addprefix --override ,$(OVERRIDES)) --editable

# Of llama.cpp only the library, compiled in about seven minutes: no servers, programs or image support.
COMPILE = CMAKE_ARGS="$(addprefix -DLLAMA_BUILD_,TOOLS=OFF SERVER=OFF APP=OFF TESTS=OFF EXAMPLES=OFF) -DLLAVA_BUILD=OFF"

.PHONY: env test test-launch test-interop test-readme interop gpu-check quickstart lint format docs clean

env: $(VENV)/.dev

$(VENV)/bin/uv:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 13) or sys.exit("found Python %d.%d, expected 3.10 to 3.13: run `make PYTHON=python3.11 $(MAKECMDGOALS)`" % v)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv

# The stamps follow the files that name versions, so that a changed pin refreshes the environment.
$(VENV)/.runtime: setup.py $(OVERRIDES) | $(VENV)/bin/uv
	$(INSTALL) '.[fast]'
	@touch $@

$(VENV)/.dev: setup.py $(OVERRIDES) | $(VENV)/bin/uv
	$(INSTALL) '.[dev]'
	@touch $(VENV)/.runtime $@

# Only some of them: make test TESTS=tests/golden
test: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -q $(TESTS)

# The scripts of launch/, on two nodes of a Slurm of their own where Slurm is installed.
test-launch: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -q -m slow -rs tests/launch tests/slurm

# Other programs that load exports: those installed by `make env`, and all of them after `make interop`.
test-interop: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -q -m slow -rs tests/interop

interop: $(VENV)/.dev
	$(COMPILE) $(INSTALL) '.[dev,interop]'
	PYTHON=$(VENV)/bin/python tests/interop/converter.sh

# The commands of the README as they stand there, on a little text.
test-readme: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -q -m slow tests/test_commands.py -k README

# What only a GPU can show, in under nine minutes: MODEL=DIR of a real model, DEVICE=cpu to try it.
gpu-check: $(VENV)/.dev
	$(VENV)/bin/python benchmarks/gpu_check.py --model $(MODEL) --device $(or $(DEVICE),cuda) $(if $(TEXT),--text $(TEXT))

quickstart: $(VENV)/.runtime
	$(VENV)/bin/llmshearing quickstart

lint: $(VENV)/.dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright
	$(VENV)/bin/yamllint --strict yamls .pre-commit-config.yaml

format: $(VENV)/.dev
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

# Pages of the API out of the docstrings, with the source: build/docs/index.html.
docs: $(VENV)/.dev
	PDOC_ALLOW_EXEC=1 $(VENV)/bin/python -m pdoc \
		--docformat google --output-directory build/docs llmshearing

clean:
	rm -rf .venv .venv-conservative runs quickstart-out build
