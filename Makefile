# One command each; every target sets up what it needs first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup demo test test-312 gpu chaos lint bench clean

setup: .venv/.done

.venv/.done: pyproject.toml requirements/lock.txt requirements/install.sh
	requirements/install.sh $(PYTHON)
	@touch $@

demo: setup
	$(BIN)/spectral demo

# Two files at a time, those that start processes first, so that both cores have work to the end
PYTEST := pytest -n 2 --dist loadfile --no-loadscope-reorder

test: setup
	OMP_NUM_THREADS=1 $(BIN)/$(PYTEST) -m "not chaos and not gpu"

# The tests that start no processes, with Python 3.12 in an environment of its own
test-312: .venv-312/.done
	OMP_NUM_THREADS=1 .venv-312/bin/$(PYTEST) -m "not processes and not chaos and not gpu"

.venv-312/.done: pyproject.toml requirements/lock.txt requirements/install.sh
	requirements/install.sh python3.12 .venv-312
	@touch $@

# What only a GPU can show; on a machine without one it fails
gpu: setup
	$(BIN)/pytest -m gpu

# The long form of the tests that kill processes and flip bits
chaos: setup
	$(BIN)/pytest -m chaos

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# SOURCE: a folder of images, at best photographs of ImageNet's size
bench: setup
	$(BIN)/python benchmarks/size.py $(SOURCE)
	$(BIN)/python benchmarks/prepare.py $(SOURCE)
	$(BIN)/python benchmarks/loader.py $(SOURCE)
	$(BIN)/python benchmarks/against_ffcv.py $(SOURCE)
	$(BIN)/pip install --quiet --target .venv/stock-pillow --no-deps pillow==12.1.1
	$(BIN)/python benchmarks/against_ffcv.py $(SOURCE) --decoder torchvision --pillow .venv/stock-pillow
	$(BIN)/python benchmarks/published_way.py $(SOURCE)
	$(BIN)/python benchmarks/open.py

clean:
	rm -rf .venv .venv-312 demo dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
