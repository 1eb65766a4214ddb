//! The agent dies and comes back; containers don't notice.

use std::time::Duration;

use k8s_cri::v1::{ContainerState, PodSandboxState, PortMapping};
use sampan_tests::{Agent, Ctr, eventually, sweep, with_agent};

use super::{SOON, busybox, rewrite_record};

#[tokio::test(flavor = "multi_thread")]
async fn twenty_containers_outlive_a_killed_agent() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let cri = agent.cri();
        let mut pods = Vec::new();
        for number in 0..10 {
            let pod = agent.pod(&format!("crash{number}"));
            let pod_id = cri.run_pod(&pod).await.unwrap();
            // One that counts on and on, and one that ends while nobody looks.
            let counts = Ctr::new("counts", &image, &pod)
                .sh("trap 'exit 0' TERM; i=0; while :; do i=$((i+1)); echo $i; sleep 0.05; done");
            let gate = agent.base().join(format!("gate{number}"));
            std::fs::create_dir(&gate).unwrap();
            let script = format!("while [ ! -e /gate/open ]; do sleep 0.05; done; exit {}", 10 + number);
            let ends = Ctr::new("ends", &image, &pod).sh(&script).mount(&gate, "/gate", true);
            let ids = [
                cri.run(&pod_id, &counts, &pod).await.unwrap(),
                cri.run(&pod_id, &ends, &pod).await.unwrap(),
            ];
            let address = cri.pod(&pod_id).await.unwrap().network.unwrap().ip;
            pods.push((pod, pod_id, counts, ids, gate, address));
        }
        agent.kill();
        // While nobody looks, the odd ones end.
        for (number, (.., gate, _)) in pods.iter().enumerate() {
            if number % 2 == 1 {
                std::fs::write(gate.join("open"), "").unwrap();
            }
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        agent.restart().await;
        let cri = agent.cri();
        assert_eq!(cri.pods().await.unwrap().len(), 10);
        assert_eq!(cri.containers().await.unwrap().len(), 20);
        for (number, (pod, pod_id, counts, [counting, ending], gate, address)) in pods.iter().enumerate() {
            let status = cri.pod(pod_id).await.unwrap();
            assert_eq!(status.state(), PodSandboxState::SandboxReady);
            assert_eq!(&status.network.unwrap().ip, address);
            assert_eq!(cri.container(counting).await.unwrap().state(), ContainerState::ContainerRunning);
            if number % 2 == 0 {
                assert_eq!(cri.container(ending).await.unwrap().state(), ContainerState::ContainerRunning);
                std::fs::write(gate.join("open"), "").unwrap();
            }
            assert_eq!(cri.ended(ending).await.exit_code, 10 + i32::try_from(number).unwrap());
            // The log has every number once, also from the time without an agent, and goes on.
            let log = pod.log_file(counts);
            let seen = std::fs::read_to_string(&log).unwrap().lines().count();
            eventually("the log goes on", SOON, async || {
                (std::fs::read_to_string(&log).unwrap().lines().count() > seen).then_some(())
            })
            .await;
            let text = std::fs::read_to_string(&log).unwrap();
            let numbers = text.lines().filter_map(|line| line.rsplit(' ').next());
            assert!(numbers.enumerate().all(|(index, number)| number == (index + 1).to_string()), "{text}");
            assert_eq!(cri.sh(counting, "echo still here").await, "still here");
            cri.stop(counting, 5).await.unwrap();
            assert_eq!(cri.container(counting).await.unwrap().exit_code, 0);
            cri.clear_pod(pod_id).await.unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn names_images_and_addresses_are_known_after_a_restart() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let pod = agent.pod("again");
        let pod_id = agent.cri().run_pod(&pod).await.unwrap();
        let id = agent.cri().create(&pod_id, &Ctr::sleeper("c", &image, &pod), &pod).await.unwrap();
        let before = agent.cri().image(&image).await.unwrap();
        agent.terminate();
        agent.restart().await;
        let cri = agent.cri();
        assert_eq!(cri.image(&image).await.unwrap(), before);
        assert_eq!(cri.container(&id).await.unwrap().state(), ContainerState::ContainerCreated);
        cri.start(&id).await.expect("what was created can still be started");
        let other = agent.pod("other");
        let other_id = cri.run_pod(&other).await.unwrap();
        let [one, two] = [cri.pod(&pod_id).await.unwrap(), cri.pod(&other_id).await.unwrap()];
        assert_ne!(one.network.unwrap().ip, two.network.unwrap().ip, "the address is still taken");
        for id in [&pod_id, &other_id] {
            cri.clear_pod(id).await.unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_of_work_leaves_nothing_and_a_retry_succeeds() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        for round in 0..8u64 {
            let pods: Vec<_> = (0..4).map(|number| agent.pod(&format!("mid{number}"))).collect();
            let lives: Vec<_> = pods
                .iter()
                .map(|pod| {
                    let (cri, pod, image) = (agent.cri(), pod.clone(), image.clone());
                    tokio::spawn(async move {
                        let id = cri.run_pod(&pod).await?;
                        cri.run(&id, &Ctr::sleeper("c", &image, &pod), &pod).await?;
                        cri.clear_pod(&id).await
                    })
                })
                .collect();
            tokio::time::sleep(Duration::from_millis(7 + round * 13)).await;
            agent.kill();
            for life in lives {
                drop(life.await.unwrap());
            }
            agent.restart().await;
            let cri = agent.cri();
            for pod in &pods {
                // The same name again: joins what survived, or makes it anew.
                // As kubelet does it: what is listed and ready is taken, what is stopped makes room.
                let listed = cri.pods().await.unwrap();
                let found = listed.iter().find(|other| other.metadata == pod.config.metadata);
                let id = match found {
                    Some(found) if found.state() == PodSandboxState::SandboxReady => found.id.clone(),
                    found => {
                        if let Some(stopped) = found {
                            cri.remove_pod(&stopped.id).await.unwrap();
                        }
                        cri.run_pod(pod).await.unwrap_or_else(|status| panic!("round {round}: {status}"))
                    }
                };
                let container = Ctr::sleeper("c", &image, pod);
                cri.run(&id, &container.attempt(1), pod)
                    .await
                    .unwrap_or_else(|status| panic!("round {round}: {status}"));
            }
            for pod in cri.pods().await.unwrap() {
                cri.clear_pod(&pod.id).await.unwrap();
            }
        }
    })
    .await;
}

/// A monitor lets go of a listener that takes nothing, rather than grow; that one listens again, and nobody dies of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_stood_still_finds_its_pods_alive() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("still"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        // An event for each child that is killed for want of memory.
        let script =
            "while :; do dd if=/dev/zero of=/dev/null bs=16M count=1 2> /dev/null; echo killed; done";
        let hungry = Ctr::new("hungry", &image, &pod)
            .sh(script)
            .resources(|resources| resources.memory_limit_in_bytes = 10 << 20);
        let ends =
            Ctr::new("ends", &image, &pod).sh("while [ ! -e /gate/open ]; do sleep 0.05; done; exit 7");
        let gate = agent.base().join("gate");
        std::fs::create_dir(&gate).unwrap();
        let hungry_id = cri.run(&pod_id, &hungry, &pod).await.unwrap();
        let ends_id = cri.run(&pod_id, &ends.mount(&gate, "/gate", true), &pod).await.unwrap();
        let pid = rustix::process::Pid::from_raw(agent.scope().pid as i32).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
        let log = pod.log_file(&hungry);
        eventually("more is told than is kept for a listener", 3 * SOON, async || {
            (std::fs::read_to_string(&log).unwrap_or_default().lines().count() > 600).then_some(())
        })
        .await;
        // This is told to nobody.
        std::fs::write(gate.join("open"), "").unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
        assert_eq!(cri.ended(&ends_id).await.exit_code, 7);
        assert_eq!(cri.pod(&pod_id).await.unwrap().state(), PodSandboxState::SandboxReady);
        assert_eq!(cri.container(&hungry_id).await.unwrap().state(), ContainerState::ContainerRunning);
        cri.stop(&hungry_id, 0).await.unwrap();
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_that_was_cut_off_is_no_obstacle_to_the_next_agent() {
    with_agent(async |agent| {
        let pod = agent.pod("cut-off");
        let id = agent.cri().run_pod(&pod).await.unwrap();
        agent.kill();
        // The folder of containers goes before the pod's own record.
        std::fs::remove_dir_all(agent.scope().root.join("pods").join(&id).join("containers")).unwrap();
        agent.restart().await;
        agent.cri().clear_pod(&id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_was_restarted_keeps_records_and_gives_back_everything_else() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let port = PortMapping { container_port: 80, host_port: 18099, ..Default::default() };
        let mut pod = agent.pod("restarted");
        pod.config.port_mappings = vec![port];
        let cri = agent.cri();
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let ended = cri.run(&pod_id, &Ctr::new("ended", &image, &pod).sh("exit 3"), &pod).await.unwrap();
        cri.ended(&ended).await;
        let running = cri.run(&pod_id, &Ctr::sleeper("running", &image, &pod), &pod).await.unwrap();
        let created = cri.create(&pod_id, &Ctr::sleeper("created", &image, &pod), &pod).await.unwrap();
        power_off(agent);
        agent.restart().await;

        let cri = agent.cri();
        let status = cri.pod(&pod_id).await.unwrap();
        assert_eq!(status.state(), PodSandboxState::SandboxNotready);
        for (id, code, reason) in
            [(&ended, 3, "Error"), (&running, 255, "MachineRestarted"), (&created, 255, "MachineRestarted")]
        {
            let status = cri.container(id).await.unwrap();
            let seen = (status.state(), status.exit_code, status.reason.as_str());
            assert_eq!(seen, (ContainerState::ContainerExited, code, reason));
        }
        // As kubelet goes on: another attempt of the pod with the same port, then the old one goes.
        let again = pod.clone().attempt(1);
        let again_id = cri.run_pod(&again).await.unwrap();
        let container = cri.run(&again_id, &Ctr::sleeper("running", &image, &again).attempt(1), &again).await;
        assert_eq!(cri.sh(&container.unwrap(), "echo up").await, "up");
        for id in [&pod_id, &again_id] {
            cri.clear_pod(id).await.unwrap();
        }
    })
    .await;
}

/// Leaves of an agent and its pods what a machine that is started again has of them: the folder of what survives, with
/// records of another boot.
fn power_off(agent: &Agent) {
    agent.kill();
    let scope = agent.scope();
    sweep(scope);
    std::fs::remove_dir_all(&scope.state).unwrap();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    for pod in std::fs::read_dir(scope.root.join("pods")).unwrap() {
        let record = pod.unwrap().path().join("pod.json");
        rewrite_record(&record, &record, boot.trim(), "another boot");
    }
}

/// Kills the monitor of a pod as the kernel might.
pub(super) fn kill_monitor(pod_id: &str) {
    signal_monitor(pod_id, rustix::process::Signal::KILL);
}

/// Sends the monitor of a pod a signal.
pub(super) fn signal_monitor(pod_id: &str, signal: rustix::process::Signal) {
    let monitor = std::fs::read_dir("/proc").unwrap().flatten().find(|process| {
        std::fs::read_to_string(process.path().join("cmdline"))
            .is_ok_and(|line| line.contains("shim") && line.contains(pod_id))
    });
    let pid: i32 = monitor.expect("the monitor").file_name().to_str().unwrap().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), signal).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_monitor_is_noticed_and_can_be_cleared_away() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let (cri, pod) = (agent.cri(), agent.pod("monitor"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let id = cri.run(&pod_id, &Ctr::sleeper("c", &image, &pod), &pod).await.unwrap();
        kill_monitor(&pod_id);
        eventually("the pod is not ready", SOON, async || {
            (cri.pod(&pod_id).await.unwrap().state() == PodSandboxState::SandboxNotready).then_some(())
        })
        .await;
        let code = cri.ended(&id).await.exit_code;
        assert!([137, 255].contains(&code), "killed, or nobody knows: {code}");
        cri.clear_pod(&pod_id).await.unwrap();
    })
    .await;
}
