#!/usr/bin/env bash
# Installs what the build and the tests need and this machine lacks; never upgrades or removes anything.
#
#   scripts/setup.sh           says what it does, or 'nothing to do'
#   scripts/setup.sh --quiet   silent when nothing is missing: what every make target runs first
set -euo pipefail

readonly BPF_LINKER=0.10.3 # loads rustc's own LLVM; later ones want an LLVM of their own
readonly NEXTEST=0.9.143   # installed only where there is none: any recent one will do

# The command (or, with a slash, the file) that must be there, and the Debian packages that bring it. What clang and the
# lines after it bring compiles libxdp, for xsk-rs.
readonly DEBIAN='
cc       gcc libc6-dev
make     make
ip       iproute2
nft      nftables
ethtool  ethtool
tcpdump  tcpdump
curl     curl
ping     iputils-ping
tracepath iputils-tracepath
iperf3   iperf3
nmap     nmap
bird     bird2
/usr/lib/frr/bgpd frr
gobgpd   gobgpd
tshark   tshark
kubectl  kubernetes-client
openssl  openssl
clang    clang
m4       m4
pkg-config            pkg-config
/usr/include/libelf.h libelf-dev
/usr/include/zlib.h   zlib1g-dev
'

# clang -target bpf does not say that it is x86-64, so glibc's headers ask for their 32-bit half. (gcc-multilib brings it
# too, and conflicts with every cross compiler.)
DEBIAN_X86_64=
[[ $(uname -m) != x86_64 ]] || DEBIAN_X86_64='/usr/include/x86_64-linux-gnu/gnu/stubs-32.h libc6-dev-i386'
readonly DEBIAN_X86_64

did_something=
say() {
    did_something=yes
    printf 'setup: %s\n' "$*"
}
die() {
    printf 'setup: error: %s\n' "$@" >&2
    exit 1
}
have() {
    if [[ $1 == /* ]]; then
        [[ -e $1 ]]
    else
        command -v "$1" >/dev/null 2>&1
    fi
}

# Runs a command as root, through sudo where we are not.
as_root() {
    if [[ $EUID -eq 0 ]]; then
        "$@"
    elif have sudo; then
        sudo "$@"
    else
        die "this needs root and there is no sudo: $*" "run it as root, then run make setup again"
    fi
}

debian_packages() {
    local command packages missing=() wanted=()
    while read -r command packages; do
        [[ -z $command ]] && continue
        have "$command" && continue
        missing+=("$command")
        read -ra packages <<<"$packages"
        wanted+=("${packages[@]}")
    done <<<"$DEBIAN$DEBIAN_X86_64"
    [[ ${#missing[@]} -eq 0 ]] && return
    have apt-get || die "missing commands: ${missing[*]}" "there is no apt-get here: install them (in Debian: ${wanted[*]})"
    say "missing ${missing[*]}: installing Debian packages ${wanted[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 update
    without_services env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 \
        install --no-install-recommends --no-remove "${wanted[@]}"
}

# Runs a command as root; no package that it installs starts its service: the routers are for the tests' namespaces, not for this
# machine. Debian asks /usr/sbin/policy-rc.d first, with systemd and without; one that is there already stays and has the word.
# (With systemd they are started at the next boot all the same, unless you disable them.)
without_services() {
    local policy=/usr/sbin/policy-rc.d status=0
    if [[ -e $policy ]]; then
        as_root "$@"
        return
    fi
    printf '#!/bin/sh\nexit 101\n' | as_root install -m 755 /dev/stdin "$policy"
    as_root "$@" || status=$?
    as_root rm -f "$policy"
    return "$status"
}

rust_toolchain() {
    have cargo && have rustc || die "no cargo: install Rust 1.95 or later with rustup, then run make setup again"
    local tool component
    for tool in cargo-fmt:rustfmt cargo-clippy:clippy; do
        component=${tool#*:} tool=${tool%:*}
        have "$tool" && continue
        say "missing $tool: rustup component add $component"
        rustup component add "$component" || die "cannot add $component"
    done
    sysroot=$(rustc --print sysroot)
    rust_src
}

# `-Z build-std=core` compiles core for the eBPF target from rustc's own sources.
rust_src() {
    local destination=$sysroot/lib/rustlib/src/rust
    [[ -f $destination/library/core/src/lib.rs && -f $destination/library/Cargo.lock ]] && return
    say "missing rust-src: rustup component add rust-src"
    if have rustup && rustup component add rust-src; then
        return
    fi
    say "refused; taking the same sources from Debian's rust-src"
    rust_src_from_debian "$destination" ||
        die "cannot get rust-src" "put the library/ folder of rustc's sources, same version, into $destination"
}

# Debian's rust-src of the very version of rustc, from trixie-backports of whichever mirror this machine uses. It is
# unpacked, not installed, and apt's own lists and sources stay as they are.
rust_src_from_debian() {
    local destination=$1 version site dir package
    have apt-get && have dpkg || return 1
    version=$(rustc --version | cut -d' ' -f2)
    # shellcheck disable=SC2016 # $(SITE) is apt's
    site=$(apt-get indextargets --format '$(SITE) $(ORIGIN)' 'Created-By: Packages' | awk '$2 == "Debian" { print $1; exit }')
    [[ -n $site ]] || return 1
    dir=$(mktemp -d)
    # shellcheck disable=SC2064 # expanded now on purpose
    trap "rm -rf '$dir'" RETURN
    mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
    echo "deb $site trixie-backports main" >"$dir/sources.list"
    local apt=(-q -o "Dir::Etc::SourceList=$dir/sources.list" -o Dir::Etc::SourceParts=-
        -o "Dir::State::Lists=$dir/lists" -o "Dir::Cache=$dir/cache" -o "APT::Sandbox::User=$(id -un)")
    apt-get "${apt[@]}" update || return 1
    package=$(apt-cache "${apt[@]}" madison rust-src | awk -v v="$version" 'index($3, v "+") == 1 { print $3; exit }')
    if [[ -z $package ]]; then
        say "Debian has no rust-src $version"
        return 1
    fi
    say "unpacking rust-src $package into $destination"
    (cd "$dir" && apt-get "${apt[@]}" download "rust-src=$package" && dpkg -x rust-src_*.deb unpacked) || return 1
    local parent=$sysroot run=()
    [[ -w $parent ]] || run=(as_root)
    "${run[@]}" mkdir -p "$destination" || return 1
    "${run[@]}" cp -r "$dir/unpacked/usr/src/rustc-$version/library" "$destination/" || return 1
}

bpf_linker() {
    local version=none
    have bpf-linker && version=$(bpf-linker --version 2>/dev/null | cut -d' ' -f2)
    [[ $version == "$BPF_LINKER" ]] && return
    say "bpf-linker is $version, not $BPF_LINKER: compiling it, about 2 minutes"
    cargo install --quiet --locked --force bpf-linker --version "$BPF_LINKER"
}

nextest() {
    have cargo-nextest && return
    say "missing cargo-nextest: compiling $NEXTEST, several minutes"
    cargo install --quiet --locked cargo-nextest --version "$NEXTEST"
}

main() {
    # What we install, and root's tools, may not be on the caller's PATH.
    export PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH:/usr/local/sbin:/usr/sbin:/sbin"
    debian_packages # first: the rest needs a C linker
    rust_toolchain
    bpf_linker
    nextest
    if [[ -n $did_something ]]; then
        say "done"
    elif [[ ${1-} != --quiet ]]; then
        say "nothing to do"
    fi
}

main "$@"
