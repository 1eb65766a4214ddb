//! Configurations, what plugins are told, and what they answer. Real plugins run in the end-to-end tests.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::network::{Kind, PortMapping, Protocol};

fn list(text: &Value) -> Result<List, String> {
    List::parse(text.as_object().unwrap())
}

fn chain(version: &str, plugins: &[&str]) -> List {
    let plugins: Vec<Value> = plugins.iter().map(|kind| json!({ "type": kind })).collect();
    list(&json!({ "cniVersion": version, "name": "net", "plugins": plugins })).unwrap()
}

fn request<'a>(ports: &'a [PortMapping], annotations: &'a BTreeMap<String, String>) -> Request<'a> {
    Request { pod_id: "abc", namespace: "shop", name: "web;x", uid: "u1", ports, dns: None, annotations }
}

/// A folder with scripts as plugins.
fn plugins(scripts: &[(&str, &str)]) -> (TempDir, Cni) {
    let folder = TempDir::new().unwrap();
    for (name, script) in scripts {
        let path = folder.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let cni = Cni { configurations: folder.path().join("net.d"), plugins: vec![folder.path().to_owned()] };
    (folder, cni)
}

#[test]
fn newest_common_version_is_spoken() {
    for (offered, chosen) in [
        (json!({}), "0.1.0"),
        (json!({ "cniVersion": "0.3.1" }), "0.3.1"),
        (json!({ "cniVersion": "1.0.0", "cniVersions": ["0.4.0", "1.1.0", "2.0.0"] }), "1.1.0"),
        (json!({ "cniVersions": ["1.0.0", "0.4.0"] }), "1.0.0"),
    ] {
        let mut whole = json!({ "name": "net", "plugins": [{ "type": "a" }] });
        whole.as_object_mut().unwrap().extend(offered.as_object().unwrap().clone());
        assert_eq!(list(&whole).unwrap().version, chosen, "{offered}");
    }
}

#[test]
fn single_plugin_is_a_list_of_one() {
    let single = list(&json!({ "cniVersion": "0.4.0", "name": "net", "type": "bridge", "mtu": 9 })).unwrap();
    assert_eq!((single.plugins.len(), &single.plugins[0]["mtu"]), (1, &json!(9)));
}

#[test]
fn broken_configurations_are_told_apart() {
    for (text, problem) in [
        (json!({ "plugins": [{ "type": "a" }] }), "\"name\""),
        (json!({ "name": "../up", "plugins": [{ "type": "a" }] }), "\"name\""),
        (json!({ "name": "n", "plugins": [] }), "empty"),
        (json!({ "name": "n", "plugins": [{}] }), "plugin 0 has no \"type\""),
        (json!({ "name": "n", "plugins": [{ "type": "../a" }] }), "no file name"),
        (json!({ "name": "n", "plugins": "a" }), "no list"),
        (json!({ "name": "n", "cniVersion": "9.9.9", "type": "a" }), "9.9.9"),
        (json!({ "name": "n", "cniVersion": 1, "type": "a" }), "no text"),
        (json!({ "name": "n", "disableGC": 1, "type": "a" }), "neither true nor false"),
    ] {
        let told = list(&text).unwrap_err();
        assert!(told.contains(problem), "{text}: {told}");
    }
}

#[test]
fn first_file_by_name_is_in_force() {
    let (_folder, cni) = plugins(&[]);
    assert_eq!(cni.installed().unwrap(), None, "no folder");
    fs::create_dir(&cni.configurations).unwrap();
    let install = |file: &str, text: &str| fs::write(cni.configurations.join(file), text).unwrap();
    install("00-readme.txt", "none of ours");
    assert_eq!(cni.installed().unwrap(), None, "no configuration");
    install("20-b.conf", r#"{"name": "b", "type": "x"}"#);
    install("10-a.conflist", r#"{"name": "a", "plugins": [{"type": "x"}]}"#);
    assert_eq!(cni.installed().unwrap().unwrap().name, "a");
    install("05-broken.json", "{");
    let error = cni.installed().unwrap_err();
    assert!(error.to_string().contains("05-broken.json"), "{error}");
    assert_eq!(error.kind(), Kind::FailedPrecondition);
}

#[test]
fn plugins_in_the_folder_of_the_network_follow_those_of_the_list() {
    let (_folder, cni) = plugins(&[]);
    let beside = cni.configurations.join("net");
    fs::create_dir_all(&beside).unwrap();
    // No file of a configuration, whatever its name.
    fs::create_dir(cni.configurations.join("00-folder.conflist")).unwrap();
    let install = |path: &Path, text: &str| fs::write(path, text).unwrap();
    install(&beside.join("20-late.conf"), r#"{"type": "late", "name": "ignored"}"#);
    install(&beside.join("10-early.conf"), r#"{"type": "early"}"#);
    install(&beside.join("00-other.json"), r#"{"type": "other"}"#);
    let listed = |file: &str, text: &str| {
        install(&cni.configurations.join(file), text);
        let list = cni.installed();
        fs::remove_file(cni.configurations.join(file)).unwrap();
        list.map(|list| list.unwrap().plugins.iter().map(|plugin| list::kind(plugin).to_owned()).collect())
    };
    let kinds = |file: &str, text: &str| -> Vec<String> { listed(file, text).unwrap() };
    let inlined = r#"{"name": "net", "plugins": [{"type": "own"}]"#;
    assert_eq!(kinds("a.conflist", &format!("{inlined}}}")), ["own", "early", "late"]);
    assert_eq!(kinds("a.conflist", r#"{"name": "net", "type": "x"}"#), ["early", "late"]);
    let alone = format!(r#"{inlined}, "loadOnlyInlinedPlugins": true}}"#);
    assert_eq!(kinds("a.conflist", &alone), ["own"]);
    assert_eq!(kinds("a.conf", r#"{"name": "net", "type": "single"}"#), ["single"]);
    let problem = |text: &str| -> String {
        let listed: Result<Vec<String>, _> = listed("a.conflist", text);
        listed.unwrap_err().to_string()
    };
    assert!(problem(r#"{"name": "other", "type": "x"}"#).contains("empty"));
    assert!(problem(r#"{"name": "net", "loadOnlyInlinedPlugins": true}"#).contains("empty"));
    assert!(problem(r#"{"name": "../net", "plugins": []}"#).contains("\"name\""));
    install(&beside.join("30-broken.conf"), "{");
    assert!(problem(&format!("{inlined}}}")).contains("30-broken.conf"));
}

#[test]
fn verbs_need_their_version_and_consent() {
    assert!(!chain("0.3.1", &["a"]).knows(Verb::Check));
    assert!(chain("0.4.0", &["a"]).knows(Verb::Check));
    assert!(!chain("1.0.0", &["a"]).knows(Verb::Gc));
    assert!(chain("1.1.0", &["a"]).knows(Verb::Gc) && chain("1.1.0", &["a"]).knows(Verb::Status));
    let quiet =
        json!({ "cniVersion": "1.1.0", "name": "n", "type": "a", "disableCheck": true, "disableGC": "true" });
    let quiet = list(&quiet).unwrap();
    assert!(!quiet.knows(Verb::Check) && !quiet.knows(Verb::Gc) && quiet.knows(Verb::Status));
}

#[test]
fn plugins_get_the_capabilities_that_they_have() {
    let ports = [
        PortMapping {
            protocol: Protocol::Udp,
            container_port: 53,
            host_port: 5353,
            host_ip: Some("127.0.0.1".parse().unwrap()),
        },
        PortMapping { protocol: Protocol::Tcp, container_port: 80, host_port: 0, host_ip: None },
    ];
    let annotations =
        [("kubernetes.io/ingress-bandwidth", "10M"), ("kubernetes.io/egress-bandwidth", "nonsense")];
    let annotations = annotations.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let list = list(&json!({ "cniVersion": "1.0.0", "name": "net", "plugins": [
        { "type": "portmap", "capabilities": { "portMappings": true, "bandwidth": false } },
        { "type": "bandwidth", "capabilities": { "bandwidth": true, "dns": true } },
        { "type": "plain" },
    ] }))
    .unwrap();
    let request = request(&ports, &annotations);
    let binding = Binding::new(list.clone(), &request);
    let previous = json!({ "ips": [] });
    let inputs: Vec<Value> =
        list.plugins.iter().map(|plugin| binding.input(plugin, Some(&previous)).into()).collect();
    assert_eq!(
        inputs[0]["runtimeConfig"],
        json!({ "portMappings": [
            { "hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1" }
        ] })
    );
    assert_eq!(
        inputs[1]["runtimeConfig"],
        json!({ "bandwidth": { "ingressRate": 10_000_000, "ingressBurst": i32::MAX } })
    );
    assert_eq!(
        inputs[2],
        json!({ "type": "plain", "name": "net", "cniVersion": "1.0.0", "prevResult": { "ips": [] } })
    );
    assert_eq!(
        binding.arguments,
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web_x;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u1"
    );
}

#[test]
fn results_of_every_version_are_read() {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    for (result, addresses, mac) in [
        (
            json!({
                "cniVersion": "1.0.0",
                "interfaces": [
                    { "name": "br0", "mac": "aa" },
                    { "name": "eth0", "mac": "bb", "sandbox": "/proc/1/ns/net" },
                ],
                "ips": [
                    { "address": "fd00::2/64", "interface": 1 },
                    { "address": "10.1.0.2/24", "interface": 1 },
                    { "address": "10.1.0.1/24", "interface": 0 },
                ],
            }),
            vec![ip("10.1.0.2"), ip("fd00::2")],
            "bb",
        ),
        (
            json!({ "cniVersion": "0.4.0", "ips": [{ "version": "4", "address": "10.2.0.2/24" }] }),
            vec![ip("10.2.0.2")],
            "",
        ),
        (
            json!({ "cniVersion": "0.2.0", "ip4": { "ip": "10.3.0.2/24" }, "ip6": { "ip": "fd03::2/64" } }),
            vec![ip("10.3.0.2"), ip("fd03::2")],
            "",
        ),
    ] {
        let outcome = result::read(Some(&result), "net").unwrap();
        assert_eq!(outcome.addresses.iter().map(|net| net.addr()).collect::<Vec<_>>(), addresses);
        assert_eq!(outcome.mac, mac);
    }
    for result in [None, Some(json!({ "ips": [] })), Some(json!({ "ips": [{ "address": "x" }] }))] {
        assert!(matches!(result::read(result.as_ref(), "net"), Err(Error::Malformed { .. })), "{result:?}");
    }
}

#[tokio::test]
async fn failures_of_plugins_are_told_in_their_words() {
    let refusal =
        r#"echo '{"cniVersion": "1.0.0", "code": 11, "msg": "no lease", "details": "yet"}'; exit 1"#;
    let (folder, cni) = plugins(&[
        ("refuses", refusal),
        ("crashes", "echo oops >&2; exit 3"),
        ("babbles", "cat >/dev/null; echo yes"),
    ]);
    let annotations = BTreeMap::new();
    for (kind, told, class) in [
        ("refuses", "CNI plugin \"refuses\": ADD: no lease: yet (code 11)", Kind::Unavailable),
        ("crashes", "CNI plugin \"crashes\": ADD: oops (code 0)", Kind::Internal),
        ("babbles", "malformed answer", Kind::Internal),
        ("nowhere", "CNI plugin \"nowhere\" is not in ", Kind::FailedPrecondition),
    ] {
        let mut binding = Binding::new(chain("1.0.0", &[kind]), &request(&[], &annotations));
        let error = cni.connect("abc", "/proc/1/ns/net", &mut binding).await.unwrap_err();
        assert!(error.to_string().contains(told), "{error}");
        assert_eq!(error.kind(), class, "{error}");
        assert_eq!(binding.result, None);
    }
    // Without STATUS, what can be known is whether the programs are there.
    cni.status(&chain("1.0.0", &["refuses"])).await.unwrap();
    assert!(matches!(cni.status(&chain("1.0.0", &["nowhere"])).await, Err(Error::Missing { .. })));
    assert!(matches!(cni.status(&chain("1.1.0", &["refuses"])).await, Err(Error::Refused { code: 11, .. })));
    drop(folder);
}

#[tokio::test]
async fn every_plugin_undoes_its_part_past_failures() {
    let record = r#"echo "$(basename "$0") $CNI_COMMAND" >>"$(dirname "$0")/calls"; cat >/dev/null"#;
    let (folder, cni) =
        plugins(&[("first", record), ("second", &format!("{record}; exit 1")), ("third", record)]);
    let annotations = BTreeMap::new();
    let binding = Binding::new(chain("1.0.0", &["first", "second", "third"]), &request(&[], &annotations));
    let error = cni.disconnect("abc", "", &binding).await.unwrap_err();
    assert!(error.to_string().contains("\"second\": DEL"), "{error}");
    let calls = fs::read_to_string(folder.path().join("calls")).unwrap();
    assert_eq!(calls, "third DEL\nsecond DEL\nfirst DEL\n");
}
