//! Images: pulled from Debian's registry, listed, looked at and removed.

use k8s_cri::v1::{ImageFilter, ImageFsInfoRequest, ImageSpec, ListImagesRequest};
use sampan_tests::{Agent, Entry, Fault, FaultyRegistry, Layer, fixture, with_agent};
use tonic::Code;

async fn list(agent: &Agent, filter: Option<&str>) -> Vec<k8s_cri::v1::Image> {
    let filter = filter
        .map(|image| ImageFilter { image: Some(ImageSpec { image: image.into(), ..Default::default() }) });
    agent.cri().images.list_images(ListImagesRequest { filter }).await.unwrap().into_inner().images
}

#[tokio::test(flavor = "multi_thread")]
async fn oci_docker_and_zstd_images_have_one_identity_everywhere() {
    with_agent(async |agent| {
        let cri = agent.cri();
        for name in ["busybox", "nginx", "busybox-zstd"] {
            let image = fixture().image(name);
            assert!(cri.image(&image).await.unwrap().is_none(), "{name} is not there before");
            let id = cri.pull(&image).await.unwrap_or_else(|status| panic!("{name}: {status}"));
            assert_eq!(cri.pull(&image).await.unwrap(), id, "again, the same");
            let status = cri.image(&image).await.unwrap().expect("it is there");
            assert_eq!(status.id, id);
            assert!(status.size > 500_000, "{status:?}");
            assert!(status.repo_tags.contains(&image), "{status:?}");
            let repository = image.rsplit_once(':').unwrap().0;
            assert!(
                status.repo_digests.iter().any(|name| name.starts_with(&format!("{repository}@sha256:")))
            );
            for other in [id.clone(), status.repo_digests[0].clone()] {
                let found = cri.image(&other).await.unwrap();
                assert_eq!(found.map(|image| image.id), Some(id.clone()), "by {other}");
            }
            let listed = list(agent, Some(&image)).await;
            assert_eq!(listed.iter().map(|image| &image.id).collect::<Vec<_>>(), [&id]);
        }
        // The two busyboxes are one image under two names.
        assert_eq!(list(agent, None).await.len(), 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn remove_takes_every_name_and_all_content() {
    with_agent(async |agent| {
        let cri = agent.cri();
        let [plain, zstd] = ["busybox", "busybox-zstd"].map(|name| fixture().image(name));
        cri.pull(&plain).await.unwrap();
        let id = cri.pull(&zstd).await.unwrap();
        cri.remove_image(&id).await.unwrap();
        for name in [&plain, &zstd, &id] {
            assert!(cri.image(name).await.unwrap().is_none());
            cri.remove_image(name).await.expect("removing what is gone succeeds");
        }
        assert!(list(agent, None).await.is_empty());
        for directory in ["content/blobs/sha256", "snapshots/committed"] {
            let left: Vec<_> =
                std::fs::read_dir(agent.scope().root.join(directory)).into_iter().flatten().collect();
            assert!(left.is_empty(), "{left:?}");
        }
        cri.pull(&plain).await.expect("and again from the start");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_manifest_of_this_platform_is_taken_from_an_index() {
    with_agent(async |agent| {
        let layer = Layer::new(vec![Entry::File("hello".into(), b"#!/bin/true\n".to_vec())]);
        let registry = FaultyRegistry::start(Fault::None, &[layer]).await;
        let id = agent.cri().pull(&registry.image()).await.unwrap();
        let image = agent.cri().image(&id).await.unwrap().unwrap();
        assert!(image.size > 0, "the other platform's has no layers: {image:?}");
        assert_eq!(image.uid.map(|uid| uid.value), Some(0), "{image:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_pulls_at_once_fetch_each_blob_once() {
    with_agent(async |agent| {
        let layers: Vec<Layer> = (0..3u8)
            .map(|number| Layer::new(vec![Entry::File(format!("file-{number}"), vec![number; 100_000])]))
            .collect();
        let registry = FaultyRegistry::start(Fault::None, &layers).await;
        let pulls: Vec<_> = (0..10)
            .map(|_| {
                let (cri, image) = (agent.cri(), registry.image());
                tokio::spawn(async move { cri.pull(&image).await })
            })
            .collect();
        for pull in pulls {
            pull.await.unwrap().unwrap();
        }
        // One pull: ping, index, manifest, config and three layers, and a HEAD or two.
        assert!(registry.requests() <= 10, "{} requests", registry.requests());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn filesystem_usage_grows_with_images() {
    with_agent(async |agent| {
        let usage = async |agent: &Agent| {
            let answer = agent.cri().images.image_fs_info(ImageFsInfoRequest {}).await.unwrap().into_inner();
            let image = answer.image_filesystems.first().expect("of images").clone();
            assert!(!answer.container_filesystems.is_empty(), "of containers");
            assert!(image.timestamp > 0);
            let point = image.fs_id.as_ref().expect("an id").mountpoint.clone();
            assert!(std::path::Path::new(&point).is_dir(), "{point}");
            (
                image.used_bytes.map_or(0, |value| value.value),
                image.inodes_used.map_or(0, |value| value.value),
            )
        };
        let before = usage(agent).await;
        super::busybox(agent).await;
        let after = usage(agent).await;
        assert!(after.0 > before.0 + 500_000 && after.1 > before.1, "{before:?} {after:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_gives_the_image_and_the_name_stays() {
    with_agent(async |agent| {
        let settings = agent.base().join("certs.d/registry.invalid");
        std::fs::create_dir_all(&settings).unwrap();
        // No name server knows the registry: all that there is comes from the mirror.
        let hosts =
            format!("[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n", fixture().address());
        std::fs::write(settings.join("hosts.toml"), hosts).unwrap();
        let cri = agent.cri();
        let id = cri.pull("registry.invalid/busybox:latest").await.unwrap();
        let image = cri.image(&id).await.unwrap().unwrap();
        assert_eq!(image.repo_tags, ["registry.invalid/busybox:latest"]);
        assert!(image.repo_digests[0].starts_with("registry.invalid/busybox@sha256:"), "{image:?}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_the_policy_does_not_allow_is_refused_in_words_that_kubelet_knows() {
    with_agent(async |agent| {
        let policy = agent.base().join("policy.json");
        let cri = agent.cri();
        let image = fixture().image("busybox");
        let repository = image.rsplit_once(':').unwrap().0;
        let key = agent.base().join("key.pub");
        let pem = "-----BEGIN PUBLIC KEY-----\n\
            MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE36KycXxpZmLFUf3rZ76W1OiExouF\n\
            aTZcmUnUktKUO/HhN9qEdMBjiUMoqSm2tOcr7jj/cin79Uf9G7PFUHA9Ng==\n\
            -----END PUBLIC KEY-----\n";
        std::fs::write(&key, pem).unwrap();
        for (requirement, words) in [
            (serde_json::json!({"type": "sigstoreSigned", "keyPath": key}), "it is not signed"),
            (serde_json::json!({"type": "reject"}), "it rejects all of them"),
        ] {
            let text = serde_json::json!({
                "default": [{"type": "insecureAcceptAnything"}],
                "transports": {"docker": {repository: [requirement]}},
            });
            std::fs::write(&policy, text.to_string()).unwrap();
            let status = cri.pull(&image).await.unwrap_err();
            // Of any other code kubelet would see the code's name first, and not know the word.
            assert_eq!(status.code(), Code::Unknown, "{status}");
            assert!(status.message().starts_with("SignatureValidationFailed: "), "{status}");
            assert!(status.message().contains(words), "{status}");
            assert!(cri.image(&image).await.unwrap().is_none());
        }
        std::fs::remove_file(&policy).unwrap();
        cri.pull(&image).await.unwrap();
    })
    .await;
}
