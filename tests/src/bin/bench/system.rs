//! One of the systems that are compared, seen only through CRI and /proc.

use std::path::PathBuf;

use anyhow::Result;
use sampan_tests::{Agent, Cri, Ctr, Pod, unique};

use crate::containerd::Containerd;

/// A CRI server.
#[derive(Debug)]
pub(crate) struct System {
    pub(crate) name: &'static str,
    pub(crate) cri: Cri,
    /// Of the daemon.
    pub(crate) pid: u32,
    logs: PathBuf,
    cgroup_parent: Option<String>,
}

impl System {
    pub(crate) fn of_agent(agent: &Agent) -> System {
        let logs = agent.base().join("logs");
        System { name: "Sampan", cri: agent.cri(), pid: agent.scope().pid, logs, cgroup_parent: None }
    }

    pub(crate) fn of_containerd(containerd: &Containerd) -> System {
        System {
            name: "containerd",
            cri: containerd.cri(),
            pid: containerd.pid(),
            logs: containerd.base().join("logs"),
            // It has no configuration for this, as Sampan has.
            cgroup_parent: Some(containerd.cgroup().to_owned()),
        }
    }

    pub(crate) fn pod(&self) -> Pod {
        let pod = Pod::new(&unique("bench"), &self.logs);
        match &self.cgroup_parent {
            Some(parent) => pod.cgroup_parent(parent),
            None => pod,
        }
    }

    /// Brings up a pod with one running container, as kubelet does, and gives both ids.
    pub(crate) async fn up(&self, image: &str, pod: &Pod) -> Result<(String, String)> {
        let pod_id = self.cri.run_pod(pod).await?;
        let container = Ctr::new("c", image, pod).command(&["sleep", "1000000"]);
        let id = self.cri.run(&pod_id, &container, pod).await?;
        Ok((pod_id, id))
    }

    /// Kills and removes it.
    pub(crate) async fn down(&self, pod_id: &str, container: &str) -> Result<()> {
        self.cri.stop(container, 0).await?;
        self.cri.remove(container).await?;
        self.cri.clear_pod(pod_id).await?;
        Ok(())
    }
}
