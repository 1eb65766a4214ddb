//! Single flight: one piece of work for everybody who asks for the same at the same time.
//!
//! The work is a task of its own. Whoever waits may go away, the first one included, and the work goes on for
//! the others; with the last one gone it is cancelled.
//!
//! ```text
//!   join ──► new ──► running ──────────► finished: every waiter has the result
//!              ▲        │ last waiter drops
//!              │        ▼
//!   next join ─┴── cancelled: the task winds up on its own, nobody joins it
//! ```

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

/// The work in flight, by what it is about. `S` is what all who wait share with the work while it runs.
#[derive(Debug)]
pub(crate) struct Flights<K, S, T>(Arc<Mutex<HashMap<K, Flight<S, T>>>>);

#[derive(Debug)]
struct Flight<S, T> {
    /// Tells this flight from a later one about the same.
    token: Arc<CancellationToken>,
    shared: Arc<S>,
    waiters: usize,
    result: watch::Receiver<Option<T>>,
}

impl<K, S, T> Clone for Flights<K, S, T> {
    fn clone(&self) -> Self {
        Flights(self.0.clone())
    }
}

impl<K, S, T> Default for Flights<K, S, T> {
    fn default() -> Self {
        Flights(Arc::default())
    }
}

impl<K, S, T> Flights<K, S, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    S: Default + Send + Sync + 'static,
    T: Clone + Send + Sync + 'static,
{
    /// Waits for the work about `key`, begun by `start` if nobody has. `join` sees the shared state in any case.
    /// `None` if the work panicked.
    pub(crate) async fn run<F: Future<Output = T> + Send + 'static>(
        &self,
        key: K,
        join: impl FnOnce(&S),
        start: impl FnOnce(Arc<S>, CancellationToken) -> F,
    ) -> Option<T> {
        let (mut result, _waiter) = {
            let mut flights = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let flight = flights.entry(key.clone()).or_insert_with(|| self.launch(&key, start));
            flight.waiters += 1;
            join(&flight.shared);
            let token = flight.token.clone();
            (flight.result.clone(), Waiter { flights: self.0.clone(), key, token })
        };
        result.wait_for(Option::is_some).await.ok()?.clone()
    }

    fn launch<F: Future<Output = T> + Send + 'static>(
        &self,
        key: &K,
        start: impl FnOnce(Arc<S>, CancellationToken) -> F,
    ) -> Flight<S, T> {
        let (sender, result) = watch::channel(None);
        let (token, shared) = (Arc::new(CancellationToken::new()), Arc::new(S::default()));
        let work = start(shared.clone(), (*token).clone());
        let (flights, key, own) = (self.0.clone(), key.clone(), token.clone());
        let task = async move {
            // Also when the work panics: whoever asks next starts anew.
            let landed = Landed { flights, key, token: own };
            let outcome = work.await;
            drop(landed);
            let _ = sender.send(Some(outcome));
        };
        tokio::spawn(task.in_current_span());
        Flight { token, shared, waiters: 0, result }
    }
}

struct Landed<K: Eq + Hash, S, T> {
    flights: Arc<Mutex<HashMap<K, Flight<S, T>>>>,
    key: K,
    token: Arc<CancellationToken>,
}

impl<K: Eq + Hash, S, T> Drop for Landed<K, S, T> {
    fn drop(&mut self) {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if flights.get(&self.key).is_some_and(|flight| Arc::ptr_eq(&flight.token, &self.token)) {
            flights.remove(&self.key);
        }
    }
}

struct Waiter<K: Eq + Hash, S, T> {
    flights: Arc<Mutex<HashMap<K, Flight<S, T>>>>,
    key: K,
    token: Arc<CancellationToken>,
}

impl<K: Eq + Hash, S, T> Drop for Waiter<K, S, T> {
    fn drop(&mut self) {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(flight) = flights.get_mut(&self.key) else { return };
        if !Arc::ptr_eq(&flight.token, &self.token) {
            return;
        }
        flight.waiters -= 1;
        if flight.waiters == 0 {
            flights.remove(&self.key);
            self.token.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        time::Duration,
    };

    use super::*;

    type Counted = Flights<&'static str, (), usize>;

    async fn ask(
        flights: &Counted,
        starts: &Arc<AtomicUsize>,
        cancelled: &Arc<AtomicUsize>,
    ) -> Option<usize> {
        let (starts, cancelled) = (starts.clone(), cancelled.clone());
        let work = |_, token: CancellationToken| async move {
            let start = starts.fetch_add(1, Ordering::SeqCst);
            tokio::select! {
                () = token.cancelled() => { cancelled.fetch_add(1, Ordering::SeqCst); }
                () = tokio::time::sleep(Duration::from_millis(200)) => {}
            }
            start
        };
        flights.run("key", |()| (), work).await
    }

    #[tokio::test]
    async fn many_who_ask_share_one_piece_of_work() {
        let (flights, starts, cancelled) = <(Counted, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let asked = (0..50).map(|_| ask(&flights, &starts, &cancelled));
        assert_eq!(futures_util::future::join_all(asked).await, vec![Some(0); 50]);
        assert_eq!(ask(&flights, &starts, &cancelled).await, Some(1));
        assert_eq!(cancelled.load(Ordering::SeqCst), 0);
    }

    #[tokio::test]
    async fn a_leader_that_leaves_takes_nobody_along() {
        let (flights, starts, cancelled) = <(Counted, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let leader = tokio::time::timeout(Duration::from_millis(1), ask(&flights, &starts, &cancelled));
        let (led, followed) = tokio::join!(leader, ask(&flights, &starts, &cancelled));
        assert!(led.is_err());
        assert_eq!(followed, Some(0));
    }

    #[tokio::test]
    async fn the_last_to_leave_cancels_the_work_and_the_next_starts_anew() {
        let (flights, starts, cancelled) = <(Counted, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let left = tokio::time::timeout(Duration::from_millis(1), ask(&flights, &starts, &cancelled)).await;
        assert!(left.is_err());
        assert_eq!(ask(&flights, &starts, &cancelled).await, Some(1));
        assert_eq!(cancelled.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn work_that_panics_is_no_work_and_does_not_stay() {
        let flights = Counted::default();
        let outcome = flights.run("key", |()| (), |_, _| async { panic!("on purpose") }).await;
        assert_eq!(outcome, None);
        assert_eq!(flights.run("key", |()| (), |_, _| async { 5 }).await, Some(5));
    }
}
