//! Kills for want of memory: told while the container lives, and what makes of its end an end of that kind.
//!
//! Version 1 wakes us before it kills, so a wake without a kill is followed by a few more looks.

use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::Server;
use crate::cgroup::{Cgroup, Error, OomEvents};
use crate::delegate::OUT_OF_MEMORY;
use crate::shim::poll::{EventFlags, Poll, Source};
use crate::shim::protocol::{Event, Response};
use crate::shim::{chain, say};

/// How long after a wake a kill may come.
const EXPECTED: Duration = Duration::from_millis(500);
/// An end by SIGKILL so soon after a kill for want of memory comes of it: the first process itself was killed, or a shell
/// that tells what became of its child. Memory takes its time to be given back.
const CONSEQUENCE: Duration = Duration::from_secs(5);

/// The watch over one container's memory.
pub(in crate::shim) struct Memory {
    events: OomEvents,
    expected_until: Option<Instant>,
    last_kill: Option<Instant>,
}

impl Memory {
    /// Watches a cgroup. One without a controller of memory is not watched.
    pub(super) fn watch(poll: &Poll, number: u32, cgroup: &str) -> Option<Memory> {
        let events = match Cgroup::new(cgroup).and_then(|cgroup| cgroup.oom_events()) {
            Ok(events) => events,
            Err(Error::Unavailable { .. }) => return None,
            Err(error) => {
                say(&format!("watch the memory of {cgroup}: {}", chain(&error)));
                return None;
            }
        };
        // The two have the same bits.
        let awaited = EventFlags::from_bits_retain(events.awaited().bits().into());
        match poll.add(Source::Memory(number), &events, awaited) {
            Ok(()) => Some(Memory { events, expected_until: None, last_kill: None }),
            Err(Errno::EXIST) => None,
            Err(errno) => {
                say(&format!("watch the memory of {cgroup}: {errno}"));
                None
            }
        }
    }

    /// Whether a kill may be about to come.
    pub(super) fn expects(&self) -> bool {
        self.expected_until.is_some()
    }

    /// Whether there were kills since the last look.
    fn look(&mut self) -> bool {
        // A cgroup that is gone kills nobody.
        let killed = self.events.take().is_ok_and(|kills| kills > 0);
        if killed {
            self.last_kill = Some(Instant::now());
        }
        if killed || self.expected_until.is_some_and(|until| Instant::now() >= until) {
            self.expected_until = None;
        }
        killed
    }
}

impl Server {
    pub(super) fn short_of_memory(&mut self, number: u32) {
        let Some(container) = self.containers.iter_mut().find(|container| container.number == number) else {
            return;
        };
        if let Some(memory) = &mut container.memory {
            memory.expected_until = Some(Instant::now() + EXPECTED);
            self.look_for_kills(number);
        }
    }

    pub(super) fn look_again_for_kills(&mut self) {
        let expecting = |memory: &Memory| memory.expects();
        let numbers: Vec<u32> = self
            .containers
            .iter()
            .filter(|container| container.memory.as_ref().is_some_and(expecting))
            .map(|container| container.number)
            .collect();
        for number in numbers {
            self.look_for_kills(number);
        }
    }

    /// Tells subscribers of a kill that they have not heard of.
    fn look_for_kills(&mut self, number: u32) {
        let container = self.containers.iter_mut().find(|container| container.number == number);
        let Some(container) = container else { return };
        if container.memory.as_mut().is_some_and(Memory::look) {
            let id = container.id.clone();
            self.publish(Response::Event(Event::OutOfMemory { id }));
        }
    }

    /// Whether a container that was ended by SIGKILL was ended for want of memory. The watch ends with it.
    pub(super) fn died_of_memory(&mut self, number: u32) -> bool {
        self.look_for_kills(number);
        let container = self.containers.iter_mut().find(|container| container.number == number);
        let Some(container) = container else { return false };
        let died = match container.memory.take() {
            Some(memory) => memory.last_kill.is_some_and(|kill| kill.elapsed() < CONSEQUENCE),
            // Its delegate has looked before the cgroup went.
            None if container.runtime.is_some() => container.bundle.join(OUT_OF_MEMORY).exists(),
            // It could not be watched: the count of its whole life has to do.
            None => Cgroup::new(&container.cgroup)
                .and_then(|cgroup| cgroup.oom_kills())
                .is_ok_and(|kills| kills > 0),
        };
        died && !container.told_to_die
    }
}
