//! Images that are small to fetch and large to unpack, and how much memory one that refuses them needs.
//!
//! The store is in a process of its own, which is this test's binary again, because what is measured is the most
//! memory that the process ever had.

use std::{
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use sampan_imagestore::{Kind, Progress, Reference, Store};

use crate::{
    images::{TestImage, TestLayer, gzip, noise, options, tar, text, zstd},
    server::{Registry, Reply},
};

/// Set for the process that is measured: what to pull.
const NAME: &str = "SAMPAN_TEST_BOMB";
/// In bytes: what case 33 of the list of attacks allows.
const MEMORY: u64 = 64 << 20;

/// What a pull of `image` ends with, as "KIND: message" or "pulled", in a process that stays within its memory.
async fn pulled(test: &str, image: TestImage) -> String {
    let registry = Registry::start().await;
    registry.publish("app", "latest", &image);
    outcome(test, &registry).await
}

/// The same of what is at `registry`.
#[allow(clippy::disallowed_methods)]
async fn outcome(test: &str, registry: &Registry) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(NAME, registry.name("app")).stderr(Stdio::inherit());
    // As the agent has its allocator: what is freed of windows is given back, whichever thread had it.
    command.env("GLIBC_TUNABLES", "glibc.malloc.mmap_threshold=1048576:glibc.malloc.arena_max=2");
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    let line = |name: &str| {
        let line = said.lines().find_map(|line| line.split_once(name));
        line.unwrap_or_else(|| panic!("no {name} in {said}")).1.to_owned()
    };
    let peak: u64 = line("peak=").parse().unwrap();
    assert!(peak <= MEMORY, "{} MiB in memory: {said}", peak >> 20);
    line("outcome=")
}

/// The part of the process that is measured; false in the other.
#[allow(clippy::print_stdout)]
fn measured() -> bool {
    let Ok(name) = std::env::var(NAME) else { return false };
    let root = tempfile::tempdir().unwrap();
    let reference: Reference = name.parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let store = Store::open(root.path(), options()).unwrap();
    match runtime.block_on(store.pull(&reference, None, Progress::none())) {
        Ok(image) => {
            store.remove(&image.id).unwrap();
            println!("\noutcome=pulled");
        }
        Err(error) => println!("\noutcome={:?}: {}", error.kind(), text(&error)),
    }
    assert_eq!(std::fs::read_dir(root.path().join("content/blobs/sha256")).unwrap().count(), 0);
    println!("peak={}", peak(Path::new("/proc/self/status")));
    true
}

fn peak(status: &Path) -> u64 {
    let status = std::fs::read_to_string(status).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

fn in_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(work)
}

/// A layer whose blob is this; it is refused before its diff id counts.
fn layer(blob: Vec<u8>, like: TestLayer) -> TestLayer {
    TestLayer { blob: blob.into(), ..like }
}

/// Behind the end of the archive, so that the test fills no disk.
fn gzip_bomb(mebibytes: usize) -> TestLayer {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let zeros = vec![0; 16 << 20];
    encoder.write_all(&zeros).unwrap();
    let member = encoder.finish().unwrap();
    let ratio = zeros.len() / member.len();
    assert!(ratio > 1000, "only {ratio} to 1");
    layer(member.repeat(mebibytes / 16), gzip(b""))
}

/// With a window of so many bits, and enough behind it to fill the window.
fn wide(window_log: u32, seed: u64) -> TestLayer {
    let tar = tar(&[("data", &noise(1000, seed))]);
    let mut bytes = tar.clone();
    bytes.resize(tar.len() + (3 << window_log) / 2, 0);
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(window_log).unwrap();
    encoder.write_all(&bytes).unwrap();
    layer(encoder.finish().unwrap(), zstd(&bytes))
}

#[test]
fn gzip_of_a_thousand_to_one_is_given_up() {
    if measured() {
        return;
    }
    let image = TestImage::new(vec![gzip_bomb(2048)]);
    let outcome = in_runtime(pulled("bombs::gzip_of_a_thousand_to_one_is_given_up", image));
    assert!(outcome.starts_with(&format!("{:?}", Kind::ResourceExhausted)), "{outcome}");
    assert!(outcome.contains("swell to more than"), "{outcome}");
}

#[test]
fn a_zstd_window_of_two_gibibytes_is_refused() {
    if measured() {
        return;
    }
    // Magic number, no content size, exponent 21: 2 GiB (RFC 8878, section 3.1.1.1.2); then a block of a zero that is
    // repeated, and the same again.
    let block = (128_u32 << 10) << 3 | 1 << 1;
    let mut blob = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3];
    (0..10_000).for_each(|_| blob.extend([&block.to_le_bytes()[..3], &[0]].concat()));
    let image = TestImage::new(vec![layer(blob, zstd(b""))]);
    let outcome = in_runtime(pulled("bombs::a_zstd_window_of_two_gibibytes_is_refused", image));
    assert!(outcome.starts_with(&format!("{:?}", Kind::ResourceExhausted)), "{outcome}");
    assert!(outcome.contains("needs a window of 2147483648 bytes"), "{outcome}");
}

/// What becomes of a pull whose manifest is answered by this.
fn with_manifest(test: &str, reply: Reply) -> String {
    in_runtime(async {
        let registry = Registry::start().await;
        registry.rule(move |request| request.path().contains("/manifests/").then(|| reply.clone()));
        outcome(test, &registry).await
    })
}

#[test]
fn a_manifest_of_a_gibibyte_is_refused() {
    if measured() {
        return;
    }
    // It never comes to its end; nobody should wait for that.
    let body = vec![b' '; 8 << 20];
    let reply = Reply { length: Some(1 << 30), cut: Some(body.len()), hang: true, ..Reply::ok(body) };
    let reply = reply.header("Content-Type", "application/vnd.oci.image.manifest.v1+json");
    let outcome = with_manifest("bombs::a_manifest_of_a_gibibyte_is_refused", reply);
    assert!(outcome.starts_with(&format!("{:?}", Kind::ResourceExhausted)), "{outcome}");
}

#[test]
fn a_manifest_of_a_million_layers_is_refused() {
    if measured() {
        return;
    }
    let digest = sampan_imagestore::Digest::of(b"").to_string();
    let layer = format!(
        r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{digest}","size":1}}"#
    );
    let layers = vec![layer; 1_000_000].join(",");
    let config =
        format!(r#"{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":1}}"#);
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{config},"layers":[{layers}]}}"#
    );
    let reply =
        Reply::ok(manifest.into_bytes()).header("Content-Type", "application/vnd.oci.image.manifest.v1+json");
    let outcome = with_manifest("bombs::a_manifest_of_a_million_layers_is_refused", reply);
    assert!(outcome.starts_with(&format!("{:?}", Kind::ResourceExhausted)), "{outcome}");
}

#[test]
fn many_wide_windows_are_pulled_within_the_memory_of_one() {
    if measured() {
        return;
    }
    // As strong as the other tools' encoders get, and more layers than are unpacked at once.
    let layers = (0..6).map(|seed| wide(if seed % 2 == 0 { 25 } else { 23 }, seed)).collect();
    let test = "bombs::many_wide_windows_are_pulled_within_the_memory_of_one";
    assert_eq!(in_runtime(pulled(test, TestImage::new(layers))), "pulled");
}
