//! A pod's connection to its network: the cluster's, by CNI plugins, or the built-in bridge.

use std::{fs::File, os::fd::OwnedFd};

use super::*;
use crate::network::{
    AttachRequest, Attachment, Network,
    cni::{Binding, Request as PluginRequest},
};

impl Task {
    /// Connects a pod that was just made; one on the host's network needs nothing.
    pub(super) async fn connect_network(&mut self) -> Result<()> {
        let Some(netns) = self.record.monitor_pid.map(netns_path) else { return Ok(()) };
        match self.record.config.network {
            NetworkMode::Host => return Ok(()),
            NetworkMode::None => return blocking(move || Ok(Network::loopback(&open(&netns)?)?)).await,
            NetworkMode::Pod => {}
        }
        match self.context.cni.installed()? {
            Some(list) => {
                let binding = Binding::new(list, &plugin_request(&self.record));
                self.connect_plugins(netns, binding).await
            }
            None => self.attach_to_bridge(netns).await,
        }
    }

    async fn attach_to_bridge(&mut self, netns: String) -> Result<()> {
        let (context, pod) = (self.context.clone(), self.record.id.clone());
        let ports = self.record.config.ports.clone();
        let attachment = blocking(move || {
            let (netns, procfs) = (open(&netns)?, context.procfs.get());
            let request =
                AttachRequest { pod_id: pod.as_str(), netns: &netns, ports: &ports, procfs: &procfs.path() };
            Ok::<_, Error>(context.network()?.attach(&request)?)
        });
        self.record.attachment = Some(attachment.await?);
        // From here on a crash finds the addresses in the record.
        self.context.records.write_pod(&self.record)
    }

    async fn connect_plugins(&mut self, netns: String, mut binding: Binding) -> Result<()> {
        let path = netns.clone();
        blocking(move || Ok::<_, Error>(Network::loopback(&open(&path)?)?)).await?;
        // A crash from here on is followed by a disconnect of whatever the plugins have done by then.
        self.record.attachment = Some(Attachment {
            host_interface: String::new(),
            addresses: Vec::new(),
            mac: String::new(),
            ports: self.record.config.ports.clone(),
            plugins: Some(binding.clone()),
        });
        self.context.records.write_pod(&self.record)?;
        let pod = self.record.id.as_str();
        let outcome = self.context.cni.connect(pod, &netns, &mut binding).await?;
        if let Some(attachment) = &mut self.record.attachment {
            attachment.addresses = outcome.addresses;
            attachment.mac = outcome.mac;
            attachment.plugins = Some(binding);
        }
        self.context.records.write_pod(&self.record)
    }

    /// Has the plugins look whether the pod is still connected as an earlier agent had it. The log tells where it is not:
    /// what to do about it is the operator's choice, and the cluster's probes notice too.
    pub(super) async fn check_plugins(&self) {
        let bound = self.record.attachment.as_ref().and_then(|attached| attached.plugins.as_ref());
        let (Some(binding), Some(_)) = (bound, &self.control) else { return };
        let netns = self.record.monitor_pid.map(netns_path).unwrap_or_default();
        if let Err(error) = self.context.cni.check(self.record.id.as_str(), &netns, binding).await {
            warn!(error = %Error::from(error).chain(), "the pod is no longer connected as it was");
        }
    }

    /// Has the plugins undo what they did, while the pod's namespace is there if it can be.
    pub(super) async fn disconnect_plugins(&mut self) -> Result<()> {
        let Some(binding) = self.record.attachment.as_ref().and_then(|attached| attached.plugins.clone())
        else {
            return Ok(());
        };
        // The monitor holds the namespace; without one its number may be another process's.
        let alive = self.record.monitor_pid.filter(|_| self.control.is_some());
        let netns = alive.map(netns_path).unwrap_or_default();
        self.context.cni.disconnect(self.record.id.as_str(), &netns, &binding).await?;
        self.record.attachment = None;
        Ok(())
    }

    /// Gives back a pod's addresses and ports on the bridge, once its monitor has ended.
    pub(super) async fn detach_from_bridge(&mut self) -> Result<()> {
        let attachment = self.record.attachment.clone().filter(|attached| attached.plugins.is_none());
        let Some(attachment) = attachment else { return Ok(()) };
        let (context, pod) = (self.context.clone(), self.record.id.clone());
        blocking(move || context.depart(&pod, &attachment)).await?;
        // The address is kept in the record of a stopped pod no longer than it is the pod's.
        self.record.attachment = None;
        Ok(())
    }
}

/// What the plugins are told of a pod.
fn plugin_request(record: &PodRecord) -> PluginRequest<'_> {
    let config = &record.config;
    PluginRequest {
        pod_id: record.id.as_str(),
        namespace: &config.name.namespace,
        name: &config.name.name,
        uid: &config.name.uid,
        ports: &config.ports,
        dns: config.dns.as_ref().map(|dns| [&dns.servers[..], &dns.searches[..], &dns.options[..]]),
        annotations: &config.annotations,
    }
}

fn netns_path(monitor: impl std::fmt::Display) -> String {
    format!("/proc/{monitor}/ns/net")
}

fn open(netns: &str) -> Result<OwnedFd> {
    Ok(File::open(netns).map_err(at("open", netns))?.into())
}
