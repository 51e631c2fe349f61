# `make` builds taskq; `make help` lists everything. `demo`, `test` and what they need work on a fresh machine.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := release
# Each of these targets has the machine for itself: demos and tests measure time.
.NOTPARALLEL:

CARGO ?= cargo
PREFIX ?= /usr/local
DESTDIR ?=

NODE := scripts/rabbitmq-node
CLUSTER := scripts/rabbitmq-cluster
# The suites of Debian whose RabbitMQ 4 is tested: 4.0, and the newest that Debian has.
SUITES := trixie forky
TASKQ := target/release/taskq
SCRIPTS := scripts/check-rust scripts/install-deps scripts/rabbitmq-node scripts/rabbitmq-cluster scripts/rabbitmq4-tree scripts/bench \
	$(wildcard scripts/demos/*) examples/handlers/handler.sh tests/chaos/handler.sh .ci/run
BROKER := .nodes/broker
BROKERS := .nodes/cluster
DEMOS := demo demo-round-robin demo-ack demo-durability demo-fair demo-forgotten-ack demo-redeclare \
	demo-retry demo-persistent

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z0-9-]+:.*## / { printf "  %-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##@ Building

# Before anything is installed.
.PHONY: rust
rust:
	@CARGO='$(CARGO)' scripts/check-rust

.PHONY: deps
deps: ## Install RabbitMQ and what the build needs (Debian, Ubuntu)
	@scripts/install-deps

.PHONY: test-deps
test-deps: ## Install these and what the tests need
	@scripts/install-deps test

.PHONY: build
build: rust ## Build target/debug/taskq
	$(CARGO) build --locked

.PHONY: release
release: rust ## Build target/release/taskq: what `make` alone does
	$(CARGO) build --locked --release

# Into any prefix, so that packages can be made from it; `cargo install` would not take DESTDIR. It builds nothing: root
# has no cargo where it came from rustup.
.PHONY: install
install: ## Install what `make` has built into $(DESTDIR)$(PREFIX)/bin
	@test -x $(TASKQ) || { echo "there is no $(TASKQ) to install yet: run \`make\` first, as yourself" >&2; exit 1; }
	install -D -m 755 $(TASKQ) $(DESTDIR)$(PREFIX)/bin/taskq

.PHONY: clean
clean: ## Remove everything built
	$(CARGO) clean

##@ Seeing it work

.PHONY: $(DEMOS) demo-cluster demos
demo: ## Tasks of different length on four threads
demo-round-robin: ## Two workers share the tasks
demo-ack: ## A worker is killed in the middle of a task: another one finishes it
demo-durability: ## The broker is killed with tasks waiting: they are still there
demo-fair: ## One task at a time against a large prefetch: how long each takes
demo-forgotten-ack: ## What unacknowledged messages look like
demo-redeclare: ## A queue of that name exists with other properties
demo-retry: ## Failed tasks are tried again, and kept after the last attempt
demo-persistent: ## A handler that is kept running against one started for each task

# Each beside a broker of its own, which is gone when the demo ends.
$(DEMOS): rust deps release
	@$(NODE) with -- scripts/demos/$(if $(filter demo,$@),work,$(patsubst demo-%,%,$@))

# It needs a client that is not taskq.
demo-redeclare: rust test-deps

demo-cluster: rust deps release ## A cluster loses one node after the other under load: nothing is lost
	@$(CLUSTER) with -- scripts/demos/cluster

demos: $(DEMOS) demo-cluster ## All of them

.PHONY: bench
bench: rust test-deps release ## How fast it is beside amqp-publish and xargs; quiet machines only
	@scripts/bench

# Ctrl-C is how they end, and no error.
or_ctrl_c = || [[ $$? == 130 ]]

.PHONY: broker
broker: deps ## Run a RabbitMQ on port 5672 until Ctrl-C, for playing in other terminals
	@$(NODE) with --port 5672 --dir $(BROKER) --keep -- sh -c ' \
		echo "RabbitMQ listens on 127.0.0.1:5672, where taskq looks by default. Ctrl-C ends it."; \
		echo "Tasks stay in $(BROKER) for the next time; \`make broker-clean\` deletes them."; \
		exec sleep infinity' $(or_ctrl_c)

.PHONY: broker-clean
broker-clean: ## End `make broker` and delete its tasks
	@$(NODE) remove $(BROKER)

.PHONY: queues
queues: ## List the queues of `make broker`
	@$(NODE) queues $(BROKER)

# From 5673 on, so that it runs beside `make broker`.
.PHONY: cluster
cluster: deps ## Run a RabbitMQ of three nodes until Ctrl-C, for playing in other terminals
	@$(CLUSTER) with --port 5673 --dir $(BROKERS) -- sh -c ' \
		echo "Three nodes, one cluster. Ctrl-C ends it and deletes its tasks. In other terminals:"; echo; \
		echo "  export TASKQ_URL=$$TASKQ_URL"; \
		echo "  taskq send --queue-type quorum hello"; \
		echo "  $(NODE) kill $(BROKERS)/2      or freeze, cut, stop"; \
		echo "  $(CLUSTER) mend $(BROKERS)     brings back what is away"; \
		echo "  $(CLUSTER) queues $(BROKERS)"; exec sleep infinity' $(or_ctrl_c)

##@ Checking

.PHONY: check lint
check: lint ## The same as lint
lint: ## Formatting, clippy for every set of features, imports, shellcheck; warnings denied
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	$(CARGO) clippy --locked --all-targets --all-features -- -D warnings
	$(CARGO) clippy --locked --all-targets --no-default-features -- -D warnings
	$(CARGO) test --locked --quiet --test imports
	@if command -v shellcheck >/dev/null; then shellcheck -x $(SCRIPTS); \
		else echo "shellcheck is not here, the scripts are unchecked: make test-deps"; fi

.PHONY: doc
doc: ## Build the documentation of the code, warnings denied
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items

.PHONY: unit
unit: ## The tests that need no broker
	$(CARGO) test --locked --bins

# The node that the tests share; those that kill or freeze a broker start their own. Most of the time they wait for
# something to happen, so more of them run at a time than there are cores.
test test-rabbitmq4 test-differences: export RUST_TEST_THREADS ?= 4
.PHONY: test
test: rust test-deps ## All tests, against real brokers, with and without TLS support
	$(NODE) with -- $(CARGO) test --locked
	$(NODE) with -- $(CARGO) test --locked --no-default-features

.PHONY: rabbitmq4
rabbitmq4: ## Fetch RabbitMQ 4.0 and the newest, beside the one that is installed, into target/
	@for suite in $(SUITES); do scripts/rabbitmq4-tree "$$suite" "target/rabbitmq4-$$suite"; done

# What RabbitMQ has changed from one version to the next shows in these tests, and in no others: what it says and does
# about queues that are declared again, counted, missing or away, about permissions, and about messages that are returned,
# expire, are dead-lettered or too large; how nodes find each other; what its Erlang says about TLS. The others are about
# taskq's commands, input, output and signals, or play the broker themselves.
DIFFERENCES := acknowledgement_timeout broker_version cluster copies_refused copy_forms dead dead_filters \
	dead_lettered dead_names dead_quorum dead_rate delay delivery_limit foreign_headers interop limits peek permissions \
	poison redeclare redeclare_bulk retry retry_flags \
	send_refused staying_up status tls until_done vanished work_limits

$(foreach file,$(DIFFERENCES),$(if $(wildcard tests/behaviour/$(file).rs),,$(error there is no tests/behaviour/$(file).rs)))

with_rabbitmq4 = for suite in $(SUITES); do \
	bin=$$(scripts/rabbitmq4-tree "$$suite" "target/rabbitmq4-$$suite"); \
	RABBITMQ_BIN=$$bin $(NODE) with -- $(CARGO) test --locked $(1); done

.PHONY: test-rabbitmq4
test-rabbitmq4: rust test-deps ## All tests, against nodes of RabbitMQ 4.0 and of the newest
	$(call with_rabbitmq4,)

.PHONY: test-differences
test-differences: rust test-deps ## The same of those tests that see what RabbitMQ has changed between versions
	$(call with_rabbitmq4,--test tests -- $(patsubst %,behaviour::%::,$(DIFFERENCES)))

# `make chaos CHAOS_SECONDS=3600 CHAOS_ON=cluster CHAOS_SEED=7 CHAOS_LIMIT=0 CHAOS_HANDLER=command`: all of them optional.
.PHONY: chaos
chaos: rust deps ## Five minutes of faults of all kinds, then every task is accounted for: docs/reliability.md
	$(CARGO) test --locked --release --test chaos
