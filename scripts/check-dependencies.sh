#!/usr/bin/env bash
# Holds the direction of dependencies (docs/architecture.md), the licences of what we link, and where it comes from.
#
#   scripts/check-dependencies.sh               checks this workspace
#   scripts/check-dependencies.sh --self-test   proves that the check fails where it should
#
# Reads `cargo tree` only: no cargo-deny to compile, well under a second. Licences come from deny.toml's allow list.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."

# may CRATE OURS...     the only crates of ours that CRATE may name; `dev:X` as a dev-dependency only. Every crate has a line.
# only CRATE OURS...    the only crates of ours that may name this outside crate
# never CRATE ANY...    what CRATE must not reach, through any path of normal and build dependencies
# The words after # are printed when the rule is broken.
readonly RULES='
may   xdp-prog                                        # the packet path stands on its own: it is compiled for the kernel too
may   lb-core          xdp-prog                       # decisions know the map ABI and nothing else
may   lab              xdp-prog                       # the bench knows packets, not the balancer it tests
may   exposition                                      # how something is shown over HTTP, and not what
may   lb               xdp-prog lb-core operator-api exposition dev:lab dev:apiserver dev:vipline-operator # the shell drives the core; the bench is for its tests only
may   operator-api                                    # the CRDs are the contract between the two programs: no program in it
may   vipline-operator operator-api exposition dev:apiserver       # the operator never talks to a node
may   vipline-perf     xdp-prog lb-core lb lab operator-api vipline-operator apiserver        # measures the shipped object in the lab
may   apiserver        operator-api                   # the double knows the CRDs and nobody who uses them
only  aya              lb lab vipline-perf            # loading programs is IO, and belongs to the shell
only  xsk-rs           lb vipline-perf                # AF_XDP belongs to the slow path
never xdp-prog         aya tokio libc nix             # the packet path has no user space in it
never lb-core          aya xsk-rs kube kube-client tokio nix libc rtnetlink # lb-core does no IO and reads no clock
never exposition       aya xsk-rs kube kube-client    # it serves both programs and knows neither
never operator-api     aya xsk-rs tokio               # types only
never vipline-operator lb lb-core xdp-prog lab aya xsk-rs # the operator never talks to a node
'

tree() {
    # Both halves: the host, and what only the eBPF target pulls in.
    cargo tree --locked --workspace --prefix depth --target "$host" --target bpfel-unknown-none "$@"
}

# The dependency graph, one edge per line: KIND FROM TO. Kind `member` (FROM = TO) lists the workspace's own crates.
edges() {
    local kind
    for kind in normal build dev; do
        local depth=()
        [[ $kind == normal ]] || depth=(--depth 1) # below that, normal edges say the rest
        tree --edges "$kind" "${depth[@]}" --format ' {p}' | awk -v kind="$kind" '
            NF < 2 { next }
            { at[$1 + 0] = $2 }
            $1 == 0 && kind == "normal" { print "member", $2, $2 }
            $1 > 0 { print kind, at[$1 - 1], $2 }'
    done | sort -u
}

# Reads edges, prints each broken rule; its exit code says whether there was one.
check_directions() {
    awk -v rules="$RULES" '
        function complain(text) { print "check-dependencies: " text; bad = 1 }
        # The shortest path from one crate to another over what is compiled in, or "".
        function path(from, to,    queue, head, tail, came, next_, n, i, here, text) {
            head = tail = 1; queue[1] = from; came[from] = from
            while (head <= tail) {
                here = queue[head++]
                if (here == to) {
                    for (text = here; here != from; text = here " -> " text) here = came[here]
                    return text
                }
                n = split(linked[here], next_, " ")
                for (i = 1; i <= n; i++) if (!(next_[i] in came)) { came[next_[i]] = here; queue[++tail] = next_[i] }
            }
            return ""
        }
        $1 == "member" { member[$2]; next }
        { edge[++edges] = $0 }
        $1 != "dev" { linked[$2] = linked[$2] " " $3 }
        END {
            n = split(rules, line, "\n")
            for (i = 1; i <= n; i++) {
                if (line[i] == "") continue
                split(line[i], half, " # ")
                why = half[2]
                m = split(half[1], word, " ")
                verb = word[1]; crate = word[2]
                if (verb == "may") may_why[crate] = why
                if (verb == "only") only_why[crate] = why
                for (j = 3; j <= m; j++) {
                    if (verb == "may") may[crate, word[j]]
                    if (verb == "only") only[crate, word[j]]
                    if (verb == "never" && crate in member && (found = path(crate, word[j])) != "")
                        complain(found ": " crate " must not reach " word[j] ": " why)
                }
            }
            for (crate in member) if (!(crate in may_why))
                complain(crate " has no `may` line in scripts/check-dependencies.sh: say what it may depend on, and why")
            for (i = 1; i <= edges; i++) {
                split(edge[i], word, " ")
                kind = word[1]; from = word[2]; to = word[3]
                if (!(from in member)) continue
                if (to in member && from in may_why && !((from, to) in may || (kind == "dev" && (from, "dev:" to) in may)))
                    complain(from " -> " to " (" kind "): not a direction of this house: " may_why[from])
                if (to in only_why && !((to, from) in only))
                    complain(from " -> " to " (" kind "): only some crates may name " to ": " only_why[to])
            }
            exit bad
        }'
}

# Reads NAME<tab>LICENCE lines, prints what the allow list does not cover. An SPDX expression is reduced with 1 for a
# licence on the list and 0 for another: AND first, then OR, innermost parentheses first.
check_licences() {
    awk -F '\t' -v list="$1" '
        BEGIN { n = split(list, item, "\n"); for (i = 1; i <= n; i++) if (item[i] != "") allowed[item[i]] }
        function accepted(text,    n, i, word, before) {
            gsub("/", " OR ", text); gsub(/\(/, "( ", text); gsub(/\)/, " )", text)
            n = split(text, word, " ")
            text = ""
            for (i = 1; i <= n; i++) {
                if (word[i + 1] == "WITH") { word[i + 2] = word[i] " WITH " word[i + 2]; i += 2 }
                if (word[i] !~ /^(AND|OR|[()])$/) word[i] = (word[i] in allowed) ? 1 : 0
                text = text " " word[i]
            }
            do {
                before = text
                while (sub(/ 1 AND 1/, " 1", text) || sub(/ (0 AND [01]|1 AND 0)/, " 0", text)) {}
                while (match(text, /\( [01]( OR [01])* \)/))
                    text = substr(text, 1, RSTART - 1) (substr(text, RSTART, RLENGTH) ~ /1/) substr(text, RSTART + RLENGTH)
            } while (text != before)
            return text ~ /^ [01]( OR [01])*$/ && text ~ /1/
        }
        !accepted($2) {
            print "check-dependencies: " $1 " is under \"" $2 "\": not on the allow list of deny.toml"
            bad = 1
        }
        END { exit bad }'
}

allowed_licences() {
    awk '/^\[/ { inside = ($0 == "[licenses]") } inside' deny.toml | sed -n '/^allow = \[/,/^\]/s/^ *"\([^"]*\)",.*/\1/p'
}

# One registry, no git: what is built is what the registry serves, by the checksums of Cargo.lock.
check_sources() {
    awk -F '"' '
        /^source = / && $2 !~ /^registry\+/ { print "check-dependencies: Cargo.lock: " $2 " is not a registry"; bad = 1 }
        /^source = "registry/ && !($2 in seen) { seen[$2]; if (++n > 1) { print "check-dependencies: Cargo.lock: a second registry, " $2; bad = 1 } }
        END { exit bad }'
}

# Feeds stdin to a check. It must print WORDS, or nothing at all where WORDS is empty.
expect() {
    local words=$1 output
    shift
    output=$("$@") || true
    if [[ -z $words && -n $output ]] || [[ $output != *"$words"* ]]; then
        printf 'self-test: line %s: expected "%s", got "%s"\n' "${BASH_LINENO[0]}" "$words" "$output"
        failed=1
    fi
}

self_test() {
    local house failed=0
    house=$(printf 'member %s\n' 'lb lb' 'lb-core lb-core' 'xdp-prog xdp-prog' 'lab lab'
        printf 'normal %s\n' 'lb lb-core' 'lb-core xdp-prog' 'lb aya' 'aya libc' 'lb-core serde'
        printf 'dev %s\n' 'lb lab' 'lb-core proptest' 'proptest libc')
    with() { printf '%s\n' "$house" "$@"; }

    expect '' check_directions < <(with)
    expect 'lb-core -> lb (normal): not a direction' check_directions < <(with 'normal lb-core lb')
    expect 'xdp-prog -> lb-core (dev): not a direction' check_directions < <(with 'dev xdp-prog lb-core')
    expect 'lb -> lab (normal): not a direction' check_directions < <(with 'normal lb lab')
    expect 'lb-core -> aya (dev): only some crates' check_directions < <(with 'dev lb-core aya')
    expect 'lb-core -> serde -> x -> tokio: lb-core must not' check_directions < <(with 'normal serde x' 'normal x tokio')
    expect 'lb-core -> nix: lb-core must not' check_directions < <(with 'build lb-core nix')
    expect 'new has no `may` line' check_directions < <(with 'member new new')

    local list=$'MIT\nApache-2.0\nUnicode-3.0'
    expect '' check_licences "$list" < <(printf 'x\t%s\n' MIT MIT/Apache-2.0 'GPL-2.0 OR MIT' '(MIT OR Apache-2.0) AND Unicode-3.0' \
        'GPL-2.0 AND Zlib OR MIT' '(MIT OR Apache-2.0) AND (GPL-2.0-only OR MIT)')
    expect 'x is under "GPL-2.0"' check_licences "$list" < <(printf 'x\tGPL-2.0\n')
    expect 'x is under ""' check_licences "$list" < <(printf 'x\t\n')
    expect 'x is' check_licences "$list" < <(printf 'x\tMIT AND GPL-2.0\n')
    expect 'x is' check_licences "$list" < <(printf 'x\tGPL-2.0 OR MIT AND (MIT AND Zlib)\n')
    expect 'x is' check_licences "$list" < <(printf 'x\tApache-2.0 WITH LLVM-exception\n')

    expect '' check_sources < <(printf 'source = "registry+one"\n%.0s' 1 2)
    expect 'is not a registry' check_sources < <(echo 'source = "git+https://example.org/x#1"')
    expect 'a second registry' check_sources < <(printf 'source = "registry+%s"\n' one two)
    return $failed
}

main() {
    if [[ ${1-} == --self-test ]]; then
        self_test
        return
    fi
    local host failed=0
    host=$(rustc -vV | sed -n 's/^host: //p')
    local graph licences
    graph=$(edges)
    licences=$(tree --edges normal,build,dev --format "$(printf ' {p}\t{l}')" | sed -n 's/^[0-9]* \([^ ]* [^ \t]*\)[^\t]*\t/\1\t/p' |
        sed 's/ (\*)$//' | sort -u)
    check_directions <<<"$graph" || failed=1
    check_licences "$(allowed_licences)" <<<"$licences" || failed=1
    check_sources <Cargo.lock || failed=1
    return $failed
}

main "$@"
