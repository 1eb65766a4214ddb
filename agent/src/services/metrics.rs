//! `MetricsService`: samples at a chosen interval.

use std::time::Duration;

use sampan_proto::sampan::{self, metrics_service_server::MetricsService};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

use super::{Feed, Reply};
use crate::{
    network::InterfaceStats,
    pods::{ContainerId, Found, Pods, record::ContainerPhase},
    stats::{Collector, FullSample},
};

/// The service.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// The pods it speaks of.
    pub pods: Pods,
    /// Where samples come from.
    pub collector: Collector,
}

const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);
const SHORTEST_INTERVAL: Duration = Duration::from_millis(100);

#[tonic::async_trait]
impl MetricsService for Metrics {
    type StreamMetricsStream = Feed<sampan::StreamMetricsResponse>;

    async fn stream_metrics(
        &self,
        request: Request<sampan::StreamMetricsRequest>,
    ) -> Reply<Self::StreamMetricsStream> {
        let request = request.into_inner();
        let interval = match request.interval_ms {
            0 => DEFAULT_INTERVAL,
            millis => Duration::from_millis(millis.into()),
        };
        if interval < SHORTEST_INTERVAL {
            return Err(Status::invalid_argument("interval_ms is less than 100"));
        }
        let only = match request.container.as_str() {
            "" => None,
            name => {
                let found = self.pods.find_container_by_name(name)?;
                if found.container.phase != ContainerPhase::Running {
                    return Err(Status::failed_precondition(format!("container {name:?} is not running")));
                }
                Some(found.container.id.clone())
            }
        };
        let (sender, receiver) = mpsc::channel(1);
        let metrics = self.clone();
        let context = self.pods.context().clone();
        tokio::spawn(async move { context.feed(&sender, metrics.tell(only, interval, &sender)).await });
        Ok(ReceiverStream::new(receiver).into())
    }
}

impl Metrics {
    async fn tell(
        &self,
        only: Option<ContainerId>,
        interval: Duration,
        sender: &mpsc::Sender<Result<sampan::StreamMetricsResponse, Status>>,
    ) {
        let mut ticks = tokio::time::interval(interval);
        // A client that was slow gets the next round on time and not all it missed.
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let wanted = |found: &Found| {
                found.container.phase == ContainerPhase::Running
                    && only.as_ref().is_none_or(|id| found.container.id == *id)
            };
            let containers: Vec<Found> = self.pods.containers().into_iter().filter(wanted).collect();
            if only.is_some() && containers.is_empty() {
                return;
            }
            let samples = self.collector.full(containers).await.iter().map(convert).collect();
            if sender.send(Ok(sampan::StreamMetricsResponse { samples })).await.is_err() {
                return;
            }
        }
    }
}

fn convert(full: &FullSample) -> sampan::Sample {
    let (sample, stats) = (&full.sample, &full.stats);
    let container = &sample.found.container;
    sampan::Sample {
        container_id: container.id.to_string(),
        name: container.config.name.clone(),
        pod_sandbox_id: sample.found.pod.record.id.to_string(),
        timestamp: sample.at,
        cpu: Some(sampan::CpuSample {
            usage_ns: stats.cpu.usage_ns,
            usage_nano_cores: sample.nano_cores.unwrap_or(0),
        }),
        memory: Some(sampan::MemorySample {
            usage_bytes: stats.memory.usage_bytes,
            working_set_bytes: stats.memory.working_set_bytes,
            limit_bytes: stats.memory.limit_bytes.unwrap_or(0),
        }),
        pids: Some(sampan::PidsSample { current: stats.pids.current, limit: stats.pids.limit.unwrap_or(0) }),
        io: Some(sampan::IoSample {
            read_bytes: stats.io.read_bytes,
            write_bytes: stats.io.write_bytes,
            read_ops: stats.io.read_ops,
            write_ops: stats.io.write_ops,
        }),
        network: network(&full.interfaces),
    }
}

/// All interfaces added up.
fn network(interfaces: &[InterfaceStats]) -> Option<sampan::NetworkSample> {
    if interfaces.is_empty() {
        return None;
    }
    let mut sum = sampan::NetworkSample::default();
    for interface in interfaces {
        sum.rx_bytes += interface.rx_bytes;
        sum.tx_bytes += interface.tx_bytes;
        sum.rx_packets += interface.rx_packets;
        sum.tx_packets += interface.tx_packets;
        sum.rx_errors += interface.rx_errors;
        sum.tx_errors += interface.tx_errors;
    }
    Some(sum)
}
