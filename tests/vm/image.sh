#!/bin/bash
# Makes what a guest boots from, unless it is there: image.sh DIR leaves DIR/KEY/{vmlinuz,base.cpio} and prints DIR/KEY.
#
# KEY says which version of this script and of guest/ made it; those of other versions are removed. Needs root, and
# from Debian: mmdebstrap cpio busybox-static.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${1:?DIR}
suite=bookworm
packages="systemd systemd-sysv dbus udev kmod busybox-static procps iproute2 iputils-ping nftables curl
    e2fsprogs strace docker-registry criu iptables"
# What a node needs of the kernel's modules; what these need comes along.
modules="overlay veth bridge br_netfilter dummy tun loop nf_tables nft_chain_nat nft_masq nft_nat nft_redir nft_ct
    nft_compat nft_fib_inet nf_conntrack xt_conntrack squashfs ext4 crc32c_generic quota_v2
    tcp_diag udp_diag raw_diag unix_diag af_packet_diag netlink_diag xt_mark nf_conntrack_netlink"

say() { printf 'vm: %s\n' "$*" >&2; }

key=$(cat "$here/image.sh" "$here"/guest/* | sha256sum | cut -c1-16)
image=$cache/$key

# The Debian mirror of this machine's own apt, if it is one, else the public one.
mirror() {
    local found
    # shellcheck disable=SC2016  # apt's own placeholder
    found=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Origin: Debian' 'Label: Debian' | head -n 1)
    echo "${found:-http://deb.debian.org/debian}"
}

# Makes $image/{vmlinuz,base.cpio}.
build_image() {
    local root=$work/root version kernel
    say "building the guest (once)"
    # How this machine's apt fetches (proxies and the like) holds for mmdebstrap's too.
    apt-config dump | grep -E '^Acquire::(https?|ftp|Retries)' >"$work/apt.conf" || true
    # shellcheck disable=SC2086,SC2046  # lists of words on purpose
    mmdebstrap --quiet --mode=root --variant=minbase --include="$(echo $packages | tr ' ' ,)" \
        --aptopt="$work/apt.conf" --aptopt='APT::Install-Recommends "false"' --dpkgopt=force-unsafe-io \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
        --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/i18n/*' \
        --customize-hook='mkdir -m 777 "$1/kernel" && chroot "$1" sh -ec "cd /kernel && apt-get -qq download \
            \$(apt-cache depends linux-image-amd64 | sed -n s/.*Depends:.//p)"' \
        "$suite" "$root" "$(mirror)" >&2
    dpkg-deb -x "$root"/kernel/linux-image-*.deb "$root/kernel"
    version=$(basename "$root"/kernel/lib/modules/*)
    mv "$root/kernel/boot/vmlinuz-$version" "$work/vmlinuz"
    kernel=$root/kernel/lib/modules/$version
    mkdir -p "$root/usr/lib/modules/$version"
    cp "$kernel"/modules.{order,builtin,builtin.modinfo} "$root/usr/lib/modules/$version/"
    chroot "$root" depmod -b /kernel "$version"
    # shellcheck disable=SC2086  # a list of words
    chroot "$root" modprobe -d /kernel -S "$version" --all --show-depends $modules |
        sed -n 's/^insmod \/kernel\/\([^ ]*\).*/\1/p' | sort -u |
        while read -r module; do
            mkdir -p "$root/usr/$(dirname "$module")"
            mv "$root/kernel/$module" "$root/usr/$module"
        done
    chroot "$root" depmod "$version"
    rm -rf "$root/kernel" "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/perl* \
        "$root"/usr/lib/x86_64-linux-gnu/perl*

    install -m 755 "$here/guest/init" "$root/init"
    install -m 755 "$here/guest/job" "$root/usr/local/sbin/job"
    install -m 644 "$here/guest/job.service" "$root/etc/systemd/system/job.service"
    mkdir -p "$root/etc/systemd/system/multi-user.target.wants" "$root/etc/modules-load.d" "$root/etc/systemd/journald.conf.d"
    ln -sf ../job.service "$root/etc/systemd/system/multi-user.target.wants/job.service"
    echo overlay >"$root/etc/modules-load.d/sampan.conf"
    printf '[Journal]\nStorage=volatile\n' >"$root/etc/systemd/journald.conf.d/sampan.conf"
    echo guest >"$root/etc/hostname"
    printf '127.0.0.1 localhost guest\n' >"$root/etc/hosts"
    : >"$root/etc/fstab"
    rm -f "$root/etc/resolv.conf"
    echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"
    # What only costs time in a machine that lives for a minute.
    local unit
    for unit in getty@.service serial-getty@.service console-getty.service apt-daily.timer apt-daily-upgrade.timer \
        dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer systemd-tmpfiles-clean.timer \
        systemd-hwdb-update.service systemd-update-utmp.service systemd-update-utmp-runlevel.service ldconfig.service \
        systemd-logind.service systemd-random-seed.service systemd-pstore.service systemd-binfmt.service \
        systemd-udev-trigger.service systemd-udev-settle.service systemd-journal-flush.service docker-registry.service; do
        ln -sf /dev/null "$root/etc/systemd/system/$unit"
    done

    mkdir -p "$work/image"
    (cd "$root" && find . -xdev -print0 | cpio --quiet --null -o -H newc) >"$work/image/base.cpio"
    mv "$work/vmlinuz" "$work/image/vmlinuz"
    rm -rf "$image"
    mv "$work/image" "$image"
    say "kernel $version, $(du -m "$image/base.cpio" | cut -f1) MB"
}

mkdir -p "$cache"
exec 9>"$cache/.lock"
flock 9
if [ ! -f "$image/base.cpio" ]; then
    work=$(mktemp -d "$cache/.making-XXXXXX")
    trap 'rm -rf --one-file-system "$work"' EXIT
    chmod 755 "$work"
    build_image
    find "$cache" -mindepth 1 -maxdepth 1 -type d ! -name "$key" ! -name '.*' -exec rm -rf {} +
fi
echo "$image"
