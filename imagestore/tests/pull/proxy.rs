//! Proxies, as the environment names them. Each case is a process of its own: this test's binary, run again.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use sampan_imagestore::{Progress, Store, StoreOptions};

use crate::{
    images::{entries, options, simple},
    server::{Registry, Reply},
};

/// Set for the process that pulls.
const ROOT: &str = "SAMPAN_TEST_PROXY_TO";
/// No name server knows it, so only a proxy leads there.
const NAME: &str = "registry.invalid";

fn pull_to(root: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let options = StoreOptions { insecure_registries: vec![NAME.to_owned()], ..options() };
    let store = Store::open(root, options).unwrap();
    let reference = format!("{NAME}/app").parse().unwrap();
    runtime.block_on(store.pull(&reference, None, Progress::none())).unwrap();
}

#[allow(clippy::disallowed_methods)]
fn pulls(test: &str, root: &Path, environment: &[(&str, &str)]) -> bool {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test]).env(ROOT, root).stdout(Stdio::null()).stderr(Stdio::null());
    for name in
        ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY", "REQUEST_METHOD"]
    {
        command.env_remove(name);
    }
    command.envs(environment.iter().copied()).status().unwrap().success()
}

#[test]
fn a_registry_is_reached_through_the_proxy_unless_it_is_excepted() {
    const TEST: &str = "proxy::a_registry_is_reached_through_the_proxy_unless_it_is_excepted";
    if let Some(root) = std::env::var_os(ROOT) {
        return pull_to(Path::new(&root));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let proxy = runtime.block_on(Registry::start());
    proxy.publish("app", "latest", &simple(50_000, 110));
    let content = proxy.clone();
    // A proxy is asked for whole addresses.
    proxy.rule(move |request| {
        let path = request.target.strip_prefix(&format!("http://{NAME}"))?;
        Some(content.stored(path).map_or(Reply::status(404), Reply::ok))
    });
    let root = tempfile::tempdir().unwrap();
    let address = proxy.url("");
    assert!(pulls(TEST, root.path(), &[("HTTP_PROXY", &address)]));
    assert_eq!(entries(&root.path().join("snapshots/committed")).len(), 1);
    let asked = proxy.requests();
    assert_eq!(asked.len(), 3);
    assert!(asked.iter().all(|request| request.header("host") == Some(NAME)));

    let root = tempfile::tempdir().unwrap();
    assert!(!pulls(TEST, root.path(), &[("HTTP_PROXY", &address), ("NO_PROXY", NAME)]));
    assert_eq!(proxy.requests().len(), 3);
}
