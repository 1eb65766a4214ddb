//! Pod networks by CNI plugins, of versions 0.1.0 to 1.1.0 of the specification.
//!
//! As soon as a configuration is installed, pods are connected by its plugins and no longer by the built-in bridge.
//! What a pod was connected with, its [`Binding`], is kept by the caller from before the first plugin runs until the
//! last one has undone its part: so a pod is disconnected with the configuration that connected it, also after a
//! crash in the middle, and whatever becomes of the files meanwhile.
//!
//! Plugins are the operator's programs, and beside CRIU the only ones that a pod start executes.

mod capability;
mod error;
mod list;
mod plugin;
mod result;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tracing::debug;

use plugin::{Call, Verb};

pub use capability::Request;
pub use error::Error;
pub use list::List;
pub use result::Outcome;

/// The pod's interface, as kubelet's clusters expect it.
const INTERFACE: &str = "eth0";

/// Where configurations and plugins are found.
#[derive(Debug, Clone)]
pub struct Cni {
    /// The folder of configurations; empty: there are none.
    pub configurations: PathBuf,
    /// The folders of plugins, in the order in which they are searched.
    pub plugins: Vec<PathBuf>,
}

/// What a pod is, or is being, connected with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Binding {
    list: List,
    /// The plugins' `CNI_ARGS`.
    arguments: String,
    /// `runtimeConfig` by the capability that a plugin must have to get it.
    capabilities: Map<String, Value>,
    /// What the last plugin answered; absent: they are not through.
    result: Option<Value>,
}

impl Binding {
    /// How a pod will be connected by the plugins of this list.
    pub fn new(list: List, request: &Request<'_>) -> Binding {
        Binding { list, arguments: request.arguments(), capabilities: request.capabilities(), result: None }
    }
}

impl Cni {
    /// The configuration that is in force: the first file by name, as containerd and CRI-O choose it.
    ///
    /// # Errors
    /// A first file that is broken: silently taking the next would put pods into another network.
    pub fn installed(&self) -> Result<Option<List>, Error> {
        List::first_of(&self.configurations)
    }

    /// Connects a pod: every plugin in order, each with its predecessor's result. On failure some may have done their
    /// part, so [`Cni::disconnect`] comes next.
    ///
    /// # Errors
    /// What a plugin says, or that it is missing or too slow.
    pub async fn connect(&self, pod: &str, netns: &str, binding: &mut Binding) -> Result<Outcome, Error> {
        let mut previous = None;
        for plugin in &binding.list.plugins {
            let call = self.call(Verb::Add, pod, netns, binding);
            let input = binding.input(plugin, previous.as_ref());
            if let Some(answer) = plugin::run(&call, plugin, input).await? {
                previous = Some(answer);
            }
        }
        let outcome = result::read(previous.as_ref(), &binding.list.name)?;
        binding.result = previous;
        Ok(outcome)
    }

    /// Undoes what [`Cni::connect`] did, in reverse, past failures. May be repeated; `netns` is empty when the pod's
    /// namespace is gone already.
    ///
    /// # Errors
    /// The first failure; the others are logged.
    pub async fn disconnect(&self, pod: &str, netns: &str, binding: &Binding) -> Result<(), Error> {
        let mut failure = None;
        for plugin in binding.list.plugins.iter().rev() {
            let call = self.call(Verb::Del, pod, netns, binding);
            let input = binding.input(plugin, binding.result.as_ref());
            if let Err(error) = plugin::run(&call, plugin, input).await {
                debug!(%error, "a plugin could not undo its part");
                failure.get_or_insert(error);
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Asks every plugin whether the pod is still connected as it was; true where the list can't be asked.
    ///
    /// # Errors
    /// What the first plugin that found a difference says.
    pub async fn check(&self, pod: &str, netns: &str, binding: &Binding) -> Result<(), Error> {
        let Some(result) = binding.result.as_ref().filter(|_| binding.list.knows(Verb::Check)) else {
            return Ok(());
        };
        for plugin in &binding.list.plugins {
            let call = self.call(Verb::Check, pod, netns, binding);
            plugin::run(&call, plugin, binding.input(plugin, Some(result))).await?;
        }
        Ok(())
    }

    /// Has the plugins of a list give back what they hold for pods other than these.
    ///
    /// # Errors
    /// The first failure; the other plugins were asked nevertheless.
    pub async fn collect(&self, list: &List, pods: &[&str]) -> Result<(), Error> {
        if !list.knows(Verb::Gc) {
            return Ok(());
        }
        let valid: Vec<Value> =
            pods.iter().map(|pod| json!({ "containerID": pod, "ifname": INTERFACE })).collect();
        let mut failure = None;
        for plugin in &list.plugins {
            let mut input = list.input(plugin);
            input.insert("cni.dev/valid-attachments".into(), Value::Array(valid.clone()));
            if let Err(error) = plugin::run(&self.bare(Verb::Gc), plugin, input).await {
                failure.get_or_insert(error);
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Asks the plugins of a list whether pods can be connected now; true where they can't be asked.
    ///
    /// # Errors
    /// What the first plugin that is not ready says.
    pub async fn status(&self, list: &List) -> Result<(), Error> {
        if !list.knows(Verb::Status) {
            return self.all_there(list);
        }
        for plugin in &list.plugins {
            plugin::run(&self.bare(Verb::Status), plugin, list.input(plugin)).await?;
        }
        Ok(())
    }

    fn all_there(&self, list: &List) -> Result<(), Error> {
        list.plugins.iter().try_for_each(|plugin| plugin::find(&self.plugins, list::kind(plugin)).map(drop))
    }

    fn call<'a>(&'a self, verb: Verb, pod: &'a str, netns: &'a str, binding: &'a Binding) -> Call<'a> {
        Call { pod, netns, interface: INTERFACE, arguments: &binding.arguments, ..self.bare(verb) }
    }

    /// A call that is about no pod.
    fn bare(&self, verb: Verb) -> Call<'_> {
        Call { verb, pod: "", netns: "", interface: "", arguments: "", folders: &self.plugins }
    }
}

impl Binding {
    /// What a plugin reads: its configuration, what it is capable of, and what is there already.
    fn input(&self, plugin: &Map<String, Value>, previous: Option<&Value>) -> Map<String, Value> {
        let mut input = self.list.input(plugin);
        let capable = plugin.get("capabilities").and_then(Value::as_object);
        let capable =
            |name: &String| capable.and_then(|all| all.get(name)).is_some_and(|value| value == true);
        let runtime: Map<String, Value> = self
            .capabilities
            .iter()
            .filter(|(name, _)| capable(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if !runtime.is_empty() {
            input.insert("runtimeConfig".into(), Value::Object(runtime));
        }
        if let Some(previous) = previous {
            input.insert("prevResult".into(), previous.clone());
        }
        input
    }

    /// The name of the network, for people.
    pub(crate) fn network(&self) -> &str {
        &self.list.name
    }
}
