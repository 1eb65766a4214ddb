#!/bin/bash
# Runs the CRI validation suite against an agent of its own, with every image that the suite pulls made from Debian packages.
#
#   run.sh CRITEST [ARGUMENT...]     CRITEST: the suite's program; the arguments are its own (-ginkgo.focus=...)
#   BIN_DIR=DIR                      where sampand, sampan and sampan-runtime are
#
# The suite's names (registry.k8s.io, gcr.io, k8s.gcr.io) lead to a registry on loopback by hosts.toml. One image can't be
# had: the suite asks for it by the digest of the original ("public image with digest").
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 1 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 2; }
critest=$(realpath "$1")
shift
BIN_DIR=${BIN_DIR:-$here/../../target/$(rustc --print host-tuple)/debug}
images=${SAMPAN_TEST_IMAGES:-/var/cache/sampan-test-images}
unset SAMPAN_TEST_IMAGES
work=$(mktemp -d /tmp/sampan-critest-XXXXXX)
bridge=critest$((RANDOM % 1000))
export SAMPAN_SOCKET=$work/sampan.sock

agent=
stop_agent() {
    [ -z "$agent" ] || { kill "$agent" 2>/dev/null && wait "$agent" 2>/dev/null; } || true
    agent=
}

# start_agent ROOT: an agent whose images are those of ROOT.
start_agent() {
    # The socket goes by its flag alone: what the environment says is configuration to the agent.
    env -u SAMPAN_SOCKET "$BIN_DIR/sampand" --config "$work/config.toml" --root "$work/$1" --state "$work/state" \
        --socket "$SAMPAN_SOCKET" >>"$work/agent.log" 2>&1 &
    agent=$!
    for _ in $(seq 200); do
        "$BIN_DIR/sampan" version >/dev/null 2>&1 && return
        sleep 0.1
    done
    tail -n 20 "$work/agent.log" >&2
    exit 1
}

clean() {
    stop_agent
    # Pods that a failed test left outlive the agent.
    find /sys/fs/cgroup -path "*/$bridge/*" -name cgroup.procs -exec cat {} + 2>/dev/null | sort -u | xargs -r kill -9 || true
    sleep 1
    find /sys/fs/cgroup -depth -type d -path "*/$bridge*" -exec rmdir {} \; 2>/dev/null || true
    "$here/../images/registry.sh" stop "$work/registry" || true
    ip link delete "$bridge" 2>/dev/null || true
    for family in inet bridge; do nft delete table $family "$bridge" 2>/dev/null || true; done
    grep -F " $work/" /proc/self/mountinfo | cut -d' ' -f5 | sort -r | xargs -r umount -l
    rm -rf "$work"
}
trap clean EXIT

"$here/../images/make-images.sh" "$images" busybox nginx
registry=$("$here/../images/registry.sh" start "$work/registry" 0)
"$here/../images/registry.sh" fill "$work/registry" "$images" busybox nginx
for host in registry.k8s.io gcr.io k8s.gcr.io; do
    mkdir -p "$work/certs/$host"
    printf 'server = "http://%s"\n' "$registry" >"$work/certs/$host/hosts.toml"
done
cat >"$work/config.toml" <<END
[network]
bridge = "$bridge"
subnets = ["10.$((64 + RANDOM % 60)).0.0/20", "fd77:$((RANDOM % 9000))::/64"]
cni_configurations = ""
[registry]
settings = "$work/certs"
[cgroup]
root = "/$bridge"
END

# image NAME LINE...: a Dockerfile's lines, built and pushed.
image() {
    local name=$registry/$1
    shift
    printf '%s\n' "$@" >"$work/Dockerfile"
    "$BIN_DIR/sampan" build -q -t "$name" -f "$work/Dockerfile" "$work/context" >/dev/null
    "$BIN_DIR/sampan" push "$name" >/dev/null 2>&1
}

mkdir "$work/context"
cp /bin/busybox "$work/context/busybox"
apt-config dump | grep -E '^Acquire::(https?|ftp|Retries)' >"$work/context/acquire" || true
printf '#include <stdio.h>\n#include <unistd.h>\nint main(void) { return printf("Effective uid: %%d\\n", geteuid()) < 0; }\n' |
    gcc -static -O2 -xc -o "$work/context/effective" -
printf '#!/bin/sh\nexec /bin/grep -a "$@"\n' >"$work/context/grep"
chmod +x "$work/context/grep"

start_agent images
tools="procps iputils-ping util-linux netcat-openbsd iproute2 net-tools"
image debian:1 "FROM $registry/nginx:latest" 'COPY acquire /etc/apt/apt.conf.d/99acquire' \
    "RUN apt-get update -q && apt-get install -y -q --no-install-recommends $tools"
debian="FROM $registry/debian:1"
small="FROM $registry/busybox:latest"
image e2e-test-images/busybox:1.29-2 "$debian" 'COPY busybox /usr/local/bin/busybox' \
    'RUN for n in nc touch brctl top ping; do ln -s busybox /usr/local/bin/$n; done; rm -f /bin/ping /usr/bin/ping' \
    'ENTRYPOINT []' 'CMD ["sh"]'
image e2e-test-images/nginx:1.14-2 "$debian" 'COPY grep /usr/local/bin/grep'
image e2e-test-images/httpd:2.4.39-4 "$small" 'RUN mkdir /www && echo "<h1>It works!</h1>" > /www/index.html' \
    'CMD ["sh", "-c", "echo httpd resuming normal operations; exec busybox httpd -f -v -p 80 -h /www"]'
image e2e-test-images/nonewprivs:1.3 "$small" 'COPY --chmod=4755 effective /effective' 'ENTRYPOINT ["/effective"]'
image pause:3.9 "$small" 'CMD ["sleep", "1000000"]'
for name in 1:latest 2:latest 3:latest latest:latest tag:test tag:all digest:latest; do
    image "k8s-staging-cri-tools/test-image-$name" "$small" "LABEL name=$name"
done
for tag in 1 2 3; do image "k8s-staging-cri-tools/test-image-tags:$tag" "$small" 'LABEL name=tags'; done
users='RUN echo www-data:x:33:33::/:/bin/sh >> /etc/passwd; echo www-data:x:33: >> /etc/group; echo users:x:100: >> /etc/group'
image k8s-staging-cri-tools/test-image-user-uid "$small" 'USER 1002'
image k8s-staging-cri-tools/test-image-user-username "$small" "$users" 'USER www-data'
image k8s-staging-cri-tools/test-image-user-uid-group "$small" "$users" 'USER 1003:users'
image k8s-staging-cri-tools/test-image-user-username-group "$small" "$users" 'USER www-data:users'
image k8s-staging-cri-tools/test-image-predefined-group "$debian" \
    'RUN useradd -u 1000 -M default-user && groupadd -g 50000 group-defined-in-image && usermod -aG 50000 default-user' 'USER 1000'
image "k8s-staging-cri-tools/hostnet-nginx-$(dpkg --print-architecture)" "$debian" \
    "RUN grep -rl listen /etc/nginx | xargs sed -i 's/listen \(.*\)80\(.*\);/listen \112003\2;/'"
stop_agent

# With a root of its own: the suite counts the names that an image has.
start_agent root
"$critest" -runtime-endpoint "unix://$SAMPAN_SOCKET" -image-endpoint "unix://$SAMPAN_SOCKET" -ginkgo.no-color "$@"
