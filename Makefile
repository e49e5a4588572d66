# make install   a virtual environment in .venv with all that the demo and the tests need
# make demo      eight domains of real text, Chameleon against uniform weights, on two CPU cores
# make demo-sft  seven languages to translate into, finetuned from the demo's model, the same
# make test      what needs no GPU, in minutes
# make test-all  ruff and mypy too, and what takes real starts under torchrun
# make test-gpu  what does
# make bench-quality SIZE=smoke|cpu|gpu [CORPORA=FOLDER]   does it pay? benchmarks/mixtures
# make test-slurm   recipes/slurm on a SLURM of two nodes, on this machine, as root
# make test-nemo, make test-bridge   the hosts' own training, each in an environment of its own
# make check     ruff, mypy, and which package may import which

.DELETE_ON_ERROR:
.PHONY: install demo demo-sft test test-all test-gpu test-nemo test-bridge test-slurm bench-quality check clean

PYTHON ?= python3
BIN := .venv/bin
RUN := runs/demo
SIZE ?= smoke
# The size itself, and those that finetune its model.
SIZES = $(SIZE) $(basename $(notdir $(wildcard benchmarks/mixtures/sizes/$(SIZE)-*.yaml)))
CORPORA ?=

# Two processes on two cores: more threads would only fight. And glibc gives every large buffer
# back to the kernel unless told to keep it, which costs a fifth of the speed of a small model.
export OMP_NUM_THREADS := 1
export MALLOC_MMAP_THRESHOLD_ := 33554432
export MALLOC_TRIM_THRESHOLD_ := 134217728

TRAIN = $(BIN)/torchrun --nproc_per_node=2 recipes/pretrain_chameleon.py --config conf/demo.yaml
TUNE = $(BIN)/torchrun --nproc_per_node=2 recipes/sft_chameleon.py --config conf/demo_sft.yaml

install: .venv/installed

# torch first and pinned: a range would bring the newest build and its CUDA packages.
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
	$(TRAIN) data.mixture=chameleon
	$(TRAIN) data.mixture=uniform
	@echo
	$(BIN)/nemo-chameleon report $(RUN)/uniform $(RUN)/chameleon
	@echo
	@echo "The mixture: $(RUN)/mixture.json. Next, with your own domains:"
	@echo "  1. copy conf/pretrain_chameleon.yaml and name your Megatron datasets in it"
	@echo "  2. torchrun --nproc_per_node=8 recipes/pretrain_chameleon.py --config YOURS.yaml"
	@echo "Or train this one again, from this mixture with weights you changed by hand:"
	@echo "  torchrun --nproc_per_node=2 recipes/pretrain_chameleon.py --config conf/demo.yaml \\"
	@echo "    data.mixture=mine.json"

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

# A file's tests share what is made once a file, so each file is one worker's. In their own order
# files of a few long tests are not the last.
TEST = $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore=tests/slurm

test: .venv/installed
	$(TEST) -m "not gpu and not slow"

test-all: .venv/installed check
	$(TEST) -m "not gpu"

# Goes on with what benchmarks/mixtures/results has; can be stopped any time.
bench-quality: .venv/installed
	set -e; for size in $(SIZES); do \
	  $(BIN)/python -m benchmarks.mixtures.run $$size $(if $(CORPORA),--corpora $(CORPORA)); done
	$(BIN)/python -m benchmarks.mixtures.report $(if $(filter smoke%,$(SIZE)),$(SIZES))

test-gpu:
	$(PYTHON) -m pytest -m gpu

# torch first, for its dependencies; the rest is pinned whole, for the hosts ask for packages that
# need CUDA, or for versions that do not go together.
.venv-%/installed: tests/hosts/requirements-%.txt setup.cfg
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check \
		$$(grep '^torch==' $<) pytest hypothesis
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement $<
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

test-nemo test-bridge: test-%: .venv-%/installed
	.venv-$*/bin/python -m pytest tests/hosts/test_$*.py

# A real SLURM of two nodes on this machine; as root. NeMo's environment brings NeMo-Run.
test-slurm: .venv/installed .venv-nemo/installed
	command -v slurmctld munged shellcheck > /dev/null || \
		(apt-get update -qq && apt-get install -y -qq slurm-wlm munge shellcheck)
	$(BIN)/python -m pytest tests/slurm

check: .venv/installed
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

clean:
	rm -rf runs build *.egg-info
