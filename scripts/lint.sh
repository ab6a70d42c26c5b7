#!/usr/bin/env bash
# Everything that is checked without running the product. Runs all steps, then says which failed.
set -uo pipefail
cd "$(dirname "$0")/.."

failed=()
step() {
    local name=$1
    shift
    printf 'lint: %s\n' "$name"
    "$@" || failed+=("$name")
}

shell_scripts() {
    local script status=0
    for script in scripts/*.sh .ci/run; do
        bash -n "$script" || status=1
    done
    if command -v shellcheck >/dev/null; then
        shellcheck scripts/*.sh .ci/run || status=1
    fi
    return $status
}

# The code that only the eBPF target compiles, which a host clippy never sees. Flags as in xdp-prog/build-object.rs.
clippy_bpf() {
    RUSTC_BOOTSTRAP=1 RUSTFLAGS="--cfg=bpf_target_arch=\"$(uname -m)\"" cargo clippy --quiet --locked --release \
        --package xdp-prog --bins --target bpfel-unknown-none -Z build-std=core --target-dir target/bpf -- -D warnings
}

cargo_deny() {
    command -v cargo-deny >/dev/null || return 0 # minutes to compile: see CONTRIBUTING.md
    cargo deny --locked check bans licenses sources
}

step 'format' cargo fmt --all --check
step 'shell scripts' shell_scripts
step 'the checks themselves' scripts/check-dependencies.sh --self-test
step 'the checks themselves' scripts/check-sources.sh --self-test
step 'dependencies' scripts/check-dependencies.sh
step 'sources' scripts/check-sources.sh
step 'cargo-deny, if installed' cargo_deny
step 'clippy' cargo clippy --locked --workspace --all-targets -- -D warnings
step 'clippy for eBPF' clippy_bpf
step 'docs' make --no-print-directory docs

if [[ ${#failed[@]} -gt 0 ]]; then
    printf 'lint: FAILED: %s\n' "${failed[@]}" >&2
    exit 1
fi
echo 'lint: ok'
