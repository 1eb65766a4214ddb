//! Statistics of containers and pods.

use k8s_cri::v1::{
    ContainerStatsFilter, ContainerStatsRequest, ListContainerStatsRequest, ListPodSandboxStatsRequest,
    PodSandboxStatsRequest,
};
use sampan_tests::{Ctr, eventually, with_agent};
use tonic::Code;

use super::{SOON, busybox};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_measured() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("stats").label("l", "1"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let config = Ctr::new("busy", &image, &pod)
            .sh("head -c 3000000 /dev/zero >/file; while :; do :; done")
            .label("c", "2")
            .resources(|resources| resources.memory_limit_in_bytes = 100 << 20);
        let id = cri.run(&pod_id, &config, &pod).await.unwrap();
        let get = async || {
            let request = ContainerStatsRequest { container_id: id.clone() };
            let stats =
                cri.runtime.clone().container_stats(request).await.unwrap().into_inner().stats.unwrap();
            let core =
                stats.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds).map_or(0, |value| value.value);
            (stats, core)
        };
        let (_, first) = get().await;
        let (stats, core) = eventually("it uses the processor and its layer", SOON, async || {
            let (stats, core) = get().await;
            let written = stats
                .writable_layer
                .as_ref()
                .and_then(|layer| layer.used_bytes)
                .map_or(0, |value| value.value);
            (core > first && written >= 3_000_000).then_some((stats, core))
        })
        .await;
        assert!(core > 0);
        let attributes = stats.attributes.expect("attributes");
        assert_eq!(attributes.id, id);
        assert_eq!(attributes.metadata, config.config.metadata);
        assert_eq!(attributes.labels, config.config.labels);
        let memory = stats.memory.expect("memory");
        let value = |value: Option<k8s_cri::v1::UInt64Value>| value.map_or(0, |value| value.value);
        let working_set = value(memory.working_set_bytes);
        assert!(working_set > 0 && working_set <= value(memory.usage_bytes), "{memory:?}");
        assert!(value(memory.available_bytes) < 100 << 20 && value(memory.available_bytes) > 0, "{memory:?}");
        let layer = stats.writable_layer.expect("a writable layer");
        assert!(value(layer.inodes_used) > 0);
        assert!(memory.timestamp > 0 && layer.timestamp > 0 && stats.cpu.unwrap().timestamp > 0);
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_is_known_after_two_readings_and_pressure_where_the_kernel_tells() {
    use sampan_proto::cri;
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (client, pod) = (agent.cri(), agent.pod("rate"));
        let pod_id = client.run_pod(&pod).await.unwrap();
        let busy = Ctr::new("busy", &image, &pod).sh("while :; do :; done");
        let id = client.run(&pod_id, &busy, &pod).await.unwrap();
        let mut runtime = cri::runtime_service_client::RuntimeServiceClient::new(agent.channel());
        let stats = eventually("a rate", SOON, async || {
            let request = cri::ContainerStatsRequest { container_id: id.clone() };
            let stats = runtime.container_stats(request).await.unwrap().into_inner().stats.unwrap();
            let rate = stats.cpu.as_ref().unwrap().usage_nano_cores.as_ref().map_or(0, |rate| rate.value);
            (rate > 10_000_000).then_some(stats)
        })
        .await;
        let rate = stats.cpu.as_ref().unwrap().usage_nano_cores.unwrap().value;
        assert!(rate <= 1_100_000_000, "one process, one core: {rate}");
        assert!(stats.io.as_ref().unwrap().timestamp > 0 && stats.swap.as_ref().unwrap().timestamp > 0);
        let has_pressure = std::fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap()
            && std::fs::exists("/proc/pressure/cpu").unwrap();
        let told = stats.cpu.unwrap().psi;
        assert_eq!(told.is_some(), has_pressure);
        if let Some(some) = told.and_then(|told| told.some) {
            assert!(some.avg10 >= 0.0 && some.avg10 <= 100.0, "{some:?}");
        }
        client.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_hold_what_runs_and_filters_choose() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("stats"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let mut ids = Vec::new();
        for name in ["a", "b", "c"] {
            let config = Ctr::sleeper(name, &image, &pod).label("name", name);
            ids.push(cri.run(&pod_id, &config, &pod).await.unwrap());
        }
        cri.stop(&ids[2], 0).await.unwrap();
        let list = async |filter: Option<ContainerStatsFilter>| {
            let request = ListContainerStatsRequest { filter };
            let stats = cri.runtime.clone().list_container_stats(request).await.unwrap().into_inner().stats;
            stats
                .into_iter()
                .filter_map(|stats| stats.attributes)
                .map(|attributes| attributes.id)
                .collect::<Vec<_>>()
        };
        let all = list(None).await;
        assert!(all.contains(&ids[0]) && all.contains(&ids[1]), "{all:?}");
        let label_selector = [("name".to_owned(), "b".to_owned())].into();
        let chosen = list(Some(ContainerStatsFilter { label_selector, ..Default::default() })).await;
        assert_eq!(chosen, [ids[1].clone()]);
        let filter =
            ContainerStatsFilter { id: ids[0].clone(), pod_sandbox_id: "other".into(), ..Default::default() };
        assert!(list(Some(filter)).await.is_empty(), "filters are ANDed");
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_measured_with_its_network_and_containers() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("stats"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let id =
            cri.run(&pod_id, &Ctr::sleeper("c", &image, &pod).capability("NET_RAW"), &pod).await.unwrap();
        let gateway = cri.sh(&id, "ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'").await;
        cri.sh(&id, &format!("ping -c 3 -i 0.1 -s 1000 {gateway} >/dev/null || ping -c 3 -s 1000 {gateway}"))
            .await;
        let request = PodSandboxStatsRequest { pod_sandbox_id: pod_id.clone() };
        let stats = cri.runtime.clone().pod_sandbox_stats(request).await.unwrap().into_inner().stats.unwrap();
        assert_eq!(stats.attributes.as_ref().map(|attributes| &attributes.id), Some(&pod_id));
        let linux = stats.linux.expect("linux");
        let interface = linux.network.expect("network").default_interface.expect("an interface");
        assert_eq!(interface.name, "eth0");
        let received = interface.rx_bytes.map_or(0, |value| value.value);
        assert!(received >= 3 * 1000, "bytes the pod received: {received}");
        assert!(linux.process.and_then(|process| process.process_count).map_or(0, |value| value.value) >= 1);
        assert!(linux.cpu.is_some() && linux.memory.is_some());
        assert_eq!(linux.containers.len(), 1);
        let request = ListPodSandboxStatsRequest { filter: None };
        let listed = cri.runtime.clone().list_pod_sandbox_stats(request).await.unwrap().into_inner().stats;
        assert_eq!(listed.len(), 1);
        cri.clear_pod(&pod_id).await.unwrap();
        let request = PodSandboxStatsRequest { pod_sandbox_id: pod_id };
        assert_eq!(cri.runtime.clone().pod_sandbox_stats(request).await.unwrap_err().code(), Code::NotFound);
        let request = ContainerStatsRequest { container_id: id };
        assert_eq!(cri.runtime.clone().container_stats(request).await.unwrap_err().code(), Code::NotFound);
    })
    .await;
}
