//! Pods below a slice of systemd, as kubelet places them with that driver: their containers are scopes.

use std::fs;
use std::path::Path;
use std::process::Command;

use k8s_cri::v1::{
    CgroupDriver, LinuxContainerResources, RuntimeConfigRequest, UpdateContainerResourcesRequest,
};
use sampan_tests::{Ctr, with_agent};
use tonic::Code;

use super::busybox;

fn has_systemd() -> bool {
    Path::new("/run/systemd/system").exists()
}

#[tokio::test(flavor = "multi_thread")]
async fn kubelet_is_told_to_use_systemd_where_that_is_the_first_process() {
    with_agent(async |agent| {
        let answer = agent.cri().runtime.runtime_config(RuntimeConfigRequest {}).await.unwrap().into_inner();
        let expected = if has_systemd() { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs };
        assert_eq!(answer.linux.expect("linux").cgroup_driver(), expected);
        let name = if has_systemd() { "systemd" } else { "cgroupfs" };
        assert_eq!(agent.cli().json(&["info"])["cgroup_driver"], name);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_below_a_slice_are_scopes() {
    with_agent(async |agent| {
        let slice = format!("sampantest{}", std::process::id());
        let parent = format!("/{slice}.slice/{slice}-pod1_2.slice");
        let (image, mut cri) = (busybox(agent).await, agent.cri());
        let pod = agent.pod("slice").cgroup_parent(&parent);
        if !has_systemd() {
            let status = cri.run_pod(&pod).await.unwrap_err();
            assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
            assert!(status.message().contains("systemd is not the first process"), "{status}");
            return;
        }
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let config =
            Ctr::sleeper("c", &image, &pod).resources(|resources| resources.memory_limit_in_bytes = 64 << 20);
        let id = cri.run(&pod_id, &config, &pod).await.unwrap();
        let inspected: serde_json::Value = serde_json::from_str(&agent.cli().ok(&["inspect", &id])).unwrap();
        let (scope, pid) = (format!("sampan-{id}.scope"), &inspected[0]["State"]["Pid"]);
        let place = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(place.lines().any(|line| line.ends_with(&format!("{parent}/{scope}"))), "{place}");
        let property = |name: &str| {
            let shown =
                Command::new("systemctl").args(["show", "--value", "-p", name, &scope]).output().unwrap();
            String::from_utf8(shown.stdout).unwrap().trim().to_owned()
        };
        assert_eq!(
            (property("ActiveState"), property("Slice")),
            ("active".into(), format!("{slice}-pod1_2.slice"))
        );
        // Limits are known to systemd, which would undo them otherwise.
        let limit = || {
            property(if fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap() {
                "MemoryMax"
            } else {
                "MemoryLimit"
            })
        };
        assert_eq!(limit(), (64 << 20).to_string());
        let linux = LinuxContainerResources { memory_limit_in_bytes: 128 << 20, ..Default::default() };
        let update = UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(linux),
            ..Default::default()
        };
        cri.runtime.update_container_resources(update).await.unwrap();
        assert_eq!(limit(), (128 << 20).to_string());
        assert_eq!(cri.sh(&id, "echo inside").await, "inside");
        let stats = agent.cli().json(&["stats", "--no-stream", &id]);
        assert!(stats[0]["memory_working_set_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{stats}");
        cri.stop(&id, 0).await.unwrap();
        cri.clear_pod(&pod_id).await.unwrap();
        assert_ne!(property("ActiveState"), "active");
    })
    .await;
}
