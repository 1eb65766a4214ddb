//! Pods with users of their own: root inside is nobody outside, and nothing else changes.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sampan_tests::{Ctr, container, hierarchies, with_agent};
use tonic::Code;

use super::busybox;

/// The host's ids of the pods here begin with these.
const FIRST: u32 = 700_000;
const SECOND: u32 = 800_000;

fn host_namespace() -> String {
    fs::read_link("/proc/self/ns/user").unwrap().display().to_string()
}

/// The host's process that runs in the agent's cgroups with this last word of its command line.
fn process(cgroup: &str, last_word: &str) -> PathBuf {
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    let found = processes.into_iter().find(|process| {
        let text = |name: &str| fs::read_to_string(process.join(name)).unwrap_or_default();
        text("cgroup").contains(cgroup) && text("cmdline").trim_end_matches('\0').ends_with(last_word)
    });
    found.expect("the process")
}

#[tokio::test(flavor = "multi_thread")]
async fn root_of_a_pod_is_nobody_on_the_host_and_owns_what_the_image_says() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("own").users(FIRST));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let first = Ctr::new("a", &image, &pod).sh("echo out > /dev/stdout; touch /made; exec sleep 4911");
        let id = cri.run(&pod_id, &first, &pod).await.unwrap();
        let other = Ctr::sleeper("b", &image, &pod).user(1000, Some(1000));
        let other = cri.run(&pod_id, &other, &pod).await.unwrap();

        assert_eq!(cri.sh(&id, "id -u; id -g").await, "0\n0");
        let map = cri.sh(&id, "cat /proc/self/uid_map").await;
        assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "700000", "65536"]);
        let users = cri.sh(&id, "readlink /proc/self/ns/user").await;
        assert_ne!(users, host_namespace());
        assert_eq!(users, cri.sh(&other, "readlink /proc/self/ns/user").await, "of the pod");
        assert_eq!(cri.sh(&id, "readlink /proc/1/ns/user").await, users, "exec joins it");
        let outside = fs::metadata(process(&agent.scope().cgroup, "4911")).unwrap();
        assert_eq!((outside.uid(), outside.gid()), (FIRST, FIRST));

        // Layers and what is written above them.
        assert_eq!(
            cri.sh(&id, "stat -c %u:%g /bin/busybox /made /etc/hosts /dev/shm").await,
            "0:0\n0:0\n0:0\n0:0"
        );
        cri.sh(&id, "echo 10.0.0.1 added >> /etc/hosts && chown 5:6 /made && echo x > /dev/shm/x").await;
        let upper = agent.scope().root.join("snapshots/active").join(&id).join("fs/made");
        let upper = fs::metadata(upper).unwrap();
        assert_eq!((upper.uid(), upper.gid()), (5, 6), "on the disk owners are those of an image");
        assert_eq!(cri.sh(&other, "id -u; touch /tmp/y 2>/dev/null; cat /dev/shm/x").await, "1000\nx");

        // What root may do in its own namespaces, and what nobody may do to the host.
        assert_eq!(cri.sh(&id, "hostname").await, pod.config.hostname);
        for denied in ["mknod /dev/sda b 8 0", "echo 1 > /proc/sys/kernel/panic", "mount -t tmpfs x /mnt"] {
            assert_eq!(cri.sh(&id, &format!("{denied} 2>/dev/null; echo $?")).await, "1", "{denied}");
        }
        let held = cri.sh(&id, "grep -E 'CapInh|CapAmb' /proc/self/status").await;
        assert_eq!(held.matches("0000000000000000").count(), 2, "{held}");
        let log = fs::read_to_string(pod.log_file(&first)).unwrap();
        assert!(log.contains("stdout F out"), "{log}");

        let status = cri.pod(&pod_id).await.unwrap();
        let namespaces = status.linux.unwrap().namespaces.unwrap().options.unwrap();
        assert_eq!(namespaces.userns_options.unwrap().uids[0].host_id, FIRST);
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_of_the_image_belong_to_whom_the_image_says_or_to_root() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), busybox(agent).await);
        cli.ok(&["run", "--name", "made", &image, "sh", "-c", "mkdir /data; chown 1:2 /data"]);
        cli.ok(&["commit", "-c", "VOLUME /data /new", "made", "with-volumes"]);
        cli.ok(&["rm", "made"]);
        let (cri, pod) = (agent.cri(), agent.pod("volumes").users(FIRST));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let id = cri.run(&pod_id, &Ctr::sleeper("c", "with-volumes", &pod), &pod).await.unwrap();
        assert_eq!(cri.sh(&id, "stat -c %u:%g /data /new; touch /data/x /new/x").await, "1:2\n0:0");
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_different_users_share_layers_and_not_their_files() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let cri = agent.cri();
        let volume = tempfile::tempdir().unwrap();
        fs::set_permissions(volume.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut ids = Vec::new();
        for (name, first) in [("one", FIRST), ("two", SECOND)] {
            let pod = agent.pod(name).users(first).shared_pid();
            let pod_id = cri.run_pod(&pod).await.unwrap();
            let config = Ctr::sleeper("c", &image, &pod).mount(volume.path(), "/volume", false);
            ids.push((pod_id.clone(), cri.run(&pod_id, &config, &pod).await.unwrap()));
        }
        for (_, id) in &ids {
            assert_eq!(cri.sh(id, "stat -c %u:%g /bin/busybox").await, "0:0");
            // A volume that is not mapped is the host's.
            assert_eq!(
                cri.sh(id, "stat -c %u /volume; touch /volume/x 2>/dev/null; echo $?").await,
                "65534\n1"
            );
            // The pod's first process belongs to the pod too.
            assert!(
                cri.sh(id, "ps -o pid,user").await.contains("1 root"),
                "{}",
                cri.sh(id, "ps -o pid,user").await
            );
        }
        for (pod_id, _) in &ids {
            cri.clear_pod(pod_id).await.unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_users_of_its_own_may_have_the_hosts_network() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("net").users(FIRST).host_network());
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let id = cri.run(&pod_id, &Ctr::sleeper("c", &image, &pod), &pod).await.unwrap();
        let host = fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
        assert_eq!(cri.sh(&id, "readlink /proc/self/ns/net").await, host);
        assert_ne!(cri.sh(&id, "ip link set lo down 2>/dev/null; echo $?").await, "0");
        assert_eq!(cri.sh(&id, "ls /sys/class | grep -c net").await, "1");
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

/// CVE-2025-47291: a user namespace must not cost the limits.
#[tokio::test(flavor = "multi_thread")]
async fn limits_hold_in_a_user_namespace_too() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("limits").users(FIRST));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let config = Ctr::new("c", &image, &pod).command(&["sleep", "4912"]).resources(|resources| {
            resources.memory_limit_in_bytes = 40 << 20;
            resources.cpu_period = 100_000;
            resources.cpu_quota = 30_000;
        });
        cri.run(&pod_id, &config, &pod).await.unwrap();
        let text = fs::read_to_string(process(&agent.scope().cgroup, "4912").join("cgroup")).unwrap();
        let of = |controller: &str, version1: &str, version2: &str| {
            let line = text.lines().find(|line| {
                let name = line.split(':').nth(1).unwrap_or_default();
                name.split(',').any(|name| name == controller)
            });
            let line = line.or_else(|| text.lines().find(|line| line.starts_with("0::"))).unwrap();
            let (path, unified) = (line.splitn(3, ':').nth(2).unwrap(), line.starts_with("0::"));
            let hierarchy =
                hierarchies().into_iter().find(|path| unified || path.ends_with(controller)).unwrap();
            let file =
                hierarchy.join(path.trim_start_matches('/')).join(if unified { version2 } else { version1 });
            fs::read_to_string(file).unwrap().trim().to_owned()
        };
        assert_eq!(of("memory", "memory.limit_in_bytes", "memory.max"), (40 << 20).to_string());
        assert!(["30000", "30000 100000"].contains(&&*of("cpu", "cpu.cfs_quota_us", "cpu.max")));
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_that_make_no_sense_are_refused_and_nothing_is_left() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let cri = agent.cri();
        let mut pod = agent.pod("bad").users(FIRST);
        let options = |pod: &mut sampan_tests::Pod| {
            let linux = pod.config.linux.as_mut().unwrap();
            linux.security_context.as_mut().unwrap().namespace_options.as_mut().unwrap().clone()
        };
        let mut wrong = options(&mut pod);
        wrong.userns_options.as_mut().unwrap().uids.clear();
        let linux = pod.config.linux.as_mut().unwrap();
        linux.security_context.as_mut().unwrap().namespace_options = Some(wrong);
        let refused = cri.run_pod(&pod).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains("exactly one mapping"), "{refused}");

        // A container of other users than its pod's.
        let (pod, other) = (agent.pod("good").users(FIRST), agent.pod("good").users(SECOND));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let refused = cri.create(&pod_id, &Ctr::sleeper("c", &image, &other), &pod).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        cri.clear_pod(&pod_id).await.unwrap();
        assert!(Path::new("/proc/self/uid_map").exists());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_as_a_volume_has_the_owners_that_it_says() {
    use sampan_proto::cri;
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("image-volume").users(FIRST));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let spec = || Some(cri::ImageSpec { image: image.clone(), ..Default::default() });
        let users = |first: u32| vec![cri::IdMapping { host_id: first, container_id: 0, length: 65_536 }];
        // Kubelet gives every mount the pod's mappings, those of images too.
        let create = async |first: u32| {
            let options = cri::UserNamespace {
                mode: cri::NamespaceMode::Pod.into(),
                uids: users(FIRST),
                gids: users(FIRST),
            };
            let namespaces = cri::NamespaceOption {
                pid: cri::NamespaceMode::Container.into(),
                userns_options: Some(options),
                ..Default::default()
            };
            let security = cri::LinuxContainerSecurityContext {
                namespace_options: Some(namespaces),
                ..Default::default()
            };
            let config = cri::ContainerConfig {
                mounts: vec![cri::Mount {
                    container_path: "/volume".into(),
                    image: spec(),
                    readonly: true,
                    uid_mappings: users(first),
                    gid_mappings: users(first),
                    ..Default::default()
                }],
                linux: Some(cri::LinuxContainerConfig {
                    security_context: Some(security),
                    ..Default::default()
                }),
                ..container("c", &image, &["sleep", "1000"])
            };
            agent.create(&pod_id, config).await
        };
        assert_eq!(create(SECOND).await.unwrap_err().code(), Code::InvalidArgument);
        let id = create(FIRST).await.unwrap();
        cri.start(&id).await.unwrap();
        let owners = cri.sh(&id, "stat -c %u:%g /volume/bin/busybox /volume/home/app").await;
        assert_eq!(owners, "0:0\n1000:1000");
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}
