# make test    everything: tests, docs, ruff, mypy, import contracts (sets the machine up first)
# make demo    a container, a shell in it with the host's tools, and the recorded diagram
# make bench   the measurements, one run, nothing beside it
# make check   the linters only
# make clean   remove what these made in the checkout

# Tests mostly wait for kernels and engines: two workers for each core.
WORKERS ?= $(shell echo $$((2 * $$(nproc))))
TESTS ?=

.PHONY: test demo bench check setup clean

test: setup
	@.venv/bin/python -m tests.product.debian
	@.venv/bin/pytest -n $(WORKERS) $(TESTS)

demo: setup
	@docs/how-to/demo.sh

bench: setup
	@.venv/bin/pytest -m bench -s tests/bench

check: setup
	@.venv/bin/pytest -q tests/unit/test_house.py

setup:
	@.ci/setup

clean:
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
	rm -rf *.egg-info
