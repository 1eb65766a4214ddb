//! `EventService`: what happens, from any number on that is still kept.

use std::sync::Arc;

use sampan_proto::sampan::{self, event_service_server::EventService, stream_events_response::Item};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Status};

use super::{Feed, Reply};
use crate::{context::Context, events::Heard};

/// Events that may wait for a slow client; those that don't fit wait in the journal.
const QUEUE: usize = 64;

/// The service.
#[derive(Debug, Clone)]
pub struct EventsOfNode {
    /// What it tells of.
    pub context: Arc<Context>,
}

#[tonic::async_trait]
impl EventService for EventsOfNode {
    type StreamEventsStream = Feed<sampan::StreamEventsResponse>;

    async fn stream_events(
        &self,
        request: Request<sampan::StreamEventsRequest>,
    ) -> Reply<Self::StreamEventsStream> {
        let request = request.into_inner();
        let from = match request.from_sequence {
            0 if request.follow && request.since == 0 => None,
            0 => Some(self.context.events.oldest().await),
            sequence => Some(sequence),
        };
        let (sender, receiver) = mpsc::channel(QUEUE);
        let context = self.context.clone();
        tokio::spawn(async move { context.feed(&sender, tell(&context, from, request, &sender)).await });
        Ok(ReceiverStream::new(receiver).into())
    }
}

async fn tell(
    context: &Context,
    from: Option<u64>,
    request: sampan::StreamEventsRequest,
    sender: &mpsc::Sender<Result<sampan::StreamEventsResponse, Status>>,
) {
    let mut listener = context.events.listen(from);
    loop {
        let heard = match request.follow {
            true => Some(listener.next().await),
            false => listener.now().await,
        };
        let Some(heard) = heard else { return };
        let item = match heard {
            Heard::Event(told) if told.event.at < request.since => continue,
            Heard::Event(told) => Item::Event(convert(&told.event)),
            Heard::Gap { from, to } => Item::Gap(sampan::EventGap { from_sequence: from, to_sequence: to }),
        };
        if sender.send(Ok(sampan::StreamEventsResponse { item: Some(item) })).await.is_err() {
            return;
        }
    }
}

fn convert(event: &crate::events::Event) -> sampan::Event {
    sampan::Event {
        sequence: event.sequence,
        at: event.at,
        object: event.object.word().to_owned(),
        action: event.action.word().to_owned(),
        id: event.id.clone(),
        pod_sandbox_id: event.pod.clone().unwrap_or_default(),
        attributes: event.attributes.clone().into_iter().collect(),
    }
}
