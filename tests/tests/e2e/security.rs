//! What a request says of privileges, users, filters and namespaces, seen from inside the container.

use std::{fs, path::Path};

use k8s_cri::v1::{
    Capability, NamespaceMode, NamespaceOption, SecurityProfile, security_profile::ProfileType,
};
use sampan_proto::cri;
use sampan_tests::{Agent, Cri, Ctr, Options, container, with_agent, with_agent_of};
use tonic::Code;

use super::busybox;

fn profile(kind: ProfileType, path: &Path) -> Option<SecurityProfile> {
    Some(SecurityProfile { profile_type: kind.into(), localhost_ref: path.display().to_string() })
}

async fn field(cri: &Cri, id: &str, name: &str) -> String {
    cri.sh(id, &format!("sed -n 's/{name}:\\t//p' /proc/1/status")).await
}

async fn capabilities(cri: &Cri, id: &str, set: &str) -> u64 {
    u64::from_str_radix(&field(cri, id, set).await, 16).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_network_brings_nothing_of_the_hosts_sysfs_that_could_be_written() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("sys").host_network());
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let id = cri.run(&pod_id, &Ctr::sleeper("a", &image, &pod), &pod).await.unwrap();
        let mounts = cri.sh(&id, "cat /proc/1/mountinfo").await;
        let mut below = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let writable =
            below.find(|line| line[4].starts_with("/sys") && line[5].split(',').any(|word| word == "rw"));
        assert_eq!(writable, None, "{mounts}");
        assert!(
            mounts.lines().any(|line| line.contains(" /sys ro,") && line.contains(" - sysfs ")),
            "{mounts}"
        );
        assert_eq!(
            cri.exec(&id, &["sh", "-c", "echo 1 >/sys/kernel/profiling"], 10).await.unwrap().exit_code,
            1
        );
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

/// An image whose user 1500 is a member of a group beside its own.
fn with_groups(agent: &Agent, image: &str) -> String {
    let cli = agent.cli();
    let script = "echo me:x:1500:1500::/home/me:/bin/sh >>/etc/passwd; printf 'me:x:1500:\\nimage:x:50000:me\\n' >>/etc/group";
    cli.ok(&["run", "--name", "made", image, "sh", "-c", script]);
    cli.ok(&["commit", "made", "with-groups"]);
    cli.ok(&["rm", "made"]);
    "with-groups".into()
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_are_the_primary_one_those_asked_for_and_unless_strict_the_images() {
    with_agent(async |agent| {
        let image = with_groups(agent, &busybox(agent).await);
        let (cri, pod) = (agent.cri(), agent.pod("groups"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        for (name, policy, group, expected) in [
            ("merge", cri::SupplementalGroupsPolicy::Merge, None, vec![1500, 50000, 1234]),
            ("strict", cri::SupplementalGroupsPolicy::Strict, None, vec![1500, 1234]),
            ("other", cri::SupplementalGroupsPolicy::Merge, Some(7), vec![7, 50000, 1234]),
        ] {
            let security = cri::LinuxContainerSecurityContext {
                run_as_user: Some(cri::Int64Value { value: 1500 }),
                run_as_group: group.map(|value| cri::Int64Value { value }),
                supplemental_groups: vec![1234],
                supplemental_groups_policy: policy.into(),
                ..Default::default()
            };
            let config = cri::ContainerConfig {
                linux: Some(cri::LinuxContainerConfig {
                    security_context: Some(security),
                    ..Default::default()
                }),
                ..container(name, &image, &["sh", "-c", "id -G; sleep 1000"])
            };
            let id = agent.create(&pod_id, config).await.unwrap();
            cri.start(&id).await.unwrap();
            let mut sorted = expected.clone();
            sorted.sort_unstable();
            // `id` has the primary group first and tells it once; the kernel has it among the others, which it sorts.
            let others = sorted.iter().filter(|group| **group != expected[0]);
            let words: Vec<String> = expected.iter().take(1).chain(others).map(ToString::to_string).collect();
            assert_eq!(cri.sh(&id, "id -G").await, words.join(" "), "{name}");
            let kernel = field(&cri, &id, "Groups").await;
            let kernel: Vec<i64> = kernel.split_whitespace().map(|word| word.parse().unwrap()).collect();
            assert_eq!(kernel, sorted, "{name}");
            let user = cri.container(&id).await.unwrap().user.unwrap().linux.unwrap();
            assert_eq!((user.uid, user.gid), (1500, expected[0]));
            assert_eq!(user.supplemental_groups, expected, "{name}");
        }
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_of_another_user_has_that_users_groups() {
    with_agent(async |agent| {
        let image = with_groups(agent, &busybox(agent).await);
        let cli = agent.cli();
        cli.ok(&["run", "-d", "--name", "c", &image, "sleep", "1000"]);
        let groups = ["sed", "-n", "s/Groups:\\t//p", "/proc/self/status"];
        let as_user = |user: &str| {
            let text = cli.ok(&[&["exec", "-u", user, "c"][..], &groups].concat());
            text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(as_user("me"), ["1500", "50000"]);
        assert_eq!(as_user("7:9"), ["9"]);
        cli.ok(&["rm", "-f", "c"]);
    })
    .await;
}

#[allow(deprecated, reason = "the field that the newer one must win over")]
#[tokio::test(flavor = "multi_thread")]
async fn the_system_call_filter_is_the_one_that_the_request_names() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("seccomp"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let file = agent.base().join("no-chmod.json");
        let rule = r#"{"names":["chmod","fchmodat","fchmodat2"],"action":"SCMP_ACT_ERRNO"}"#;
        fs::write(&file, format!(r#"{{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{rule}]}}"#)).unwrap();
        let nowhere = Path::new("");
        let localhost = || profile(ProfileType::Localhost, &file);
        for (name, newer, older, mode, chmod) in [
            ("none", None, "", "0", true),
            ("default", profile(ProfileType::RuntimeDefault, nowhere), "", "2", true),
            ("unconfined", profile(ProfileType::Unconfined, nowhere), "", "0", true),
            ("localhost", localhost(), "", "2", false),
            ("older-default", None, "runtime/default", "2", true),
            ("older-unconfined", None, "unconfined", "0", true),
            ("newer-wins", localhost(), "unconfined", "2", false),
        ] {
            let config = Ctr::sleeper(name, &image, &pod).security(|security| {
                security.seccomp = newer;
                security.seccomp_profile_path = older.into();
            });
            let id = cri.run(&pod_id, &config, &pod).await.unwrap();
            assert_eq!(field(&cri, &id, "Seccomp").await, mode, "{name}");
            let done = cri.exec(&id, &["chmod", "700", "/tmp"], 10).await.unwrap().exit_code == 0;
            assert_eq!(done, chmod, "{name}");
        }
        let missing = Ctr::sleeper("missing", &image, &pod)
            .security(|security| security.seccomp = profile(ProfileType::Localhost, Path::new("/no/such")));
        assert!(cri.create(&pod_id, &missing, &pod).await.unwrap_err().message().contains("/no/such"));
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_may_have_a_filter_for_requests_that_name_none() {
    // The harness's own configuration ends within its table of the runtime.
    let configuration = "seccomp_when_unset = \"runtime-default\"\n".into();
    with_agent_of(Options { configuration, ..Options::default() }, async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("seccomp"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let config = Ctr::sleeper("c", &image, &pod).security(|security| security.seccomp = None);
        let id = cri.run(&pod_id, &config, &pod).await.unwrap();
        assert_eq!(field(&cri, &id, "Seccomp").await, "2");
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn capabilities_are_those_of_the_request() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, mut pod) = (agent.cri(), agent.pod("caps"));
        pod.config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let with = |name: &str, add: &[&str], drop: &[&str], ambient: &[&str]| {
            let capabilities = Capability {
                add_capabilities: words(add),
                drop_capabilities: words(drop),
                add_ambient_capabilities: words(ambient),
            };
            Ctr::sleeper(name, &image, &pod).security(|security| security.capabilities = Some(capabilities))
        };
        // What nobody on this machine has, no container can have either.
        let text = fs::read_to_string("/proc/self/status").unwrap();
        let own = text.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
        let own = u64::from_str_radix(own, 16).unwrap();
        let all = cri.run(&pod_id, &with("all", &["ALL"], &[], &[]), &pod).await.unwrap();
        assert_eq!(capabilities(&cri, &all, "CapBnd").await, own);
        let but = cri.run(&pod_id, &with("but", &["ALL"], &["SYS_ADMIN"], &[]), &pod).await.unwrap();
        assert_eq!(capabilities(&cri, &but, "CapEff").await, own & !(1 << 21));
        let none = cri.run(&pod_id, &with("none", &[], &["ALL"], &[]), &pod).await.unwrap();
        assert_eq!(capabilities(&cri, &none, "CapBnd").await, 0);
        let ambient = with("ambient", &[], &["ALL"], &["NET_BIND_SERVICE"]).user(1000, None);
        let ambient = cri.run(&pod_id, &ambient, &pod).await.unwrap();
        for set in ["CapAmb", "CapInh", "CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(capabilities(&cri, &ambient, set).await, 1 << 10, "{set}");
        }
        let status = cri.create(&pod_id, &with("odd", &["NO_SUCH"], &[], &[]), &pod).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");

        let privileged = Ctr::sleeper("privileged", &image, &pod).security(|security| security.privileged = true);
        let id = cri.run(&pod_id, &privileged, &pod).await.unwrap();
        assert_eq!((capabilities(&cri, &id, "CapEff").await, field(&cri, &id, "Seccomp").await), (own, "0".into()));
        cri.sh(&id, "mount -t tmpfs none /tmp; test -c /dev/full; : >/proc/sys/kernel/panic; ls /proc/acpi /proc/keys >/dev/null || :").await;
        let mut plain = agent.pod("plain");
        let plain_id = cri.run_pod(&plain).await.unwrap();
        let status = cri.create(&plain_id, &privileged, &plain).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        // `kubectl debug --profile=sysadmin` adds such a container to a pod that was begun without.
        plain.config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
        let id = cri.run(&plain_id, &privileged, &plain).await.unwrap();
        assert_eq!(capabilities(&cri, &id, "CapEff").await, own);
        for id in [pod_id, plain_id] {
            cri.clear_pod(&id).await.unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_are_masked_and_readonly_as_the_request_says() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("paths"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let config = Ctr::sleeper("c", &image, &pod).security(|security| {
            security.masked_paths = vec!["/etc/passwd".into(), "/usr".into(), "/no/such".into()];
            security.readonly_paths = vec!["/tmp".into()];
        });
        let id = cri.run(&pod_id, &config, &pod).await.unwrap();
        assert_eq!(cri.sh(&id, "cat /etc/passwd | wc -c; ls -A /usr | wc -l").await, "0\n0");
        let answer = cri.exec(&id, &["touch", "/tmp/test"], 10).await.unwrap();
        assert!(String::from_utf8_lossy(&answer.stderr).contains("Read-only file system"), "{answer:?}");
        let config =
            Ctr::sleeper("readonly", &image, &pod).security(|security| security.readonly_rootfs = true);
        let id = cri.run(&pod_id, &config, &pod).await.unwrap();
        for file in ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"] {
            let script = format!("echo x >>{file}");
            assert_ne!(cri.exec(&id, &["sh", "-c", &script], 10).await.unwrap().exit_code, 0, "{file}");
        }
        cri.sh(&id, "echo x >/dev/shm/x").await;
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

fn own(kind: &str) -> String {
    fs::read_link(format!("/proc/self/ns/{kind}")).unwrap().display().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_of_the_host_and_of_another_container_can_be_had() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, mut pod, other) = (agent.cri(), agent.pod("host"), agent.pod("other"));
        let options = NamespaceOption {
            pid: NamespaceMode::Node.into(),
            ipc: NamespaceMode::Node.into(),
            ..NamespaceOption::default()
        };
        let context = pod.config.linux.as_mut().unwrap().security_context.as_mut().unwrap();
        context.namespace_options = Some(options);
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let id = cri.run(&pod_id, &Ctr::sleeper("a", &image, &pod), &pod).await.unwrap();
        for kind in ["pid", "ipc"] {
            assert_eq!(cri.sh(&id, &format!("readlink /proc/self/ns/{kind}")).await, own(kind));
        }
        let network = cri.sh(&id, "readlink /proc/self/ns/net").await;
        assert_ne!(network, own("net"));
        let status = cri.pod(&pod_id).await.unwrap();
        let told = status.linux.unwrap().namespaces.unwrap().options.unwrap();
        assert_eq!((told.pid(), told.ipc()), (NamespaceMode::Node, NamespaceMode::Node));

        let other_id = cri.run_pod(&other).await.unwrap();
        let app = cri.run(&other_id, &Ctr::sleeper("app", &image, &other), &other).await.unwrap();
        let targeting = |name: &str, target: &str| {
            Ctr::sleeper(name, &image, &other).security(|security| {
                security.namespace_options = Some(NamespaceOption {
                    pid: NamespaceMode::Target.into(),
                    target_id: target.into(),
                    ..NamespaceOption::default()
                });
            })
        };
        let debug = cri.run(&other_id, &targeting("debug", &app), &other).await.unwrap();
        let [one, two] = [&app, &debug].map(|id| id.clone());
        let namespace = "readlink /proc/1/ns/pid";
        assert_eq!(cri.sh(&one, namespace).await, cri.sh(&two, namespace).await);
        for (target, code) in [(id.as_str(), Code::InvalidArgument), ("0123456789abcdef", Code::NotFound)] {
            let status = cri.create(&other_id, &targeting("bad", target), &other).await.unwrap_err();
            assert_eq!(status.code(), code, "{status}");
        }
        cri.stop(&debug, 0).await.unwrap();
        assert_eq!(cri.sh(&app, "echo lives on").await, "lives on");
        cri.stop(&app, 0).await.unwrap();
        let status = cri.create(&other_id, &targeting("late", &app), &other).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        for id in [pod_id, other_id] {
            cri.clear_pod(&id).await.unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_become_another_line_of_a_file_is_refused() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("lines"));
        let mut odd = agent.pod("odd");
        odd.config.hostname = "a\n192.0.2.1 evil".into();
        assert_eq!(cri.run_pod(&odd).await.unwrap_err().code(), Code::InvalidArgument);
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let home = Ctr::sleeper("home", &image, &pod).env("HOME", "/root\nroot::0:0::/:/bin/sh");
        let status = cri.create(&pod_id, &home, &pod).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        let text = Ctr::sleeper("text", &image, &pod).env("TEXT", "two\nlines");
        let id = cri.run(&pod_id, &text, &pod).await.unwrap();
        assert_eq!(cri.sh(&id, "echo \"$TEXT\"").await, "two\nlines");
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}
