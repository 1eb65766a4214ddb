//! SPDY/3.1 frames: bytes to frames and back.
//!
//! Lengths are never trusted: a control frame has a largest size, and the payload of a data frame is not read
//! here at all, so that its reader can take it in pieces. No input panics.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

#[cfg(test)]
use super::header::Deflater;
use super::header::{Headers, Inflater, Replies};

/// Most bytes of a control frame's payload; a block of headers is the largest.
const CONTROL_LIMIT: u32 = 16 << 10;
const VERSION: u16 = 3;
const FLAG_FIN: u8 = 1;
const SETTING_INITIAL_WINDOW: u32 = 7;

/// What a reset says; section 2.6.3.
pub(super) mod reset {
    pub(in super::super) const PROTOCOL_ERROR: u32 = 1;
    pub(in super::super) const REFUSED_STREAM: u32 = 3;
    pub(in super::super) const STREAM_IN_USE: u32 = 8;
}

/// What a goaway says; section 2.6.6.
pub(super) mod goaway {
    pub(in super::super) const OK: u32 = 0;
    pub(in super::super) const PROTOCOL_ERROR: u32 = 1;
}

/// What a peer sent that is not SPDY/3.1, or that is more than it may send.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("read from the client")]
    Read(#[from] io::Error),
    #[error("SPDY version {0} instead of 3")]
    Version(u16),
    #[error("a control frame of type {kind} with {length} bytes")]
    Length { kind: u16, length: u32 },
    #[error("a block of headers: {0}")]
    Headers(&'static str),
}

/// A frame as it comes from the peer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    SynStream {
        stream: u32,
        headers: Headers,
        fin: bool,
    },
    Reset {
        stream: u32,
    },
    Settings {
        /// The window of new streams, and a change of that of open ones.
        initial_window: Option<u32>,
    },
    Ping {
        id: u32,
    },
    GoAway,
    WindowUpdate {
        /// 0: the whole connection.
        stream: u32,
        delta: u32,
    },
    /// `length` bytes of payload follow, and the reader must take them.
    Data {
        stream: u32,
        fin: bool,
        length: u32,
    },
    /// SYN_REPLY, HEADERS and types nobody knows: they mean nothing to a server of streams.
    Other {
        /// When it ends the peer's side of a stream.
        fin: Option<u32>,
    },
}

/// Reads frames of one connection.
#[derive(Debug)]
pub(super) struct Decoder {
    inflater: Inflater,
    payload: Vec<u8>,
}

impl Decoder {
    pub(super) fn new() -> Decoder {
        Decoder { inflater: Inflater::new(), payload: Vec::new() }
    }

    /// The next frame; `None` when the peer has closed the connection.
    pub(super) async fn read(
        &mut self,
        reader: &mut (impl AsyncRead + Unpin),
    ) -> Result<Option<Frame>, Error> {
        let mut head = [0; 8];
        if reader.read(&mut head[..1]).await? == 0 {
            return Ok(None);
        }
        reader.read_exact(&mut head[1..]).await?;
        let [a, b, c, d, flags, length @ ..] = head;
        let fin = flags & FLAG_FIN != 0;
        let length = u32::from_be_bytes([0, length[0], length[1], length[2]]);
        if a & 0x80 == 0 {
            let stream = u32::from_be_bytes([a, b, c, d]);
            return Ok(Some(Frame::Data { stream, fin, length }));
        }
        let version = u16::from_be_bytes([a & 0x7f, b]);
        let kind = u16::from_be_bytes([c, d]);
        if version != VERSION {
            return Err(Error::Version(version));
        }
        if length > CONTROL_LIMIT {
            return Err(Error::Length { kind, length });
        }
        self.payload.clear();
        let read = reader.take(u64::from(length)).read_to_end(&mut self.payload).await?;
        if read != usize::try_from(length).unwrap_or(usize::MAX) {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        self.control(kind, fin).map(Some)
    }

    fn control(&mut self, kind: u16, fin: bool) -> Result<Frame, Error> {
        let payload = self.payload.as_slice();
        let wrong = || Error::Length { kind, length: u32::try_from(payload.len()).unwrap_or(u32::MAX) };
        let word = |index: usize| {
            let bytes = payload.get(index * 4..).and_then(|rest| rest.first_chunk());
            bytes.map(|bytes| u32::from_be_bytes(*bytes)).ok_or_else(wrong)
        };
        let stream = || word(0).map(|word| word & 0x7fff_ffff);
        Ok(match kind {
            1 => {
                // Stream, associated stream, priority and slot, headers.
                let block = payload.get(10..).ok_or_else(wrong)?;
                Frame::SynStream { stream: stream()?, headers: self.inflater.headers(block)?, fin }
            }
            2 | 8 => {
                let stream = stream()?;
                // The compressor's state spans blocks, so that one is inflated even if nobody reads it.
                self.inflater.headers(payload.get(4..).ok_or_else(wrong)?)?;
                Frame::Other { fin: fin.then_some(stream) }
            }
            3 => Frame::Reset { stream: stream()? },
            4 => settings(word(0)?, payload.get(4..).ok_or_else(wrong)?).ok_or_else(wrong)?,
            6 => Frame::Ping { id: word(0)? },
            7 => Frame::GoAway,
            9 => Frame::WindowUpdate { stream: stream()?, delta: word(1)? & 0x7fff_ffff },
            _ => Frame::Other { fin: None },
        })
    }
}

fn settings(count: u32, entries: &[u8]) -> Option<Frame> {
    let (entries, rest) = entries.as_chunks::<8>();
    if !rest.is_empty() || u32::try_from(entries.len()) != Ok(count) {
        return None;
    }
    let mut initial_window = None;
    for [_flags, a, b, c, value @ ..] in entries {
        if u32::from_be_bytes([0, *a, *b, *c]) == SETTING_INITIAL_WINDOW {
            initial_window = Some(u32::from_be_bytes(*value).min(0x7fff_ffff));
        }
    }
    Some(Frame::Settings { initial_window })
}

/// A control frame as it goes to the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Control {
    SynReply {
        stream: u32,
    },
    Reset {
        stream: u32,
        status: u32,
    },
    Ping {
        id: u32,
    },
    GoAway {
        last: u32,
        status: u32,
    },
    WindowUpdate {
        stream: u32,
        delta: u32,
    },
    #[cfg(test)]
    SynStream {
        stream: u32,
        headers: Headers,
        fin: bool,
    },
    #[cfg(test)]
    Settings {
        initial_window: u32,
    },
}

/// Writes frames of one connection.
#[derive(Debug)]
pub(super) struct Encoder {
    replies: Replies,
    #[cfg(test)]
    deflater: Deflater,
}

impl Encoder {
    pub(super) fn new() -> Encoder {
        Encoder {
            replies: Replies::default(),
            #[cfg(test)]
            deflater: Deflater::new(),
        }
    }

    /// Appends a control frame.
    pub(super) fn control(&mut self, frame: &Control, output: &mut Vec<u8>) {
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
        let (kind, flags, payload) = match *frame {
            Control::SynReply { stream } => {
                let mut payload = words(&[stream]);
                self.replies.block(&mut payload);
                (2, 0, payload)
            }
            Control::Reset { stream, status } => (3, 0, words(&[stream, status])),
            Control::Ping { id } => (6, 0, words(&[id])),
            Control::GoAway { last, status } => (7, 0, words(&[last, status])),
            Control::WindowUpdate { stream, delta } => (9, 0, words(&[stream, delta])),
            #[cfg(test)]
            Control::SynStream { stream, ref headers, fin } => {
                let mut payload = words(&[stream, 0]);
                payload.extend_from_slice(&[0, 0]);
                self.deflater.headers(headers, &mut payload);
                (1, u8::from(fin), payload)
            }
            #[cfg(test)]
            Control::Settings { initial_window } => {
                (4, 0, words(&[1, SETTING_INITIAL_WINDOW, initial_window]))
            }
        };
        output.extend_from_slice(&(0x8000 | VERSION).to_be_bytes());
        output.extend_from_slice(&u16::to_be_bytes(kind));
        put_length(flags, payload.len(), output);
        output.extend_from_slice(&payload);
    }

    /// Appends a data frame.
    pub(super) fn data(stream: u32, fin: bool, bytes: &[u8], output: &mut Vec<u8>) {
        output.extend_from_slice(&(stream & 0x7fff_ffff).to_be_bytes());
        put_length(u8::from(fin) * FLAG_FIN, bytes.len(), output);
        output.extend_from_slice(bytes);
    }
}

fn put_length(flags: u8, length: usize, output: &mut Vec<u8>) {
    debug_assert!(length < 1 << 24, "frames are made of pieces of a few KiB");
    let [_, length @ ..] = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    output.push(flags);
    output.extend_from_slice(&length);
}
