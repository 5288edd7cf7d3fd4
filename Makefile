# make demo    make .venv, install, compile and run real models on this machine's CPU
# make test    make .venv with the test extra, run the whole test suite
# make check   ruff and mypy
#
# Needs Python 3.11 or newer and nothing else: no C compiler. PYTHON=/path/to/python chooses another one.

VENV := .venv
SHELL := /bin/sh

# python3 if it is new enough, else the newest that is
FIND_PYTHON = for name in $(PYTHON) python3 python3.13 python3.12 python3.11 /usr/local/bin/python3 /usr/bin/python3; do \
	"$$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo "$$name"; break; }; done

.PHONY: demo test check clean

demo: $(VENV)/.installed
	@$(VENV)/bin/python examples/demo.py

test: $(VENV)/.installed-test
	$(VENV)/bin/pytest $(PYTEST_FLAGS)

# The root folders are one package only once installed; mypy sees them so through a folder of links.
check: $(VENV)/.installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	@rm -rf build/typed && mkdir -p build/typed/dlcompiler
	@for path in dlcompiler/*; do ln -s ../../../$$path build/typed/$$path; done
	@for folder in ir passes codegen runtime; do ln -s ../../../$$folder build/typed/dlcompiler/$$folder; done
	cd build/typed && ../../$(VENV)/bin/mypy --config-file ../../pyproject.toml -p dlcompiler

clean:
	rm -rf $(VENV) build

$(VENV)/bin/python:
	@python=$$($(FIND_PYTHON)); \
	if [ -z "$$python" ]; then echo "Python 3.11 or newer is needed; give it as PYTHON=/path/to/python" >&2; exit 1; fi; \
	echo "making $(VENV) with $$python"; "$$python" -m venv $(VENV)

# Installed again only when pyproject.toml changes. torch comes first, at one version, so that all else is resolved around it.
$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet torch==2.13.0
	$(VENV)/bin/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(VENV)/bin/python -m pip install --quiet --editable '.[test]'
	@touch $@
