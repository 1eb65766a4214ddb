//! Tickets: what a URL is good for, once and for a short time.
//!
//! A ticket has 128 random bits. Kept is its hash alone, so that neither the time a look-up takes nor a look at memory
//! helps to guess one.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// How long a ticket is good for.
const LIFETIME: Duration = Duration::from_secs(60);
/// Tickets that may wait for their clients at one time.
const LIMIT: usize = 1000;

/// What was promised and not yet fetched.
#[derive(Debug)]
pub(super) struct Tickets<T> {
    waiting: HashMap<[u8; 32], Waiting<T>>,
}

#[derive(Debug)]
struct Waiting<T> {
    until: Instant,
    value: T,
}

impl<T> Tickets<T> {
    pub(super) fn new() -> Tickets<T> {
        Tickets { waiting: HashMap::new() }
    }

    /// A new ticket: 32 hexadecimal digits.
    ///
    /// # Errors
    /// `ResourceExhausted` while a thousand others wait.
    pub(super) fn issue(&mut self, value: T, now: Instant) -> Result<String> {
        if self.waiting.len() >= LIMIT {
            self.waiting.retain(|_, waiting| waiting.until > now);
        }
        if self.waiting.len() >= LIMIT {
            return Err(Error::Exhausted(format!(
                "{LIMIT} streaming requests wait for their clients; connect to their URLs or try again later"
            )));
        }
        let ticket = hex::encode(rand::random::<[u8; 16]>());
        self.waiting.insert(hash(&ticket), Waiting { until: now + LIFETIME, value });
        Ok(ticket)
    }

    /// What the ticket is for; it is void from now on.
    pub(super) fn redeem(&mut self, ticket: &str, now: Instant) -> Option<T> {
        let waiting = self.waiting.remove(&hash(ticket))?;
        (waiting.until > now).then_some(waiting.value)
    }
}

fn hash(ticket: &str) -> [u8; 32] {
    Sha256::digest(ticket).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn a_ticket_is_good_once() {
        let (mut tickets, now) = (Tickets::new(), Instant::now());
        let [first, second] = [1, 2].map(|value| tickets.issue(value, now).unwrap());
        assert_eq!(first.len(), 32);
        assert_eq!(tickets.redeem(&second, now), Some(2));
        assert_eq!(tickets.redeem(&second, now), None);
        assert_eq!(tickets.redeem(&first, now), Some(1));
        assert_eq!(tickets.redeem("", now), None);
    }

    #[test]
    fn a_ticket_is_good_for_a_minute() {
        let (mut tickets, now) = (Tickets::new(), Instant::now());
        let [early, late] = [1, 2].map(|value| tickets.issue(value, now).unwrap());
        assert_eq!(tickets.redeem(&early, now + Duration::from_secs(59)), Some(1));
        assert_eq!(tickets.redeem(&late, now + Duration::from_secs(60)), None);
    }

    #[test]
    fn a_thousand_may_wait_and_old_ones_make_room() {
        let (mut tickets, now) = (Tickets::new(), Instant::now());
        for value in 0..LIMIT {
            tickets.issue(value, now).unwrap();
        }
        assert_eq!(tickets.issue(0, now).unwrap_err().kind(), Kind::ResourceExhausted);
        tickets.issue(0, now + LIFETIME).unwrap();
        assert_eq!(tickets.waiting.len(), 1);
    }
}
