//! The agent's own histograms: how long its calls, pods' starts, pulls and executions take.
//!
//! Measuring costs a lock and an addition, so everything is always measured, whether somebody asks for it or not.
//! Labels come from small fixed sets: nobody can make the number of series grow.

use std::{fmt, time::Instant};

use prometheus_client::{
    metrics::{
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

type Durations<const N: usize> = Family<[(&'static str, String); N], Histogram, fn() -> Histogram>;

/// All of them.
pub struct Measurements {
    registry: Registry,
    rpc: Durations<3>,
    pod_start: Durations<1>,
    container_start: Durations<1>,
    pull: Durations<1>,
    exec: Durations<1>,
}

impl fmt::Debug for Measurements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Measurements").finish_non_exhaustive()
    }
}

/// From a tenth of a millisecond to 26 seconds.
fn short() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 2.0, 19))
}

/// From ten milliseconds to eleven minutes.
fn long() -> Histogram {
    Histogram::new(exponential_buckets(0.01, 2.0, 17))
}

impl Default for Measurements {
    fn default() -> Measurements {
        let mut registry = Registry::with_prefix("sampan");
        let mut family = |name: &str, help: &str, make: fn() -> Histogram| {
            let family: Durations<1> = Family::new_with_constructor(make);
            registry.register_with_unit(name, help, Unit::Seconds, family.clone());
            family
        };
        let pod_start = family("pod_start_duration", "The phases of making a pod", short);
        let container_start = family("container_start_duration", "The phases of starting a container", short);
        let pull = family("image_pull_duration", "Pulls of images by their result", long);
        let exec = family("exec_start_duration", "Until a command runs in a container, by result", short);
        let rpc: Durations<3> = Family::new_with_constructor(short);
        let help = "Calls by their answer; streams until they begin";
        registry.register_with_unit("rpc_duration", help, Unit::Seconds, rpc.clone());
        Measurements { registry, rpc, pod_start, container_start, pull, exec }
    }
}

impl Measurements {
    /// What to tell whoever scrapes.
    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// A call to `/service/method` was answered with a code of gRPC.
    pub(crate) fn rpc(&self, path: &str, code: tonic::Code, since: Instant) {
        // Whoever calls what does not exist shall not make series.
        let known = path.strip_prefix('/').filter(|_| code != tonic::Code::Unimplemented);
        let (service, method) = known.and_then(|path| path.split_once('/')).unwrap_or(("unknown", "unknown"));
        let labels =
            [("service", service.to_owned()), ("method", method.to_owned()), ("code", format!("{code:?}"))];
        self.rpc.get_or_create(&labels).observe(since.elapsed().as_secs_f64());
    }

    /// A phase of making a pod has ended.
    pub(crate) fn pod_start(&self, phase: &'static str, since: Instant) {
        observe(&self.pod_start, "phase", phase, since);
    }

    /// A phase of starting a container has ended.
    pub(crate) fn container_start(&self, phase: &'static str, since: Instant) {
        observe(&self.container_start, "phase", phase, since);
    }

    /// A pull has ended.
    pub(crate) fn pull(&self, succeeded: bool, since: Instant) {
        observe(&self.pull, "result", result(succeeded), since);
    }

    /// A command was started in a container, or could not be.
    pub(crate) fn exec_start(&self, succeeded: bool, since: Instant) {
        observe(&self.exec, "result", result(succeeded), since);
    }
}

fn result(succeeded: bool) -> &'static str {
    if succeeded { "success" } else { "failure" }
}

fn observe(family: &Durations<1>, label: &'static str, value: &'static str, since: Instant) {
    family.get_or_create(&[(label, value.to_owned())]).observe(since.elapsed().as_secs_f64());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(measurements: &Measurements) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, measurements.registry()).unwrap();
        text
    }

    #[test]
    fn calls_are_told_by_service_method_and_code() {
        let measurements = Measurements::default();
        measurements.rpc("/runtime.v1.RuntimeService/Status", tonic::Code::Ok, Instant::now());
        measurements.rpc("/runtime.v1.RuntimeService/Status", tonic::Code::NotFound, Instant::now());
        measurements.pod_start("network", Instant::now());
        let text = text(&measurements);
        let labels = "service=\"runtime.v1.RuntimeService\",method=\"Status\",code=\"NotFound\"";
        assert!(text.contains(&format!("sampan_rpc_duration_seconds_count{{{labels}}} 1")), "{text}");
        assert!(text.contains("sampan_pod_start_duration_seconds_count{phase=\"network\"} 1"), "{text}");
    }

    #[test]
    fn invented_methods_make_one_series_only() {
        let measurements = Measurements::default();
        for number in 0..10 {
            measurements.rpc(&format!("/a/{number}"), tonic::Code::Unimplemented, Instant::now());
        }
        assert_eq!(text(&measurements).matches("sampan_rpc_duration_seconds_count").count(), 1);
    }
}
