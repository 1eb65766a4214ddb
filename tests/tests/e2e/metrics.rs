//! The stream of samples, and metrics in cAdvisor's words.

use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use k8s_cri::v1::{
    ContainerMetrics, ContainerStatusRequest, ListMetricDescriptorsRequest, ListPodSandboxMetricsRequest,
    Metric, MetricType, PodSandboxMetrics,
};
use sampan_proto::sampan::StreamMetricsRequest;
use sampan_proto::sampan::metrics_service_client::MetricsServiceClient;
use sampan_tests::{Agent, Ctr, Options, eventually, free_port, http_get, with_agent, with_agent_of};
use tokio_stream::StreamExt;
use tonic::Code;

use super::{SOON, busybox};

#[tokio::test(flavor = "multi_thread")]
async fn samples_come_at_the_interval_and_grow() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("metrics"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let busy = Ctr::new("busy", &image, &pod)
            .sh("while :; do :; done")
            .resources(|resources| resources.memory_limit_in_bytes = 30 << 20);
        let busy = cri.run(&pod_id, &busy, &pod).await.unwrap();
        cri.run(&pod_id, &Ctr::sleeper("idle", &image, &pod), &pod).await.unwrap();
        let mut client = MetricsServiceClient::new(agent.channel());
        let request = StreamMetricsRequest { container: String::new(), interval_ms: 200 };
        let mut stream = client.stream_metrics(request).await.unwrap().into_inner();
        let start = Instant::now();
        let mut rounds = Vec::new();
        for _ in 0..4 {
            rounds.push(stream.next().await.expect("a round").expect("no error").samples);
        }
        let took = start.elapsed();
        assert!(took > Duration::from_millis(500) && took < SOON, "{took:?}");
        assert!(rounds.iter().all(|samples| samples.len() == 2), "{rounds:?}");
        let of_busy: Vec<_> = rounds.iter().flatten().filter(|sample| sample.container_id == busy).collect();
        let usage: Vec<_> = of_busy.iter().map(|sample| sample.cpu.unwrap().usage_ns).collect();
        assert!(usage.is_sorted() && usage[3] > usage[0], "{usage:?}");
        let last = of_busy[3];
        let rate = last.cpu.unwrap().usage_nano_cores;
        assert!(rate > 50_000_000, "a busy loop uses more than a twentieth of a core: {rate}");
        assert_eq!(last.memory.unwrap().limit_bytes, 30 << 20);
        assert!(last.memory.unwrap().working_set_bytes > 0 && last.pids.unwrap().current >= 1);
        assert!(last.network.is_some() && last.timestamp > 0);
        drop(stream);
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_of_one_container_ends_with_it() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("metrics"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let id = cri.run(&pod_id, &Ctr::sleeper("c", &image, &pod), &pod).await.unwrap();
        let mut client = MetricsServiceClient::new(agent.channel());
        let request = StreamMetricsRequest { container: id[..12].into(), interval_ms: 100 };
        let mut stream = client.stream_metrics(request).await.unwrap().into_inner();
        assert_eq!(stream.next().await.unwrap().unwrap().samples.len(), 1);
        cri.stop(&id, 0).await.unwrap();
        let rest = tokio::time::timeout(Duration::from_secs(10), async {
            while let Some(round) = stream.next().await {
                round.expect("no error");
            }
        });
        rest.await.expect("the stream ends");
        let request = StreamMetricsRequest { container: "no-such".into(), interval_ms: 100 };
        assert_eq!(client.stream_metrics(request).await.unwrap_err().code(), Code::NotFound);
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

/// The labels of each metric that the agent describes, by the metric's name.
async fn descriptors(agent: &Agent) -> HashMap<String, Vec<String>> {
    let mut runtime = agent.cri().runtime.clone();
    let answer = runtime.list_metric_descriptors(ListMetricDescriptorsRequest {}).await.unwrap();
    let descriptors = answer.into_inner().descriptors;
    assert!(descriptors.iter().all(|descriptor| !descriptor.help.is_empty()));
    descriptors.into_iter().map(|descriptor| (descriptor.name, descriptor.label_keys)).collect()
}

async fn metrics_of(agent: &Agent, pod: &str) -> PodSandboxMetrics {
    let mut runtime = agent.cri().runtime.clone();
    let answer = runtime.list_pod_sandbox_metrics(ListPodSandboxMetricsRequest {}).await.unwrap();
    let mut pods = answer.into_inner().pod_metrics;
    pods.retain(|metrics| metrics.pod_sandbox_id == pod);
    assert_eq!(pods.len(), 1);
    pods.remove(0)
}

/// The one value of a metric that has these labels among its own.
fn value(
    descriptors: &HashMap<String, Vec<String>>,
    metrics: &[Metric],
    name: &str,
    labels: &[(&str, &str)],
) -> u64 {
    let named = metrics.iter().filter(|metric| metric.name == name);
    let fits = |metric: &&Metric| {
        let own: BTreeMap<_, _> = descriptors[name].iter().zip(&metric.label_values).collect();
        labels.iter().all(|(key, value)| own.get(&key.to_string()).is_some_and(|own| own == value))
    };
    let mut fitting = named.filter(fits);
    let metric = fitting.next().unwrap_or_else(|| panic!("{name} {labels:?} in {metrics:#?}"));
    assert!(fitting.next().is_none(), "several of {name} {labels:?}");
    metric.value.as_ref().expect("a value").value
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_the_names_labels_and_values_that_kubelet_expects() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("metrics"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let config = Ctr::new("busy", &image, &pod)
            .sh("head -c 3000000 /dev/zero >/file; sleep 4711 & sleep 4711 & while :; do :; done")
            .capability("NET_RAW")
            .resources(|resources| {
                resources.memory_limit_in_bytes = 64 << 20;
                resources.memory_swap_limit_in_bytes = 64 << 20;
                resources.cpu_period = 100_000;
                resources.cpu_quota = 50_000;
                resources.cpu_shares = 512;
            });
        let id = cri.run(&pod_id, &config, &pod).await.unwrap();
        let gateway = cri.sh(&id, "ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p'").await;
        cri.sh(&id, &format!("ping -c 3 -i 0.1 -s 1000 {gateway} >/dev/null || ping -c 3 -s 1000 {gateway}"))
            .await;
        let descriptors = descriptors(agent).await;
        assert_eq!(descriptors.len(), 56);
        let (of_pod, of_container) = eventually("a second of processor time", SOON, async || {
            let mut metrics = metrics_of(agent, &pod_id).await;
            let container: ContainerMetrics = metrics.container_metrics.remove(0);
            let used = value(
                &descriptors,
                &container.metrics,
                "container_cpu_usage_seconds_total",
                &[("cpu", "total")],
            );
            (used > 0).then_some((metrics.metrics, container))
        })
        .await;
        assert_eq!(of_container.container_id, id);
        for metric in of_pod.iter().chain(&of_container.metrics) {
            let labels =
                descriptors.get(&metric.name).unwrap_or_else(|| panic!("{} is described", metric.name));
            assert_eq!(labels.len(), metric.label_values.len(), "{metric:?}");
            assert!(metric.timestamp > 0, "{metric:?}");
            let counter = metric.metric_type == MetricType::Counter as i32;
            assert!(
                counter || !metric.name.ends_with("_total") || metric.name.contains("inodes"),
                "{metric:?}"
            );
        }
        // Those that depend on the machine's disks and kernel may have no value; all others have one.
        let has =
            |name: &String| of_pod.iter().chain(&of_container.metrics).any(|metric| metric.name == *name);
        let may_lack = ["container_blkio", "container_hugetlb", "container_pressure"];
        let missing: Vec<_> = descriptors
            .keys()
            .filter(|name| !has(name) && !may_lack.iter().any(|start| name.starts_with(start)))
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
        let get = |name: &str| value(&descriptors, &of_container.metrics, name, &[]);
        let pod_name = pod.config.metadata.as_ref().expect("metadata");
        let labels = [
            ("container", "busy"),
            ("name", &id),
            ("pod", &pod_name.name),
            ("namespace", &pod_name.namespace),
            ("image", &image),
        ];
        assert_eq!(value(&descriptors, &of_container.metrics, "container_processes", &labels), 3);
        assert!(get("container_threads") >= 3 && get("container_file_descriptors") >= 3);
        assert_eq!(get("container_spec_memory_limit_bytes"), 64 << 20);
        assert_eq!((get("container_spec_cpu_quota"), get("container_spec_cpu_shares")), (50_000, 512));
        assert_eq!(
            get("container_ulimits_soft"),
            cri.sh(&id, "ulimit -n").await.trim().parse::<u64>().unwrap()
        );
        assert!(get("container_memory_working_set_bytes") > 0);
        assert!(get("container_memory_max_usage_bytes") >= get("container_memory_rss"));
        assert!(get("container_fs_usage_bytes") >= 3_000_000 && get("container_fs_limit_bytes") > 1 << 30);
        let (now, start) = (get("container_last_seen"), get("container_start_time_seconds"));
        assert!(start > 1_600_000_000 && (start..start + 600).contains(&now), "{start} {now}");
        let faults = [("failure_type", "pgfault"), ("scope", "hierarchy")];
        assert!(value(&descriptors, &of_container.metrics, "container_memory_failures_total", &faults) > 0);
        let interface = [("interface", "eth0"), ("container", "POD"), ("pod", &pod_name.name)];
        let received = value(&descriptors, &of_pod, "container_network_receive_bytes_total", &interface);
        assert!((3000..10 << 20).contains(&received), "{received}");
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_finds_pods_and_the_agent_itself() {
    let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), free_port());
    with_agent_of(
        Options { configuration: format!("[metrics]\naddress = \"{address}\"\n"), ..Options::default() },
        async |agent| {
            let image = busybox(agent).await;
            let (cri, pod) = (agent.cri(), agent.pod("metrics"));
            let pod_id = cri.run_pod(&pod).await.unwrap();
            let id = cri.run(&pod_id, &Ctr::sleeper("quiet", &image, &pod), &pod).await.unwrap();
            cri.sh(&id, "true").await;
            assert!(cri.runtime.clone().container_status(ContainerStatusRequest::default()).await.is_err());
            let page = http_get(address, "/metrics").unwrap();
            assert!(page.starts_with("HTTP/1.0 200") || page.starts_with("HTTP/1.1 200"), "{page}");
            assert!(page.contains("content-type: application/openmetrics-text; version=1.0.0"), "{page}");
            assert!(page.trim_end().ends_with("# EOF"), "{page}");
            let names: Vec<String> = descriptors(agent).await.into_keys().collect();
            let may_lack =
                ["container_blkio", "container_hugetlb", "container_pressure", "container_spec_cpu_quota"];
            for name in names.iter().filter(|name| !may_lack.iter().any(|start| name.starts_with(start))) {
                assert!(page.contains(&format!("\n{name}{{")), "{name} in {page}");
            }
            let line = |start: &str, label: &str| {
                let found = page.lines().find(|line| line.starts_with(start) && line.contains(label));
                found.unwrap_or_else(|| panic!("{start} {label} in {page}"))
            };
            let start = line("container_start_time_seconds{", &id);
            assert!(
                start.contains("container=\"quiet\"") && start.contains('.'),
                "fractions of seconds: {start}"
            );
            line("container_network_receive_bytes_total{", "interface=\"eth0\"");
            line("sampan_pod_start_duration_seconds_count{", "phase=\"network\"");
            line("sampan_container_start_duration_seconds_count{", "phase=\"create\"");
            line("sampan_image_pull_duration_seconds_count{", "result=\"success\"");
            line("sampan_exec_start_duration_seconds_count{", "result=\"success\"");
            line("sampan_rpc_duration_seconds_count{", "method=\"RunPodSandbox\",code=\"Ok\"");
            line("sampan_rpc_duration_seconds_count{", "method=\"ContainerStatus\",code=\"NotFound\"");
            let page = http_get(address, "/").unwrap();
            assert!(page.contains(" 404 "), "{page}");
            cri.clear_pod(&pod_id).await.unwrap();
        },
    )
    .await;
}
