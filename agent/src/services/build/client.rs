//! What a build tells its client: at the client's own pace, and never at the price of the build or its log.
//!
//! What happens is queued and nobody waits. Of a client that is slow only output is left out, in whole pieces and with a word
//! about it where it is missing; the kept log has all of it.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use sampan_imagestore::build::{Event, Output};
use sampan_proto::sampan::build_response::Event as Said;
use tokio::{sync::mpsc, task::JoinHandle};

use super::{Answers, answer, convert};

/// Bytes of output that may wait for the client.
const WAITING: usize = 8 << 20;
/// Pieces of output are joined up to this.
const JOINED: usize = 64 << 10;
/// What a message costs beside its output.
const MESSAGE: usize = 128;

/// The client's end of a build.
pub(super) struct Client {
    queue: mpsc::UnboundedSender<(Said, usize)>,
    waiting: Arc<AtomicUsize>,
    /// Bytes that were left out, by step.
    missing: HashMap<u32, usize>,
}

impl Client {
    /// The second is done when all that was told is with the client, or the client is gone.
    pub(super) fn new(answers: Answers) -> (Client, JoinHandle<()>) {
        let (queue, mut queued) = mpsc::unbounded_channel::<(Said, usize)>();
        let waiting = Arc::new(AtomicUsize::new(0));
        let counted = waiting.clone();
        let giving = tokio::spawn(async move {
            let mut next = queued.recv().await;
            while let Some((mut said, mut size)) = next.take() {
                // Pieces that follow one another go as one: HTTP/2 takes a flood of tiny frames for an attack.
                while let Ok((following, more)) = queued.try_recv() {
                    if let Some(following) = joined(&mut said, following) {
                        next = Some((following, more));
                        break;
                    }
                    size += more;
                }
                // The log has the rest when the client is gone.
                let _ = answer(&answers, said).await;
                counted.fetch_sub(size, Ordering::Relaxed);
                if next.is_none() {
                    next = queued.recv().await;
                }
            }
        });
        (Client { queue, waiting, missing: HashMap::new() }, giving)
    }

    pub(super) fn tell(&mut self, event: Event) {
        let full = self.waiting.load(Ordering::Relaxed) > WAITING;
        match &event {
            Event::Log { step, output } if full => {
                *self.missing.entry(*step).or_default() += output.data.len();
                return;
            }
            Event::Log { step, output } => self.fill(*step, output.time),
            Event::Pull { .. } if full => return,
            Event::Step(step) if step.finished > 0 => self.fill(step.id, step.finished),
            _ => {}
        }
        self.queue(event);
    }

    /// Says what was left out before.
    fn fill(&mut self, step: u32, time: i64) {
        if let Some(bytes) = self.missing.remove(&step) {
            let data = format!("\n[{bytes} bytes are left out here; 'sampan builder logs' has them]\n");
            let output = Output { stderr: true, data: data.into_bytes(), time };
            self.queue(Event::Log { step, output });
        }
    }

    fn queue(&self, event: Event) {
        let size = match &event {
            Event::Log { output, .. } => MESSAGE + output.data.len(),
            _ => MESSAGE,
        };
        self.waiting.fetch_add(size, Ordering::Relaxed);
        // Whoever gave it on is gone with the client.
        let _ = self.queue.send((convert::event(event), size));
    }
}

/// Joins output to what was said before of the same stream; gives back what cannot be.
fn joined(said: &mut Said, following: Said) -> Option<Said> {
    match (said, following) {
        (Said::Log(log), Said::Log(more))
            if (log.step, log.stderr) == (more.step, more.stderr) && log.data.len() < JOINED =>
        {
            log.data.extend(more.data);
            None
        }
        (_, following) => Some(following),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_client_misses_output_and_is_told_so_and_nothing_else() {
        let (answers, mut received) = mpsc::channel(1);
        let (mut client, giving) = Client::new(answers);
        let said = |byte: u8, length: usize| {
            let output = Output { stderr: false, data: vec![byte; length], time: 1 };
            Event::Log { step: 3, output }
        };
        client.tell(said(b'a', WAITING + 1));
        client.tell(said(b'b', 1000));
        client.tell(Event::Wanted(vec![7]));
        let ended = sampan_imagestore::build::StepEvent { id: 3, finished: 5, ..Default::default() };
        client.tell(Event::Step(ended));
        drop(client);
        let mut heard = Vec::new();
        while let Some(message) = received.recv().await {
            heard.push(match message.unwrap().event.unwrap() {
                Said::Log(log) if log.data[0] == b'a' => "output".to_owned(),
                Said::Log(log) => String::from_utf8(log.data).unwrap(),
                Said::Wanted(_) => "wanted".to_owned(),
                Said::Step(_) => "step".to_owned(),
                other => panic!("{other:?}"),
            });
        }
        giving.await.unwrap();
        assert_eq!([&heard[0], &heard[1], &heard[3]], ["output", "wanted", "step"]);
        assert!(heard[2].contains("1000 bytes are left out"), "{heard:?}");
    }
}
