//! Namespaces, limits and privileges, seen from inside and from the host.

use std::fs;

use k8s_cri::v1::{Capability, HugepageLimit};
use sampan_tests::{Ctr, container, hierarchies, with_agent};

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
        assert_eq!(
            cri.sh(&first, "tr -d '\\0' </proc/1/cmdline").await,
            "sampan-pod",
            "and nothing of the host's"
        );
        assert_ne!(cri.sh(&first, "readlink /proc/self/ns/pid").await, host_namespace("pid"));
        cri.stop(&first, 0).await.unwrap();
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_trace_finds_nothing_of_the_host_at_the_pods_first_process() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let cri = agent.cri();
        for pod in [agent.pod("own").shared_pid(), agent.pod("users").shared_pid().users(200_000)] {
            let pod_id = cri.run_pod(&pod).await.unwrap();
            let config = Ctr::sleeper("a", &image, &pod).capability("SYS_PTRACE");
            let id = cri.run(&pod_id, &config, &pod).await.unwrap();
            // With users of the pod's own it is none of theirs, and can't even be looked at.
            let script = "cd /proc/1/; ls -A root/bin root/proc cwd/bin 2>/dev/null; touch root/x 2>/dev/null && echo made";
            assert_eq!(cri.sh(&id, &format!("{script}; true")).await, "");
            let script =
                "grep -E '^(CapEff|CapPrm|CapBnd|Seccomp|NoNewPrivs):' /proc/1/status | sort | tr -d '\\t'";
            let none = "0".repeat(16);
            assert_eq!(
                cri.sh(&id, script).await,
                format!("CapBnd:{none}\nCapEff:{none}\nCapPrm:{none}\nNoNewPrivs:1\nSeccomp:1")
            );
            for kind in ["mnt", "cgroup"] {
                assert_ne!(cri.sh(&id, &format!("readlink /proc/1/ns/{kind}; true")).await, host_namespace(kind));
            }
            cri.clear_pod(&pod_id).await.unwrap();
        }
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
        // Open files as the agent found them when it was started, which has raised its own since.
        let open_files = |pid: &str| {
            let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
            let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
            line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        let hard = open_files("self")[1].clone();
        assert_eq!(open_files(&agent.scope().pid.to_string())[..2], [hard.clone(), hard.clone()]);
        assert_eq!(open_files(&pid)[..2], ["1024".to_owned(), hard.clone()]);
        assert_eq!(cri.sh(&id, "ulimit -Sn; ulimit -Hn").await, format!("1024\n{hard}"));
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

#[tokio::test(flavor = "multi_thread")]
async fn huge_pages_and_files_of_the_unified_hierarchy_are_set_where_they_are_and_refused_where_not() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("limits"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let config = Ctr::new("huge", &image, &pod).command(&["sleep", "4801"]).resources(|resources| {
            let page_size = "2MB".into();
            resources.hugepage_limits.push(HugepageLimit { page_size, limit: 4 << 20 });
        });
        // Kubelet sends these limits to hosts that have no such controller too.
        cri.run(&pod_id, &config, &pod).await.unwrap();
        let pid = host_pid(&agent.scope().cgroup, "4801");
        let version2 = fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap();
        if !version2 && hierarchies().iter().any(|hierarchy| hierarchy.ends_with("hugetlb")) {
            assert_eq!(control(&pid, "hugetlb", "hugetlb.2MB.limit_in_bytes"), (4 << 20).to_string());
        }
        let config = Ctr::sleeper("unified", &image, &pod).resources(|resources| {
            resources.unified.insert("pids.max".into(), "77".into());
        });
        let made = cri.create(&pod_id, &config, &pod).await;
        assert_eq!(made.is_ok(), version2, "{made:?}");
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_request_names_the_signal_that_asks_a_container_to_end() {
    use sampan_proto::cri;
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (client, pod) = (agent.cri(), agent.pod("signal"));
        let pod_id = client.run_pod(&pod).await.unwrap();
        let mut runtime = cri::runtime_service_client::RuntimeServiceClient::new(agent.channel());
        let script = "trap 'exit 21' USR1; trap 'exit 22' TERM; while :; do sleep 0.1; done";
        let config = cri::ContainerConfig {
            stop_signal: cri::Signal::Sigusr1.into(),
            ..container("c", &image, &["sh", "-c", script])
        };
        let id = agent.create(&pod_id, config).await.unwrap();
        client.start(&id).await.unwrap();
        let request = cri::ContainerStatusRequest { container_id: id.clone(), verbose: false };
        let status = runtime.container_status(request).await.unwrap().into_inner().status.unwrap();
        assert_eq!(status.stop_signal(), cri::Signal::Sigusr1);
        // The shell sets its traps in its first moments.
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        client.stop(&id, 10).await.unwrap();
        assert_eq!(client.container(&id).await.unwrap().exit_code, 21);
        client.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_on_the_hosts_network_finds_no_socket_of_ours() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("sockets").host_network());
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let id = cri.run(&pod_id, &Ctr::sleeper("c", &image, &pod), &pod).await.unwrap();
        let sockets = cri.sh(&id, "cat /proc/net/unix").await;
        let abstracts: Vec<&str> =
            sockets.lines().filter_map(|line| line.split_once(" @")).map(|(_, name)| name).collect();
        // Some of the host's own may be there; ours have the agent's or the pod's name in a path.
        let ours = |name: &&&str| name.contains("sampan") || name.contains(&pod_id) || name.contains("shim");
        assert_eq!(abstracts.iter().find(ours), None);
        assert!(
            sockets.contains("shim.sock"),
            "the monitor's socket is a path, which leads nowhere from here"
        );
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}
