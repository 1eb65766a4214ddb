//! Archives of every kind, written by this test, read by the store, written by the store, read by this test.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
};

use serde_json::{Value, json};

use crate::{
    Digest, Image, Kind, Reference, Store, StoreOptions,
    layer::tests::archive::{Archive, Item},
};

fn store() -> (tempfile::TempDir, Store) {
    let root = tempfile::tempdir().unwrap();
    let store = Store::open(root.path(), StoreOptions::default()).unwrap();
    (root, store)
}

/// A layer's tar, with one file.
fn layer(name: &str) -> Vec<u8> {
    Archive::new().add(Item::file(name, name.as_bytes())).bytes()
}

fn config(layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<Digest> = layers.iter().map(|layer| Digest::of(layer)).collect();
    json!({
        "architecture": crate::Platform::default().architecture, "os": "linux", "created": "2024-02-29T12:00:00Z",
        "config": {"Cmd": ["/bin/sh"], "OnBuild": ["RUN true"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created_by": "one"}, {"created_by": "two", "empty_layer": true}],
    })
    .to_string()
    .into_bytes()
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = ::tar::Builder::new(Vec::new());
    for (path, bytes) in files {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, *bytes).unwrap();
    }
    tar.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn files(archive: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut tar = ::tar::Archive::new(archive);
    let entries = tar.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        (entry.path().unwrap().display().to_string(), bytes)
    });
    entries.collect()
}

/// A Docker archive as `docker save` wrote it for years: `HEX/layer.tar`, a second image's layer as a link.
fn docker_archive() -> (Vec<u8>, Digest) {
    let layers = [layer("a"), layer("b")];
    let config = config(&layers);
    let list = json!([{
        "Config": "config.json",
        "RepoTags": ["app:1", "quay.io/x/app:2"],
        "Layers": ["aaaa/layer.tar", "bbbb/layer.tar"],
    }]);
    let archive = tar(&[
        ("aaaa/VERSION", b"1.0"),
        ("aaaa/json", b"{}"),
        ("aaaa/layer.tar", &layers[0]),
        ("manifest.json", list.to_string().as_bytes()),
        ("repositories", b"{}"),
        ("config.json", &config),
        ("bbbb/layer.tar", &layers[1]),
    ]);
    (archive, Digest::of(&config))
}

/// A Docker archive with an image of one layer with one file of so many bytes; without a name it gets no tag.
pub(crate) fn docker_image(name: &str, size: usize) -> Vec<u8> {
    let mut state =
        name.bytes().fold(0x9e37_79b9_7f4a_7c15_u64, |state, byte| state.rotate_left(7) ^ u64::from(byte));
    let content: Vec<u8> = (0..size)
        .map(|_| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            (state >> 40) as u8
        })
        .collect();
    let layer = Archive::new().add(Item::file("file", &content)).bytes();
    let config = config(std::slice::from_ref(&layer));
    let names: Vec<&str> = [name].into_iter().filter(|name| !name.is_empty()).collect();
    let list = json!([{ "Config": "c.json", "RepoTags": names, "Layers": ["l.tar"] }]).to_string();
    tar(&[("l.tar", &layer), ("c.json", &config), ("manifest.json", list.as_bytes())])
}

pub(crate) fn load_images(store: &Store, archives: &[Vec<u8>]) {
    for archive in archives {
        store.load(&archive[..]).unwrap();
    }
}

fn upper(store: &Store, image: &Image) -> Vec<String> {
    store.snapshots().prepare("look", Some(image.chain_id())).unwrap();
    let lower = store.snapshots().directories("look").unwrap().lower;
    let seen = lower.iter().flat_map(|layer| crate::snapshot::tests::names(layer)).collect();
    store.snapshots().remove("look").unwrap();
    seen
}

fn blobs(root: &tempfile::TempDir) -> usize {
    std::fs::read_dir(root.path().join("content/blobs/sha256")).unwrap().count()
}

#[test]
fn a_docker_archive_is_loaded_under_its_names_with_its_layers_as_they_are() {
    let (archive, id) = docker_archive();
    for archive in [archive.clone(), gzip(&archive), zstd::encode_all(&archive[..], 1).unwrap()] {
        let (root, store) = store();
        let loaded = store.load(&archive[..]).unwrap();
        assert_eq!(loaded.len(), 1);
        assert_eq!(loaded[0].names, ["docker.io/library/app:1", "quay.io/x/app:2"]);
        let image = store.find("app:1").unwrap().unwrap();
        assert_eq!(image.id, id);
        assert_eq!(image.repo_digests, [""; 0]);
        assert!(image.layers.iter().all(|layer| layer.digest == layer.diff_id));
        assert_eq!(upper(&store, &image), ["b", "a"]);
        assert_eq!(blobs(&root), 4, "two layers, the configuration, the manifest made for them");
        drop(store);
        let store = Store::open(root.path(), StoreOptions::default()).unwrap();
        assert_eq!(store.faults(), [""; 0]);
        store.remove(&id).unwrap();
        assert_eq!(blobs(&root), 0);
    }
}

#[test]
fn what_is_saved_is_loaded_again_with_the_same_digests() {
    let (root, first) = store();
    let image = first.load(&docker_archive().0[..]).unwrap().remove(0).image;
    let names: Vec<Reference> = ["app:1", "quay.io/x/app:2"].map(|name| name.parse().unwrap()).into();
    let mut archive = Vec::new();
    first.save(&[(image.clone(), names.clone())], &mut archive).unwrap();
    let mut again = Vec::new();
    first.save(&[(image.clone(), names)], &mut again).unwrap();
    assert!(archive == again, "the same input gives the same bytes");

    let files = files(&archive);
    let document = |name: &str| -> Value { serde_json::from_slice(&files[name]).unwrap() };
    assert_eq!(document("oci-layout")["imageLayoutVersion"], "1.0.0");
    assert_eq!(document("index.json")["manifests"][0]["digest"], image.manifest.as_str());
    assert_eq!(document("index.json")["manifests"].as_array().unwrap().len(), 2);
    assert_eq!(document("manifest.json")[0]["RepoTags"], json!(["app:1", "quay.io/x/app:2"]));
    for (path, bytes) in &files {
        if let Some(hex) = path.strip_prefix("blobs/sha256/").filter(|hex| !hex.is_empty()) {
            assert_eq!(Digest::of(bytes).hex(), hex);
        }
    }
    let (_other, second) = store();
    let loaded = second.load(&archive[..]).unwrap();
    assert_eq!(loaded.len(), 1, "two names and one image");
    assert_eq!(loaded[0].image.manifest, image.manifest);
    assert_eq!(loaded[0].image.repo_tags, image.repo_tags);
    drop(root);
}

#[test]
fn several_images_share_their_blobs_in_an_archive() {
    let (_root, store) = store();
    let (base, top) = (layer("base"), layer("top"));
    let both = [base.clone(), top.clone()];
    let configs = [config(&both[..1]), config(&both)];
    let list = json!([
        {"Config": "a.json", "RepoTags": ["a"], "Layers": ["1.tar"]},
        {"Config": "b.json", "RepoTags": null, "Layers": ["link/layer.tar", "2.tar"]},
    ]);
    let mut archive = ::tar::Builder::new(Vec::new());
    for (path, bytes) in [("1.tar", &base), ("2.tar", &top), ("a.json", &configs[0]), ("b.json", &configs[1])]
    {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        archive.append_data(&mut header, path, &bytes[..]).unwrap();
    }
    let mut header = ::tar::Header::new_gnu();
    header.set_entry_type(::tar::EntryType::Symlink);
    header.set_size(0);
    archive.append_link(&mut header, "link/layer.tar", "../1.tar").unwrap();
    let text = list.to_string();
    let mut header = ::tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    archive.append_data(&mut header, "manifest.json", text.as_bytes()).unwrap();
    let loaded = store.load(&archive.into_inner().unwrap()[..]).unwrap();
    assert_eq!(loaded.len(), 2);
    assert_eq!(loaded[1].names, [""; 0]);
    let usage = store.image_usage();
    assert!(usage.iter().all(|one| one.shared.bytes > 0 && one.unique.bytes > 0), "{usage:?}");
    let images: Vec<_> = loaded.iter().map(|one| (one.image.clone(), Vec::new())).collect();
    let mut saved = Vec::new();
    store.save(&images, &mut saved).unwrap();
    let blobs = files(&saved).keys().filter(|path| path.len() > 60).count();
    assert_eq!(blobs, 6, "two layers, two configurations, two manifests");
}

#[test]
fn a_damaged_archive_is_refused_and_leaves_nothing() {
    let (archive, _) = docker_archive();
    // In the middle of a file.
    let cut = archive.windows(12).position(|bytes| bytes == b"architecture").unwrap();
    let cut = &archive[..cut + 12];
    let config = config(&[layer("a")]);
    let list = |config: &str, layers: &[&str]| json!([{"Config": config, "Layers": layers}]).to_string();
    let wrong = "blobs/sha256/0000000000000000000000000000000000000000000000000000000000000000";
    let cases = [
        (b"no tar at all".to_vec(), Kind::InvalidArgument),
        (cut.to_vec(), Kind::DataLoss),
        (tar(&[("a", b"b")]), Kind::InvalidArgument),
        (tar(&[("manifest.json", b"{")]), Kind::InvalidArgument),
        (tar(&[("manifest.json", list("../../etc/passwd", &[]).as_bytes())]), Kind::InvalidArgument),
        (tar(&[("c", &config), ("manifest.json", list("c", &["x"]).as_bytes())]), Kind::InvalidArgument),
        (tar(&[("c", &config), ("manifest.json", list("c", &[]).as_bytes())]), Kind::InvalidArgument),
        (
            tar(&[("c", &config), ("l", &layer("other")), ("manifest.json", list("c", &["l"]).as_bytes())]),
            Kind::DataLoss,
        ),
        (tar(&[(wrong, b"not that"), ("manifest.json", b"[]")]), Kind::DataLoss),
        (tar(&[("index.json", br#"{"manifests":[]}"#)]), Kind::InvalidArgument),
    ];
    for (number, (archive, kind)) in cases.into_iter().enumerate() {
        let (root, store) = store();
        let error = store.load(&archive[..]).unwrap_err();
        assert_eq!(error.kind(), kind, "{number}: {error:?}");
        assert_eq!(blobs(&root), 0, "{number}");
        assert!(store.images().is_empty());
    }
}

#[test]
fn paths_of_an_archive_are_cleaned() {
    use super::load::clean;
    for (path, cleaned) in [("./a//b", "a/b"), ("/a/../b", "b"), ("../../x", "x"), ("", ""), ("a/", "a")] {
        assert_eq!(clean(path), cleaned, "{path}");
    }
}

#[test]
fn an_archive_that_swells_beyond_reason_is_given_up_wherever_it_swells() {
    let (_root, store) = store();
    // A file that nobody needs, so that it fills no disk; its zeros are compressed once.
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&vec![0; 16 << 20]).unwrap();
    let zeros = encoder.finish().unwrap();
    let mut header = ::tar::Header::new_gnu();
    header.set_path("x/json").unwrap();
    header.set_size(2 << 30);
    header.set_cksum();
    let bomb = [gzip(header.as_bytes()), zeros.repeat(128)].concat();
    let error = store.load(&bomb[..]).unwrap_err();
    assert_eq!(error.kind(), Kind::ResourceExhausted, "{}", crate::error::chain(&error));
    assert!(crate::error::chain(&error).contains("swell to more than"), "{}", crate::error::chain(&error));

    // A layer that would be allowed more if only its own size were looked at: the archive was compressed before.
    let swollen = zeros.repeat(75);
    let config = config(&[layer("a")]);
    let list = json!([{ "Config": "c.json", "RepoTags": ["app:1"], "Layers": ["l.tar"] }]).to_string();
    let files: [(&str, &[u8]); 3] =
        [("l.tar", &swollen), ("c.json", &config), ("manifest.json", list.as_bytes())];
    let error = store.load(&gzip(&tar(&files))[..]).unwrap_err();
    assert_eq!(error.kind(), Kind::ResourceExhausted, "{}", crate::error::chain(&error));
    assert_eq!(store.usage().unwrap().images.bytes, 0);
}

#[test]
fn a_name_that_is_none_costs_the_name_and_not_the_image() {
    let layer = layer("a");
    let config = config(std::slice::from_ref(&layer));
    let list = json!([{ "Config": "c.json", "RepoTags": ["Not A Name", "app:1"], "Layers": ["l.tar"] }]);
    let list = list.to_string();
    let files: [(&str, &[u8]); 3] =
        [("l.tar", &layer), ("c.json", &config), ("manifest.json", list.as_bytes())];
    let (_root, store) = store();
    let loaded = store.load(&tar(&files)[..]).unwrap();
    assert_eq!(loaded[0].names, ["docker.io/library/app:1"]);
}

#[test]
fn a_tag_alone_is_no_name_of_an_image() {
    let layer = layer("a");
    let config = config(std::slice::from_ref(&layer));
    let manifest = json!({
        "schemaVersion": 2, "mediaType": crate::manifest::OCI_MANIFEST,
        "config": {"mediaType": crate::manifest::OCI_CONFIG, "digest": Digest::of(&config), "size": config.len()},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": Digest::of(&layer), "size": layer.len()}],
    })
    .to_string();
    let named = |annotations: Value| {
        let index = json!({"schemaVersion": 2, "manifests": [
            {"digest": Digest::of(manifest.as_bytes()), "size": manifest.len(), "annotations": annotations},
        ]});
        let blob = |bytes: &[u8]| format!("blobs/sha256/{}", Digest::of(bytes).hex());
        let index = index.to_string();
        let archive = tar(&[
            (&blob(&layer), &layer),
            (&blob(&config), &config),
            (&blob(manifest.as_bytes()), manifest.as_bytes()),
            ("index.json", index.as_bytes()),
        ]);
        let (_root, store) = store();
        store.load(&archive[..]).unwrap().remove(0).names
    };
    let [containerd, oci] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
    assert_eq!(named(json!({oci: "1.0"})), [""; 0]);
    assert_eq!(named(json!({oci: "latest"})), [""; 0]);
    assert_eq!(named(json!({oci: "team/app:1.0"})), ["docker.io/team/app:1.0"]);
    assert_eq!(named(json!({oci: "1.0", containerd: "quay.io/team/app:1.0"})), ["quay.io/team/app:1.0"]);
}
