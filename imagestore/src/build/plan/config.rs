//! An image's configuration, as Docker writes it: OCI's `config` member with Docker's own additions.
//!
//! What is read is kept, also what this module has no word for; what is written is the same for equal values, whatever
//! the order they came in. `null`, which Docker writes for empty members, reads as empty.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

/// The `config` member of an image's configuration document.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Config {
    /// `user[:group]`, empty for root.
    #[serde(deserialize_with = "or_empty", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `80/tcp` and the like.
    #[serde(deserialize_with = "or_empty", skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, Map<String, Value>>,
    /// `NAME=VALUE`, each name once, in the order they were first set.
    #[serde(deserialize_with = "or_empty", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// The program, with its first arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// The arguments, or the program where there is no entrypoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Paths.
    #[serde(deserialize_with = "or_empty", skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<String, Map<String, Value>>,
    /// Absolute and clean.
    #[serde(deserialize_with = "or_empty", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// What others are told.
    #[serde(deserialize_with = "or_empty", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// `SIGTERM`, `15`.
    #[serde(deserialize_with = "or_empty", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Docker's mark of a command it wrote itself; of no effect on Linux.
    #[serde(deserialize_with = "or_empty", skip_serializing_if = "is_false")]
    pub args_escaped: bool,
    /// How to find out whether a container is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Triggers: instructions for builds on top of this image.
    #[serde(deserialize_with = "or_empty", skip_serializing_if = "Vec::is_empty")]
    pub on_build: Vec<String>,
    /// What runs commands in the shell form; empty is `/bin/sh -c`.
    #[serde(deserialize_with = "or_empty", skip_serializing_if = "Vec::is_empty")]
    pub shell: Vec<String>,
    /// Whatever else was there.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// How to find out whether a container is well. Times are nanoseconds; 0 is the default of who runs it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", text]`.
    #[serde(deserialize_with = "or_empty", skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    /// Between two checks.
    #[serde(skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// How long one may take.
    #[serde(skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// How long failures do not count.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// Between two checks in that time.
    #[serde(skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    /// Failures in a row that make it unhealthy.
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: i64,
}

fn or_empty<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

fn is_false(value: &bool) -> bool {
    !value
}

fn is_zero(value: &i64) -> bool {
    *value == 0
}

impl Config {
    /// Reads the `config` member of an image's configuration document.
    pub fn read(member: &Value) -> Result<Config, serde_json::Error> {
        match member {
            Value::Null => Ok(Config::default()),
            member => Config::deserialize(member),
        }
    }

    /// The value of a variable.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.env.iter().find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }

    /// Sets a variable, in the place of one with the same name.
    pub(crate) fn set_variable(&mut self, name: &str, value: &str) {
        let pair = format!("{name}={value}");
        let same = |other: &&mut String| {
            other.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        };
        match self.env.iter_mut().find(same) {
            Some(place) => *place = pair,
            None => self.env.push(pair),
        }
    }

    /// The arguments that run `text` in this image's shell.
    pub(crate) fn in_shell(&self, text: &str) -> Vec<String> {
        let shell = match self.shell.as_slice() {
            [] => vec!["/bin/sh".to_owned(), "-c".to_owned()],
            shell => shell.to_vec(),
        };
        shell.into_iter().chain([text.to_owned()]).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_docker_writes_is_read_and_kept() {
        let written = json!({
            "Hostname": "", "User": "", "Env": ["PATH=/bin", "A=b=c"], "Cmd": null, "Volumes": null,
            "ExposedPorts": {"80/tcp": {}}, "OnBuild": null, "ArgsEscaped": true, "WorkingDir": "/srv",
            "Healthcheck": {"Test": ["CMD-SHELL", "true"], "Interval": 1000},
        });
        let mut config = Config::read(&written).unwrap();
        assert_eq!(config.variable("A"), Some("b=c"));
        assert_eq!(config.other.get("Hostname"), Some(&json!("")));
        config.set_variable("A", "d");
        config.set_variable("PAT", "h");
        assert_eq!(config.env, ["PATH=/bin", "A=d", "PAT=h"]);
        let again = serde_json::to_value(&config).unwrap();
        assert_eq!(again["Healthcheck"], written["Healthcheck"]);
        assert_eq!(again["ExposedPorts"], written["ExposedPorts"]);
        assert!(again.get("Cmd").is_none() && again.get("OnBuild").is_none());
        assert_eq!(Config::read(&Value::Null).unwrap(), Config::default());
    }
}
