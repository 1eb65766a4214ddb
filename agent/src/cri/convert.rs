//! CRI's requests → the domain's types. What goes the other way is in `convert_status` and its like.

use std::{collections::BTreeMap, path::PathBuf};

use sampan_proto::cri;

use super::users;
use crate::{
    config::UnsetSeccomp,
    error::{Error, Result},
    network::{PortMapping, Protocol},
    pods::{
        cdi,
        config::{
            AppArmorProfile, ContainerConfig, DeviceConfig, Dns, IdMappings, IdRun, ImageVolume, MountConfig,
            NetworkMode, PidMode, PodConfig, PodName, Propagation, Resources, SeccompProfile, Security,
            check_sysctls,
        },
    },
};

fn invalid<T>(text: impl Into<String>) -> Result<T> {
    Err(Error::Invalid(text.into()))
}

/// A pod's configuration.
pub(super) fn pod_config(config: cri::PodSandboxConfig, runtime_handler: String) -> Result<PodConfig> {
    let Some(metadata) = config.metadata else { return invalid("the pod's config has no metadata") };
    if metadata.name.is_empty() {
        return invalid("the pod's metadata has no name");
    }
    let linux = config.linux.unwrap_or_default();
    let security = linux.security_context.unwrap_or_default();
    if security.run_as_group.is_some() && security.run_as_user.is_none() {
        return invalid("the pod's run_as_group needs run_as_user");
    }
    let namespaces = security.namespace_options.unwrap_or_default();
    let users = users::of_pod(&namespaces)?;
    if namespaces.pid == cri::NamespaceMode::Target as i32 {
        return invalid("a pod's pid namespace can't be that of a container: TARGET is for containers");
    }
    plain("hostname", [&config.hostname])?;
    if let Some(dns) = &config.dns_config {
        plain("dns_config", dns.servers.iter().chain(&dns.searches).chain(&dns.options))?;
    }
    let overhead = linux.overhead.map(resources).transpose()?.unwrap_or_default();
    let resources = linux.resources.map(resources).transpose()?.unwrap_or_default().with_overhead(&overhead);
    let sysctls = linux.sysctls.into_iter().collect();
    check_sysctls(&sysctls)?;
    Ok(PodConfig {
        name: PodName {
            name: metadata.name,
            uid: metadata.uid,
            namespace: metadata.namespace,
            attempt: metadata.attempt,
        },
        hostname: config.hostname,
        log_directory: path(config.log_directory),
        dns: config.dns_config.map(|dns| Dns {
            servers: dns.servers,
            searches: dns.searches,
            options: dns.options,
        }),
        hosts: vec![],
        ports: ports(config.port_mappings)?,
        labels: config.labels.into_iter().collect(),
        annotations: config.annotations.into_iter().collect(),
        cgroup_parent: (!linux.cgroup_parent.is_empty())
            .then(|| linux.cgroup_parent.trim_end_matches('/').to_owned()),
        sysctls,
        network: match cri::NamespaceMode::try_from(namespaces.network) {
            Ok(cri::NamespaceMode::Node) => NetworkMode::Host,
            _ => NetworkMode::Pod,
        },
        pid: pid_mode(&namespaces.target_id, namespaces.pid),
        host_ipc: namespaces.ipc == cri::NamespaceMode::Node as i32,
        users,
        resources,
        privileged: security.privileged,
        runtime_handler,
        auto_remove: false,
        standalone: false,
    })
}

/// What becomes a word of a line in a file must be no more than that.
fn plain<'a>(what: &str, words: impl IntoIterator<Item = &'a String>) -> Result<()> {
    match words.into_iter().find(|word| word.contains(|c: char| c.is_whitespace() || c.is_control())) {
        Some(word) => invalid(format!("{what} has {word:?}, which is not one word")),
        None => Ok(()),
    }
}

fn ports(mappings: Vec<cri::PortMapping>) -> Result<Vec<PortMapping>> {
    let port = |what: &str, number: i32| {
        u16::try_from(number)
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| Error::Invalid(format!("{what} {number} is not 1 to 65535")))
    };
    // A mapping without host port only documents the container's port.
    mappings
        .into_iter()
        .filter(|mapping| mapping.host_port != 0)
        .map(|mapping| {
            let host_ip = match mapping.host_ip.as_str() {
                "" => None,
                text => Some(
                    text.parse().map_err(|_| Error::Invalid(format!("host_ip {text:?} is no address")))?,
                ),
            };
            Ok(PortMapping {
                protocol: match mapping.protocol() {
                    cri::Protocol::Tcp => Protocol::Tcp,
                    cri::Protocol::Udp => Protocol::Udp,
                    cri::Protocol::Sctp => Protocol::Sctp,
                },
                host_ip,
                host_port: port("host_port", mapping.host_port)?,
                container_port: port("container_port", mapping.container_port)?,
            })
        })
        .collect()
}

fn pid_mode(target: &str, mode: i32) -> PidMode {
    match cri::NamespaceMode::try_from(mode) {
        Ok(cri::NamespaceMode::Pod) => PidMode::Pod,
        Ok(cri::NamespaceMode::Node) => PidMode::Host,
        Ok(cri::NamespaceMode::Target) => PidMode::Target(target.to_owned()),
        _ => PidMode::Container,
    }
}

/// A container's configuration.
pub(super) fn container_config(
    config: cri::ContainerConfig,
    unset_seccomp: UnsetSeccomp,
) -> Result<ContainerConfig> {
    let Some(metadata) = config.metadata.clone() else {
        return invalid("the container's config has no metadata");
    };
    if metadata.name.is_empty() {
        return invalid("the container's metadata has no name");
    }
    let Some(image) = config.image.clone().filter(|image| !image.image.is_empty()) else {
        return invalid(format!("container {:?} names no image", metadata.name));
    };
    let annotations = config.annotations.into_iter().collect();
    let linux = config.linux.unwrap_or_default();
    let stop_signal = match config.stop_signal {
        0 => None,
        number => Some(stop_signal(number)?),
    };
    let user_named = image.user_specified_image;
    Ok(ContainerConfig {
        name: metadata.name,
        attempt: metadata.attempt,
        image: if user_named.is_empty() { image.image.clone() } else { user_named },
        image_ref: image.image,
        command: config.command,
        args: config.args,
        working_dir: config.working_dir,
        env: config.envs.into_iter().map(environment).collect::<Result<_>>()?,
        mounts: config.mounts.into_iter().map(mount).collect::<Result<_>>()?,
        volumes: vec![],
        devices: config
            .devices
            .into_iter()
            .map(|device| DeviceConfig::new(device.host_path, device.container_path, device.permissions))
            .collect::<Result<_>>()?,
        tmpfs: BTreeMap::new(),
        rlimits: vec![],
        cdi_devices: cdi::asked(
            config.cdi_devices.into_iter().map(|device| device.name).collect(),
            &annotations,
        ),
        labels: config.labels.into_iter().collect(),
        annotations,
        log_path: config.log_path,
        resources: linux.resources.map(resources).transpose()?.unwrap_or_default(),
        security: security(linux.security_context.unwrap_or_default(), unset_seccomp)?,
        stop_signal,
        stdin: config.stdin,
        tty: config.tty,
        stdin_once: config.stdin_once,
    })
}

fn environment(pair: cri::KeyValue) -> Result<(String, String)> {
    if pair.key.is_empty() || pair.key.contains(['=', '\0']) {
        return invalid(format!("the environment variable name {:?} cannot be", pair.key));
    }
    match String::from_utf8(pair.value.clone()) {
        Ok(value) if !value.contains('\0') => Ok((pair.key, value)),
        _ => invalid(format!("the value of environment variable {:?} is not text", pair.key)),
    }
}

fn mount(mount: cri::Mount) -> Result<MountConfig> {
    let propagation = match mount.propagation() {
        cri::MountPropagation::PropagationPrivate => Propagation::Private,
        cri::MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        cri::MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
    };
    if mount.recursive_read_only && (!mount.readonly || propagation != Propagation::Private) {
        return invalid(format!(
            "mount {:?}: recursive_read_only needs readonly and private propagation",
            mount.container_path
        ));
    }
    let image = mount.image.filter(|image| !image.image.is_empty());
    if image.is_some() && !mount.host_path.is_empty() {
        return invalid(format!("mount {:?} has both an image and a host path", mount.container_path));
    }
    if image.is_some() && !mount.readonly {
        return invalid(format!("mount {:?}: an image can be mounted readonly only", mount.container_path));
    }
    check_options(&mount.mount_options, image.is_some())
        .map_err(|problem| Error::Invalid(format!("mount {:?}: {problem}", mount.container_path)))?;
    let owners = (!mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty())
        .then(|| id_mappings(mount.uid_mappings, mount.gid_mappings))
        .transpose()
        .map_err(|problem| Error::Invalid(format!("mount {:?}: {problem}", mount.container_path)))?;
    Ok(MountConfig {
        options: mount.mount_options,
        owners,
        container_path: mount.container_path.into(),
        host_path: mount.host_path.into(),
        source: None,
        relabel: mount.selinux_relabel,
        readonly: mount.readonly,
        image: image.map(|image| ImageVolume {
            image: image.image,
            user_named: image.user_specified_image,
            id: String::new(),
            sub_path: mount.image_sub_path,
        }),
        recursive_readonly: mount.recursive_read_only,
        propagation,
    })
}

/// What may be said of an image's mount: less than what a mount allows, and nothing of its place.
fn check_options(options: &[String], image: bool) -> Result<(), String> {
    const KNOWN: [&str; 10] = [
        "ro",
        "nodev",
        "nosuid",
        "noexec",
        "nosymfollow",
        "noatime",
        "nodiratime",
        "relatime",
        "norelatime",
        "strictatime",
    ];
    match options.iter().find(|option| !KNOWN.contains(&option.as_str())) {
        _ if !options.is_empty() && !image => Err("mount_options are for images".to_owned()),
        Some(unknown) => Err(format!("mount_options has {unknown:?}; known are {}", KNOWN.join(", "))),
        None => Ok(()),
    }
}

fn id_mappings(uids: Vec<cri::IdMapping>, gids: Vec<cri::IdMapping>) -> Result<IdMappings, String> {
    let run = |mapping: cri::IdMapping| match mapping.length {
        0 => Err("an id mapping has length 0".to_owned()),
        length => Ok(IdRun { outside: mapping.host_id, inside: mapping.container_id, length }),
    };
    let runs = |mappings: Vec<cri::IdMapping>| mappings.into_iter().map(run).collect::<Result<Vec<_>, _>>();
    let mappings = IdMappings { uids: runs(uids)?, gids: runs(gids)? };
    if mappings.uids.is_empty() || mappings.gids.is_empty() {
        return Err("uidMappings and gidMappings are given both or not at all".to_owned());
    }
    Ok(mappings)
}

/// Limits as they are asked for.
pub(super) fn resources(asked: cri::LinuxContainerResources) -> Result<Resources> {
    let positive = |number: i64| (number != 0).then_some(number);
    let unsigned = |what: &str, number: i64| match u64::try_from(number) {
        Ok(0) => Ok(None),
        Ok(number) => Ok(Some(number)),
        Err(_) => invalid(format!("{what} {number} is negative")),
    };
    Ok(Resources {
        cpu_period: unsigned("cpu_period", asked.cpu_period)?,
        cpu_quota: positive(asked.cpu_quota),
        cpu_shares: unsigned("cpu_shares", asked.cpu_shares)?,
        memory_limit: positive(asked.memory_limit_in_bytes),
        memory_swap_limit: positive(asked.memory_swap_limit_in_bytes),
        oom_score_adj: asked.oom_score_adj,
        cpuset_cpus: asked.cpuset_cpus,
        cpuset_mems: asked.cpuset_mems,
        pids_limit: None,
        hugepages: asked.hugepage_limits.into_iter().map(|limit| (limit.page_size, limit.limit)).collect(),
        unified: asked.unified.into_iter().collect(),
    })
}

fn security(asked: cri::LinuxContainerSecurityContext, unset: UnsetSeccomp) -> Result<Security> {
    // Elsewhere labels have no meaning, and clusters with both kinds of nodes send them to all.
    if asked.selinux_options.is_some() && std::path::Path::new("/sys/fs/selinux/enforce").exists() {
        return Err(Error::Unimplemented("SELinux labels of a container: not supported yet".into()));
    }
    let namespaces = asked.namespace_options.clone();
    let capabilities = asked.capabilities.unwrap_or_default();
    // An empty list and none look the same. Kubelet names every path but for `procMount: Unmasked`, which it lets pods have
    // in a user namespace only; whoever else names none gets the defaults.
    let user_namespace = namespaces
        .as_ref()
        .and_then(|namespaces| namespaces.userns_options.as_ref())
        .is_some_and(|user| user.mode() == cri::NamespaceMode::Pod);
    let or_default = |paths: Vec<String>| (user_namespace || !paths.is_empty()).then_some(paths);
    Ok(Security {
        run_as_user: asked.run_as_user.map(|user| user.value),
        run_as_group: asked.run_as_group.map(|group| group.value),
        run_as_username: asked.run_as_username,
        supplemental_groups: asked.supplemental_groups,
        strict_groups: asked.supplemental_groups_policy == cri::SupplementalGroupsPolicy::Strict as i32,
        privileged: asked.privileged,
        readonly_rootfs: asked.readonly_rootfs,
        no_new_privileges: asked.no_new_privs,
        add_capabilities: capabilities.add_capabilities,
        drop_capabilities: capabilities.drop_capabilities,
        ambient_capabilities: capabilities.add_ambient_capabilities,
        masked_paths: or_default(asked.masked_paths),
        readonly_paths: or_default(asked.readonly_paths),
        seccomp: seccomp(asked.seccomp, &asked.seccomp_profile_path, unset)?,
        apparmor: apparmor(asked.apparmor, asked.apparmor_profile)?,
        pid: namespaces.map(|namespaces| pid_mode(&namespaces.target_id, namespaces.pid)),
    })
}

/// The profile message wins over the older path; what neither means, the configuration says.
fn seccomp(profile: Option<cri::SecurityProfile>, path: &str, unset: UnsetSeccomp) -> Result<SeccompProfile> {
    use cri::security_profile::ProfileType;
    match profile {
        Some(profile) => match profile.profile_type() {
            ProfileType::RuntimeDefault => Ok(SeccompProfile::Default),
            ProfileType::Unconfined => Ok(SeccompProfile::Unconfined),
            ProfileType::Localhost => Ok(SeccompProfile::Localhost(profile.localhost_ref.into())),
        },
        None => match path {
            "" if unset == UnsetSeccomp::Unconfined => Ok(SeccompProfile::Unconfined),
            "" | "runtime/default" | "docker/default" => Ok(SeccompProfile::Default),
            "unconfined" => Ok(SeccompProfile::Unconfined),
            other => match other.strip_prefix("localhost/") {
                Some(file) => {
                    Ok(SeccompProfile::Localhost(format!("/{}", file.trim_start_matches('/')).into()))
                }
                None => invalid(format!("seccomp_profile_path {other:?} is not understood")),
            },
        },
    }
}

/// The same of AppArmor, whose profiles have names instead of paths.
fn apparmor(profile: Option<cri::SecurityProfile>, older: String) -> Result<AppArmorProfile> {
    use cri::security_profile::ProfileType;
    let named = |name: &str| match name {
        "" => invalid("an AppArmor profile of the host is asked for without its name"),
        name => Ok(AppArmorProfile::Localhost(name.to_owned())),
    };
    match profile {
        Some(profile) => match profile.profile_type() {
            ProfileType::RuntimeDefault => Ok(AppArmorProfile::Default),
            ProfileType::Unconfined => Ok(AppArmorProfile::Unconfined),
            ProfileType::Localhost => named(profile.localhost_ref.trim_start_matches("localhost/")),
        },
        None => match older.as_str() {
            "" | "runtime/default" => Ok(AppArmorProfile::Default),
            "unconfined" => Ok(AppArmorProfile::Unconfined),
            other => match other.strip_prefix("localhost/") {
                Some(name) => named(name),
                None => invalid(format!("apparmor_profile {other:?} is not understood")),
            },
        },
    }
}

/// By its number in CRI.
pub(super) fn stop_signal(number: i32) -> Result<i32> {
    let name = cri::Signal::try_from(number).ok().map(|signal| signal.as_str_name().to_owned());
    let text = name
        .as_deref()
        .and_then(|name| name.strip_prefix("SIGNAL_"))
        .map(|name| name.replace("PLUS", "+").replace("MINUS", "-"));
    let signal = text.as_deref().and_then(crate::pods::signal::parse);
    signal.ok_or_else(|| Error::Invalid(format!("there is no stop signal {number}")))
}

fn path(text: String) -> Option<PathBuf> {
    (!text.is_empty()).then(|| text.into())
}

/// True when `labels` has every pair of the selector.
pub(super) fn selected(
    labels: &BTreeMap<String, String>,
    selector: &std::collections::HashMap<String, String>,
) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_without_host_port_is_not_published() {
        let mapping = |host_port| cri::PortMapping { container_port: 80, host_port, ..Default::default() };
        assert_eq!(ports(vec![mapping(0)]).unwrap().len(), 0);
        assert_eq!(ports(vec![mapping(8080)]).unwrap().len(), 1);
        assert!(ports(vec![mapping(70000)]).is_err());
    }
}
