#!/bin/bash
# Runs the runtime's privileged tests on machines with systemd and each arrangement of control groups.
#
#   test.sh [--quick|--agent] [LAYOUT...]     layouts: v2 hybrid v1; all three when none is named
#
# The tests are built here and carried into one guest a layout: unit tests, containers, the command line, monitors, and
# systemd's scopes; containers and the command line once with cgroups made by the runtime and once with scopes. --quick
# leaves out the second round of both and the monitors. --agent runs the agent's end-to-end tests instead, one at a time.
set -euo pipefail
cd "$(dirname "$0")/../.."

part=
case ${1:-} in --quick | --agent) part=${1#--}; shift ;; esac
[ $# -gt 0 ] || set -- v2 hybrid v1
for layout in "$@"; do
    case $layout in
        v2 | hybrid | v1) ;;
        *) echo "test.sh: unknown layout $layout: v2, hybrid or v1" >&2; exit 2 ;;
    esac
done

# executables CARGO-ARGUMENTS...: builds tests, and prints what was built as NAME PATH lines.
executables() {
    cargo test --no-run --message-format json "$@" |
        jq -r 'select(.reason == "compiler-artifact" and .executable != null)
            | "\(if .profile.test then "test-" else "" end)\(.target.name) \(.executable)"'
}
# named NAME: the path in the lines that come in.
named() { sed -n "s/^$1 //p" | tail -n 1; }

files=()
if [ "$part" = agent ]; then
    cargo build -p sampan-agent -p sampan-runtime --bins
    e2e=$(executables -p sampan-tests --test e2e | named test-e2e)
    bin=$(dirname "$(dirname "$e2e")")
    # Images and a registry's storage with nothing in them but what these tests pull.
    made=${SAMPAN_TEST_IMAGES:-/var/cache/sampan-test-images}
    images=${SAMPAN_VM_CACHE:-/var/cache/sampan-vm}/images
    tests/images/make-images.sh "$made" busybox nginx
    mkdir -p "$images/registry"
    for name in busybox nginx; do
        rm -rf "${images:?}/$name"
        cp -a "$made/$name" "$made/.stamp-$name" "$images/"
    done
    tests/images/registry.sh start "$images/registry" 0 >/dev/null
    trap 'tests/images/registry.sh stop "$images/registry"' EXIT
    tests/images/registry.sh fill "$images/registry" "$images" busybox nginx
    files=("$images" "$PWD/tests/images" "$bin"/{sampand,sampan,sampan-runtime} "$e2e")
    # The images are there already: who asks for these tools would be making some.
    script='
for tool in mmdebstrap umoci jq; do
    command -v $tool >/dev/null || { printf "#!/bin/sh\nexit 1\n" >/usr/local/bin/$tool; chmod +x /usr/local/bin/$tool; }
done
export SAMPAN_TEST_CRIU=required
export SAMPAN_TEST_IMAGES='"$images"' SAMPAN_TEST_QUOTAS=1
exec '"$e2e --test-threads 1 ${SAMPAN_VM_TESTS:-}"
else
    built=$(executables -p sampan-runtime --lib --bins --test container --test oci --test shim --test systemd)
    unit=$(named test-sampan_runtime <<<"$built")
    container=$(named test-container <<<"$built")
    oci=$(named test-oci <<<"$built")
    shim=$(named test-shim <<<"$built")
    systemd=$(named test-systemd <<<"$built")
    # The one that the monitors' tests execute, under the very path.
    files=("$unit" "$container" "$oci" "$shim" "$systemd" "$(named sampan-runtime <<<"$built")")
    # Figures mean nothing in a guest, and races are run a thousand times where that takes seconds.
    # The guest has none of the callers of the command line.
    # Its root is in memory, where Debian 12's kernel maps no ids.
    skip="--skip=figures --skip=swapped --skip=callers --skip=mounts_can_map_ids"
    script='
export SAMPAN_TEST_CRIU=required
run() { echo "== $*"; "$@" || { echo "== FAILED ($?): $*"; failed=1; }; }
failed=0
SAMPAN_TEST_QUOTAS=1 run '"$unit"' --test-threads 2 cgroup quota
run '"$systemd"'
SAMPAN_TEST_CGROUP=scope run '"$oci $skip"' --test-threads 2
run '"$container $skip"'
'
    [ "$part" = quick ] || script+='
run '"$oci $skip"' --test-threads 2
SAMPAN_TEST_CGROUP=scope run '"$container $skip"'
run '"$shim"' --test-threads 1
'
    script+='
exit $failed'
fi

with=()
for file in "${files[@]}"; do with+=(--file "$file"); done
status=0
for layout in "$@"; do
    echo "== guest with cgroup $layout"
    tests/vm/vm.sh --cgroup "$layout" --timeout 1500 \
        --memory "$([ "$part" = agent ] && echo 4096 || echo 2048)" "${with[@]}" -- bash -c "$script" || { status=$?; echo "== guest with cgroup $layout: exit status $status"; }
done
exit "$status"
