//! A pod's own metrics: its traffic, by interface.

use super::{Kind, Metric, Sink, Source, Value};
use crate::{network::InterfaceStats, stats::PodFigures};

const fn traffic(name: &'static str, help: &'static str, read: fn(&PodFigures, &mut Sink<'_>)) -> Metric {
    Metric { name, help, kind: Kind::Counter, labels: &["interface"], source: Source::Pod(read) }
}

fn each(figures: &PodFigures, sink: &mut Sink<'_>, of: fn(&InterfaceStats) -> u64) {
    for interface in &figures.interfaces {
        sink(&[&interface.name], Value::Number(of(interface)));
    }
}

pub(super) static METRICS: &[Metric] = &[
    traffic("container_network_receive_bytes_total", "Bytes received", |figures, sink| {
        each(figures, sink, |interface| interface.rx_bytes);
    }),
    traffic(
        "container_network_receive_errors_total",
        "Packets that were received broken",
        |figures, sink| {
            each(figures, sink, |interface| interface.rx_errors);
        },
    ),
    traffic(
        "container_network_receive_packets_dropped_total",
        "Packets that arrived and were dropped",
        |figures, sink| each(figures, sink, |interface| interface.rx_dropped),
    ),
    traffic("container_network_receive_packets_total", "Packets received", |figures, sink| {
        each(figures, sink, |interface| interface.rx_packets);
    }),
    traffic("container_network_transmit_bytes_total", "Bytes sent", |figures, sink| {
        each(figures, sink, |interface| interface.tx_bytes);
    }),
    traffic("container_network_transmit_errors_total", "Packets that could not be sent", |figures, sink| {
        each(figures, sink, |interface| interface.tx_errors);
    }),
    traffic(
        "container_network_transmit_packets_dropped_total",
        "Packets dropped instead of sent",
        |figures, sink| each(figures, sink, |interface| interface.tx_dropped),
    ),
    traffic("container_network_transmit_packets_total", "Packets sent", |figures, sink| {
        each(figures, sink, |interface| interface.tx_packets);
    }),
];
