//! New limits for a running container, and long lists in pieces.

use k8s_cri::v1::{
    LinuxContainerResources, NetworkConfig, RuntimeConfig, UpdateContainerResourcesRequest,
    UpdateRuntimeConfigRequest,
};
use sampan_proto::cri::{
    StreamContainersRequest, StreamImagesRequest, StreamPodSandboxesRequest,
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
        let subnet = format!("10.254.{third}.0/24");
        cri.runtime.update_runtime_config(request(subnet.clone())).await.unwrap();
        let status = cri.runtime.update_runtime_config(request("nonsense".into())).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        agent.kill();
        agent.restart().await;
        let new_id = cri.run_pod(&new).await.unwrap();
        let ip = cri.pod(&new_id).await.unwrap().network.unwrap().ip;
        assert!(ip.starts_with(&format!("10.254.{third}.")), "{ip}");
        assert_eq!(cri.pod(&old_id).await.unwrap().network.unwrap().ip, old_ip);
        let id = cri.run(&new_id, &Ctr::sleeper("c", &image, &new), &new).await.unwrap();
        assert_eq!(cri.sh(&id, &format!("wget -q -O - http://{old_ip}/page")).await, "hello");
        for id in [old_id, new_id] {
            cri.clear_pod(&id).await.unwrap();
        }
    })
    .await;
}
