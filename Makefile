# Targets for working with a clone. `make` lists them.

# Clones share one target folder, so a fresh clone builds in seconds if another clone was built before.
XDG_CACHE_HOME ?= $(HOME)/.cache
MEMFLEET_TARGET_DIR ?= $(XDG_CACHE_HOME)/memfleet/target
export CARGO_TARGET_DIR ?= $(MEMFLEET_TARGET_DIR)

ifneq ($(MEMFLEET_HOME),)
# An absolute path, because the tests run in other folders.
export MEMFLEET_HOME := $(abspath $(MEMFLEET_HOME))
endif
home := $(or $(MEMFLEET_HOME),.memfleet)
# This clone's own copy of the program: another clone may replace the one in the shared folder at any time.
program := $(home)/bin/memfleet

# Further arguments of the command, as in `make bench ARGS="--help"`.
ARGS ?=

# In a shared target folder, Cargo distinguishes clones only by the modification times of their files, and could run another
# clone's code. Therefore one clone at a time uses the folder, and a clone that was not the last to use it touches its source files
# first. Incremental compilation is off, because its state must not come from another clone either.
export CARGO_INCREMENTAL ?= 0
lock = $(CARGO_TARGET_DIR)/memfleet.lock
last_clone = $(CARGO_TARGET_DIR)/memfleet.clone
claim = if [ "$$(cat "$(last_clone)" 2>/dev/null)" != "$(CURDIR)" ]; then \
		find shared tools workers tests migrations nats -type f -exec touch {} + && echo "$(CURDIR)" > "$(last_clone)"; fi
locked = mkdir -p "$(CARGO_TARGET_DIR)" && flock -o "$(lock)" sh -ec

.DEFAULT_GOAL := help
.PHONY: help setup build demo dev bench programs built test tests chaos chaotic mutants fmt clean

help: ## list the targets
	@echo "memfleet: make TARGET"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)$$/  \1|\2/p' Makefile | while IFS='|' read -r target text; do \
		printf '  %-8s %s\n' $$target "$$text"; done

setup: ## check the tools, download the private servers (NATS, PostgreSQL) into .memfleet
	@scripts/setup

build: ## compile everything
	@$(locked) '$(claim); cargo build $(tested) --all-targets'

demo: programs ## start everything, process sample messages, print the results
	@"$(program)" demo $(ARGS)

dev: programs ## start everything and keep it running
	@"$(program)" dev $(ARGS)

# Measured is the program as it is shipped.
bench: export PROFILE = dist
bench: programs ## run benchmarks
	@"$(program)" bench $(ARGS)

# The build profile of the programs.
PROFILE ?= release

programs: setup ## build memfleet and qdrant-local, the vector store of private servers
	@$(locked) '$(claim); $(MAKE) --no-print-directory built'

# Both programs in one go: they share most of their dependencies, and each of them alone leaves one core idle for minutes.
built:
	@echo "building memfleet and qdrant-local (the first time takes about twenty minutes on two cores)"
	@mkdir -p "$(home)/bin"
	cargo build --profile $(PROFILE) -p memfleet -p qdrant-local
	@for built in memfleet qdrant-local; do \
		new=$$(mktemp "$(home)/bin/$$built.XXXXXX") \
		&& cp "$(CARGO_TARGET_DIR)/$(PROFILE)/$$built" "$$new" && chmod 755 "$$new" && mv "$$new" "$(home)/bin/$$built" \
		|| exit 1; done

test: ## format, lints, licences, and every test on real servers
	@scripts/setup --tests
	@$(locked) '$(claim); $(MAKE) --no-print-directory tests'

# One selection of packages and features, and one profile, for everything that the tests build, qdrant-local too: with another
# selection Cargo enables other features of shared dependencies, and compiles these again. Tests run with these features enabled;
# clippy also checks the code without them.
features = --features memfleet/vault,memfleet/aws-kms,memfleet/s3
tested = --workspace $(features)
with_servers = MEMFLEET_QDRANT_LOCAL="$(abspath $(CARGO_TARGET_DIR))/debug/qdrant-local" "$(CARGO_TARGET_DIR)/debug/with-servers"

# The part of `test` that runs while this clone holds the lock on the target folder. Tests wait for servers a fifth of their time: half as many
# again as there are cores keep these busy.
tests:
	cargo fmt --all --check
	cargo clippy --package keys --package memfleet --no-default-features -- -D warnings
	cargo clippy $(tested) --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null; then echo "cargo deny check bans licenses sources" \
		&& cargo deny check bans licenses sources; \
		else echo "cargo-deny is not installed: licences are not checked"; fi
	@scripts/check-deployment
	cargo build $(tested) --tests --bins
	@if command -v cargo-nextest >/dev/null; then tests="nextest run --no-fail-fast"; else tests="test --no-fail-fast"; fi; \
		[ -d ../shared/data ] || echo "skipped: tests that need the recorded dialogues, because ../shared/data does not exist"; \
		echo "cargo $$tests $(tested), on private servers"; \
		NEXTEST_TEST_THREADS=$${NEXTEST_TEST_THREADS:-$$(( ($$(nproc) * 3 + 1) / 2 ))} $(with_servers) cargo $$tests $(tested)

# How long, and which faults: MEMFLEET_CHAOS_MINUTES (30), MEMFLEET_CHAOS_SEED (17).
chaos: ## run a fleet under faults for half an hour and count what became of every message
	@scripts/setup --tests
	@$(locked) '$(claim); $(MAKE) --no-print-directory chaotic'

chaotic:
	cargo build --quiet $(tested) --tests --bins
	$(with_servers) cargo test $(tested) --test fleet -- \
		--ignored --exact --nocapture chaos::nothing_is_lost_doubled_or_held_up_whatever_fails

# Not part of CI. FILE, DIFF and TESTS: see scripts/mutants.
mutants: setup ## break the code in many ways and report what no test sees; FILE=... or DIFF=...
	@$(locked) '$(claim); scripts/mutants $(ARGS)'

fmt: ## format the code
	cargo fmt --all

clean: ## remove .memfleet and the data folders outside it; compiled code stays
	@scripts/clean
	@[ ! -d "$(CARGO_TARGET_DIR)" ] || echo "clean: compiled code, shared by all clones, stays in $(CARGO_TARGET_DIR)"
