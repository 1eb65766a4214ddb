//! Checkpoints by CRIU: what comes back is what was there; and what a node without a working CRIU says.
//!
//! In the guest of `tests/vm` CRIU has to work; elsewhere `criu check` says which of the two is to be seen.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use k8s_cri::v1::{CheckpointContainerRequest, ContainerState, ContainerStatsRequest};
use sampan_proto::cri::runtime_service_client::RuntimeServiceClient;
use sampan_proto::cri::{CheckpointPodRequest, RestorePodRequest, RestorePodResponse};
use sampan_tests::{Agent, Cri, Ctr, Pod, eventually, with_agent};
use tonic::{Code, Status};

use super::busybox;

/// What CRIU needs in a guest that is emulated.
const LONG: Duration = Duration::from_secs(90);

/// Counts in its memory and tells each number; ends with 7 when it is asked to.
const COUNTER: &str = "trap 'exit 7' TERM; n=0; echo made >/etc/made; rm -f /etc/group;
    while :; do n=$((n + 1)); echo $n; sleep 0.1; done";

/// Whether CRIU works here; where it must, it does.
fn works() -> bool {
    let output = Command::new("criu").arg("check").output();
    let works = output.as_ref().is_ok_and(|output| output.status.success());
    let required = std::env::var_os("SAMPAN_TEST_CRIU").is_some_and(|value| value == "required");
    assert!(works || !required, "CRIU has to work here: {output:?}");
    works
}

async fn checkpoint(cri: &Cri, id: &str, location: &Path) -> Result<(), Status> {
    let location = location.display().to_string();
    let request = CheckpointContainerRequest { container_id: id.into(), location, timeout: 80 };
    cri.runtime.clone().checkpoint_container(request).await.map(drop)
}

async fn checkpoint_pod(agent: &Agent, id: &str, output: &Path) -> Result<(), Status> {
    let request = CheckpointPodRequest {
        pod_sandbox_id: id.into(),
        output_path: output.display().to_string(),
        ..CheckpointPodRequest::default()
    };
    RuntimeServiceClient::new(agent.channel()).checkpoint_pod(request).await.map(drop)
}

async fn restore_pod(agent: &Agent, path: &Path) -> Result<RestorePodResponse, Status> {
    let checkpoint_path = path.display().to_string();
    let request = RestorePodRequest { checkpoint_path, ..RestorePodRequest::default() };
    Ok(RuntimeServiceClient::new(agent.channel()).restore_pod(request).await?.into_inner())
}

/// The numbers that a counter has told, in the order of its log.
fn told(log: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    text.lines().filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect()
}

async fn tells_more_than(log: &Path, number: u64) -> u64 {
    eventually(&format!("{} is past {number}", log.display()), LONG, async || {
        told(log).last().copied().filter(|last| *last > number)
    })
    .await
}

/// From one to the next without a gap but where it went back to its checkpoint; says where it went on.
fn resumed_at(numbers: &[u64]) -> u64 {
    let jumps: Vec<_> = numbers.windows(2).filter(|pair| pair[1] != pair[0] + 1).collect();
    assert!(jumps.len() <= 1, "{numbers:?}");
    assert_eq!(numbers.first(), Some(&1), "{numbers:?}");
    let back = jumps.first().map_or(numbers.len() as u64 + 1, |jump| jump[1]);
    assert!(back > 3, "it began anew: {numbers:?}");
    back
}

async fn counting(agent: &Agent, name: &str) -> (Cri, Pod, String, Ctr, String) {
    let image = busybox(agent).await;
    let (cri, pod) = (agent.cri(), agent.pod(name));
    let pod_id = cri.run_pod(&pod).await.unwrap();
    let host = agent.base().join("volume");
    std::fs::create_dir_all(&host).unwrap();
    let container = Ctr::new("counter", &image, &pod).sh(COUNTER).mount(&host, "/volume", false);
    let id = cri.run(&pod_id, &container, &pod).await.unwrap();
    tells_more_than(&pod.log_file(&container), 3).await;
    (cri, pod, pod_id, container, id)
}

/// The names of a folder's files.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_comes_back_from_its_checkpoint_and_goes_on() {
    with_agent(async |agent| {
        let (cri, pod, pod_id, container, id) = counting(agent, "ckpt").await;
        let (log, folder) = (pod.log_file(&container), agent.base().join("out"));
        std::fs::create_dir(&folder).unwrap();
        let archive = folder.join("c.tar");
        let taken = checkpoint(&cri, &id, &archive).await;
        if !works() {
            let refused = taken.unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
            assert!(refused.message().contains("CRIU"), "{refused}");
            assert_eq!(names(&folder), [""; 0]);
            let last = told(&log).last().copied().unwrap();
            tells_more_than(&log, last).await;
            return cri.clear_pod(&pod_id).await.unwrap();
        }
        taken.unwrap();
        let at_most = *told(&log).last().unwrap();
        assert_eq!(std::fs::metadata(&archive).unwrap().permissions().mode() & 0o7777, 0o600);
        assert_eq!(names(&folder), ["c.tar"], "nothing else is left");
        has_what_tools_look_for(&archive);
        tells_more_than(&log, at_most).await;
        assert_eq!(cri.container(&id).await.unwrap().state(), ContainerState::ContainerRunning);
        cri.clear_pod(&pod_id).await.unwrap();

        let pod_id = cri.run_pod(&pod).await.unwrap();
        let mut back = container.clone();
        back.config.image.as_mut().unwrap().image = archive.display().to_string();
        let id = cri.create(&pod_id, &back, &pod).await.unwrap();
        assert_eq!(cri.container(&id).await.unwrap().state(), ContainerState::ContainerCreated);
        let before = told(&log);
        cri.start(&id).await.unwrap();
        let at = before.last().copied().unwrap();
        tells_more_than(&log, at).await;
        assert!(resumed_at(&told(&log)) <= at_most + 1);

        assert_eq!(cri.sh(&id, "cat /etc/made; ls /etc/group 2>/dev/null; true").await, "made");
        cri.sh(&id, "echo x >/volume/after; echo x >/dev/null; cat /proc/1/status >/dev/null").await;
        assert!(agent.base().join("volume/after").exists());
        assert_eq!(
            cri.sh(&id, "readlink /proc/1/ns/net").await,
            cri.sh(&id, "readlink /proc/self/ns/net").await
        );
        let mut runtime = cri.runtime.clone();
        let stats =
            runtime.container_stats(ContainerStatsRequest { container_id: id.clone() }).await.unwrap();
        let stats = stats.into_inner().stats.unwrap();
        assert!(stats.memory.unwrap().usage_bytes.unwrap().value > 0);
        cri.stop(&id, 60).await.unwrap();
        let ended = cri.ended(&id).await;
        assert_eq!((ended.exit_code, ended.reason.as_str()), (7, "Error"));
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

fn has_what_tools_look_for(archive: &Path) {
    let mut tar = tar::Archive::new(std::fs::File::open(archive).unwrap());
    let mut sizes = BTreeMap::new();
    for entry in tar.entries().unwrap() {
        let entry = entry.unwrap();
        sizes.insert(entry.path().unwrap().display().to_string(), entry.size());
    }
    for name in [
        "config.dump",
        "spec.dump",
        "status",
        "dump.log",
        "stats-dump",
        "container.log",
        "rootfs-diff.tar",
        "checkpoint/inventory.img",
        "checkpoint/pages-1.img",
    ] {
        assert!(sizes.get(name).is_some_and(|size| *size > 0), "{name}: {sizes:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_comes_back_with_all_its_containers() {
    with_agent(async |agent| {
        let (cri, pod, pod_id, first, id) = counting(agent, "ckpt-pod").await;
        let image = first.config.image.as_ref().unwrap().image.clone();
        let second = Ctr::new("second", &image, &pod).sh(COUNTER).user(1000, None);
        cri.run(
            &pod_id,
            &second.clone().command(&[
                "sh",
                "-c",
                "n=0; trap 'exit 7' TERM; while :; do n=$((n + 1)); echo $n; sleep 0.1; done",
            ]),
            &pod,
        )
        .await
        .unwrap();
        let logs = [pod.log_file(&first), pod.log_file(&second)];
        tells_more_than(&logs[1], 3).await;
        let output = agent.base().join("pod-checkpoint");
        let taken = checkpoint_pod(agent, &pod_id, &output).await;
        if !works() {
            let refused = taken.unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
            assert!(refused.message().contains("CRIU"), "{refused}");
            let refused = restore_pod(agent, &output).await.unwrap_err();
            assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
            assert!(!output.exists());
            return cri.clear_pod(&pod_id).await.unwrap();
        }
        taken.unwrap();
        assert_eq!(names(&output).len(), 3, "{:?}", names(&output));
        for log in &logs {
            let last = *told(log).last().unwrap();
            tells_more_than(log, last).await;
        }
        let again = restore_pod(agent, &output).await.unwrap_err();
        assert_eq!(again.code(), Code::AlreadyExists, "{again}");
        cri.clear_pod(&pod_id).await.unwrap();

        let restored = restore_pod(agent, &output).await.unwrap();
        let names: Vec<_> = restored.restored_containers.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names, ["counter", "second"]);
        for (one, log) in restored.restored_containers.iter().zip(&logs) {
            assert_ne!(one.container_id, id);
            let created = cri.container(&one.container_id).await.unwrap();
            assert_eq!(created.state(), ContainerState::ContainerCreated);
            let last = *told(log).last().unwrap();
            cri.start(&one.container_id).await.unwrap();
            tells_more_than(log, last).await;
            resumed_at(&told(log));
        }
        cri.clear_pod(&restored.pod_sandbox_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_serves_again_at_its_new_pods_address() {
    with_agent(async |agent| {
        let image = super::pulled(agent, "nginx").await;
        let (cri, pod) = (agent.cri(), agent.pod("ckpt-nginx"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let container = Ctr::new("nginx", &image, &pod);
        let id = cri.run(&pod_id, &container, &pod).await.unwrap();
        serves(&cri, &pod_id).await;
        let archive = agent.base().join("nginx.tar");
        let taken = checkpoint(&cri, &id, &archive).await;
        serves(&cri, &pod_id).await;
        cri.clear_pod(&pod_id).await.unwrap();
        if !works() {
            return assert_eq!(taken.unwrap_err().code(), Code::FailedPrecondition);
        }
        taken.unwrap();
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let mut back = container.clone();
        back.config.image.as_mut().unwrap().image = archive.display().to_string();
        cri.run(&pod_id, &back, &pod).await.unwrap();
        serves(&cri, &pod_id).await;
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

/// Fetches the page of the pod's server.
async fn serves(cri: &Cri, pod_id: &str) {
    let address = cri.pod(pod_id).await.unwrap().network.unwrap().ip;
    let address: std::net::SocketAddr = format!("{address}:80").parse().unwrap();
    eventually("the server answers", LONG, async || super::network::page(address).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checkpoint_that_cannot_be_taken_says_why_and_leaves_nothing() {
    with_agent(async |agent| {
        let (cri, pod, pod_id, container, id) = counting(agent, "ckpt-not").await;
        let folder = agent.base().join("out");
        std::fs::create_dir(&folder).unwrap();
        let location = folder.join("c.tar");
        let missing = checkpoint(&cri, "0123456789ab", &location).await.unwrap_err();
        assert_eq!(missing.code(), Code::NotFound, "{missing}");
        for bad in [Path::new("c.tar"), &folder, &folder.join("none/c.tar"), Path::new("")] {
            let status = checkpoint(&cri, &id, bad).await.unwrap_err();
            assert_eq!(status.code(), Code::InvalidArgument, "{bad:?}: {status}");
        }
        let status = checkpoint_pod(agent, "0123456789ab", &location).await.unwrap_err();
        assert_eq!(status.code(), Code::NotFound, "{status}");
        let mut tty = Ctr::sleeper("tty", &container.config.image.as_ref().unwrap().image, &pod);
        tty.config.tty = true;
        let tty = cri.run(&pod_id, &tty, &pod).await.unwrap();
        let status = checkpoint(&cri, &tty, &location).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        let status = checkpoint_pod(agent, &pod_id, &folder.join("pod")).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        if works() {
            assert!(status.message().contains("terminal"), "{status}");
            let status = restore_pod(agent, &folder.join("none")).await.unwrap_err();
            assert_eq!(status.code(), Code::NotFound, "{status}");
        }
        assert_eq!(names(&folder), [""; 0]);
        let log = pod.log_file(&container);
        let last = *told(&log).last().unwrap();
        tells_more_than(&log, last).await;
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_agent_has_a_container_go_on_that_a_checkpoint_held() {
    with_agent(async |agent| {
        let (cri, pod, pod_id, container, id) = counting(agent, "ckpt-held").await;
        let log = pod.log_file(&container);
        let cgroup = format!("{}/{pod_id}/{id}", agent.scope().cgroup);
        sampan_runtime::cgroup::Cgroup::new(&cgroup).unwrap().freeze(true).unwrap();
        agent.kill();
        let last = *told(&log).last().unwrap();
        agent.restart().await;
        tells_more_than(&log, last).await;
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}
