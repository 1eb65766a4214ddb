#!/bin/bash
# Installs from Debian what is missing on this machine. Asks the network for nothing when nothing is missing.
#
#   setup.sh GROUP...     groups: build, test, vm, bench
#
# Services of the packages it installs (a registry, containerd) are neither started nor enabled:
# the tests start their own, on loopback.
set -euo pipefail
cd "$(dirname "$0")/.."

declare -A PACKAGES=(
    # protobuf-compiler: the tests' CRI client was written by others and compiles its .proto files with protoc.
    [build]="git gcc libc6-dev make pkg-config libseccomp-dev protobuf-compiler"
    [test]="ca-certificates docker-registry skopeo umoci mmdebstrap busybox-static nftables iproute2
        e2fsprogs procps curl jq shellcheck openssl strace tar python3-kubernetes
        containernetworking-plugins iptables runc crun containerd buildah podman docker.io"
    [vm]="qemu-system-x86 mmdebstrap cpio busybox-static jq"
    [bench]="containerd runc containernetworking-plugins docker.io pigz"
)

die() {
    echo "setup: $*" >&2
    exit 1
}

wanted=()
for group in "$@"; do
    # shellcheck disable=SC2206  # a list of words on purpose
    wanted+=(${PACKAGES[$group]?"no package group $group"})
done

# Any kubectl does for the tests; Debian's cannot be installed beside one from elsewhere.
if [[ " $* " == *" test "* ]] && ! type -P kubectl >/dev/null; then
    wanted+=(kubernetes-client)
fi

missing=()
for package in "${wanted[@]}"; do
    [[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" == installed ]] || missing+=("$package")
done

# Keeps maintainer scripts from starting services, for as long as this script runs.
hold_services() {
    [[ -e /usr/sbin/policy-rc.d ]] && return
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod 0755 /usr/sbin/policy-rc.d
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
}

if ((${#missing[@]})); then
    command -v apt-get >/dev/null || die "this is not a Debian system; install by hand: ${missing[*]}"
    ((EUID == 0)) || die "must be root to install: ${missing[*]}"
    echo "setup: installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    hold_services
    apt-get update -q
    apt-get install -y -q --no-install-recommends "${missing[@]}"
    if [[ -d /run/systemd/system ]]; then
        for service in docker-registry containerd; do
            if [[ " ${missing[*]} " == *" $service "* ]]; then
                systemctl --quiet disable "$service.service"
            fi
        done
    fi
fi

# The workspace says which Rust it needs, in one place.
needed=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
how="install Rust $needed or newer with rustup (https://rustup.rs), then run make again"
type -P cargo rustc >/dev/null || die "no Rust toolchain found: $how"
found=$(rustc --version | awk '{ print $2 }')
[[ "$(printf '%s\n' "$needed" "${found%%-*}" | sort -V | head -n 1)" == "$needed" ]] ||
    die "Rust $found is too old: $how"
