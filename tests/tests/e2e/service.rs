//! What an orchestrator asks before it runs anything.

use k8s_cri::v1::{StatusRequest, VersionRequest};
use sampan_tests::with_agent;
use tokio_stream::StreamExt;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

#[tokio::test(flavor = "multi_thread")]
async fn version_is_what_kubelet_accepts() {
    with_agent(async |agent| {
        let request = VersionRequest { version: "0.1.0".into() };
        let answer = agent.cri().runtime.version(request).await.unwrap().into_inner();
        assert_eq!(answer.version, "0.1.0");
        assert_eq!(answer.runtime_name, "sampan");
        assert_eq!(answer.runtime_api_version, "1.0.0");
        let numbers = answer.runtime_version.split(['-', '+']).next().unwrap().split('.');
        assert_eq!(numbers.filter_map(|number| number.parse::<u32>().ok()).count(), 3, "{answer:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_is_ready_for_every_handler() {
    with_agent(async |agent| {
        let mut runtime = agent.cri().runtime;
        let answer = runtime.status(StatusRequest { verbose: false }).await.unwrap().into_inner();
        let conditions = answer.status.clone().expect("a status").conditions;
        for kind in ["RuntimeReady", "NetworkReady"] {
            let condition = conditions.iter().find(|condition| condition.r#type == kind);
            assert!(condition.is_some_and(|condition| condition.status), "{conditions:?}");
        }
        assert!(answer.runtime_handlers.iter().any(|handler| handler.name.is_empty()), "{answer:?}");
        assert!(answer.info.is_empty(), "only when verbose: {answer:?}");
        let verbose = runtime.status(StatusRequest { verbose: true }).await.unwrap().into_inner();
        assert!(!verbose.info.is_empty());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reflection_lists_every_service() {
    with_agent(async |agent| {
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::ListServices(String::new())),
        };
        let mut client = ServerReflectionClient::new(agent.channel());
        let mut answers = client
            .server_reflection_info(tokio_stream::once(request))
            .await
            .expect("reflection")
            .into_inner();
        let answer: ServerReflectionResponse = answers.next().await.expect("an answer").expect("no error");
        let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
            panic!("{answer:?}");
        };
        let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
        for name in [
            "runtime.v1.RuntimeService",
            "runtime.v1.ImageService",
            "sampan.v1.ContainerService",
            "sampan.v1.ImageService",
            "sampan.v1.MetricsService",
            "sampan.v1.SystemService",
            "grpc.health.v1.Health",
        ] {
            assert!(names.contains(&name), "{name} is not in {names:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_agents_live_side_by_side() {
    with_agent(async |one| {
        with_agent(async |two| {
            let image = super::busybox(one).await;
            assert!(two.cri().image(&image).await.unwrap().is_none(), "their stores are their own");
            let (pod_of_one, pod_of_two) = (one.pod("same"), two.pod("same"));
            let first = one.cri().run_pod(&pod_of_one).await.unwrap();
            let second = two.cri().run_pod(&pod_of_two).await.unwrap();
            let [a, b] = [one.cri().pod(&first).await.unwrap(), two.cri().pod(&second).await.unwrap()];
            assert_ne!(a.network.unwrap().ip, b.network.unwrap().ip);
            assert_eq!(one.cri().pods().await.unwrap().len(), 1);
            one.cri().clear_pod(&first).await.unwrap();
            two.cri().clear_pod(&second).await.unwrap();
        })
        .await;
    })
    .await;
}
