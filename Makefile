# One menu; each target is one plain thing. `make demo` and `make test` set up what they need by themselves.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

target := $(or $(CARGO_TARGET_DIR),target)
static_target := $(shell uname -m)-unknown-linux-musl
cargo_deny_version := 0.20.2
cargo_fuzz_version := 0.13.2
# The image's name, and what else images/build takes: IMAGE=registry.example/podgres:1 make image BUILDER=podman
IMAGE ?= podgres:$(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
architecture := $(patsubst aarch64,arm64,$(patsubst x86_64,amd64,$(shell uname -m)))
shell_scripts := .ci/run benches/run images/build images/rustflags images/sbom tests/kubernetes/images tests/kubernetes/lab tests/kubernetes/machines tests/sim/mutants/check tests/tools/again tests/tools/clients tests/tools/helm tests/tools/need tests/tools/postgresql

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: compiler ## a replicated PostgreSQL on this machine, until Ctrl-C; options in ARGS="--replicas 5 --dir DIR"
	@postgresql=$$(tests/tools/postgresql demo)
	eval "$$postgresql"
	cargo build --release
	exec $(target)/release/podgres demo $(ARGS)

.PHONY: test
test: fmt clippy deny doc proof namespaces ## everything that must hold: style, dependencies, documentation, all tests
	@postgresql=$$(tests/tools/postgresql test)
	eval "$$postgresql"
	cargo test --workspace --no-fail-fast --lib --bins --test pure
	tests/tools/again adapters 6
	tests/tools/again cluster 5

.PHONY: chaos
chaos: compiler namespaces ## faults at random on a cluster under load: MINUTES=10, LEADERSHIP=lease or fixed, SEED=… repeats their order
	@postgresql=$$(tests/tools/postgresql test)
	eval "$$postgresql"
	export PODGRES_CHAOS_MINUTES=$(or $(MINUTES),10)
	$(if $(SEED),export PODGRES_CHAOS_SEED=$(SEED))
	$(if $(DURABILITY),export PODGRES_CHAOS_DURABILITY=$(DURABILITY))
	cargo test --test cluster $(if $(filter fixed,$(LEADERSHIP)),chaos::,chaos_lease::)

.PHONY: sim
sim: compiler ## the failover logic against simulated time, on all cores: SCHEDULES=10000, SEED=… repeats one with its trace
	@export CARGO_TARGET_DIR=$(abspath $(target))/sim
	if [ -n "$(SEED)" ]; then export PODGRES_SIM_SEED=$(SEED); else export PODGRES_SIM_SCHEDULES=$(or $(SCHEDULES),10000); fi
	export PODGRES_SIM_FIRST=$(or $(FIRST),1)
	# A fifth faster; compiling takes half a minute more.
	if [ -z "$(SEED)" ]; then export CARGO_PROFILE_RELEASE_LTO=fat CARGO_PROFILE_RELEASE_CODEGEN_UNITS=1; fi
	cargo test --release --manifest-path tests/core/Cargo.toml --test sim $(if $(SEED),one_seed,a_range) -- --nocapture

.PHONY: proof
proof: compiler ## every enumerated decision against the rules, the models of takeover and of the right, the simulator's fixed schedules
	@export CARGO_TARGET_DIR=$(abspath $(target))/sim
	cargo clippy --manifest-path tests/core/Cargo.toml --test sim --test proof -- -D warnings
	cargo test --release --manifest-path tests/core/Cargo.toml --test sim --test proof

.PHONY: model
model: compiler ## the models of takeover and of the right within wider bounds than proof's: many more states, hours
	CARGO_TARGET_DIR=$(abspath $(target))/sim PODGRES_MODEL=wide cargo test --release --manifest-path tests/core/Cargo.toml --test proof _model:: -- --nocapture

.PHONY: mutants
mutants: compiler ## plants known bugs in the failover logic; the simulator must find each: NAMES="…" for some
	@tests/sim/mutants/check $(NAMES)

.PHONY: fuzz
fuzz: compiler ## looks for bytes that break what routes parse: TARGET=startup, forwarded or server_name, SECONDS=60
	@tests/tools/need c++ g++
	export PATH="$$PATH:$(abspath $(target))/tools/bin"
	if ! command -v cargo-fuzz >/dev/null; then
		cargo install --locked --debug --root $(target)/tools --version $(cargo_fuzz_version) cargo-fuzz
	fi
	# By the same compiler as all else, and without a sanitizer: what is run has no unsafe code.
	export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=$(abspath $(target))/fuzz
	mkdir -p fuzz/corpus/$(or $(TARGET),startup)
	cd fuzz
	cargo fuzz run -s none $(or $(TARGET),startup) corpus/$(or $(TARGET),startup) seeds/$(or $(TARGET),startup) -- -max_total_time=$(or $(SECONDS),60)

.PHONY: check
check: fmt clippy ## the quick round while writing: style and the tests that need no PostgreSQL
	cargo test --lib --bins --test pure

.PHONY: table
table: ## rewrite docs/decision-table.md from the code; review the difference
	PODGRES_UPDATE_GOLDEN=1 CARGO_TARGET_DIR=$(abspath $(target))/sim cargo test --release --manifest-path tests/core/Cargo.toml --test proof decision_table

.PHONY: fmt
fmt: ## is the code formatted?
	@cargo fmt --all --check
	cargo fmt --manifest-path tests/core/Cargo.toml --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check

.PHONY: clippy
clippy: compiler ## lints, in tests too
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --workspace --test kubernetes -- -D warnings

.PHONY: deny
deny: compiler ## crates that may come in: bans, licences, sources (.deny.toml)
	@export PATH="$$PATH:$(abspath $(target))/tools/bin"
	if ! command -v cargo-deny >/dev/null; then
		cargo install --locked --debug --root $(target)/tools --version $(cargo_deny_version) cargo-deny
	fi
	cargo-deny check bans licenses sources

.PHONY: doc
doc: compiler ## do the doc comments build?
	RUSTDOCFLAGS=-Dwarnings cargo doc --no-deps

.PHONY: bench
bench: compiler ## measures podgres beside Patroni and pg_basebackup; options in ARGS="--only demo"
	@postgresql=$$(tests/tools/postgresql demo)
	eval "$$postgresql"
	cargo build --release
	benches/run --podgres $(target)/release/podgres $(ARGS)

.PHONY: bench-failover
bench-failover: ## how long writes stop at each fault, beside Patroni; options in ARGS="--fault frozen --failover-runs 20"
	@$(MAKE) bench ARGS="--only failover $(ARGS)"

.PHONY: bench-route
bench-route: ## what the routes cost beside HAProxy: pgbench, connects, COPY, memory
	@$(MAKE) bench ARGS="--only route $(ARGS)"

.PHONY: bench-reads
bench-reads: ## reads of own writes on standbys, with the token and without: misses and waits; options in ARGS="--tries 1000 --apply-delay 20"
	@$(MAKE) bench ARGS="--only reads $(ARGS)"

.PHONY: bench-backup
bench-backup: compiler ## measures backup and restore beside pgBackRest and pg_basebackup; options in ARGS="--scale 15"
	@postgresql=$$(tests/tools/postgresql demo)
	eval "$$postgresql"
	tests/tools/need pgbackrest pgbackrest
	cargo build --release
	python3 benches/backup.py --podgres $(target)/release/podgres --bindir "$$PG_BINDIR" $(ARGS)

.PHONY: static
static: compiler ## the release binary without any shared library, for the image
	@tests/tools/need musl-gcc musl-tools
	if command -v rustup >/dev/null && ! rustup target list --installed | grep -qx $(static_target); then
		rustup target add $(static_target)
	fi
	export CC_$(subst -,_,$(static_target))=musl-gcc
	flags=$$(images/rustflags $(target))
	export CARGO_ENCODED_RUSTFLAGS="$$flags"
	# Minutes, for the image alone.
	export CARGO_PROFILE_RELEASE_LTO=fat
	cargo build --release --target $(static_target)
	ls -l $(target)/$(static_target)/release/podgres

.PHONY: image
image: static ## the image as target/image/podgres.tar, with docker, podman or buildah, or without any of them: IMAGE=NAME:TAG BUILDER=archive
	images/build -n $(IMAGE) $(if $(BUILDER),-b $(BUILDER)) $(architecture)=$(target)/$(static_target)/release/podgres

.PHONY: examples-image
examples-image: compiler ## the image of the examples' small clients, target/image/podgres-examples.tar
	@tests/tools/need musl-gcc musl-tools
	export CC_$(subst -,_,$(static_target))=musl-gcc
	cargo build --release --target $(static_target) --package podgres-examples
	images/build -p podgres-examples -n $(or $(EXAMPLES_IMAGE),podgres-examples:test) \
		$(architecture)=$(target)/$(static_target)/release/podgres-examples

.PHONY: test-kubernetes
test-kubernetes: compiler ## all on the cluster that KUBECONFIG names, which must have the images: NAMES="row_08 rights" for some (docs/kubernetes.md)
	@tests/tools/need kubectl kubernetes-client
	export PODGRES_TEST_KUBECONFIG=$${KUBECONFIG:-$$HOME/.kube/config}
	$(if $(NAMES),,cargo test --workspace --test adapters kube::)
	cargo test --workspace --test kubernetes -- $(NAMES)

.PHONY: shellcheck
shellcheck: ## lints the shell scripts
	@tests/tools/need shellcheck shellcheck
	shellcheck $(shell_scripts)

# For tests that cut pods off; who is not root goes without.
.PHONY: namespaces
namespaces:
	@[[ $$(id -u) -eq 0 ]] || exit 0
	tests/tools/need unshare util-linux
	tests/tools/need ip iproute2
	tests/tools/need nft nftables

.PHONY: compiler
compiler: # Rust links with the system's C compiler, and ring has C parts.
	@tests/tools/need cc gcc libc6-dev

.ONESHELL:
