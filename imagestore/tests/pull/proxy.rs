//! Proxies, as the environment names them. Each case is a process of its own: this test's binary, run again.

use std::{
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use sampan_imagestore::{Progress, Store, StoreOptions};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::{TcpListener, TcpStream},
};

use crate::{
    hosts::Authority,
    images::{entries, options, simple},
    server::{Registry, Reply},
};

/// Set for the process that pulls.
const ROOT: &str = "SAMPAN_TEST_PROXY_TO";
/// No name server knows it, so only a proxy leads there.
const NAME: &str = "registry.invalid";

/// For the process that pulls: the folder of the registries' settings, if there are any.
const SETTINGS: &str = "SAMPAN_TEST_PROXY_SETTINGS";

fn pull_to(root: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let options = match std::env::var_os(SETTINGS) {
        Some(settings) => StoreOptions { registry_settings: Some(settings.into()), ..options() },
        None => StoreOptions { insecure_registries: vec![NAME.to_owned()], ..options() },
    };
    let store = Store::open(root, options).unwrap();
    let reference = format!("{NAME}/app").parse().unwrap();
    runtime.block_on(store.pull(&reference, None, Progress::none())).unwrap();
}

#[allow(clippy::disallowed_methods)]
fn pulls(test: &str, root: &Path, environment: &[(&str, &str)]) -> bool {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test]).env(ROOT, root).stdout(Stdio::null()).stderr(Stdio::null());
    for name in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(name).env_remove(name.to_uppercase());
    }
    command.env_remove("REQUEST_METHOD");
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

/// A proxy that opens tunnels to one address for whoever has the password, and notes what it was asked.
async fn tunnels(to: std::net::SocketAddr, asked: Arc<Mutex<Vec<String>>>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let asked = asked.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    stream.read_line(&mut head).await.unwrap();
                }
                asked.lock().unwrap().push(head.clone());
                // user:secret
                if !head.to_lowercase().contains("proxy-authorization: basic dxnlcjpzzwnyzxq=") {
                    let refusal = "HTTP/1.1 407 No\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n";
                    return stream.get_mut().write_all(refusal.as_bytes()).await.unwrap();
                }
                stream.get_mut().write_all(b"HTTP/1.1 200 Go\r\n\r\n").await.unwrap();
                let mut target = TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(stream.get_mut(), &mut target).await;
            });
        }
    });
    address
}

#[test]
fn a_tunnel_is_asked_for_with_the_proxys_own_credentials() {
    const TEST: &str = "proxy::a_tunnel_is_asked_for_with_the_proxys_own_credentials";
    if let Some(root) = std::env::var_os(ROOT) {
        return pull_to(Path::new(&root));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (authority, asked) = (Authority::new(), Arc::new(Mutex::new(Vec::new())));
    let registry = runtime.block_on(Registry::start_with(Some(authority.server_of(NAME, None))));
    registry.publish("app", "latest", &simple(50_000, 111));
    let proxy = runtime.block_on(tunnels(registry.address, asked.clone()));
    let settings = tempfile::tempdir().unwrap();
    let folder = settings.path().join(NAME);
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("ca.pem"), authority.0.pem()).unwrap();
    std::fs::write(folder.join("hosts.toml"), format!("server = \"https://{NAME}\"\nca = \"ca.pem\"\n"))
        .unwrap();
    let settings = settings.path().to_str().unwrap();

    let root = tempfile::tempdir().unwrap();
    let known = format!("http://user:secret@{proxy}");
    assert!(pulls(TEST, root.path(), &[("HTTPS_PROXY", &known), (SETTINGS, settings)]));
    assert!(asked.lock().unwrap().iter().all(|head| head.starts_with(&format!("CONNECT {NAME}:443 "))));
    assert!(registry.requests().iter().all(|request| request.header("proxy-authorization").is_none()));

    let root = tempfile::tempdir().unwrap();
    let unknown = format!("http://{proxy}");
    let before = registry.requests().len();
    assert!(!pulls(TEST, root.path(), &[("HTTPS_PROXY", &unknown), (SETTINGS, settings)]));
    assert_eq!(registry.requests().len(), before);
}
