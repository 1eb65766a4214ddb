//! `UpdateRuntimeConfig`: the pod network's subnets, as the cluster gives them to the node. Pods that are there keep
//! their addresses.

use ipnet::IpNet;
use sampan_proto::cri;
use tonic::Status;

use crate::pods::Pods;

pub(super) async fn call(
    pods: &Pods,
    request: cri::UpdateRuntimeConfigRequest,
) -> Result<cri::UpdateRuntimeConfigResponse, Status> {
    let network = request.runtime_config.and_then(|config| config.network_config).unwrap_or_default();
    if !network.pod_cidr.is_empty() {
        pods.move_network(subnets(&network.pod_cidr)?).await?;
    }
    Ok(cri::UpdateRuntimeConfigResponse {})
}

/// One subnet of each family at most, with a comma between.
fn subnets(text: &str) -> Result<Vec<IpNet>, Status> {
    let parse = |part: &str| {
        let subnet = part.trim().parse::<IpNet>();
        subnet.map_err(|_| Status::invalid_argument(format!("pod_cidr {text:?}: {part:?} is no subnet")))
    };
    text.split(',').map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_or_two_subnets_are_read_and_nonsense_is_named() {
        assert_eq!(subnets("10.1.0.0/16").unwrap().len(), 1);
        assert_eq!(subnets("10.1.0.0/16, fd00::/64").unwrap()[1].to_string(), "fd00::/64");
        for bad in ["x", "10.1.0.0", "10.1.0.0/16,", "10.1.0.0/33"] {
            assert!(subnets(bad).unwrap_err().message().contains(bad), "{bad}");
        }
    }
}
