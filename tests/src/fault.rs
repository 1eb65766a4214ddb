//! A registry over a real socket that is wrong in one chosen way.
//!
//! It serves one image, `ADDRESS/faulty:latest`, made in memory from layers of chosen entries: as an OCI index with
//! one manifest for each of two platforms, so that choosing by platform is exercised too.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// The last layer has other bytes than its digest says, as many as announced.
    WrongDigest,
    /// The connection closes half way through the last layer.
    Truncated,
    /// The last layer is shorter than its descriptor says, and the server says so too.
    ShorterThanDescribed,
    /// The last layer is answered with this status.
    Status(u16),
    /// The manifest has other bytes than the index says.
    WrongManifest,
}

/// One entry of a layer's archive; paths go in as they are.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A directory.
    Directory(String),
    /// A file and its content.
    File(String, Vec<u8>),
    /// A symlink and where it points.
    Symlink(String, String),
    /// A hard link and its target.
    Hardlink(String, String),
}

/// A layer to serve.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    entries: Vec<Entry>,
}

impl Layer {
    /// With these entries, in this order.
    pub fn new(entries: Vec<Entry>) -> Layer {
        Layer { entries }
    }

    /// The uncompressed archive.
    fn tar(&self) -> Vec<u8> {
        let mut archive = Vec::new();
        for entry in &self.entries {
            let (kind, path, link, content): (_, _, &str, &[u8]) = match entry {
                Entry::Directory(path) => (tar::EntryType::Directory, path, "", &[]),
                Entry::File(path, content) => (tar::EntryType::Regular, path, "", content),
                Entry::Symlink(path, target) => (tar::EntryType::Symlink, path, target, &[]),
                Entry::Hardlink(path, target) => (tar::EntryType::Link, path, target, &[]),
            };
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_mode(if kind == tar::EntryType::Directory { 0o755 } else { 0o644 });
            header.set_size(content.len() as u64);
            // By hand: the crate's own setters refuse the names that a hostile archive has.
            let gnu = header.as_gnu_mut().expect("a gnu header");
            gnu.name[..path.len()].copy_from_slice(path.as_bytes());
            gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
            header.set_cksum();
            archive.extend_from_slice(header.as_bytes());
            archive.extend_from_slice(content);
            archive.resize(archive.len().next_multiple_of(512), 0);
        }
        archive.extend_from_slice(&[0; 1024]);
        archive
    }
}

/// The running server; ends when dropped.
#[derive(Debug)]
pub struct FaultyRegistry {
    address: String,
    last_layer: String,
    requests: Arc<AtomicUsize>,
    server: JoinHandle<()>,
}

#[derive(Debug)]
struct Content {
    fault: Fault,
    /// By the last part of the path: a tag or a digest. Media type and bytes.
    objects: BTreeMap<String, (&'static str, Vec<u8>)>,
    last_layer: String,
    requests: Arc<AtomicUsize>,
}

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

impl FaultyRegistry {
    /// Serves an image of these layers.
    ///
    /// # Panics
    /// When no port can be had.
    pub async fn start(fault: Fault, layers: &[Layer]) -> FaultyRegistry {
        let requests = Arc::new(AtomicUsize::new(0));
        let content = Arc::new(Content::new(fault, layers, requests.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port on loopback");
        let address = listener.local_addr().expect("its address").to_string();
        let last_layer = content.last_layer.clone();
        let server = tokio::spawn(async move {
            // Aborting this task ends its connections with it.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let content = content.clone();
                connections.spawn(async move { drop(content.serve(stream).await) });
            }
        });
        FaultyRegistry { address, last_layer, requests, server }
    }

    /// The name to pull.
    pub fn image(&self) -> String {
        format!("{}/faulty:latest", self.address)
    }

    /// `127.0.0.1:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The digest of the layer that is wrong.
    pub fn last_layer(&self) -> &str {
        &self.last_layer
    }

    /// How many requests came so far.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for FaultyRegistry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Content {
    fn new(fault: Fault, layers: &[Layer], requests: Arc<AtomicUsize>) -> Content {
        let objects = Mutex::new(BTreeMap::new());
        let add = |kind, bytes: Vec<u8>| {
            let (digest, size) = (digest(&bytes), bytes.len());
            objects.lock().expect("no panic while held").insert(digest.clone(), (kind, bytes));
            json!({"mediaType": kind, "digest": digest, "size": size})
        };
        let tars: Vec<Vec<u8>> = layers.iter().map(Layer::tar).collect();
        let diff_ids: Vec<String> = tars.iter().map(|tar| digest(tar)).collect();
        let descriptors: Vec<_> = tars.iter().map(|tar| add(LAYER, gzip(tar))).collect();
        let manifest = |architecture: &str, layers: &[serde_json::Value], diff_ids: &[String]| {
            let config = json!({
                "architecture": architecture, "os": "linux", "config": {"Cmd": ["/hello"], "User": "0"},
                "rootfs": {"type": "layers", "diff_ids": diff_ids},
            });
            let config = add(CONFIG, config.to_string().into_bytes());
            let manifest =
                json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers});
            let mut descriptor = add(MANIFEST, manifest.to_string().into_bytes());
            descriptor["platform"] = json!({"architecture": architecture, "os": "linux"});
            descriptor
        };
        let (ours, other) =
            if cfg!(target_arch = "aarch64") { ("arm64", "amd64") } else { ("amd64", "arm64") };
        // The wrong one first: taking the first of an index would show.
        let manifests = [manifest(other, &[], &[]), manifest(ours, &descriptors, &diff_ids)];
        if fault == Fault::WrongManifest {
            let mut objects = objects.lock().expect("no panic while held");
            let (_, bytes) =
                objects.get_mut(manifests[1]["digest"].as_str().unwrap_or_default()).expect("it is there");
            bytes.push(b' ');
        }
        let index =
            json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).to_string().into_bytes();
        let mut objects = objects.into_inner().expect("no panic while held");
        objects.insert(digest(&index), (INDEX, index.clone()));
        objects.insert("latest".into(), (INDEX, index));
        let last_layer =
            descriptors.last().map(|layer| layer["digest"].as_str().unwrap_or_default().to_owned());
        Content { fault, objects, last_layer: last_layer.unwrap_or_default(), requests }
    }

    /// One connection, request after request.
    async fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        loop {
            let mut request = String::new();
            if stream.read_line(&mut request).await? == 0 {
                return Ok(());
            }
            let (mut range, mut last) = (0, false);
            loop {
                let mut header = String::new();
                if stream.read_line(&mut header).await? <= 2 {
                    break;
                }
                if let Some(from) = header.to_lowercase().strip_prefix("range: bytes=") {
                    range = from.trim().trim_end_matches('-').parse().unwrap_or(0);
                }
                last |= header.to_lowercase().starts_with("connection: close");
            }
            self.requests.fetch_add(1, Ordering::Relaxed);
            let mut words = request.split(' ');
            let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
            if !self.answer(&mut stream, method == "HEAD", path, range).await? || last {
                return Ok(());
            }
        }
    }

    /// Gives whether the connection goes on.
    async fn answer(
        &self,
        stream: &mut BufReader<TcpStream>,
        head: bool,
        path: &str,
        from: usize,
    ) -> std::io::Result<bool> {
        let name = path.rsplit('/').next().unwrap_or_default();
        if path == "/v2/" {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await?;
            return Ok(true);
        }
        let Some((kind, bytes)) = self.objects.get(name).filter(|_| path.starts_with("/v2/faulty/")) else {
            let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
            let body = if head { "" } else { body };
            let header = format!("HTTP/1.1 404 Not Found\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            stream.write_all(header.as_bytes()).await?;
            return Ok(true);
        };
        let mut bytes = bytes.clone();
        let mut sent = bytes.len();
        if name == self.last_layer {
            match self.fault {
                Fault::WrongDigest => {
                    let middle = bytes.len() / 2;
                    bytes[middle] ^= 1;
                }
                Fault::Truncated => sent /= 2,
                Fault::ShorterThanDescribed => {
                    bytes.truncate(sent / 2);
                    sent = bytes.len();
                }
                Fault::Status(code) => {
                    let header = format!("HTTP/1.1 {code} Fault\r\nContent-Length: 0\r\n\r\n");
                    stream.write_all(header.as_bytes()).await?;
                    return Ok(true);
                }
                Fault::None | Fault::WrongManifest => {}
            }
        }
        let partial = from > 0 && from < bytes.len();
        let status = if partial { "206 Partial Content" } else { "200 OK" };
        let start = if partial { from } else { 0 };
        let content_range = if partial {
            format!("Content-Range: bytes {start}-{}/{}\r\n", bytes.len() - 1, bytes.len())
        } else {
            String::new()
        };
        let digest = digest(&bytes);
        let header = format!(
            "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{content_range}\
             Docker-Content-Digest: {digest}\r\n\r\n",
            bytes.len() - start
        );
        stream.write_all(header.as_bytes()).await?;
        if !head {
            stream.write_all(&bytes[start..sent.max(start)]).await?;
        }
        stream.flush().await?;
        Ok(sent == bytes.len())
    }
}

fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("write to memory");
    encoder.finish().expect("write to memory")
}

#[cfg(test)]
mod tests;
