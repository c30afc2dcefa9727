# Everything is set up on first use: a virtual environment, the constraints, the package itself.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: demo cards test check style

demo: $(VENV)/ready
	$(BIN)/hswq-hub publish demo

# What model_cards/ shows: the demo model's card and figures as `make demo` made them, without the weights, and what is
# known of the models in the catalog.
cards: demo
	mkdir -p model_cards/demo-hswq
	cp -r $(addprefix hswq-published/demo-hswq/,README.md LICENSE metrics.json hswq.json images) model_cards/demo-hswq/
	$(BIN)/hswq-hub card --catalog model_cards

test: $(VENV)/ready
	$(BIN)/pytest --numprocesses auto

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

style: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
