//! A command or an attachment with a client: the same for every transport.
//!
//! A transport gives the ends of the streams that were asked for; here they are given to the session, and its outcome
//! goes to the error stream once all output is on its way. A client that is gone ends the command: the transport drops
//! the future.

use serde::Deserialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::{mpsc, oneshot},
};

use super::status::{Format, status};
use crate::{
    error::Result,
    pods::{
        Pods,
        session::{self, Attachment, Size, Streams},
    },
};

/// What a client wants to be connected with.
#[derive(Debug, Clone)]
pub(crate) struct Command {
    /// The container's id.
    pub(crate) container: String,
    /// What to run; absent: attach to what runs.
    pub(crate) argv: Option<Vec<String>>,
    /// Whether there is a terminal. Excludes stderr.
    pub(crate) tty: bool,
    /// Whether the client sends input.
    pub(crate) stdin: bool,
    /// Whether it wants output.
    pub(crate) stdout: bool,
    /// Whether it wants the other output.
    pub(crate) stderr: bool,
}

/// The streams of a client, as its transport made them.
pub(super) struct Ends {
    pub(super) error: DuplexStream,
    pub(super) stdin: Option<DuplexStream>,
    pub(super) stdout: Option<DuplexStream>,
    pub(super) stderr: Option<DuplexStream>,
    pub(super) resize: Option<DuplexStream>,
    /// Each is ready when an output has been sent.
    pub(super) sent: Vec<oneshot::Receiver<()>>,
    /// How the end is told.
    pub(super) format: Format,
}

impl Command {
    /// Runs it and tells the client how it ended. All ends are dropped then.
    pub(super) async fn run(self, pods: &Pods, ends: Ends) {
        let Ends { mut error, stdin, stdout, stderr, resize, sent, format } = ends;
        let (sizes, receiver) = mpsc::channel(4);
        let streams = Streams {
            stdin: stdin.map(|end| Box::new(end) as _),
            stdout: stdout.map(|end| Box::new(end) as _),
            stderr: stderr.map(|end| Box::new(end) as _),
            resize: receiver,
        };
        // Sizes are of no use without a terminal, and whoever takes none must not be waited for.
        let resize = resize.filter(|_| self.tty);
        let outcome = {
            let mut work = std::pin::pin!(self.session(pods, streams));
            tokio::select! {
                outcome = &mut work => outcome,
                () = forward_sizes(resize, sizes) => work.await,
            }
        };
        for output in sent {
            let _ = output.await;
        }
        let text = status(format, &outcome);
        tracing::debug!(container.id = %self.container, status = %text, "a streaming session ends");
        let _ = error.write_all(text.as_bytes()).await;
    }

    async fn session(&self, pods: &Pods, streams: Streams) -> Result<i32> {
        let found = pods.find_container(&self.container)?;
        let (context, pod) = (pods.context(), &found.pod.record.id);
        match &self.argv {
            Some(argv) => {
                let command = session::Command::new(argv.clone(), self.tty);
                session::exec(context, pod, &found.container, command, streams).await
            }
            None => {
                let attachment = Attachment::new(context, pod, &found.container).await?;
                attachment.carry(streams).await.map(|()| 0)
            }
        }
    }
}

/// A size as clients send it.
#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Resize {
    width: u16,
    height: u16,
}

/// Reads one JSON object after the other, however they are cut, until the stream ends or makes no sense.
async fn forward_sizes(stream: Option<DuplexStream>, sizes: mpsc::Sender<Size>) {
    /// An object has about thirty bytes.
    const LIMIT: usize = 4 << 10;
    let Some(mut stream) = stream else { return };
    let mut text = Vec::new();
    loop {
        let (complete, length) = match parse_sizes(&text) {
            Ok(parsed) => parsed,
            Err(error) => {
                tracing::debug!(%error, "a client's terminal size is not readable");
                return;
            }
        };
        for Resize { width, height } in complete {
            if width > 0 && height > 0 && sizes.send(Size { columns: width, rows: height }).await.is_err() {
                return;
            }
        }
        text.drain(..length);
        if text.len() >= LIMIT || !matches!(stream.read_buf(&mut text).await, Ok(1..)) {
            return;
        }
    }
}

/// The complete objects at the beginning, and how many bytes they take.
fn parse_sizes(text: &[u8]) -> serde_json::Result<(Vec<Resize>, usize)> {
    let mut stream = serde_json::Deserializer::from_slice(text).into_iter();
    let (mut sizes, mut length) = (Vec::new(), 0);
    loop {
        match stream.next() {
            Some(Ok(size)) => sizes.push(size),
            Some(Err(error)) if !error.is_eof() => return Err(error),
            _ => return Ok((sizes, length)),
        }
        length = stream.byte_offset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn sizes_come_through_however_they_are_cut() {
        let text = br#"{"Width":80,"Height":24}{"Width":0,"Height":1} {"Height":50,"Width":132}"#;
        for piece in [1, 7, 25, 100] {
            let (mut client, end) = tokio::io::duplex(1024);
            let (sender, mut sizes) = mpsc::channel(8);
            let task = tokio::spawn(forward_sizes(Some(end), sender));
            for part in text.chunks(piece) {
                client.write_all(part).await.unwrap();
                tokio::task::yield_now().await;
            }
            drop(client);
            task.await.unwrap();
            assert_eq!(sizes.recv().await, Some(Size { columns: 80, rows: 24 }));
            assert_eq!(sizes.recv().await, Some(Size { columns: 132, rows: 50 }));
            assert_eq!(sizes.recv().await, None);
        }
    }

    #[tokio::test]
    async fn nonsense_instead_of_sizes_ends_the_reading() {
        for text in [&b"x"[..], br#"{"Width":-1,"Height":2}"#, &[b' '; 8 << 10]] {
            let (mut client, end) = tokio::io::duplex(16 << 10);
            let (sender, mut sizes) = mpsc::channel(1);
            client.write_all(text).await.unwrap();
            forward_sizes(Some(end), sender).await;
            assert_eq!(sizes.recv().await, None);
        }
    }
}
