//! Many pods and many remains of containers: nothing is lost, nothing is left, lists go on.

use std::collections::BTreeSet;
use std::time::Duration;

use sampan_proto::cri;
use sampan_tests::{Ctr, Options, eventually, with_agent, with_agent_of};

use super::{busybox, rewrite_record};

const PODS: usize = 500;
/// As many as a busy node's garbage collector may let come together.
const REMAINS: usize = 20_000;

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_pods_come_and_go_at_once() {
    // A /24 has room for half of them.
    with_agent_of(Options { subnet_bits: Some(22), ..Options::default() }, async |agent| {
        let image = busybox(agent).await;
        let cri = agent.cri();
        let made: Vec<_> = (0..PODS)
            .map(|_| {
                let (cri, pod, image) = (cri.clone(), agent.pod("crowd"), image.clone());
                tokio::spawn(async move {
                    let id = cri.run_pod(&pod).await?;
                    cri.run(&id, &Ctr::sleeper("c", &image, &pod), &pod).await?;
                    Ok::<_, tonic::Status>(id)
                })
            })
            .collect();
        let mut ids = Vec::new();
        for pod in made {
            ids.push(pod.await.unwrap().unwrap());
        }
        let mut addresses = BTreeSet::new();
        for id in &ids {
            addresses.insert(cri.pod(id).await.unwrap().network.unwrap().ip);
        }
        assert_eq!(addresses.len(), PODS, "an address each");
        let running = cri.containers().await.unwrap();
        assert_eq!(running.iter().filter(|container| container.state == 1).count(), PODS);
        let request = k8s_cri::v1::ListContainerStatsRequest::default();
        let stats = cri.runtime.clone().list_container_stats(request).await.unwrap().into_inner().stats;
        assert_eq!(stats.len(), PODS);

        agent.kill();
        agent.restart().await;
        let cri = agent.cri();
        assert_eq!(cri.pods().await.unwrap().len(), PODS);
        let gone: Vec<_> = ids
            .into_iter()
            .map(|id| {
                let cri = cri.clone();
                tokio::spawn(async move { cri.clear_pod(&id).await })
            })
            .collect();
        for pod in gone {
            pod.await.unwrap().unwrap();
        }
        assert!(cri.pods().await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_thousand_dead_containers_are_listed_and_removed() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("graveyard"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let id = cri.run(&pod_id, &Ctr::new("dead", &image, &pod).command(&["true"]), &pod).await.unwrap();
        cri.ended(&id).await;
        agent.terminate();
        let record = agent.base().join(format!("r/pods/{pod_id}/containers/{id}.json"));
        for number in 1..REMAINS {
            let other = format!("{number:064x}");
            rewrite_record(&record, &record.with_file_name(format!("{other}.json")), &id, &other);
        }
        agent.restart().await;
        let mut runtime = cri::runtime_service_client::RuntimeServiceClient::new(agent.channel());
        let mut stream =
            runtime.stream_containers(cri::StreamContainersRequest::default()).await.unwrap().into_inner();
        let mut seen = BTreeSet::new();
        while let Some(message) = stream.message().await.unwrap() {
            seen.extend(message.containers.into_iter().map(|container| container.id));
        }
        assert_eq!(seen.len(), REMAINS);
        // Others are served meanwhile, and what is listed can be looked at and removed.
        let last = format!("{:064x}", REMAINS - 1);
        assert_eq!(agent.cri().container(&last).await.unwrap().state, 2);
        agent.cri().remove(&last).await.unwrap();
        let status = agent.cri().container(&last).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::NotFound, "{status}");
        eventually("the pod is gone", Duration::from_secs(60), async || {
            agent.cri().clear_pod(&pod_id).await.ok()
        })
        .await;
    })
    .await;
}
