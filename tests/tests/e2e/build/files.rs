//! COPY, ADD and mounts: what commands and images see of files.

use std::os::unix::fs::{PermissionsExt, symlink};

use sampan_proto::sampan::build_start;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn copies_have_the_names_owners_and_modes_that_are_asked_for() {
    with_agent(async |agent| {
        let base = fixture().image("busybox");
        let dockerfile = format!(
            "FROM {base}\nRUN echo me:x:77:78::/:/bin/sh >> /etc/passwd\nWORKDIR /w\n\
             COPY app ./app\nCOPY --chown=me:0 --chmod=u=rwX,go= app/a.txt /owned\nCOPY *.md /docs/\n\
             COPY --exclude=*.log app /filtered\nCOPY --parents app/sub/b.txt /tree/\n\
             COPY --link app/a.txt /linked/a\nCOPY <<EOF /inline\nhello $PATH\nEOF\n"
        );
        let files =
            [("app/a.txt", "a"), ("app/sub/b.txt", "b"), ("app/x.log", "l"), ("one.md", "1"), ("two.md", "2")];
        let context = context(&[&files[..], &[("Dockerfile", &dockerfile)]].concat());
        symlink("a.txt", context.path().join("app/link")).unwrap();
        fs::set_permissions(context.path().join("app/a.txt"), PermissionsExt::from_mode(0o755)).unwrap();
        let built = build(agent, &context, "copied").await;
        built.image();
        let script = "cat /w/app/a.txt /w/app/sub/b.txt; readlink /w/app/link; stat -c '%u:%g %a' /owned /w/app/a.txt; \
                      ls /docs /filtered /tree/app/sub; cat /linked/a; head -c 6 /inline";
        let seen = run(agent, "copied", &["sh", "-c", script]);
        let expected = "aba.txt\n77:0 700\n0:0 755\n/docs:\none.md\ntwo.md\n\n/filtered:\na.txt\nlink\nsub\n\n\
                        /tree/app/sub:\nb.txt\nahello ";
        assert_eq!(seen, expected);
        let nothing = context_of(&format!("FROM {base}\nCOPY nothing /\n"));
        let failed = build(agent, &nothing, "nothing").await;
        assert!(failed.error().contains("/nothing is not in the build's context"), "{}", failed.error());
        assert_eq!(failed.failure.unwrap().line, 2);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_are_unpacked_and_checksums_checked() {
    with_agent(async |agent| {
        let base = fixture().image("busybox");
        let context = context(&[]);
        let mut tar =
            tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
        let mut header = tar::Header::new_gnu();
        header.set_size(4);
        header.set_mode(0o640);
        header.set_uid(5);
        tar.append_data(&mut header, "dir/file", &b"text"[..]).unwrap();
        let archive = tar.into_inner().unwrap().finish().unwrap();
        fs::write(context.path().join("a.tgz"), &archive).unwrap();
        let (url, server) = serve(archive.clone()).await;
        let digest = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&archive));
        let dockerfile = format!(
            "FROM {base}\nADD a.tgz /unpacked/\nADD --unpack=false a.tgz /kept/\n\
             ADD --checksum=sha256:{digest} {url}/file.tgz /fetched\n"
        );
        fs::write(context.path().join("Dockerfile"), &dockerfile).unwrap();
        build(agent, &context, "added").await.image();
        let script = "stat -c '%u %a %s' /unpacked/dir/file /fetched; ls /kept";
        let size = archive.len();
        assert_eq!(run(agent, "added", &["sh", "-c", script]), format!("5 640 4\n0 600 {size}\na.tgz"));
        let wrong = dockerfile.replace(&digest, &"0".repeat(64));
        fs::write(context.path().join("Dockerfile"), wrong).unwrap();
        let failed = build(agent, &context, "wrong").await;
        assert!(failed.error().contains(&digest), "{}", failed.error());
        server.abort();
    })
    .await;
}

/// A server that has one file.
pub(super) async fn serve(body: Vec<u8>) -> (String, tokio::task::JoinHandle<()>) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(&body).await;
        }
    });
    (url, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn mounts_are_seen_and_leave_nothing_in_the_image() {
    with_agent(async |agent| {
        let base = fixture().image("busybox");
        let dockerfile = format!(
            "FROM {base} AS tools\nRUN echo tool > /tool\nFROM {base}\n\
             RUN --mount=type=bind,source=src,target=/src --mount=type=bind,from=tools,source=/tool,target=/run/tool \
                 cat /src/a /run/tool && ! touch /src/new\n\
             RUN --mount=type=cache,target=/var/cache/x echo hit >> /var/cache/x/count; wc -l < /var/cache/x/count\n\
             RUN --mount=type=tmpfs,target=/scratch,size=1m df -k /scratch | tail -1 | grep tmpfs; touch /scratch/gone\n\
             RUN --mount=type=secret,id=token,target=/run/secrets/token,mode=0400 --mount=type=secret,id=token,env=TOKEN \
                 cat /run/secrets/token; echo :$TOKEN:; stat -c %a /run/secrets/token\n\
             RUN --mount=type=bind,source=src,target=/src,rw touch /src/new && ls /src\n"
        );
        let context = context(&[("src/a", "from the context\n"), ("Dockerfile", &dockerfile)]);
        let secrets = |start: &mut BuildStart| {
            start.tags = vec!["mounted".into()];
            start.secrets.insert("token".into(), b"s3cr3t".to_vec());
        };
        let built = build_with(agent, context.path(), secrets).await;
        built.image();
        for line in ["from the context\ntool\n", "1\n", "s3cr3t:s3cr3t:\n400\n", "a\nnew\n"] {
            assert!(built.log.contains(line), "{line:?}: {}", built.log);
        }
        let script = "ls -d /src /scratch /var/cache/x /run/tool /run/secrets 2>/dev/null; echo; grep -r s3cr3t / 2>/dev/null \
                      --include=[a-z]* -l | head -1";
        assert_eq!(run(agent, "mounted", &["sh", "-c", script]), "");
        assert!(!agent.cli().ok(&["history", "--no-trunc", "mounted"]).contains("s3cr3t"));
        // The cache mount is there the next time, and its content does not count.
        let again = build_with(agent, context.path(), |start| {
            secrets(start);
            start.no_cache = true;
        })
        .await;
        again.image();
        assert!(again.log.contains("2\n"), "{}", again.log);
        let failed = context_of(&format!("FROM {base}\nRUN --mount=type=secret,id=other,required true\n"));
        let failed = super::build(agent, &failed, "secretless").await;
        assert!(failed.error().contains("--secret id=other"), "{}", failed.error());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_are_archives_and_files_and_contexts_come_as_streams() {
    with_agent(async |agent| {
        let base = fixture().image("busybox");
        let dockerfile = format!("FROM {base} AS made\nCOPY in /in\nRUN ln /in /again; ln -s in /link\nFROM scratch\nCOPY --from=made /in /again /link /\n");
        let context = context(&[("in", "content"), ("Dockerfile", &dockerfile)]);
        let files = |start: &mut BuildStart| start.output = build_start::Output::Files as i32;
        let built = build_with(agent, context.path(), files).await;
        assert_eq!(built.image(), "");
        let mut archive = tar::Archive::new(&built.output[..]);
        let mut names: Vec<String> =
            archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect();
        names.sort();
        assert_eq!(names, ["again", "in", "link"]);
        let archive = |start: &mut BuildStart| {
            start.output = build_start::Output::Archive as i32;
            start.tags = vec!["archived:1".into()];
        };
        let built = build_with(agent, context.path(), archive).await;
        let file = agent.base().join("image.tar");
        fs::write(&file, &built.output).unwrap();
        agent.cli().ok(&["rmi", "archived:1"]);
        agent.cli().ok(&["load", "-i", file.to_str().unwrap()]);
        assert_eq!(inspect(agent, "archived:1")["Id"], built.image());
        // The same context as a tar on a pipe, and a Dockerfile alone.
        let mut tar = tar::Builder::new(Vec::new());
        tar.append_dir_all(".", context.path()).unwrap();
        let stream = |start: &mut BuildStart| start.source = build_start::Source::Stream as i32;
        let mut running = sampan_tests::Running::begin(agent.channel(), context.path(), stream).await;
        running.send(&tar.into_inner().unwrap()).await;
        assert_eq!(running.serve(|_| false).await.image(), built.image());
        let mut running = sampan_tests::Running::begin(agent.channel(), context.path(), stream).await;
        running.send(format!("FROM {base}\nRUN echo piped\n").as_bytes()).await;
        let piped = running.serve(|_| false).await;
        piped.image();
        assert!(piped.log.contains("piped"));
    })
    .await;
}
