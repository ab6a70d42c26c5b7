#!/usr/bin/env bash
# Holds what neither rustc nor clippy can: where unsafe may stand, how long a file may be, what no committed file may say.
#
#   scripts/check-sources.sh               checks this work tree
#   scripts/check-sources.sh --self-test   proves that each check fails where it should
set -euo pipefail
shopt -s inherit_errexit
root=$(cd "$(dirname "$0")/.." && pwd)

readonly LONG_LINES=300 # a room is one idea: time to think
readonly MAX_LINES=600  # split it

# Where unsafe may stand; every crate but these forbids it at its roots.
readonly UNSAFE_ROOMS='^(xdp-prog/|lb/(src|tests)/(datapath|xsk)[/.]|lb/tests/golden/slow_path|lb/lab/)'
readonly UNSAFE_CRATES='^(xdp-prog|lb|lb/lab)/src/'

complain() {
    printf 'check-sources: %s\n' "$1"
    failed=1
}

# Tracked files and new ones, less what is ignored and what is deleted.
files() { git ls-files -z --cached --others --exclude-standard -- "$@" | xargs -0 -r ls -d 2>/dev/null || true; }

check_unsafe() {
    local file hit
    # Code only: what follows // on a line is not looked at.
    while read -r hit; do
        [[ -z $hit ]] || complain "$hit: unsafe belongs in xdp-prog, lb's datapath and xsk, and lab only"
    done < <(files '*.rs' | grep -vE "$UNSAFE_ROOMS" |
        xargs -r grep -nE '^([^/]|/[^/])*\bunsafe *(\{|\(|(fn|impl|trait|extern)\b)' /dev/null | cut -d: -f1,2)
    while read -r file; do
        grep -q '^#!\[forbid(unsafe_code)\]' "$file" || complain "$file: say #![forbid(unsafe_code)] at this crate's root"
    done < <(files '*.rs' | grep -E '/src/(lib|main|bin/[^/]+|bin/[^/]+/main)\.rs$' | grep -vE "$UNSAFE_CRATES")
}

check_lengths() {
    local lines file
    while read -r lines file; do
        if ((lines > MAX_LINES)); then
            complain "$file: $lines lines, $MAX_LINES at most: split it by idea"
        elif ((lines > LONG_LINES)); then
            printf 'check-sources: note: %s: %s lines, over %s\n' "$file" "$lines" "$LONG_LINES"
        fi
    done < <(files '*.rs' | xargs -r -n 1 wc -l)
}

# A committed file names no machine it was written on and no host that serves packages: those are the reader's own.
check_words() {
    local hit
    while read -r hit; do
        complain "$hit: a path of somebody's machine"
    done < <(files | xargs -r grep -nIE '(^|[^[:alnum:]_./}-])/(work|root)(/|[^[:alnum:]_-]|$)' /dev/null | cut -d: -f1,2)
    while read -r hit; do
        complain "$hit: the host of a package registry"
    done < <(files | xargs -r grep -nIE '(^|[^[:alnum:]_.-])(deb|snapshot|index|static|registry|files|proxy)\.[a-z0-9-]+\.(org|io|com|dev)\b' /dev/null | cut -d: -f1,2)
}

check_all() {
    failed=0
    check_unsafe
    check_lengths
    check_words
    return $failed
}

self_test() {
    local dir output wrong=0
    dir=$(mktemp -d)
    # shellcheck disable=SC2064 # expanded now on purpose
    trap "rm -rf '$dir'" EXIT
    cd "$dir"
    git init -q .
    mkdir -p lb/core/src lb/src/datapath perf/src/bin/demo
    echo 'a room of a binary, no root' >perf/src/bin/demo/story.rs
    printf '#![forbid(unsafe_code)]\n// unsafe { in words } is fine\n' | tee lb/core/src/lib.rs perf/src/main.rs perf/src/bin/demo.rs >/dev/null
    echo 'unsafe { allowed() }' >lb/src/datapath/map.rs
    printf 'see target/work, https://docs.example.org/root\nour index.io is not a host\n' >README.md
    output=$(check_all) || wrong=1
    [[ -z $output ]] || wrong=1

    echo 'let x = unsafe { f() };' >lb/src/daemon.rs
    echo '//! No attribute.' >perf/src/bin/demo.rs
    seq 601 >lb/core/src/long.rs
    seq 301 >lb/core/src/longish.rs
    printf 'cd %s\n' '/wo''rk/main' >a.md
    printf 'https://%s/x\n' 'registry.''example.org' >b.md
    local expected='check-sources: lb/src/daemon.rs:1: unsafe belongs in xdp-prog, lb'\''s datapath and xsk, and lab only
check-sources: perf/src/bin/demo.rs: say #![forbid(unsafe_code)] at this crate'\''s root
check-sources: lb/core/src/long.rs: 601 lines, 600 at most: split it by idea
check-sources: note: lb/core/src/longish.rs: 301 lines, over 300
check-sources: a.md:1: a path of somebody'\''s machine
check-sources: b.md:1: the host of a package registry'
    output=$(check_all) && wrong=1
    if [[ $output != "$expected" || $wrong -ne 0 ]]; then
        printf 'self-test: expected\n%s\ngot\n%s\n' "$expected" "$output"
        return 1
    fi
}

if [[ ${1-} == --self-test ]]; then
    self_test
else
    cd "$root"
    check_all
fi
