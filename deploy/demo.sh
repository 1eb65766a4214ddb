#!/bin/bash
# The main job from end to end, in a throw-away root: pull a real image from a registry, run it in a pod, fetch its
# page through the published port, watch it, stop it, and leave nothing behind.
#
#   BIN_DIR=DIR demo.sh      DIR: where sampand, sampan and sampan-runtime are
#
# Always true: every wait has a deadline; whatever ends the script, what it made is gone afterwards;
# an agent with the default configuration beside it is not disturbed.
set -euo pipefail
cd "$(dirname "$0")/.."

# Of every single wait and command, in seconds.
patience=60
images=${SAMPAN_TEST_IMAGES:-/var/cache/sampan-test-images}
# It must not reach the agent: there, SAMPAN_… is configuration.
unset SAMPAN_TEST_IMAGES

if [[ -t 1 ]]; then bold=$'\e[1m' plain=$'\e[0m'; else bold='' plain=''; fi

step() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }

fail() {
    printf '\ndemo: FAILED: %s\n' "$*" >&2
    if [[ -s ${work:-}/agent.log ]]; then
        echo "demo: the agent's last lines:" >&2
        tail -n 20 "$work/agent.log" >&2
    fi
    exit 1
}

# The command as one would type it.
typed() { sed "s/'\([A-Za-z0-9_./:@=%+,-]*\)'/\1/g" <<<"${*@Q}"; }

# run COMMAND...: shows the command, then runs it.
run() {
    printf '%s$ %s%s\n' "$bold" "$(typed "$@")" "$plain"
    local status=0
    timeout --foreground "$patience" "$@" || status=$?
    ((status == 0)) || fail "$(typed "$@") ended with $status"
}

# expect TEXT FILE: what was seen must hold TEXT.
expect() { grep -qF -- "$1" "$2" || fail "expected \"$1\" in what came out: $(cat "$2")"; }

# eventually SECONDS COMMAND...: until the command succeeds.
eventually() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < end)) || return 1
        sleep 0.05
    done
}

port_is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

free_port() {
    local port
    for _ in {1..100}; do
        port=$((20000 + RANDOM % 10000))
        port_is_free "$port" && echo "$port" && return
    done
    return 1
}

gone() { ! kill -0 "$1" 2>/dev/null; }

mounts() { grep -F " $work/" /proc/self/mountinfo | cut -d ' ' -f 5; }

cgroups() { find /sys/fs/cgroup -mindepth 1 -maxdepth 3 -type d -path "*$cgroup" -prune 2>/dev/null; }

# What the demo may have left: one line each.
leftovers() {
    mounts | sed 's/^/mount /'
    cgroups | sed 's/^/cgroup /'
    ip -o link show "$bridge" 2>/dev/null | sed 's/^/link /'
    nft list tables 2>/dev/null | grep -F " $bridge" || true
    pgrep -f -- "${work##*/}" | sed 's/^/process /' || true
}

stop_agent() {
    [[ -n $agent ]] || return 0
    kill "$agent" 2>/dev/null || true
    eventually 20 gone "$agent" || kill -9 "$agent" 2>/dev/null || true
    wait "$agent" 2>/dev/null || true
    agent=
}

# Undoes everything, whatever state it finds.
cleanup() {
    local status=$1 directory pid path
    trap - EXIT
    trap '' INT TERM
    set +e
    if [[ -n $agent ]]; then
        timeout 20 sampan rm -f web >/dev/null 2>&1
    fi
    stop_agent
    # Monitors outlive the agent; after a failure only their cgroups tell where they are.
    for directory in $(cgroups); do
        for pid in $(find "$directory" -name cgroup.procs -exec cat {} + | sort -u); do
            kill -9 "$pid" 2>/dev/null
        done
    done
    eventually 5 no_processes
    for directory in $(cgroups); do
        find "$directory" -depth -type d -exec rmdir {} + 2>/dev/null
    done
    for path in $(mounts | sort -r); do umount -l "$path"; done
    tests/images/registry.sh stop "$work/registry" 2>/dev/null
    # The bridge and its table stay when an agent stops, because its pods do.
    ip link delete "$bridge" 2>/dev/null
    nft list tables 2>/dev/null | grep -F " $bridge" | sed 's/^/delete /' | nft -f - 2>/dev/null
    rm -rf --one-file-system "$work"
    exit "$status"
}

no_processes() {
    local directory
    for directory in $(cgroups); do
        [[ -z $(find "$directory" -name cgroup.procs -exec cat {} +) ]] || return 1
    done
}

((EUID == 0)) || fail "must be root: pods are namespaces, mounts and cgroups"
[[ -x ${BIN_DIR:-}/sampand && -x $BIN_DIR/sampan && -x $BIN_DIR/sampan-runtime ]] ||
    fail "no binaries in BIN_DIR=\"${BIN_DIR:-}\": use make demo"

agent=''
work=$(mktemp -d /var/tmp/sampan-demo-XXXXXX)
number=0
while ip link show "sampandemo$number" >/dev/null 2>&1; do number=$((number + 1)); done
bridge=sampandemo$number
cgroup=/${work##*/}
trap 'cleanup $?' EXIT
trap 'exit 130' INT TERM

export PATH="$BIN_DIR:$PATH"
export SAMPAN_SOCKET="$work/run/sampan.sock"

step "A registry on loopback, filled with nginx on Debian"
tests/images/make-images.sh "$images" nginx
registry=$(tests/images/registry.sh start "$work/registry")
run tests/images/registry.sh fill "$work/registry" "$images" nginx
image=$registry/nginx

step "The agent, with a root, a state folder and a bridge of its own"
second=$((64 + RANDOM % 64)) third=$((RANDOM % 256))
cat >"$work/config.toml" <<END
root = "$work/root"
state = "$work/run"
socket = "$SAMPAN_SOCKET"
[network]
bridge = "$bridge"
# What the node may have of a cluster is not for the demonstration.
cni_configurations = ""
subnets = ["10.$second.$third.0/24", "$(printf 'fd%02x:%04x:%04x::/64' $((RANDOM % 256)) $RANDOM $RANDOM)"]
[registry]
insecure = ["$registry"]
[cgroup]
root = "$cgroup"
END
cat "$work/config.toml"
echo "${bold}\$ sampand --config $work/config.toml &$plain"
# Away from the terminal: Ctrl-C is for this script, which then stops the agent itself.
setsid sampand --config "$work/config.toml" </dev/null >"$work/agent.log" 2>&1 &
agent=$!
serves() { [[ -S $SAMPAN_SOCKET ]] && timeout 5 sampan version >/dev/null 2>&1; }
serves_or_died() { serves || gone "$agent"; }
eventually 15 serves_or_died
serves || fail "the agent does not serve its socket"
run sampan version

step "Pull"
run sampan pull "$image"
run sampan images | tee "$work/out"
expect nginx "$work/out"

port=$(free_port) || fail "no free port"
step "Run nginx in a pod and publish its port 80 as $port"
run sampan run -d --name web -p "127.0.0.1:$port:80" "$image"
run sampan ps | tee "$work/out"
expect web "$work/out"

step "Fetch its page through the published port"
answers() { curl -sf -o /dev/null --max-time 5 "http://127.0.0.1:$port/"; }
eventually 15 answers || fail "nothing answers on port $port"
run curl -sS --fail --max-time 5 "http://127.0.0.1:$port/" | tee "$work/out"
page='Hello from nginx in a Sampan pod'
expect "$page" "$work/out"

step "Its stats, streamed for some seconds while it serves 300 requests"
for _ in {1..300}; do
    curl -sf -o /dev/null --max-time 5 "http://127.0.0.1:$port/" || true
    sleep 0.01
done &
load=$!
echo "${bold}\$ sampan stats web$plain"
# It streams until it is interrupted: being interrupted is how it ends well here.
timeout --foreground --signal=INT --kill-after=5 4 sampan stats web 2>"$work/err" | tee "$work/out" ||
    [[ ${PIPESTATUS[0]} =~ ^(124|130)$ ]] || fail "sampan stats: $(cat "$work/err")"
wait "$load" || true
rounds=$(grep -c web "$work/out") || true
((rounds >= 2)) || fail "the stream carried $rounds rounds of samples; at least 2 were expected"

step "What it logged (the last lines)"
run sampan logs web >"$work/out"
tail -n 3 "$work/out"
expect 'GET / HTTP/1.1' "$work/out"
lines=$(grep -cF 'GET / HTTP/1.1' "$work/out")

step "Stop and remove"
run sampan stop web
run sampan ps -a | tee "$work/out"
expect web "$work/out"
run sampan rm web
run sampan ps -a | tee "$work/out"
! grep -qw web "$work/out" || fail "web is still listed after rm"
run sampan rmi "$image"

step "Clean up"
stop_agent
[[ -z $(mounts) ]] || fail "mounts are left: $(mounts)"
echo "agent stopped; no mount left"
(cleanup 0)
left=$(leftovers)
[[ -z $left ]] || fail "left behind: $left"
[[ ! -e $work ]] || fail "left behind: $work"
trap - EXIT

printf '\n%sdemo: nginx was pulled from %s, answered on port %s, streamed %s rounds of stats, logged %s requests, and left nothing behind%s\n' \
    "$bold" "$registry" "$port" "$rounds" "$lines" "$plain"
