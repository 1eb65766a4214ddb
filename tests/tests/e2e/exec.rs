//! ExecSync: what probes are made of.

use std::time::Duration;

use sampan_tests::{Agent, Cri, Ctr, with_agent};
use tonic::Code;

use super::busybox;

async fn container(agent: &Agent) -> (Cri, String, String) {
    let image = busybox(agent).await;
    let pod = agent.pod("exec");
    let pod_id = agent.cri().run_pod(&pod).await.unwrap();
    let id = agent.cri().run(&pod_id, &Ctr::sleeper("c", &image, &pod), &pod).await.unwrap();
    (agent.cri(), pod_id, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn output_and_exit_code_come_back() {
    with_agent(async |agent| {
        let (cri, pod, id) = container(agent).await;
        let answer = cri.exec(&id, &["sh", "-c", "echo out; echo err >&2; exit 5"], 10).await.unwrap();
        assert_eq!((answer.stdout, answer.stderr, answer.exit_code), (b"out\n".into(), b"err\n".into(), 5));
        let answer = cri.exec(&id, &["sh", "-c", "kill -TERM $$"], 10).await.unwrap();
        assert_eq!(answer.exit_code, 143);
        for _ in 0..20 {
            assert_eq!(cri.exec(&id, &["true"], 10).await.unwrap().exit_code, 0);
        }
        cri.clear_pod(&pod).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timeout_kills_all_it_started() {
    with_agent(async |agent| {
        let (cri, pod, id) = container(agent).await;
        let script = "setsid sleep 4712 & sleep 4713 & (trap '' TERM; sleep 4714)";
        let status = cri.exec(&id, &["sh", "-c", script], 1).await.unwrap_err();
        assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
        // Not a moment later: probes that are answered too early pile up.
        let commands = std::fs::read_dir("/proc").unwrap().flatten();
        let commands =
            commands.filter_map(|process| std::fs::read_to_string(process.path().join("cmdline")).ok());
        let left: Vec<String> = commands.filter(|line| line.starts_with("sleep\u{0}471")).collect();
        assert!(left.is_empty(), "{left:?}");
        let left = cri.sh(&id, "ps | grep 'sleep 471[234]' | grep -v grep || true").await;
        assert_eq!(left, "");
        cri.clear_pod(&pod).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_mebibytes_of_a_stream_are_kept_and_the_rest_is_discarded() {
    with_agent(async |agent| {
        let (cri, pod, id) = container(agent).await;
        let answer =
            cri.exec(&id, &["sh", "-c", "head -c 20000000 /dev/zero; echo end >&2"], 60).await.unwrap();
        assert_eq!((answer.stdout.len(), answer.stderr, answer.exit_code), (16 << 20, b"end\n".into(), 0));
        cri.clear_pod(&pod).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn output_without_end_costs_the_agent_what_is_kept_of_it() {
    with_agent(async |agent| {
        let (cri, pod, id) = container(agent).await;
        let process = format!("/proc/{}", agent.scope().pid);
        let mebibytes = |field: &str| {
            let status = std::fs::read_to_string(format!("{process}/status")).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
            line.split_whitespace().next().unwrap().parse::<u64>().unwrap() >> 10
        };
        cri.exec(&id, &["true"], 10).await.unwrap();
        let before = mebibytes("VmRSS:");
        // The highest is counted anew.
        std::fs::write(format!("{process}/clear_refs"), "5").unwrap();
        let answer = cri.exec(&id, &["head", "-c", "2147483648", "/dev/zero"], 60).await.unwrap();
        assert_eq!((answer.stdout.len(), answer.exit_code), (16 << 20, 0));
        // What is kept, and once more as the message that is sent.
        let grown = mebibytes("VmHWM:").saturating_sub(before);
        assert!(grown <= 36, "{grown} MiB more");
        cri.clear_pod(&pod).await.unwrap();
    })
    .await;
}

/// Probes go on until a container is gone: that one ends while a command starts is nobody's fault.
#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_meets_the_end_of_its_container_is_told_so() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("exec"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        for round in 0..24u32 {
            // One is told to end, the next ends by itself.
            let time = if round % 2 == 0 { "1000" } else { "0.05" };
            let sleeper = Ctr::new("c", &image, &pod).command(&["sleep", time]).attempt(round);
            let id = cri.run(&pod_id, &sleeper, &pod).await.unwrap();
            let probes: Vec<_> = (0..8)
                .map(|_| {
                    let (cri, id) = (cri.clone(), id.clone());
                    tokio::spawn(async move {
                        loop {
                            match cri.exec(&id, &["true"], 10).await {
                                Ok(answer) if answer.exit_code == 0 => {}
                                Ok(answer) => return assert_eq!(answer.exit_code, 137),
                                Err(status) => {
                                    return assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
                                }
                            }
                        }
                    })
                })
                .collect();
            if round % 2 == 0 {
                tokio::time::sleep(Duration::from_millis(20 + u64::from(round) * 3)).await;
                cri.stop(&id, 0).await.unwrap();
            }
            for probe in probes {
                probe.await.unwrap();
            }
        }
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_in_the_background_that_holds_the_pipe_is_not_waited_for() {
    with_agent(async |agent| {
        let (cri, pod, id) = container(agent).await;
        // Were it waited for, the limit of 30 seconds would pass.
        let answer = cri.exec(&id, &["sh", "-c", "sleep 1000 & echo started"], 30).await.unwrap();
        assert_eq!((answer.stdout, answer.exit_code), (b"started\n".into(), 0));
        cri.clear_pod(&pod).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_runs_where_and_as_whom_the_container_runs() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("exec"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let config = Ctr::sleeper("c", &image, &pod)
            .user(1000, Some(1000))
            .working_dir("/home/app")
            .env("COLOUR", "green")
            .resources(|resources| resources.memory_limit_in_bytes = 64 << 20);
        let id = cri.run(&pod_id, &config, &pod).await.unwrap();
        assert_eq!(cri.sh(&id, "echo $(id -u):$(id -g) $PWD $COLOUR").await, "1000:1000 /home/app green");
        for kind in ["mnt", "pid", "net", "ipc", "uts", "cgroup"] {
            let answer =
                cri.sh(&id, &format!("readlink /proc/1/ns/{kind}; readlink /proc/self/ns/{kind}")).await;
            let inodes: Vec<_> = answer.lines().collect();
            assert_eq!(inodes[0], inodes[1], "{kind}");
        }
        let cgroups = cri
            .sh(&id, "grep -E 'memory|cpu' /proc/1/cgroup; echo; grep -E 'memory|cpu' /proc/self/cgroup")
            .await;
        let (first, own) = cgroups.split_once("\n\n").unwrap();
        assert_eq!(first, own, "what it uses counts for the container");
        let same = cri
            .sh(&id, "for f in CapEff NoNewPrivs Seccomp; do grep $f: /proc/1/status /proc/self/status; done")
            .await;
        for pair in same.lines().collect::<Vec<_>>().chunks(2) {
            let values: Vec<_> = pair.iter().map(|line| line.split_whitespace().last()).collect();
            assert_eq!(values[0], values[1], "{pair:?}");
        }
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_targets_and_programs_are_told_apart() {
    with_agent(async |agent| {
        let (cri, pod, id) = container(agent).await;
        let status = cri.exec("no-such-container", &["true"], 5).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "{status}");
        match cri.exec(&id, &["/no/such/program"], 5).await {
            // What runtimes in use answer, and what a shell would.
            Err(status) => assert!(status.message().contains("/no/such/program"), "{status}"),
            Ok(answer) => assert_eq!(answer.exit_code, 127),
        }
        cri.stop(&id, 0).await.unwrap();
        let status = cri.exec(&id, &["true"], 5).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        cri.clear_pod(&pod).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_probes_at_once_leave_nothing() {
    with_agent(async |agent| {
        let (cri, pod, id) = container(agent).await;
        let probes: Vec<_> = (0..40)
            .map(|number| {
                let (cri, id) = (cri.clone(), id.clone());
                tokio::spawn(async move { cri.exec(&id, &["sh", "-c", &format!("echo {number}")], 30).await })
            })
            .collect();
        for (number, probe) in probes.into_iter().enumerate() {
            let answer = probe.await.unwrap().unwrap();
            assert_eq!(answer.stdout, format!("{number}\n").into_bytes());
        }
        cri.clear_pod(&pod).await.unwrap();
    })
    .await;
}
