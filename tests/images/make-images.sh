#!/bin/bash
# Makes the images that the tests, the benchmark and the demonstration pull, from Debian packages.
#
#   make-images.sh [DIR [NAME...]]
#
# Leaves one OCI layout for each NAME (busybox, nginx, large; all of them when none is named) in DIR, tagged
# "latest". What is there already, made by this very script, is kept. DIR: the first argument, or
# SAMPAN_TEST_IMAGES, or /var/cache/sampan-test-images.
#
# Needs root and mmdebstrap, umoci, jq. The mirror is the one that this machine's apt knows.
set -euo pipefail

dir=${1:-${SAMPAN_TEST_IMAGES:-/var/cache/sampan-test-images}}
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- busybox nginx large
stamp=$(sha256sum "${BASH_SOURCE[0]}" | cut -d' ' -f1)

say() { printf 'images: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

[ "$(id -u)" = 0 ] || die "must be root: layers hold files of every owner"
for tool in mmdebstrap umoci jq; do
    command -v "$tool" >/dev/null || die "$tool is missing: apt-get install mmdebstrap umoci jq"
done

mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
exec 9>"$dir/.lock"
flock 9

work=$(mktemp -d "$dir/.making-XXXXXX")
trap 'rm -rf "$work"' EXIT

made() { [ "$(cat "$dir/.stamp-$1" 2>/dev/null)" = "$stamp" ] && [ -f "$dir/$1/index.json" ]; }

# The suites of this machine's own Debian mirror, as one-line sources.
sources() {
    # shellcheck disable=SC2016  # apt's own placeholders
    apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 'Origin: Debian' |
        sort -u
}

# shellcheck disable=SC1091
codename() { . /etc/os-release && echo "$VERSION_CODENAME"; }

# How this machine's apt fetches (proxies and the like): apt within a chroot must do the same.
acquire_options() { apt-config dump | grep -E '^Acquire::(https?|ftp|Retries)' || true; }

# An empty image, unpacked in $work/bundle.
begin() {
    umoci init --layout "$work/layout"
    umoci new --image "$work/layout:latest"
    umoci unpack --image "$work/layout:latest" "$work/bundle" >/dev/null
}

# begin_from NAME: continues an image that was made before.
begin_from() {
    cp -a "$dir/$1" "$work/layout"
    umoci unpack --image "$work/layout:latest" "$work/bundle" >/dev/null
}

# layer COMMENT: what has changed in the bundle since the last layer becomes a layer.
layer() {
    umoci repack --refresh-bundle --image "$work/layout:latest" \
        --history.created_by "$1" --history.comment "sampan tests" "$work/bundle" >/dev/null
    say "$(printf '  layer: %-45s %6.1f MB' "$1" "$(last_layer_size)")"
}

manifest() {
    local digest
    digest=$(jq -r '.manifests[0].digest' "$1/index.json")
    cat "$1/blobs/${digest/://}"
}

last_layer_size() { manifest "$work/layout" | jq '.layers[-1].size / 1e6'; }

# finish NAME: garbage out, then into place as a whole.
finish() {
    umoci gc --layout "$work/layout" >/dev/null
    rm -rf "${dir:?}/$1"
    mv "$work/layout" "$dir/$1"
    rm -rf "$work/bundle"
    echo "$stamp" >"$dir/.stamp-$1"
    say "$1: $(manifest "$dir/$1" | jq -r '"\(.layers | length) layers, \([.layers[].size] | add / 1e6 * 10 | round / 10) MB compressed"')"
}

# install PACKAGE...: into the unpacked image, leaving no trace of apt's own files.
install() {
    local root=$work/bundle/rootfs
    mkdir -p "$root/tmp/apt/partial" "$root/tmp/lists/partial"
    cp /etc/resolv.conf "$root/etc/resolv.conf"
    mknod -m 666 "$root/dev/null" c 1 3
    mknod -m 666 "$root/dev/urandom" c 1 9
    acquire_options >"$root/tmp/apt.conf"
    printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d"
    chmod 755 "$root/usr/sbin/policy-rc.d"
    local options=(-qq -c /tmp/apt.conf -o Dir::State::lists=/tmp/lists -o Dir::Cache::archives=/tmp/apt
        -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root -o Acquire::Languages=none)
    in_root apt-get "${options[@]}" update
    in_root apt-get "${options[@]}" install -y --no-install-recommends "$@" >"$work/apt.log" 2>&1 ||
        { tail -n 40 "$work/apt.log" >&2; die "apt-get install $* failed"; }
    rm -rf "$root/tmp/apt" "$root/tmp/lists" "$root/tmp/apt.conf" "$root/usr/sbin/policy-rc.d" "$root/etc/resolv.conf"
    find "$root/dev" -mindepth 1 -delete
    rm -rf "$root"/var/log/*.log "$root"/var/log/apt "$root"/var/cache/ldconfig/*
}

in_root() {
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
        chroot "$work/bundle/rootfs" "$@" </dev/null
}

# A few MB: one static binary and the files that users and groups are looked up in.
make_busybox() {
    begin
    local root=$work/bundle/rootfs
    mkdir "$work/deb"
    chmod 755 "$work" "$work/deb"
    (cd "$work/deb" && apt-get -qq -o APT::Sandbox::User=root download busybox-static >/dev/null && dpkg-deb -x busybox-static_*.deb x)
    mkdir -p "$root"/{bin,etc,dev,proc,sys,usr,var/log,var/run,home/app}
    mkdir -m 700 "$root/root"
    mkdir -m 1777 "$root/tmp"
    cp "$(find "$work/deb/x" -type f -path "*/bin/busybox")" "$root/bin/busybox"
    chmod 755 "$root/bin/busybox"
    local applet
    for applet in $("$root/bin/busybox" --list); do
        [ "$applet" = busybox ] || ln "$root/bin/busybox" "$root/bin/$applet"
    done
    ln -s ../bin "$root/usr/bin"
    ln -s bin "$root/sbin"
    cat >"$root/etc/passwd" <<-'END'
	root:x:0:0:root:/root:/bin/sh
	daemon:x:1:1:daemon:/usr/sbin:/bin/false
	app:x:1000:1000:an application:/home/app:/bin/sh
	nobody:x:65534:65534:nobody:/home:/bin/false
	END
    cat >"$root/etc/group" <<-'END'
	root:x:0:
	daemon:x:1:
	extra:x:990:app
	app:x:1000:
	nogroup:x:65534:
	END
    chown -R 1000:1000 "$root/home/app"
    layer "busybox-static"
    umoci config --image "$work/layout:latest" --author "sampan tests" \
        --config.cmd sh --config.env PATH=/usr/sbin:/usr/bin:/sbin:/bin
    finish busybox
    rm -rf "$work/deb"
}

# Debian as small as mmdebstrap makes it; the first layer of nginx and large.
make_base() {
    begin
    sources >"$work/sources.list"
    acquire_options >"$work/acquire.conf"
    mmdebstrap --quiet --mode=root --variant=minbase --format=directory --aptopt="$work/acquire.conf" \
        --aptopt='APT::Install-Recommends "false"' --dpkgopt='path-exclude=/usr/share/man/*' \
        "$(codename)" "$work/debian" "$work/sources.list"
    rm -f "$work/debian/etc/apt/apt.conf.d/99mmdebstrap" "$work/debian/etc/resolv.conf" "$work/debian/etc/hostname"
    find "$work/debian/dev" -mindepth 1 -delete
    rmdir "$work/bundle/rootfs"
    mv "$work/debian" "$work/bundle/rootfs"
    layer "mmdebstrap --variant=minbase $(codename)"
    umoci config --image "$work/layout:latest" --author "sampan tests" --config.cmd bash \
        --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    finish base
}

# A web server that writes its log to stdout; its last layer takes a file of the one before away.
make_nginx() {
    begin_from base
    local root=$work/bundle/rootfs
    install nginx-light
    layer "apt-get install nginx-light"
    rm -f "$root/etc/nginx/sites-enabled/default" "$root/var/www/html/index.nginx-debian.html"
    ln -sf /dev/stdout "$root/var/log/nginx/access.log"
    ln -sf /dev/stderr "$root/var/log/nginx/error.log"
    cat >"$root/etc/nginx/conf.d/page.conf" <<-'END'
	server {
	    listen 80 default_server;
	    listen [::]:80 default_server;
	    root /var/www/html;
	}
	END
    printf '<!doctype html>\n<title>Sampan</title>\n<h1>Hello from nginx in a Sampan pod</h1>\n' >"$root/var/www/html/index.html"
    layer "configuration and a page"
    umoci config --image "$work/layout:latest" --config.exposedports 80/tcp --config.stopsignal SIGQUIT \
        --clear=config.cmd --config.cmd nginx --config.cmd -g --config.cmd 'daemon off;'
    finish nginx
}

# Several hundred MB in layers like those of a development image.
make_large() {
    begin_from base
    local packages
    for packages in "python3 python3-dev python3-numpy" "gcc g++ make" nodejs "git cmake clang"; do
        # shellcheck disable=SC2086 # a list of words
        install $packages
        layer "apt-get install $packages"
    done
    finish large
}

# A machine that has never asked its mirror knows neither packages nor suites.
know_packages() {
    if [ -z "$(sources)" ]; then
        say "apt-get update"
        apt-get -qq update
    fi
}

for name in "$@"; do
    case $name in busybox | nginx | large) ;; *) die "no such image: $name (busybox, nginx, large)" ;; esac
    if made "$name"; then
        say "$name: kept"
        continue
    fi
    know_packages
    if [ "$name" != busybox ] && ! made base; then
        say "base: making"
        make_base
    fi
    say "$name: making"
    "make_$name"
done
