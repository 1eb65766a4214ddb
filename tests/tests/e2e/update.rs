//! New limits for a running container, and long lists in pieces.

use std::fs;

use k8s_cri::v1::{
    LinuxContainerResources, NetworkConfig, RuntimeConfig, UpdateContainerResourcesRequest,
    UpdateRuntimeConfigRequest,
};
use sampan_proto::cri::{
    StreamContainerStatsRequest, StreamContainersRequest, StreamImagesRequest,
    StreamPodSandboxMetricsRequest, StreamPodSandboxStatsRequest, StreamPodSandboxesRequest,
    image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};
use sampan_tests::{Ctr, with_agent};
use tonic::Code;

use super::busybox;

#[tokio::test(flavor = "multi_thread")]
async fn new_limits_are_in_force_and_told_or_nothing_has_changed() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (mut cri, pod) = (agent.cri(), agent.pod("update"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let config =
            Ctr::sleeper("c", &image, &pod).resources(|resources| resources.memory_limit_in_bytes = 64 << 20);
        let id = cri.run(&pod_id, &config, &pod).await.unwrap();
        let update = |linux| UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(linux),
            ..Default::default()
        };
        let limits = LinuxContainerResources {
            memory_limit_in_bytes: 128 << 20,
            cpu_period: 100_000,
            cpu_quota: 25_000,
            ..Default::default()
        };
        cri.runtime.update_container_resources(update(limits)).await.unwrap();
        let status = cri.container(&id).await.unwrap();
        let told = status.resources.unwrap().linux.unwrap();
        assert_eq!((told.memory_limit_in_bytes, told.cpu_quota), (128 << 20, 25_000));
        let memory =
            "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
        assert_eq!(cri.sh(&id, memory).await, (128 << 20).to_string());
        // The quota could be set, the cpus can't: neither is.
        let limits =
            LinuxContainerResources { cpu_quota: 50_000, cpuset_cpus: "4000".into(), ..Default::default() };
        let status = cri.runtime.update_container_resources(update(limits)).await.unwrap_err();
        assert!(status.message().contains("cpuset"), "{status}");
        let quota =
            "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/cpu.max";
        assert_eq!(cri.sh(&id, quota).await, "25000");
        let status = cri.container(&id).await.unwrap();
        assert_eq!(status.resources.unwrap().linux.unwrap().cpu_quota, 25_000);
        cri.stop(&id, 0).await.unwrap();
        let status = cri.runtime.update_container_resources(update(Default::default())).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_leaves_devices_alone_and_a_failed_one_every_limit() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (mut cri, pod) = (agent.cri(), agent.pod("update"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let config = Ctr::sleeper("c", &image, &pod).device("/dev/full", "/dev/sink");
        let id = cri.run(&pod_id, &config, &pod).await.unwrap();
        let update = |linux| UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(linux),
            ..Default::default()
        };
        // Opening it is what the cgroup allows or not.
        let device = "head -c 1 /dev/sink | wc -c";
        assert_eq!(cri.sh(&id, device).await, "1");
        let limits = LinuxContainerResources { cpu_shares: 512, oom_score_adj: 700, ..Default::default() };
        cri.runtime.update_container_resources(update(limits)).await.unwrap();
        assert_eq!(cri.sh(&id, device).await, "1");
        assert_eq!(cri.sh(&id, "cat /proc/1/oom_score_adj").await, "700");
        // None of these was ever set, and the last can't be.
        let files = "cat /sys/fs/cgroup/memory/memory.*limit_in_bytes /sys/fs/cgroup/cpu/cpu.cfs_quota_us \
                     /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max 2>/dev/null; :";
        let before = cri.sh(&id, files).await;
        let limits = LinuxContainerResources {
            memory_limit_in_bytes: 64 << 20,
            cpu_quota: 50_000,
            cpuset_cpus: "4000".into(),
            ..Default::default()
        };
        let status = cri.runtime.update_container_resources(update(limits)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert_eq!(cri.sh(&id, files).await, before);
        assert_eq!(cri.sh(&id, device).await, "1");
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_memory_keeps_the_swap_that_was_allowed() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (mut cri, pod) = (agent.cri(), agent.pod("swap"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let limited = |name: &str, memory: i64, sum: i64| {
            Ctr::sleeper(name, &image, &pod).resources(|resources| {
                resources.memory_limit_in_bytes = memory;
                resources.memory_swap_limit_in_bytes = sum;
            })
        };
        let status = cri.create(&pod_id, &limited("odd", 0, 64 << 20), &pod).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        let status = cri.create(&pod_id, &limited("less", 64 << 20, 32 << 20), &pod).await.unwrap_err();
        assert!(status.message().contains("less than the memory limit"), "{status}");
        let id = cri.run(&pod_id, &limited("c", 64 << 20, 96 << 20), &pod).await.unwrap();
        let linux = LinuxContainerResources { memory_limit_in_bytes: 128 << 20, ..Default::default() };
        let request = UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(linux),
            ..Default::default()
        };
        cri.runtime.update_container_resources(request).await.unwrap();
        let told = cri.container(&id).await.unwrap().resources.unwrap().linux.unwrap();
        assert_eq!((told.memory_limit_in_bytes, told.memory_swap_limit_in_bytes), (128 << 20, 160 << 20));
        if fs::exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").unwrap() {
            let file = "cat /sys/fs/cgroup/memory/memory.memsw.limit_in_bytes";
            assert_eq!(cri.sh(&id, file).await, (160_i64 << 20).to_string());
        }
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pods_own_limits_are_in_force_change_as_a_whole_and_outlive_the_agent() {
    use sampan_proto::cri::{LinuxContainerResources, UpdatePodSandboxResourcesRequest};
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, mut pod) = (agent.cri(), agent.pod("pod-limits"));
        let linux = pod.config.linux.as_mut().unwrap();
        let memory = |bytes| k8s_cri::v1::LinuxContainerResources {
            memory_limit_in_bytes: bytes,
            ..Default::default()
        };
        linux.resources = Some(memory(100 << 20));
        linux.overhead = Some(memory(28 << 20));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let config = Ctr::sleeper("c", &image, &pod).device("/dev/full", "/dev/sink");
        let id = cri.run(&pod_id, &config, &pod).await.unwrap();
        let path = format!("{}/{pod_id}", agent.scope().cgroup);
        let limit = || {
            let files = ["memory/memory.limit_in_bytes", "memory.max", "unified/memory.max"];
            let read = |file: &str| {
                let (controller, name) = file.rsplit_once('/').unwrap_or(("", file));
                fs::read_to_string(format!("/sys/fs/cgroup/{controller}{path}/{name}")).ok()
            };
            files.into_iter().find_map(read).expect("the pod's cgroup").trim().to_owned()
        };
        assert_eq!(limit(), (128_i64 << 20).to_string());
        let mut runtime = RuntimeServiceClient::new(agent.channel());
        let update = |resources| UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: pod_id.clone(),
            resources: Some(resources),
            overhead: None,
        };
        let more = LinuxContainerResources { memory_limit_in_bytes: 256 << 20, ..Default::default() };
        runtime.update_pod_sandbox_resources(update(more)).await.unwrap();
        assert_eq!(limit(), (256_i64 << 20).to_string());
        let impossible = LinuxContainerResources {
            memory_limit_in_bytes: 64 << 20,
            cpuset_cpus: "4000".into(),
            ..Default::default()
        };
        let status = runtime.update_pod_sandbox_resources(update(impossible)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert_eq!(limit(), (256_i64 << 20).to_string());
        assert_eq!(cri.sh(&id, "head -c 1 /dev/sink | wc -c").await, "1", "devices are the container's");
        agent.kill();
        agent.restart().await;
        let shares = LinuxContainerResources { cpu_shares: 300, ..Default::default() };
        runtime.update_pod_sandbox_resources(update(shares)).await.unwrap();
        assert_eq!(limit(), (256_i64 << 20).to_string(), "what was set before is known");
        cri.stop_pod(&pod_id).await.unwrap();
        let status = runtime.update_pod_sandbox_resources(update(Default::default())).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_in_pieces_too() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("stream"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        // These calls are newer than the independent client.
        let (mut runtime, mut images) =
            (RuntimeServiceClient::new(agent.channel()), ImageServiceClient::new(agent.channel()));
        let mut made = Vec::new();
        for name in ["a", "b", "c"] {
            made.push(cri.create(&pod_id, &Ctr::sleeper(name, &image, &pod), &pod).await.unwrap());
        }
        made.sort();
        let mut stream =
            runtime.stream_containers(StreamContainersRequest::default()).await.unwrap().into_inner();
        let mut ids = Vec::new();
        while let Some(message) = stream.message().await.unwrap() {
            assert!(!message.containers.is_empty());
            ids.extend(message.containers.into_iter().map(|container| container.id));
        }
        ids.sort();
        assert_eq!(ids, made);
        let mut stream =
            runtime.stream_pod_sandboxes(StreamPodSandboxesRequest::default()).await.unwrap().into_inner();
        let message = stream.message().await.unwrap().unwrap();
        assert_eq!(message.pod_sandboxes[0].id, pod_id);
        assert!(stream.message().await.unwrap().is_none());
        let mut stream = images.stream_images(StreamImagesRequest::default()).await.unwrap().into_inner();
        assert_eq!(stream.message().await.unwrap().unwrap().images[0].repo_tags, [image]);
        // Only what runs is measured.
        cri.start(&made[0]).await.unwrap();
        let mut stream = runtime
            .stream_container_stats(StreamContainerStatsRequest::default())
            .await
            .unwrap()
            .into_inner();
        let mut measured = Vec::new();
        while let Some(message) = stream.message().await.unwrap() {
            assert!(!message.container_stats.is_empty());
            measured.extend(message.container_stats);
        }
        let of_first = measured.iter().find(|stats| stats.attributes.as_ref().unwrap().id == made[0]);
        assert!(of_first.unwrap().memory.as_ref().unwrap().timestamp > 0);
        let mut stream = runtime
            .stream_pod_sandbox_stats(StreamPodSandboxStatsRequest::default())
            .await
            .unwrap()
            .into_inner();
        let message = stream.message().await.unwrap().unwrap();
        assert_eq!(message.pod_sandbox_stats[0].attributes.as_ref().unwrap().id, pod_id);
        assert!(stream.message().await.unwrap().is_none());
        let mut stream = runtime
            .stream_pod_sandbox_metrics(StreamPodSandboxMetricsRequest::default())
            .await
            .unwrap()
            .into_inner();
        let message = stream.message().await.unwrap().unwrap();
        assert_eq!(message.pod_sandbox_metrics[0].pod_sandbox_id, pod_id);
        assert!(!message.pod_sandbox_metrics[0].container_metrics.is_empty());
        assert!(stream.message().await.unwrap().is_none());
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_may_choose_other_subnets_and_old_pods_keep_their_addresses() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (mut cri, old, new) = (agent.cri(), agent.pod("old"), agent.pod("new"));
        let old_id = cri.run_pod(&old).await.unwrap();
        let serve = "mkdir /w; echo hello > /w/page; httpd -f -h /w -p 80";
        cri.run(&old_id, &Ctr::new("web", &image, &old).sh(serve), &old).await.unwrap();
        let old_ip = cri.pod(&old_id).await.unwrap().network.unwrap().ip;
        let third = rand::random::<u8>();
        let request = |pod_cidr: String| UpdateRuntimeConfigRequest {
            runtime_config: Some(RuntimeConfig { network_config: Some(NetworkConfig { pod_cidr }) }),
        };
        let subnet = format!("10.254.{third}.0/24,fd54:{third:x}::/64");
        cri.runtime.update_runtime_config(request(subnet.clone())).await.unwrap();
        let status = cri.runtime.update_runtime_config(request("nonsense".into())).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        agent.kill();
        agent.restart().await;
        let new_id = cri.run_pod(&new).await.unwrap();
        let ip = cri.pod(&new_id).await.unwrap().network.unwrap().ip;
        assert!(ip.starts_with(&format!("10.254.{third}.")), "{ip}");
        let more = cri.pod(&new_id).await.unwrap().network.unwrap().additional_ips;
        assert!(more[0].ip.starts_with(&format!("fd54:{third:x}:")), "{more:?}");
        assert_eq!(cri.pod(&old_id).await.unwrap().network.unwrap().ip, old_ip);
        let id = cri.run(&new_id, &Ctr::sleeper("c", &image, &new), &new).await.unwrap();
        assert_eq!(cri.sh(&id, &format!("wget -q -O - http://{old_ip}/page")).await, "hello");
        for id in [old_id, new_id] {
            cri.clear_pod(&id).await.unwrap();
        }
    })
    .await;
}
