//! Names, retries and repetition: what kubelet does when it is not sure.

use k8s_cri::v1::{ContainerFilter, ListContainersRequest, ListPodSandboxRequest, PodSandboxFilter};
use sampan_tests::{Ctr, with_agent};
use tonic::Code;

use super::busybox;

#[tokio::test(flavor = "multi_thread")]
async fn stopping_and_removing_may_be_repeated_and_may_miss() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("twice"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let id = cri.run(&pod_id, &Ctr::sleeper("c", &image, &pod), &pod).await.unwrap();
        for _ in 0..3 {
            cri.stop(&id, 1).await.unwrap();
        }
        for _ in 0..3 {
            cri.remove(&id).await.unwrap();
        }
        for _ in 0..3 {
            cri.stop_pod(&pod_id).await.unwrap();
        }
        for _ in 0..3 {
            cri.remove_pod(&pod_id).await.unwrap();
        }
        cri.stop_pod(&pod_id).await.unwrap();
        for missing in ["0123456789abcdef", "no-such-thing"] {
            cri.stop(missing, 1).await.unwrap();
            cri.remove(missing).await.unwrap();
            cri.stop_pod(missing).await.unwrap();
            cri.remove_pod(missing).await.unwrap();
            assert_eq!(cri.container(missing).await.unwrap_err().code(), Code::NotFound);
            assert_eq!(cri.pod(missing).await.unwrap_err().code(), Code::NotFound);
            assert_eq!(cri.start(missing).await.unwrap_err().code(), Code::NotFound);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_a_pod_that_runs_takes_all_of_it() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("force"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let id = cri.run(&pod_id, &Ctr::sleeper("c", &image, &pod), &pod).await.unwrap();
        cri.create(&pod_id, &Ctr::sleeper("created", &image, &pod), &pod).await.unwrap();
        cri.remove_pod(&pod_id).await.unwrap();
        assert_eq!(cri.container(&id).await.unwrap_err().code(), Code::NotFound);
        assert!(cri.containers().await.unwrap().is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_container_can_be_removed() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("force"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let id = cri.run(&pod_id, &Ctr::sleeper("c", &image, &pod), &pod).await.unwrap();
        cri.remove(&id).await.unwrap();
        assert_eq!(cri.container(&id).await.unwrap_err().code(), Code::NotFound);
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_free_again_after_removal_and_by_another_attempt() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("again"));
        for _ in 0..3 {
            let pod_id = cri.run_pod(&pod).await.unwrap();
            for _ in 0..2 {
                let id = cri.run(&pod_id, &Ctr::sleeper("c", &image, &pod), &pod).await.unwrap();
                cri.stop(&id, 0).await.unwrap();
                let next = Ctr::sleeper("c", &image, &pod).attempt(1);
                let next = cri.run(&pod_id, &next, &pod).await.unwrap();
                cri.remove(&id).await.unwrap();
                cri.remove(&next).await.unwrap();
            }
            cri.clear_pod(&pod_id).await.unwrap();
        }
        let first = cri.run_pod(&pod).await.unwrap();
        let second = cri.run_pod(&pod.clone().attempt(1)).await.unwrap();
        assert_ne!(first, second);
        cri.clear_pod(&first).await.unwrap();
        cri.clear_pod(&second).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retried_run_of_a_pod_never_makes_two() {
    with_agent(async |agent| {
        let pod = agent.pod("retry");
        let tries: Vec<_> = (0..8)
            .map(|_| {
                let (cri, pod) = (agent.cri(), pod.clone());
                tokio::spawn(async move { cri.run_pod(&pod).await })
            })
            .collect();
        let mut ids = std::collections::BTreeSet::new();
        for one in tries {
            match one.await.unwrap() {
                Ok(id) => drop(ids.insert(id)),
                Err(status) => assert_eq!(status.code(), Code::AlreadyExists, "{status}"),
            }
        }
        assert_eq!(ids.len(), 1, "{ids:?}");
        let pods = agent.cri().pods().await.unwrap();
        assert_eq!(pods.iter().map(|pod| &pod.id).collect::<Vec<_>>(), ids.iter().collect::<Vec<_>>());
        agent.cri().clear_pod(&pods[0].id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_are_anded() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let cri = agent.cri();
        let [one, two] = ["1", "2"].map(|number| agent.pod("f").label("both", "x").label("number", number));
        let [first, second] = [cri.run_pod(&one).await.unwrap(), cri.run_pod(&two).await.unwrap()];
        let id = cri.run(&first, &Ctr::sleeper("a", &image, &one).label("l", "a"), &one).await.unwrap();
        let created = cri.create(&first, &Ctr::sleeper("b", &image, &one), &one).await.unwrap();
        cri.run(&second, &Ctr::sleeper("a", &image, &two).label("l", "a"), &two).await.unwrap();
        let pods = async |filter: PodSandboxFilter| {
            let request = ListPodSandboxRequest { filter: Some(filter) };
            let items = cri.runtime.clone().list_pod_sandbox(request).await.unwrap().into_inner().items;
            items.into_iter().map(|pod| pod.id).collect::<std::collections::BTreeSet<_>>()
        };
        let labels = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let label_selector = labels(&[("both", "x")]);
        assert_eq!(pods(PodSandboxFilter { label_selector, ..Default::default() }).await.len(), 2);
        let label_selector = labels(&[("both", "x"), ("number", "2")]);
        let filter = PodSandboxFilter { label_selector, ..Default::default() };
        assert_eq!(pods(filter.clone()).await, [second.clone()].into());
        assert!(pods(PodSandboxFilter { id: first.clone(), ..filter }).await.is_empty());
        // A prefix of an id is enough, as crictl's users know it.
        let filter = PodSandboxFilter { id: first[..12].into(), ..Default::default() };
        assert_eq!(pods(filter).await, [first.clone()].into());
        let containers = async |filter: ContainerFilter| {
            let request = ListContainersRequest { filter: Some(filter) };
            let items = cri.runtime.clone().list_containers(request).await.unwrap().into_inner().containers;
            items.into_iter().map(|container| container.id).collect::<Vec<_>>()
        };
        let label_selector: std::collections::HashMap<_, _> = labels(&[("l", "a")]);
        let filter = ContainerFilter { label_selector, pod_sandbox_id: first.clone(), ..Default::default() };
        assert_eq!(containers(filter).await, [id]);
        let state =
            k8s_cri::v1::ContainerStateValue { state: k8s_cri::v1::ContainerState::ContainerCreated.into() };
        assert_eq!(containers(ContainerFilter { state: Some(state), ..Default::default() }).await, [created]);
        cri.clear_pod(&first).await.unwrap();
        cri.clear_pod(&second).await.unwrap();
    })
    .await;
}
