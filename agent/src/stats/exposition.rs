//! Metrics → OpenMetrics' text, as Prometheus scrapes it.
//!
//! Here a time has its fractions of a second, which CRI's messages have no room for.

use std::{borrow::Cow, fmt};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text},
    metrics::MetricType,
    registry::Registry,
};

use super::{
    PodFigures,
    metrics::{self, Kind, LABELS, Metric, Value},
};

/// The figures of all pods and the agent's own, to the end of file.
pub(super) fn text(figures: Vec<PodFigures>, own: &Registry) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Scrape(figures)));
    let mut text = String::new();
    text::encode_registry(&mut text, &registry)?;
    text::encode_registry(&mut text, own)?;
    text::encode_eof(&mut text)?;
    Ok(text)
}

#[derive(Debug)]
struct Scrape(Vec<PodFigures>);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for metric in metrics::all() {
            // A counter's name gets its suffix by the format. One without it would get another name than it has.
            let (name, kind) = match (metric.kind, metric.name.strip_suffix("_total")) {
                (Kind::Counter, Some(name)) => (name, MetricType::Counter),
                (Kind::Counter, None) => (metric.name, MetricType::Unknown),
                (Kind::Gauge, _) => (metric.name, MetricType::Gauge),
            };
            let mut encoder = encoder.encode_descriptor(name, metric.help, None, kind)?;
            for pod in &self.0 {
                family(metric, pod, kind, &mut encoder)?;
            }
        }
        Ok(())
    }
}

/// The values that a pod and its containers have for a metric.
fn family(
    metric: &Metric,
    pod: &PodFigures,
    kind: MetricType,
    encoder: &mut MetricEncoder<'_>,
) -> fmt::Result {
    let mut result = Ok(());
    let labels = metrics::pod_labels(pod);
    metric.of_pod(pod, &mut |more, value| {
        if result.is_ok() {
            result = point(metric, kind, &labels, more, value, encoder);
        }
    });
    for container in &pod.containers {
        let labels = metrics::container_labels(container);
        metric.of_container(container, &mut |more, value| {
            if result.is_ok() {
                result = point(metric, kind, &labels, more, value, encoder);
            }
        });
    }
    result
}

fn point(
    metric: &Metric,
    kind: MetricType,
    labels: &[Cow<'_, str>],
    more: &[&str],
    value: Value,
    encoder: &mut MetricEncoder<'_>,
) -> fmt::Result {
    let values = labels.iter().map(AsRef::as_ref).chain(more.iter().copied());
    let labels: Vec<(&str, &str)> = LABELS.iter().chain(metric.labels).copied().zip(values).collect();
    let mut encoder = encoder.encode_family(&labels)?;
    match (kind, value) {
        (MetricType::Counter, Value::Number(number)) => {
            encoder.encode_counter::<NoLabelSet, _, u64>(&number, None)
        }
        (MetricType::Counter, Value::Nanoseconds(time)) => {
            encoder.encode_counter::<NoLabelSet, _, u64>(&seconds(time), None)
        }
        (_, Value::Number(number)) => encoder.encode_gauge(&number),
        (_, Value::Nanoseconds(time)) => encoder.encode_gauge(&seconds(time)),
    }
}

fn seconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e9
}
