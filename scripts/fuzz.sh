#!/usr/bin/env bash
# Fuzzes every target of lb/core/fuzz, one after the other, from the committed corpora. What it finds of interest stays in target/fuzz.
#
#   FUZZ_SECONDS=600 scripts/fuzz.sh [TARGET...]
set -euo pipefail
cd "$(dirname "$0")/.."

if ! command -v cargo-fuzz >/dev/null; then
    echo 'make fuzz needs cargo-fuzz and clang: cargo install cargo-fuzz --locked' >&2
    exit 1
fi
export CARGO_TARGET_DIR="$PWD/target/fuzz" RUSTC_BOOTSTRAP=1
targets=("$@")
if [[ ${#targets[@]} -eq 0 ]]; then
    mapfile -t targets < <(cd lb/core/fuzz/targets && printf "%s\n" *.rs | sed "s/\.rs\$//")
fi
cd lb/core
for target in "${targets[@]}"; do
    found="$CARGO_TARGET_DIR/corpus/$target"
    mkdir -p "$found" "$CARGO_TARGET_DIR/crashes"
    cargo fuzz run -s none --fuzz-dir fuzz "$target" "$found" "tests/corpus/slow/$target" -- \
        -max_total_time="${FUZZ_SECONDS:-60}" -max_len=1024 -rss_limit_mb=1024 -timeout=10 \
        -artifact_prefix="$CARGO_TARGET_DIR/crashes/$target-" -print_final_stats=1
done
