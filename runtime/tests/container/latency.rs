//! How long a start takes. Figures are printed and never judged: machines differ.

#![allow(clippy::print_stdout, reason = "figures are for people")]

use std::fs;
use std::time::{Duration, Instant};

use sampan_runtime::container::Report;
use sampan_runtime::seccomp;
use serde_json::{Value, json};

use crate::fixture::{Bundle, shell_process};

crate::cases![figures];

const ROUNDS: usize = 100;

fn figures() {
    println!("  fastest/median of {ROUNDS}");
    let mut minimal = Bundle::new(&["/bin/true"]);
    minimal.spec["mounts"] = json!([]);
    minimal.spec["linux"]["maskedPaths"] = Value::Null;
    minimal.spec["linux"]["readonlyPaths"] = Value::Null;
    measure("no mounts, no masks", &minimal);
    measure("default mounts and masks", &Bundle::new(&["/bin/true"]));
    let with_seccomp = Bundle::new(&["/bin/true"]);
    let program = seccomp::compile(&seccomp::default_profile(&Default::default())).unwrap();
    fs::write(with_seccomp.path().join("seccomp.bpf"), program.to_bytes()).unwrap();
    measure("the same and compiled seccomp", &with_seccomp);
    let mut network = with_seccomp;
    network.spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "network" }));
    measure("the same and a network namespace", &network);
    measure_exec();
}

fn measure(what: &str, bundle: &Bundle) {
    bundle.run();
    let mut times: [Vec<Duration>; 4] = Default::default();
    for _ in 0..ROUNDS {
        let since = Instant::now();
        let container = bundle.spawn();
        times[0].push(since.elapsed());
        assert_eq!(container.process.report(), Report::Ready);
        times[1].push(since.elapsed());
        container.process.child.channel.start().unwrap();
        assert_eq!(container.process.report(), Report::Executed);
        times[2].push(since.elapsed());
        assert_eq!(container.finish(Report::Executed).code, 0);
        times[3].push(since.elapsed());
    }
    let [spawned, ready, executed, exited] = times.map(summary);
    println!("  {what}: spawn returns {spawned}, ready {ready}, executed {executed}, exited {exited}");
}

fn measure_exec() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    let container = bundle.spawn().started();
    let mut process = shell_process("");
    process["args"] = json!(["/bin/true"]);
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let since = Instant::now();
        assert_eq!(container.exec(&process).code, 0);
        times.push(since.elapsed());
    }
    println!("  exec of /bin/true: exited {}", summary(times));
    container.kill();
}

/// On a machine with other work the fastest says more than the median.
fn summary(mut times: Vec<Duration>) -> String {
    times.sort();
    format!("{}/{} us", times[0].as_micros(), times[times.len() / 2].as_micros())
}
