//! Commands over SPDY: one stream for each of stdin, stdout, stderr, resizing and errors, named by a header.

use std::time::Duration;

use tokio::{io::DuplexStream, time::timeout};

use super::{
    command::{Command, Ends},
    pump::Client,
    spdy::{Connection, Limits},
    status::Format,
};
use crate::pods::Pods;

/// How long a client may take to open its streams.
pub(super) const CREATION: Duration = Duration::from_secs(30);
/// Five have a meaning; what else is opened is ended at once.
const LIMITS: Limits = Limits { streams: 8 };

/// The protocols that may run in SPDY, best first; "channel.k8s.io" is the first there was.
pub(super) const PROTOCOLS: [&str; 4] =
    ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];

/// Serves a client whose upgrade agreed on one of [`PROTOCOLS`].
pub(super) async fn serve(pods: &Pods, command: Command, protocol: &str, client: Client) {
    let mut connection = Connection::new(client, LIMITS);
    let ends = match timeout(CREATION, collect(&mut connection, &command, protocol)).await {
        Ok(Some(ends)) => ends,
        Ok(None) => return,
        Err(_) => {
            tracing::debug!(container.id = %command.container, "a client did not open the streams it asked for");
            return;
        }
    };
    tokio::select! {
        () = command.run(pods, ends) => {}
        () = connection.closed() => return,
    }
    connection.finish().await;
}

/// Waits until every stream that belongs to the command is there; `None` when the client is gone before.
async fn collect(connection: &mut Connection, command: &Command, protocol: &str) -> Option<Ends> {
    let resizes = command.tty && matches!(protocol, "v3.channel.k8s.io" | "v4.channel.k8s.io");
    let wanted = [
        ("error", true),
        ("stdin", command.stdin),
        ("stdout", command.stdout),
        ("stderr", command.stderr),
        ("resize", resizes),
    ];
    let mut streams: [Option<DuplexStream>; 5] = Default::default();
    let mut sent = Vec::new();
    while wanted.iter().zip(&streams).any(|((_, wanted), stream)| *wanted && stream.is_none()) {
        let stream = connection.accept().await?;
        let kind = stream.headers.get("streamtype").unwrap_or_default();
        match wanted.iter().position(|(name, wanted)| *wanted && *name == kind) {
            Some(index) if streams[index].is_none() => {
                if matches!(kind, "stdout" | "stderr") {
                    sent.push(stream.sent);
                }
                streams[index] = Some(stream.io);
            }
            _ => tracing::debug!(kind, "a client opened a stream that it did not ask for"),
        }
    }
    let [error, stdin, stdout, stderr, resize] = streams;
    let format = if protocol == "v4.channel.k8s.io" { Format::Json } else { Format::Text };
    Some(Ends { error: error?, stdin, stdout, stderr, resize, sent, format })
}

#[cfg(test)]
mod tests {
    use super::{super::spdy::tests::Peer, *};

    const COMMAND: Command = Command {
        container: String::new(),
        argv: None,
        tty: false,
        stdin: true,
        stdout: true,
        stderr: false,
    };

    async fn collected(command: &Command, protocol: &str, kinds: &[&str]) -> Option<Ends> {
        let (mut peer, mut connection) = Peer::connect(8);
        for (number, kind) in (0..).zip(kinds) {
            peer.open_with(number * 2 + 1, &[("streamtype", kind)]).await;
        }
        timeout(Duration::from_millis(300), collect(&mut connection, command, protocol)).await.ok().flatten()
    }

    #[tokio::test]
    async fn a_command_begins_when_all_its_streams_are_there() {
        for protocol in PROTOCOLS {
            assert!(collected(&COMMAND, protocol, &["error", "stdin"]).await.is_none(), "{protocol}");
            let ends = collected(&COMMAND, protocol, &["stdout", "error", "stdin"]).await.unwrap();
            assert!(ends.stdin.is_some() && ends.stdout.is_some() && ends.stderr.is_none());
            assert_eq!(ends.sent.len(), 1);
            assert_eq!(ends.format == Format::Json, protocol == PROTOCOLS[0], "{protocol}");
        }
    }

    #[tokio::test]
    async fn a_terminal_has_sizes_from_version_three_on() {
        let terminal = Command { tty: true, ..COMMAND };
        for (index, protocol) in PROTOCOLS.iter().enumerate() {
            let without = collected(&terminal, protocol, &["error", "stdin", "stdout"]).await;
            assert_eq!(without.is_some(), index >= 2, "{protocol}");
            let with = collected(&terminal, protocol, &["error", "stdin", "resize", "stdout"]).await.unwrap();
            assert_eq!(with.resize.is_some(), index < 2, "{protocol}");
        }
    }

    #[tokio::test]
    async fn streams_nobody_asked_for_are_passed_over() {
        let kinds = ["stderr", "error", "stdin", "stdin", "nonsense", "resize", "stdout"];
        let ends = collected(&COMMAND, PROTOCOLS[0], &kinds).await.unwrap();
        assert!(ends.stderr.is_none() && ends.resize.is_none());
    }
}
