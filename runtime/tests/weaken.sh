#!/bin/bash
# Shows that the safety tests can fail: for each, builds the runtime without the defence that the test is for, in a
# throw-away copy of the last commit, and expects the test to fail.
#
#   weaken.sh [PART...]     only those whose number or test has one of the parts; all when none is named
#
# Needs root and what the tests need. Prints a table for docs/security-tests.md. What a weakened runtime can do to this
# machine is what the attacks of the tests do: they aim at canaries of their own, and at the copy's own executable.
set -euo pipefail
cd "$(dirname "$0")/../.."
# Number of the case ¦ suite ¦ test ¦ what is taken away ¦ FILE ¦ SED [¦ FILE ¦ SED]... Each sed expression has to change its file.
cases=$(cat <<'LIST'
1¦container¦own_executable_is_out_of_reach¦the read-only mount that the runtime executes itself from¦src/executable.rs¦s/if is_read_only\(&own\)\? \{/if is_read_only(\&own)? || true {/
2¦oci¦a_program_has_three_descriptors¦the closing of what is open: one directory of the host leaks¦src/init/process.rs¦s/^(\s*)reporter\.executing\(\)/\1std::mem::forget(rustix::fs::open("\/", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()));\n&/
2¦oci¦a_working_directory_among¦confinement of the working directory, and a directory of the host leaks¦src/init.rs¦s/^(\s*)rustix::process::umask\(.*$/&\n    std::mem::forget(rustix::fs::open("\/", OFlags::PATH, rustix::fs::Mode::empty()));\n    use rustix::fs::OFlags;/¦src/init/process.rs¦s/beneath::open\(&root, &self\.working_directory, flags\)/file::open_path_at(CWD, \&self.working_directory, flags \& OFlags::DIRECTORY)/¦src/init/process.rs¦s/Ok\(path\) if path\.as_bytes\(\)\.starts_with\(b"\/"\)/Ok(_)/
3¦container¦volume_that_is_swapped¦resolution beneath the root¦src/beneath.rs¦s/= ResolveFlags::IN_ROOT\.union\(ResolveFlags::NO_MAGICLINKS\)/= ResolveFlags::empty()/¦src/beneath.rs¦s/^    if path\.as_os_str/    let path = path.strip_prefix("\/").unwrap_or(path);\n&/
4¦container¦symlinked_mount_targets¦resolution beneath the root¦src/beneath.rs¦s/= ResolveFlags::IN_ROOT\.union\(ResolveFlags::NO_MAGICLINKS\)/= ResolveFlags::empty()/¦src/beneath.rs¦s/^    if path\.as_os_str/    let path = path.strip_prefix("\/").unwrap_or(path);\n&/
5¦container¦null_device_that_is_swapped¦the host's null device: the container's is taken, unchecked¦src/init/maskedpath.rs¦s/masks\.null\(\)\?/\&beneath::open(rootfs, Path::new("\/dev\/null"), OFlags::PATH).map_err(failed)?/
6¦container¦console_that_is_swapped¦resolution beneath the root¦src/beneath.rs¦s/= ResolveFlags::IN_ROOT\.union\(ResolveFlags::NO_MAGICLINKS\)/= ResolveFlags::empty()/¦src/beneath.rs¦s/^    if path\.as_os_str/    let path = path.strip_prefix("\/").unwrap_or(path);\n&/
7¦container¦proc_that_is_a_volume¦the private procfs: what the container has at /proc is written to, and nothing there is read-only¦src/init.rs¦/sysctl::set\(sysctls, &namespaces\)\?;/d¦src/init.rs¦/maskedpath::make_read_only/d¦src/init.rs¦s/^(\s*)rootfs\.enter\(.*$/&\n    if let Some(sysctls) = linux.sysctl().as_ref() { sysctl::set(sysctls, \&namespaces)?; }/¦src/init/sysctl.rs¦s/Context::open\("proc"\)\?\.mount\(.*\)/{ let _ = (Context::open, MountAttrFlags::empty()); sys::mount::open_directory(std::path::Path::new("\/proc")) }/
8¦container¦proc_sys_and_dev_that_are_swapped¦resolution beneath the root¦src/beneath.rs¦s/= ResolveFlags::IN_ROOT\.union\(ResolveFlags::NO_MAGICLINKS\)/= ResolveFlags::empty()/¦src/beneath.rs¦s/^    if path\.as_os_str/    let path = path.strip_prefix("\/").unwrap_or(path);\n&/
8¦container¦symlinked_proc_and_sys_are_refused¦the refusal of symlinks on the way to /proc and /sys¦src/beneath.rs¦s/CONFINED\.union\(ResolveFlags::NO_SYMLINKS\)/CONFINED/
9¦oci¦inheritable_and_ambient¦the empty inheritable set¦src/init/capability.rs¦s/inheritable: CapabilitySet::from_bits_retain\(self\.inheritable\)/inheritable: CapabilitySet::from_bits_retain(self.permitted)/
10¦oci¦ids_out_of_range¦the check of ids¦src/init/process.rs¦s/id > i32::MAX as u32/id == u32::MAX - 1 \&\& i32::MAX == 0/
11¦lib¦user::tests¦the groups of a user that the image lists¦src/user.rs¦s/user\.additional_gids = groups_with_member\(.*$/let _ = name;/
12¦container¦container_sees_its_own_cgroup_only¦the read-only mount of the control groups¦src/init/cgroupfs.rs¦s/^(\s*)sys::mount::set_attributes\(&tree, attributes, false\)\?;/\1let _ = attributes;/
13¦container¦sockets_of_the_kernels_own¦the rule for address families¦src/seccomp/table.rs¦s/\("socket", Test::Below\(38\)\)/("socket", Test::Below(1000))/
14¦container¦masked_directories_and_files¦the masks¦src/init/maskedpath.rs¦s/^(\s*)let mask = if FileType/\1if !paths.is_empty() { continue; }\n&/
15¦shim¦nothing_listens_on_an_abstract¦abstinence from abstract sockets: the monitor binds one¦src/shim.rs¦s/^(\s*)let oom_score = pod::settle/    let abstract_socket = rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None).and_then(|socket| rustix::net::SocketAddrUnix::new_abstract_name(std::process::id().to_string().as_bytes()).and_then(|name| rustix::net::bind(\&socket, \&name)).map(|()| socket));\n    std::mem::forget(abstract_socket);\n&/
22¦oci¦a_home_of_several_lines¦the check of HOME¦src/init/program.rs¦s/variable\.starts_with\("HOME="\)/variable.starts_with("HOME=\\0")/
24¦shim¦a_memory_bomb_leaves_the_monitor¦the monitor's own cgroup: it is in the container's¦src/shim/server/request.rs¦s/^(\s*)self\.with_original_oom_score\(\|\| spawn\(&options\)\)/\1let child = self.with_original_oom_score(|| spawn(\&options)); std::thread::sleep(std::time::Duration::from_millis(200)); let _ = Cgroup::new(cgroup).map(|cgroup| cgroup.enter()); let _ = std::fs::write("\/proc\/self\/oom_score_adj", "1000"); child/
25¦oci¦limits_hold_with_a_user_namespace¦the limits of containers with a user namespace¦src/init.rs¦s/setup\.in_cgroup, resources\.as_ref\(\), /setup.in_cgroup, resources.as_ref().filter(|_| !namespaces.of_users()), /¦src/init.rs¦s/\|\| tasks\.as_ref\(\)\.map_or/|| tasks.as_ref().filter(|_| !namespaces.of_users()).map_or/
–¦oci¦without_a_pivot_no_procfs¦the hiding of the host's procfs¦src/init/rootfs.rs¦s/^(\s*)self\.hide_those_of_the_kernel\(\)\?;/\1let _ = Rootfs::hide_those_of_the_kernel;/
LIST
)

wanted() {
    local part
    [ $# -gt 2 ] || return 0
    for part in "${@:3}"; do [[ $1 = "$part" || $2 = *"$part"* ]] && return 0; done
    return 1
}

tree=$PWD/target/weaken/tree
export CARGO_TARGET_DIR=$PWD/target/weaken/target SAMPAN_TEST_ROUNDS=${SAMPAN_TEST_ROUNDS:-200} RUST_BACKTRACE=0
git worktree remove --force "$tree" 2>/dev/null || true
mkdir -p target/weaken
git worktree add --quiet --detach "$tree" HEAD
trap 'git worktree remove --force "$tree"' EXIT

# attempt SUITE TEST: 0 when the test ran and passed, 1 when it ran and failed.
attempt() {
    local target=(--test "$1") text
    [ "$1" != lib ] || target=(--lib)
    (cd "$tree" && cargo test -q -p sampan-runtime "${target[@]}" --no-run 2>&1) >"$tree/../build" || { cat "$tree/../build" >&2; return 2; }
    if text=$(cd "$tree" && timeout 300 cargo test -q -p sampan-runtime "${target[@]}" -- "$2" 2>&1); then
        return 0
    fi
    printf '%s\n' "$text" >"$tree/../last"
}

failed=0
echo "| case | test | taken away | the test |"
echo "|---|---|---|---|"
while IFS='¦' read -r -a field; do
    number=${field[0]} suite=${field[1]} test=${field[2]} what=${field[3]}
    wanted "$number" "$test" "$@" || continue
    for ((i = 4; i < ${#field[@]}; i += 2)); do
        file=$tree/runtime/${field[i]}
        before=$(sha256sum "$file")
        sed -E -i "${field[i + 1]}" "$file"
        [ "$before" != "$(sha256sum "$file")" ] || { echo "weaken.sh: ${field[i]} doesn't change by ${field[i + 1]}" >&2; exit 2; }
    done
    status=0
    rm -f "$tree/../last"
    attempt "$suite" "$test" || status=$?
    if [ "$status" = 2 ]; then
        outcome="could not be built"
    elif [ -f "$tree/../last" ]; then
        outcome=fails
    else
        outcome="PASSES"
    fi
    [ "$outcome" = fails ] || failed=1
    # Whether it fails for the right reason is for a reader to judge.
    [ ! -f "$tree/../last" ] || { echo "== $number $test"; grep -m1 -A3 panicked "$tree/../last" || tail -n 5 "$tree/../last"; } >&2
    echo "| $number | \`$test\` | $what | $outcome |"
    git -C "$tree" checkout --quiet .
    # A copy that was written to is made anew.
    find "$CARGO_TARGET_DIR" -maxdepth 3 -name 'sampan-runtime' -type f -delete
    touch "$tree"/runtime/src/{lib,main}.rs
done <<<"$cases"
exit "$failed"
