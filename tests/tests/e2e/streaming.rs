//! Exec, Attach and PortForward: kubectl and other independent clients against the streaming server.

use sampan_tests::{Agent, Cri, Ctr};

use super::{SOON, busybox};

mod api;
mod attach;
mod client;
mod kubectl;
mod server;
mod websocket;

use api::{Api, Target};

/// A pod with one container that runs `script`, and an API server that knows it.
async fn target(agent: &Agent, script: &str) -> (Target, Api) {
    let image = busybox(agent).await;
    let (cri, pod) = (agent.cri(), agent.pod("streaming"));
    let pod_id = cri.run_pod(&pod).await.unwrap();
    let container = Ctr::new("c", &image, &pod).sh(script);
    let container = cri.run(&pod_id, &container, &pod).await.unwrap();
    let target = Target { cri, pod: pod_id, container };
    let api = Api::start(target.clone()).await;
    (target, api)
}

const SLEEPER: &str = "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done";

/// Whether a process of this command line runs in the container.
async fn runs(cri: &Cri, container: &str, command: &str) -> bool {
    let script = format!("ps -o args | grep -v grep | grep -q '{command}' && echo yes || echo no");
    cri.sh(container, &script).await == "yes"
}

/// Memory of the agent, in bytes.
fn resident(agent: &Agent) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{}/status", agent.scope().pid)).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}
