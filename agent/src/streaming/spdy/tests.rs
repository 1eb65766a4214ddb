//! Our end of SPDY/3.1 against a peer that is played here, over a pipe; and frames and header blocks as bytes, right ones and
//! whatever else a client may send.

use std::{
    future::pending,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::{
    connection::{Connection, Limits, Stream},
    frame::{Control, Decoder, Encoder, Error, Frame},
    header::{BLOCK_LIMIT, Deflater, Headers, Inflater, Replies, dictionary},
};
use crate::streaming::pump::Client;

fn headers(pairs: &[(&str, &str)]) -> Headers {
    Headers(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
}

fn decode(bytes: &[u8]) -> Result<Vec<Frame>, Error> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (mut decoder, mut rest, mut frames) = (Decoder::new(), bytes, Vec::new());
        while let Some(frame) = decoder.read(&mut rest).await? {
            if let Frame::Data { length, .. } = frame {
                let length = usize::try_from(length).unwrap();
                rest = rest.get(length..).unwrap_or_default();
            }
            frames.push(frame);
        }
        Ok(frames)
    })
}

#[test]
fn the_dictionary_is_that_of_the_specification() {
    // Its Adler-32 is what every compressed stream names it by.
    let (mut a, mut b) = (1, 0);
    for byte in dictionary() {
        a = (a + u32::from(byte)) % 65521;
        b = (b + a) % 65521;
    }
    assert_eq!((dictionary().len(), b << 16 | a), (1423, 0xe3c6_a7c2));
}

#[test]
fn blocks_of_one_connection_share_their_compression() {
    let (mut deflater, mut inflater) = (Deflater::new(), Inflater::new());
    let mut lengths = Vec::new();
    for _ in 0..3 {
        let sent = headers(&[("streamtype", "stdout"), ("x", "")]);
        let mut block = Vec::new();
        deflater.headers(&sent, &mut block);
        assert_eq!(inflater.headers(&block).unwrap(), sent);
        lengths.push(block.len());
    }
    assert!(lengths[2] < lengths[0], "{lengths:?}");
}

#[test]
fn our_replies_are_read_as_blocks_without_headers() {
    let (mut replies, mut inflater) = (Replies::default(), Inflater::new());
    for _ in 0..3 {
        let mut block = Vec::new();
        replies.block(&mut block);
        assert!(block.ends_with(&[0, 0, 0, 0xff, 0xff]), "without a flush Go's inflater waits for more");
        assert_eq!(inflater.headers(&block).unwrap(), Headers::default());
    }
}

#[test]
fn a_block_that_inflates_without_end_is_refused() {
    let mut block = Vec::new();
    let bomb = headers(&[("x", &"0".repeat(BLOCK_LIMIT))]);
    Deflater::new().headers(&bomb, &mut block);
    assert!(block.len() < 1000, "{}", block.len());
    assert!(matches!(Inflater::new().headers(&block), Err(Error::Headers(_))));
}

#[test]
fn a_length_that_lies_is_refused_before_anything_is_allocated() {
    // 4 GiB of headers in a SYN_STREAM of 16 MiB.
    let huge = [0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff];
    assert!(matches!(decode(&huge), Err(Error::Length { kind: 1, length: 0x00ff_ffff })));
    for kind in [1, 2, 3, 4, 6, 8, 9] {
        let empty = [0x80, 3, 0, kind, 0, 0, 0, 0];
        assert!(decode(&empty).is_err(), "type {kind}");
    }
    assert!(matches!(decode(&[0x80, 2, 0, 1, 0, 0, 0, 0]), Err(Error::Version(2))));
}

proptest! {
    #[test]
    fn no_input_panics_or_grows(bytes in prop::collection::vec(any::<u8>(), 0..4096)) {
        let _ = decode(&bytes);
    }

    #[test]
    fn no_payload_of_a_known_type_panics(
        frames in prop::collection::vec((1u16..12, any::<u8>(), prop::collection::vec(any::<u8>(), 0..64)), 0..20),
    ) {
        let mut bytes = Vec::new();
        for (kind, flags, payload) in frames {
            bytes.extend_from_slice(&[0x80, 3]);
            bytes.extend_from_slice(&kind.to_be_bytes());
            bytes.extend_from_slice(&[flags, 0, 0, u8::try_from(payload.len()).unwrap()]);
            bytes.extend_from_slice(&payload);
        }
        let _ = decode(&bytes);
    }

    #[test]
    fn a_header_block_with_flipped_bits_is_refused_or_read(position in 0usize..60, bit in 0u8..8) {
        let mut block = Vec::new();
        Deflater::new().headers(&headers(&[("streamtype", "stdout"), ("port", "8080")]), &mut block);
        let position = position % block.len();
        block[position] ^= 1 << bit;
        let _ = Inflater::new().headers(&block);
    }

    #[test]
    fn what_is_encoded_is_decoded(
        stream in 1u32..0x7fff_ffff,
        fin: bool,
        name in "[a-z]{1,20}",
        value in "[ -~]{0,200}",
        data in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let (mut encoder, mut bytes) = (Encoder::new(), Vec::new());
        let sent = headers(&[(&name, &value)]);
        encoder.control(&Control::SynStream { stream, headers: sent.clone(), fin }, &mut bytes);
        Encoder::data(stream, fin, &data, &mut bytes);
        encoder.control(&Control::WindowUpdate { stream, delta: 7 }, &mut bytes);
        encoder.control(&Control::Ping { id: 9 }, &mut bytes);
        let length = u32::try_from(data.len()).unwrap();
        prop_assert_eq!(decode(&bytes).unwrap(), [
            Frame::SynStream { stream, headers: sent, fin },
            Frame::Data { stream, fin, length },
            Frame::WindowUpdate { stream, delta: 7 },
            Frame::Ping { id: 9 },
        ]);
        for cut in 1..bytes.len() {
            let _ = decode(&bytes[..cut]);
        }
    }
}

/// The other side of a connection.
pub(in crate::streaming) struct Peer {
    io: DuplexStream,
    encoder: Encoder,
    decoder: Decoder,
}

#[derive(Debug, PartialEq, Eq)]
enum Received {
    Frame(Frame),
    Data { stream: u32, fin: bool, bytes: Vec<u8> },
}

impl Peer {
    pub(in crate::streaming) fn connect(streams: usize) -> (Peer, Connection) {
        Peer::connect_for(streams, Duration::from_secs(3600))
    }

    fn connect_for(streams: usize, idle: Duration) -> (Peer, Connection) {
        let (io, far) = duplex(64 << 10);
        let client = Client { io: Box::new(far), gone: Box::pin(pending()), idle };
        let peer = Peer { io, encoder: Encoder::new(), decoder: Decoder::new() };
        (peer, Connection::new(client, Limits { streams }))
    }

    async fn control(&mut self, frame: Control) {
        let mut bytes = Vec::new();
        self.encoder.control(&frame, &mut bytes);
        self.io.write_all(&bytes).await.unwrap();
    }

    async fn open(&mut self, stream: u32, kind: &str) {
        self.open_with(stream, &[("streamtype", kind)]).await;
    }

    pub(in crate::streaming) async fn open_with(&mut self, stream: u32, pairs: &[(&str, &str)]) {
        self.control(Control::SynStream { stream, headers: headers(pairs), fin: false }).await;
    }

    async fn data(&mut self, stream: u32, fin: bool, data: &[u8]) {
        let mut bytes = Vec::new();
        Encoder::data(stream, fin, data, &mut bytes);
        self.io.write_all(&bytes).await.unwrap();
    }

    async fn receive(&mut self) -> Option<Received> {
        Some(match self.decoder.read(&mut self.io).await.unwrap()? {
            Frame::Data { stream, fin, length } => {
                let mut bytes = vec![0; usize::try_from(length).unwrap()];
                self.io.read_exact(&mut bytes).await.unwrap();
                Received::Data { stream, fin, bytes }
            }
            frame => Received::Frame(frame),
        })
    }

    async fn opened(streams: usize, kind: &str) -> (Peer, Connection, Stream) {
        let (mut peer, mut connection) = Peer::connect(streams);
        peer.open(1, kind).await;
        let stream = connection.accept().await.unwrap();
        assert_eq!(peer.receive().await, Some(Received::Frame(Frame::Other { fin: None })));
        (peer, connection, stream)
    }
}

#[tokio::test]
async fn a_stream_carries_bytes_both_ways_and_ends_on_each_side_alone() {
    let (mut peer, connection, mut stream) = Peer::opened(4, "data").await;
    assert_eq!((stream.id, stream.headers.get("streamType")), (1, Some("data")));
    peer.data(1, false, b"to ").await;
    peer.data(1, true, b"you").await;
    let mut text = String::new();
    stream.io.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "to you");
    stream.io.write_all(b"and back").await.unwrap();
    drop(stream.io);
    assert_eq!(
        peer.receive().await,
        Some(Received::Data { stream: 1, fin: false, bytes: b"and back".into() })
    );
    assert_eq!(peer.receive().await, Some(Received::Data { stream: 1, fin: true, bytes: vec![] }));
    stream.sent.await.unwrap();
    let finished = tokio::spawn(connection.finish());
    assert_eq!(peer.receive().await, Some(Received::Frame(Frame::GoAway)));
    assert_eq!(peer.receive().await, None);
    drop(peer);
    finished.await.unwrap();
}

#[tokio::test]
async fn what_a_user_left_behind_is_sent_before_the_goodbye() {
    let (mut peer, connection, mut stream) = Peer::opened(4, "stdout").await;
    stream.io.write_all(&[7; 20_000]).await.unwrap();
    drop(stream);
    tokio::spawn(connection.finish());
    let mut length = 0;
    loop {
        match peer.receive().await.unwrap() {
            Received::Data { fin: false, bytes, .. } => length += bytes.len(),
            Received::Data { fin: true, .. } => break,
            Received::Frame(frame) => panic!("{frame:?}"),
        }
    }
    assert_eq!(length, 20_000);
    assert_eq!(peer.receive().await, Some(Received::Frame(Frame::GoAway)));
}

#[tokio::test]
async fn a_peer_without_windows_gets_more_than_one_and_a_peer_with_them_does_not() {
    for binding in [false, true] {
        let (mut peer, _connection, mut stream) = Peer::opened(4, "stdout").await;
        if binding {
            peer.control(Control::Settings { initial_window: 64 << 10 }).await;
            peer.control(Control::Ping { id: 1 }).await;
            assert_eq!(peer.receive().await, Some(Received::Frame(Frame::Ping { id: 1 })));
        }
        let writer = tokio::spawn(async move {
            stream.io.write_all(&vec![7; 200 << 10]).await.unwrap();
            stream
        });
        let (mut length, quiet) = (0, Duration::from_millis(200));
        while let Ok(Some(Received::Data { bytes, .. })) = tokio::time::timeout(quiet, peer.receive()).await {
            length += bytes.len();
        }
        assert_eq!(length, if binding { 64 << 10 } else { 200 << 10 });
        if binding {
            // Both windows must open: the connection's alone does nothing.
            peer.control(Control::WindowUpdate { stream: 0, delta: 1 << 20 }).await;
            assert!(tokio::time::timeout(quiet, peer.receive()).await.is_err());
            peer.control(Control::WindowUpdate { stream: 1, delta: 1000 }).await;
            assert!(
                matches!(peer.receive().await, Some(Received::Data { bytes, .. }) if bytes.len() == 1000)
            );
            peer.control(Control::WindowUpdate { stream: 1, delta: 1 << 20 }).await;
            while length < (200 << 10) - 1000 {
                let Some(Received::Data { bytes, .. }) = peer.receive().await else { panic!("data") };
                length += bytes.len();
            }
        }
        writer.await.unwrap();
    }
}

#[tokio::test]
async fn a_user_that_does_not_read_holds_the_peer_back_and_memory_stays_small() {
    let (mut peer, _connection, mut stream) = Peer::opened(4, "stdin").await;
    let mut frame = Vec::new();
    Encoder::data(1, false, &vec![7; 8 << 20], &mut frame);
    let quiet = Duration::from_millis(200);
    let mut written = 0;
    while let Ok(Ok(count)) = tokio::time::timeout(quiet, peer.io.write(&frame[written..])).await {
        written += count;
    }
    assert!(written < 256 << 10, "{written} bytes were taken");
    // Once it reads, all comes, and the peer's windows are opened again as it goes.
    let reader = tokio::spawn(async move {
        let mut all = vec![0; 8 << 20];
        stream.io.read_exact(&mut all).await.unwrap();
        assert!(all.iter().all(|byte| *byte == 7));
    });
    let (mut receive, mut send) = tokio::io::split(peer.io);
    let writer = tokio::spawn(async move { send.write_all(&frame[written..]).await.unwrap() });
    let mut returned = 0;
    while returned < 8 << 20 {
        let frame = peer.decoder.read(&mut receive).await.unwrap().unwrap();
        let Frame::WindowUpdate { stream, delta } = frame else { panic!("{frame:?}") };
        returned += if stream == 1 { delta } else { 0 };
    }
    writer.await.unwrap();
    reader.await.unwrap();
}

#[tokio::test]
async fn a_user_that_is_gone_is_not_waited_for() {
    let (mut peer, _connection, stream) = Peer::opened(4, "stdin").await;
    drop(stream);
    assert_eq!(peer.receive().await, Some(Received::Data { stream: 1, fin: true, bytes: vec![] }));
    peer.data(1, false, &vec![7; 10 << 10]).await;
    peer.data(99, false, &vec![7; 1 << 10]).await;
    peer.control(Control::Ping { id: 3 }).await;
    assert_eq!(peer.receive().await, Some(Received::Frame(Frame::Ping { id: 3 })));
}

#[tokio::test]
async fn streams_beyond_the_limit_and_with_wrong_numbers_are_reset() {
    let (mut peer, _connection, _stream) = Peer::opened(1, "data").await;
    for id in [3, 2, 1] {
        peer.open(id, "data").await;
        assert_eq!(peer.receive().await, Some(Received::Frame(Frame::Reset { stream: id })));
    }
}

#[tokio::test]
async fn a_reset_ends_the_stream_for_its_user_and_makes_room() {
    let (mut peer, mut connection, mut stream) = Peer::opened(1, "data").await;
    peer.control(Control::Reset { stream: 1, status: 5 }).await;
    assert_eq!(stream.io.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    stream.io.write_all(b"x").await.unwrap_err();
    peer.open(3, "data").await;
    assert_eq!(connection.accept().await.unwrap().id, 3);
}

#[tokio::test]
async fn what_is_not_spdy_ends_the_connection_with_a_reason() {
    let (mut peer, mut connection) = Peer::connect(1);
    peer.io.write_all(b"\x80\x02\x00\x01\x00\x00\x00\x00").await.unwrap();
    assert_eq!(peer.receive().await, Some(Received::Frame(Frame::GoAway)));
    assert!(connection.accept().await.is_none());
    connection.closed().await;
}

#[tokio::test]
async fn a_connection_that_is_idle_for_too_long_ends() {
    let limit = Duration::from_millis(300);
    let (mut peer, connection) = Peer::connect_for(1, limit);
    tokio::time::sleep(limit / 2).await;
    peer.control(Control::Ping { id: 1 }).await;
    let active = Instant::now();
    connection.closed().await;
    assert!(active.elapsed() >= limit - Duration::from_millis(50), "{:?}", active.elapsed());
    drop(peer);
}
