//! What the agent tells plugins of a pod: arguments for all, and capabilities for those that have them
//! (CNI's CONVENTIONS, and kubelet's own annotations for bandwidth).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::network::PortMapping;

/// Bits a second, as a quantity of Kubernetes.
const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// Bits; the bandwidth plugin wants one, and clusters ask for a rate alone.
const BURST: i64 = i32::MAX as i64;

/// A pod, as plugins see it.
#[derive(Debug)]
pub struct Request<'a> {
    /// The pod's id.
    pub pod_id: &'a str,
    /// Its namespace in the cluster.
    pub namespace: &'a str,
    /// Its name there.
    pub name: &'a str,
    /// Its uid there.
    pub uid: &'a str,
    /// The ports to publish.
    pub ports: &'a [PortMapping],
    /// Name servers, search domains and options; none: the host's.
    pub dns: Option<[&'a [String]; 3]>,
    /// Its annotations.
    pub annotations: &'a BTreeMap<String, String>,
}

impl Request<'_> {
    /// `CNI_ARGS`, as every CRI runtime fills them. A plugin that knows none of the names must ignore them.
    pub(super) fn arguments(&self) -> String {
        // They end at a semicolon, which no name in a cluster has.
        let clean = |text: &str| text.replace(';', "_");
        format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            clean(self.namespace),
            clean(self.name),
            self.pod_id,
            clean(self.uid)
        )
    }

    pub(super) fn capabilities(&self) -> Map<String, Value> {
        let mut all = Map::new();
        let published = self.ports.iter().filter(|port| port.host_port != 0);
        let ports: Vec<Value> = published.map(mapping).collect();
        if !ports.is_empty() {
            all.insert("portMappings".into(), Value::Array(ports));
        }
        if let Some(bandwidth) = self.bandwidth() {
            all.insert("bandwidth".into(), bandwidth);
        }
        if let Some([servers, searches, options]) = self.dns {
            all.insert("dns".into(), json!({ "servers": servers, "searches": searches, "options": options }));
        }
        if !self.annotations.is_empty() {
            all.insert("io.kubernetes.cri.pod-annotations".into(), json!(self.annotations));
        }
        all
    }

    fn bandwidth(&self) -> Option<Value> {
        let rate = |name: &str| self.annotations.get(name).and_then(|text| bits(text));
        let (ingress, egress) = (rate(INGRESS), rate(EGRESS));
        let mut limits = Map::new();
        for (direction, rate) in [("ingress", ingress), ("egress", egress)] {
            if let Some(rate) = rate {
                limits.insert(format!("{direction}Rate"), rate.into());
                limits.insert(format!("{direction}Burst"), BURST.into());
            }
        }
        (!limits.is_empty()).then_some(Value::Object(limits))
    }
}

fn mapping(port: &PortMapping) -> Value {
    let mut mapping = json!({
        "hostPort": port.host_port,
        "containerPort": port.container_port,
        "protocol": port.protocol.to_string(),
    });
    if let Some(address) = port.host_ip {
        mapping["hostIP"] = address.to_string().into();
    }
    mapping
}

/// A quantity such as `10M` or `1.5Gi`, in bits a second; `None`: it is none.
fn bits(text: &str) -> Option<u64> {
    const SUFFIXES: [(&str, f64); 11] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("m", 0.001),
        ("k", 1e3),
        ("K", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
    ];
    let (number, factor) = SUFFIXES
        .iter()
        .find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, *factor)))
        .unwrap_or((text, 1.0));
    let rate = number.parse::<f64>().ok()? * factor;
    // Kubernetes allows 1k to 1P.
    (1e3..=1e15).contains(&rate).then_some(rate as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_quantities_of_kubernetes() {
        let known =
            [("10M", 10_000_000), ("1.5G", 1_500_000_000), ("2Ki", 2048), ("5000", 5000), ("1e6", 1_000_000)];
        for (text, rate) in known {
            assert_eq!(bits(text), Some(rate), "{text}");
        }
        for text in ["", "M", "-1M", "10", "1Z", "2P"] {
            assert_eq!(bits(text), None, "{text}");
        }
    }
}
