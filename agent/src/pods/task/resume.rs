//! Taking up pods that an earlier agent left: the record says what should be, the monitor what is.

use std::fs;

use sampan_runtime::shim::protocol::{ContainerState, Exit, Status};

use super::container::{exit_record, release};
use super::*;

impl Task {
    /// Brings record and reality together, as far as that waits for nobody outside; then the pod can be shown.
    pub(super) async fn take_up(&mut self) {
        checkpoint::remove_unfinished(&self.context, &self.record.id);
        match self.record.phase {
            // Nobody has heard of it, or nobody wants to hear of it again.
            PodPhase::Creating => self.made = false,
            PodPhase::Removing => {}
            PodPhase::Ready if self.record.boot_id != self.context.boot_id => {
                if self.record.attachment.as_ref().is_some_and(|attached| attached.plugins.is_none()) {
                    // What the kernel had is gone, and the addresses may be another pod's by now.
                    self.record.attachment = None;
                }
                self.lost("MachineRestarted", "the machine was restarted").await;
            }
            PodPhase::Ready => match self.reconnect().await {
                Ok(()) => info!(containers = self.containers.len(), "pod taken up again"),
                Err(error) => {
                    warn!(error = %error.chain(), "the pod's monitor is gone");
                    self.lost("MonitorLost", "the pod's monitor ended while the agent was away").await;
                }
            },
            PodPhase::Stopped => {}
        }
        self.publish();
    }

    /// Gives back what a pod that is at its end may still hold; false when nothing of it is left to serve.
    pub(super) async fn finish(&mut self) -> bool {
        match self.record.phase {
            PodPhase::Ready => {}
            PodPhase::Stopped => self.give_back("the pod was stopped").await,
            PodPhase::Creating | PodPhase::Removing => {
                info!(phase = ?self.record.phase, "pod was left half-way; taking it down");
                if self.record.monitor_pid.is_none() {
                    self.end_unrecorded_monitor().await;
                }
                match self.remove().await {
                    Ok(()) => return false,
                    Err(error) => warn!(error = %error.chain(), "remains of the pod are left"),
                }
            }
        }
        true
    }

    /// A monitor is started before its process is on record.
    async fn end_unrecorded_monitor(&self) {
        let pod = self.record.id.clone();
        if let Err(error) = blocking(move || monitor::end_stranger(&pod)).await {
            warn!(error = %error.chain(), "a monitor may be left");
        }
    }

    /// Connects to the monitor of a pod that is ready, and takes note of all that has happened since somebody listened.
    pub(super) async fn reconnect(&mut self) -> Result<()> {
        let folder = self.context.pod_state(&self.record.id);
        let control = Connection::open(&self.record.id, &folder).await?;
        let events = Connection::open(&self.record.id, &folder).await?;
        // Subscribed before the state is read: an end is seen in the one or the other.
        events.command(&Request::Subscribe).await?;
        let states = control.state().await?;
        self.record.monitor_pid = Some(control.pid);
        self.control = Some(control);
        self.events = Some(events);
        for record in self.living() {
            let state = states.iter().find(|state| state.id == record.id.as_str());
            self.reconcile(record, state).await;
        }
        Ok(())
    }

    /// One container: what the record says against what the monitor says.
    async fn reconcile(&mut self, mut record: ContainerRecord, state: Option<&ContainerState>) {
        let half_made = record.phase == ContainerPhase::Creating;
        match state {
            _ if half_made => {
                info!(container.id = %record.id, "container was left half-made; removing it");
                if let Err(error) = self.remove_container(&record.id).await {
                    warn!(container.id = %record.id, error = %error.chain(), "remains of the container are left");
                }
            }
            Some(ContainerState { status: Status::Exited, exit: Some(exit), .. }) => {
                record.started_at = exit.started_at;
                self.ended(record, exit_record(exit)).await;
            }
            Some(state) => {
                if state.status == Status::Running {
                    let cgroup = record.cgroup.clone();
                    blocking(move || frozen::thaw(&cgroup)).await;
                }
                record.pid = Some(state.pid);
                record.started_at = state.started_at;
                record.phase = match state.status {
                    Status::Created => ContainerPhase::Created,
                    Status::Running | Status::Exited => ContainerPhase::Running,
                };
                let _ = self.save_container(record);
            }
            None => {
                let exit = self.recorded_exit(&record);
                self.ended(record, exit.unwrap_or_else(|| unknown_exit("its monitor does not know it")))
                    .await;
            }
        }
    }

    /// Without a monitor there is no pod: records what is known of its containers' ends. What it held is for
    /// [`Task::give_back`].
    pub(super) async fn lost(&mut self, reason: &str, message: &str) {
        self.control = None;
        self.events = None;
        for record in self.living() {
            let exit = self.recorded_exit(&record);
            let exit = exit.unwrap_or_else(|| ExitRecord { reason: reason.into(), ..unknown_exit(message) });
            self.ended(record, exit).await;
        }
        self.record.phase = PodPhase::Stopped;
        if let Err(error) = self.save_pod() {
            warn!(error = %error.chain(), "the pod's end could not be recorded on disk");
        }
        self.tell(Action::Die);
    }

    /// Takes down what is left of a pod that has stopped.
    pub(super) async fn give_back(&mut self, reason: &str) {
        if let Err(error) = self.take_down(reason).await {
            warn!(error = %error.chain(), "remains of the pod are left until it is stopped again or removed");
        }
        if let Err(error) = self.save_pod() {
            warn!(error = %error.chain(), "what was given back could not be recorded on disk");
        }
    }

    /// Gives back what containers that ended long ago may still hold: the earlier agent may have been killed right then.
    pub(super) async fn release_ended(&self) {
        let ended = self.containers.values().filter(|container| container.phase == ContainerPhase::Exited);
        let (context, ended) = (self.context.clone(), ended.cloned().collect::<Vec<_>>());
        // All of them in one go: there may be thousands.
        blocking(move || {
            for record in ended {
                if let Err(error) = release(&context, &record) {
                    debug!(container.id = %record.id, error = %error.chain(), "the ended container's mounts or cgroup are left");
                }
            }
        })
        .await;
    }

    /// The containers that have not ended, as far as is known.
    fn living(&self) -> Vec<ContainerRecord> {
        let living = self.containers.values().filter(|container| container.phase != ContainerPhase::Exited);
        living.map(|container| ContainerRecord::clone(container)).collect()
    }

    /// The exit record that a monitor wrote before it told anyone.
    pub(super) fn recorded_exit(&self, record: &ContainerRecord) -> Option<ExitRecord> {
        let text = fs::read(self.bundle(&record.id).join("exit.json")).ok()?;
        let exit: Exit = serde_json::from_slice(&text).ok()?;
        Some(exit_record(&exit))
    }
}
