# ST-AnD. `make help` lists what can be made. All work happens in a virtual environment, .venv by default.
PYTHON ?= python3.11
VENV ?= .venv
TUTORIAL_OUT ?= tutorial-output
BENCHMARK_OUT ?= benchmark-output
JOBS ?= 2
SLOW_JOBS ?= 2
BIN := $(VENV)/bin
STAMP := $(VENV)/.stand-installed

.DEFAULT_GOAL := help
.PHONY: help env test slow browser tutorial docs export readme prepare hooks figures benchmark clean

help: ## list these targets
	@grep -hE '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /  make \1|/' | awk -F'|' '{printf "%-18s%s\n", $$1, $$2}'
	@echo "Settings: PYTHON=$(PYTHON) VENV=$(VENV) TUTORIAL_OUT=$(TUTORIAL_OUT) BENCHMARK_OUT=$(BENCHMARK_OUT)"
	@echo "          JOBS=$(JOBS) SLOW_JOBS=$(SLOW_JOBS) (notebooks tested at a time) BROWSER=$(BROWSER) (words for scripts/test_viewer.py)"
	@echo "          STAND_SECTION (for make tutorial: a section of your own) STAND_DATA (folder of real sections)"

env: $(STAMP) ## make the environment and install the package for development (again when settings.ini or setup.py change)

$(STAMP): settings.ini setup.py
	@test -x $(BIN)/python || command -v $(PYTHON) > /dev/null || { \
	  echo "$(PYTHON) was not found. ST-AnD needs Python 3.11 or 3.12: install it, or name yours: make PYTHON=python3.12 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "$(PYTHON) is older than Python 3.11, which ST-AnD needs; name another: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt install python3.11-venv"; exit 1; }
	@echo "installing into $(VENV); this takes some minutes and about 7 GB"
	@$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -m pip install --quiet --editable '.[dev,docs]'
	@touch $@

test: env ## test every notebook in a process of its own
	@$(BIN)/python scripts/test_notebooks.py --jobs $(JOBS)

slow: env ## test the notebooks that use real data (../shared/data or STAND_DATA) with these cells
	@$(BIN)/python scripts/test_notebooks.py --flags slow --jobs $(SLOW_JOBS)

browser: env ## test the viewer in a real browser (needs Chromium or Chrome; BROWSER="--keep DIR" keeps the screenshots)
	@$(BIN)/python scripts/test_viewer.py $(BROWSER)

tutorial: env ## run STAnD-tutorial.ipynb (STAND_SECTION=... for your section); it and its pictures go to tutorial-output/
	@$(BIN)/python scripts/run_notebooks.py STAnD-tutorial.ipynb --to $(TUTORIAL_OUT)

docs: env ## build the documentation in _docs/html and check it: names, links, spelling; its examples are run
	@$(BIN)/python scripts/build_docs.py
	@$(BIN)/python scripts/check_docs.py --jobs $(JOBS)

export: env ## clean the notebooks and export them to stand/
	@$(BIN)/nbdev_clean
	@$(BIN)/nbdev_clean --fname STAnD-tutorial.ipynb
	@$(BIN)/nbdev_export

readme: env ## write README.md from nbs/index.ipynb
	@$(BIN)/python scripts/build_readme.py

prepare: export readme ## what to do before a commit: clean, export, README

hooks: env ## let git keep notebooks clean: a check before each commit, and merges cell by cell
	@git config core.hooksPath scripts/hooks
	@git config merge.nbdev-merge.name "merge notebooks cell by cell"
	@git config merge.nbdev-merge.driver "$(abspath $(BIN))/nbdev_merge %O %A %B %P"
	@echo "git uses scripts/hooks; undo it with: git config --unset core.hooksPath"

figures: env ## draw the figures of the README again (needs section C4 in ../shared/data or STAND_DATA)
	@$(BIN)/python scripts/make_figures.py

benchmark: env ## score all methods on all tasks into benchmark-output/ (goes on where it was), and keep the summary for the README's table
	@$(BIN)/stand benchmark --out $(BENCHMARK_OUT)
	@cp $(BENCHMARK_OUT)/summary.csv figures/benchmark.csv

clean: ## remove what builds and runs left behind, but not the environment
	@rm -rf build dist *.egg-info _docs _proc $(TUTORIAL_OUT)
	@find . -path './.venv*' -prune -o \( -name __pycache__ -o -name .ipynb_checkpoints \) -type d -print0 | xargs -0 rm -rf
