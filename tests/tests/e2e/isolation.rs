//! Namespaces, limits and privileges, seen from inside and from the host.

use std::fs;

use k8s_cri::v1::Capability;
use sampan_tests::{Ctr, hierarchies, with_agent};

use super::busybox;

/// The inode of a namespace of the host.
fn host_namespace(kind: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_has_namespaces_of_its_own_and_shares_its_pods() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("ns"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let first = cri.run(&pod_id, &Ctr::sleeper("a", &image, &pod), &pod).await.unwrap();
        let second = cri.run(&pod_id, &Ctr::sleeper("b", &image, &pod), &pod).await.unwrap();
        for (kind, shared) in
            [("net", true), ("ipc", true), ("uts", true), ("mnt", false), ("pid", false), ("cgroup", false)]
        {
            let command = format!("readlink /proc/1/ns/{kind}");
            let [one, two] = [cri.sh(&first, &command).await, cri.sh(&second, &command).await];
            assert_ne!(one, host_namespace(kind), "{kind}");
            assert_eq!(one == two, shared, "{kind}: {one} {two}");
        }
        assert_eq!(cri.sh(&first, "hostname").await, pod.config.hostname);
        assert_eq!(cri.sh(&first, "cat /etc/hostname").await, pod.config.hostname);
        assert!(cri.sh(&first, "cat /etc/hosts").await.contains(&pod.config.hostname));
        cri.sh(&first, "echo hi >/dev/shm/x").await;
        assert_eq!(cri.sh(&second, "cat /dev/shm/x").await, "hi");
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shared_pid_namespace_shows_the_neighbours() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("ns").shared_pid());
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let first = cri.run(&pod_id, &Ctr::sleeper("a", &image, &pod), &pod).await.unwrap();
        let second = Ctr::new("b", &image, &pod).sh("trap 'exit 0' TERM; sleep 4799 & wait");
        cri.run(&pod_id, &second, &pod).await.unwrap();
        assert!(cri.sh(&first, "ps").await.contains("sleep 4799"));
        assert_ne!(cri.sh(&first, "readlink /proc/self/ns/pid").await, host_namespace("pid"));
        cri.stop(&first, 0).await.unwrap();
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_network_is_the_hosts() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("ns").host_network());
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let id = cri.run(&pod_id, &Ctr::sleeper("a", &image, &pod), &pod).await.unwrap();
        assert_eq!(cri.sh(&id, "readlink /proc/1/ns/net").await, host_namespace("net"));
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

/// A file of a container's cgroup, found on the host through its first process.
fn control(pid: &str, controller: &str, file: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let path = text
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':');
            let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
            controllers.split(',').any(|name| name == controller).then_some(path)
        })
        .next()
        .unwrap_or_else(|| panic!("no {controller} in {text}"));
    let hierarchy = hierarchies().into_iter().find(|path| path.ends_with(controller)).expect("its hierarchy");
    let file = hierarchy.join(path.trim_start_matches('/')).join(file);
    fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display())).trim().to_owned()
}

/// The host's number of the process in the agent's cgroups whose command line ends so.
fn host_pid(cgroup: &str, last_word: &str) -> String {
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let found = processes.into_iter().find(|process| {
        let ours = fs::read_to_string(process.join("cgroup")).is_ok_and(|text| text.contains(cgroup));
        ours && fs::read_to_string(process.join("cmdline"))
            .is_ok_and(|line| line.trim_end_matches('\0').ends_with(last_word))
    });
    found.expect("the process").file_name().unwrap().to_string_lossy().into_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_reach_the_kernel() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("limits"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let config = Ctr::new("c", &image, &pod).command(&["sleep", "4800"]).resources(|resources| {
            resources.memory_limit_in_bytes = 50 << 20;
            resources.cpu_period = 100_000;
            resources.cpu_quota = 25_000;
            resources.cpu_shares = 512;
            resources.oom_score_adj = 500;
        });
        let id = cri.run(&pod_id, &config, &pod).await.unwrap();
        let pid = host_pid(&agent.scope().cgroup, "4800");
        let version2 = fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap();
        if !version2 {
            assert_eq!(control(&pid, "memory", "memory.limit_in_bytes"), (50 << 20).to_string());
            assert_eq!(control(&pid, "cpu", "cpu.cfs_quota_us"), "25000");
            assert_eq!(control(&pid, "cpu", "cpu.cfs_period_us"), "100000");
            assert_eq!(control(&pid, "cpu", "cpu.shares"), "512");
        }
        assert_eq!(fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim(), "500");
        let status = cri.container(&id).await.unwrap();
        let told = status.resources.unwrap().linux.unwrap();
        assert_eq!((told.memory_limit_in_bytes, told.cpu_quota, told.cpu_shares), (50 << 20, 25_000, 512));
        // And from inside: what the container sees of its cgroup is its root.
        let inside = cri.sh(&id, "cat /proc/1/cgroup").await;
        assert!(inside.lines().all(|line| line.ends_with(":/")), "{inside}");
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_has_few_privileges_unless_given() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("priv"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let plain = cri.run(&pod_id, &Ctr::sleeper("plain", &image, &pod), &pod).await.unwrap();
        let capabilities = cri.sh(&plain, "sed -n 's/CapEff:\\t//p' /proc/1/status").await;
        let effective = u64::from_str_radix(&capabilities, 16).unwrap();
        let (cap_sys_admin, cap_chown, cap_net_raw) = (1 << 21, 1 << 0, 1 << 13);
        assert!(effective & cap_sys_admin == 0 && effective & cap_chown != 0, "{capabilities}");
        for refused in [
            "mount -t tmpfs none /tmp",
            "echo 1 >/proc/sys/kernel/panic",
            "mknod /tmp/disk b 8 0 && head -c 1 /tmp/disk",
            "echo b >/proc/sysrq-trigger",
            "mkdir /sys/fs/cgroup/x /sys/fs/cgroup/memory/x",
        ] {
            let answer = cri.exec(&plain, &["sh", "-c", refused], 10).await.unwrap();
            assert_ne!(answer.exit_code, 0, "{refused}: {answer:?}");
        }
        assert_eq!(cri.sh(&plain, "cat /proc/kcore 2>/dev/null | head -c 1 | wc -c").await, "0");
        let config = Ctr::sleeper("tight", &image, &pod).security(|context| {
            context.capabilities = Some(Capability {
                drop_capabilities: vec!["ALL".into()],
                add_capabilities: vec!["NET_RAW".into()],
                ..Capability::default()
            });
            context.readonly_rootfs = true;
            context.no_new_privs = true;
        });
        let tight = cri.run(&pod_id, &config, &pod).await.unwrap();
        let capabilities = cri.sh(&tight, "sed -n 's/CapEff:\\t//p' /proc/1/status").await;
        assert_eq!(u64::from_str_radix(&capabilities, 16).unwrap(), cap_net_raw);
        assert_eq!(cri.sh(&tight, "sed -n 's/NoNewPrivs:\\t//p' /proc/1/status").await, "1");
        assert_eq!(cri.sh(&tight, "sed -n 's/Seccomp:\\t//p' /proc/1/status").await, "2");
        assert_eq!(cri.exec(&tight, &["touch", "/file"], 10).await.unwrap().exit_code, 1, "read-only");
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_are_there_and_read_only_ones_are() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("mounts"));
        let [writable, readonly, file] = ["rw", "ro", "file"].map(|name| agent.base().join(name));
        fs::create_dir(&writable).unwrap();
        fs::create_dir(&readonly).unwrap();
        fs::write(&file, "from the host").unwrap();
        let link = agent.base().join("link");
        std::os::unix::fs::symlink(&writable, &link).unwrap();
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let config = Ctr::sleeper("c", &image, &pod)
            .mount(&writable, "/data", false)
            .mount(&readonly, "/fixed", true)
            .mount(&file, "/etc/deep/file", true)
            .mount(&link, "/linked", false);
        let id = cri.run(&pod_id, &config, &pod).await.unwrap();
        cri.sh(&id, "echo from the container >/data/x").await;
        assert_eq!(fs::read_to_string(writable.join("x")).unwrap(), "from the container\n");
        assert_eq!(cri.sh(&id, "cat /etc/deep/file /linked/x").await, "from the hostfrom the container");
        assert_ne!(cri.exec(&id, &["touch", "/fixed/x"], 10).await.unwrap().exit_code, 0);
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[allow(deprecated, reason = "the field that kubelets before 1.30 send")]
#[tokio::test(flavor = "multi_thread")]
async fn an_apparmor_profile_that_is_not_there_is_not_done_without() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("confined"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let confined = |name: &str, profile: &str| {
            Ctr::sleeper(name, &image, &pod).security(|security| security.apparmor_profile = profile.into())
        };
        let status = cri.run(&pod_id, &confined("a", "localhost/sampan-no-such"), &pod).await.unwrap_err();
        assert!(status.message().contains("sampan-no-such"), "{status}");
        let status = cri.run(&pod_id, &confined("b", "nonsense"), &pod).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status}");
        for (name, profile) in [("c", "runtime/default"), ("d", "unconfined")] {
            cri.run(&pod_id, &confined(name, profile), &pod).await.unwrap();
        }
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}
