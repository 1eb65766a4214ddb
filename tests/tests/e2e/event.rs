//! What happens, told as it happens and afterwards.

use std::time::{Duration, Instant};

use k8s_cri::v1::{ContainerEventResponse, ContainerEventType, GetEventsRequest, PodSandboxStatusRequest};
use sampan_proto::sampan::{
    AttachRequest, AttachStart, ExecRequest, ExecStart, LogsRequest, StreamEventsRequest,
    StreamMetricsRequest, WaitRequest, attach_request, container_service_client::ContainerServiceClient,
    event_service_client::EventServiceClient, exec_request, metrics_service_client::MetricsServiceClient,
};
use sampan_tests::{Ctr, with_agent};
use tokio_stream::StreamExt as _;
use tonic::{Code, Streaming};

use super::{SOON, busybox};

async fn next(events: &mut Streaming<ContainerEventResponse>) -> ContainerEventResponse {
    let message = tokio::time::timeout(SOON, events.message()).await;
    message.expect("an event in time").unwrap().expect("the stream goes on")
}

#[tokio::test(flavor = "multi_thread")]
async fn kubelet_is_told_of_every_step_with_the_pod_as_it_was() {
    use ContainerEventType::*;
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (mut cri, pod) = (agent.cri(), agent.pod("event"));
        let mut events = cri.runtime.get_container_events(GetEventsRequest {}).await.unwrap().into_inner();
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let id = cri.run(&pod_id, &Ctr::new("c", &image, &pod).sh("exit 3"), &pod).await.unwrap();
        cri.ended(&id).await;
        cri.stop_pod(&pod_id).await.unwrap();
        cri.remove_pod(&pod_id).await.unwrap();
        let expected = [
            (&pod_id, ContainerCreatedEvent),
            (&pod_id, ContainerStartedEvent),
            (&id, ContainerCreatedEvent),
            (&id, ContainerStartedEvent),
            (&id, ContainerStoppedEvent),
            (&pod_id, ContainerStoppedEvent),
            (&id, ContainerDeletedEvent),
            (&pod_id, ContainerDeletedEvent),
        ];
        let mut last = 0;
        for (whose, kind) in expected {
            let event = next(&mut events).await;
            assert_eq!((&event.container_id, event.container_event_type()), (whose, kind));
            assert!(event.created_at >= last);
            last = event.created_at;
            let status = event.pod_sandbox_status.expect("the pod");
            assert_eq!(status.metadata.unwrap().name, pod.config.metadata.as_ref().unwrap().name);
            if (whose, kind) == (&id, ContainerStoppedEvent) {
                assert_eq!(event.containers_statuses[0].exit_code, 3);
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_several_tries_at_a_container_the_newest_is_told_first() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (mut cri, pod) = (agent.cri(), agent.pod("tries"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let mut events = cri.runtime.get_container_events(GetEventsRequest {}).await.unwrap().into_inner();
        let mut newest_first = Vec::new();
        // Enough that no other order looks like this one by chance.
        for attempt in 0..6 {
            let mut config = Ctr::sleeper("c", &image, &pod);
            config.config.metadata.as_mut().unwrap().attempt = attempt;
            newest_first.insert(0, cri.create(&pod_id, &config, &pod).await.unwrap());
            let told = next(&mut events).await.containers_statuses;
            assert_eq!(told.into_iter().map(|status| status.id).collect::<Vec<_>>(), newest_first);
        }
        let request = PodSandboxStatusRequest { pod_sandbox_id: pod_id.clone(), verbose: false };
        let asked = cri.runtime.pod_sandbox_status(request).await.unwrap().into_inner().containers_statuses;
        assert_eq!(asked.into_iter().map(|status| status.id).collect::<Vec<_>>(), newest_first);
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_hears_every_event_when_it_does() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (mut cri, pod) = (agent.cri(), agent.pod("slow"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let mut events = cri.runtime.get_container_events(GetEventsRequest {}).await.unwrap().into_inner();
        // More than memory and the connection hold would be hundreds; more than the queue of one client is enough.
        let mut made = Vec::new();
        for number in 0..40 {
            let config = Ctr::sleeper(&format!("c{number}"), &image, &pod);
            made.push(cri.create(&pod_id, &config, &pod).await.unwrap());
        }
        for id in &made {
            let event = next(&mut events).await;
            assert_eq!(
                (&event.container_id, event.container_event_type()),
                (id, ContainerEventType::ContainerCreatedEvent)
            );
            assert!(event.pod_sandbox_status.is_some());
        }
        agent.kill();
        drop(events);
        agent.restart().await;
        let mut events = cri.runtime.get_container_events(GetEventsRequest {}).await.unwrap().into_inner();
        cri.remove(&made[0]).await.unwrap();
        let event = next(&mut events).await;
        assert_eq!(
            (&event.container_id, event.container_event_type()),
            (&made[0], ContainerEventType::ContainerDeletedEvent),
            "what happened before is not told again"
        );
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_replayed_across_a_restart_without_gap_or_repetition() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let cli = agent.cli();
        assert_eq!(cli.run(&["run", "--name", "one", &image, "sh", "-c", "exit 5"]).code, 5);
        agent.kill();
        agent.restart().await;
        cli.ok(&["rm", "one"]);
        let text = cli.ok(&["events", "--since", "1h", "--no-follow", "--output", "json"]);
        let events: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let numbers: Vec<u64> = events.iter().map(|event| event["sequence"].as_u64().unwrap()).collect();
        assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
        let of_container: Vec<&str> = events
            .iter()
            .filter(|event| event["object"] == "container")
            .map(|event| event["action"].as_str().unwrap())
            .collect();
        assert_eq!(of_container, ["create", "start", "die", "remove"]);
        let die = events.iter().find(|event| event["action"] == "die").unwrap();
        assert_eq!(
            (&die["attributes"]["exit_code"], &die["attributes"]["name"]),
            (&"5".into(), &"one".into())
        );
        let from = numbers.len().to_string();
        let last = cli.ok(&["events", "--from", &from, "--no-follow"]);
        assert_eq!(last.lines().count(), 1);
        assert!(last.contains(" pod remove "), "{last}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_follows_hears_what_comes() {
    with_agent(async |agent| {
        use std::io::{BufRead as _, BufReader};
        let image = busybox(agent).await;
        let cli = agent.cli();
        let mut follower = cli.spawn(&["events"]);
        // What happens before it listens is not for it.
        tokio::time::sleep(Duration::from_millis(500)).await;
        cli.ok(&["run", "-d", "--rm", "--name", "short", &image, "true"]);
        let lines = BufReader::new(follower.stdout.take().unwrap()).lines();
        let lines: Vec<String> = lines.map(Result::unwrap).take(7).collect();
        assert!(lines[3].contains(" container start ") && lines[3].contains("name=short"), "{lines:#?}");
        assert!(lines[4].contains(" container die ") && lines[4].contains("exit_code=0"), "{lines:#?}");
        follower.kill().unwrap();
        follower.wait().unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_listens_does_not_keep_the_agent_from_ending() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (mut cri, pod) = (agent.cri(), agent.pod("listen"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let id = cri.run(&pod_id, &Ctr::sleeper("c", &image, &pod), &pod).await.unwrap();
        let mut told = cri.runtime.get_container_events(GetEventsRequest {}).await.unwrap().into_inner();
        let request = StreamEventsRequest { follow: true, ..Default::default() };
        let mut events =
            EventServiceClient::new(agent.channel()).stream_events(request).await.unwrap().into_inner();
        let request = StreamMetricsRequest { interval_ms: 60_000, ..Default::default() };
        let mut samples =
            MetricsServiceClient::new(agent.channel()).stream_metrics(request).await.unwrap().into_inner();
        assert!(samples.message().await.unwrap().is_some());
        let mut containers = ContainerServiceClient::new(agent.channel());
        let request = LogsRequest { container: id.clone(), follow: true, ..Default::default() };
        let mut lines = containers.logs(request).await.unwrap().into_inner();
        let (mut waiter, request) = (containers.clone(), WaitRequest { container: id.clone() });
        let waiting = tokio::spawn(async move { waiter.wait(request).await });
        let start = AttachStart { container: id.clone(), ..Default::default() };
        let start = AttachRequest { message: Some(attach_request::Message::Start(start)) };
        let input = tokio_stream::once(start).chain(tokio_stream::pending());
        let mut attached = containers.attach(input).await.unwrap().into_inner();
        assert!(attached.message().await.unwrap().is_some(), "it says when it has begun");
        let command = ["sleep", "1000"].map(str::to_owned).to_vec();
        let start = ExecStart { container: id, command, ..Default::default() };
        let start = ExecRequest { message: Some(exec_request::Message::Start(start)) };
        let input = tokio_stream::once(start).chain(tokio_stream::pending());
        let mut executed = containers.exec(input).await.unwrap().into_inner();
        let start = Instant::now();
        agent.terminate();
        // Streams that hold it up are given ten seconds.
        assert!(start.elapsed() < Duration::from_secs(8), "it took {:?}", start.elapsed());
        let ends = [
            told.message().await.map(drop),
            events.message().await.map(drop),
            samples.message().await.map(drop),
            lines.message().await.map(drop),
            waiting.await.unwrap().map(drop),
            attached.message().await.map(drop),
            executed.message().await.map(drop),
        ];
        for end in ends {
            assert_eq!(end.unwrap_err().code(), Code::Unavailable);
        }
        agent.restart().await;
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}
