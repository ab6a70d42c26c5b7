# Vipline's entry points; what each does lives in scripts/ and in the crates. Every target first makes sure that what it
# needs is installed (scripts/setup.sh), which takes no time when it is.

export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH):/usr/local/sbin:/usr/sbin:/sbin
NEXTEST := cargo nextest run --workspace

.DEFAULT_GOAL := help
.PHONY: help setup ready demo test golden lab bench e2e manifests fuzz lint docs

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "make %-9s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what is missing: rust-src, bpf-linker, cargo-nextest, Debian packages
	@scripts/setup.sh

ready:
	@scripts/setup.sh --quiet

demo: ready ## Real connections through a VIP, in network namespaces of this machine (root)
	@cargo build --locked --release --bins -p lb -p vipline-perf --no-default-features
	@$(or $(CARGO_TARGET_DIR),target)/release/vipline-demo

test: ready ## All tests of all tiers; as root, or with what needs root left out loudly
	cargo test --workspace --doc --quiet
	env -u KUBECONFIG $(NEXTEST)

golden: ready ## The loaded program against golden packets and against its host build (root)
	$(NEXTEST) -E 'binary(/^golden|^differential|^datapath/)'

lab: ready ## Real traffic through the daemon, in network namespaces (root)
	$(NEXTEST) -E 'binary(/^lab/) | package(lab)'

bench: ready ## Cost per packet of the shipped program, beside the design's goals (root)
	@cargo run --release -p vipline-perf --bin vipline-perf -- prog

e2e: ready ## The operator's suite against the API server double, or against the cluster of KUBECONFIG
	cargo nextest run -p vipline-operator -E 'binary(/^e2e/)' $(if $(KUBECONFIG),--test-threads 1)

manifests: ready ## Write deploy/manifests/{crds,install}.yaml anew, from operator/api and the other manifests
	UPDATE_MANIFESTS=1 cargo test --quiet --locked -p operator-api --test manifests

fuzz: ready ## Fuzz every packet handler for FUZZ_SECONDS (60) each; needs cargo-fuzz and clang
	@scripts/fuzz.sh

lint: ready ## Format, clippy, docs, dependency directions, licences, sources
	@scripts/lint.sh

docs: ready ## The crates' documentation, warnings as errors
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps --document-private-items --exclude xdp-prog
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --package xdp-prog --no-deps --document-private-items --lib
