//! The faulty registry, looked at by a client that knows nothing of it.

use std::net::SocketAddr;

use super::*;
use crate::http_get;

fn image() -> Vec<Layer> {
    vec![
        Layer::new(vec![Entry::Directory("etc".into()), Entry::File("etc/a".into(), vec![7; 5000])]),
        Layer::new(vec![
            Entry::File("../outside".into(), b"x".to_vec()),
            Entry::Symlink("l".into(), "/".into()),
        ]),
    ]
}

async fn get(registry: &FaultyRegistry, path: &str) -> String {
    let address: SocketAddr = registry.address().parse().unwrap();
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || http_get(address, &path)).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn serves_an_index_whose_manifests_it_has() {
    let registry = FaultyRegistry::start(Fault::None, &image()).await;
    let answer = get(&registry, "/v2/faulty/manifests/latest").await;
    let index: serde_json::Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    for manifest in index["manifests"].as_array().unwrap() {
        let answer =
            get(&registry, &format!("/v2/faulty/manifests/{}", manifest["digest"].as_str().unwrap())).await;
        assert_eq!(digest(answer.split("\r\n\r\n").nth(1).unwrap().as_bytes()), manifest["digest"]);
    }
    assert!(get(&registry, "/v2/faulty/manifests/other").await.starts_with("HTTP/1.1 404"));
    assert_eq!(registry.requests(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn truncates_and_corrupts_only_the_last_layer() {
    let registry = FaultyRegistry::start(Fault::Truncated, &image()).await;
    let address: SocketAddr = registry.address().parse().unwrap();
    let path = format!("/v2/faulty/blobs/{}", registry.last_layer());
    let answer = tokio::task::spawn_blocking(move || raw(address, &path)).await.unwrap();
    let head = String::from_utf8_lossy(&answer).into_owned();
    let announced: usize =
        head.split("Content-Length: ").nth(1).unwrap().split("\r\n").next().unwrap().parse().unwrap();
    let body = answer.len() - head.find("\r\n\r\n").unwrap() - 4;
    assert_eq!(body, announced / 2);
}

#[test]
fn hostile_names_go_into_the_archive_as_they_are() {
    let archive = image()[1].tar();
    let mut archive = tar::Archive::new(&archive[..]);
    let names: Vec<_> =
        archive.entries().unwrap().map(|entry| entry.unwrap().path_bytes().into_owned()).collect();
    assert_eq!(names, [b"../outside".to_vec(), b"l".to_vec()]);
}

fn raw(address: SocketAddr, path: &str) -> Vec<u8> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer
}
