//! Images made of snapshots, and configurations changed by instructions.

use serde_json::{Map, Value, json};

use super::*;
use crate::{
    DiffOptions, Kind, Store, StoreOptions, archive,
    layer::tests::archive::{Archive, Item},
};

fn config_of(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap()
}

/// A store with one image in it.
fn store() -> (tempfile::TempDir, Store, Arc<Image>) {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path(), StoreOptions::default()).unwrap();
    let layer = Archive::new().add(Item::file("below", b"x")).bytes();
    let digest = Digest::of(&layer);
    store.inner().content.put(&digest, &layer).unwrap();
    let config = json!({
        "architecture": "amd64", "os": "linux", "created": "2024-02-29T12:00:00Z", "container": "abc",
        "docker_version": "20", "variant": "v3",
        "config": {"Cmd": ["sh"]}, "rootfs": {"type": "layers", "diff_ids": [digest]},
    });
    let config = config.to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {"mediaType": "application/vnd.docker.container.image.v1+json",
            "digest": Digest::of(&config), "size": config.len()},
        "layers": [{"mediaType": "application/vnd.docker.image.rootfs.diff.tar",
            "digest": digest, "size": layer.len()}],
    });
    let names = ["base".parse().unwrap()];
    let image = assemble(store.inner(), manifest.to_string().as_bytes(), &config, &names).unwrap();
    (root, store, image)
}

fn step() -> Commit {
    Commit {
        created: 1_700_000_000_000_000_000,
        created_by: "sh -c touch".into(),
        author: "Ann <a@b.c>".into(),
        comment: "noted".into(),
        config: config_of(json!({"Cmd": ["own"], "Healthcheck": {"Test": ["NONE"]}})),
        options: DiffOptions::default(),
    }
}

fn write(store: &Store, key: &str, name: &str) {
    std::fs::write(store.snapshots().directories(key).unwrap().upper.join(name), name).unwrap();
}

fn document(store: &Store, digest: &Digest) -> Value {
    serde_json::from_slice(&store.inner().content.read(digest, 1 << 20).unwrap()).unwrap()
}

#[test]
fn a_commit_adds_one_layer_and_one_step() {
    let (root, store, parent) = store();
    store.snapshots().prepare("key", Some(parent.chain_id())).unwrap();
    write(&store, "key", "above");
    let names = ["quay.io/x/made:1".parse().unwrap()];
    let image = store.commit(&parent, "key", &step(), &names).unwrap();
    assert_eq!(image.repo_tags, ["quay.io/x/made:1"]);
    assert_eq!(image.layers[..1], parent.layers[..]);
    assert_eq!(image.layers.len(), 2);
    let config = document(&store, &image.id);
    assert_eq!(config["config"], json!({"Cmd": ["own"], "Healthcheck": {"Test": ["NONE"]}}));
    assert_eq!((&config["variant"], &config["container"]), (&json!("v3"), &Value::Null));
    assert_eq!(config["author"], "Ann <a@b.c>");
    let history = config["history"].as_array().unwrap();
    assert_eq!(history.len(), 2, "the layer that nobody told of has a step too");
    assert_eq!(
        history[1],
        json!({"created": "2023-11-14T22:13:20Z", "created_by": "sh -c touch", "author": "Ann <a@b.c>",
            "comment": "noted"})
    );
    let manifest = document(&store, &image.manifest);
    let kinds: Vec<&Value> =
        manifest["layers"].as_array().unwrap().iter().map(|layer| &layer["mediaType"]).collect();
    assert_eq!(
        kinds,
        ["application/vnd.oci.image.layer.v1.tar", "application/vnd.oci.image.layer.v1.tar+gzip"]
    );
    let steps = store.history(&image);
    assert_eq!((steps.len(), steps[0].size, steps[1].size), (2, 5, 1));

    // It is an image like any other: found after a restart, saved, loaded, and the base of further snapshots.
    drop(store);
    let store = Store::open(root.path(), StoreOptions::default()).unwrap();
    assert_eq!(store.faults(), [""; 0]);
    let image = store.find("quay.io/x/made:1").unwrap().unwrap();
    store.snapshots().prepare("next", Some(image.chain_id())).unwrap();
    assert_eq!(store.snapshots().directories("next").unwrap().lower.len(), 2);
    let mut saved = Vec::new();
    archive::save(store.inner(), &[(image, Vec::new())], &mut saved).unwrap();
    assert!(!saved.is_empty());
}

#[test]
fn the_same_changes_give_the_same_image() {
    let (_root, store, parent) = store();
    let made: Vec<Digest> = ["one", "two"]
        .map(|key| {
            store.snapshots().prepare(key, Some(parent.chain_id())).unwrap();
            for name in ["b", "a", "c"] {
                write(&store, key, name);
            }
            let options = DiffOptions { latest: Some(0), ..DiffOptions::default() };
            store.commit(&parent, key, &Commit { options, ..step() }, &[]).unwrap().id.clone()
        })
        .into();
    assert_eq!(made[0], made[1]);
}

#[test]
fn a_commit_of_nothing_changed_adds_a_step_and_no_layer() {
    let (_root, store, parent) = store();
    store.snapshots().prepare("key", Some(parent.chain_id())).unwrap();
    let image = store.commit(&parent, "key", &step(), &[]).unwrap();
    assert_eq!(image.layers, parent.layers);
    assert_ne!(image.id, parent.id);
    assert_eq!(document(&store, &image.id)["history"][1]["empty_layer"], true);
    assert_eq!(store.history(&image)[0].size, 0);
    assert_eq!(store.commit(&parent, "nobody", &step(), &[]).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn a_commit_that_fails_leaves_nothing() {
    let (root, store, parent) = store();
    store.snapshots().prepare("key", Some(parent.chain_id())).unwrap();
    write(&store, "key", "fine");
    write(&store, "key", ".wh.bad");
    let error = store.commit(&parent, "key", &step(), &[]).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument, "{error:?}");
    let entries = |path: &str| std::fs::read_dir(root.path().join(path)).unwrap().count();
    assert_eq!(entries("content/ingest") + entries("snapshots/unpacking"), 0);
    assert_eq!((entries("content/blobs/sha256"), entries("snapshots/committed")), (3, 1));
}

fn changed(config: Value, instructions: &[&str]) -> Result<Value, String> {
    let mut config = config_of(config);
    let instructions: Vec<String> = instructions.iter().map(ToString::to_string).collect();
    apply_changes(&mut config, &instructions).map_err(|error| error.to_string())?;
    Ok(config.into())
}

#[test]
fn instructions_change_what_they_are_for() {
    for (instruction, key, value) in [
        ("CMD [\"a\", \"b c\"]", "Cmd", json!(["a", "b c"])),
        ("cmd echo $HOME", "Cmd", json!(["/bin/sh", "-c", "echo $HOME"])),
        ("CMD []", "Cmd", json!([])),
        ("ENTRYPOINT [\"x\"]", "Entrypoint", json!(["x"])),
        ("ENV A=b C=\"d e\" F=g\\ h", "Env", json!(["PATH=/bin", "A=b", "C=d e", "F=g h"])),
        ("ENV A the rest of it", "Env", json!(["PATH=/bin", "A=the rest of it"])),
        ("ENV PATH=/x:$PATH", "Env", json!(["PATH=/x:/bin"])),
        ("ENV A=${PATH}y B='$PATH'", "Env", json!(["PATH=/bin", "A=/biny", "B=$PATH"])),
        (
            "EXPOSE 80 53/UDP 8000-8001",
            "ExposedPorts",
            json!({"80/tcp": {}, "53/udp": {}, "8000/tcp": {}, "8001/tcp": {}}),
        ),
        ("LABEL a=b \"c d\"='e f'", "Labels", json!({"a": "b", "c d": "e f"})),
        ("ONBUILD RUN make", "OnBuild", json!(["RUN make"])),
        ("USER app:app", "User", json!("app:app")),
        ("VOLUME /a /b", "Volumes", json!({"/a": {}, "/b": {}})),
        ("VOLUME [\"/a b\"]", "Volumes", json!({"/a b": {}})),
        ("WORKDIR sub/../dir", "WorkingDir", json!("/srv/dir")),
        ("WORKDIR /x", "WorkingDir", json!("/x")),
        ("STOPSIGNAL SIGQUIT", "StopSignal", json!("SIGQUIT")),
        (
            "HEALTHCHECK --interval=1m30s --retries=3 CMD curl -f localhost",
            "Healthcheck",
            json!({"Interval": 90_000_000_000_i64, "Retries": 3, "Test": ["CMD-SHELL", "curl -f localhost"]}),
        ),
        ("HEALTHCHECK NONE", "Healthcheck", json!({"Test": ["NONE"]})),
        // As a Dockerfile has them: all that variables can do, and a word with blanks in it.
        ("ENV A=${NONE:-default}", "Env", json!(["PATH=/bin", "A=default"])),
        ("USER a b", "User", json!("a b")),
        ("EXPOSE ${NONE:-81}", "ExposedPorts", json!({"81/tcp": {}})),
    ] {
        let base = json!({"Env": ["PATH=/bin"], "WorkingDir": "/srv", "ExposedPorts": null});
        let config = changed(base, &[instruction]).unwrap();
        assert_eq!(config[key], value, "{instruction}");
    }
}

#[test]
fn an_entrypoint_takes_back_the_images_command() {
    let base = || json!({"Cmd": ["image"], "Shell": ["/bin/bash", "-ec"]});
    let entrypoint = "ENTRYPOINT run";
    assert_eq!(changed(base(), &[entrypoint]).unwrap()["Cmd"], Value::Null);
    assert_eq!(changed(base(), &[entrypoint]).unwrap()["Entrypoint"], json!(["/bin/bash", "-ec", "run"]));
    for order in [["CMD [\"x\"]", entrypoint], [entrypoint, "CMD [\"x\"]"]] {
        assert_eq!(changed(base(), &order).unwrap()["Cmd"], json!(["x"]));
    }
}

#[test]
fn instructions_that_cannot_be_are_refused_with_a_reason() {
    for (instruction, word) in [
        ("RUN make", "RUN is not one of"),
        ("", "no instruction in it"),
        ("ENV", "needs an argument"),
        ("ENV A", "write A=VALUE"),
        ("ENV A=b =c", "NAME=VALUE"),
        ("LABEL a='b", "not closed"),
        ("EXPOSE 80/icmp", "tcp, udp and sctp"),
        ("EXPOSE 99999", "no port"),
        ("EXPOSE 9-8", "no port"),
        ("USER 99999999999", "no user"),
        ("STOPSIGNAL SIGFOO", "no signal"),
        ("CMD [\"a\"]\nCMD [\"b\"]", "more than one instruction"),
        ("ONBUILD FROM x", "FROM"),
        ("ONBUILD onbuild RUN x", "ONBUILD"),
        ("HEALTHCHECK --interval=soon CMD x", "soon"),
        ("HEALTHCHECK", "HEALTHCHECK"),
        ("ENV A=${B", "}"),
    ] {
        let error = changed(json!({}), &[instruction]).unwrap_err();
        assert!(
            error.contains(word) && error.contains(&format!("{instruction:?}")),
            "{instruction}: {error}"
        );
    }
}
