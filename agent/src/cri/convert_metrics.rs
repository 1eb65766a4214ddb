//! Metrics → CRI's messages.

use std::borrow::Cow;

use sampan_proto::cri;

use crate::stats::{
    PodFigures,
    metrics::{self, Kind, Metric, Value},
};

/// What each metric is.
pub(super) fn descriptors() -> Vec<cri::MetricDescriptor> {
    let descriptor = |metric: &Metric| cri::MetricDescriptor {
        name: metric.name.into(),
        help: metric.help.into(),
        label_keys: metrics::LABELS.iter().chain(metric.labels).map(|label| (*label).into()).collect(),
    };
    metrics::all().map(descriptor).collect()
}

/// The metrics of a pod and its containers.
pub(super) fn pod(figures: &PodFigures) -> cri::PodSandboxMetrics {
    let labels = metrics::pod_labels(figures);
    let mut own = Vec::new();
    for metric in metrics::all() {
        metric.of_pod(figures, &mut |more, value| {
            own.push(point(metric, figures.at, &labels, more, value));
        });
    }
    let container_metrics = figures.containers.iter().map(|container| {
        let labels = metrics::container_labels(container);
        let mut points = Vec::new();
        for metric in metrics::all() {
            metric.of_container(container, &mut |more, value| {
                points.push(point(metric, container.sample.at, &labels, more, value));
            });
        }
        cri::ContainerMetrics {
            container_id: container.sample.found.container.id.to_string(),
            metrics: points,
        }
    });
    cri::PodSandboxMetrics {
        pod_sandbox_id: figures.pod.record.id.to_string(),
        container_metrics: container_metrics.collect(),
        metrics: own,
    }
}

fn point(
    metric: &Metric,
    timestamp: i64,
    labels: &[Cow<'_, str>],
    more: &[&str],
    value: Value,
) -> cri::Metric {
    let kind = match metric.kind {
        Kind::Counter => cri::MetricType::Counter,
        Kind::Gauge => cri::MetricType::Gauge,
    };
    let value = match value {
        Value::Number(number) => number,
        // The message has no fractions: whole seconds, as kubelet takes them.
        Value::Nanoseconds(nanoseconds) => nanoseconds / 1_000_000_000,
    };
    let labels = labels.iter().map(|label| label.to_string());
    cri::Metric {
        name: metric.name.into(),
        timestamp,
        metric_type: kind.into(),
        label_values: labels.chain(more.iter().map(|label| (*label).to_owned())).collect(),
        value: Some(cri::UInt64Value { value }),
    }
}
