//! Commands and containers with somebody at the other end.

use std::io::{self, BufRead as _, BufReader, Lines, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStdout};

use sampan_proto::sampan::{
    AttachRequest, AttachStart, ExecRequest, ExecStart, TerminalSize, attach_request, attach_response,
    container_service_client::ContainerServiceClient, exec_request, exec_response,
};
use sampan_tests::{Agent, Cri, Ctr, eventually, with_agent};
use tokio::time::timeout;
use tokio_stream::StreamExt as _;

use super::{SOON, busybox};

/// A container that sleeps, made through CRI; gives client, pod and container.
async fn sleeper(agent: &Agent) -> (Cri, String, String) {
    let image = busybox(agent).await;
    let (cri, pod) = (agent.cri(), agent.pod("session"));
    let pod_id = cri.run_pod(&pod).await.unwrap();
    let id = cri.run(&pod_id, &Ctr::sleeper("c", &image, &pod), &pod).await.unwrap();
    (cri, pod_id, id)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_reads_its_input_to_the_end_and_its_streams_stay_apart() {
    with_agent(async |agent| {
        let (cri, pod, id) = sleeper(agent).await;
        let cli = agent.cli();
        let output =
            cli.run_with_input(&["exec", "-i", &id, "sh", "-c", "cat; echo err >&2; exit 4"], "one\ntwo\n");
        assert_eq!((output.stdout.as_str(), output.stderr.as_str(), output.code), ("one\ntwo\n", "err\n", 4));
        let long = "0123456789\n".repeat(100_000);
        let output = cli.run_with_input(&["exec", "-i", &id, "cat"], &long);
        assert_eq!((output.stdout.len(), output.code), (long.len(), 0));
        assert!(output.stdout == long, "nothing is lost or changed");
        let output = cli.run(&["exec", &id, "cat"]);
        assert_eq!((output.stdout.as_str(), output.code), ("", 0), "without -i there is no input");
        cri.clear_pod(&pod).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_may_have_another_user_folder_and_environment() {
    with_agent(async |agent| {
        let (cri, pod, id) = sleeper(agent).await;
        let cli = agent.cli();
        let script = "echo $(id -u):$(id -g) $PWD $COLOUR";
        let text =
            cli.ok(&["exec", "-u", "1000:1001", "-w", "/tmp", "-e", "COLOUR=red", &id, "sh", "-c", script]);
        assert_eq!(text, "1000:1001 /tmp red");
        let output = cli.run(&["exec", "-u", "nobody-knows", &id, "true"]);
        assert!(output.code != 0 && output.stderr.contains("nobody-knows"), "{output:?}");
        assert_eq!(cli.run(&["exec", &id, "/no/such"]).code, 127);
        let output = cli.run(&["exec", "--timeout", "1", &id, "sleep", "4811"]);
        assert!(output.code == 1 && output.stderr.contains("longer than 1 s"), "{output:?}");
        eventually("the command is gone", SOON, async || {
            cri.sh(&id, "ps | grep 'sleep 4811' | grep -v grep || true").await.is_empty().then_some(())
        })
        .await;
        cri.clear_pod(&pod).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_takes_its_command_along() {
    with_agent(async |agent| {
        let (cri, pod, id) = sleeper(agent).await;
        let mut client =
            agent.cli().spawn(&["exec", &id, "sh", "-c", "echo ready; setsid sleep 4812 & sleep 4812"]);
        first_line(&mut client, "ready");
        client.kill().unwrap();
        client.wait().unwrap();
        eventually("the command is gone", SOON, async || {
            cri.sh(&id, "ps | grep 'sleep 4812' | grep -v grep || true").await.is_empty().then_some(())
        })
        .await;
        cri.clear_pod(&pod).await.unwrap();
    })
    .await;
}

fn first_line(client: &mut Child, expected: &str) {
    let mut line = String::new();
    BufReader::new(client.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim_end(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_in_the_foreground_takes_our_input_and_gives_its_code() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), busybox(agent).await);
        let script = "while read line; do echo got $line; done; echo bye >&2; exit 6";
        let output = cli.run_with_input(&["run", "-i", "--rm", &image, "sh", "-c", script], "a\nb\n");
        assert_eq!(
            (output.stdout.as_str(), output.stderr.as_str(), output.code),
            ("got a\ngot b\n", "bye\n", 6)
        );
        assert_eq!(cli.json(&["ps", "-a"]), serde_json::json!([]));
        let output = cli.run_with_input(&["run", "-i", "--rm", &image, "/no/such"], "");
        assert_eq!(output.code, 127, "{output:?}");
        assert_eq!(cli.json(&["ps", "-a"]), serde_json::json!([]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_created_waits_for_its_start_and_is_then_attached_to() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), busybox(agent).await);
        let script = "echo begin; while read line; do echo got $line; done; echo end";
        let id = cli.ok(&["create", "-i", "--name", "later", &image, "sh", "-c", script]);
        assert_eq!(cli.json(&["ps", "-a"])[0]["state"], "created");
        let mut watcher = cli.spawn(&["start", "-a", "later"]);
        first_line(&mut watcher, "begin");
        let again = cli.run(&["start", "later"]);
        assert!(again.code == 1 && again.stderr.contains("running"), "{again:?}");
        let output = cli.run_with_input(&["attach", &id], "x\n");
        assert!(output.stdout.ends_with("got x\nend\n"), "{output:?}");
        let mut rest = String::new();
        watcher.stdout.take().unwrap().read_to_string(&mut rest).unwrap();
        assert!(rest.ends_with("end\n"), "{rest}");
        assert!(watcher.wait().unwrap().success());
        assert_eq!(cli.ok(&["logs", "later"]), "begin\ngot x\nend", "the log has it all");
        let late = cli.run(&["attach", "later"]);
        assert!(late.code == 1 && late.stderr.contains("not running"), "{late:?}");
        cli.ok(&["rm", "later"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_stops_reading_holds_up_nobody() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), busybox(agent).await);
        let script = "read go; yes 0123456789012345678901234567890123456789 | head -n 400000; echo done";
        cli.ok(&["create", "-i", "--name", "flood", &image, "sh", "-c", script]);
        // Its pipe is full after 64 KiB, and nobody reads it.
        let mut lazy = cli.spawn(&["start", "-a", "flood"]);
        eventually("it runs", SOON, async || {
            (cli.json(&["ps", "-a"])[0]["state"] == "running").then_some(())
        })
        .await;
        let output = cli.run_with_input(&["attach", "flood"], "go\n");
        assert_eq!(output.code, 0);
        assert!(cli.ok(&["logs", "--tail", "1", "flood"]).ends_with("done"));
        lazy.kill().unwrap();
        lazy.wait().unwrap();
        cli.ok(&["rm", "flood"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_port_leads_into_the_pod() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), busybox(agent).await);
        cli.ok(&[
            "run",
            "-d",
            "--network",
            "none",
            "--name",
            "web",
            &image,
            "sh",
            "-c",
            "mkdir /w; echo hello > /w/index.html; httpd -f -p 127.0.0.1:80 -h /w",
        ]);
        let mut forward = cli.spawn(&["port-forward", "web", "0:80", "0:81"]);
        let mut lines = BufReader::new(forward.stdout.take().unwrap()).lines();
        let (served, empty) = (local_address(&mut lines), local_address(&mut lines));
        let fetch = |address| {
            let mut connection = TcpStream::connect(address).unwrap();
            connection.set_read_timeout(Some(SOON)).unwrap();
            connection.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").unwrap();
            io::read_to_string(connection)
        };
        let page = async || fetch(served).is_ok_and(|text| text.ends_with("hello\n")).then_some(());
        eventually("the page", SOON, page).await;
        match fetch(empty) {
            Ok(text) => assert_eq!(text, "", "nobody listens there"),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
        forward.kill().unwrap();
        forward.wait().unwrap();
        cli.ok(&["rm", "-f", "web"]);
    })
    .await;
}

/// The next address that `sampan port-forward` says it listens on.
fn local_address(lines: &mut Lines<BufReader<ChildStdout>>) -> SocketAddr {
    let line = lines.next().unwrap().unwrap();
    line.strip_prefix("Forwarding from ").unwrap().split(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_side_of_a_forwarded_connection_has_its_own_end() {
    with_agent(async |agent| {
        let (cli, image) = (agent.cli(), busybox(agent).await);
        cli.ok(&["run", "-d", "--network", "host", "--name", "host", &image, "sleep", "4813"]);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut forward = cli.spawn(&["port-forward", "host", &format!("0:{port}")]);
        let mut lines = BufReader::new(forward.stdout.take().unwrap()).lines();
        let address = local_address(&mut lines);
        let connect = || {
            let client = TcpStream::connect(address).unwrap();
            let (server, _) = listener.accept().unwrap();
            for end in [&client, &server] {
                end.set_read_timeout(Some(SOON)).unwrap();
            }
            (client, server)
        };
        let says_its_last = |mut from: &TcpStream, to: &TcpStream, word: &str| {
            from.write_all(word.as_bytes()).unwrap();
            from.shutdown(Shutdown::Write).unwrap();
            assert_eq!(io::read_to_string(to).unwrap(), word);
        };
        let (client, server) = connect();
        says_its_last(&server, &client, "from the pod");
        says_its_last(&client, &server, "from the client");
        let (client, server) = connect();
        says_its_last(&client, &server, "from the client");
        says_its_last(&server, &client, "from the pod");
        forward.kill().unwrap();
        forward.wait().unwrap();
        cli.ok(&["rm", "-f", "host"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_that_nobody_takes_hold_up_no_input() {
    use {attach_request::Message as ToAttach, exec_request::Message as ToExec};
    with_agent(async |agent| {
        let (cri, pod, id) = sleeper(agent).await;
        let mut client = ContainerServiceClient::new(agent.channel());
        let size = TerminalSize { columns: 80, rows: 24 };
        let start = ExecStart {
            container: id.clone(),
            command: vec!["cat".into()],
            stdin: true,
            size: Some(size),
            ..ExecStart::default()
        };
        let messages =
            [ToExec::Start(start), ToExec::Resize(size), ToExec::Resize(size), ToExec::Stdin(b"word".into())];
        let requests = messages.map(|message| ExecRequest { message: Some(message) });
        let mut answers = client.exec(tokio_stream::iter(requests)).await.unwrap().into_inner();
        let mut next = async || timeout(SOON, answers.message()).await.unwrap().unwrap().unwrap().message;
        assert_eq!(next().await, Some(exec_response::Message::Stdout(b"word".into())));
        assert_eq!(next().await, Some(exec_response::Message::ExitCode(0)));

        let image = busybox(agent).await;
        let name = agent.cli().ok(&["run", "-d", "-i", &image, "cat"]);
        let start = AttachStart { container: name.clone(), stdin: true, size: Some(size) };
        let messages = [
            ToAttach::Start(start),
            ToAttach::Resize(size),
            ToAttach::Resize(size),
            ToAttach::Stdin(b"word".into()),
        ];
        let requests = messages.map(|message| AttachRequest { message: Some(message) });
        let open = tokio_stream::iter(requests).chain(tokio_stream::pending());
        let mut answers = client.attach(open).await.unwrap().into_inner();
        let mut next = async || timeout(SOON, answers.message()).await.unwrap().unwrap().unwrap().message;
        assert!(matches!(next().await, Some(attach_response::Message::Attached(_))));
        assert_eq!(next().await, Some(attach_response::Message::Stdout(b"word".into())));
        agent.cli().ok(&["rm", "-f", &name]);
        cri.clear_pod(&pod).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_and_containers_have_terminals() {
    with_agent(async |agent| {
        let (cri, pod, id) = sleeper(agent).await;
        let (cli, image) = (agent.cli(), busybox(agent).await);
        let script = "tty; test -t 0 && test -t 1 && test -t 2 && echo all; echo $TERM; read line; echo got $line; exit 4";
        let output = cli.run_on_terminal(&["exec", "-it", &id, "sh", "-c", script], "word\n");
        assert_eq!(output.code, 4, "{output:?}");
        for text in ["/dev/pts/0\r\n", "all\r\n", "xterm\r\n", "got word\r\n"] {
            assert!(output.stdout.contains(text), "{text:?}: {output:?}");
        }
        let output = cli.run_on_terminal(&["run", "-it", "--rm", &image, "sh", "-c", script], "word\n");
        assert_eq!(output.code, 4, "{output:?}");
        assert!(output.stdout.contains("/dev/pts/0\r\n") && output.stdout.contains("got word\r\n"), "{output:?}");
        let output = cli.run(&["exec", "-it", &id, "true"]);
        assert!(output.code == 1 && output.stderr.contains("not a terminal"), "{output:?}");
        let output = cli.run(&["exec", "-t", &id, "tty"]);
        assert_eq!((output.stdout.as_str(), output.code), ("/dev/pts/0\r\n", 0), "without -i none is needed here");
        cri.clear_pod(&pod).await.unwrap();
    })
    .await;
}
