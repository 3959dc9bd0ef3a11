# Everything runs in .venv, which is made and updated as needed. PYTHON is the interpreter that makes it (3.11 or later).
PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
OLD := .venvs/transformers-4.40.2
PIP := $(BIN)/python -m pip --disable-pip-version-check install --constraint constraints.txt
# Of WikiText-2's test text, which no model here has seen in training; chosen since the model gets the word right.
SENTENCE := Ironclads were widely used in South <mask>.

.PHONY: help demo docs figures test test-browser test-docs test-kernels test-ecosystem test-transformers test-contrib test-versions contrib lint bench clean

help:
	@echo "make demo               words to phonemes, a long text in one go, a masked word: with the bundled models"
	@echo "make test               the tests (ARGS=... goes to pytest); makes an environment of transformers 4.40.2 too"
	@echo "make test-ecosystem     the tests with other libraries (PEFT, quantisation and more), which it installs"
	@echo "make test-transformers  transformers' own model tests on our models"
	@echo "make test-versions      all tests on the lowest and the newest supported release of transformers"
	@echo "make test-browser       the page in a headless Chromium (CHROMIUM=... names it); skipped without one"
	@echo "make docs               the documentation as a site, in build/site"
	@echo "make figures            the pictures of the documentation, drawn anew"
	@echo "make test-docs          the code of every page of the documentation"
	@echo "make test-kernels       Triton's kernels: on a GPU, or in Triton's interpreter (part of make test)"
	@echo "make contrib            Mega as a pull request to transformers would have it (ARGS=path; default: build/transformers)"
	@echo "make test-contrib       transformers' own tests and style checks on that"
	@echo "make lint               ruff, mypy, codespell, proselint, and phrases that read badly"
	@echo "make bench              speed and memory against other models (ARGS=... goes to mega bench)"
	@echo "make clean              remove .venv, caches and builds"

demo: $(VENV)/.installed
	@printf '\nEnglish words as phonemes, by a model of a million parameters:\n\n'
	$(BIN)/mega text2text mega moving average equipped gated attention
	@printf '\nA long text as one vector, read in one go (time and memory are linear in its length):\n\n'
	$(BIN)/mega embed --file recipes/sample/train.txt
	@printf '\nWhat a masked language model puts in place of <mask>:\n\n'
	$(BIN)/mega fill-mask "$(SENTENCE)"

# What 4.40.2 computes is compared with what we compute. Where its environment cannot be made, pytest skips that.
test: $(VENV)/.installed-dev
	-@test -n "$$MEGA_OLD_PYTHON" || test -e $(OLD)/complete || $(BIN)/python -m benchmarks.peers
	MEGA_OLD_PYTHON="$${MEGA_OLD_PYTHON:-$$(test -e $(OLD)/complete && echo $(CURDIR)/$(OLD)/bin/python)}" \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --ignore=tests/transformers_suite --ignore=tests/ecosystem \
	  --ignore=tests/browser --ignore=tests/docs --ignore=tests/kernels --numprocesses=2 $(ARGS)
	@test -n "$(ARGS)" || $(MAKE) --no-print-directory test-kernels

# A process of its own: Triton's interpreter is for a whole process.
test-kernels: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/kernels --numprocesses=2 $(ARGS)

docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "Open build/site/index.html. To search, serve it: $(BIN)/python -m http.server --directory build/site"

# Pictures of the documentation are drawn anew only on purpose: fonts and versions of matplotlib change their bytes.
figures: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python docs/figures/make.py

test-docs: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/docs --numprocesses=2 $(ARGS)

test-browser: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser $(ARGS)

# Where a library is missing, its tests are skipped. ARGS=--write-table writes what passed into docs/compatibility.md.
test-ecosystem: $(VENV)/.installed-ecosystem
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/ecosystem --numprocesses=2 $(ARGS)

test-transformers: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/transformers_suite --numprocesses=2 $(ARGS)

contrib: $(VENV)/.installed-dev
	$(BIN)/python contrib/transformers/build.py $(or $(ARGS),build/transformers)

test-contrib: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python contrib/transformers/check.py $(ARGS)

test-versions: $(VENV)/.installed-dev
	$(BIN)/python -m nox $(if $(ARGS),-- $(ARGS))

lint: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/codespell
	$(BIN)/python -m proselint --config .proselintrc.json check $$(git ls-files '*.md' ':!docs/cards' ':!src')
	$(BIN)/python -m pytest tests/docs/test_english.py tests/docs/test_help.py --quiet

bench: $(VENV)/.installed-dev
	$(BIN)/mega bench $(ARGS)

clean:
	rm -rf $(VENV) .venvs .nox build dist .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, for example: make PYTHON=python3.12 demo")'
	$(PYTHON) -m venv $(VENV)

# PyTorch alone takes minutes to download, so pip shows how far it is; it does not for the rest, which is small.
$(VENV)/.torch: constraints.txt | $(VENV)/bin/python
	@echo "Installing PyTorch into $(VENV); the first time takes minutes."
	$(PIP) torch
	@touch $@

# What is installed depends on these two files only: the package itself is linked to, not copied.
$(VENV)/.installed: pyproject.toml constraints.txt $(VENV)/.torch
	@echo "Installing the package and what else it needs into $(VENV), without much to see; this takes a minute."
	$(PIP) --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt $(VENV)/.torch
	@echo "Installing the package and the tools of its tests into $(VENV); the first time takes minutes."
	$(PIP) --quiet --editable '.[dev,gpu]'
	@touch $(VENV)/.installed $@

$(VENV)/.installed-ecosystem: $(VENV)/.installed-dev
	@echo "Installing the libraries of tests/ecosystem into $(VENV); the first time takes minutes."
	$(PIP) --quiet --editable '.[dev,gpu,ecosystem]'
	@touch $@
