# Everything a person does with the sources. `make help` lists it.
SHELL    := /bin/bash
GO       ?= go
BIN      := bin/keelson
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  := -s -w -X main.version=$(VERSION)
export CGO_ENABLED := 0

# Of `make sim`: how many seeds, and the first of them; or one SEED, with its whole trace.
SEEDS     ?= 1000
SEED_BASE ?= 1
SEED      ?=
# Of `make sim-mutants`: which mistakes are planted, as a regular expression; all if empty.
MUTANT    ?=
# Of `make fuzz`: how long each target runs.
FUZZTIME  ?= 30s
# Of `make chaos`: how long, and the seed of the plan; 0 takes one from the clock.
MINUTES     ?= 5
CHAOS_SEED  ?= 0
CHAOS_FLAGS ?=
# Of `make takeover`: how many kills of children; of the supervisor a fifth of that.
KILLS       ?= 100
# Of `make e2e`: which cases, as a regular expression; all if empty.
CASES       ?=
# Of `make system`: the tests of what stands on the volumes, as a regular expression.
SERVICES    := ^Test(CSI|Inline|Doctor|Orphan|Probe|SupportBundle|FailoverOfPods|Metadata|Encrypted|NothingOf|Group|BadGroups|AttachedSnapshot|Snapshots|BadRequestsForSnapshots)
# Of `make bench`: full or short; and more flags of test/perf, such as -only=io or -record.
BENCH       ?= full
BENCH_FLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help build image deps test lint unit model model-quick model-rules sim sim-mutants sim-mutants-quick system system-engine system-services system-apart takeover chaos kube e2e fuzz vuln bench demo clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/keelson
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/keelson

image: build ## container image without a registry and without Docker: dist/keelson-image.tar
	$(GO) run ./hack/image -binary $(BIN) -version $(VERSION) -out dist/keelson-image.tar

deps: ## install the Debian packages that tests and demo need, if any is missing
	@hack/deps

test: deps lint unit model-quick sim-mutants-quick sim system ## lint, unit, contract, model, simulation and system tests

lint: ## gofmt, go vet, staticcheck, the repository's own rules
	@hack/lint

unit: ## unit and contract tests
	$(GO) test -count=1 -timeout 300s $$($(GO) list ./... | grep -v -e /test/)

model: ## visit every state of the protocol's model, in all configurations; MODEL=name chooses one
	$(GO) test ./test/model -count=1 -v -timeout 3600s -run '^TestModel$$' -args -full -only '$(MODEL)'

model-quick: ## the same for the short configurations
	$(GO) test ./test/model -count=1 -timeout 300s

model-rules: ## take rules out of the model in turn: each must give a counterexample; RULE=name tries one in every configuration
	$(GO) test -tags mutant ./test/model -count=1 -v -timeout 3600s -run '^TestRules$$' -args -rule '$(RULE)'

sim: ## simulation: SEEDS=n seeds from SEED_BASE=b on; SEED=x replays one with its trace
	$(GO) test -c -o bin/sim.test ./test/sim
ifeq ($(SEED),)
	cd test/sim && $(CURDIR)/bin/sim.test -test.timeout 24h -seeds $(SEEDS) -base $(SEED_BASE)
else
	cd test/sim && SEED=$(SEED) $(CURDIR)/bin/sim.test -test.v -test.run 'TestSeed$$'
endif

sim-mutants: ## plant every mistake of docs/design/mutants.md in turn, until the simulation finds it; MUTANT=regexp chooses
	$(GO) test -tags mutant -c -o bin/mutants.test ./test/sim
	cd test/sim && $(CURDIR)/bin/mutants.test -test.timeout 24h -test.run '^TestMutants$$' -mutant '$(MUTANT)' -mutant-seeds 5000

sim-mutants-quick: ## the same for a few that are found at once: the checks can fail
	$(GO) test -tags mutant -c -o bin/mutants.test ./test/sim
	cd test/sim && $(CURDIR)/bin/mutants.test -test.timeout 300s -test.run '^TestMutant(s|Names)$$' -mutant-quick -mutant-seeds 400

system: deps build ## system tests: real daemons in network namespaces (needs root)
	@$(MAKE) --no-print-directory -j3 --output-sync=line system-engine system-services system-apart

# The system tests in three parts that run side by side, each with labs of its own: they wait more than they work.
system-engine:
	KEELSON_BIN=$(CURDIR)/$(BIN) $(GO) test ./test/system -skip '$(SERVICES)' -count=1 -timeout 900s

system-services:
	KEELSON_BIN=$(CURDIR)/$(BIN) KEELSON_LAB=services $(GO) test ./test/system -run '$(SERVICES)' -count=1 -timeout 900s

system-apart:
	KEELSON_BIN=$(CURDIR)/$(BIN) $(GO) test ./test/system/*/ ./test/chaos -p 1 -count=1 -timeout 900s

chaos: deps build ## kill, stop, cut, fill and crash for MINUTES=n under verified load; CHAOS_SEED=x repeats a plan (needs root)
	KEELSON_BIN=$(CURDIR)/$(BIN) $(GO) run ./test/chaos -minutes $(MINUTES) -seed $(CHAOS_SEED) -logs dist/chaos-logs $(CHAOS_FLAGS)

takeover: deps build ## kill a node's processes KILLS=n times under verified I/O, and upgrade it (needs root)
	KEELSON_BIN=$(CURDIR)/$(BIN) KEELSON_KILLS=$(KILLS) $(GO) test ./test/system/takeover -count=1 -v -timeout 3600s

kube: ## build the programs of Kubernetes that tests use, once, into the cache directory: some 15 minutes
	$(GO) run ./hack/kube

e2e: deps build ## Kubernetes on this machine, with Keelson, and the cases of test/e2e; CASES=regexp chooses (needs root)
	KEELSON_BIN=$(CURDIR)/$(BIN) $(GO) test ./test/e2e -count=1 -v -timeout 3600s -run '$(CASES)'

fuzz: ## fuzz every decoder in turn, each for FUZZTIME=30s; FUZZ=regexp chooses targets
	@hack/fuzz $(FUZZTIME)

vuln: ## look for known vulnerabilities; exit code 3 where the database can't be reached
	@hack/vuln

bench: deps build ## figures as ratios to a raw file (needs root; BENCH=short for a quick look)
	KEELSON_BIN=$(CURDIR)/$(BIN) $(GO) run ./test/perf -mode $(BENCH) -out dist/bench.json $(BENCH_FLAGS)

demo: deps build ## a node dies under PostgreSQL, and no committed row with it (needs root)
	KEELSON_BIN=$(CURDIR)/$(BIN) $(GO) run ./test/demo

clean: ## remove what was built
	rm -rf bin dist
