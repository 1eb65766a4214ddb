//! The command line as a person uses it.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use sampan_tests::{eventually, fixture, free_port, http_get, with_agent};

use super::SOON;

/// Trap first: a shell as process 1 has no default action for SIGTERM.
const SLEEP: &str = "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done";
/// The same with a signal and a code of its own.
const SIGNALLED: &str = "trap 'exit 7' USR1; while :; do sleep 1000 & wait $!; done";

#[tokio::test(flavor = "multi_thread")]
async fn pull_images_and_rmi_tell_of_images() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), fixture().image("busybox"));
        let pulled = cli.run(&["pull", &image]);
        assert_eq!(pulled.code, 0, "{pulled:?}");
        assert!(format!("{}{}", pulled.stdout, pulled.stderr).contains("busybox"), "{pulled:?}");
        let table = cli.ok(&["images"]);
        let mut lines = table.lines();
        let header = lines.next().unwrap();
        let row = lines.next().unwrap();
        assert!(lines.next().is_none());
        for column in ["TAG", "IMAGE ID", "SIZE"] {
            let at = header.find(column).unwrap_or_else(|| panic!("{column}: {header}"));
            assert!(
                row.as_bytes()[at - 1] == b' ' && row.as_bytes()[at] != b' ',
                "columns line up:\n{table}"
            );
        }
        let rows = cli.json(&["images"]);
        assert_eq!(rows[0]["repo_tags"][0], image.as_str());
        assert!(rows[0]["size"].as_u64().unwrap() > 500_000);
        let id = rows[0]["id"].as_str().unwrap();
        assert_eq!(cli.json_of_inspect(&image)["Id"], id);
        let removed = cli.ok(&["rmi", &image]);
        assert!(removed.contains(id.trim_start_matches("sha256:").split_at(12).0), "{removed}");
        assert_eq!(cli.json(&["images"]), serde_json::json!([]));
        let again = cli.run(&["rmi", &image]);
        assert!(again.code != 0 && again.stderr.contains(&image), "{again:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_web_server_is_run_watched_and_removed() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), fixture().image("nginx"));
        let port = free_port();
        let publish = format!("{port}:80");
        let id = cli.ok(&[
            "run", "-d", "-q", "-p", &publish, "--name", "web", "--memory", "64m", "--cpus", "0.5", &image,
        ]);
        assert!(id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id:?}");
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        eventually("the page", SOON, async || {
            let answer = tokio::task::spawn_blocking(move || http_get(address, "/")).await.unwrap();
            answer.ok().filter(|text| text.contains("Hello from nginx")).map(drop)
        })
        .await;
        let table = cli.ok(&["ps"]);
        for word in ["web", &id[..12], "Up ", &port.to_string()] {
            assert!(table.contains(word), "{word}: {table}");
        }
        let row = &cli.json(&["ps"])[0];
        assert_eq!((&row["state"], &row["name"]), (&"running".into(), &"web".into()), "{row}");
        assert_eq!(row["ports"][0]["host_port"], port);
        eventually("the log", SOON, async || {
            cli.ok(&["logs", "web"]).contains("GET / HTTP/1.0").then_some(())
        })
        .await;
        let stats = cli.ok(&["stats", "--no-stream"]);
        assert!(stats.contains("web"), "{stats}");
        let row = &cli.json(&["stats", "--no-stream"])[0];
        assert_eq!(row["memory_limit_bytes"], 64 << 20, "{row}");
        assert!(
            row["memory_working_set_bytes"].as_u64().unwrap() > 0 && row["pids"].as_u64().unwrap() >= 2,
            "{row}"
        );
        let refused = cli.run(&["rm", "web"]);
        assert!(refused.code != 0 && !refused.stderr.is_empty(), "it runs: {refused:?}");
        cli.ok(&["stop", "web"]);
        assert!(!cli.ok(&["ps"]).contains("web"));
        assert!(
            cli.ok(&["ps", "-a"]).contains("Exited (0)"),
            "nginx ends well on the image's own stop signal"
        );
        cli.ok(&["rm", "web"]);
        assert!(!cli.ok(&["ps", "-a"]).contains("web"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn inspect_tells_everything() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), fixture().image("busybox"));
        let volume = format!("{}:/data:ro", agent.base().display());
        let id = cli.ok(&[
            "run", "-d", "--name", "seen", "-v", &volume, "-e", "A=b", "-w", "/tmp", &image, "sh", "-c",
            SLEEP,
        ]);
        let all = cli.json_of_inspect("seen");
        assert_eq!(all["Id"], id.as_str());
        assert_eq!(all["Name"], "seen");
        assert_eq!(all["State"]["Status"], "running");
        assert_eq!(all["State"]["Running"], true);
        let pid = all["State"]["Pid"].as_i64().unwrap();
        let namespaces = all["Namespaces"].as_object().unwrap();
        for kind in ["mnt", "pid", "ipc", "uts", "net", "cgroup"] {
            let namespace = namespaces.get(kind).unwrap_or_else(|| panic!("{kind} is not in {namespaces:?}"));
            let inode = |process: &str| {
                let link =
                    std::fs::read_link(format!("/proc/{process}/ns/{kind}")).unwrap().display().to_string();
                link.split(['[', ']']).nth(1).unwrap().parse::<u64>().unwrap()
            };
            assert_eq!(namespace["inode"], inode(&pid.to_string()), "{kind}");
            assert_eq!(namespace["host_inode"], inode("self"), "{kind}");
        }
        for name in ["LowerDir", "UpperDir", "WorkDir", "MergedDir"] {
            let text = all["GraphDriver"]["Data"][name].as_str().unwrap_or_else(|| panic!("{name}: {all}"));
            for path in text.split(':') {
                assert!(std::path::Path::new(path).is_dir(), "{name}: {path}");
            }
        }
        let cgroups = all["Cgroups"].as_object().unwrap();
        assert!(!cgroups.is_empty());
        for path in cgroups.values() {
            let path = std::path::Path::new(path.as_str().unwrap());
            assert!(path.join("cgroup.procs").exists(), "{}", path.display());
        }
        let mounts = all["Mounts"].as_array().unwrap();
        let data = mounts.iter().find(|mount| mount["Destination"] == "/data").expect("the volume");
        assert_eq!(
            (&data["Source"], &data["RW"]),
            (&agent.base().display().to_string().into(), &false.into())
        );
        assert!(all["NetworkSettings"].to_string().contains("10."), "{}", all["NetworkSettings"]);
        assert!(all["Config"]["Env"].to_string().contains("A=b"));
        assert_eq!(all["Config"]["WorkingDir"], "/tmp");
        cli.ok(&["stop", "-t", "1", "seen"]);
        let all = cli.json_of_inspect(&id[..12]);
        assert_eq!(all["State"]["Status"], "exited");
        assert!(
            all["State"]["ExitCode"].is_i64() && all["State"]["exit_code"] == all["State"]["ExitCode"],
            "{all}"
        );
        cli.ok(&["rm", "seen"]);
    })
    .await;
}

trait Inspect {
    fn json_of_inspect(&self, container: &str) -> serde_json::Value;
}

impl Inspect for sampan_tests::Cli {
    fn json_of_inspect(&self, container: &str) -> serde_json::Value {
        let list: serde_json::Value = serde_json::from_str(&self.ok(&["inspect", container])).expect("JSON");
        list[0].clone()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn run_gives_the_containers_output_and_exit_code() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), fixture().image("busybox"));
        for code in [0, 1, 42, 255] {
            let script = format!("echo out; echo err >&2; exit {code}");
            let output = cli.run(&["run", "-q", "--rm", &image, "sh", "-c", &script]);
            assert_eq!((output.code, output.stdout.as_str()), (code, "out\n"), "{output:?}");
            assert!(output.stderr.ends_with("err\n"), "{output:?}");
        }
        for (program, code) in [("/no/such/program", 127), ("/etc/passwd", 126)] {
            let output = cli.run(&["run", "--rm", &image, program]);
            assert_eq!(output.code, code, "{output:?}");
            assert!(output.stderr.contains(program), "{output:?}");
        }
        assert_eq!(cli.json(&["ps", "-a"]), serde_json::json!([]), "--rm leaves nothing");
        assert!(agent.cri().pods().await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn options_of_run_reach_the_container() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), fixture().image("busybox"));
        let script = "echo $(id -u):$(id -g) $PWD $A $(hostname); cat /data/x";
        std::fs::write(agent.base().join("x"), "from the host").unwrap();
        let volume = format!("{}:/data", agent.base().display());
        let text = cli.ok(&[
            "run", "-q", "--rm", "-u", "app", "-w", "/tmp", "-e", "A=b", "-v", &volume, "-h", "box", &image,
            "sh", "-c", script,
        ]);
        assert_eq!(text, "1000:1000 /tmp b box\nfrom the host");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn protection_memory_and_ulimits_of_run_reach_the_container() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), fixture().image("busybox"));
        let profile = agent.base().join("profile.json");
        let rule = r#"{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 }"#;
        let text = format!(r#"{{ "defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{rule}] }}"#);
        std::fs::write(&profile, text).unwrap();
        let run = |options: &[&str], script: &str| {
            let words = [&["run", "-q", "--rm"], options, &[&image, "sh", "-c", script]].concat();
            cli.run(&words)
        };
        let told = "grep -e NoNewPrivs -e Seccomp: /proc/self/status | cut -f 2";
        let by_default = run(&[], told);
        assert_eq!(by_default.stdout, "1\n2\n", "{by_default:?}");
        let options = ["--security-opt", "no-new-privileges=false", "--security-opt", "seccomp=unconfined"];
        assert_eq!(run(&options, told).stdout, "0\n0\n");
        let options = ["--security-opt", &format!("seccomp={}", profile.display())];
        let refused = run(&options, "mkdir /tmp/x");
        assert!(refused.code != 0 && refused.stderr.contains("not supported"), "{refused:?}");

        let options =
            ["--tmpfs", "/own:size=1m,mode=1711", "--ulimit", "nofile=99:100", "--ulimit", "core=0"];
        let script = "grep ' /own ' /proc/mounts | cut -d ' ' -f 3,4; ulimit -n; ulimit -Hn; ulimit -c
            stat -c %a /own; head -c 2000000 /dev/zero > /own/file || echo full";
        let output = run(&options, script);
        let lines: Vec<_> = output.stdout.lines().collect();
        for word in ["tmpfs", "noexec", "nosuid", "nodev", "size=1024k"] {
            assert!(lines[0].contains(word), "{word}: {output:?}");
        }
        assert_eq!(lines[1..], ["99", "100", "0", "1711", "full"], "{output:?}");

        let words =
            [&["run", "-q", "-d", "--name", "named"], &options[..], &[&image, "sleep", "100"]].concat();
        cli.ok(&words);
        assert_eq!(cli.ok(&["exec", "named", "sh", "-c", "ulimit -n"]), "99", "an exec has the same limits");
        let host = cli.json_of_inspect("named")["HostConfig"].clone();
        assert_eq!(host["Tmpfs"]["/own"], "size=1m,mode=1711");
        assert_eq!(host["SecurityOpt"][0], "no-new-privileges=true");
        let limit = host["Ulimits"][0].clone();
        assert_eq!((limit["Name"].as_str(), limit["Hard"].as_u64()), (Some("nofile"), Some(100)));
        cli.ok(&["rm", "-f", "named"]);

        for (option, value, problem) in [
            ("--ulimit", "nothing=1", "no limit \"nothing\""),
            ("--ulimit", "nofile=2:1", "above the hard one"),
            ("--tmpfs", "/own:size=much", "size"),
            ("--security-opt", "label=disable", "no-new-privileges"),
            ("--security-opt", "apparmor=no-such", "no-such"),
        ] {
            let output = run(&[option, value], "true");
            assert!(output.code == 125 || output.code == 2, "{option} {value}: {output:?}");
            assert!(output.stderr.contains(problem), "{option} {value}: {output:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_rights_and_surroundings_of_run_reach_the_container() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), fixture().image("busybox"));
        let options: Vec<_> = "--cpuset-cpus 0 -c 512 -m 64m --memory-swap 64m --cap-drop ALL --cap-add CHOWN \
            --device /dev/full:/dev/mine:rw --sysctl net.ipv4.ip_unprivileged_port_start=81 --dns 192.0.2.9 -v /own \
            --add-host db:192.0.2.7 --add-host six:2001:db8::1"
            .split_whitespace()
            .collect();
        let script = "grep -e CapBnd -e Cpus_allowed_list /proc/self/status | cut -f 2
            cat /proc/sys/net/ipv4/ip_unprivileged_port_start
            grep -c 192.0.2.9 /etc/resolv.conf
            grep -e db$ -e six /etc/hosts
            echo x 2>&1 >/dev/mine | grep -c 'No space'
            cut -d ' ' -f 2 /proc/mounts | grep own; touch /own/file";
        let run = |more: &[&str]| {
            let words = ["run", "-q"].iter().chain(&options).chain(more);
            cli.run(&words.copied().collect::<Vec<_>>())
        };
        let output = run(&["--rm", &image, "sh", "-c", script]);
        assert_eq!(output.stdout, "0000000000000001\n0\n81\n1\n192.0.2.7\tdb\n2001:db8::1\tsix\n1\n/own\n", "{output:?}");

        let output = run(&["-d", "--stop-signal", "USR1", "--name", "limited", &image, "sh", "-c", SIGNALLED]);
        assert_eq!(output.code, 0, "{output:?}");
        let told = cli.json_of_inspect("limited");
        let host = &told["HostConfig"];
        assert_eq!((host["CpusetCpus"].as_str(), host["ExtraHosts"][0].as_str()), (Some("0"), Some("db:192.0.2.7")));
        assert_eq!((host["CpuShares"].as_u64(), host["MemorySwap"].as_u64()), (Some(512), Some(64 << 20)));
        assert_eq!(host["Devices"][0]["PathInContainer"], "/dev/mine");
        let own = told["Mounts"].as_array().unwrap().iter().find(|mount| mount["Destination"] == "/own").unwrap();
        assert_eq!(own["Type"], "volume");
        let source = own["Source"].as_str().unwrap().to_owned();
        assert!(std::fs::exists(&source).unwrap());
        cli.ok(&["stop", "limited"]);
        assert_eq!(cli.json_of_inspect("limited")["State"]["ExitCode"], 7, "by the signal it asked for");
        cli.ok(&["rm", "limited"]);
        assert!(!std::fs::exists(&source).unwrap(), "the volume goes with its container");

        let everybody = cli.ok(&["run", "-q", "--rm", "--pid", "host", &image, "cat", "/proc/1/comm"]);
        assert_eq!(everybody, std::fs::read_to_string("/proc/1/comm").unwrap().trim_end());
        for (option, value, problem) in [
            ("--sysctl", "kernel.core_pattern=x", "core_pattern"),
            ("--cap-add", "NO_SUCH", "NO_SUCH"),
            ("--add-host", "db", "NAME:ADDRESS"),
            ("--device", "/etc/passwd", "not a device"),
            ("--stop-signal", "NONE", "NONE"),
            ("--memory-swap", "1g", "memory"),
            ("-v", "/own/../..", "root"),
            ("-v", "//", "root"),
        ] {
            let output = cli.run(&["run", "-q", "--rm", option, value, &image, "true"]);
            assert!(output.code == 125 && output.stderr.contains(problem), "{option}: {output:?}");
        }
        let network = ["run", "-q", "--rm", "--network", "host", "--sysctl", "net.core.somaxconn=77", &image, "true"];
        assert!(cli.run(&network).code != 0, "would be the host's");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_none_and_host_are_what_they_say() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), fixture().image("busybox"));
        let host = std::fs::read_link("/proc/self/ns/net").unwrap().display().to_string();
        let script = "readlink /proc/self/ns/net; ls /sys/class/net";
        let run =
            |network: &str| cli.ok(&["run", "-q", "--rm", "--network", network, &image, "sh", "-c", script]);
        let (none, same, bridge) = (run("none"), run("host"), run("bridge"));
        let [none, bridge] = [none, bridge]
            .map(|text| text.split_once('\n').map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap());
        assert_ne!(none.0, host);
        assert_eq!(none.1, "lo");
        assert_eq!(same.lines().next(), Some(host.as_str()));
        assert_eq!(bridge.1, "eth0\nlo");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_follow_until_the_end() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), fixture().image("busybox"));
        cli.ok(&[
            "run",
            "-d",
            "-q",
            "--name",
            "talker",
            &image,
            "sh",
            "-c",
            "for i in 1 2 3 4 5; do echo $i; sleep 0.3; done",
        ]);
        let followed = cli.ok(&["logs", "-f", "talker"]);
        assert_eq!(followed, "1\n2\n3\n4\n5");
        assert_eq!(cli.ok(&["logs", "talker"]), followed);
        assert_eq!(cli.ok(&["logs", "--tail", "2", "talker"]), "4\n5");
        cli.ok(&["rm", "talker"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_to_a_foreground_run_stops_the_container() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), fixture().image("busybox"));
        let mut child = cli.spawn(&[
            "run",
            "-q",
            "--rm",
            &image,
            "sh",
            "-c",
            "trap 'exit 3' TERM; while :; do sleep 0.1; done",
        ]);
        eventually("it runs", SOON, async || (cli.json(&["ps"])[0]["state"] == "running").then_some(()))
            .await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = eventually("sampan ends", SOON, async || child.try_wait().unwrap()).await;
        assert_eq!(status.code(), Some(3));
        eventually("nothing is left", SOON, async || {
            (cli.json(&["ps", "-a"]) == serde_json::json!([])).then_some(())
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_detached_run_with_rm_leaves_nothing_when_it_ends() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), fixture().image("busybox"));
        cli.ok(&["run", "-d", "-q", "--rm", &image, "sh", "-c", "sleep 0.5"]);
        eventually("it is gone", SOON, async || {
            (cli.json(&["ps", "-a"]) == serde_json::json!([])).then_some(())
        })
        .await;
        assert!(agent.cri().pods().await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn forced_removal_takes_what_runs() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), fixture().image("busybox"));
        cli.ok(&[
            "run",
            "-d",
            "-q",
            "--name",
            "a",
            &image,
            "sh",
            "-c",
            "trap '' TERM; while :; do sleep 1; done",
        ]);
        let taken = cli.run(&["run", "-d", "-q", "--name", "a", &image, "true"]);
        assert!(
            taken.code != 0 && taken.stderr.contains("\"a\"") | taken.stderr.contains(" a "),
            "{taken:?}"
        );
        cli.ok(&["rm", "-f", "a"]);
        assert_eq!(cli.json(&["ps", "-a"]), serde_json::json!([]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn version_and_info_tell_of_the_agent() {
    with_agent(async |agent| {
        let cli = agent.cli();
        assert_eq!(cli.json(&["version"])["agent"]["version"], cli.json(&["info"])["version"]);
        let info = cli.json(&["info"]);
        assert_eq!(info["root"], agent.scope().root.display().to_string());
        assert_eq!(info["bridge"], agent.scope().bridge.as_str());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_name_what_is_wrong() {
    with_agent(async |agent| {
        let cli = agent.cli();
        for arguments in
            [&["logs", "nobody"][..], &["stop", "nobody"], &["inspect", "nobody"], &["rm", "nobody"]]
        {
            let output = cli.run(arguments);
            assert!(output.code != 0 && output.stderr.contains("nobody"), "{arguments:?}: {output:?}");
        }
        let image = format!("{}/no-such-image", fixture().address());
        let output = cli.run(&["run", "--rm", &image]);
        assert_eq!(output.code, 125, "{output:?}");
        assert!(output.stderr.contains("no-such-image"), "{output:?}");
    })
    .await;
}
