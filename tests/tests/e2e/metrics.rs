//! The stream of samples.

use std::time::{Duration, Instant};

use sampan_proto::sampan::StreamMetricsRequest;
use sampan_proto::sampan::metrics_service_client::MetricsServiceClient;
use sampan_tests::{Ctr, with_agent};
use tokio_stream::StreamExt;
use tonic::Code;

use super::busybox;

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
        assert!(took > Duration::from_millis(500) && took < Duration::from_secs(5), "{took:?}");
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
