//! `GetContainerEvents`: what happens to pods and containers, as it happens, for kubelet's evented PLEG.
//!
//! A pod's own events carry the pod's id in place of a container's.

use std::sync::Arc;

use sampan_proto::cri;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::{Items, convert_status};
use crate::{
    context::Context,
    events::{Action, Event, Heard, Listener, Told},
};

/// Events that may wait for a slow client; those that don't fit wait in the journal.
const QUEUE: usize = 16;

pub(super) fn call(context: Arc<Context>) -> Items<cri::ContainerEventResponse> {
    let listener = context.events.listen(None);
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move { context.feed(&sender, tell(listener, &sender)).await });
    Box::pin(ReceiverStream::new(receiver)) as Items<_>
}

async fn tell(mut listener: Listener, sender: &mpsc::Sender<Result<cri::ContainerEventResponse, Status>>) {
    loop {
        // kubelet lists everything again from time to time: that is what fills a gap.
        let Heard::Event(told) = listener.next().await else { continue };
        if let Some(response) = convert(told)
            && sender.send(Ok(response)).await.is_err()
        {
            return;
        }
    }
}

fn convert(Told { event, pod }: Told) -> Option<cri::ContainerEventResponse> {
    let event: &Event = &event;
    let kind = match event.action {
        Action::Create => cri::ContainerEventType::ContainerCreatedEvent,
        Action::Start => cri::ContainerEventType::ContainerStartedEvent,
        Action::Die => cri::ContainerEventType::ContainerStoppedEvent,
        Action::Remove => cri::ContainerEventType::ContainerDeletedEvent,
        Action::Oom | Action::Pull => return None,
    };
    // An image's event, or one too old for kubelet to trust.
    let pod = pod?;
    Some(cri::ContainerEventResponse {
        container_id: event.id.clone(),
        container_event_type: kind as i32,
        created_at: event.at,
        pod_sandbox_status: Some(convert_status::pod_status(&pod)),
        containers_statuses: convert_status::container_statuses(&pod),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::{Events, Object};

    #[tokio::test]
    async fn images_are_no_news_to_kubelet() {
        let folder = tempfile::tempdir().unwrap();
        let events = Arc::new(Events::open(folder.path(), "boot").unwrap());
        let mut listener = events.listen(None);
        events.tell(Object::Image, Action::Remove, "sha256:aa", None, []);
        let Some(Heard::Event(told)) = listener.now().await else { panic!("nothing") };
        assert_eq!(convert(told), None);
    }
}
