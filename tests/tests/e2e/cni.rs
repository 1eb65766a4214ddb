//! Pods on a cluster's network: Debian's CNI plugins, and scripts that note what they are asked.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use k8s_cri::v1::{ContainerState, PodSandboxState, RuntimeCondition};
use sampan_tests::{Agent, Ctr, eventually, free_port, with_agent};
use serde_json::{Value, json};
use tonic::Code;

use super::crash::kill_monitor;
use super::network::page;
use super::{SOON, busybox, pulled};

/// Installs a configuration for all pods from now on.
fn install(agent: &Agent, configuration: &Value) {
    let folder = agent.base().join("cni.d");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("10-test.conflist"), configuration.to_string()).unwrap();
}

fn uninstall(agent: &Agent) {
    fs::remove_file(agent.base().join("cni.d/10-test.conflist")).unwrap();
}

/// A bridge of Debian's plugins; what they leave by design goes with it.
struct PluginBridge {
    name: String,
    addresses: PathBuf,
}

impl PluginBridge {
    fn install(agent: &Agent) -> PluginBridge {
        let [a, b, c] = rand::random::<[u8; 3]>();
        let bridge =
            PluginBridge { name: format!("spc{a:02x}{b:02x}{c:02x}"), addresses: agent.base().join("ipam") };
        install(
            agent,
            &json!({ "cniVersion": "1.0.0", "name": bridge.name, "plugins": [
                {
                    "type": "bridge", "bridge": bridge.name, "isGateway": true, "hairpinMode": true,
                    "ipam": {
                        "type": "host-local", "dataDir": bridge.addresses,
                        "ranges": [
                            [{ "subnet": format!("10.{}.{b}.0/24", a % 90) }],
                            [{ "subnet": format!("fd{c:02x}:{a:02x}{b:02x}::/64") }],
                        ],
                        "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
                    },
                },
                { "type": "portmap", "capabilities": { "portMappings": true } },
                { "type": "bandwidth", "capabilities": { "bandwidth": true } },
            ] }),
        );
        bridge
    }

    /// The addresses that are given out.
    fn given(&self) -> Vec<IpAddr> {
        let names = fs::read_dir(self.addresses.join(&self.name)).into_iter().flatten().flatten();
        names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }
}

impl Drop for PluginBridge {
    fn drop(&mut self) {
        drop(Command::new("ip").args(["link", "delete", &self.name]).output());
    }
}

/// Scripts for plugins: each call leaves a file with its variables and its input.
struct Scripts {
    folder: PathBuf,
}

impl Scripts {
    const RESULT: &'static str = r#"{"cniVersion": "1.1.0", "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01",
        "sandbox": "x"}], "ips": [{"address": "192.0.2.7/24", "interface": 0}]}"#;

    fn install(agent: &Agent, plugins: &[&str]) -> Scripts {
        let scripts = Scripts { folder: agent.base().join("cni.bin") };
        fs::create_dir_all(scripts.folder.join("calls")).unwrap();
        for plugin in plugins {
            let script = format!(
                "#!/bin/sh\ncd {:?}\ncall=calls/$(date +%s%N)\n\
                 {{ echo \"{plugin} $CNI_COMMAND\"; env | grep ^CNI_ | sort; cat; }} >$call.tmp\nmv $call.tmp $call\n\
                 [ ! -f {plugin}-$CNI_COMMAND ] || . ./{plugin}-$CNI_COMMAND\n\
                 [ $CNI_COMMAND != ADD ] || echo '{}'\n",
                scripts.folder,
                Self::RESULT
            );
            let path = scripts.folder.join(plugin);
            fs::write(&path, script).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let plugins: Vec<Value> = plugins.iter().map(|kind| json!({ "type": kind })).collect();
        install(agent, &json!({ "cniVersion": "1.1.0", "name": "noted", "plugins": plugins }));
        scripts
    }

    /// What a plugin does when it is asked that, before it answers.
    fn answer(&self, plugin: &str, verb: &str, script: &str) {
        fs::write(self.folder.join(format!("{plugin}-{verb}")), script).unwrap();
    }

    /// The calls since the last look: plugin and verb, variables, input.
    fn calls(&self) -> Vec<Call> {
        let mut paths: Vec<PathBuf> =
            fs::read_dir(self.folder.join("calls")).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.retain(|path| path.extension().is_none());
        paths.sort();
        let read = |path: PathBuf| {
            let text = fs::read_to_string(&path).unwrap();
            fs::remove_file(path).unwrap();
            let (head, input) = text.split_once("\n{").unwrap();
            let (what, variables) = head.split_once('\n').unwrap();
            let input = serde_json::from_str(&format!("{{{input}")).unwrap();
            Call { what: what.to_owned(), variables: variables.to_owned(), input }
        };
        paths.into_iter().map(read).collect()
    }

    fn verbs(&self) -> Vec<String> {
        self.calls().into_iter().map(|call| call.what).collect()
    }
}

struct Call {
    what: String,
    variables: String,
    input: Value,
}

impl Call {
    fn variable(&self, name: &str) -> &str {
        let of = |line: &'_ str| line.starts_with(&format!("{name}="));
        self.variables.lines().find(|line| of(line)).map_or("", |line| &line[name.len() + 1..])
    }
}

async fn network_condition(agent: &Agent) -> RuntimeCondition {
    let request = k8s_cri::v1::StatusRequest { verbose: false };
    let answer = agent.cri().runtime.status(request).await.unwrap().into_inner();
    let mut conditions = answer.status.unwrap().conditions;
    conditions.retain(|condition| condition.r#type == "NetworkReady");
    conditions.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_connected_by_debians_plugins() {
    with_agent(async |agent| {
        let image = pulled(agent, "nginx").await;
        let busybox = busybox(agent).await;
        let bridge = PluginBridge::install(agent);
        let port = free_port();
        let cri = agent.cri();
        let pod = agent.pod("web").port(port, 80).annotation("kubernetes.io/ingress-bandwidth", "100M");
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let network = cri.pod(&pod_id).await.unwrap().network.unwrap();
        let given: Vec<IpAddr> =
            [&network.ip, &network.additional_ips[0].ip].iter().map(|text| text.parse().unwrap()).collect();
        assert!(given[0].is_ipv4() && given[1].is_ipv6(), "{given:?}");
        assert_eq!(bridge.given().len(), 2, "the addresses are the plugins'");
        assert!(given.iter().all(|address| bridge.given().contains(address)));
        cri.run(&pod_id, &Ctr::new("nginx", &image, &pod), &pod).await.unwrap();
        let shell =
            cri.run(&pod_id, &Ctr::sleeper("c", &busybox, &pod).capability("NET_RAW"), &pod).await.unwrap();
        for address in [
            SocketAddr::new(given[0], 80),
            SocketAddr::new(given[1], 80),
            SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port),
        ] {
            eventually(&format!("nginx answers on {address}"), SOON, async || page(address).await).await;
        }
        assert!(cri.sh(&shell, "cat /etc/hosts").await.contains(&network.ip));
        assert_eq!(cri.sh(&shell, "ls /sys/class/net").await, "eth0\nlo");
        cri.sh(&shell, "ping -c 1 -W 5 127.0.0.1 >/dev/null").await;
        let shaped = Command::new("tc").args(["qdisc", "show"]).output().unwrap();
        assert!(String::from_utf8_lossy(&shaped.stdout).contains("rate 100Mbit"), "bandwidth is limited");
        agent.kill();
        agent.restart().await;
        let again = agent.cri().pod(&pod_id).await.unwrap().network.unwrap();
        assert_eq!((again.ip, again.additional_ips), (network.ip, network.additional_ips));
        let cri = agent.cri();
        cri.stop_pod(&pod_id).await.unwrap();
        assert!(
            page(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)).await.is_none(),
            "closed with the pod"
        );
        assert_eq!(bridge.given(), [] as [IpAddr; 0]);
        cri.stop_pod(&pod_id).await.unwrap();
        cri.remove_pod(&pod_id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plugins_are_asked_as_the_specification_says() {
    with_agent(async |agent| {
        let scripts = Scripts::install(agent, &["first", "second"]);
        let cri = agent.cri();
        let pod = agent.pod("noted");
        let id = cri.run_pod(&pod).await.unwrap();
        assert_eq!(cri.pod(&id).await.unwrap().network.unwrap().ip, "192.0.2.7");
        let calls = scripts.calls();
        assert_eq!(calls.iter().map(|call| &*call.what).collect::<Vec<_>>(), ["first ADD", "second ADD"]);
        for call in &calls {
            assert_eq!(call.variable("CNI_CONTAINERID"), id);
            assert_eq!(call.variable("CNI_IFNAME"), "eth0");
            let netns = call.variable("CNI_NETNS");
            assert!(netns.starts_with("/proc/") && netns.ends_with("/ns/net"), "{netns}");
            assert!(call.variable("CNI_PATH").contains("cni.bin:/usr/lib/cni"), "{}", call.variables);
            let name = &pod.config.metadata.as_ref().unwrap().name;
            assert!(
                call.variable("CNI_ARGS").contains(&format!("K8S_POD_NAME={name};")),
                "{}",
                call.variables
            );
            assert_eq!((&call.input["name"], &call.input["cniVersion"]), (&json!("noted"), &json!("1.1.0")));
        }
        let result: Value = serde_json::from_str(Scripts::RESULT).unwrap();
        assert_eq!(calls[0].input.get("prevResult"), None);
        assert_eq!(calls[1].input["prevResult"], result);
        assert!(network_condition(agent).await.status);
        assert_eq!(scripts.verbs(), ["first STATUS", "second STATUS"]);

        agent.kill();
        agent.restart().await;
        let mut calls = Vec::new();
        eventually("the pod is checked", SOON, async || {
            calls.extend(scripts.calls());
            (calls.len() >= 4).then_some(())
        })
        .await;
        let verbs: Vec<&str> = calls.iter().map(|call| &*call.what).collect();
        assert_eq!(verbs, ["first GC", "second GC", "first CHECK", "second CHECK"]);
        let valid = &calls[0].input["cni.dev/valid-attachments"];
        assert_eq!(*valid, json!([{ "containerID": id, "ifname": "eth0" }]));
        assert_eq!(calls[2].input["prevResult"], result);

        // By the configuration that connected it, whatever is installed now.
        uninstall(agent);
        agent.cri().clear_pod(&id).await.unwrap();
        let calls = scripts.calls();
        assert_eq!(calls.iter().map(|call| &*call.what).collect::<Vec<_>>(), ["second DEL", "first DEL"]);
        assert!(
            calls
                .iter()
                .all(|call| call.input["prevResult"] == result && !call.variable("CNI_NETNS").is_empty())
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plugins_are_given_the_dns_that_they_can_use_and_a_failing_check_is_logged() {
    with_agent(async |agent| {
        let scripts = Scripts::install(agent, &["first", "second"]);
        let plugins = json!([{ "type": "first" }, { "type": "second", "capabilities": { "dns": true } }]);
        install(agent, &json!({ "cniVersion": "1.1.0", "name": "noted", "plugins": plugins }));
        let cri = agent.cri();
        let mut pod = agent.pod("named");
        pod.config.dns_config = Some(k8s_cri::v1::DnsConfig {
            servers: vec!["192.0.2.53".into()],
            searches: vec!["shop.svc.cluster.local".into(), "cluster.local".into()],
            options: vec!["ndots:5".into()],
        });
        let id = cri.run_pod(&pod).await.unwrap();
        let calls = scripts.calls();
        assert_eq!(calls[0].input.get("runtimeConfig"), None, "the first has no such capability");
        let dns = json!({
            "servers": ["192.0.2.53"],
            "searches": ["shop.svc.cluster.local", "cluster.local"],
            "options": ["ndots:5"],
        });
        assert_eq!(calls[1].input["runtimeConfig"], json!({ "dns": dns }));

        scripts.answer("second", "CHECK", "echo '{\"code\": 101, \"msg\": \"the route is gone\"}'; exit 1");
        agent.kill();
        agent.restart().await;
        let told = async || {
            let log = agent.log();
            let line = log.lines().find(|line| line.contains("no longer connected as it was"))?;
            Some(line.to_owned())
        };
        let line = eventually("the check's failure is logged", SOON, told).await;
        assert!(line.contains("WARN") && line.contains("the route is gone") && line.contains(&id), "{line}");
        // The pod goes on, and is undone by all of its plugins.
        let cri = agent.cri();
        assert_eq!(cri.pod(&id).await.unwrap().network.unwrap().ip, "192.0.2.7");
        scripts.calls();
        cri.clear_pod(&id).await.unwrap();
        assert_eq!(scripts.verbs(), ["second DEL", "first DEL"]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_told_and_undone() {
    with_agent(async |agent| {
        let scripts = Scripts::install(agent, &["first", "second"]);
        scripts.answer("second", "ADD", "echo '{\"code\": 11, \"msg\": \"no address is free\"}'; exit 1");
        let cri = agent.cri();
        let pod = agent.pod("refused");
        let status = cri.run_pod(&pod).await.unwrap_err();
        assert_eq!(status.code(), Code::Unavailable, "{status}");
        assert!(status.message().contains("\"second\": ADD: no address is free"), "{status}");
        assert_eq!(scripts.verbs(), ["first ADD", "second ADD", "second DEL", "first DEL"]);
        assert!(cri.pods().await.unwrap().is_empty());

        scripts.answer("first", "STATUS", "echo '{\"code\": 50, \"msg\": \"the daemon is away\"}'; exit 1");
        let condition = network_condition(agent).await;
        assert!(!condition.status);
        assert_eq!(condition.reason, "NetworkPluginNotReady");
        assert!(condition.message.contains("the daemon is away"), "{}", condition.message);

        // A pod is not forgotten while a plugin holds something for it.
        scripts.answer("second", "ADD", "");
        let id = cri.run_pod(&pod).await.unwrap();
        scripts.answer("first", "DEL", "echo '{\"code\": 100, \"msg\": \"not now\"}'; exit 1");
        for _ in 0..2 {
            let status = cri.stop_pod(&id).await.unwrap_err();
            assert!(status.message().contains("not now"), "{status}");
            // It is at its end all the same, so that kubelet makes another.
            assert_eq!(cri.pod(&id).await.unwrap().state(), PodSandboxState::SandboxNotready);
        }
        let status = cri.clear_pod(&id).await.unwrap_err();
        assert!(status.message().contains("not now"), "{status}");
        assert_eq!(cri.pods().await.unwrap().len(), 1);
        scripts.answer("first", "DEL", "");
        cri.clear_pod(&id).await.unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_killed_while_plugins_work_has_them_undo_it() {
    with_agent(async |agent| {
        let scripts = Scripts::install(agent, &["first", "second"]);
        scripts.answer("second", "ADD", "exec sleep 60");
        let (cri, pod) = (agent.cri(), agent.pod("cut"));
        let attempt = tokio::spawn(async move { cri.run_pod(&pod).await });
        let mut calls = Vec::new();
        eventually("the second plugin works", SOON, async || {
            calls.extend(scripts.verbs());
            (calls == ["first ADD", "second ADD"]).then_some(())
        })
        .await;
        agent.kill();
        attempt.await.unwrap().unwrap_err();
        scripts.answer("second", "ADD", "");
        agent.restart().await;
        let mut calls = Vec::new();
        eventually("the plugins undo their parts", SOON, async || {
            calls.extend(scripts.verbs());
            (calls == ["first GC", "second GC", "second DEL", "first DEL"]).then_some(())
        })
        .await;
        eventually("the pod is forgotten", SOON, async || {
            agent.cri().pods().await.unwrap().is_empty().then_some(())
        })
        .await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_could_be_neither_made_nor_undone_is_listed_until_it_is_gone() {
    with_agent(async |agent| {
        let scripts = Scripts::install(agent, &["first", "second"]);
        let (cri, pod) = (agent.cri(), agent.pod("remains"));
        let fails = "echo '{\"code\": 100, \"msg\": \"not now\"}'; exit 1";
        for way in ["stop and remove", "ask again"] {
            scripts.answer("second", "ADD", fails);
            scripts.answer("first", "DEL", fails);
            cri.run_pod(&pod).await.unwrap_err();
            let listed = cri.pods().await.unwrap();
            assert_eq!(listed.len(), 1);
            assert_eq!(listed[0].state(), PodSandboxState::SandboxNotready);
            assert!(cri.stop_pod(&listed[0].id).await.unwrap_err().message().contains("not now"));
            scripts.answer("first", "DEL", "");
            scripts.answer("second", "ADD", "");
            scripts.calls();
            if way == "ask again" {
                let id = cri.run_pod(&pod).await.unwrap();
                assert_ne!(id, listed[0].id);
                assert_eq!(scripts.verbs(), ["second DEL", "first DEL", "first ADD", "second ADD"]);
                cri.clear_pod(&id).await.unwrap();
            } else {
                cri.stop_pod(&listed[0].id).await.unwrap();
                assert_eq!(scripts.verbs(), ["second DEL", "first DEL"]);
                cri.remove_pod(&listed[0].id).await.unwrap();
            }
            assert!(cri.pods().await.unwrap().is_empty());
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_serves_before_slow_plugins_have_let_go_of_dead_pods() {
    with_agent(async |agent| {
        let image = busybox(agent).await;
        let scripts = Scripts::install(agent, &["first"]);
        let (cri, pod) = (agent.cri(), agent.pod("dead"));
        let pod_id = cri.run_pod(&pod).await.unwrap();
        let id = cri.run(&pod_id, &Ctr::sleeper("c", &image, &pod), &pod).await.unwrap();
        agent.kill();
        kill_monitor(&pod_id);
        let gate = agent.base().join("gate");
        scripts.answer("first", "DEL", &format!("while [ ! -e {} ]; do sleep 0.05; done", gate.display()));
        agent.restart().await;
        let status = cri.pod(&pod_id).await.unwrap();
        assert_eq!(status.state(), PodSandboxState::SandboxNotready);
        assert_eq!(cri.container(&id).await.unwrap().state(), ContainerState::ContainerExited);
        let other = cri.run_pod(&agent.pod("other")).await.unwrap();
        fs::write(gate, "").unwrap();
        cri.clear_pod(&other).await.unwrap();
        cri.clear_pod(&pod_id).await.unwrap();
        let events = agent.cli().ok(&["events", "--since", "1h", "--no-follow"]);
        let ends = events.lines().filter(|line| line.contains(" pod die ") && line.contains("name=dead"));
        assert_eq!(ends.count(), 1, "{events}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_configuration_starts_no_pod() {
    with_agent(async |agent| {
        install(agent, &json!({ "cniVersion": "1.0.0", "name": "broken", "plugins": [] }));
        let condition = network_condition(agent).await;
        assert!(!condition.status && condition.message.contains("10-test.conflist"), "{}", condition.message);
        let (cri, pod) = (agent.cri(), agent.pod("none"));
        let status = cri.run_pod(&pod).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
        assert!(status.message().contains("\"plugins\" is empty"), "{status}");
        uninstall(agent);
        assert!(network_condition(agent).await.status);
        let id = cri.run_pod(&pod).await.unwrap();
        cri.clear_pod(&id).await.unwrap();
    })
    .await;
}
