# `make run` opens the workbench on the sample project; `make test` proves the build.
# Everything else is listed by `make help`.

PROJECT ?= sample-data/tickets
CARGO ?= cargo
TEST_FLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup build run demo test bench bench-peers bench-workbench bench-data gpu-check kernels fuzz lint deny clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## find or install libtorch 2.11 and fetch the sample base model
	@python3 scripts/setup.py

build: setup ## release build of luthier and luthier-engine
	$(CARGO) build --release --locked --bins

run: build ## open the workbench on the sample project (PROJECT=… for another)
	@target/release/luthier $(PROJECT)

demo: build ## the sample job without a terminal: check, fine-tune, evaluate, report
	@python3 scripts/demo.py

test: setup ## every test, also on a machine without a GPU
	$(CARGO) build --workspace --locked --bins
	$(CARGO) test --workspace --locked --no-fail-fast $(TEST_FLAGS)

bench: build ## tokens per second and peak memory, per method and number format, on this machine
	@python3 bench/bench.py

bench-peers: build ## the same work through transformers + PEFT, in turn with ours, as ratios (installs them into the cache)
	@python3 bench/peers.py

bench-workbench: build ## what the workbench itself costs: time to the first frame, memory, bytes written to the terminal
	@python3 bench/workbench.py

bench-data: build ## checking a dataset of 100,000 rows: time and memory
	@python3 bench/data.py

gpu-check: build ## what a checkout needs beside it to be checked on a machine with a GPU, and the command for it
	@python3 scripts/gpu_check/pack.py

kernels: ## compile every kernel for CUDA for each GPU architecture, without a GPU (installs the compiler into the cache)
	@python3 scripts/kernels.py

fuzz: ## every reader of what others wrote against hostile input, FUZZ_SECONDS=10 each
	@python3 scripts/fuzz.py

lint: setup ## formatting and lints, warnings are errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

deny: ## licences, sources and advisories of everything the project depends on
	@python3 scripts/deny.py

clean: ## remove build products (the shared cache and your runs stay)
	$(CARGO) clean
	rm -f .libtorch .libtorch.path
	rm -rf .gpu
	rm -rf fuzz/target fuzz/corpus fuzz/artifacts
