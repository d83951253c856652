# Every target sets up what it needs: `make demo` and `make test` work from a bare clone.

SHELL := /bin/bash
.DEFAULT_GOAL := help
BIN := .venv/bin
READY := .venv/.ready
DEMO := .venv/.ready-demo
N ?= 2
SERVERS := PYTHONPATH=tests $(BIN)/python -m contract.ready
PYTEST := $(BIN)/pytest -q -n $(N) --dist worksteal

.PHONY: help demo demo-server test test-long test-pure test-pythons test-all test-sim test-fuzz test-hot test-crash test-cgroup2 test-sdks mutants bench bench-languages bench-peers bench-http bench-server profile check lock clean

help:  ## show this
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(READY): pyproject.toml requirements.lock scripts/setup hatch_build.py src/grape/_hot.c
	@scripts/setup

$(DEMO): pyproject.toml requirements.lock scripts/setup hatch_build.py src/grape/_hot.c
	@scripts/setup demo

demo: $(DEMO)  ## count the words of a real book, twice: the second run resumes
	@scripts/demo

demo-server: $(READY)  ## three apps on a server: calls through all of them, an upgrade in the middle, the dashboard's address
	@scripts/demo-server

test: $(READY)  ## the default suite, in N=2 processes: some minutes
	@scripts/sdks > /dev/null
	@$(SERVERS)
	$(PYTEST) -m "not slow"

test-long: $(READY)  ## what takes some seconds each (tests/long.txt): a quarter of an hour
	@scripts/sdks > /dev/null
	@$(SERVERS)
	$(PYTEST) -m long

test-pure: $(READY)  ## with the loops in Python: the default suite, or TESTS="tests/unit tests/sim"
	@scripts/sdks > /dev/null
	@$(SERVERS)
	GRAPE_PURE=1 $(PYTEST) -m "not slow" $(TESTS)

test-pythons: $(READY)  ## the unit tests under Python 3.11 to 3.14 (PYTHONS="3.12" TESTS=tests/contract)
	@scripts/test-pythons $(TESTS)

test-all: $(READY)  ## everything, also what takes long
	@scripts/sdks > /dev/null
	@$(SERVERS)
	$(PYTEST)
	@scripts/test-sdks

test-sim: $(READY)  ## the simulator: 10,000 seeds, 10,000 with changing code, 100,000 of async nodes in cycles (two hours)
	GRAPE_SIM_SEEDS=10000 GRAPE_SIM_CHANGES=10000 GRAPE_SIM_CYCLES=100000 GRAPE_SIM_SHARED=10000 GRAPE_SIM_ORDERED=10000 GRAPE_SIM_OBJECTS=10000 $(BIN)/pytest -q tests/sim

test-fuzz: $(READY)  ## lies of workers, of HTTP clients and at the door, broken frames, for two hours: by chance, then guided by coverage
	GRAPE_FUZZ_SECONDS=900 $(BIN)/pytest -q --timeout 3600 tests/unit/test_fuzz_protocol.py
	$(BIN)/python -m tests.fuzz.http 300
	$(BIN)/python -m tests.fuzz.door 300
	@scripts/fuzz-guided 900

test-hot: $(READY)  ## the module in C with sanitizers, beside its twin in Python: some minutes
	@scripts/test-hot

test-crash: $(READY)  ## SIGKILL at random moments, at least 50 times: of runs on 20 MB of text, and of a server
	$(BIN)/python -m tests.crash.run
	$(BIN)/python -m tests.crash.server

test-cgroup2: $(READY)  ## control groups of version 2, in a virtual machine (it says how long that takes)
	@scripts/cgroup2-vm

mutants: $(READY)  ## MODULE=grape.model.batch: what may be changed in it and no test notices (MOST=100 SEED=0 TESTS=tests/unit)
	@test -n "$(MODULE)" || { echo "which MODULE=? as in: make mutants MODULE=grape.model.batch" >&2; exit 2; }
	$(BIN)/python -m tests.mutants $(MODULE) $(or $(MOST),100) $(or $(SEED),0) $(TESTS)

bench: $(READY)  ## our rows beside limits and peers; writes benchmarks/results.json
	@scripts/setup bench
	$(BIN)/python -m benchmarks

bench-peers: $(READY)  ## beside Dramatiq, Celery, FastStream, Huey, Pathway and DBOS, which it installs: ten minutes
	@scripts/peers
	$(BIN)/python -m benchmarks.queues $(ARGS)

bench-server: $(READY)  ## between apps of a server, and what they do to one another; writes benchmarks/results-server.json
	$(BIN)/python -m benchmarks.server $(ARGS)

bench-http: $(READY)  ## a server over HTTP, beside its limits: events, calls, batches (wrk); writes benchmarks/results-http.json
	@scripts/setup bench
	$(BIN)/python -m benchmarks.http $(ARGS)

profile: $(READY)  ## where the time goes: ROW=keyed-1k, keyed-1m, chain-functions, chain-nodes or wordcount
	@test -n "$(ROW)" || { echo "which ROW=? as in: make profile ROW=chain-nodes" >&2; exit 2; }
	@scripts/setup bench
	@$(BIN)/python -m benchmarks.profile $(ROW) $(SIZE)

test-sdks: $(READY)  ## the SDKs' own tests, by the usual runner of each language
	@scripts/test-sdks

bench-languages: $(READY)  ## a keyed count in every language, beside Storm's way; and how long a worker takes to start
	@scripts/sdks bench > /dev/null
	$(BIN)/python -m benchmarks --only languages,language-start

check: $(READY)  ## ruff, mypy strict, the architecture test
	$(BIN)/ruff check src tests examples benchmarks
	$(BIN)/ruff format --check src tests examples benchmarks
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_architecture.py

lock: $(READY)  ## write requirements.lock anew from what is installed
	$(BIN)/pip freeze --exclude-editable > requirements.lock

clean:  ## remove what the targets made
	rm -rf .venv demo-data .pytest_cache .mypy_cache .ruff_cache .hypothesis .cache
