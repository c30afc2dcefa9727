# Everything is set up on first use: a virtual environment, the constraints, the package itself.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: demo cards docs test fuzz faults test-other-cpu test-lowest test-browser screenshots audit check style

CHROMIUM := /usr/bin/chromium

demo: $(VENV)/ready
	$(BIN)/hswq-hub publish demo

# What model_cards/ shows: the demo model's card and figures in all formats, without the weights, and what is known of
# the models in the catalog. The page shows the weights.
cards: $(VENV)/ready
	$(BIN)/hswq-hub publish demo --format all
	mkdir -p spaces_app/bundled
	cp $(addprefix hswq-published/demo-hswq/,hswq.json $(addprefix demo-hswq-,v1.safetensors v2.safetensors int8.safetensors)) spaces_app/bundled/
	mkdir -p model_cards/demo-hswq
	cp -r $(addprefix hswq-published/demo-hswq/,README.md LICENSE metrics.json hswq.json images) model_cards/demo-hswq/
	$(BIN)/hswq-hub card --catalog model_cards

test: $(VENV)/ready
	$(BIN)/pytest --numprocesses auto

# The same on a CPU that MKL takes for another make than Intel's: there products depend on where a matrix begins in memory.
test-other-cpu: $(VENV)/ready
	mkdir -p build
	cc -shared -fPIC -o build/other_cpu.so tests/support/other_cpu.c
	LD_PRELOAD=$(CURDIR)/build/other_cpu.so $(BIN)/pytest --numprocesses auto

# Fresh seeds for HSWQ_FUZZ_SECONDS, an hour if that is not set. A failure prints the seed and the target that repeat it.
fuzz: $(VENV)/ready
	PYTHONPATH=tests $(BIN)/python -W ignore -m fuzz.run

# Hurts a publish in every step, in every way, and writes docs/faults.md, which says what came of it. Half an hour, as root on
# Linux: it mounts small disks, and runs as nobody.
faults: $(VENV)/ready
	PYTHONPATH=tools:tests $(BIN)/python -W ignore -m faults.run

# The lowest versions that pyproject.toml allows, in an environment of their own: all modules are imported, and some quick
# tests run. torch is that of constraints.txt: PyPI has its lowest version only with CUDA, several GB, and CPU builds of it
# are on pytorch.org alone. Where that can be reached: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make
# test-lowest NOT_LOWEST=
NOT_LOWEST ?= torch
QUICK_TESTS := evaluation/test_digests.py evaluation/test_intervals.py quantization/test_search.py runtime/test_checkpoint.py \
    runtime/test_fp8.py runtime/test_lora.py sources/civitai/test_login.py hub/test_space.py
LOWEST := build/lowest
test-lowest: $(VENV)/ready
	mkdir -p build
	$(BIN)/python tools/lowest.py demo metrics oauth $(addprefix --except ,$(NOT_LOWEST)) > build/lowest.txt
	$(PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --constraint build/lowest.txt --editable '.[demo,metrics,oauth]' pytest
	$(LOWEST)/bin/python tools/import_all.py
	$(LOWEST)/bin/pytest -o addopts="--import-mode=importlib" $(addprefix tests/,$(QUICK_TESTS))

# Known holes in what constraints.txt names. A package that the database does not tell of is an error too, or without a
# connection all would be well.
audit: build/audit/ready
	build/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

build/audit/ready:
	$(PYTHON) -m venv build/audit
	build/audit/bin/pip install --quiet pip-audit
	touch $@

test-browser: $(VENV)/ready $(CHROMIUM)
	$(BIN)/pytest -m browser

# The pages, into build/docs: a link that leads nowhere, or anything else that Sphinx warns of, is an error. Links to other
# sites are listed in build/docs-links/output.json, not fetched.
docs: $(VENV)/ready
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -b html -c docs -d build/docs-doctrees . build/docs
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -b linkcheck -c docs -d build/docs-doctrees . build/docs-links
	@echo "build/docs/index.html; links to other sites are listed in build/docs-links/output.json"

# What README and docs/ show of the demo page.
screenshots: $(VENV)/ready $(CHROMIUM)
	HF_HUB_OFFLINE=1 $(BIN)/python tools/screenshots.py docs
	PYTHONPATH=tools:tests $(BIN)/python tools/screenshot_my_repo.py docs

$(CHROMIUM):
	@test "$$(id -u)" = 0 || { echo "Chromium is missing: run 'sudo apt-get install chromium', then this again." >&2; exit 1; }
	apt-get update -qq && apt-get install -qq --no-install-recommends chromium

check: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

style: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
