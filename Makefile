# Everything a person does with the sources. `make help` lists it.
SHELL    := /bin/bash
GO       ?= go
BIN      := bin/keelson
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS  := -s -w -X main.version=$(VERSION)
export CGO_ENABLED := 0

# Of `make sim`: how many seeds, and the first of them.
SEEDS     ?= 200
SEED_BASE ?= 1
# Of `make bench`: full or short; and more flags of test/perf, such as -only=io or -record.
BENCH       ?= full
BENCH_FLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help build deps test lint unit sim system bench demo clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/keelson
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/keelson

deps: ## install the Debian packages that tests and demo need, if any is missing
	@hack/deps

test: deps lint unit sim system ## lint, unit, contract, simulation and system tests

lint: ## gofmt, go vet, staticcheck, the repository's own rules
	@hack/lint

unit: ## unit and contract tests
	$(GO) test -count=1 -timeout 300s $$($(GO) list ./... | grep -v -e /test/)

sim: ## simulation: SEEDS=n seeds from SEED_BASE=b on
	$(GO) test ./test/sim -count=1 -timeout 1200s -args -seeds $(SEEDS) -base $(SEED_BASE)

system: deps build ## system tests: real daemons in network namespaces (needs root)
	KEELSON_BIN=$(CURDIR)/$(BIN) $(GO) test ./test/system/... -p 1 -count=1 -timeout 780s

bench: deps build ## figures as ratios to a raw file (needs root; BENCH=short for a quick look)
	KEELSON_BIN=$(CURDIR)/$(BIN) $(GO) run ./test/perf -mode $(BENCH) -out dist/bench.json $(BENCH_FLAGS)

demo: deps build ## a node dies under PostgreSQL, and no committed row with it (needs root)
	KEELSON_BIN=$(CURDIR)/$(BIN) $(GO) run ./test/demo

clean: ## remove what was built
	rm -rf bin dist
