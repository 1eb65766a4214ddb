#!/bin/bash
# Runs the runtime's privileged tests on machines with systemd and each arrangement of control groups.
#
#   test.sh [--quick] [LAYOUT...]     layouts: v2 hybrid v1; all three when none is named
#
# The tests are built here and carried into one guest a layout: unit tests, containers, monitors, and systemd's
# scopes; containers once with cgroups made by the runtime and once with scopes. --quick leaves out the second round of
# containers and the monitors.
set -euo pipefail
cd "$(dirname "$0")/../.."

quick=
[ "${1:-}" != --quick ] || { quick=1; shift; }
[ $# -gt 0 ] || set -- v2 hybrid v1
for layout in "$@"; do
    case $layout in
        v2 | hybrid | v1) ;;
        *) echo "test.sh: unknown layout $layout: v2, hybrid or v1" >&2; exit 2 ;;
    esac
done

# built KIND NAME: the executable that cargo made, by its kind and name of target.
messages=$(cargo test -p sampan-runtime --lib --bins --test container --test shim --test systemd --no-run --message-format json)
built() {
    jq -r --arg kind "$1" --arg name "$2" \
        'select(.reason == "compiler-artifact" and .executable != null and .target.kind == [$kind] and .target.name == $name
            and (.profile.test or $kind == "bin")) | .executable' <<<"$messages" | tail -n 1
}
unit=$(built lib sampan_runtime)
container=$(built test container)
shim=$(built test shim)
systemd=$(built test systemd)
# The one that the monitors' tests execute, under the very path.
runtime=$(jq -r 'select(.reason == "compiler-artifact" and .target.name == "sampan-runtime" and (.profile.test | not)) | .executable // empty' <<<"$messages" | tail -n 1)

script='
run() { echo "== $*"; "$@" || { echo "== FAILED ($?): $*"; failed=1; }; }
failed=0
run '"$unit"' --test-threads 2 cgroup
run '"$systemd"'
run '"$container"' --skip=figures
'
[ -n "$quick" ] || script+='
SAMPAN_TEST_CGROUP=scope run '"$container"' --skip=figures
run '"$shim"' --test-threads 1
'
script+='
cat /proc/uptime
exit $failed'

status=0
for layout in "$@"; do
    echo "== guest with cgroup $layout"
    tests/vm/vm.sh --cgroup "$layout" --timeout 1200 \
        --file "$unit" --file "$container" --file "$shim" --file "$systemd" --file "$runtime" \
        -- bash -c "$script" || { status=$?; echo "== guest with cgroup $layout: exit status $status"; }
done
exit "$status"
