//! Flow control towards the peer (section 2.6.8): how much each stream and the whole connection may still send.
//!
//! The library that Kubernetes' Go clients use never opens a window: a server that kept to it would stop for
//! ever after 64 KiB, and TCP is what holds such a client's server back. So the account is kept from the first byte,
//! but binds only once the peer has shown, by a WINDOW_UPDATE or a setting, that it keeps one too.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use super::super::pump::Credit;

/// What a side may send before it hears of a window.
const INITIAL: i64 = 64 << 10;
/// The largest a window may become.
const LARGEST: i64 = 0x7fff_ffff;

/// The windows of one connection.
#[derive(Debug)]
pub(super) struct Windows {
    account: Mutex<Account>,
    changed: Notify,
}

#[derive(Debug)]
struct Account {
    binding: bool,
    initial: i64,
    connection: i64,
    streams: HashMap<u32, i64>,
}

impl Windows {
    pub(super) fn new() -> Windows {
        let account =
            Account { binding: false, initial: INITIAL, connection: INITIAL, streams: HashMap::new() };
        Windows { account: Mutex::new(account), changed: Notify::new() }
    }

    /// Begins a stream.
    pub(super) fn open(&self, stream: u32) {
        let mut account = self.account();
        let initial = account.initial;
        account.streams.insert(stream, initial);
    }

    /// Forgets a stream.
    pub(super) fn close(&self, stream: u32) {
        self.account().streams.remove(&stream);
    }

    /// The peer's WINDOW_UPDATE.
    pub(super) fn add(&self, stream: u32, delta: u32) {
        let mut account = self.account();
        account.binding = true;
        let window = match stream {
            0 => Some(&mut account.connection),
            _ => account.streams.get_mut(&stream),
        };
        if let Some(window) = window {
            *window = (*window + i64::from(delta)).min(LARGEST);
        }
        drop(account);
        self.changed.notify_waiters();
    }

    /// The peer's setting for every stream; those that are open change by the difference.
    pub(super) fn set_initial(&self, size: u32) {
        let mut account = self.account();
        account.binding = true;
        let difference = i64::from(size) - account.initial;
        account.initial = i64::from(size);
        for window in account.streams.values_mut() {
            *window = (*window + difference).min(LARGEST);
        }
        drop(account);
        self.changed.notify_waiters();
    }

    fn account(&self) -> MutexGuard<'_, Account> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Credit for Windows {
    async fn take(&self, stream: u32, wanted: usize) -> usize {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if let Some(granted) = self.account().grant(stream, wanted) {
                return granted;
            }
            changed.await;
        }
    }
}

impl Account {
    fn grant(&mut self, stream: u32, wanted: usize) -> Option<usize> {
        // A stream that was forgotten has been reset; its sender is about to end.
        let window = self.streams.get_mut(&stream)?;
        let wanted = i64::try_from(wanted).unwrap_or(i64::MAX);
        let granted = if self.binding { wanted.min(*window).min(self.connection) } else { wanted };
        if granted <= 0 && wanted > 0 {
            return None;
        }
        *window -= granted;
        self.connection -= granted;
        usize::try_from(granted).ok()
    }
}
