# Each target makes what it needs; `make help` lists them.

VENV := .venv
BIN := $(VENV)/bin
PYTHON3 ?= python3
PACKAGES := gcc iproute2 iptables iputils-ping libtss2-dev libtss2-tcti-swtpm0 openssh-client openssh-server pkg-config postgresql procps \
            python3-dev python3-venv swtpm swtpm-tools systemd tpm2-tools util-linux

.PHONY: help venv demo demo-fence test lint bench clean system-packages

help:
	@echo 'make demo    run registrar, verifier and two agents with software TPMs, and watch one fall from grace'
	@echo 'make demo-fence  only its second part: a hacked machine loses its SSH keys and is fenced off (needs root)'
	@echo 'make test    run all tests'
	@echo 'make lint    check types, style and the direction of imports'
	@echo 'make bench   measure CPU, memory and delays against the budgets (about a minute)'
	@echo 'make venv    make $(VENV) with the project installed editable'
	@echo 'make clean   remove everything that the other targets made'

system-packages:
	@tests/lab/install-packages $(PACKAGES)

$(VENV)/installed: pyproject.toml
	@$(MAKE) --no-print-directory system-packages
	@test -x $(BIN)/python || $(PYTHON3) -m venv $(VENV)
	@echo 'Installing Python packages into $(VENV) (about a minute the first time)'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

venv: $(VENV)/installed

demo: system-packages venv
	@$(BIN)/python -m tests.demo

demo-fence: system-packages venv
	@$(BIN)/python -m tests.demo.fence

test: system-packages venv
	@$(BIN)/python -m pytest -n auto --dist loadfile

lint: venv
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: venv
	@for benchmark in benchmarks/*.py; do $(BIN)/python $$benchmark || exit 1; done

clean:
	@rm -rf $(VENV) .demo .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
