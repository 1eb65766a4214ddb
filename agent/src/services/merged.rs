//! A container's configuration as docker keeps it: the image's, with what the container was run with over it.
//!
//! Shown by inspect, and the ground that a commit starts from. Pure.

use serde_json::{Map, Value, json};

use crate::pods::config::{ContainerConfig, PodConfig};

/// `image` is the `config` member of the image's configuration, whatever it holds.
pub(super) fn merge(
    image: &Map<String, Value>,
    pod: &PodConfig,
    container: &ContainerConfig,
) -> Map<String, Value> {
    let mut config = image.clone();
    let text = |key: &str| image.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let either = |own: &str, key: &str| if own.is_empty() { text(key) } else { own.to_owned() };
    let user = match (container.security.run_as_user, container.security.run_as_group) {
        (Some(user), Some(group)) => format!("{user}:{group}"),
        (Some(user), None) => user.to_string(),
        (None, _) => either(&container.security.run_as_username, "User"),
    };
    config.insert("User".into(), user.into());
    config.insert("WorkingDir".into(), either(&container.working_dir, "WorkingDir").into());
    config.insert("Env".into(), environment(image, container).into());
    let given = |key: &str| image.get(key).cloned().unwrap_or(Value::Null);
    // An entrypoint of one's own leaves nothing of the image's command line.
    let (entrypoint, command) = match (container.command.is_empty(), container.args.is_empty()) {
        (false, true) => (json!(container.command), Value::Null),
        (false, false) => (json!(container.command), json!(container.args)),
        (true, false) => (given("Entrypoint"), json!(container.args)),
        (true, true) => (given("Entrypoint"), given("Cmd")),
    };
    config.insert("Entrypoint".into(), entrypoint);
    config.insert("Cmd".into(), command);
    let mut labels = image.get("Labels").and_then(Value::as_object).cloned().unwrap_or_default();
    labels.extend(container.labels.iter().map(|(key, value)| (key.clone(), value.clone().into())));
    config.insert("Labels".into(), labels.into());
    let mut exposed = image.get("ExposedPorts").and_then(Value::as_object).cloned().unwrap_or_default();
    for port in &pod.ports {
        exposed.insert(format!("{}/{}", port.container_port, port.protocol), json!({}));
    }
    if !exposed.is_empty() {
        config.insert("ExposedPorts".into(), exposed.into());
    }
    if let Some(signal) = container.stop_signal {
        config.insert("StopSignal".into(), signal.to_string().into());
    }
    config
}

/// The image's variables in their order, then the container's; a later one replaces an earlier one in its place.
fn environment(image: &Map<String, Value>, container: &ContainerConfig) -> Vec<String> {
    let given = image.get("Env").and_then(Value::as_array).cloned().unwrap_or_default();
    let mut environment: Vec<String> = given.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    for (name, value) in &container.env {
        let pair = format!("{name}={value}");
        let same = |other: &&mut String| other.split('=').next() == Some(name);
        match environment.iter_mut().find(same) {
            Some(place) => *place = pair,
            None => environment.push(pair),
        }
    }
    environment
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Map<String, Value> {
        let image = json!({
            "Env": ["PATH=/bin", "A=image"], "Cmd": ["-g"], "Entrypoint": ["nginx"], "WorkingDir": "/srv",
            "Labels": {"a": "image", "b": "image"}, "Healthcheck": {"Test": ["NONE"]}, "User": "app",
        });
        image.as_object().cloned().unwrap()
    }

    fn container() -> ContainerConfig {
        serde_json::from_value(json!({
            "name": "c", "attempt": 0, "image": "i", "image_ref": "i", "command": [], "args": [], "working_dir": "",
            "env": [], "mounts": [], "devices": [], "labels": {}, "annotations": {}, "log_path": "",
            "resources": {}, "security": {}, "stop_signal": null,
        }))
        .unwrap()
    }

    fn pod() -> PodConfig {
        serde_json::from_value(json!({
            "name": {"name": "p", "uid": "", "namespace": "", "attempt": 0}, "hostname": "", "log_directory": null,
            "dns": null, "ports": [], "labels": {}, "annotations": {}, "cgroup_parent": null, "sysctls": {},
            "network": "pod", "pid": "container", "host_ipc": false, "privileged": false, "runtime_handler": "",
            "auto_remove": false, "standalone": true,
        }))
        .unwrap()
    }

    #[test]
    fn a_container_without_wishes_has_the_images_configuration() {
        let merged = merge(&image(), &pod(), &container());
        for (key, value) in image() {
            assert_eq!(merged[&key], value, "{key}");
        }
    }

    #[test]
    fn what_the_container_says_goes_over_the_image() {
        let container = ContainerConfig {
            env: vec![("A".into(), "own".into()), ("B".into(), "new".into())],
            args: vec!["-t".into()],
            labels: [("b".to_owned(), "own".to_owned())].into(),
            ..container()
        };
        let merged = merge(&image(), &pod(), &container);
        assert_eq!(merged["Env"], json!(["PATH=/bin", "A=own", "B=new"]));
        assert_eq!((&merged["Entrypoint"], &merged["Cmd"]), (&json!(["nginx"]), &json!(["-t"])));
        assert_eq!(merged["Labels"], json!({"a": "image", "b": "own"}));
        let container = ContainerConfig { command: vec!["sh".into()], args: vec![], ..container };
        let merged = merge(&image(), &pod(), &container);
        assert_eq!((&merged["Entrypoint"], &merged["Cmd"]), (&json!(["sh"]), &Value::Null));
    }
}
