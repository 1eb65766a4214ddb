//! Builds that mean harm, and builds that are wrong: clean errors or confined success, and nothing left behind.

use std::os::unix::fs::symlink;

use sampan_proto::sampan::PruneBuildCacheRequest;
use sampan_proto::sampan::build_service_client::BuildServiceClient;

use super::*;

/// A directory of the host that no build may reach; its path is known to the build.
fn canary(agent: &Agent) -> std::path::PathBuf {
    let path = agent.base().join("canary");
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("file"), "alive").unwrap();
    path
}

fn is_well(canary: &Path) {
    assert_eq!(fs::read_to_string(canary.join("file")).unwrap(), "alive");
    assert_eq!(fs::read_dir(canary).unwrap().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn working_directories_and_descriptors_lead_nowhere() {
    with_agent(async |agent| {
        let base = fixture().image("busybox");
        for number in [3, 7, 8, 12] {
            let dockerfile = format!(
                "FROM {base}\nWORKDIR /proc/self/fd/{number}\nRUN cat ../../../etc/hostname; ls -la; pwd\n"
            );
            let built = build(agent, &context_of(&dockerfile), "leak").await;
            assert!(built.failure.is_some() || !built.log.contains("sampand"), "{}", built.log);
        }
        let dockerfile =
            format!("FROM {base}\nRUN ls /proc/self/fd; ls -l /proc/1/fd | grep -v -E 'pipe|null' | wc -l\n");
        let built = build(agent, &context_of(&dockerfile), "descriptors").await;
        built.image();
        assert!(built.log.starts_with("0\n1\n2\n3\n"), "{}", built.log);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_do_not_reach_the_host_nor_remove_its_files() {
    with_agent(async |agent| {
        let (base, canary) = (fixture().image("busybox"), canary(agent));
        let host = canary.display();
        // Targets and sources that lead through links of the image's own (CVE-2024-23652, CVE-2024-9675, CVE-2024-1753).
        let dockerfile = format!(
            "FROM {base} AS evil\nRUN mkdir -p /x && ln -s {host} /x/out && ln -s / /x/root && ln -s ../../../../../.. /x/up\n\
             FROM evil AS target\nRUN --mount=type=cache,target=/x/out/cache touch /x/out/cache/in; true\n\
             RUN --mount=type=tmpfs,target=/x/out true\n\
             FROM {base}\nRUN --mount=type=bind,from=evil,source=/x/root,target=/m ls /m{host} 2>&1; cat /m/etc/hostname; true\n\
             RUN --mount=type=cache,target=/c,from=evil,source=/x/up ls /c{host} 2>&1; true\n\
             COPY --from=target /x /x\n"
        );
        let built = build(agent, &context_of(&dockerfile), "confined").await;
        assert!(!built.log.contains("alive"), "{}", built.log);
        is_well(&canary);
        let mut client = BuildServiceClient::new(agent.channel());
        client.prune_build_cache(PruneBuildCacheRequest::default()).await.unwrap();
        for source in ["/x/out/file", "/x/out"] {
            let dockerfile = format!(
                "FROM {base} AS evil\nRUN mkdir -p /x && ln -s {host} /x/out\n\
                 FROM {base}\nRUN --mount=type=bind,from=evil,source={source},target=/m cat /m /m/file\n"
            );
            let built = build(agent, &context_of(&dockerfile), "denied").await;
            assert!(built.error().contains("is not in stage"), "{}", built.error());
        }
        is_well(&canary);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_follow_no_link_out() {
    with_agent(async |agent| {
        let (base, canary) = (fixture().image("busybox"), canary(agent));
        let dockerfile = format!(
            "FROM {base}\nRUN ln -s {} /out && ln -s /../../../../../.. /up\nCOPY file /out/file\nCOPY file /up/tmp/file\n\
             RUN cat {}/file /tmp/file\n",
            canary.display(),
            canary.display()
        );
        let context = context(&[("file", "mine"), ("Dockerfile", &dockerfile)]);
        symlink(canary.join("file"), context.path().join("escape")).unwrap();
        let built = build(agent, &context, "copies").await;
        built.image();
        assert!(built.log.contains("minemine"), "the links are the image's own: {}", built.log);
        is_well(&canary);
        fs::write(context.path().join("Dockerfile"), format!("FROM {base}\nCOPY escape /x\n")).unwrap();
        let failed = build(agent, &context, "escape").await;
        assert!(failed.error().contains("escape is not in the build's context"), "{}", failed.error());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_frontends_and_privileges_are_refused() {
    with_agent(async |agent| {
        let base = fixture().image("busybox");
        for (dockerfile, expected) in [
            (format!("# syntax=evil.example/frontend\nFROM {base}\n"), "evil.example/frontend"),
            (format!("FROM {base}\nRUN --security=insecure true\n"), "insecure"),
            (format!("FROM {base}\nRUNN true\n"), "RUN"),
            (format!("FROM {base}\nCOPY --from=missing /a /b\n"), "missing"),
            ("FROM sampan.invalid/nothing:1\n".to_owned(), "sampan.invalid/nothing"),
            (format!("FROM --platform=linux/s390x {base}\nRUN true\n"), "s390x"),
            (format!("FROM {base}\nADD https://github.com/a/b.git /x\n"), "git"),
        ] {
            let built = build(agent, &context_of(&dockerfile), "refused").await;
            assert!(built.error().contains(expected), "{expected}: {}", built.error());
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn contexts_that_are_not_plain_are_refused() {
    use sampan_proto::sampan::build_request::Part;
    use sampan_proto::sampan::{BuildRequest, ContextEnd, ContextEntries, ContextEntry, build_start};
    with_agent(async |agent| {
        let file = |path: &str| ContextEntry { path: path.into(), mode: 0o100_644, ..Default::default() };
        let attribute = [("trusted.overlay.opaque".to_owned(), b"y".to_vec())].into();
        for entries in [
            vec![file("../x")],
            vec![file("/etc/passwd")],
            vec![file("a//b")],
            vec![file("a/b")],
            vec![file("a"), file("a/b")],
            vec![file("a"), file("a")],
            vec![file("")],
            vec![ContextEntry { xattrs: attribute, ..file("a") }],
            vec![ContextEntry { mode: 0o120_777, ..file("a") }],
            vec![ContextEntry { mode: 0o140_777, ..file("a") }],
        ] {
            let start = BuildStart {
                source: build_start::Source::Entries as i32,
                dockerfile: b"FROM scratch\nCOPY . /\n".to_vec(),
                ..Default::default()
            };
            let parts = [
                Part::Start(start),
                Part::Entries(ContextEntries { entries: entries.clone() }),
                Part::ContextEnd(ContextEnd {}),
            ];
            let messages = tokio_stream::iter(parts.map(|part| BuildRequest { part: Some(part) }));
            let mut answers =
                BuildServiceClient::new(agent.channel()).build(messages).await.unwrap().into_inner();
            let status = loop {
                match answers.message().await {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("{entries:?} were taken"),
                    Err(status) => break status,
                }
            };
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{entries:?}: {status}");
        }
    })
    .await;
}
