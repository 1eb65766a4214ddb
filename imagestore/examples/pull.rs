//! Pulls an image into a store and says how long that took: for profiles of the pull alone.
//!
//! `cargo run --release -p sampan-imagestore --example pull -- DIRECTORY NAME`. It pulls twice and lists, and prints
//! milliseconds and the most memory that was resident.

use std::{path::PathBuf, time::Instant};

use anyhow::Context as _;
use sampan_imagestore::{Progress, Store, StoreOptions};

#[allow(clippy::print_stdout)]
fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let root = PathBuf::from(arguments.next().context("a directory is missing")?);
    let reference = arguments.next().context("the name of an image is missing")?.parse()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let store = Store::open(&root, StoreOptions::default())?;
    for round in ["first", "second"] {
        let start = Instant::now();
        let image = runtime.block_on(store.pull(&reference, None, Progress::none()))?;
        println!("{round} pull of {} layers: {:.1} ms", image.layers.len(), ms(start));
    }
    let start = Instant::now();
    let images = store.images().len();
    println!("listing {images}: {:.3} ms", ms(start));
    let start = Instant::now();
    store.settle()?;
    println!("sync: {:.1} ms", ms(start));
    let status = std::fs::read_to_string("/proc/self/status")?;
    println!("{}", status.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default());
    Ok(())
}

fn ms(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1000.0
}
