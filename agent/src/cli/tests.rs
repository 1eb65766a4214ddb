//! Whole command lines against an agent that lives in this process and answers from a script: what is printed
//! where, and how the command exits. What a real agent does is tested end to end, elsewhere.

mod script;

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use tokio::signal::unix::{SignalKind, signal};

use self::script::Script;
use super::*;

/// What one command line did.
#[derive(Debug)]
struct Outcome {
    code: u8,
    stdout: String,
    stderr: String,
    /// The calls that changed something, in order.
    calls: Vec<String>,
}

async fn sampan(line: &str) -> Outcome {
    let script = Script::default();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("sampan.sock");
    let server = script.serve(&socket);
    let (code, stdout, stderr) = on_socket(&socket, line).await;
    server.abort();
    Outcome { code, stdout, stderr, calls: script.calls() }
}

async fn on_socket(socket: &std::path::Path, line: &str) -> (u8, String, String) {
    let (stdout, stderr) = (Captured::default(), Captured::default());
    let mut out = Output::new(Box::new(stdout.clone()), Box::new(stderr.clone()));
    let mut arguments = vec![OsString::from("sampan"), "--socket".into(), socket.into()];
    arguments.extend(line.split(' ').map(OsString::from));
    let code = execute(arguments, &mut out).await;
    (code, stdout.text(), stderr.text())
}

#[derive(Debug, Clone, Default)]
struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[tokio::test]
async fn ps_lines_up_its_columns() {
    let outcome = sampan("ps -a").await;
    let lines = [
        concat!(
            "CONTAINER ID   IMAGE        COMMAND                  CREATED         STATUS                   ",
            "PORTS                                     NAMES"
        ),
        concat!(
            "0123456789ab   nginx:1.27   \"/docker-entrypoint.…\"   5 minutes ago   Up 3 minutes             ",
            "0.0.0.0:8080->80/tcp, [::]:8080->80/tcp   web"
        ),
        concat!(
            "ba9876543210   busybox      \"false\"                  2 hours ago     Exited (1) 2 hours ago   ",
            "                                          once"
        ),
    ];
    assert_eq!(outcome.stdout.lines().collect::<Vec<_>>(), lines);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""));
}

#[tokio::test]
async fn ps_gives_ids_or_json_to_scripts() {
    assert_eq!(sampan("ps -q").await.stdout, "0123456789ab\n");
    let long = sampan("ps -aq --no-trunc").await.stdout;
    assert_eq!(long.lines().map(str::len).collect::<Vec<_>>(), [64, 64]);
    let rows = json(&sampan("ps -a --output json").await.stdout);
    assert_eq!(rows[0]["name"], "web");
    assert_eq!(rows[0]["exit_code"], serde_json::Value::Null);
    assert_eq!(rows[0]["ports"][0]["host_port"], 8080);
    assert_eq!(rows[1]["state"], "exited");
    assert_eq!(rows[1]["exit_code"], 1);
}

#[tokio::test]
async fn images_have_a_row_for_each_name() {
    let outcome = sampan("images").await;
    let lines = [
        "REPOSITORY               TAG      IMAGE ID       CREATED       SIZE",
        "nginx                    1.27     aaaaaaaaaaaa   2 weeks ago   187MB",
        "localhost:5000/web       latest   aaaaaaaaaaaa   2 weeks ago   187MB",
        "localhost:5000/busybox   <none>   bbbbbbbbbbbb                 4.5MB",
    ];
    assert_eq!(outcome.stdout.lines().collect::<Vec<_>>(), lines);
    assert_eq!(json(&sampan("images --output json").await.stdout)[1]["created_at"], serde_json::Value::Null);
}

#[tokio::test]
async fn logs_keep_the_streams_apart() {
    let outcome = sampan("logs web").await;
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("one long line\n", "oops\n"));
    let outcome = sampan("logs -t web").await;
    assert_eq!(outcome.stdout, "1970-01-01T00:00:01.000000000Z one long line\n");
    assert_eq!(outcome.stderr, "1970-01-01T00:00:02.000000000Z oops\n");
}

#[tokio::test]
async fn run_shows_the_output_and_takes_over_the_exit_code() {
    let outcome = sampan("run nginx").await;
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("one long line\n", "oops\n"));
    assert_eq!(outcome.code, 3);
    assert_eq!(outcome.calls, ["run nginx"]);
}

#[tokio::test]
async fn run_removes_the_container_after_its_last_line() {
    let outcome = sampan("run --rm nginx").await;
    assert_eq!((outcome.code, outcome.stdout.as_str()), (3, "one long line\n"));
    assert_eq!(outcome.calls, ["run nginx", "remove new"]);
}

#[tokio::test]
async fn run_detached_prints_the_id_and_leaves_removal_to_the_agent() {
    let outcome = sampan("run -d --rm nginx").await;
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, "new\n"));
    assert_eq!(outcome.calls, ["run nginx (auto remove)"]);
}

#[tokio::test]
async fn run_pulls_what_is_missing_and_keeps_standard_output_clean() {
    let outcome = sampan("run -d redis").await;
    assert_eq!(outcome.stdout, "new\n");
    assert_eq!(outcome.calls, ["pull redis", "run redis"]);
    assert_eq!(
        outcome.stderr,
        "Image redis is not here: pulling it\ncccccccccccc: downloading (2MB)\ncccccccccccc: done (2MB)\n"
    );
    assert_eq!(sampan("run -d --pull always nginx").await.calls, ["pull nginx", "run nginx"]);
    assert_eq!(sampan("run -dq redis").await.stderr, "");
}

#[tokio::test]
async fn an_error_of_run_itself_is_125() {
    let outcome = sampan("run --pull never redis").await;
    assert_eq!((outcome.code, outcome.calls.len()), (125, 0));
    assert_eq!(outcome.stderr, "sampan: image redis is not here; fetch it with 'sampan pull redis'\n");
    let outcome = sampan("run --name web nginx").await;
    assert_eq!(outcome.code, 125);
    assert!(outcome.stderr.contains("in use") && outcome.stderr.contains("--name"), "{}", outcome.stderr);
    assert_eq!(sampan("run --bogus nginx").await.code, 125);
}

#[tokio::test]
async fn a_signal_stops_the_container_in_the_foreground() {
    // Listening here first, so that the signal is never anybody's end.
    let _listening = signal(SignalKind::hangup()).unwrap();
    let outcome = sampan("run forever").await;
    assert_eq!(outcome.calls, ["run forever", "stop new after -1 s"]);
    assert_eq!(outcome.code, 143);
}

#[tokio::test]
async fn pull_tells_the_name_and_the_digest() {
    let outcome = sampan("pull redis").await;
    assert_eq!(outcome.stdout, "docker.io/library/redis:latest\nDigest: sha256:dd\n");
    assert_eq!(outcome.stderr, "cccccccccccc: downloading (2MB)\ncccccccccccc: done (2MB)\n");
    let outcome = sampan("pull -q redis").await;
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str()), ("docker.io/library/redis:latest\n", ""));
}

#[tokio::test]
async fn several_names_go_on_past_a_failure() {
    let outcome = sampan("rm one nope two").await;
    assert_eq!(outcome.code, 1);
    assert_eq!(outcome.stdout, "one\ntwo\n");
    assert_eq!(outcome.stderr, "sampan: no container \"nope\"; 'sampan ps -a' lists all containers\n");
    let outcome = sampan("stop -t 3 one nope two").await;
    assert_eq!((outcome.code, outcome.stdout.as_str()), (1, "one\ntwo\n"));
    let outcome = sampan("wait new nope new").await;
    assert_eq!((outcome.code, outcome.stdout.as_str()), (1, "3\n3\n"));
    let outcome = sampan("rmi nginx nope").await;
    assert_eq!((outcome.code, outcome.stdout.as_str()), (1, "Untagged: nginx\nDeleted: sha256:aa\n"));
}

#[tokio::test]
async fn inspect_finds_containers_then_images() {
    let outcome = sampan("inspect web nginx").await;
    assert_eq!(
        outcome.stdout,
        "[\n    {\n        \"Id\": \"0123\",\n        \"Args\": []\n    },\n    {\n        \"Id\": \"sha256:aa\"\n    }\n]\n"
    );
    let outcome = sampan("inspect nope").await;
    assert_eq!((outcome.code, outcome.stdout.as_str()), (1, "[]\n"));
    assert!(outcome.stderr.contains("no container and no image \"nope\""), "{}", outcome.stderr);
}

#[tokio::test]
async fn stats_without_stream_shows_the_round_that_knows_the_cpu() {
    let outcome = sampan("stats --no-stream").await;
    assert_eq!(
        outcome.stdout,
        "NAME   CPU %    MEM USAGE / LIMIT   MEM %   NET I/O   BLOCK I/O   PIDS\n\
         web    50.00%   1MiB / 1GiB         0.10%   -         0B / 0B     0\n"
    );
    assert_eq!(
        json(&sampan("stats --no-stream --output json").await.stdout)[0]["cpu_nano_cores"],
        500_000_000
    );
    let stream = sampan("stats --output json web").await;
    assert_eq!(
        stream.stdout.lines().map(|line| json(line)[0]["name"].clone()).collect::<Vec<_>>(),
        ["web", "web"]
    );
}

#[tokio::test]
async fn exec_gives_output_and_exit_code() {
    let outcome = sampan("exec web ls -l").await;
    assert_eq!((outcome.stdout.as_str(), outcome.stderr.as_str(), outcome.code), ("web ls -l", "err", 7));
    let outcome = sampan("exec -u 1:2 -w /srv -e A=1 web id").await;
    assert_eq!(outcome.stdout, "web id user=1:2 dir=/srv env=A=1");
    assert!(sampan("exec nope ls").await.stderr.contains("no container \"nope\""));
}

#[tokio::test]
async fn what_was_created_is_started_alone_or_with_somebody_at_it() {
    let outcome = sampan("create -i redis").await;
    assert_eq!((outcome.code, outcome.stderr.contains("pulling")), (0, true), "{}", outcome.stderr);
    let outcome = sampan("start web nope other").await;
    assert_eq!((outcome.code, outcome.stdout.as_str()), (1, "web\nother\n"));
    assert_eq!(outcome.calls, ["start web", "start other"]);
    let outcome = sampan("start -a web").await;
    assert_eq!(outcome.calls[..2], ["attach web", "start web"], "joined before it runs");
    assert!(outcome.stdout.starts_with("out\n"), "{}", outcome.stdout);
    assert!(sampan("start -a web other").await.stderr.contains("only one"));
}

#[tokio::test]
async fn version_and_info_print_for_people_and_programs() {
    let text = sampan("version").await.stdout;
    assert!(
        text.contains("Client:\n") && text.contains("Agent:\n") && text.contains("sampan 9.9.9"),
        "{text}"
    );
    assert_eq!(json(&sampan("version --output json").await.stdout)["agent"]["version"], "9.9.9");
    let text = sampan("info").await.stdout;
    assert!(text.contains("Memory:           1GiB\n") && text.contains("Warning: no IPv6\n"), "{text}");
    assert_eq!(json(&sampan("info --output json").await.stdout)["warnings"][0], "no IPv6");
}

#[tokio::test]
async fn version_tells_its_own_even_without_an_agent() {
    let folder = tempfile::tempdir().unwrap();
    let (code, stdout, stderr) = on_socket(&folder.path().join("none"), "version").await;
    assert_eq!(code, 1);
    assert!(stdout.contains(env!("CARGO_PKG_VERSION")) && !stdout.contains("Agent:"), "{stdout}");
    assert!(stderr.starts_with("sampan: the agent is not running"), "{stderr}");
    let (code, ..) = on_socket(&folder.path().join("none"), "run nginx").await;
    assert_eq!(code, 125);
}

#[tokio::test]
async fn an_agent_that_dies_is_told_apart_from_an_answer() {
    let script = Script::default();
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("sampan.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let server = tokio::spawn(async move { drop(listener.accept().await) });
    let (code, _, stderr) = on_socket(&socket, "ps").await;
    server.abort();
    assert_eq!(code, 1);
    assert!(stderr.contains("lost the connection to the agent") || stderr.contains("speak gRPC"), "{stderr}");
    assert!(script.calls().is_empty());
}

#[tokio::test]
async fn help_is_output_and_a_wrong_flag_is_an_error() {
    let outcome = sampan("run --help").await;
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""));
    assert!(outcome.stdout.contains("--publish") && outcome.stdout.contains("--interactive"));
    let outcome = sampan("ps --bogus").await;
    assert_eq!((outcome.code, outcome.stdout.as_str()), (1, ""));
    assert!(outcome.stderr.starts_with("sampan: unexpected argument '--bogus'"), "{}", outcome.stderr);
    <Arguments as clap::CommandFactory>::command().debug_assert();
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_it_quietly() {
    struct Closed;
    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("sampan.sock");
    let server = Script::default().serve(&socket);
    let stderr = Captured::default();
    let mut out = Output::new(Box::new(Closed), Box::new(stderr.clone()));
    let arguments = ["sampan".into(), "--socket".into(), socket.into(), OsString::from("ps")];
    assert_eq!(execute(arguments, &mut out).await, failure::BROKEN_PIPE);
    assert_eq!(stderr.text(), "");
    server.abort();
}

#[tokio::test]
async fn history_has_dockers_columns_and_cuts_long_commands() {
    let outcome = sampan("history nginx").await;
    let lines = [
        "IMAGE          CREATED         CREATED BY                                      SIZE    COMMENT",
        "aaaaaaaaaaaa   3 minutes ago   /bin/sh -c #(nop) CMD [\"nginx\" \"-g\" \"daemon …   0B      made",
        "<missing>      N/A             ADD rootfs /                                    187MB",
    ];
    assert_eq!(outcome.stdout.lines().collect::<Vec<_>>(), lines);
    assert_eq!(sampan("history -q nginx").await.stdout, "aaaaaaaaaaaa\n<missing>\n");
    assert!(!sampan("history --no-trunc nginx").await.stdout.contains('…'));
    let steps = json(&sampan("image history --output json nginx").await.stdout);
    assert_eq!((&steps[1]["id"], &steps[1]["size"]), (&serde_json::Value::Null, &187_400_000.into()));
}

#[tokio::test]
async fn archives_pass_through_and_names_are_told() {
    assert_eq!(sampan("save nginx busybox").await.stdout, "tar of images");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("images.tar");
    let written = sampan(&format!("save -o {} nginx", file.display())).await;
    assert_eq!((written.code, written.calls), (0, vec!["save nginx".to_owned()]));
    let loaded = sampan(&format!("load -i {}", file.display())).await;
    assert_eq!(loaded.calls, ["load tar of images"]);
    assert_eq!(loaded.stdout, "Loaded image: nginx:1\nLoaded image ID: sha256:bb\n");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    assert_eq!(sampan("tag nginx web:2").await.calls, ["tag nginx web:2"]);
}

#[tokio::test]
async fn disk_usage_adds_up() {
    let lines = [
        "TYPE          TOTAL   ACTIVE   SIZE    INODES   RECLAIMABLE",
        "Images        2       1        200MB   20       50MB (25%)",
        "Containers    1       0        4.1kB   1        4.1kB (100%)",
        "Build Cache   0       0        0B      0        0B (0%)",
    ];
    assert_eq!(sampan("system df").await.stdout.lines().collect::<Vec<_>>(), lines);
}
