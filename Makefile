# Every target sets up what it needs in .venv; nothing has to be done beforehand.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS := multiobjective,tables,mnist1d,parquet,ray,dask,onnxruntime,test
export OMP_NUM_THREADS ?= 1

.PHONY: demo test lint types contracts docs bench claims clean

$(VENV)/.core: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -q 'torch>=2.13,<2.14'
	$(BIN)/pip install -q -e .
	touch $@

$(VENV)/.test: $(VENV)/.core
	$(BIN)/pip install -q -e '.[$(EXTRAS)]'
	touch $@

$(VENV)/.dev: $(VENV)/.test
	$(BIN)/pip install -q -e '.[$(EXTRAS),lint,docs]'
	touch $@

demo: $(VENV)/.core  ## the main job on embedded real data
	rm -rf runs/demo
	$(BIN)/archipel search --data digits --limit macs=250k --limit params=20k --budget 16 --epochs 4 \
	    --final-epochs 20 --workers 2 --seed 0 --out runs/demo

test: $(VENV)/.test  ## the whole test suite
	$(BIN)/python -m pytest -n 2 $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/pyright

contracts: $(VENV)/.dev
	$(BIN)/lint-imports

docs: $(VENV)/.dev
	$(BIN)/mkdocs build --strict -q

bench: $(VENV)/.test  ## speed against real alternatives, in an environment of its own
	benchmarks/run.sh

claims: $(VENV)/.test  ## run all claims; goes on where it stopped
	$(BIN)/archipel claim --all

clean:
	rm -rf $(VENV) .venv-bench site build dist runs .pytest_cache .ruff_cache
