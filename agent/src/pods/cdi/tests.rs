//! Files and what they do to a specification. A container with a device is in the end-to-end tests.

use std::fs;

use oci_spec::runtime::{LinuxDeviceType, Spec};
use tempfile::TempDir;

use super::*;

const YAML: &str = r"
cdiVersion: '0.6.0'
kind: vendor.example/sensor
containerEdits:
  env: [SENSOR=yes]
devices:
  - name: null0
    containerEdits:
      env: ['PATH=/vendor']
      deviceNodes:
        - { path: /dev/sensor, hostPath: /dev/null, permissions: rw, fileMode: 432 }
      mounts:
        - { hostPath: /usr/lib/vendor, containerPath: /usr/lib/vendor/deep, options: [ro, nosuid] }
      hooks:
        - { hookName: createContainer, path: /bin/hook, args: [hook, now], timeout: 3 }
      additionalGids: [0, 44]
  - name: pipe
    containerEdits:
      deviceNodes: [{ path: /dev/pipe, type: p }]
";

fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, text) in files {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn injected(devices: &[&str], folders: &[&TempDir]) -> Result<Spec> {
    let mut spec = Spec::default();
    let devices: Vec<String> = devices.iter().map(|&device| device.into()).collect();
    let folders: Vec<PathBuf> = folders.iter().map(|folder| folder.path().to_owned()).collect();
    inject(&mut spec, &devices, &folders)?;
    Ok(spec)
}

fn told(devices: &[&str], folders: &[&TempDir]) -> String {
    injected(devices, folders).unwrap_err().to_string()
}

#[test]
fn a_device_brings_what_its_file_says() {
    let folder = folder(&[("vendor.yaml", YAML)]);
    let spec = injected(&["vendor.example/sensor=null0", "vendor.example/sensor=pipe"], &[&folder]).unwrap();
    let process = spec.process().as_ref().unwrap();
    let env = process.env().as_ref().unwrap();
    assert!(env.contains(&"SENSOR=yes".into()), "{env:?}");
    assert_eq!(env.iter().filter(|pair| pair.starts_with("PATH=")).collect::<Vec<_>>(), ["PATH=/vendor"]);
    assert_eq!(process.user().additional_gids().as_ref().unwrap(), &[44]);
    let linux = spec.linux().as_ref().unwrap();
    let devices = linux.devices().as_ref().unwrap();
    let [sensor, pipe] = &devices[..] else { panic!("{devices:?}") };
    assert_eq!((sensor.path(), sensor.typ()), (&PathBuf::from("/dev/sensor"), LinuxDeviceType::C));
    assert_eq!(
        (sensor.major(), sensor.minor(), sensor.file_mode()),
        (1, 3, Some(0o660)),
        "those of /dev/null"
    );
    assert_eq!(pipe.typ(), LinuxDeviceType::P);
    let rules = linux.resources().as_ref().unwrap().devices().as_ref().unwrap();
    let last = rules.last().unwrap();
    assert_eq!((last.major(), last.minor(), last.access().as_deref()), (Some(1), Some(3), Some("rw")));
    assert!(rules.iter().all(|rule| rule.typ() != Some(LinuxDeviceType::P)), "the filter knows no pipes");
    let mounts = spec.mounts().as_ref().unwrap();
    let mount = mounts.iter().find(|mount| mount.destination().ends_with("deep")).unwrap();
    assert_eq!(mount.options().as_ref().unwrap(), &["rbind", "ro", "nosuid"]);
    let hooks = spec.hooks().as_ref().unwrap().create_container().as_ref().unwrap();
    assert_eq!((hooks[0].path(), hooks[0].timeout()), (&PathBuf::from("/bin/hook"), Some(3)));
}

#[test]
fn what_is_common_is_done_once() {
    let text = r#"{"cdiVersion": "1.0.0", "kind": "v.example/c", "containerEdits":
        {"hooks": [{"hookName": "poststop", "path": "/bin/true"}]},
        "devices": [{"name": "a", "containerEdits": {}}, {"name": "b", "containerEdits": {"env": ["B=1"]}}]}"#;
    let folder = folder(&[("c.json", text)]);
    let spec = injected(&["v.example/c=a", "v.example/c=b"], &[&folder]).unwrap();
    assert_eq!(spec.hooks().as_ref().unwrap().poststop().as_ref().unwrap().len(), 1);
}

#[test]
fn later_folders_win_and_equals_are_refused() {
    let with = |value: &str| {
        format!(
            r#"{{"cdiVersion": "0.5.0", "kind": "v.example/c",
                "devices": [{{"name": "a", "containerEdits": {{"env": ["FROM={value}"]}}}}]}}"#
        )
    };
    let static_files = folder(&[("a.json", &with("etc"))]);
    let dynamic = folder(&[("z.json", &with("run"))]);
    let spec = injected(&["v.example/c=a"], &[&static_files, &dynamic]).unwrap();
    assert!(spec.process().as_ref().unwrap().env().as_ref().unwrap().contains(&"FROM=run".into()));
    fs::write(dynamic.path().join("y.json"), with("twice")).unwrap();
    let message = told(&["v.example/c=a"], &[&static_files, &dynamic]);
    assert!(message.contains("y.json") && message.contains("z.json"), "{message}");
}

#[test]
fn what_cannot_be_had_is_told() {
    let broken = folder(&[
        ("new.json", r#"{"cdiVersion": "9.0.0", "kind": "v.example/c", "devices": []}"#),
        ("typo.yaml", "cdiVersion: 0.5.0\nkind: v.example/c\ndevizes: []\n"),
        ("ignored.txt", "nothing"),
        ("good.yaml", YAML),
    ]);
    injected(&["vendor.example/sensor=pipe"], &[&broken]).expect("other files don't matter");
    let message = told(&["v.example/c=a"], &[&broken]);
    for part in ["no CDI file has the device v.example/c=a", "new.json", "9.0.0", "typo.yaml", "devizes"] {
        assert!(message.contains(part), "{message}");
    }
    assert!(!message.contains("ignored"), "{message}");
    for name in ["", "gpu", "v.example/c", "v.example=a", "v.example/c=-a", "../x/c=a"] {
        assert!(told(&[name], &[&broken]).contains("VENDOR/CLASS=NAME"), "{name}");
    }
    let absent = YAML.replace("/dev/null", "/dev/not-there");
    let message = told(&["vendor.example/sensor=null0"], &[&folder(&[("a.yaml", &absent)])]);
    assert!(
        message.contains("vendor.example/sensor=null0") && message.contains("/dev/not-there"),
        "{message}"
    );
    let message = told(
        &["vendor.example/sensor=null0"],
        &[&folder(&[("a.yaml", &YAML.replace("createContainer", "soon"))])],
    );
    assert!(message.contains("no hook \"soon\""), "{message}");
}

#[test]
fn annotations_name_devices_too() {
    let annotations = [("cdi.k8s.io/plugin_x", "v.example/c=b, v.example/c=a"), ("other", "v.example/c=z")];
    let annotations = annotations.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let names = asked(vec!["v.example/c=a".into()], &annotations);
    assert_eq!(names, ["v.example/c=a", "v.example/c=b"]);
}
