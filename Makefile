# Each target makes what it needs; `make help` lists them.

VENV := .venv
BIN := $(VENV)/bin
PYTHON3 ?= python3
N ?= 10000
PACKAGES := gcc gpg gpg-agent gpgv iproute2 iptables iputils-ping libtss2-dev libtss2-tcti-swtpm0 mariadb-client-core mariadb-server-core \
            openssh-client openssh-server pkg-config postgresql procps python3-dev python3-venv softhsm2 swtpm swtpm-tools systemd \
            tpm2-tools util-linux

# What makes packages, which are for Debian's own interpreter; PREFIX and DESTDIR are those of `make install`.
PACKAGE_PYTHON ?= /usr/bin/python3
PACKAGING := debhelper dpkg-dev fakeroot gcc libtss2-dev pkg-config python3-dev python3-venv systemd
PREFIX ?= /usr/local
WHEELS := build/wheels
MANUAL := build/docs

# Programs and tests are compiled once, and not at each start.
unexport PYTHONDONTWRITEBYTECODE

# What has nothing to be made, and would be called up to date.
FOLDERS := keylime packaging agent registrar tenant verifier systemd

N ?= 10000
.PHONY: help venv demo demo-fence test test-thorough test-databases test-time tests unit check lint audit lock requirements bench benchmarks docs config clean \
        system-packages install deb rpm test-packages test-systemd test-browser $(FOLDERS)

help:
	@echo 'make demo    run registrar, verifier and two agents with software TPMs, and watch one fall from grace'
	@echo 'make demo-fence  only its second part: a hacked machine loses its SSH keys and is fenced off (needs root)'
	@echo 'make test    run the tests'
	@echo 'make test-thorough  the same with fuzzing and a year of certificates'
	@echo 'make test-databases  what make test does on PostgreSQL alone, on MariaDB as well (some minutes)'
	@echo 'make test-time  a year of certificates: running daemons 335, 364 and 366 days on, and a day late'
	@echo 'make unit    run the unit tests alone: the fast loop, about a minute'
	@echo 'make check   make lint, make unit, and look at what documents, comments and packaging say'
	@echo 'make lint    check types, style and the direction of imports'
	@echo 'make audit   look for known vulnerabilities of the dependencies (STRICT=1: fail when that is not possible)'
	@echo 'make lock    pin the dependencies of requirements/runtime.txt anew, with hashes'
	@echo 'make bench   measure CPU, memory and delays against the budgets, on one page (ten minutes at most)'
	@echo 'make bench-fleet N=10000  a fleet of so many simulated machines on a verifier with two workers'
	@echo 'make bench-all  every benchmark by itself'
	@echo 'make install DESTDIR= PREFIX=/usr/local  install programs, configuration, units and manual pages'
	@echo 'make deb     make Debian packages in dist/ (make rpm: RPMs)'
	@echo 'make test-packages  build packages and images, install them, run them, remove them (some minutes)'
	@echo 'make test-systemd  boot Debian machines, install packages and type what the documentation says (some minutes)'
	@echo 'make test-browser  look at the dashboard with Chromium (a minute)'
	@echo 'make docs    build the manual, in which no link leads nowhere, into build/docs'
	@echo 'make config  write the packaged configuration files, their reference, and the schema of JSON documents anew'
	@echo 'make venv    make $(VENV) with the project installed editable'
	@echo 'make clean   remove everything that the other targets made'

system-packages:
	@tests/lab/install-packages $(PACKAGES)

$(VENV)/installed: pyproject.toml
	@$(MAKE) --no-print-directory system-packages
	@test -x $(BIN)/python || $(PYTHON3) -m venv $(VENV)
	@echo 'Installing Python packages into $(VENV) (about a minute the first time)'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all,dev]'
	@touch $@

venv: $(VENV)/installed

demo: system-packages venv
	@$(BIN)/python -m tests.demo

demo-fence: system-packages venv
	@$(BIN)/python -m tests.demo.fence

test: system-packages venv
	@$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

test-thorough: system-packages venv
	@KEYLIME_TESTS_THOROUGH=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder

tests: test

test-databases: system-packages venv
	@KEYLIME_TEST_DATABASES=1 KEYLIME_TESTS_THOROUGH=1 $(BIN)/python -m pytest tests/integration -n auto --dist loadfile -k mariadb

test-time: system-packages venv
	@KEYLIME_TESTS_THOROUGH=1 $(BIN)/python -m pytest tests/e2e/test_year.py tests/unit/pki/test_lifetimes.py tests/integration/test_verifier_certificates.py

unit: venv
	@KEYLIME_TESTS_QUICK=1 $(BIN)/python -m pytest tests/unit -n logical --dist worksteal

check: lint unit
	@$(BIN)/python -m pytest tests/house -n logical --dist loadfile

lint: venv
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

audit: venv
	@$(BIN)/python -m tests.audit $(if $(STRICT),--strict)

lock: venv
	@$(BIN)/pip-compile --quiet --upgrade --generate-hashes --strip-extras --allow-unsafe --no-header --no-emit-index-url \
	    --no-emit-trusted-host --no-emit-find-links --extra agent --extra database --extra tenant \
	    --output-file requirements/runtime.txt pyproject.toml
	@$(BIN)/pip-compile --quiet --upgrade --generate-hashes --strip-extras --allow-unsafe --no-header --no-emit-index-url \
	    --no-emit-trusted-host --no-emit-find-links --constraint requirements/runtime.txt \
	    --output-file requirements/build.txt requirements/build.in

bench: venv
	@$(BIN)/python benchmarks/summary.py

bench-all: venv
	@for benchmark in benchmarks/*.py; do $(BIN)/python $$benchmark || exit 1; done

bench-fleet: venv
	@$(BIN)/python benchmarks/fleet.py --agents $(N) --interval 10 --seconds 30 --workers 2 --processes 2

benchmarks: bench

$(VENV)/docs-installed: $(VENV)/installed
	@echo 'Installing Sphinx into $(VENV)'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@

docs: $(VENV)/docs-installed
	@$(BIN)/python packaging/manual/collect.py build/manual
	@$(BIN)/sphinx-build -q -W --keep-going -n -E -d build/doctrees -c packaging/manual build/manual $(MANUAL)
	@echo 'The manual is in $(MANUAL)/index.html'

$(WHEELS)/.complete: requirements/build.txt requirements/runtime.txt
	@tests/lab/install-packages $(PACKAGING)
	@packaging/tools/collect-wheels $(PACKAGE_PYTHON) $(WHEELS)
	@touch $@

install: $(WHEELS)/.complete
	@$(PACKAGE_PYTHON) packaging/tools/stage.py --destdir '$(or $(DESTDIR),/)' --prefix '$(PREFIX)' --wheels $(WHEELS)

deb: $(WHEELS)/.complete
	@packaging/tools/make-deb $(WHEELS) dist

rpm: $(WHEELS)/.complete
	@tests/lab/install-packages rpm
	@packaging/tools/make-rpm $(WHEELS) dist

test-packages: venv $(WHEELS)/.complete
	@tests/lab/install-packages buildah debootstrap iproute2 lintian podman rpm runc
	@KEYLIME_TEST_PACKAGES=1 $(BIN)/python -m pytest -v -s tests/packages

test-systemd: venv $(WHEELS)/.complete
	@tests/lab/install-packages debootstrap iproute2 openssh-client swtpm swtpm-tools systemd-container
	@KEYLIME_TEST_SYSTEMD=1 $(BIN)/python -m pytest -v -s tests/machines

test-browser: venv
	@tests/lab/install-packages chromium chromium-driver fonts-dejavu-core
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[browser]'
	@KEYLIME_TEST_BROWSER=1 $(BIN)/python -m pytest -v tests/browser

config: venv
	@$(BIN)/python -m keylime.config.packaged config
	@$(BIN)/python -m keylime.config.reference docs/reference/configuration.md
	@$(BIN)/python -m keylime_tenant.json_documents > docs/reference/keylime_tenant.schema.json
	@$(BIN)/python -m keylime_policy.json_documents > docs/reference/keylime-policy.schema.json
	@$(BIN)/python -m keylime_agent.json_documents > docs/reference/keylime_agent.schema.json

requirements: lock

$(FOLDERS):
	@echo '$@/ is a folder in which nothing is made; make help lists the targets' >&2
	@exit 2

clean:
	@rm -rf $(VENV) .audit .demo .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
