//! kubectl over SPDY, and over WebSocket where it knows that.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use sampan_tests::{Agent, eventually, http_get, with_agent};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStderr};

use super::api::Api;
use super::client::{Speech, kubectl, run};
use super::{SLEEPER, SOON, resident, runs, target};

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_exec_gets_output_errors_and_the_exit_code() {
    with_agent(async |agent| {
        let (target, api) = target(agent, SLEEPER).await;
        for speech in Speech::BOTH {
            let script = "echo out; echo err >&2; exit 7";
            let words = ["exec", "target", "-c", "c", "--", "sh", "-c", script];
            let ended = run(kubectl(&api, speech, agent.base(), &words), b"").await;
            assert_eq!(ended.text(), "out\n", "{ended:?}");
            assert!(ended.stderr.starts_with("err\n"), "{ended:?}");
            assert!(ended.stderr.contains("exit code 7"), "{ended:?}");
            assert_eq!(ended.code, Some(7), "{ended:?}");
            let words = ["exec", "target", "-c", "c", "--", "true"];
            let ended = run(kubectl(&api, speech, agent.base(), &words), b"").await;
            assert_eq!((ended.code, ended.text().as_str(), ended.stderr.as_str()), (Some(0), "", ""));
            let seen = api.seen();
            assert_eq!(seen.len(), 2, "{seen:?}");
            for asked in &seen {
                assert!(speech.fits(asked).await, "{speech:?}: {seen:?}");
            }
        }
        target.cri.clear_pod(&target.pod).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_exec_feeds_stdin_and_its_end() {
    with_agent(async |agent| {
        let (target, api) = target(agent, SLEEPER).await;
        let input: Vec<u8> = (0..5_000_000_u32).map(|index| index.to_le_bytes()[0]).collect();
        for speech in Speech::BOTH {
            let words = ["exec", "-i", "target", "-c", "c", "--", "cat"];
            let ended = run(kubectl(&api, speech, agent.base(), &words), &input).await;
            assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
            assert_eq!(ended.stdout.len(), input.len(), "{speech:?}");
            assert!(ended.stdout == input, "{speech:?}: other bytes came back");
        }
        target.cri.clear_pod(&target.pod).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_dies_with_its_client() {
    with_agent(async |agent| {
        let (target, api) = target(agent, SLEEPER).await;
        for (speech, command) in [(Speech::Spdy, "sleep 4811"), (Speech::Newest, "sleep 4812")] {
            let words = ["exec", "target", "-c", "c", "--", "sh", "-c", &format!("{command}; true")];
            let mut child = kubectl(&api, speech, agent.base(), &words).spawn().unwrap();
            eventually("it runs", SOON, async || {
                runs(&target.cri, &target.container, command).await.then_some(())
            })
            .await;
            child.kill().await.unwrap();
            eventually("it is gone", SOON, async || {
                (!runs(&target.cri, &target.container, command).await).then_some(())
            })
            .await;
        }
        target.cri.clear_pod(&target.pod).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_costs_little_and_is_noticed_when_it_goes() {
    with_agent(async |agent| {
        let (target, api) = target(agent, SLEEPER).await;
        let before = resident(agent);
        let words = ["exec", "target", "-c", "c", "--", "yes"];
        let mut command = kubectl(&api, Speech::Spdy, agent.base(), &words);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        eventually("it runs", SOON, async || runs(&target.cri, &target.container, "yes").await.then_some(()))
            .await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let grown = resident(agent).saturating_sub(before);
        assert!(grown < 8 << 20, "grown by {grown} bytes");
        assert_eq!(target.cri.sh(&target.container, "echo alive").await, "alive");
        child.kill().await.unwrap();
        eventually("it is gone", SOON, async || {
            (!runs(&target.cri, &target.container, "yes").await).then_some(())
        })
        .await;
        target.cri.clear_pod(&target.pod).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_port_forward_carries_many_connections_and_both_ends() {
    with_agent(async |agent| {
        let web = "mkdir -p /tmp/w; head -c 3000000 /dev/zero > /tmp/w/large; echo hello > /tmp/w/index.html;
            (while :; do nc -l -p 81 -e sh -c 'sha256sum; sleep 1; echo late'; done) & exec httpd -f -p 80 -h /tmp/w";
        let (target, api) = target(agent, web).await;
        for speech in Speech::BOTH {
            let mut forward = Forward::start(&api, speech, agent, &["80", "81", "82"]).await;
            let [web, echo, nobody] = [80, 81, 82].map(|port| forward.local(port));
            let listening = "netstat -ltn | grep -q ':80 ' && netstat -ltn | grep -q ':81 ' && echo yes || echo no";
            eventually("both servers listen", SOON, async || {
                (target.cri.sh(&target.container, listening).await == "yes").then_some(())
            })
            .await;
            assert!(fetch(web, "/index.html").await.ends_with("hello\n"));
            let fetches: Vec<_> = (0..20).map(|_| tokio::spawn(async move { fetch(web, "/large").await })).collect();
            for fetched in fetches {
                let (_, body) = fetched.await.unwrap().split_once("\r\n\r\n").map(|(a, b)| (a.len(), b.len())).unwrap();
                assert_eq!(body, 3_000_000);
            }
            // The client ends its side; what the pod says after that still comes.
            let mut stream = TcpStream::connect(echo).await.unwrap();
            stream.write_all(b"abc").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("ba7816bf") && answer.ends_with("late\n"), "{answer:?}");
            let mut stream = TcpStream::connect(nobody).await.unwrap();
            assert_eq!(stream.read_to_end(&mut Vec::new()).await.unwrap_or(0), 0);
            let complaint = forward.complaint().await;
            assert!(complaint.contains("82"), "{complaint}");
            assert!(speech.fits(&api.seen()[0]).await, "{speech:?}");
        }
        target.cri.clear_pod(&target.pod).await.unwrap();
    })
    .await;
}

/// A running `kubectl port-forward`.
struct Forward {
    locals: HashMap<u16, SocketAddr>,
    complaints: Lines<BufReader<ChildStderr>>,
    _child: Child,
}

impl Forward {
    async fn start(api: &Api, speech: Speech, agent: &Agent, ports: &[&str]) -> Forward {
        let ports: Vec<_> = ports.iter().map(|port| format!(":{port}")).collect();
        let mut words = vec!["port-forward", "--address", "127.0.0.1", "pod/target"];
        words.extend(ports.iter().map(String::as_str));
        let mut command = kubectl(api, speech, agent.base(), &words);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let complaints = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut locals = HashMap::new();
        while locals.len() < ports.len() {
            let line = tokio::time::timeout(SOON, lines.next_line()).await.unwrap().unwrap().unwrap();
            let (local, remote) = line.strip_prefix("Forwarding from ").unwrap().split_once(" -> ").unwrap();
            locals.insert(remote.parse().unwrap(), local.parse().unwrap());
        }
        // It prints a line for each connection, and dies when nobody reads it.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Forward { locals, complaints, _child: child }
    }

    fn local(&self, port: u16) -> SocketAddr {
        self.locals[&port]
    }

    /// The next error that it prints.
    async fn complaint(&mut self) -> String {
        let line = tokio::time::timeout(SOON, self.complaints.next_line());
        line.await.expect("an error").unwrap().unwrap_or_default()
    }
}

async fn fetch(address: SocketAddr, path: &str) -> String {
    let path = path.to_owned();
    let fetched = tokio::task::spawn_blocking(move || http_get(address, &path)).await.unwrap();
    fetched.unwrap_or_default()
}
