//! Pods and containers from birth to removal.

use std::time::{Duration, Instant};

use k8s_cri::v1::{ContainerState, PodSandboxState};
use sampan_tests::{Agent, Cri, Ctr, Pod, eventually, with_agent};
use tonic::Code;

use super::{SOON, busybox, now};

/// A pod, running, with busybox pulled.
async fn pod(agent: &Agent) -> (Cri, String, Pod, String) {
    let image = busybox(agent).await;
    let pod = agent.pod("life");
    let id = agent.cri().run_pod(&pod).await.expect("run a pod");
    (agent.cri(), image, pod, id)
}

/// Waits until a container's shell has its trap: as the first of its namespace it takes no SIGTERM before.
async fn trapped(cri: &Cri, id: &str) {
    eventually("the trap is set", SOON, async || {
        let masks = cri.sh(id, "sed -n 's/Sig[IC]g[nt]:\\t//p' /proc/1/status").await;
        let mut masks = masks.lines().map(|mask| u64::from_str_radix(mask, 16).unwrap());
        masks.any(|mask| mask & (1 << 14) != 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_all_that_kubelet_reads() {
    with_agent(async |agent| {
        let config = agent.pod("full").label("app", "x").annotation("note", "bytes \u{1f980} kept\n");
        let before = now();
        let id = agent.cri().run_pod(&config).await.unwrap();
        let pod = agent.cri().pod(&id).await.unwrap();
        assert_eq!(pod.state(), PodSandboxState::SandboxReady);
        assert!((before..=now()).contains(&pod.created_at), "{pod:?}");
        assert_eq!(pod.metadata, config.config.metadata);
        assert_eq!(pod.labels, config.config.labels);
        assert_eq!(pod.annotations, config.config.annotations);
        let network = pod.network.expect("a network");
        let address: std::net::IpAddr = network.ip.parse().expect("an address");
        assert!(address.is_ipv4());
        assert!(network.additional_ips.iter().any(|ip| ip.ip.contains(':')), "{network:?}");
        let listed = agent.cri().pods().await.unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!((listed[0].id.as_str(), listed[0].state()), (id.as_str(), PodSandboxState::SandboxReady));
        agent.cri().stop_pod(&id).await.unwrap();
        assert_eq!(agent.cri().pod(&id).await.unwrap().state(), PodSandboxState::SandboxNotready);
        agent.cri().remove_pod(&id).await.unwrap();
        assert_eq!(agent.cri().pod(&id).await.unwrap_err().code(), Code::NotFound);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_has_all_that_kubelet_reads() {
    with_agent(async |agent| {
        let (cri, image, pod, pod_id) = pod(agent).await;
        let config = Ctr::sleeper("main", &image, &pod).label("l", "1").annotation("a", "2").mount(
            agent.base(),
            "/from-host",
            true,
        );
        let before = now();
        let id = cri.create(&pod_id, &config, &pod).await.unwrap();
        let created = cri.container(&id).await.unwrap();
        assert_eq!(created.state(), ContainerState::ContainerCreated);
        assert_eq!((created.started_at, created.finished_at), (0, 0));
        cri.start(&id).await.unwrap();
        let running = cri.container(&id).await.unwrap();
        assert_eq!(running.state(), ContainerState::ContainerRunning);
        assert!(before <= running.created_at && running.created_at <= running.started_at, "{running:?}");
        assert_eq!(running.finished_at, 0);
        assert_eq!(running.metadata, config.config.metadata);
        assert_eq!(running.labels, config.config.labels);
        assert_eq!(running.annotations, config.config.annotations);
        assert_eq!(running.image.as_ref().map(|image| image.image.as_str()), Some(image.as_str()));
        let image_id = cri.image(&image).await.unwrap().unwrap().id;
        assert_eq!((&running.image_ref, &running.image_id), (&image_id, &image_id));
        assert_eq!(running.log_path, pod.log_file(&config).display().to_string());
        assert_eq!(running.mounts.len(), 1, "{:?}", running.mounts);
        assert!(running.mounts[0].readonly && running.mounts[0].container_path == "/from-host");
        assert!(running.resources.is_some(), "in-place resize reads it");
        assert_eq!(running.user.and_then(|user| user.linux).map(|user| (user.uid, user.gid)), Some((0, 0)));
        let listed = cri.containers().await.unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!((&listed[0].id, &listed[0].pod_sandbox_id), (&id, &pod_id));
        assert_eq!(listed[0].image_ref, image_id);
        trapped(&cri, &id).await;
        cri.stop(&id, 5).await.unwrap();
        let stopped = cri.container(&id).await.unwrap();
        assert_eq!(stopped.state(), ContainerState::ContainerExited);
        assert_eq!((stopped.exit_code, stopped.reason.as_str()), (0, "Completed"));
        assert!(stopped.finished_at >= stopped.started_at);
        cri.remove(&id).await.unwrap();
        assert_eq!(cri.container(&id).await.unwrap_err().code(), Code::NotFound);
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn exit_codes_and_times_are_right_also_when_it_ends_at_once() {
    with_agent(async |agent| {
        let (cri, image, pod, pod_id) = pod(agent).await;
        for (name, script, code, reason) in [
            ("zero", "exit 0", 0, "Completed"),
            ("seven", "exit 7", 7, "Error"),
            ("high", "exit 255", 255, "Error"),
        ] {
            let before = now();
            let id = cri.run(&pod_id, &Ctr::new(name, &image, &pod).sh(script), &pod).await.unwrap();
            let status = cri.ended(&id).await;
            assert_eq!((status.exit_code, status.reason.as_str()), (code, reason), "{script}");
            assert!(before <= status.started_at, "{status:?}");
            assert!(status.started_at <= status.finished_at && status.finished_at <= now(), "{status:?}");
        }
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_asks_first_and_kills_after_the_grace_period() {
    with_agent(async |agent| {
        let (cri, image, pod, pod_id) = pod(agent).await;
        let polite = Ctr::new("polite", &image, &pod).sh("trap 'exit 9' TERM; while :; do sleep 0.05; done");
        let stubborn = Ctr::new("stubborn", &image, &pod).sh("trap '' TERM; while :; do sleep 1; done");
        let polite = cri.run(&pod_id, &polite, &pod).await.unwrap();
        let stubborn = cri.run(&pod_id, &stubborn, &pod).await.unwrap();
        for id in [&polite, &stubborn] {
            trapped(&cri, id).await;
        }
        let start = Instant::now();
        cri.stop(&polite, 600).await.unwrap();
        assert!(start.elapsed() < SOON, "{:?}", start.elapsed());
        assert_eq!(cri.container(&polite).await.unwrap().exit_code, 9);
        let start = Instant::now();
        cri.stop(&stubborn, 1).await.unwrap();
        let took = start.elapsed();
        assert!(Duration::from_millis(900) < took && took < SOON, "{took:?}");
        assert_eq!(cri.container(&stubborn).await.unwrap().exit_code, 137);
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_without_grace_kills_now() {
    with_agent(async |agent| {
        let (cri, image, pod, pod_id) = pod(agent).await;
        let stubborn = Ctr::new("c", &image, &pod).sh("trap '' TERM; while :; do sleep 1; done");
        let id = cri.run(&pod_id, &stubborn, &pod).await.unwrap();
        trapped(&cri, &id).await;
        let start = Instant::now();
        cri.stop(&id, 0).await.unwrap();
        // Who gives a container time gives ten seconds, if nothing else is said.
        assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
        assert_eq!(cri.container(&id).await.unwrap().exit_code, 137);
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_left_by_the_first_one_end_with_the_container() {
    with_agent(async |agent| {
        let (cri, image, pod, pod_id) = pod(agent).await;
        let config = Ctr::new("c", &image, &pod).sh("setsid sleep 4711 & sleep 0.1; exit 3");
        let id = cri.run(&pod_id, &config, &pod).await.unwrap();
        assert_eq!(cri.ended(&id).await.exit_code, 3);
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_killed_for_want_of_memory_is_told_and_is_not_the_containers_end() {
    with_agent(async |agent| {
        let (cri, image, pod, pod_id) = pod(agent).await;
        let script = "sh -c 'x=a; while :; do x=$x$x; done'; echo lives on; sleep 1000";
        let config = Ctr::new("parent", &image, &pod)
            .sh(script)
            .resources(|resources| resources.memory_limit_in_bytes = 20 << 20);
        let id = cri.run(&pod_id, &config, &pod).await.unwrap();
        let cli = agent.cli();
        let events = || cli.ok(&["events", "--since", "1h", "--no-follow"]);
        eventually("the kill is told", SOON, async || events().contains(" container oom ").then_some(()))
            .await;
        assert_eq!(cri.container(&id).await.unwrap().state(), ContainerState::ContainerRunning);
        eventually("the shell goes on", SOON, async || {
            std::fs::read_to_string(pod.log_file(&config)).unwrap().contains("lives on").then_some(())
        })
        .await;
        cri.stop(&id, 0).await.unwrap();
        let status = cri.container(&id).await.unwrap();
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"), "{status:?}");
        assert_eq!(events().matches(" container oom ").count(), 1);
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_bomb_is_told_as_oom_killed() {
    with_agent(async |agent| {
        let (cri, image, pod, pod_id) = pod(agent).await;
        let config = Ctr::new("bomb", &image, &pod)
            .sh("x=a; while :; do x=$x$x; done")
            .resources(|resources| resources.memory_limit_in_bytes = 20 << 20);
        let id = cri.run(&pod_id, &config, &pod).await.unwrap();
        let status = cri.ended(&id).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{status:?}");
        let events = agent.cli().ok(&["events", "--since", "1h", "--no-follow"]);
        assert_eq!(events.matches(" container oom ").count(), 1, "{events}");
        assert_eq!(
            cri.pod(&pod_id).await.unwrap().state(),
            PodSandboxState::SandboxReady,
            "the pod lives on"
        );
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn command_arguments_environment_directory_and_user_are_applied() {
    with_agent(async |agent| {
        let (cri, image, pod, pod_id) = pod(agent).await;
        let config = Ctr::new("c", &image, &pod)
            .command(&["sh", "-c", "echo \"$0 $1 $GREETING $PWD $(id -u):$(id -g):$(id -G) $PATH\""])
            .args(&["zero", "one"])
            .env("GREETING", "hello")
            .working_dir("/tmp/deep/er")
            .security(|context| context.run_as_username = "app".into());
        let id = cri.run(&pod_id, &config, &pod).await.unwrap();
        cri.ended(&id).await;
        let log = std::fs::read_to_string(pod.log_file(&config)).unwrap();
        assert!(log.contains("zero one hello /tmp/deep/er 1000:1000:1000 990 /usr/sbin:"), "{log}");
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_pods_at_once_come_and_go() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let lives: Vec<_> = (0..10)
            .map(|number| {
                let (cri, pod, image) = (agent.cri(), agent.pod(&format!("many{number}")), image.clone());
                tokio::spawn(async move {
                    let id = cri.run_pod(&pod).await?;
                    let container = cri.run(&id, &Ctr::sleeper("c", &image, &pod), &pod).await?;
                    let address = cri.pod(&id).await?.network.unwrap_or_default().ip;
                    cri.exec(&container, &["true"], 10).await?;
                    cri.clear_pod(&id).await?;
                    Ok::<_, tonic::Status>(address)
                })
            })
            .collect();
        let mut addresses = std::collections::BTreeSet::new();
        for life in lives {
            addresses.insert(life.await.unwrap().expect("a pod's life"));
        }
        assert_eq!(addresses.len(), 10, "each had an address of its own: {addresses:?}");
        assert!(agent.cri().pods().await.unwrap().is_empty());
        assert!(agent.cri().containers().await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_in_one_container_are_not_seen_in_another_of_the_same_image() {
    with_agent(async |agent| {
        let (cri, image, pod, pod_id) = pod(agent).await;
        let first = cri.run(&pod_id, &Ctr::sleeper("a", &image, &pod), &pod).await.unwrap();
        let second = cri.run(&pod_id, &Ctr::sleeper("b", &image, &pod), &pod).await.unwrap();
        cri.sh(&first, "echo mine >/etc/mine; rm /etc/group").await;
        assert_eq!(cri.sh(&second, "ls /etc/mine 2>/dev/null; ls /etc/group").await, "/etc/group");
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}
