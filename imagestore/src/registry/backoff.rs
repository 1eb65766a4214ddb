//! Pauses between attempts: how long, how often, and what the registry has to say to it.

use std::{
    hash::{BuildHasher, RandomState},
    time::{Duration, SystemTime},
};

use reqwest::header::{HeaderMap, RETRY_AFTER};

use super::{Error, Patience};

/// Pauses between attempts: longer each time, as long as the registry asks, and not for ever.
pub(super) struct Backoff<'a> {
    patience: &'a Patience,
    failures: u32,
}

impl Backoff<'_> {
    pub(super) fn new(patience: &Patience) -> Backoff<'_> {
        Backoff { patience, failures: 0 }
    }

    /// There was progress: what failed before does not count any more.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Returns when it is time for another attempt, or the error if there is to be none.
    pub(super) async fn pause(&mut self, error: Error) -> Result<(), Error> {
        self.failures += 1;
        let wanted = match error.retry() {
            Some(wanted) if self.failures < self.patience.attempts => wanted,
            _ => return Err(error),
        };
        if wanted > self.patience.retry_after {
            return Err(error);
        }
        let doubled = self.patience.backoff * 2u32.pow((self.failures - 1).min(5));
        // A node's pulls fail together; they need not come back together.
        let jitter = RandomState::new().hash_one(()) % 256;
        let pause = doubled.max(wanted) + doubled.mul_f64(jitter as f64 / 1024.0);
        tracing::debug!(error = %error, pause_ms = pause.as_millis() as u64, "registry is asked again");
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// `Retry-After` in either of its forms (RFC 9110, section 10.2.3).
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let time = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
    Some(Duration::from_secs(time.as_second().try_into().ok()?).saturating_sub(now))
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    fn headers(value: &'static str) -> HeaderMap {
        [(RETRY_AFTER, HeaderValue::from_static(value))].into_iter().collect()
    }

    #[test]
    fn retry_after_is_read_in_both_forms() {
        assert_eq!(retry_after(&headers("7")), Some(Duration::from_secs(7)));
        assert_eq!(retry_after(&headers("Wed, 21 Oct 2015 07:28:00 GMT")), Some(Duration::ZERO));
        let far = retry_after(&headers("Fri, 01 Jan 2100 00:00:00 GMT")).unwrap();
        assert!(far > Duration::from_secs(365 * 86400));
        assert_eq!(retry_after(&headers("soon")), None);
        assert_eq!(retry_after(&headers("-1")), None);
    }

    #[tokio::test]
    async fn attempts_are_bounded_and_a_long_wait_is_refused() {
        let patience = Patience { backoff: Duration::from_millis(1), ..Patience::default() };
        let error = |retry_after: u64| Error::Status {
            host: String::new(),
            status: 429,
            what: String::new(),
            detail: String::new(),
            retry_after: Some(Duration::from_secs(retry_after)),
        };
        let mut backoff = Backoff::new(&patience);
        let start = tokio::time::Instant::now();
        backoff.pause(error(1)).await.unwrap();
        assert!(start.elapsed() >= Duration::from_secs(1));
        for _ in 0..3 {
            backoff.pause(error(0)).await.unwrap();
        }
        backoff.pause(error(0)).await.unwrap_err();
        Backoff::new(&patience).pause(error(3600)).await.unwrap_err();
    }
}
