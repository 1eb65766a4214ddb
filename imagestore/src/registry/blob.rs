//! Download of one blob: from the first byte to the last, over as many connections as it takes.
//!
//! Whoever takes the bytes sees each of them once and in order, whatever happens on the wire. A connection that
//! breaks is resumed where it broke. Progress buys patience; without progress the attempts are bounded.

use std::io;

use bytes::Bytes;
use reqwest::{
    Response, StatusCode,
    header::{CONTENT_RANGE, HeaderMap},
};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};

use super::{
    Backoff, Error, Repository,
    source::{Source, length},
    transport::host,
};
use crate::Digest;

/// What a connection has to bring to count as progress, and within one stall time as alive.
const PROGRESS: u64 = 16 << 10;
const ALIVE: usize = 4 << 10;

impl Repository {
    /// Sends the blob to `sink`, from byte `from` to its end at `size`. The digest is for the taker to check; where a
    /// mirror gave other bytes, `own_only` asks the registry itself.
    pub(crate) async fn blob(
        &self,
        digest: &Digest,
        (from, size): (u64, u64),
        own_only: bool,
        sink: &mpsc::Sender<Bytes>,
    ) -> Result<(), Error> {
        let mut backoff = Backoff::new(&self.transport.patience);
        let mut at = from;
        while at < size {
            // Another host may go on where one broke off: it is the same blob.
            let sources = self.sources(|may| may.pull)?;
            let last = sources.len() - 1;
            for (index, source) in sources.into_iter().enumerate() {
                if index < last && own_only {
                    continue;
                }
                let before = at;
                match part(source, digest, size, &mut at, sink).await {
                    Ok(()) => break,
                    Err(Error::Unwanted) => return Err(Error::Unwanted),
                    Err(error) if index < last => Self::pass_over(source, &error),
                    Err(error) => {
                        if at - before >= PROGRESS {
                            backoff.reset();
                        }
                        backoff.pause(error).await?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// As much as one connection gives. `at` is how much the sink has.
async fn part(
    source: &Source,
    digest: &Digest,
    size: u64,
    at: &mut u64,
    sink: &mpsc::Sender<Bytes>,
) -> Result<(), Error> {
    let what = source.blob_name(digest);
    let mut response = source.get(&format!("blobs/{digest}"), "*/*", *at, &what).await?;
    let start = start(&response, *at)?;
    if let Some(length) = length(response.headers())
        && length != size - start
    {
        return Err(Error::Length { what, expected: size, actual: start + length });
    }
    // A registry that ignores ranges sends again what is here already.
    let mut skip = *at - start;
    let host = host(response.url());
    let stall = source.transport.patience.stall;
    let (mut deadline, mut fresh) = (Instant::now() + stall, 0);
    while *at < size {
        let mut chunk = match timeout_at(deadline, response.chunk()).await {
            Ok(Ok(Some(chunk))) => chunk,
            Ok(Ok(None)) => return Err(Error::Truncated { what, expected: size, actual: *at }),
            Ok(Err(source)) if ended_early(&source) => {
                return Err(Error::Truncated { what, expected: size, actual: *at });
            }
            Ok(Err(source)) => {
                let source = source.without_url();
                return Err(Error::BrokenOff { host, what, expected: size, actual: *at, source });
            }
            Err(_) => return Err(Error::Stalled { host, after: stall }),
        };
        fresh += chunk.len();
        if fresh >= ALIVE {
            (deadline, fresh) = (Instant::now() + stall, 0);
        }
        let again = skip.min(chunk.len() as u64);
        skip -= again;
        let chunk = chunk.split_off(again as usize);
        if chunk.is_empty() {
            continue;
        }
        let length = chunk.len() as u64;
        if length > size - *at {
            return Err(Error::Length { what, expected: size, actual: *at + length });
        }
        // A slow disk is no fault of the registry's.
        let waiting = Instant::now();
        sink.send(chunk).await.map_err(|_| Error::Unwanted)?;
        deadline += waiting.elapsed();
        *at += length;
    }
    Ok(())
}

/// Whether the other side closed the connection in good order, only too soon.
fn ended_early(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(|cause| {
        cause.downcast_ref().is_some_and(|error: &io::Error| error.kind() == io::ErrorKind::UnexpectedEof)
    })
}

/// The first byte of the blob that this answer has: what was asked for, or 0.
fn start(response: &Response, asked: u64) -> Result<u64, Error> {
    let error = |reason| Error::Protocol { host: host(response.url()), reason };
    match response.status() {
        StatusCode::OK => Ok(0),
        StatusCode::PARTIAL_CONTENT if range_start(response.headers()) == Some(asked) => Ok(asked),
        StatusCode::PARTIAL_CONTENT => Err(error("it sends another range than was asked for")),
        _ => Err(error("it answers a download with success and without content")),
    }
}

/// From `bytes 5-9/10`.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?;
    text.strip_prefix("bytes ")?.split_once('-')?.0.trim().parse().ok()
}
