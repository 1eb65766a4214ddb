//! Builds, end to end: real Dockerfiles, real commands, images that run.

use std::fs;
use std::path::Path;

use sampan_proto::sampan::BuildStart;
use sampan_proto::sampan::build_step::State;
use sampan_tests::{Agent, Build, fixture, with_agent};
use tempfile::TempDir;

use super::archive::inspect;

mod cache;
mod files;
mod hostile;
mod language;
mod platform;
mod real;
mod stages;
mod verb;

/// A context with these files.
fn context(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = directory.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    directory
}

async fn build(agent: &Agent, context: &TempDir, tag: &str) -> Build {
    build_with(agent, context.path(), |start| start.tags = vec![tag.into()]).await
}

async fn build_with(agent: &Agent, context: &Path, change: impl FnOnce(&mut BuildStart)) -> Build {
    sampan_tests::build(agent.channel(), context, change).await
}

/// What a command prints in a container of an image.
fn run(agent: &Agent, image: &str, command: &[&str]) -> String {
    let mut arguments = vec!["run", "--rm", "-q", image];
    arguments.extend(command);
    agent.cli().ok(&arguments)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_changes_a_file_of_the_base_and_the_image_runs() {
    with_agent(async |agent| {
        let base = fixture().image("busybox");
        let dockerfile = format!(
            "FROM {base}\nRUN mkdir -p /usr/share/html\n\
             RUN echo '<h1>Hello, Docker! by Dockerfile</h1>' > /usr/share/html/index.html\n\
             ENV GREETING=hi\nWORKDIR /srv/deep\nCMD [\"cat\", \"/usr/share/html/index.html\"]\n"
        );
        let context = context(&[("Dockerfile", &dockerfile)]);
        let built = build(agent, &context, "hello:1").await;
        assert_eq!(run(agent, "hello:1", &[]), "<h1>Hello, Docker! by Dockerfile</h1>", "{}", built.log);
        assert_eq!(run(agent, "hello:1", &["sh", "-c", "pwd; echo $GREETING"]), "/srv/deep\nhi");
        let image = inspect(agent, "hello:1");
        assert_eq!(image["Id"], built.image());
        assert_eq!(image["Config"]["WorkingDir"], "/srv/deep");
        let history = agent.cli().ok(&["history", "--no-trunc", "hello:1"]);
        for line in [
            "RUN /bin/sh -c mkdir -p /usr/share/html",
            "CMD [\"cat\"",
            "ENV GREETING=hi",
            "WORKDIR /srv/deep",
        ] {
            assert!(history.contains(line), "{line}: {history}");
        }
        // Again, and nothing is done; it is the same image.
        let again = build(agent, &context, "hello:2").await;
        assert_eq!(again.image(), built.image());
        assert_eq!(again.titles(State::Cached).len(), 3, "{:?}", again.steps);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_sees_its_network_its_user_and_no_privilege() {
    with_agent(async |agent| {
        let base = fixture().image("busybox");
        let dockerfile = format!(
            "FROM {base}\nRUN echo me:x:1234:1234::/home/me:/bin/sh >> /etc/passwd\nUSER me\nWORKDIR /home/me\n\
             RUN id -u; pwd; echo home=$HOME; hostname; grep -E 'NoNewPrivs|Seccomp:|CapInh|CapAmb' /proc/self/status\n\
             RUN ls /proc/self/fd | wc -l\n\
             USER root\nRUN ip -o addr | grep -c eth0\nRUN --network=none ip -o addr | grep -v ' lo ' | wc -l\n\
             RUN cat /proc/self/cgroup | head -1; ! touch /sys/fs/cgroup/x; ! mount -t tmpfs x /mnt\n"
        );
        let context = context(&[("Dockerfile", &dockerfile)]);
        let built = build(agent, &context, "seen").await;
        built.image();
        for line in ["1234\n/home/me\nhome=/home/me\nsampan-build\n", "CapInh:\t0000000000000000", "CapAmb:\t0000000000000000"] {
            assert!(built.log.contains(line), "{line}: {}", built.log);
        }
        assert!(built.log.contains("NoNewPrivs:\t1") && built.log.contains("Seccomp:\t2"), "{}", built.log);
        let denied = context_of(&format!("FROM {base}\nRUN --network=host true\n"));
        let failed = build(agent, &denied, "denied").await;
        assert_eq!(failed.status.as_ref().unwrap().code(), tonic::Code::PermissionDenied);
        assert!(failed.error().contains("build.host_network"), "{}", failed.error());
    })
    .await;
}

fn context_of(dockerfile: &str) -> TempDir {
    context(&[("Dockerfile", dockerfile)])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_fails_is_told_with_its_line_and_its_output() {
    with_agent(async |agent| {
        let base = fixture().image("busybox");
        let context =
            context_of(&format!("FROM {base}\nRUN true\nRUN echo about to fail && exit 7\nRUN never\n"));
        let built = build(agent, &context, "failing").await;
        let failure = built.failure.as_ref().expect("a failure");
        assert_eq!((failure.line, failure.exit_code, failure.file.as_str()), (3, 7, "Dockerfile"));
        assert!(failure.message.contains("RUN echo about to fail"), "{}", failure.message);
        assert!(built.log.contains("about to fail\n"), "{}", built.log);
        assert_eq!(built.titles(State::Failed).len(), 1);
        assert_eq!(built.titles(State::Cancelled), ["RUN never"]);
        assert_eq!(failure.debug_image, "");
        // With a look at what it left.
        let built = build_with(agent, context.path(), |start| start.debug = true).await;
        let image = built.failure.expect("a failure").debug_image;
        assert_eq!(run(agent, &image, &["echo", "inside"]), "inside");
        agent.cli().ok(&["rmi", &image]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_ends_its_build() {
    with_agent(async |agent| {
        let base = fixture().image("busybox");
        let context = context_of(&format!("FROM {base}\nRUN echo started; sleep 1000\n"));
        let mut running = sampan_tests::Running::begin(agent.channel(), context.path(), |_| {}).await;
        running.serve(|build| build.log.contains("started")).await;
        drop(running);
        // The oracle finds every process, mount and cgroup that is left; here it is only waited for.
        let gone = || {
            let steps = fs::read_dir(agent.scope().state.join("pods")).unwrap().count();
            let snapshots = fs::read_dir(agent.scope().root.join("snapshots/active")).unwrap().count();
            steps + snapshots == 0
        };
        assert!(sampan_tests::eventually_sync(super::SOON, gone), "{}", agent.log());
    })
    .await;
}
