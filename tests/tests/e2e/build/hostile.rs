//! Builds that mean harm, and builds that are wrong: clean errors or confined success, and nothing left behind.

use std::os::unix::fs::symlink;

use sampan_proto::sampan::PruneBuildCacheRequest;
use sampan_proto::sampan::build_service_client::BuildServiceClient;
use sampan_tests::{Disk, Options, with_agent_of};

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

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_outgrows_the_disk_fails_cleanly_and_the_next_one_goes_well() {
    let disk = Disk::new(48);
    let options = Options { root: Some(disk.path()), ..Options::default() };
    with_agent_of(options, async |agent| {
        let base = fixture().image("busybox");
        let small = context_of(&format!("FROM {base}\nRUN echo small > /small\n"));
        build(agent, &small, "small").await.image();
        let clean = agent.snapshot();
        let free = disk.free();
        // A command, a file of the context, an archive that swells.
        let filling = context_of(&format!("FROM {base}\nRUN dd if=/dev/zero of=/big bs=1M count=200\n"));
        let failed = build(agent, &filling, "filling").await;
        assert!(failed.error().contains("No space left"), "{}", failed.error());
        assert!(failed.failure.unwrap().exit_code != 0);
        let large = context_of(&format!("FROM {base}\nCOPY large /large\n"));
        fs::write(large.path().join("large"), vec![1; 200 << 20]).unwrap();
        let folder = large.path().to_str().unwrap();
        let failed = agent.cli().run(&["build", folder]);
        assert!(failed.code == 1 && failed.stderr.contains("No space left"), "{}", failed.stderr);
        let bomb = context_of(&format!("FROM {base}\nADD bomb.tgz /bomb/\n"));
        let file = fs::File::create(bomb.path().join("bomb.tgz")).unwrap();
        let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(file, flate2::Compression::fast()));
        let mut header = tar::Header::new_gnu();
        header.set_size(200 << 20);
        header.set_mode(0o644);
        tar.append_data(&mut header, "zeros", std::io::Read::take(std::io::repeat(0), 200 << 20)).unwrap();
        tar.into_inner().unwrap().finish().unwrap();
        let failed = build(agent, &bomb, "bomb").await;
        assert_eq!(
            failed.status.as_ref().unwrap().code(),
            tonic::Code::ResourceExhausted,
            "{:?}",
            failed.status
        );
        agent.assert_clean(&clean);
        agent.cli().ok(&["builder", "prune", "-f", "--kind", "context"]);
        assert!(disk.free() + (1 << 20) > free, "{} of {free} bytes are free again", disk.free());
        build(agent, &context_of(&format!("FROM {base}\nRUN echo again > /again\n")), "again").await.image();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn holes_take_no_room_and_have_a_bound() {
    let disk = Disk::new(48);
    let options = Options { root: Some(disk.path()), ..Options::default() };
    with_agent_of(options, async |agent| {
        let hole = |name: &str, size: u64| {
            let context = context(&[("Dockerfile", "FROM scratch\nCOPY hole /hole\n")]);
            fs::File::create(context.path().join("hole")).unwrap().set_len(size).unwrap();
            let archive = agent.base().join(name);
            let packed =
                ["-S", "-cf", archive.to_str().unwrap(), "-C", context.path().to_str().unwrap(), "."];
            super::super::archive::tool("tar", &packed);
            (context, archive)
        };
        let piped = |archive: &Path, tag: &str| {
            let mut command = std::process::Command::new(sampan_tests::binary("sampan"));
            command.arg("--socket").arg(agent.socket()).args(["build", "-t", tag, "-"]);
            command.stdin(fs::File::open(archive).unwrap()).output().unwrap()
        };
        let (context, archive) = hole("some.tar", 500 << 20);
        assert!(piped(&archive, "piped").status.success());
        agent.cli().ok(&["build", "-q", "-t", "folder", context.path().to_str().unwrap()]);
        // Far more than the disk has, in an archive of a few kilobytes.
        let (_, archive) = hole("more.tar", 300 << 30);
        let refused = piped(&archive, "more");
        let told = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(1) && told.contains("swells beyond reason"), "{told}");
        // One that is unpacked is never read through.
        let adding = context_of("FROM scratch\nADD more.tar /\n");
        fs::copy(&archive, adding.path().join("more.tar")).unwrap();
        build(agent, &adding, "adding").await.image();
        let free = disk.free();
        assert!(free > 20 << 20, "{free} bytes are free");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn special_files_of_a_context_are_copied_and_not_read() {
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
    with_agent(async |agent| {
        let base = fixture().image("busybox");
        let context =
            context_of(&format!("FROM {base}\nCOPY . /in\nRUN stat -c '%F %t,%T' /in/zero /in/pipe\n"));
        mknodat(
            CWD,
            context.path().join("zero"),
            FileType::CharacterDevice,
            Mode::from(0o666),
            makedev(1, 5),
        )
        .unwrap();
        mknodat(CWD, context.path().join("pipe"), FileType::Fifo, Mode::from(0o666), 0).unwrap();
        std::os::unix::net::UnixListener::bind(context.path().join("socket")).unwrap();
        let output = agent.cli().run(&["build", "--progress", "plain", context.path().to_str().unwrap()]);
        assert!(
            output.code == 0 && output.stderr.contains("character special file 1,5"),
            "{}",
            output.stderr
        );
        assert!(output.stderr.contains("fifo 0,0"), "{}", output.stderr);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_in_the_middle_of_its_context_leaves_nothing() {
    use sampan_proto::sampan::build_request::Part;
    use sampan_proto::sampan::{BuildRequest, build_start};
    with_agent(async |agent| {
        let start = BuildStart { source: build_start::Source::Stream as i32, ..Default::default() };
        let parts = [Part::Start(start), Part::Data(vec![7; 100_000])];
        let messages = tokio_stream::iter(parts.map(|part| BuildRequest { part: Some(part) }));
        let mut answers =
            BuildServiceClient::new(agent.channel()).build(messages).await.unwrap().into_inner();
        while let Ok(Some(_)) = answers.message().await {}
        let left = || fs::read_dir(agent.scope().root.join("build/tmp")).unwrap().count();
        assert!(sampan_tests::eventually_sync(super::super::SOON, || left() == 0));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_killed_in_a_build_leaves_nothing_to_the_next() {
    with_agent(async |agent| {
        let base = fixture().image("busybox");
        let context = context_of(&format!(
            "FROM {base}\nRUN echo first > /first\nRUN --mount=type=cache,target=/c echo begun; touch /c/x; sleep 1000\n"
        ));
        let mut running = sampan_tests::Running::begin(agent.channel(), context.path(), |_| {}).await;
        running.serve(|build| build.log.contains("begun")).await;
        agent.kill();
        drop(running);
        agent.restart().await;
        let empty = |path: std::path::PathBuf| fs::read_dir(path).map_or(0, Iterator::count) == 0;
        let (root, state) = (agent.scope().root.clone(), agent.scope().state.clone());
        let gone = || empty(state.join("pods")) && empty(root.join("snapshots/active")) && empty(root.join("build/output"));
        assert!(sampan_tests::eventually_sync(super::super::SOON, gone), "{}", agent.log());
        let builds = agent.cli().json(&["builder", "history"]);
        assert!(builds[0]["status"] == "Error" && builds[0]["error"].as_str().unwrap().contains("agent ended"), "{builds}");
        // What was done before is done, and the cache mount is nobody's.
        fs::write(
            context.path().join("Dockerfile"),
            format!("FROM {base}\nRUN echo first > /first\nRUN --mount=type=cache,target=/c,sharing=locked ls /c > /seen\n"),
        )
        .unwrap();
        let built = build(agent, &context, "after").await;
        assert_eq!(built.titles(State::Cached), ["RUN echo first > /first"]);
        assert_eq!(run(agent, "after", &["cat", "/seen"]), "x");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_in_a_directory_that_others_swap_stay_in_their_container() {
    with_agent(async |agent| {
        let (base, canary) = (fixture().image("busybox"), canary(agent));
        let host = canary.display();
        // One step swaps a directory of a shared cache mount for links, others have mounts made in it meanwhile.
        let swapper = context_of(&format!(
            "FROM {base}\nRUN --mount=type=cache,id=r,target=/c echo begun; while [ ! -e /c/stop ]; do \
             mkdir /c/d 2>/dev/null; ln -sfn {host} /c/d/l 2>/dev/null; rm -rf /c/d; ln -s {host} /c/d; rm -f /c/d; ln -s / /c/d; rm -f /c/d; done\n"
        ));
        let mut swapping = sampan_tests::Running::begin(agent.channel(), swapper.path(), |_| {}).await;
        swapping.serve(|build| build.log.contains("begun")).await;
        for number in 0..12 {
            let dockerfile = format!(
                "FROM {base} AS source\nRUN mkdir /given && echo {number} > /given/file\nFROM {base}\n\
                 RUN --mount=type=cache,id=r,target=/c --mount=type=bind,from=source,source=/given,target=/c/d/m,rw \
                     --mount=type=tmpfs,target=/c/d/t echo {number} > /c/d/m/new; touch /c/d/t/x /c/d/l/y; true\n"
            );
            // Whether the mount can be made is luck; where it is made is not.
            let built = build(agent, &context_of(&dockerfile), "raced").await;
            assert!(built.failure.is_none() || built.error().len() > 5, "{:?}", built.status);
            is_well(&canary);
        }
        let stop = context_of(&format!("FROM {base}\nRUN --mount=type=cache,id=r,target=/c touch /c/stop\n"));
        build(agent, &stop, "stop").await.image();
        swapping.serve(|_| false).await;
        is_well(&canary);
        // A copy of a tree while a stage that stands on it runs, with a program of the image where a decompressor would be.
        let tar = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        let context = context(&[("Dockerfile", &format!(
            "FROM {base} AS evil\nRUN for name in gzip gunzip unpigz xz unxz bzip2 zstd tar; do \
             printf '#!/bin/sh\\ntouch {host}/ran\\n' > /bin/$name; chmod 755 /bin/$name; done; true\n\
             FROM evil\nADD a.tgz /a/\nRUN ls /a\n"
        ))]);
        let mut tar = tar::Builder::new(tar);
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        tar.append_data(&mut header, "unpacked", &b"x"[..]).unwrap();
        fs::write(context.path().join("a.tgz"), tar.into_inner().unwrap().finish().unwrap()).unwrap();
        assert!(build(agent, &context, "added").await.log.contains("unpacked"));
        is_well(&canary);
    })
    .await;
}
