//! Bad input: a typed error that says what and where, and nothing left behind.

use std::fs;
use std::path::Path;

use sha2::{Digest, Sha256};

use sampan_tests::{Agent, Ctr, Entry, Fault, FaultyRegistry, Layer, fixture, free_port, with_agent};
use tonic::{Code, Status};

use super::busybox;

/// The kind is one of these, and the message says these words.
fn assert_says(status: &Status, codes: &[Code], words: &[&str]) {
    assert!(codes.contains(&status.code()), "{status}");
    for word in words {
        assert!(status.message().contains(word), "{word:?} is not in: {status}");
    }
}

/// Blobs, layers and image records in the store.
fn content(agent: &Agent) -> Vec<String> {
    ["content/blobs/sha256", "snapshots/committed", "metadata/images"]
        .iter()
        .flat_map(|directory| {
            fs::read_dir(agent.scope().root.join(directory)).into_iter().flatten().flatten()
        })
        .map(|entry| entry.path().display().to_string())
        .collect()
}

fn layers() -> Vec<Layer> {
    vec![
        Layer::new(vec![Entry::File("first".into(), vec![1; 300_000])]),
        Layer::new((0..50).map(|number| Entry::File(format!("f{number}"), rand_bytes(10_000))).collect()),
    ]
}

/// What does not compress, so that half a blob is half of something.
fn rand_bytes(length: usize) -> Vec<u8> {
    (0..length).map(|_| rand::random()).collect()
}

/// A pull that must fail; afterwards the store is as it was, but for whole blobs, which a retry need not fetch again.
async fn refused_pull(agent: &Agent, image: &str) -> Status {
    let before = content(agent);
    let status = agent.cri().pull(image).await.expect_err("a pull of bad content");
    assert!(agent.cri().image(image).await.ok().flatten().is_none());
    let left = content(agent).into_iter().filter(|path| !before.contains(path) && !is_whole_blob(path));
    let left: Vec<_> = left.collect();
    assert!(left.is_empty(), "{status}\nleft {left:?}");
    status
}

/// Whether a file has the name of its content.
fn is_whole_blob(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    fs::read(path).is_ok_and(|bytes| hex::encode(Sha256::digest(bytes)) == name)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_image() {
    with_agent(async |agent| {
        let image = format!("{}/no/such/image:1", fixture().address());
        assert_says(&refused_pull(agent, &image).await, &[Code::NotFound], &[&image]);
        let image = format!("{}/busybox:no-such-tag", fixture().address());
        assert_says(&refused_pull(agent, &image).await, &[Code::NotFound], &[&image]);
        let pod = agent.pod("p");
        let pod_id = agent.cri().run_pod(&pod).await.unwrap();
        let status = agent.cri().create(&pod_id, &Ctr::new("c", &image, &pod), &pod).await.unwrap_err();
        assert_says(&status, &[Code::NotFound], &["no-such-tag"]);
        agent.cri().clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_malformed_reference() {
    with_agent(async |agent| {
        for image in ["docker.io/UPPER", "a b", "x@sha256:123", ""] {
            assert_says(&refused_pull(agent, image).await, &[Code::InvalidArgument], &[image]);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_is_down() {
    with_agent(async |agent| {
        let address = format!("127.0.0.1:{}", free_port());
        let status = refused_pull(agent, &format!("{address}/x:1")).await;
        // kubelet knows this word and says it to the user, if it comes first: it puts the name of every other code
        // in front of the text.
        assert_says(&status, &[Code::Unknown], &[&address, "RegistryUnavailable"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_is_not_what_its_digest_says() {
    with_agent(async |agent| {
        let registry = FaultyRegistry::start(Fault::WrongDigest, &layers()).await;
        let status = refused_pull(agent, &registry.image()).await;
        assert_says(&status, &[Code::DataLoss], &[registry.last_layer(), &registry.image()]);
        let registry = FaultyRegistry::start(Fault::WrongManifest, &layers()).await;
        assert_says(&refused_pull(agent, &registry.image()).await, &[Code::DataLoss], &[&registry.image()]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_layer() {
    with_agent(async |agent| {
        for fault in [Fault::Truncated, Fault::ShorterThanDescribed] {
            let registry = FaultyRegistry::start(fault, &layers()).await;
            let status = refused_pull(agent, &registry.image()).await;
            assert_says(
                &status,
                &[Code::DataLoss, Code::Unknown],
                &[registry.last_layer(), &registry.image()],
            );
            assert!(registry.requests() < 50, "it gives up after a few tries: {}", registry.requests());
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_answers_with_errors() {
    with_agent(async |agent| {
        for (code, expected, word) in [
            (500, Code::Unknown, "500"),
            (403, Code::Unauthenticated, "refuses"),
            (404, Code::NotFound, "has no"),
        ] {
            let registry = FaultyRegistry::start(Fault::Status(code), &layers()).await;
            let status = refused_pull(agent, &registry.image()).await;
            let codes = [expected, Code::PermissionDenied];
            assert_says(&status, &codes, &[registry.last_layer(), word]);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_reach_outside() {
    with_agent(async |agent| {
        let outside = agent.base().join("outside");
        fs::create_dir(&outside).unwrap();
        let target = outside.display().to_string();
        let file = |path: &str| Entry::File(path.into(), b"owned".to_vec());
        let climb = format!("{}{}/file", "../".repeat(12), target.trim_start_matches('/'));
        let hostile: Vec<(&str, Vec<Entry>)> = vec![
            ("..", vec![file(&climb)]),
            ("sub/..", vec![Entry::Directory("sub".into()), file(&format!("sub/../{climb}"))]),
            ("link", vec![Entry::Symlink("link".into(), target.clone()), file("link/file")]),
            (
                "up",
                vec![Entry::Symlink("up".into(), format!("{}{target}", "../".repeat(12))), file("up/file")],
            ),
            ("etc/passwd", vec![Entry::Hardlink("hard".into(), "../../../../../../etc/passwd".into())]),
        ];
        for (name, entries) in hostile {
            let registry = FaultyRegistry::start(Fault::None, &[Layer::new(entries)]).await;
            let status = refused_pull(agent, &registry.image()).await;
            assert_says(&status, &[Code::InvalidArgument, Code::DataLoss], &[name, registry.last_layer()]);
            assert!(fs::read_dir(&outside).unwrap().next().is_none(), "{name} wrote outside");
        }
        let escaped: Vec<_> =
            ["file", "outside"].iter().filter(|name| agent.scope().root.join(name).exists()).collect();
        assert!(escaped.is_empty(), "{escaped:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_stays_inside_is_followed() {
    with_agent(async |agent| {
        // What every distribution with a merged /usr does.
        let layers = [
            Layer::new(vec![
                Entry::Directory("usr".into()),
                Entry::Directory("usr/bin".into()),
                Entry::Symlink("bin".into(), "usr/bin".into()),
            ]),
            Layer::new(vec![Entry::File("bin/tool".into(), b"#!/bin/sh\n".to_vec())]),
        ];
        let registry = FaultyRegistry::start(Fault::None, &layers).await;
        agent.cri().pull(&registry.image()).await.expect("an ordinary image");
    })
    .await;
}

/// Starting this container must fail, and the pod must still be good for another.
async fn refused_start(agent: &Agent, change: impl FnOnce(Ctr) -> Ctr) -> Status {
    let image = busybox(agent).await;
    let (cri, pod) = (agent.cri(), agent.pod("bad"));
    let pod_id = cri.run_pod(&pod).await.unwrap();
    let clean = agent.snapshot();
    let config = change(Ctr::new("bad", &image, &pod));
    let status = match cri.create(&pod_id, &config, &pod).await {
        Err(status) => {
            // Nothing was created, so nothing is left to clean up.
            agent.assert_clean(&clean);
            status
        }
        Ok(id) => {
            let status = cri.start(&id).await.expect_err("a start that cannot work");
            assert_eq!(
                cri.container(&id).await.unwrap().state(),
                k8s_cri::v1::ContainerState::ContainerExited
            );
            cri.remove(&id).await.unwrap();
            status
        }
    };
    let good =
        cri.run(&pod_id, &Ctr::sleeper("good", &image, &pod), &pod).await.expect("the pod is still good");
    cri.stop(&good, 0).await.unwrap();
    cri.clear_pod(&pod_id).await.unwrap();
    status
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entrypoint_that_does_not_exist() {
    with_agent(async |agent| {
        let status = refused_start(agent, |config| config.command(&["/no/such/program"])).await;
        let codes = [Code::NotFound, Code::InvalidArgument, Code::FailedPrecondition];
        assert_says(&status, &codes, &["/no/such/program", "No such file"]);
        let status = refused_start(agent, |config| config.command(&["/etc/passwd"])).await;
        assert_says(&status, &codes, &["/etc/passwd", "ermission denied"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_code_of_a_missing_entrypoint_is_a_shells() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("bad"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        for (program, code) in [("/no/such/program", 127), ("/etc/passwd", 126)] {
            let config = Ctr::new(&format!("c{code}"), &image, &pod).command(&[program]);
            let id = cri.create(&pod_id, &config, &pod).await.unwrap();
            cri.start(&id).await.unwrap_err();
            assert_eq!(cri.ended(&id).await.exit_code, code);
        }
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mount_source_that_does_not_exist() {
    with_agent(async |agent| {
        let status =
            refused_start(agent, |config| config.mount(Path::new("/no/such/source"), "/data", true)).await;
        assert_says(
            &status,
            &[Code::NotFound, Code::InvalidArgument, Code::FailedPrecondition],
            &["/no/such/source"],
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_that_is_not_in_the_image() {
    with_agent(async |agent| {
        let status = refused_start(agent, |config| {
            config.security(|context| context.run_as_username = "stranger".into())
        })
        .await;
        assert_says(
            &status,
            &[Code::NotFound, Code::InvalidArgument, Code::FailedPrecondition],
            &["stranger"],
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_in_use() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("taken"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        cri.run(&pod_id, &Ctr::sleeper("taken", &image, &pod), &pod).await.unwrap();
        // Another configuration under the same name: a retry would have sent the same one.
        let other = Ctr::sleeper("taken", &image, &pod).env("OTHER", "1");
        let status = cri.create(&pod_id, &other, &pod).await.unwrap_err();
        assert_says(&status, &[Code::AlreadyExists], &["taken"]);
        let mut other = pod.clone();
        other.config.labels.insert("other".into(), "1".into());
        let status = cri.run_pod(&other).await.unwrap_err();
        let name = &pod.config.metadata.as_ref().unwrap().name;
        assert_says(&status, &[Code::AlreadyExists], &[name]);
        assert_eq!(cri.containers().await.unwrap().len(), 1);
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_make_no_sense() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let cri = agent.cri();
        let mut nameless = agent.pod("x");
        nameless.config.metadata = None;
        assert_says(&cri.run_pod(&nameless).await.unwrap_err(), &[Code::InvalidArgument], &["metadata"]);
        let request = k8s_cri::v1::RunPodSandboxRequest {
            config: Some(agent.pod("x").config),
            runtime_handler: "no-such-handler".into(),
        };
        let status = cri.runtime.clone().run_pod_sandbox(request).await.unwrap_err();
        assert_says(&status, &[Code::InvalidArgument, Code::NotFound], &["no-such-handler"]);
        let status = cri.run_pod(&agent.pod("x").sysctl("kernel.panic", "1")).await.unwrap_err();
        assert_says(&status, &[Code::InvalidArgument], &["kernel.panic"]);
        let pod = agent.pod("x");
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let mut config = Ctr::new("c", &image, &pod);
        config.config.metadata = None;
        assert_says(
            &cri.create(&pod_id, &config, &pod).await.unwrap_err(),
            &[Code::InvalidArgument],
            &["metadata"],
        );
        let config = Ctr::new("c", &image, &pod).security(|context| {
            context.run_as_group = Some(k8s_cri::v1::Int64Value { value: 5 });
        });
        assert_says(
            &cri.create(&pod_id, &config, &pod).await.unwrap_err(),
            &[Code::InvalidArgument],
            &["group"],
        );
        let status = cri.create("no-such-pod", &Ctr::new("c", &image, &pod), &pod).await.unwrap_err();
        assert_says(&status, &[Code::NotFound], &["no-such-pod"]);
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_published_port_that_is_taken() {
    with_agent(async |agent| {
        let cri = agent.cri();
        let port = free_port();
        let first = cri.run_pod(&agent.pod("one").port(port, 80)).await.unwrap();
        let status = cri.run_pod(&agent.pod("two").port(port, 81)).await.unwrap_err();
        let codes = [Code::AlreadyExists, Code::FailedPrecondition, Code::Unavailable];
        assert_says(&status, &codes, &[&port.to_string()]);
        assert_eq!(cri.pods().await.unwrap().len(), 1);
        cri.clear_pod(&first).await.unwrap();
        let again = cri.run_pod(&agent.pod("two").port(port, 81)).await.expect("free again");
        cri.clear_pod(&again).await.unwrap();
    })
    .await;
}
