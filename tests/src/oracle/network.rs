//! Links and firewall state of one agent.

use std::collections::BTreeSet;
use std::fs;

use serde_json::Value;

use super::{Scope, printed};

/// The ports of the agent's bridge, and whatever link says in its alias that it belongs to it.
///
/// A port that has lost its bridge still shows: its other end is in the network namespace of a process that the
/// process list shows, or it is gone with its peer.
pub(super) fn links(scope: &Scope, things: &mut BTreeSet<String>) {
    for entry in fs::read_dir("/sys/class/net").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let master = fs::read_link(entry.path().join("master")).unwrap_or_default();
        let alias = fs::read_to_string(entry.path().join("ifalias")).unwrap_or_default();
        if master.ends_with(&scope.bridge) || alias.contains(&scope.bridge) || scope.named_in(&alias) {
            things.insert(format!("link: {name}"));
        }
    }
}

/// Rules and elements of sets and maps in tables named after the bridge.
pub(super) fn nftables(scope: &Scope, things: &mut BTreeSet<String>) {
    let ruleset: Value =
        serde_json::from_str(&printed("nft", &["-j", "list", "ruleset"])).unwrap_or_default();
    for object in ruleset["nftables"].as_array().into_iter().flatten() {
        for (kind, object) in object.as_object().into_iter().flatten() {
            let table = object["table"].as_str().unwrap_or_default();
            if !table.contains(&scope.bridge) {
                continue;
            }
            for element in object["elem"].as_array().into_iter().flatten() {
                things.insert(format!("nftables element of {}: {element}", object["name"]));
            }
            // Rules of the skeleton name neither a pod's address nor a port: those live in sets and maps.
            if kind == "rule" && object["expr"].to_string().contains("\"dport\"},\"right\":") {
                things.insert(format!("nftables rule: {}", object["expr"]));
            }
        }
    }
}
