VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed

.PHONY: demo test check format clean

demo: $(STAMP)  ## train an agent and see it tune tasks it never saw (runs/demo/)
	$(VENV)/bin/loopwright demo

test: $(STAMP)  ## run the tests
	$(PYTHON) -m pytest

check: $(STAMP)  ## what CI runs: format, lint, types, tests
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(PYTHON) -m pytest

format: $(STAMP)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

$(STAMP): pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --constraint constraints.txt torch
	$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable '.[dev,all]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) runs build dist
