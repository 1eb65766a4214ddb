//! A container in the foreground: its output, our signals, its exit code.

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use sampan_proto::sampan::{
    LogsRequest, LogsResponse, RemoveRequest, RunRequest, StartRequest, StopRequest, WaitRequest,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tonic::{Code, Status, Streaming};

use crate::cli::{
    agent::Agent,
    attach,
    failure::{Advice, Failure},
    logs::Writer,
    output::Output,
    remove,
    session::End,
    stop::USUAL_GRACE,
};

const ADVICE: Advice = &[(Code::NotFound, "it was removed before it had ended")];

pub(super) async fn run(
    request: RunRequest,
    rm: bool,
    agent: &Agent,
    out: &mut Output,
) -> Result<u8, Failure> {
    if request.stdin || request.tty {
        return interactive(request, rm, agent, out).await;
    }
    // Before the container is there: a signal in between would leave it alone.
    let mut signals = Signals::new()?;
    let container = agent.containers().run(request).await.map_err(super::refused)?.into_inner().container_id;
    let result = stay(&container, &mut signals, agent, out).await;
    if rm {
        tidy_up(container, result.is_err(), agent, out).await;
    }
    result
}

/// Somebody sits at it: joined before it starts, so that nothing is missed.
async fn interactive(request: RunRequest, rm: bool, agent: &Agent, out: &mut Output) -> Result<u8, Failure> {
    let stdin = request.stdin;
    let request = RunRequest { create_only: true, ..request };
    let container = agent.containers().run(request).await.map_err(super::refused)?.into_inner().container_id;
    let result = async {
        let session = attach::join(&container, stdin, agent).await.map_err(Failure::plain)?;
        let request = StartRequest { container: container.clone() };
        agent.containers().start(request).await.map_err(super::refused)?;
        match session.stay(out).await? {
            End::Left => Ok(None),
            _ => attach::exit_code(&container, agent).await.map(Some),
        }
    };
    let result = result.await;
    // Whoever has left wants it to go on.
    if rm && !matches!(result, Ok(None)) {
        tidy_up(container, result.is_err(), agent, out).await;
    }
    result.map(Option::unwrap_or_default)
}

/// Removes it, with force only where staying has failed, so that nothing is left running that nobody looks at.
async fn tidy_up(container: String, force: bool, agent: &Agent, out: &mut Output) {
    let removed = agent.containers().remove(RemoveRequest { container, force }).await;
    if let Err(status) = removed
        && status.code() != Code::NotFound
    {
        out.complain(&Failure::answered(&status, remove::ADVICE));
    }
}

/// Stays with a container until it has ended and its last line is written.
async fn stay(
    container: &str,
    signals: &mut Signals,
    agent: &Agent,
    out: &mut Output,
) -> Result<u8, Failure> {
    let lost = |status: Status| Failure::answered(&status, ADVICE);
    let request = LogsRequest { container: container.to_owned(), follow: true, tail: -1, since: 0 };
    let mut logs = Some(agent.containers().logs(request).await.map_err(lost)?.into_inner());
    let mut client = agent.containers();
    let waiting = client.wait(WaitRequest { container: container.to_owned() });
    tokio::pin!(waiting);
    let mut ended = None;
    let mut writer = Writer::new(false);
    let mut stops = FuturesUnordered::new();
    loop {
        if let (Some(code), None) = (ended, &logs) {
            return Ok(code);
        }
        tokio::select! {
            message = next(&mut logs), if logs.is_some() => match message {
                Ok(Some(message)) => writer.write(&message.entries, out)?,
                Ok(None) => logs = None,
                Err(status) => {
                    // The container goes on, and its exit code is still worth waiting for.
                    out.complain(&lost(status));
                    logs = None;
                }
            },
            answer = &mut waiting, if ended.is_none() => {
                let answer = answer.map_err(lost)?.into_inner();
                if answer.oom_killed {
                    out.note("sampan: it was killed for lack of memory; --memory sets its limit");
                }
                ended = Some(answer.exit_code as u8);
            }
            urgent = signals.next() => stops.push(stop(container, urgent, agent)),
            Some(result) = stops.next() => {
                if let Err(status) = result {
                    out.complain(&lost(status));
                }
            }
        }
    }
}

async fn next(logs: &mut Option<Streaming<LogsResponse>>) -> Result<Option<LogsResponse>, Status> {
    match logs {
        Some(logs) => logs.message().await,
        None => Ok(None),
    }
}

async fn stop(container: &str, urgent: bool, agent: &Agent) -> Result<(), Status> {
    let timeout_seconds = if urgent { 0 } else { USUAL_GRACE };
    let request = StopRequest { container: container.to_owned(), timeout_seconds };
    agent.containers().stop(request).await.map(drop)
}

/// The signals that end a program from outside.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    seen: bool,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| {
            signal(kind).map_err(|error| Failure::message(format!("cannot listen for signals: {error}")))
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
            seen: false,
        })
    }

    /// Whether it is urgent: the first one lets the container end by itself, a second one does not.
    async fn next(&mut self) -> bool {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
        std::mem::replace(&mut self.seen, true)
    }
}
