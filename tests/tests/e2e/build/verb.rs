//! `sampan build` and `sampan builder` as a person types them: every source, every output, every way to be told.

use std::process::Command;

use sampan_tests::{Cli, Options, with_agent_of};

use super::files::serve;
use super::*;

/// `sampan build` of a folder, with more arguments before it.
fn built(cli: &Cli, context: &Path, arguments: &[&str]) -> sampan_tests::Output {
    let folder = context.to_str().unwrap();
    cli.run(&[&["build"], arguments, &[folder]].concat())
}

fn succeeds(cli: &Cli, context: &Path, arguments: &[&str]) -> sampan_tests::Output {
    let output = built(cli, context, arguments);
    assert_eq!(output.code, 0, "{arguments:?}: {}{}", output.stdout, output.stderr);
    output
}

/// A tar of a context.
fn packed(context: &TempDir) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_dir_all(".", context.path()).unwrap();
    tar.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_is_named_quiet_and_written_down() {
    with_agent(async |agent| {
        let (base, cli) = (fixture().image("busybox"), agent.cli());
        let context = context(&[
            ("Dockerfile", &format!("FROM {base} AS first\nARG WHO=nobody\nRUN echo hello $WHO > /hello\nFROM first\nRUN echo more > /more\n")),
            ("other/Build", &format!("FROM {base}\nCOPY . /all/\n")),
            ("other/Build.dockerignore", "*\n!kept\n"),
            (".dockerignore", "kept\n"),
            ("kept", "kept"),
            ("left", "left"),
        ]);
        let iidfile = agent.base().join("iid");
        let plain = succeeds(&cli, context.path(), &["-t", "one", "-t", "two:x", "--iidfile", iidfile.to_str().unwrap()]);
        let id = fs::read_to_string(&iidfile).unwrap();
        assert!(id.starts_with("sha256:") && id == inspect(agent, "one")["Id"] && id == inspect(agent, "two:x")["Id"]);
        for line in ["[first 2/2] RUN echo hello", "DONE", "Named docker.io/library/one:latest", "0 of 2 steps cached"] {
            assert!(plain.stderr.contains(line) || line.starts_with("[first"), "{line}: {}", plain.stderr);
        }
        // Only the names of this build are told, and quiet is the id alone.
        let again = succeeds(&cli, context.path(), &["-t", "three"]);
        assert!(again.stderr.contains("Named docker.io/library/three:latest") && !again.stderr.contains("library/one"), "{}", again.stderr);
        assert!(again.stderr.contains("CACHED") && again.stderr.contains("2 of 2 steps cached"), "{}", again.stderr);
        let quiet = succeeds(&cli, context.path(), &["-q"]);
        assert_eq!((quiet.stdout.trim(), quiet.stderr.as_str()), (id.as_str(), ""));
        // Arguments, a target, labels, and why something was not cached.
        let told = succeeds(&cli, context.path(), &["-t", "me", "--build-arg", "WHO=me", "--target", "first", "--explain", "--label", "a=b"]);
        assert!(told.stderr.contains("not cached: variable WHO was \"nobody\" and is \"me\""), "{}", told.stderr);
        assert_eq!(run(agent, "me", &["cat", "/hello"]), "hello me");
        assert_eq!(inspect(agent, "me")["Config"]["Labels"]["a"], "b");
        let told = succeeds(&cli, context.path(), &["--explain", "--no-cache", "--target", "0"]);
        assert!(told.stderr.contains("not cached: --no-cache was asked for"), "{}", told.stderr);
        // A Dockerfile of another name, with an ignore file of its own.
        let other = context.path().join("other/Build");
        succeeds(&cli, context.path(), &["-t", "other", "-f", other.to_str().unwrap()]);
        assert_eq!(run(agent, "other", &["ls", "-a", "/all"]).lines().skip(2).collect::<Vec<_>>(), ["kept"]);
        // A name without a value has that of the environment.
        let output = Command::new(sampan_tests::binary("sampan"))
            .args(["--socket", agent.socket().to_str().unwrap(), "build", "-q", "-t", "env", "--build-arg", "WHO", "--target", "first"])
            .arg(context.path())
            .env("WHO", "environment")
            .env("SOURCE_DATE_EPOCH", "1700000000")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(run(agent, "env", &["cat", "/hello"]), "hello environment");
        assert_eq!(inspect(agent, "env")["Created"], "2023-11-14T22:13:20Z");
        for (arguments, part) in [
            (&["--iidfile", "/x", "-o", "out"][..], "this output makes none"),
            (&["--push"], "--push needs a name"),
            (&["--platform", "banana"], "no platform"),
            (&["--network", "host"], "not allowed"),
        ] {
            let output = built(&cli, context.path(), arguments);
            assert!(output.code == 1 && output.stderr.contains(part), "{arguments:?}: {}", output.stderr);
        }
        succeeds(&cli, context.path(), &["--platform", &sampan_architecture()]);
        succeeds(&cli, context.path(), &["--network", "none", "--no-cache"]);
        let pulled = succeeds(&cli, context.path(), &["--pull"]);
        assert!(pulled.stderr.contains("2 of 2 steps cached"), "the base is the same: {}", pulled.stderr);
    })
    .await;
}

/// This machine's, by its short name.
fn sampan_architecture() -> String {
    match std::env::consts::ARCH {
        "x86_64" => "amd64".to_owned(),
        "aarch64" => "arm64".to_owned(),
        other => other.to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn contexts_come_from_standard_input_and_from_servers() {
    with_agent(async |agent| {
        let (base, cli) = (fixture().image("busybox"), agent.cli());
        let dockerfile = format!("FROM {base}\nRUN echo made > /made\n");
        let output = cli.run_with_input(&["build", "-t", "piped", "-"], &dockerfile);
        assert_eq!(output.code, 0, "{}", output.stderr);
        assert_eq!(run(agent, "piped", &["cat", "/made"]), "made");
        // The Dockerfile on standard input, and a folder.
        let folder = context(&[("file", "content"), ("left", "x"), (".dockerignore", "left\n")]);
        let from = format!("FROM {base}\nCOPY . /in/\n");
        let path = folder.path().to_str().unwrap();
        let output = cli.run_with_input(&["build", "-t", "folder", "-f", "-", path], &from);
        assert_eq!(output.code, 0, "{}", output.stderr);
        assert_eq!(run(agent, "folder", &["ls", "/in"]), "file");
        // A tar: its ignore file counts, also for the Dockerfile that is read all the same.
        let whole = context(&[
            ("Build", &format!("FROM {base}\nCOPY . /in/\n")),
            (".dockerignore", "Build\n*.log\n!keep.log\n"),
            ("a.log", "x"),
            ("keep.log", "x"),
            ("sub/file", "x"),
        ]);
        let tar = packed(&whole);
        let mut child = Command::new(sampan_tests::binary("sampan"))
            .args(["--socket", agent.socket().to_str().unwrap(), "build", "-t", "tar", "-f", "Build", "-"])
            .stdin(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), &tar).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(
            run(agent, "tar", &["sh", "-c", "cd /in; find . -type f | sort"]),
            "./.dockerignore\n./keep.log\n./sub/file"
        );
        // The same from a server, and a Dockerfile alone.
        for (body, tag, file) in
            [(tar, "fetched", &["-f", "Build"][..]), (dockerfile.into_bytes(), "alone", &[])]
        {
            let (url, server) = serve(body).await;
            let url = format!("{url}/context");
            let output = cli.run(&[&["build", "-t", tag], file, &[&url]].concat());
            assert_eq!(output.code, 0, "{tag}: {}", output.stderr);
            server.abort();
        }
        assert_eq!(inspect(agent, "fetched")["Id"], inspect(agent, "tar")["Id"]);
        assert_eq!(inspect(agent, "alone")["Id"], inspect(agent, "piped")["Id"]);
        let output = cli.run(&["build", "http://127.0.0.1:1/nothing"]);
        assert!(output.code == 1 && output.stderr.contains("127.0.0.1:1"), "{}", output.stderr);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn results_go_where_they_are_wanted() {
    with_agent(async |agent| {
        let (base, cli) = (fixture().image("busybox"), agent.cli());
        let context = context(&[
            ("file", "content"),
            (
                "Dockerfile",
                &format!("FROM {base} AS image\nCOPY file /made\nFROM scratch\nCOPY file /dir/file\n"),
            ),
        ]);
        let place = |name: &str| agent.base().join(name).display().to_string();
        let folder = place("folder");
        succeeds(&cli, context.path(), &["-o", &folder]);
        assert_eq!(fs::read_to_string(format!("{folder}/dir/file")).unwrap(), "content");
        let tar = place("files.tar");
        succeeds(&cli, context.path(), &["-o", &format!("type=tar,dest={tar}")]);
        let names = |bytes: &[u8]| {
            let mut archive = tar::Archive::new(bytes);
            let entries = archive.entries().unwrap();
            entries.map(|entry| entry.unwrap().path().unwrap().display().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(&fs::read(&tar).unwrap()), ["dir/", "dir/file"]);
        // On standard output there is the tar and nothing else, in quiet too.
        let output = Command::new(sampan_tests::binary("sampan"))
            .args([
                "--socket",
                agent.socket().to_str().unwrap(),
                "build",
                "-q",
                "--target",
                "image",
                "-t",
                "image:1",
                "-o",
                "type=docker",
            ])
            .arg(context.path())
            .output()
            .unwrap();
        assert!(output.status.success() && output.stderr.is_empty());
        let listed = names(&output.stdout);
        assert!(
            listed.iter().any(|name| name == "manifest.json")
                && listed.iter().any(|name| name == "oci-layout"),
            "{listed:?}"
        );
        let id = inspect(agent, "image:1")["Id"].as_str().unwrap().to_owned();
        let oci = place("image.tar");
        succeeds(
            &cli,
            context.path(),
            &["--target", "image", "-t", "image:2", "-o", &format!("type=oci,dest={oci}")],
        );
        // The names of this build are in it, and no other's.
        for (tool, reference) in
            [("skopeo", format!("oci-archive:{oci}")), ("skopeo", format!("docker-archive:{oci}"))]
        {
            let output =
                Command::new(tool).args(["inspect", "--config", "--raw", &reference]).output().unwrap();
            assert!(output.status.success(), "{reference}: {}", String::from_utf8_lossy(&output.stderr));
        }
        for name in ["image:1", "image:2"] {
            cli.ok(&["rmi", name]);
        }
        let loaded = cli.ok(&["load", "-i", &oci]);
        assert!(loaded.contains("image:2") && !loaded.contains("image:1"), "{loaded}");
        assert_eq!(inspect(agent, "image:2")["Id"], id.as_str());
        // To a registry, from which somebody else takes it.
        let name = format!("{}/built:{}", fixture().address(), std::process::id());
        succeeds(&cli, context.path(), &["--target", "image", "-t", &name, "--push"]);
        let remote = format!("docker://{name}");
        let output = Command::new("skopeo")
            .args(["inspect", "--tls-verify=false", "--config", &remote])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let config: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            config["history"].as_array().unwrap().last().unwrap()["created_by"],
            "COPY file /made # sampan"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_is_told_in_the_way_that_is_asked_for() {
    with_agent(async |agent| {
        let (base, cli) = (fixture().image("busybox"), agent.cli());
        let context = context_of(&format!("FROM {base}\nRUN echo some; echo words >&2; exit 3\n"));
        let plain = built(&cli, context.path(), &["--progress", "plain"]);
        assert_eq!(plain.code, 1);
        for part in
            ["RUN echo some", " some\n", " words\n", "ERROR: the command ended with code 3", "Dockerfile:2"]
        {
            assert!(plain.stderr.contains(part), "{part:?}: {}", plain.stderr);
        }
        let json = built(&cli, context.path(), &["--progress", "json"]);
        let events: Vec<serde_json::Value> = json
            .stderr
            .lines()
            .filter(|line| line.starts_with('{'))
            .map(|line| serde_json::from_str(line).unwrap())
            .collect();
        for key in ["started", "step", "log", "failure"] {
            assert!(events.iter().any(|event| event.get(key).is_some()), "{key}: {}", json.stderr);
        }
        let failure = events.iter().find_map(|event| event.get("failure")).unwrap();
        assert_eq!((&failure["line"], &failure["exit_code"]), (&2.into(), &3.into()));
        let quiet = built(&cli, context.path(), &["-q"]);
        assert!(quiet.stderr.contains("some\n") && quiet.stdout.is_empty(), "{}", quiet.stderr);
        // On a terminal steps are drawn, and why they ran is told.
        let folder = context.path().to_str().unwrap();
        let drawn = cli.run_on_terminal(&["build", "--explain", folder], "");
        assert!(
            drawn.code == 1 && drawn.stdout.contains(" x ") && drawn.stdout.contains("not cached:"),
            "{}",
            drawn.stdout
        );
        // A shell in what the step left: the one that the image has.
        let context = context_of(&format!(
            "FROM {base}\nSHELL [\"/bin/ash\", \"-c\"]\nRUN echo left > /left; exit 1\n"
        ));
        let shell = cli.run_on_terminal(
            &["build", "--debug", context.path().to_str().unwrap()],
            "cat /left; readlink /proc/$$/exe; exit\n",
        );
        assert!(
            shell.stdout.contains("left\r\n") && shell.stdout.contains("sampan rmi sha256:"),
            "{}",
            shell.stdout
        );
        let unattended = built(&cli, context.path(), &["--debug"]);
        assert!(
            unattended.stderr.contains("what the step left is the image sha256:"),
            "{}",
            unattended.stderr
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn checks_are_made_alone_in_every_build_and_as_errors() {
    with_agent(async |agent| {
        let (base, cli) = (fixture().image("busybox"), agent.cli());
        let dockerfile =
            format!("FROM {base} as one\nMAINTAINER me\nWORKDIR rel\nCOPY secret.txt /x\nENV A=$NOTHING\n");
        let context =
            context(&[("Dockerfile", &dockerfile), (".dockerignore", "secret.txt\n"), ("secret.txt", "x")]);
        let check = built(&cli, context.path(), &["--check"]);
        let rules = ["FromAsCasing", "MaintainerDeprecated", "WorkdirRelativePath", "CopyIgnoredFile"];
        assert!(check.code == 1 && rules.iter().all(|rule| check.stdout.contains(rule)), "{}", check.stdout);
        // A build says the same, and the one thing that only a base can tell.
        let build = built(&cli, context.path(), &[]);
        assert!(
            build.code == 1 && build.stderr.contains("secret.txt is not in the build's context"),
            "{}",
            build.stderr
        );
        for rule in rules.iter().chain(&["UndefinedVar"]) {
            assert!(build.stderr.contains(&format!("warning: {rule}: ")), "{rule}: {}", build.stderr);
        }
        let skipped = built(
            &cli,
            context.path(),
            &["--build-arg", "BUILDKIT_DOCKERFILE_CHECK=skip=CopyIgnoredFile,UndefinedVar"],
        );
        assert!(
            !skipped.stderr.contains("CopyIgnoredFile") && skipped.stderr.contains("FromAsCasing"),
            "{}",
            skipped.stderr
        );
        fs::write(
            context.path().join("Dockerfile"),
            format!("# check=error=true\nFROM {base} as one\nRUN echo ran\n"),
        )
        .unwrap();
        let failed = built(&cli, context.path(), &[]);
        assert!(
            failed.code == 1 && failed.stderr.contains("check=error=true lets nothing pass"),
            "{}",
            failed.stderr
        );
        assert!(!failed.stderr.contains(" ran\n"), "nothing is run: {}", failed.stderr);
        fs::write(
            context.path().join("Dockerfile"),
            format!("# check=error=true;skip=FromAsCasing\nFROM {base} as one\nRUN echo ran\n"),
        )
        .unwrap();
        assert!(succeeds(&cli, context.path(), &[]).stderr.contains(" ran\n"));
        let wrong = built(&cli, context.path(), &["--build-arg", "BUILDKIT_DOCKERFILE_CHECK=banana=1"]);
        assert!(wrong.code == 1 && wrong.stderr.contains("BUILDKIT_DOCKERFILE_CHECK"), "{}", wrong.stderr);
        let fine = built(&cli, context_of("FROM busybox\nCMD [\"a\"]\n").path(), &["--check"]);
        assert_eq!((fine.code, fine.stdout.as_str()), (0, "No warnings\n"));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cache_and_the_logs_are_listed_shown_and_removed() {
    with_agent(async |agent| {
        let (base, cli) = (fixture().image("busybox"), agent.cli());
        let context = context(&[
            ("file", "content"),
            ("Dockerfile", &format!("FROM {base}\nCOPY file /\nRUN --mount=type=cache,id=mine,target=/c echo said; head -c 50000 /dev/urandom > /c/x\n")),
        ]);
        succeeds(&cli, context.path(), &["-t", "listed"]);
        let kept = cli.json(&["builder", "ls"]);
        let kinds: Vec<&str> = kept.as_array().unwrap().iter().map(|entry| entry["kind"].as_str().unwrap()).collect();
        assert!(kinds.iter().filter(|kind| **kind == "step").count() == 2 && kinds.contains(&"mount") && kinds.contains(&"context"), "{kept}");
        let listed = cli.ok(&["builder", "du"]);
        assert!(listed.contains("COPY file /") && listed.contains("mine") && listed.contains("Total:"), "{listed}");
        let usage = cli.json(&["system", "df"]);
        assert!(usage["build_cache"]["entries"] == kinds.len() && usage["build_cache"]["bytes"].as_u64() > Some(50_000), "{usage}");
        assert!(cli.ok(&["system", "df"]).contains("Build Cache"));
        let history = cli.json(&["builder", "history"]);
        assert_eq!((&history[0]["name"], &history[0]["status"]), (&"listed".into(), &"Completed".into()));
        let id = history[0]["id"].as_str().unwrap();
        for log in [cli.ok(&["builder", "logs"]), cli.ok(&["builder", "logs", &id[..6]])] {
            assert!(log.contains("COPY file /") && log.contains("said\n"), "{log}");
        }
        let unknown = cli.run(&["builder", "logs", "zzz"]);
        assert!(unknown.code == 1 && unknown.stderr.contains("builder history"), "{}", unknown.stderr);
        assert!(cli.run(&["builder", "prune"]).stderr.contains("--force"));
        assert!(cli.ok(&["builder", "prune", "-f", "--unused-for", "1h"]).contains("Total reclaimed space: 0B"));
        // Steps and contexts go, cache mounts stay unless all is asked for.
        cli.ok(&["system", "prune", "-f"]);
        let left = cli.json(&["builder", "ls"]);
        assert!(left.as_array().unwrap().len() == 1 && left[0]["kind"] == "mount", "{left}");
        assert!(cli.ok(&["builder", "prune", "--all", "--force"]).contains("Total reclaimed space: "));
        assert_eq!(cli.json(&["builder", "ls"]), serde_json::json!([]));
        assert_eq!(run(agent, "listed", &["cat", "/file"]), "content");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn output_is_kept_whole_whatever_its_client_takes_and_has_a_bound() {
    let options =
        Options { configuration: "[build]\noutput_bytes = 20000000\n".into(), ..Options::default() };
    with_agent_of(options, async |agent| {
        let (base, cli) = (fixture().image("busybox"), agent.cli());
        // More than any queue holds, to a client that takes nothing.
        let context = context_of(&format!("FROM {base}\nRUN i=0; while [ $i -lt 12000 ]; do i=$((i+1)); echo line $i of many; done; echo the end\n"));
        let mut running = sampan_tests::Running::begin(agent.channel(), context.path(), |start| start.tags = vec!["loud".into()]).await;
        let begun = running.serve(|build| build.log.contains("line 1 of")).await;
        let complete = || cli.json(&["builder", "history"])[0]["status"] == "Completed";
        assert!(sampan_tests::eventually_sync(std::time::Duration::from_secs(60), complete), "the build waits for nobody");
        let log = cli.ok(&["builder", "logs", &begun.id]);
        assert_eq!(log.matches(" of many\n").count(), 12000);
        assert!(log.contains("the end\n"));
        drop(running);
        // Without end.
        let context = context_of(&format!("FROM {base}\nRUN yes this has no end\n"));
        let failed = built(&cli, context.path(), &["-q"]);
        assert!(failed.code == 1 && failed.stderr.contains("build.output_bytes"), "{}", failed.stderr);
        assert_eq!(fs::read_dir(agent.scope().root.join("build/output")).unwrap().count(), 0);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_small_files_and_lines_are_no_attack() {
    with_agent(async |agent| {
        let (base, cli) = (fixture().image("busybox"), agent.cli());
        let context = context(&[(
            "Dockerfile",
            &format!("FROM {base}\nCOPY . /in/\nRUN find /in -type f | wc -l; seq 60000\n"),
        )]);
        for number in 0..12_000 {
            let folder = context.path().join(format!("d{}", number % 100));
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join(number.to_string()), "x").unwrap();
        }
        let output = succeeds(&cli, context.path(), &["--progress", "plain"]);
        assert!(
            output.stderr.contains(" 12001\n") && output.stderr.contains(" 60000\n"),
            "{}",
            output.stderr.len()
        );
    })
    .await;
}
