//! Builders for the configurations of pods and containers.

use std::path::Path;

use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, Device, IdMapping, Int64Value, KeyValue, LinuxContainerConfig,
    LinuxContainerResources, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, Mount, NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
    PortMapping, SecurityProfile, UserNamespace,
};
use sampan_proto::cri;

use crate::client::image_spec;

/// A name that nobody else has.
pub fn unique(prefix: &str) -> String {
    format!("{prefix}-{:08x}", rand::random::<u32>())
}

/// The configuration of a pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// What goes over the wire.
    pub config: PodSandboxConfig,
}

#[allow(missing_docs)] // named after the fields they set
impl Pod {
    /// With a name, uid and namespace, and logs in `logs`/NAME.
    pub fn new(name: &str, logs: &Path) -> Pod {
        let metadata = PodSandboxMetadata {
            name: name.into(),
            uid: unique("uid"),
            namespace: "tests".into(),
            attempt: 0,
        };
        let log_directory = logs.join(name).display().to_string();
        let security_context = LinuxSandboxSecurityContext {
            namespace_options: Some(NamespaceOption {
                pid: NamespaceMode::Container.into(),
                ..NamespaceOption::default()
            }),
            ..LinuxSandboxSecurityContext::default()
        };
        let linux = LinuxPodSandboxConfig { security_context: Some(security_context), ..Default::default() };
        Pod {
            config: PodSandboxConfig {
                metadata: Some(metadata),
                hostname: name.into(),
                log_directory,
                linux: Some(linux),
                ..PodSandboxConfig::default()
            },
        }
    }

    pub fn port(mut self, host_port: u16, container_port: u16) -> Pod {
        self.config.port_mappings.push(PortMapping {
            host_port: host_port.into(),
            container_port: container_port.into(),
            ..PortMapping::default()
        });
        self
    }

    pub fn label(mut self, key: &str, value: &str) -> Pod {
        self.config.labels.insert(key.into(), value.into());
        self
    }

    pub fn annotation(mut self, key: &str, value: &str) -> Pod {
        self.config.annotations.insert(key.into(), value.into());
        self
    }

    pub fn host_network(mut self) -> Pod {
        self.namespaces().network = NamespaceMode::Node.into();
        self.config.hostname.clear();
        self
    }

    pub fn shared_pid(mut self) -> Pod {
        self.namespaces().pid = NamespaceMode::Pod.into();
        self
    }

    /// With users of its own, whose root is `first` on the host.
    pub fn users(mut self, first: u32) -> Pod {
        let run = vec![IdMapping { host_id: first, container_id: 0, length: 65_536 }];
        let users = UserNamespace { mode: NamespaceMode::Pod.into(), uids: run.clone(), gids: run };
        self.namespaces().userns_options = Some(users);
        self
    }

    pub fn sysctl(mut self, key: &str, value: &str) -> Pod {
        self.config.linux.get_or_insert_default().sysctls.insert(key.into(), value.into());
        self
    }

    pub fn cgroup_parent(mut self, parent: &str) -> Pod {
        self.config.linux.get_or_insert_default().cgroup_parent = parent.into();
        self
    }

    /// Another attempt at the same pod.
    pub fn attempt(mut self, attempt: u32) -> Pod {
        self.config.metadata.get_or_insert_default().attempt = attempt;
        self
    }

    fn namespaces(&mut self) -> &mut NamespaceOption {
        let linux = self.config.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default().namespace_options.get_or_insert_default()
    }

    /// How containers of this pod see it: the same namespace options.
    pub(crate) fn namespace_options(&self) -> Option<NamespaceOption> {
        self.config.linux.as_ref()?.security_context.as_ref()?.namespace_options.clone()
    }

    /// Where the log of a container of this pod lies.
    pub fn log_file(&self, container: &Ctr) -> std::path::PathBuf {
        Path::new(&self.config.log_directory).join(&container.config.log_path)
    }
}

/// The configuration of a container.
#[derive(Clone, Debug)]
pub struct Ctr {
    /// What goes over the wire.
    pub config: ContainerConfig,
}

#[allow(missing_docs)] // named after the fields they set
impl Ctr {
    /// In the namespaces of `pod`, with the default system call filter and a log file named after it.
    pub fn new(name: &str, image: &str, pod: &Pod) -> Ctr {
        let security_context = LinuxContainerSecurityContext {
            namespace_options: pod.namespace_options(),
            // The first of its kinds is the runtime's default.
            seccomp: Some(SecurityProfile::default()),
            ..Default::default()
        };
        let linux = LinuxContainerConfig {
            resources: Some(LinuxContainerResources::default()),
            security_context: Some(security_context),
        };
        Ctr {
            config: ContainerConfig {
                metadata: Some(ContainerMetadata { name: name.into(), attempt: 0 }),
                image: Some(image_spec(image)),
                log_path: format!("{name}.log"),
                linux: Some(linux),
                ..ContainerConfig::default()
            },
        }
    }

    /// One that runs until it is stopped, and ends at once when it is.
    pub fn sleeper(name: &str, image: &str, pod: &Pod) -> Ctr {
        Ctr::new(name, image, pod).sh("trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done")
    }

    pub fn command(mut self, words: &[&str]) -> Ctr {
        self.config.command = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    pub fn args(mut self, words: &[&str]) -> Ctr {
        self.config.args = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    pub fn sh(self, script: &str) -> Ctr {
        self.command(&["sh", "-c", script])
    }

    pub fn env(mut self, key: &str, value: &str) -> Ctr {
        self.config.envs.push(KeyValue { key: key.into(), value: value.into() });
        self
    }

    pub fn working_dir(mut self, directory: &str) -> Ctr {
        self.config.working_dir = directory.into();
        self
    }

    pub fn label(mut self, key: &str, value: &str) -> Ctr {
        self.config.labels.insert(key.into(), value.into());
        self
    }

    pub fn annotation(mut self, key: &str, value: &str) -> Ctr {
        self.config.annotations.insert(key.into(), value.into());
        self
    }

    pub fn mount(mut self, host: &Path, container: &str, readonly: bool) -> Ctr {
        self.config.mounts.push(Mount {
            container_path: container.into(),
            host_path: host.display().to_string(),
            readonly,
            ..Mount::default()
        });
        self
    }

    /// A device of the host, to read and write.
    pub fn device(mut self, host: &str, container: &str) -> Ctr {
        self.config.devices.push(Device {
            container_path: container.into(),
            host_path: host.into(),
            permissions: "rw".into(),
        });
        self
    }

    pub fn attempt(mut self, attempt: u32) -> Ctr {
        self.config.metadata.get_or_insert_default().attempt = attempt;
        self
    }

    pub fn resources(mut self, set: impl FnOnce(&mut LinuxContainerResources)) -> Ctr {
        set(self.config.linux.get_or_insert_default().resources.get_or_insert_default());
        self
    }

    pub fn security(mut self, set: impl FnOnce(&mut LinuxContainerSecurityContext)) -> Ctr {
        set(self.config.linux.get_or_insert_default().security_context.get_or_insert_default());
        self
    }

    pub fn capability(self, name: &str) -> Ctr {
        self.security(|context| {
            context.capabilities.get_or_insert_default().add_capabilities.push(name.into());
        })
    }

    pub fn user(self, uid: i64, gid: Option<i64>) -> Ctr {
        self.security(|context| {
            context.run_as_user = Some(Int64Value { value: uid });
            context.run_as_group = gid.map(|value| Int64Value { value });
        })
    }
}

/// A container in the protocol's own words, for settings that are newer than the independent client.
pub fn container(name: &str, image: &str, command: &[&str]) -> cri::ContainerConfig {
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(cri::ImageSpec { image: image.into(), ..Default::default() }),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        log_path: format!("{name}.log"),
        ..Default::default()
    }
}
