# Each target sets up what it needs; a second call installs nothing again.
PYTHON ?= python3
SEED ?= 0
RECIPE ?= ispo
WORKDIR ?= runs/$(RECIPE)-$(SEED)
RUN := .venv/bin/python

.PHONY: train test test-all test-parity compare bench lint format embedded starts clean

train: .venv/.installed
	$(RUN) -m jaxrl_reason.train --config=configs/$(RECIPE).py:model=tiny,task=arithmetic \
	  --config.seed=$(SEED) --workdir=$(WORKDIR)

test: .venv/.installed-dev
	$(RUN) -m pytest -q -m "not slow and not parity"

test-all: .venv/.installed-dev
	$(RUN) -m pytest -q -m "not parity"

# Against transformers and PyTorch, in an environment of its own
test-parity: .venv-parity/.installed
	.venv-parity/bin/python -m pytest -q -m parity

# ISPO, GRPO and literal ISPO on the embedded model, three seeds each, and their table
compare: .venv/.installed
	for recipe in ispo grpo ispo_literal; do for seed in 0 1 2; do \
	  $(MAKE) --no-print-directory train RECIPE=$$recipe SEED=$$seed || exit 1; \
	done; done
	$(RUN) -m jaxrl_reason.report.compare runs/ispo-? runs/grpo-? runs/ispo_literal-?

bench: .venv/.installed-dev
	$(RUN) -m tests.bench

lint: .venv/.installed-dev
	.venv/bin/ruff check . && .venv/bin/ruff format --check .

format: .venv/.installed-dev
	.venv/bin/ruff check --fix . && .venv/bin/ruff format .

# How jaxrl_reason/embedded/tiny was made: learn to think, then mostly to answer at once
embedded: .venv/.installed
	$(RUN) -m jaxrl_reason.embedded.make_tokenizer jaxrl_reason/embedded/tiny
	for stage in think direct; do \
	  $(RUN) -m jaxrl_reason.sft --config=configs/embedded.py:$$stage --workdir=runs/embedded/$$stage && \
	  $(RUN) -m jaxrl_reason.export --workdir=runs/embedded/$$stage || exit 1; \
	done
	cp runs/embedded/direct/export/* jaxrl_reason/embedded/tiny/

# Models whose thinking is often wrong, to start the runs of configs/sweeps/std_floor.py from
starts: .venv/.installed
	for stage in early_think early_direct; do \
	  $(RUN) -m jaxrl_reason.sft --config=configs/embedded.py:$$stage --workdir=runs/starts/$$stage && \
	  $(RUN) -m jaxrl_reason.export --workdir=runs/starts/$$stage || exit 1; \
	done

.venv/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, found " + sys.version)'
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q --disable-pip-version-check -e .
	touch $@

.venv/.installed-dev: .venv/.installed
	.venv/bin/python -m pip install -q --disable-pip-version-check -e ".[dev]"
	touch $@

.venv-parity/.installed: pyproject.toml
	test -x .venv-parity/bin/python || $(PYTHON) -m venv .venv-parity
	.venv-parity/bin/python -m pip install -q --disable-pip-version-check -e ".[dev,parity]"
	touch $@

clean:
	rm -rf .venv .venv-parity runs
