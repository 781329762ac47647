# Everything a fresh machine needs: `make quickstart` or `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.10 || echo python3)
VENV := .venv
STAMP := $(VENV)/.installed

.PHONY: env test quickstart lint format clean

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

clean:
	rm -rf $(VENV) runs quickstart-out
