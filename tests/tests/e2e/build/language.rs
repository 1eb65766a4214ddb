//! What the language says, seen in what was built: documents, shells, triggers, configurations, owners, cache mounts.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn documents_are_scripts_programs_and_files() {
    with_agent(async |agent| {
        let base = fixture().image("busybox");
        let dockerfile = format!(
            "FROM {base}\nARG WHO=me\n\
             RUN <<EOF\nset -e\necho one $WHO > /one\nfalse || echo two >> /one\nEOF\n\
             RUN <<SCRIPT\n#!/bin/sh\necho script $0 > /script\nSCRIPT\n\
             RUN cat <<A > /both && cat <<B >> /both\nfirst\nA\nsecond\nB\n\
             COPY <<-\"X\" <<Y /files/\n\t$WHO as it is\nX\n$WHO put in\nY\n"
        );
        let started = now();
        build(agent, &context_of(&dockerfile), "documents").await.image();
        let seen = run(
            agent,
            "documents",
            &[
                "sh",
                "-c",
                "cat /one /both /files/X /files/Y; grep -c pipes /script; ls /dev/pipes 2>&1 | wc -l",
            ],
        );
        assert_eq!(seen, "one me\ntwo\nfirst\nsecond\n$WHO as it is\nme put in\n1\n1");
        // Files and directories that come out of nothing are of this very time.
        let times = run(agent, "documents", &["stat", "-c", "%Y", "/files", "/files/X", "/files/Y"]);
        for time in times.lines() {
            let time: u64 = time.parse().unwrap();
            assert!(time + 2 >= started && time <= now() + 2, "{times}");
        }
    })
    .await;
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_are_not_joined_and_places_of_mounts_do_not_count() {
    with_agent(async |agent| {
        let base = fixture().image("busybox");
        let two = context_of(&format!(
            "FROM {base}\nRUN [\"sh\", \"-c\", \"echo $# > /count\", \"x\", \"a\", \"b\"]\n"
        ));
        let one = context_of(&format!(
            "FROM {base}\nRUN [\"sh\", \"-c\", \"echo $# > /count\", \"x\", \"a\\nb\"]\n"
        ));
        build(agent, &two, "two").await.image();
        let built = build(agent, &one, "one").await;
        assert_eq!(built.titles(State::Cached), [""; 0], "another command is another step");
        assert_eq!(
            (run(agent, "two", &["cat", "/count"]), run(agent, "one", &["cat", "/count"])),
            ("2".into(), "1".into())
        );
        // The number of a stage and its name are not the files that it gives.
        let mounting = |before: &str, name: &str| {
            context_of(&format!(
                "FROM {base} AS other\n{before}FROM {base} AS {name}\nRUN echo same > /given\n\
                 FROM {base}\nRUN --mount=type=bind,from={name},source=/given,target=/g cat /g > /taken\n"
            ))
        };
        let first = build(agent, &mounting("", "giver"), "first").await;
        let second = build(agent, &mounting("FROM other AS further\nRUN true\n", "donor"), "second").await;
        assert_eq!(first.image(), second.image());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn triggers_of_a_real_base_run_and_are_gone() {
    with_agent(async |agent| {
        let base = fixture().image("busybox");
        let parent = context_of(&format!(
            "FROM {base}\nARG NAME=parent\nONBUILD ARG NAME=child\nONBUILD COPY file /from/\nONBUILD RUN echo $NAME > /from/name\n\
             ONBUILD ENV A=$NAME\n"
        ));
        build(agent, &parent, "sampan.test/parent:1").await.image();
        assert_eq!(inspect(agent, "sampan.test/parent:1")["Config"]["OnBuild"].as_array().unwrap().len(), 4);
        let child = context(&[("file", "content"), ("Dockerfile", "FROM sampan.test/parent:1\nRUN cat /from/file > /own\n")]);
        build(agent, &child, "child").await.image();
        assert_eq!(run(agent, "child", &["sh", "-c", "cat /own /from/name; echo $A"]), "contentchild\nchild");
        let config = &inspect(agent, "child")["Config"];
        assert!(config.get("OnBuild").is_none_or(|triggers| triggers.as_array().is_none_or(Vec::is_empty)), "{config}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_configuration_is_what_other_tools_read() {
    with_agent(async |agent| {
        let base = fixture().image("busybox");
        let dockerfile = format!(
            "FROM {base}\nSHELL [\"/bin/ash\", \"-eu\", \"-c\"]\nRUN echo \"$0 $-\" > /shell; ! (echo $UNSET)\n\
             HEALTHCHECK --interval=90s --timeout=3s --start-period=1m --retries=2 CMD wget -q localhost || exit 1\n\
             VOLUME /data [\"/more\"]\nVOLUME [\"/json\"]\nEXPOSE 80 53/udp\nLABEL a=b \"c d\"='e f'\nSTOPSIGNAL SIGQUIT\n\
             USER app:extra\nENTRYPOINT [\"/bin/ash\", \"-c\"]\nCMD echo run\n"
        );
        let built = build(agent, &context_of(&dockerfile), "configured").await;
        built.image();
        let config = inspect(agent, "configured")["Config"].clone();
        assert_eq!(config["Shell"], serde_json::json!(["/bin/ash", "-eu", "-c"]));
        assert_eq!(config["Healthcheck"]["Interval"], 90_000_000_000_i64);
        assert_eq!(config["Healthcheck"]["Test"], serde_json::json!(["CMD-SHELL", "wget -q localhost || exit 1"]));
        assert_eq!(config["Cmd"], serde_json::json!(["/bin/ash", "-eu", "-c", "echo run"]));
        for volume in ["/data", "/json"] {
            assert!(config["Volumes"].get(volume).is_some(), "{config}");
        }
        // The same by a tool that we did not write, and the image runs in a container that we do not make.
        let name = format!("{}/configured:{}", fixture().address(), std::process::id());
        agent.cli().ok(&["tag", "configured", &name]);
        agent.cli().ok(&["push", "-q", &name]);
        let remote = format!("docker://{name}");
        let output = std::process::Command::new("skopeo").args(["inspect", "--tls-verify=false", "--config", &remote]).output().unwrap();
        let seen: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let seen = &seen["config"];
        for (key, value) in [
            ("User", serde_json::json!("app:extra")),
            ("ExposedPorts", serde_json::json!({"53/udp": {}, "80/tcp": {}})),
            ("Labels", serde_json::json!({"a": "b", "c d": "e f"})),
            ("StopSignal", serde_json::json!("SIGQUIT")),
            ("Entrypoint", serde_json::json!(["/bin/ash", "-c"])),
        ] {
            assert_eq!(seen[key], value, "{key}");
        }
        let containerd = super::super::push::Containerd::start();
        let pulled = containerd.try_ctr(&["images", "pull", "--plain-http", "--snapshotter", "native", &name]);
        assert!(pulled.is_some(), "containerd pulls and unpacks it");
        let ran = containerd.try_ctr(&["run", "--rm", "--snapshotter", "native", &name, "c1", "/bin/ash", "-c", "id -u; cat /shell"]);
        assert_eq!(ran.as_deref(), Some("1000\n/bin/ash uce\n"), "Debian's containerd runs it");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cache_mounts_are_shared_locked_and_private_and_nobody_waits_for_ever() {
    with_agent(async |agent| {
        let base = fixture().image("busybox");
        // Twice the same in one step; two in opposite order in two steps that run at once.
        let dockerfile = format!(
            "FROM {base} AS a\n\
             RUN --mount=type=cache,id=one,target=/x,sharing=locked --mount=type=cache,id=one,target=/y,sharing=locked \
                 echo a > /x/a; cat /y/a > /seen\n\
             RUN --mount=type=cache,id=p,target=/p,sharing=locked --mount=type=cache,id=q,target=/q,sharing=locked sleep 1; echo a >> /p/n\n\
             FROM {base} AS b\n\
             RUN --mount=type=cache,id=q,target=/q,sharing=locked --mount=type=cache,id=p,target=/p,sharing=locked sleep 1; echo b >> /p/n\n\
             FROM {base}\nCOPY --from=a /seen /seen\nCOPY --from=b /etc/passwd /b\n\
             RUN --mount=type=cache,id=p,target=/p sort /p/n > /both\n\
             RUN --mount=type=cache,id=p,target=/p,sharing=private ls /p > /private\n\
             RUN --mount=type=cache,id=full,target=/f,from=a,source=/etc ls /f > /begins; echo more > /f/more\n\
             RUN --mount=type=cache,id=full,target=/f,from=a,source=/etc,uid=5 cat /f/more > /goes-on\n"
        );
        let built = build(agent, &context_of(&dockerfile), "mounts").await;
        built.image();
        let seen = run(agent, "mounts", &["sh", "-c", "cat /seen /both; grep -c passwd /begins; cat /goes-on"]);
        assert_eq!(seen, "a\na\nb\n1\nmore");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_hosts_and_names_reach_commands() {
    with_agent(async |agent| {
        let base = fixture().image("busybox");
        let dockerfile = format!(
            "FROM {base}\nRUN grep '10.1.2.3.*there' /etc/hosts; hostname; cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || \
             cat /sys/fs/cgroup/memory.max\n"
        );
        let built = build_with(agent, context_of(&dockerfile).path(), |start| {
            start.memory_bytes = 64 << 20;
            start.add_hosts = vec!["there:10.1.2.3".into()];
            start.build_args.insert("BUILDKIT_SANDBOX_HOSTNAME".into(), "own-name".into());
        })
        .await;
        built.image();
        for part in ["there", "own-name\n", "67108864"] {
            assert!(built.log.contains(part), "{part}: {}", built.log);
        }
        let hungry = context_of(&format!("FROM {base}\nRUN dd if=/dev/zero of=/dev/null bs=200M count=1\n"));
        let failed = build_with(agent, hungry.path(), |start| start.memory_bytes = 32 << 20).await;
        assert!(failed.error().contains("out of memory"), "{}", failed.error());
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_archives_are_each_unpacked_and_named_files_fetched() {
    with_agent(async |agent| {
        let base = fixture().image("busybox");
        let context = context(&[("plain.tar", "no archive at all")]);
        for name in ["one", "two"] {
            let mut tar =
                tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
            let mut header = tar::Header::new_gnu();
            header.set_size(3);
            header.set_mode(0o644);
            tar.append_data(&mut header, format!("{name}/file"), name.as_bytes()).unwrap();
            fs::write(
                context.path().join(format!("{name}.tar")),
                tar.into_inner().unwrap().finish().unwrap(),
            )
            .unwrap();
        }
        let (url, server) = super::files::serve(b"fetched".to_vec()).await;
        let secret = url.replace("http://", "http://me:hunter2@");
        let dockerfile = format!("FROM {base}\nADD *.tar /opt/\nADD {secret}/with%20space /got/\n");
        fs::write(context.path().join("Dockerfile"), dockerfile).unwrap();
        let built = build_with(agent, context.path(), |start| {
            start.tags = vec!["unpacked".into()];
            start.explain = true;
        })
        .await;
        built.image();
        let seen = run(
            agent,
            "unpacked",
            &[
                "sh",
                "-c",
                "cat /opt/one/file /opt/two/file /opt/plain.tar '/got/with space'; stat -c %a /opt; ls /opt",
            ],
        );
        assert_eq!(seen, "onetwono archive at allfetched755\none\nplain.tar\ntwo");
        let cache = agent.cli().ok(&["builder", "ls", "--output", "json"]);
        let told =
            format!("{:?}{cache}{}", built.steps, agent.cli().ok(&["history", "--no-trunc", "unpacked"]));
        assert!(told.contains("xxxxx") && !told.contains("hunter2"), "{told}");
        server.abort();
    })
    .await;
}
