# The same words locally and in CI.
PYTHON ?= python

.PHONY: install lint format test slow accuracy pages pages-check notebook site amazon wheel dist
install:
	$(PYTHON) -m pip install -c constraints.txt -e '.[dev]'
lint:
	ruff check . && ruff format --check . && codespell && mypy
format:
	ruff check --fix . && ruff format .
test:
	$(PYTHON) -m pytest
slow:
	$(PYTHON) -m pytest -m slow
accuracy:
	$(PYTHON) -m pytest -m accuracy -n 1 tests/accuracy
pages:
	$(PYTHON) -m recbole_cafe.benchmark.pages
	$(PYTHON) docs/_site/figure.py
pages-check:
	$(PYTHON) -m recbole_cafe.benchmark.pages --check
notebook:
	$(PYTHON) docs/_site/notebook.py
site:
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict
amazon:
	recbole-cafe simulate --name=amazon --out=dataset_atomic --replace
wheel:
	$(PYTHON) -m pip wheel --no-deps -w dist .
dist:
	rm -rf dist && $(PYTHON) -m build && $(PYTHON) -m twine check --strict dist/*
