VENV := .venv
PYTHON := $(VENV)/bin/python
STAMP := $(VENV)/.installed

OLDEST := .venv-oldest
OLDEST_STAMP := $(OLDEST)/.installed

CLIENTS := .venv-clients
CLIENTS_STAMP := $(CLIENTS)/.installed

# A process per core, each of one thread; a file's tests stay together, since they share what they made.
SPLIT := -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: demo test check check-oldest check-clients nightly format clean

demo: $(STAMP)  ## train an agent and see it tune tasks it never saw (runs/demo/)
	$(VENV)/bin/loopwright demo

test: $(STAMP)  ## run the tests
	$(PYTHON) -m pytest $(SPLIT)

check: $(STAMP)  ## what CI runs: format, lint, types, tests
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(PYTHON) -m pytest $(SPLIT)

check-oldest: $(OLDEST_STAMP)  ## the tests with the oldest versions that pyproject.toml allows, which may warn of newer ones
	$(OLDEST)/bin/python -m pytest $(SPLIT) -W ignore::DeprecationWarning -W ignore::FutureWarning -W ignore::PendingDeprecationWarning

check-clients: $(CLIENTS_STAMP)  ## what docs/clients.md shows of other libraries
	$(CLIENTS)/bin/python -m pytest tests/clients

nightly: $(STAMP)  ## what takes too long for every change: a hundred thousand damaged files a reader, a hundred kills a command
	$(PYTHON) -m pytest $(SPLIT) -m "nightly or fuzz" --hypothesis-profile nightly

format: $(STAMP)
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

$(STAMP): pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --constraint constraints.txt torch
	$(PYTHON) -m pip install --quiet --constraint constraints.txt --editable '.[dev,all]'
	touch $(STAMP)

$(OLDEST_STAMP): pyproject.toml constraints-oldest.txt
	python3 -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable '.[dev,all]'
	touch $(OLDEST_STAMP)

$(CLIENTS_STAMP): pyproject.toml constraints-clients.txt tests/clients/requirements.txt
	python3 -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --constraint constraints-clients.txt torch
	$(CLIENTS)/bin/python -m pip install --quiet --constraint constraints-clients.txt --editable '.[contrib]' pytest hypothesis -r tests/clients/requirements.txt
	touch $(CLIENTS_STAMP)

clean:
	rm -rf $(VENV) $(OLDEST) $(CLIENTS) runs build dist
