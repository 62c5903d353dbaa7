# Everything a developer or a newcomer needs. Each target sets up what it wants by itself.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := esm,mapping,test,lint,bench
# Scripts started here must not see `platform/` before the standard library's module of that name.
export PYTHONSAFEPATH := 1

.PHONY: demo test test-alone test-on-ray lint bench serve install system-packages clean

demo: install ## Rank enzymes for well-known reactions with the bundled model
	$(BIN)/rayzyme screen baseline examples/well_known_reactions.csv --top-k 100 --show 5 --output-dir results/demo

# Those that stand on a Ray wait a lot; meanwhile the others compute.
test: install system-packages ## Run all tests
	$(MAKE) --jobs=2 --output-sync=target --keep-going test-alone test-on-ray

test-alone:
	$(BIN)/python -m pytest tests/unit

test-on-ray:
	$(BIN)/python -m pytest tests/ray tests/services

lint: install ## Style, types on the ground floor, direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

bench: install ## Measure against peers; results go to benchmarks/results/
	env -u PYTHONSAFEPATH $(BIN)/python -m benchmarks $(SUITES)

serve: install ## Start the platform with its web page on loopback, until Ctrl-C
	$(BIN)/rayzyme up --foreground $(if $(PORT),--port $(PORT))

install: $(VENV)/.installed

# torch first and alone: its CPU build is found under the plain version, and nothing else may choose another.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch setuptools wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[$(EXTRAS)]'
	touch $@

system-packages:
	@tests/install_system_packages.sh

clean:
	rm -rf $(VENV) build results .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
