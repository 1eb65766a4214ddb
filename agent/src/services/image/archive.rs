//! `Save` and `Load`: archives in pieces, through channels that hold only a few of them.

use std::{
    io::{self, Read, Write},
    sync::Arc,
};

use sampan_imagestore::{Image, Reference};
use sampan_proto::sampan;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::{
    context::blocking,
    error::{Error, Result},
    pods::Pods,
};

/// Bytes in a message.
const PIECE: usize = 256 << 10;
/// Messages that may wait for whoever is slower.
const WAITING: usize = 4;

/// The images that are meant, each with the names it is to keep: the one that it was asked for by.
pub(super) fn chosen(pods: &Pods, wanted: &[String]) -> Result<Vec<(Arc<Image>, Vec<Reference>)>> {
    let mut chosen: Vec<(Arc<Image>, Vec<Reference>)> = Vec::new();
    for name in wanted {
        let image = super::find(pods, name)?;
        let named = name.parse::<Reference>().ok();
        let named = named.filter(|reference| image.repo_tags.contains(&reference.to_string()));
        match chosen.iter_mut().find(|(known, _)| known.id == image.id) {
            Some((_, names)) => names.extend(named.filter(|named| !names.contains(named))),
            None => chosen.push((image, named.into_iter().collect())),
        }
    }
    if chosen.is_empty() {
        return Err(Error::Invalid("no image is named".into()));
    }
    Ok(chosen)
}

/// Writes the archive into the channel; the end of the channel is its end.
pub(super) async fn save(
    pods: Pods,
    images: Vec<(Arc<Image>, Vec<Reference>)>,
    sender: mpsc::Sender<Result<sampan::SaveResponse, Status>>,
) {
    let store = pods.context().store.clone();
    blocking(move || {
        let mut pieces = Pieces { sender, piece: Vec::with_capacity(PIECE) };
        if let Err(error) = store.save(&images, &mut pieces) {
            let _ = pieces.sender.blocking_send(Err(Error::from(error).into()));
        }
    })
    .await;
}

/// A piece of an archive on its way to a client.
type Message = Result<sampan::SaveResponse, Status>;

pub(super) fn channel() -> (mpsc::Sender<Message>, mpsc::Receiver<Message>) {
    mpsc::channel(WAITING)
}

/// A writer that sends what it is given in pieces of one size.
struct Pieces {
    sender: mpsc::Sender<Message>,
    piece: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend_from_slice(&bytes[..length]);
        if self.piece.len() == PIECE {
            self.flush()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        let data = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE));
        if data.is_empty() {
            return Ok(());
        }
        let sent = self.sender.blocking_send(Ok(sampan::SaveResponse { data }));
        sent.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the client has gone away"))
    }
}

/// Reads the client's archive into the store.
pub(super) async fn load(
    pods: &Pods,
    mut pieces: Streaming<sampan::LoadRequest>,
) -> Result<sampan::LoadResponse, Status> {
    let (sender, receiver) = mpsc::channel(WAITING);
    let store = pods.context().store.clone();
    let loading = tokio::spawn(blocking(move || {
        let input = Incoming { receiver, piece: Vec::new(), at: 0 };
        store.load(input)
    }));
    loop {
        let piece = match pieces.message().await {
            Ok(Some(request)) => Ok(request.data),
            Ok(None) => break,
            Err(status) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, status.message())),
        };
        let broken = piece.is_err();
        // Closed: the load has come to its end before the archive has, and says why.
        if sender.send(piece).await.is_err() || broken {
            break;
        }
    }
    drop(sender);
    let loaded = loading.await.map_err(|error| Status::internal(error.to_string()))?.map_err(Error::from)?;
    let image = |loaded: sampan_imagestore::Loaded| sampan::LoadedImage {
        id: loaded.image.id.to_string(),
        names: loaded.names,
    };
    Ok(sampan::LoadResponse { images: loaded.into_iter().map(image).collect() })
}

/// The client's side as a reader.
struct Incoming {
    receiver: mpsc::Receiver<io::Result<Vec<u8>>>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            match self.receiver.blocking_recv() {
                Some(piece) => (self.piece, self.at) = (piece?, 0),
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.piece.len() - self.at);
        buffer[..length].copy_from_slice(&self.piece[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}
