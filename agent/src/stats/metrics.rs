//! The metrics of containers and pods, in the words that cAdvisor gave them and that kubelet and dashboards expect.
//!
//! One table says of each metric its name, what it means, its labels and where its values come from, so there is no
//! value without a description. Values are in the table's units: a time is told in seconds, whole ones where the
//! protocol has no fractions.

use std::borrow::Cow;

use super::{ContainerFigures, PodFigures};

mod container;
mod pod;

/// Labels that every metric has, in their order; a metric's own labels follow.
pub(crate) const LABELS: [&str; 6] = ["container", "id", "image", "name", "namespace", "pod"];
/// What stands for the container in a pod's own metrics.
const POD: &str = "POD";

/// Whether a metric only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Only up.
    Counter,
    /// Up and down.
    Gauge,
}

/// A metric's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value {
    /// Bytes, or a count.
    Number(u64),
    /// A time in nanoseconds, told in seconds.
    Nanoseconds(u64),
}

/// One metric: what it is, and how it is read.
pub(crate) struct Metric {
    /// As cAdvisor calls it.
    pub(crate) name: &'static str,
    /// What it means.
    pub(crate) help: &'static str,
    pub(crate) kind: Kind,
    /// Its labels beyond those that all have.
    pub(crate) labels: &'static [&'static str],
    source: Source,
}

enum Source {
    Container(fn(&ContainerFigures, &mut Sink<'_>)),
    Pod(fn(&PodFigures, &mut Sink<'_>)),
}

/// Takes the values of one metric, each with the values of the metric's own labels.
pub(crate) type Sink<'a> = dyn FnMut(&[&str], Value) + 'a;

/// Every metric there is: those of containers, then those of pods.
pub(crate) fn all() -> impl Iterator<Item = &'static Metric> {
    container::METRICS.iter().chain(pod::METRICS)
}

impl Metric {
    /// Gives the values that a container has for this metric.
    pub(crate) fn of_container(&self, figures: &ContainerFigures, sink: &mut Sink<'_>) {
        if let Source::Container(read) = self.source {
            read(figures, sink);
        }
    }

    /// Gives the values that a pod itself has for this metric.
    pub(crate) fn of_pod(&self, figures: &PodFigures, sink: &mut Sink<'_>) {
        if let Source::Pod(read) = self.source {
            read(figures, sink);
        }
    }
}

/// The values of the labels that every metric of a container has.
pub(crate) fn container_labels(figures: &ContainerFigures) -> [Cow<'_, str>; 6] {
    let (container, pod) = (&figures.sample.found.container, &figures.sample.found.pod.record.config.name);
    [
        container.config.name.as_str().into(),
        absolute(&container.cgroup),
        container.config.image.as_str().into(),
        container.id.as_str().into(),
        pod.namespace.as_str().into(),
        pod.name.as_str().into(),
    ]
}

/// The values of the labels that every metric of a pod itself has.
pub(crate) fn pod_labels(figures: &PodFigures) -> [Cow<'_, str>; 6] {
    let record = &figures.pod.record;
    let name = &record.config.name;
    [
        POD.into(),
        absolute(&figures.cgroup),
        "".into(),
        record.id.as_str().into(),
        name.namespace.as_str().into(),
        name.name.as_str().into(),
    ]
}

/// cAdvisor's ids are paths.
fn absolute(cgroup: &str) -> Cow<'_, str> {
    if cgroup.starts_with('/') { cgroup.into() } else { format!("/{cgroup}").into() }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_fifty_six_names_are_there_once_each_and_explained() {
        let names: Vec<&str> = all().map(|metric| metric.name).collect();
        assert_eq!(names.len(), 56);
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), 56);
        assert!(all().all(|metric| metric.name.starts_with("container_") && !metric.help.is_empty()));
    }

    #[test]
    fn labels_have_names_of_their_own() {
        for metric in all() {
            let labels: HashSet<_> = LABELS.iter().chain(metric.labels).collect();
            assert_eq!(labels.len(), LABELS.len() + metric.labels.len(), "{}", metric.name);
        }
    }

    #[test]
    fn names_that_end_in_total_are_counters() {
        for metric in
            all().filter(|metric| metric.name.ends_with("_total") && !metric.name.contains("inodes"))
        {
            assert_eq!(metric.kind, Kind::Counter, "{}", metric.name);
        }
    }
}
