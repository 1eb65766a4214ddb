//! Taking a pod down: every step is tried, each may find its work done already, and failures are told together.

use std::{fs, io};

use super::container::{empty_cgroup, release};
use super::*;

impl Task {
    /// Ends the containers and the monitor, and gives back network, cgroups, mounts and the state folder.
    ///
    /// # Errors
    /// All failures, joined; what could be done is done.
    pub(super) async fn take_down(&mut self, reason: &str) -> Result<()> {
        let mut failures = Failures::default();
        self.end_containers(reason, &mut failures).await;
        failures.take(self.disconnect_plugins().await);
        if let Err(error) = self.end_monitor().await {
            failures.add(error);
        }
        let (context, containers) =
            (self.context.clone(), self.containers.values().cloned().collect::<Vec<_>>());
        let released = blocking(move || {
            let mut failures = Failures::default();
            for record in containers {
                failures.take(release(&context, &record));
            }
            failures.result()
        });
        failures.take(released.await);
        failures.take(self.detach_from_bridge().await);
        let context = self.context.clone();
        let pod = self.record.id.clone();
        let own_cgroup = self.record.config.cgroup_parent.is_none();
        blocking(move || {
            if own_cgroup {
                failures.take(empty_cgroup(&context.pod_cgroup(&pod)));
            }
            let folder = context.pod_state(&pod);
            let unmounted = files::remove(&folder);
            let clean = unmounted.is_ok();
            failures.take(unmounted.map_err(|source| Error::Mount { container: pod.to_string(), source }));
            if clean {
                // With a mount left beneath it, the folder must not be emptied.
                failures.take(remove_folder(&folder).map_err(at("remove", folder)));
            }
            failures.result()
        })
        .await
    }

    /// Kills what runs and waits for each end to be recorded.
    async fn end_containers(&mut self, reason: &str, failures: &mut Failures) {
        const SIGKILL: i32 = 9;
        let alive = |container: &&Arc<ContainerRecord>| container.phase != ContainerPhase::Exited;
        let alive: Vec<Arc<ContainerRecord>> = self.containers.values().filter(alive).cloned().collect();
        for container in &alive {
            if self.control.is_some() && container.phase == ContainerPhase::Running {
                failures.take(self.signal(&container.id, SIGKILL, true).await);
            }
        }
        for container in alive {
            if self.control.is_some() && container.phase == ContainerPhase::Running {
                failures.take(self.await_exit(&container.id, KILLED).await);
            }
            let still = self.containers.get(&container.id).filter(|now| now.phase != ContainerPhase::Exited);
            if let Some(record) = still.cloned() {
                let exit = self.recorded_exit(&record).unwrap_or_else(|| unknown_exit(reason));
                self.ended(ContainerRecord::clone(&record), exit).await;
            }
        }
    }

    /// Asks the monitor to end, and ends it when it does not answer.
    async fn end_monitor(&mut self) -> Result<()> {
        self.events = None;
        if let Some(control) = self.control.take() {
            let asked = control.command(&Request::Shutdown).await;
            if asked.is_ok() {
                // The connection closes when the process is gone.
                let _ = tokio::time::timeout(KILLED, async {
                    while let Ok(Some(_)) = control.receive().await {}
                })
                .await;
            }
        }
        let (pid, pod) = (self.record.monitor_pid.take(), self.record.id.clone());
        blocking(move || pid.map_or(Ok(()), |pid| monitor::kill(pid, &pod))).await
    }
}

fn remove_folder(folder: &std::path::Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Failures of a teardown that goes on past them.
#[derive(Debug, Default)]
struct Failures(Vec<Error>);

impl Failures {
    fn add(&mut self, error: Error) {
        self.0.push(error);
    }

    fn take<T>(&mut self, result: Result<T>) {
        if let Err(error) = result {
            self.add(error);
        }
    }

    fn result(mut self) -> Result<()> {
        match self.0.len() {
            0 => Ok(()),
            1 => Err(self.0.remove(0)),
            _ => Err(Error::Internal(self.0.iter().map(Error::chain).collect::<Vec<_>>().join("; "))),
        }
    }
}
