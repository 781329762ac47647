# Everything a fresh machine needs: `make quickstart` or `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.10 || echo python3)
VENV := .venv
STAMP := $(VENV)/.installed

.PHONY: env test test-launch test-readme gpu-check quickstart lint format docs clean

env: $(STAMP)

# The stamp follows setup.py, so that a changed pin refreshes the environment.
$(STAMP): setup.py
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 12) or sys.exit("found Python %d.%d, expected 3.10 to 3.12: run `make PYTHON=python3.11 $(MAKECMDGOALS)`" % v)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --editable '.[dev]'
	@touch $(STAMP)

test: $(STAMP)
	$(VENV)/bin/python -m pytest -q

# The scripts of launch/, on two nodes of a Slurm of their own where Slurm is installed.
test-launch: $(STAMP)
	$(VENV)/bin/python -m pytest -q -m slow -rs tests/launch tests/slurm

# The commands of the README as they stand there, on a little text.
test-readme: $(STAMP)
	$(VENV)/bin/python -m pytest -q -m slow tests/test_commands.py -k README

# What only a GPU can show, in under nine minutes: MODEL=DIR of a real model, DEVICE=cpu to try it.
gpu-check: $(STAMP)
	$(VENV)/bin/python benchmarks/gpu_check.py --model $(MODEL) --device $(or $(DEVICE),cuda) $(if $(TEXT),--text $(TEXT))

quickstart: $(STAMP)
	$(VENV)/bin/llmshearing quickstart

lint: $(STAMP)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright
	$(VENV)/bin/yamllint --strict yamls .pre-commit-config.yaml

format: $(STAMP)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

# Pages of the API out of the docstrings: build/docs/index.html. The types of a NamedTuple's fields
# are strings, which pdoc cannot follow and warns of.
docs: $(STAMP)
	PDOC_ALLOW_EXEC=1 $(VENV)/bin/python -W "ignore:Error parsing type annotation ForwardRef" -m pdoc \
		--docformat google --no-show-source --output-directory build/docs llmshearing

clean:
	rm -rf $(VENV) runs quickstart-out build
