# Shared by the scripts: talking to the user, finding root, installing what is missing.
# shellcheck shell=bash

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

if [ -t 1 ]; then bold=$'\e[1m' plain=$'\e[0m'; else bold='' plain=''; fi
started=$SECONDS

# say TEXT: one line of progress, with the minutes and seconds since the start.
say() { printf '%s[%d:%02d]%s %s\n' "$bold" $(((SECONDS - started) / 60)) $(((SECONDS - started) % 60)) "$plain" "$*"; }

# fail TEXT: the reason on standard error, and the end.
fail() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

# root COMMAND…: runs it as root, by sudo where that is needed. (A command in the background must
# begin with "${as_root[@]}" itself, else its process id would be a shell's.)
as_root=()
[ "$(id -u)" -eq 0 ] || as_root=(sudo)
root() {
    [ ${#as_root[@]} -eq 0 ] || command -v sudo >/dev/null ||
        fail "needs root for: $* (run as root, or install sudo)"
    "${as_root[@]}" "$@"
}

# What each part needs from Debian or Ubuntu. The build: xsk-rs compiles libxdp and libbpf from
# source (clang, m4, libelf, zlib, libpcap headers, pkg-config), Rust needs a linker (gcc).
build_packages=(clang gcc libc6-dev libelf-dev libpcap-dev m4 make pkg-config zlib1g-dev)
# The lab: namespaces and offloads, the servers and clients that make its traffic, and tcpdump.
lab_packages=(ca-certificates curl bind9-dnsutils dnsmasq-base ethtool iproute2 iputils-ping
    openssh-client openssh-server procps python3 tcpdump)
# The tests: traffic at a chosen rate, readers from outside (a browser among them), dropped
# capabilities, calls that fail, and a guest that can be rebooted (strip comes with binutils).
test_packages=(binutils bpftool busybox-static chromium e2fsprogs git libc-bin libcap2-bin netsniff-ng
    python3-venv qemu-system-x86 strace tcpreplay tshark util-linux)
# The bench: the peers that it compares with, and their readers.
bench_packages=(argus-client argus-server ethtool iproute2 netsniff-ng nfdump softflowd tcpdump
    tcpreplay tshark util-linux)
# need PACKAGE…: installs what is missing, quietly where nothing is.
need() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
            missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    command -v apt-get >/dev/null ||
        fail "install these first (no apt-get here to do it): ${missing[*]}"
    say "installing ${missing[*]}"
    root apt-get -qq update
    # A service that a package would start has no business on the machine of whoever tries this:
    # the lab runs its own servers, inside its namespaces.
    local policy=/usr/sbin/policy-rc.d ours=
    if [ ! -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' | root tee "$policy" >/dev/null
        root chmod 755 "$policy"
        ours=yes
    fi
    local told status=0
    told=$(root env DEBIAN_FRONTEND=noninteractive \
        apt-get -qq install --no-install-recommends --yes "${missing[@]}" 2>&1 </dev/null) || status=$?
    [ -z "$ours" ] || root rm -f "$policy"
    [ "$status" -eq 0 ] || fail "apt-get could not install ${missing[*]}: $told"
}

# guest_kernel DIR: unpacks the distribution's kernel for virtual machines there, unless one is. It is
# not installed: this machine's boot loader has nothing to do with it.
guest_kernel() {
    local package of=linux-image-cloud-amd64
    [ -d "$1/boot" ] && return
    apt-cache show "$of" >/dev/null 2>&1 || root apt-get -qq update
    package=$(apt-cache depends "$of" 2>/dev/null | sed -n '/^ *Depends: linux-image-/{s/.*: //p;q}')
    [ -n "$package" ] ||
        { say "no kernel for the guest, so no reboot can be tested: no package $of here (Debian has it)"; return; }
    say "unpacking $package for the guest"
    rm -rf "$1" "$1.new"
    mkdir -p "$1.new"
    (cd "$1.new" && apt-get -qq download "$package" 2>/dev/null && dpkg-deb -x "$package"_*.deb . &&
        rm "$package"_*.deb) || fail "apt-get could not download $package"
    mv "$1.new" "$1"
}

# Rust must be there: we do not install toolchains behind anybody's back.
need_rust() {
    [ -d "$HOME/.cargo/bin" ] && PATH="$HOME/.cargo/bin:$PATH"
    command -v cargo >/dev/null ||
        fail "Rust is missing: install it with rustup (https://rustup.rs), then run this again"
}
