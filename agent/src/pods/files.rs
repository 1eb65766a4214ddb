//! The files of a pod that its containers find in `/etc`, and its `/dev/shm`.
//!
//! They live in the pod's state folder and go with it.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use super::config::{Dns, NetworkMode, PodConfig};
use crate::{
    error::{Error, Result, at},
    network::Attachment,
};

const HOSTS: &str = "hosts";
const HOSTNAME: &str = "hostname";
const RESOLV_CONF: &str = "resolv.conf";
const SHM: &str = "shm";
const SECRETS: &str = "secrets";
/// The real name servers, where /etc/resolv.conf has systemd-resolved's on loopback only.
const RESOLVED: &str = "/run/systemd/resolve/resolv.conf";

/// Writes the files of a pod and mounts its shared memory.
pub(crate) fn create(
    folder: &Path,
    config: &PodConfig,
    hostname: &str,
    attachment: Option<&Attachment>,
) -> Result<()> {
    let mut hosts = match config.network {
        NetworkMode::Host => fs::read_to_string("/etc/hosts").unwrap_or_default(),
        NetworkMode::Pod | NetworkMode::None => hosts(hostname, attachment),
    };
    for (name, address) in &config.hosts {
        let _ = writeln!(hosts, "{address}\t{name}");
    }
    let resolv_conf = match &config.dns {
        Some(dns) if *dns != Dns::default() => resolv_conf(dns),
        _ => of_host(config.network, Path::new("/etc/resolv.conf"), Path::new(RESOLVED)),
    };
    for (name, text) in [(HOSTS, hosts), (HOSTNAME, format!("{hostname}\n")), (RESOLV_CONF, resolv_conf)] {
        let path = folder.join(name);
        fs::write(&path, text).map_err(at("write", &path))?;
        readable(&path, 0o644)?;
    }
    if !config.host_ipc {
        mount_shm(&folder.join(SHM))?;
    }
    Ok(())
}

/// Takes away what is mounted in the folder; the files go with it. Missing is fine.
pub(crate) fn remove(folder: &Path) -> Result<(), sampan_runtime::mount::Error> {
    let secrets = sampan_runtime::mount::unmount(&folder.join(SECRETS));
    sampan_runtime::mount::unmount(&folder.join(SHM)).and(secrets)
}

/// Makes a place for what is not to touch a disk.
pub(crate) fn mount_secrets(folder: &Path) -> Result<PathBuf> {
    let path = folder.join(SECRETS);
    mount_memory(&path, &["nosuid", "nodev", "noswap", "mode=0700", "size=16384k"])
        .or_else(|_| mount_memory(&path, &["nosuid", "nodev", "mode=0700", "size=16384k"]))?;
    Ok(path)
}

/// Where each file appears in a container.
pub(crate) fn mounts(folder: &Path, config: &PodConfig) -> Vec<(&'static str, PathBuf)> {
    let shm = if config.host_ipc { PathBuf::from("/dev/shm") } else { folder.join(SHM) };
    vec![
        ("/etc/hosts", folder.join(HOSTS)),
        ("/etc/hostname", folder.join(HOSTNAME)),
        ("/etc/resolv.conf", folder.join(RESOLV_CONF)),
        ("/dev/shm", shm),
    ]
}

fn mount_shm(path: &Path) -> Result<()> {
    mount_memory(path, &["nosuid", "nodev", "noexec", "mode=1777", "size=65536k"])
}

fn mount_memory(path: &Path, options: &[&str]) -> Result<()> {
    let mount = oci_spec::runtime::MountBuilder::default()
        .destination("/dev/shm")
        .typ("tmpfs")
        .source("shm")
        .options(options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
        .build()
        .map_err(|error| Error::Internal(format!("describe /dev/shm: {error}")))?;
    match fs::create_dir(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        made => made.map_err(at("create", path))?,
    }
    sampan_runtime::mount::mount_all(&[mount], path, None)
        .map_err(|source| Error::Mount { container: format!("shared memory at {}", path.display()), source })
}

fn readable(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(at("set the mode of", path))
}

fn hosts(hostname: &str, attachment: Option<&Attachment>) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n",
    );
    for address in attachment.map(|attachment| attachment.addresses.as_slice()).unwrap_or_default() {
        let _ = writeln!(text, "{}\t{hostname}", address.addr());
    }
    text
}

/// The host's own name resolution. A name server on the host's loopback is nobody's on a pod's.
fn of_host(network: NetworkMode, usual: &Path, resolved: &Path) -> String {
    let usual = fs::read_to_string(usual).unwrap_or_default();
    if network == NetworkMode::Host {
        return usual;
    }
    let servers = usual.lines().filter_map(|line| line.trim().strip_prefix("nameserver"));
    let loopback =
        |server: &str| server.trim().parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    let mut servers = servers.peekable();
    if servers.peek().is_some() && servers.all(loopback) {
        return fs::read_to_string(resolved).unwrap_or(usual);
    }
    usual
}

fn resolv_conf(dns: &Dns) -> String {
    let mut text = String::new();
    if !dns.searches.is_empty() {
        let _ = writeln!(text, "search {}", dns.searches.join(" "));
    }
    for server in &dns.servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    if !dns.options.is_empty() {
        let _ = writeln!(text, "options {}", dns.options.join(" "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolv_conf_has_what_the_request_says() {
        let dns = Dns {
            servers: vec!["10.0.0.1".into(), "fd00::1".into()],
            searches: vec!["a.b".into(), "c".into()],
            options: vec!["ndots:5".into()],
        };
        let expected = "search a.b c\nnameserver 10.0.0.1\nnameserver fd00::1\noptions ndots:5\n";
        assert_eq!(resolv_conf(&dns), expected);
    }

    #[test]
    fn name_servers_on_the_hosts_loopback_are_replaced_by_the_real_ones() {
        let folder = tempfile::tempdir().unwrap();
        let [usual, resolved] = ["usual", "resolved"].map(|name| folder.path().join(name));
        let host = |network| of_host(network, &usual, &resolved);
        fs::write(&usual, "nameserver 127.0.0.53\noptions edns0\n").unwrap();
        assert_eq!(host(NetworkMode::Pod), "nameserver 127.0.0.53\noptions edns0\n", "there is no other");
        fs::write(&resolved, "nameserver 192.0.2.1\n").unwrap();
        assert_eq!(host(NetworkMode::Pod), "nameserver 192.0.2.1\n");
        assert!(host(NetworkMode::Host).contains("127.0.0.53"), "the host's loopback is there");
        fs::write(&usual, "nameserver 127.0.0.53\nnameserver 192.0.2.7\n").unwrap();
        assert!(host(NetworkMode::Pod).contains("192.0.2.7"));
    }

    #[test]
    fn hosts_names_the_pod_on_each_address() {
        let attachment = Attachment {
            host_interface: "x".into(),
            addresses: vec!["10.0.0.2/24".parse().unwrap(), "fd00::2/64".parse().unwrap()],
            mac: String::new(),
            ports: vec![],
            plugins: None,
        };
        let text = hosts("web", Some(&attachment));
        assert!(text.contains("10.0.0.2\tweb\n") && text.contains("fd00::2\tweb\n"));
    }
}
