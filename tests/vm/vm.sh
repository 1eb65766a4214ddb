#!/bin/bash
# Runs one command as root in a throw-away Debian guest with systemd as its first process, and exits with its status.
#
#   vm.sh [--cgroup v2|hybrid|v1] [--timeout SECONDS] [--cpus N] [--memory MIB] [--file PATH]... [--] COMMAND...
#   vm.sh --build
#
#   --cgroup    how systemd arranges the control groups: the unified hierarchy alone (the default), version 1 with a
#               unified hierarchy beside it, or version 1 alone
#   --file      a file or folder of this machine to be found in the guest under the same path; may be repeated
#   --build     only makes the guest's files, when they are missing, and runs nothing
#
# Exit status: the command's; 124 when the time is over; 125 when the guest itself failed (the end of its console is shown).
#
# The guest has no disk and no network: kernel, the base archive (built once, kept in SAMPAN_VM_CACHE) and an archive
# with the job are loaded into its memory, the output comes over a serial port. It is emulated where the processor can't
# run guests; count on a tenth of the speed then. SAMPAN_VM_ACCEL=kvm|tcg overrides what is found.
#
# Needs root, and from Debian: qemu-system-x86 mmdebstrap cpio busybox-static.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${SAMPAN_VM_CACHE:-/var/cache/sampan-vm}
say() { printf 'vm: %s\n' "$*" >&2; }
die() { say "$*"; exit 125; }

cgroup=v2 timeout=600 cpus=2 memory=2048 files=() build=
while [ $# -gt 0 ]; do
    case $1 in
        --cgroup) cgroup=${2:?}; shift ;;
        --timeout) timeout=${2:?}; shift ;;
        --cpus) cpus=${2:?}; shift ;;
        --memory) memory=${2:?}; shift ;;
        --file) files+=("$(realpath -e -- "${2:?}")"); shift ;;
        --build) build=1 ;;
        --help) sed -n '2,/^set -e/{/^set -e/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
        --) shift; break ;;
        -*) die "unknown option $1" ;;
        *) break ;;
    esac
    shift
done
[ -n "$build" ] || [ $# -gt 0 ] || die "no command; --help tells more"
[ "$(id -u)" = 0 ] || die "must be root: the guest's files have owners"
[ "$(dpkg --print-architecture)" = amd64 ] || die "only amd64 so far"
for tool in qemu-system-x86_64 mmdebstrap cpio busybox; do
    command -v "$tool" >/dev/null || die "$tool is missing: apt-get install qemu-system-x86 mmdebstrap cpio busybox-static"
done
case $cgroup in
    v2) layout="systemd.unified_cgroup_hierarchy=1" ;;
    hybrid) layout="systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=0" ;;
    v1) layout="systemd.unified_cgroup_hierarchy=0 systemd.legacy_systemd_cgroup_controller=1" ;;
    *) die "--cgroup takes v2, hybrid or v1" ;;
esac

mkdir -p "$cache"
image=$("$here/image.sh" "$cache") || die "the guest could not be built"
[ -z "$build" ] || exit 0

qemu=
finish() {
    [ -z "$qemu" ] || { kill -9 "$qemu" 2>/dev/null && wait "$qemu" 2>/dev/null; } || true
    rm -rf --one-file-system "$work"
}
work=$(mktemp -d "$cache/.run-XXXXXX")
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The job: the command, quoted for the guest's bash, and the files, which the guest binds to their places: systemd mounts
# over some of the folders that they may be in.
job=$work/job
mkdir -p "$job/job/files"
printf '%q ' "$@" >"$job/job/command"
for file in "${files[@]}"; do
    printf '%s\n' "$file" >>"$job/job/list"
    mkdir -p "$job/job/files$(dirname "$file")"
    cp -a --reflink=auto "$file" "$job/job/files$file"
done
(cd "$job" && find . -mindepth 1 -print0 | cpio --quiet --null -o -H newc -R 0:0) >"$work/job.cpio"
rm -rf "$job"
cat "$image/base.cpio" "$work/job.cpio" >"$work/initrd"
rm "$work/job.cpio"

# A KVM that is only a back end for paravirtual guests can't run Debian's kernel.
accel=${SAMPAN_VM_ACCEL:-$([ -w /dev/kvm ] && [ ! -d /sys/module/kvm_pvm ] && echo kvm || echo tcg)}
case $accel in
    kvm) machine=(-accel kvm -cpu host) ;;
    tcg) machine=(-accel "tcg,thread=multi" -cpu "max,la57=off") ;;
    *) die "SAMPAN_VM_ACCEL is kvm or tcg" ;;
esac
: >"$work/output"
: >"$work/status"
qemu-system-x86_64 "${machine[@]}" -M q35,usb=off -smp "$cpus" -m "$memory" -nodefaults -no-user-config -no-reboot \
    -display none -serial "file:$work/console" -serial "file:$work/output" -serial "file:$work/status" \
    -kernel "$image/vmlinuz" -initrd "$work/initrd" \
    -append "console=ttyS0 quiet panic=-1 nokaslr mitigations=off rdinit=/init systemd.show_status=0 $layout" \
    </dev/null >"$work/qemu" 2>&1 &
qemu=$!
(sleep "$timeout" && touch "$work/late" && kill -9 "$qemu") 2>/dev/null &
clock=$!
tail -c +1 -s 0.1 --pid="$qemu" -f "$work/output"
wait "$qemu" 2>/dev/null || true
qemu=
pkill -P "$clock" 2>/dev/null || true
kill "$clock" 2>/dev/null || true
wait "$clock" 2>/dev/null || true
[ ! -e "$work/late" ] || { say "not done within $timeout s"; exit 124; }
status=$(sed -n 's/^exit \([0-9]*\).*/\1/p' "$work/status")
if [ -z "$status" ]; then
    say "the guest ended without telling how"
    tail -n 5 "$work/qemu" >&2
    tail -n 40 "$work/console" >&2
    exit 125
fi
exit "$status"
