# make demo: watch DaGRPO train next to Dr. GRPO, then look at the curves.   make test: the tests.
# Both set up everything they need: a virtual environment in .venv with the versions pinned in requirements.txt.

# PIP_ARGS is passed to pip, for example to install a CPU build of PyTorch from PyTorch's own index (see README.md).
PYTHON ?= python3
PIP_ARGS ?=
PY := .venv/bin/python
WORLD ?= guess
DEMO := runs/demo/$(WORLD)
DEMO_METHODS := dr_grpo dagrpo_on dagrpo
DEMO_STEPS := 100
PYTEST := $(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile

.PHONY: help demo lessons laptop figures test test-all lint format lock clean-demo
help:
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 14

demo: .venv/ready  ## train, evaluate and plot dr_grpo, dagrpo_on and dagrpo (3 to 7 minutes on two cores); WORLD=plain
	$(PY) eval.py --world $(WORLD) --k 0 --out $(DEMO)/start.json
	for method in $(DEMO_METHODS); do \
		$(PY) train.py --world $(WORLD) --method $$method --steps $(DEMO_STEPS) --seed 0 --out $(DEMO)/$$method --resume || exit; \
	done
	for method in $(DEMO_METHODS); do $(PY) eval.py --k 0 --model $(DEMO)/$$method || exit; done
	$(PY) -m analysis.table $(DEMO_METHODS:%=$(DEMO)/%) --baseline "$(DEMO)/start.json:warm start"
	$(PY) -m analysis.curves $(DEMO_METHODS:%=$(DEMO)/%) --out $(DEMO)/figures
	@echo "docs/experiments.md says what more seeds show, and why; docs/worlds.md what the world $(WORLD) is."
	@echo "Next: look inside the groups with  $(PY) -m analysis.viewer $(DEMO)/dagrpo_on  or at two worked ones with  $(PY) dagrpo.py"

lessons: .venv/ready-extra  ## the six notebooks, in Jupyter
	cd lessons && ../$(PY) -m jupyter lab 1_a_group.ipynb

MODEL ?= HuggingFaceTB/SmolLM2-135M-Instruct
laptop: .venv/ready  ## a real model learns, on two cores: SFT, dr_grpo, dagrpo (hours; stop and go on as you like); MODEL=DIR
	$(PY) -m analysis.real_run --plan laptop --model $(MODEL)

figures: .venv/ready  ## redraw every figure in results/ from its CSV, and print the tables, without training
	$(PY) -m analysis.first_figure
	$(PY) -m analysis.curves --from-csv results/demo/curves.csv
	$(PY) -m analysis.curves --from-csv results/laptop/curves.csv
	$(PY) -m analysis.conflict --from-csv results/conflict/conflict.csv
	$(PY) -m analysis.shared --from-csv results/shared/shared.csv
	$(PY) -m analysis.bench.growth --from-csv results/growth/growth.csv
	$(PY) -m analysis.experiments.methods --from results/methods
	$(PY) -m analysis.experiments.worlds
	$(PY) -m analysis.experiments.claims
	$(PY) -m analysis.experiments.further
	$(PY) -m analysis.experiments.conflict_seeds --from-csv results/worlds/conflict_seeds.csv
	$(PY) -m analysis.bench.sizes
	$(PY) -m analysis.weights --from-csv results/weights/weights.csv

test: .venv/ready  ## the tests (3 to 10 minutes)
	$(PYTEST) -m "not extra"

test-all: test .venv/ready-extra  ## also tests that kill processes or need extras or real data, and the notebooks; lists skips
	$(PYTEST) -m extra -rs --nbmake tests lessons

lint: .venv/ready  ## check the code with ruff
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: .venv/ready  ## format the code with ruff
	$(PY) -m ruff format .

clean-demo:  ## delete the demo's runs, so that the next make demo trains again
	rm -rf runs/demo

LOCK := uv pip compile --universal --python-version 3.11 --no-header --no-annotate pyproject.toml
lock:  ## pin the newest versions that pyproject.toml allows (needs uv)
	$(LOCK) --extra dev -o requirements.txt
	$(LOCK) --all-extras -o requirements-extra.txt
	sed -i -E '/^(nvidia-|cuda-|triton)/d' requirements.txt requirements-extra.txt  # torch pins its own

.venv/ready: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is missing or older than 3.11; name another Python: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv .venv
	@echo "installing PyTorch and other packages; the CUDA build unpacks 6 GB, and nothing is printed for some minutes"
	.venv/bin/python -m pip install --disable-pip-version-check $(PIP_ARGS) -r requirements.txt
	@touch $@

.venv/ready-extra: .venv/ready requirements-extra.txt
	.venv/bin/python -m pip install --disable-pip-version-check -q $(PIP_ARGS) -r requirements-extra.txt
	@touch $@
