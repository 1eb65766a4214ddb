#!/bin/bash
# A registry on loopback: Debian's docker-registry with its storage in a directory of its own.
#
#   registry.sh start DIR [PORT]          starts it (PORT 0 or none: a free one) and prints its address
#   registry.sh fill DIR IMAGES [NAME...] copies the OCI layouts of make-images.sh into it
#   registry.sh address DIR               prints the address of the one that runs
#   registry.sh stop DIR                  stops it; the storage stays, so that a later start is full at once
#
# What it holds: busybox, busybox-zstd and large as OCI images, nginx as Docker's schema 2, so that both are pulled.
set -euo pipefail

say() { printf 'registry: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

[ $# -ge 2 ] || die "usage: registry.sh start|fill|address|stop DIR ..."
verb=$1
dir=$2
shift 2

running() {
    local pid
    pid=$(cat "$dir/pid" 2>/dev/null) && [ "$(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline")" = "docker-registry serve $dir/config.yml " ]
}

address() {
    running || die "none runs in $dir"
    cat "$dir/address"
}

start() {
    command -v docker-registry >/dev/null || die "docker-registry is missing: apt-get install docker-registry"
    mkdir -p "$dir/storage"
    if running; then
        cat "$dir/address"
        return
    fi
    cat >"$dir/config.yml" <<-END
	version: 0.1
	log: {level: info, formatter: json, accesslog: {disabled: true}}
	storage:
	  filesystem: {rootdirectory: $dir/storage}
	  cache: {blobdescriptor: inmemory}
	  delete: {enabled: true}
	  maintenance: {uploadpurging: {enabled: false}}
	http: {addr: "127.0.0.1:${1:-0}"}
	END
    : >"$dir/log"
    OTEL_TRACES_EXPORTER=none setsid docker-registry serve "$dir/config.yml" </dev/null >>"$dir/log" 2>&1 &
    echo $! >"$dir/pid"
    local address
    for _ in $(seq 200); do
        address=$(sed -n 's/.*listening on \(127\.0\.0\.1:[0-9]*\).*/\1/p' "$dir/log" | head -n 1)
        [ -z "$address" ] || break
        kill -0 "$(cat "$dir/pid")" 2>/dev/null || break
        sleep 0.05
    done
    [ -n "$address" ] || { cat "$dir/log" >&2; die "does not start"; }
    echo "$address" >"$dir/address"
    say "listens on $address"
    echo "$address"
}

# Each image goes in once; the stamp names the layout that it was copied from.
fill() {
    local images=$1 address name layout
    shift
    [ $# -gt 0 ] || set -- busybox nginx large
    address=$(address)
    exec 9>"$dir/.lock"
    flock 9
    for name in "$@"; do
        layout=$(sha256sum <"$images/$name/index.json")
        if [ "$(cat "$dir/.filled-$name" 2>/dev/null)" = "$layout" ]; then
            continue
        fi
        say "fills $name"
        case $name in
        nginx) copy "$images/$name" "$address/$name:latest" --format v2s2 ;;
        *) copy "$images/$name" "$address/$name:latest" --format oci ;;
        esac
        if [ "$name" = busybox ]; then
            # By way of a layout: into the registry itself skopeo would take the gzip layer that is there.
            rm -rf "$dir/zstd"
            skopeo --insecure-policy copy --quiet --format oci --dest-compress-format zstd \
                "oci:$images/$name:latest" "oci:$dir/zstd:latest"
            copy "$dir/zstd" "$address/$name-zstd:latest"
            rm -rf "$dir/zstd"
        fi
        echo "$layout" >"$dir/.filled-$name"
    done
}

copy() {
    command -v skopeo >/dev/null || die "skopeo is missing: apt-get install skopeo"
    local from=$1 to=$2
    shift 2
    skopeo --insecure-policy copy --quiet --dest-tls-verify=false "$@" "oci:$from:latest" "docker://$to"
}

stop() {
    running || return 0
    local pid
    pid=$(cat "$dir/pid")
    kill "$pid"
    for _ in $(seq 100); do
        running || break
        sleep 0.05
    done
    ! running || kill -9 "$pid"
    rm -f "$dir/pid" "$dir/address"
    say "stopped"
}

case $verb in
start) start "$@" ;;
fill) [ $# -ge 1 ] || die "fill DIR IMAGES [NAME...]"; fill "$@" ;;
address) address ;;
stop) stop ;;
*) die "no such verb: $verb" ;;
esac
