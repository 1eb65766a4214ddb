//! End to end: real agents driven over their socket as kubelet, crictl and a person at a shell drive them.
//!
//! Every test has an agent of its own and ends with the leak oracle's verdict.

#![allow(missing_docs)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use sampan_tests::{Agent, fixture};
use sha2::{Digest, Sha256};

mod archive;
mod bad_input;
mod build;
mod checkpoint;
mod cli;
mod cni;
mod commit;
mod crash;
mod crowd;
mod device;
mod event;
mod exec;
mod flood;
mod full_disk;
mod handler;
mod image;
mod isolation;
mod life;
mod log;
mod metrics;
mod names;
mod network;
mod propagation;
mod push;
mod security;
mod service;
mod session;
mod slice;
mod stats;
mod store;
mod streaming;
mod unpack;
mod update;
mod users;
mod volume;

/// Longer than anything that is asked for takes, even on a loaded machine.
const SOON: Duration = Duration::from_secs(20);

/// Pulls busybox and gives its name.
async fn busybox(agent: &Agent) -> String {
    pulled(agent, "busybox").await
}

async fn pulled(agent: &Agent, name: &str) -> String {
    let image = fixture().image(name);
    agent.cri().pull(&image).await.unwrap_or_else(|status| panic!("pull {image}: {status}"));
    image
}

/// Nanoseconds since 1970.
fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).expect("before 2262")
}

/// Writes an agent's record at `to`, with other words in it and the checksum of these in its first line.
fn rewrite_record(record: &Path, to: &Path, words: &str, others: &str) {
    let text = fs::read_to_string(record).unwrap();
    let json = text.split_once('\n').unwrap().1.trim_end();
    assert!(json.contains(words), "{json}");
    let json = json.replace(words, others);
    let sum = hex::encode(Sha256::digest(&json));
    fs::write(to, format!("sha256:{sum}\n{json}\n")).unwrap();
}
