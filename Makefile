# What people do with memfleet from a clone. `make` lists it.

# Clones share what they have compiled, so a fresh clone builds in seconds where another one was built before.
XDG_CACHE_HOME ?= $(HOME)/.cache
MEMFLEET_TARGET_DIR ?= $(XDG_CACHE_HOME)/memfleet/target
export CARGO_TARGET_DIR ?= $(MEMFLEET_TARGET_DIR)

ifneq ($(MEMFLEET_HOME),)
# In full, because the tests run in other folders.
export MEMFLEET_HOME := $(abspath $(MEMFLEET_HOME))
endif
home := $(or $(MEMFLEET_HOME),.memfleet)
# Our own copy of the program: another clone may replace the one in the shared folder at any time.
program := $(home)/bin/memfleet
engine := $(home)/bin/qdrant-local

# What follows the command, as in `make bench ARGS="--help"`.
ARGS ?=

# Cargo tells what it has compiled for one clone from what it has for another by the time of the files only, and would
# run the code of the other. So one clone at a time uses the folder, and a clone that was not the last one to do so makes
# its files newer than what is there.
# What the compiler remembers between two builds it must not take from another clone either.
export CARGO_INCREMENTAL ?= 0
lock = $(CARGO_TARGET_DIR)/memfleet.lock
last_clone = $(CARGO_TARGET_DIR)/memfleet.clone
claim = if [ "$$(cat "$(last_clone)" 2>/dev/null)" != "$(CURDIR)" ]; then \
		find shared tools workers tests migrations nats -type f -exec touch {} + && echo "$(CURDIR)" > "$(last_clone)"; fi
locked = mkdir -p "$(CARGO_TARGET_DIR)" && flock -o "$(lock)" sh -ec

.DEFAULT_GOAL := help
.PHONY: help setup build demo dev bench engine test tests fmt clean program

help: ## list what make can do
	@echo "memfleet: make TARGET"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)$$/  \1|\2/p' Makefile | while IFS='|' read -r target text; do \
		printf '  %-8s %s\n' $$target "$$text"; done

setup: ## check the tools, fetch the private servers (NATS, PostgreSQL) into .memfleet
	@scripts/setup

build: ## compile everything
	@$(locked) '$(claim); cargo build --workspace --exclude qdrant-local --all-targets'

demo: program engine ## start everything, send real messages through it, show what came out
	@"$(program)" demo $(ARGS)

dev: program engine ## start everything and keep it running
	@"$(program)" dev $(ARGS)

bench: program engine ## measure how fast this machine is
	@"$(program)" bench $(ARGS)

program: setup
	@echo "building memfleet (some minutes the first time)"
	@mkdir -p "$(home)/bin"
	@$(locked) '$(claim); cargo build --release -p memfleet; new=$$(mktemp "$(program).XXXXXX"); \
		cp "$(CARGO_TARGET_DIR)/release/memfleet" "$$new"; chmod 755 "$$new"; mv "$$new" "$(program)"'

# The official vector engine takes minutes to build and changes with its version only: for all uses it is built once, and the
# program is copied out of the shared folder.
engine: setup ## build qdrant-local, the vector store of private servers
	@echo "building qdrant-local (ten minutes the first time)"
	@mkdir -p "$(home)/bin"
	@$(locked) '$(claim); cargo build --profile engine -p qdrant-local; $(keep_engine)'
keep_engine = new=$$(mktemp "$(engine).XXXXXX"); cp "$(CARGO_TARGET_DIR)/engine/qdrant-local" "$$new"; \
	chmod 755 "$$new"; mv "$$new" "$(engine)"

test: ## format, lints, licences, and every test on real servers
	@scripts/setup --tests
	@$(locked) '$(claim); $(MAKE) --no-print-directory tests'

# What is behind a feature is tested too; without them it must build as well.
features = --features memfleet/vault,memfleet/aws-kms

# What `test` runs while it holds the folder.
tests:
	cargo fmt --all --check
	cargo clippy --package keys --package memfleet --no-default-features -- -D warnings
	cargo clippy --workspace --exclude qdrant-local --all-targets $(features) -- -D warnings
	cargo clippy --profile engine --package qdrant-local --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null; then echo "cargo deny check bans licenses sources" \
		&& cargo deny check bans licenses sources; \
		else echo "cargo-deny is not installed: licences are not checked"; fi
	@echo "building qdrant-local (ten minutes the first time), then its own tests"
	@mkdir -p "$(home)/bin"
	cargo build --profile engine -p qdrant-local
	@$(keep_engine)
	@if command -v cargo-nextest >/dev/null; then cargo nextest run --cargo-profile engine -p qdrant-local; \
		else cargo test --profile engine -p qdrant-local; fi
	@if command -v cargo-nextest >/dev/null; then tests="nextest run"; else tests=test; fi; \
		[ -d ../shared/data ] || echo "skipped: what needs the recorded dialogues, since there is no ../shared/data"; \
		echo "cargo $$tests --workspace --exclude qdrant-local, on private servers" \
		&& cargo run --quiet -p testkit --bin with-servers -- \
			cargo $$tests --workspace --exclude qdrant-local $(features)

fmt: ## format the code
	cargo fmt --all

clean: ## remove .memfleet and what it noted outside; says where the compiled code is
	@scripts/clean
	@[ ! -d "$(CARGO_TARGET_DIR)" ] || echo "clean: what was compiled stays, for all clones, in $(CARGO_TARGET_DIR)"
