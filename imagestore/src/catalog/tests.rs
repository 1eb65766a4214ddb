//! The catalog's behaviour, with images that have no content.

use super::*;
use crate::{ChainId, Kind, image::Layer};

fn image(seed: &str) -> Image {
    let digest = Digest::of(seed.as_bytes());
    let layer =
        Layer { digest: digest.clone(), diff_id: digest.clone(), chain_id: ChainId::base(&digest), size: 1 };
    Image {
        id: digest.clone(),
        manifest: Digest::of(format!("manifest of {seed}").as_bytes()),
        repo_tags: Vec::new(),
        repo_digests: Vec::new(),
        size: 1,
        created: None,
        config: Default::default(),
        layers: vec![layer],
        pinned: false,
        tagged_at: None,
    }
}

fn name(text: &str) -> Reference {
    text.parse().unwrap()
}

fn open(root: &Path) -> Catalog {
    let (catalog, faults) = Catalog::open(root, &[], |_| Ok(())).unwrap();
    assert_eq!(faults, [""; 0]);
    catalog
}

fn tags(catalog: &Catalog, seed: &str) -> Vec<String> {
    catalog.get(&image(seed).id).unwrap().repo_tags.clone()
}

#[test]
fn images_are_found_by_every_name_they_have() {
    let root = tempfile::tempdir().unwrap();
    let catalog = open(root.path());
    let index = Digest::of(b"index");
    let entered = catalog.enter(image("a"), &name("quay.io/x/app:1"), &index).unwrap();
    let hex = entered.id.hex();
    for text in [
        "quay.io/x/app:1".to_owned(),
        format!("quay.io/x/app@{index}"),
        format!("quay.io/x/app:1@{index}"),
        format!("quay.io/x/app@{}", entered.manifest),
        entered.id.to_string(),
        hex.to_owned(),
        hex[..12].to_owned(),
        format!("sha256:{}", &hex[..12]),
    ] {
        assert_eq!(catalog.find(&text).unwrap().as_deref(), Some(&*entered), "{text}");
    }
    for text in ["quay.io/x/app", "app:1", &Digest::of(b"none").to_string(), "0123456789ab"] {
        assert_eq!(catalog.find(text).unwrap(), None, "{text}");
    }
    for text in ["", "A B", "sha256:", "sha256:xyz", "sha256:../x"] {
        assert_eq!(catalog.find(text).unwrap_err().kind(), Kind::InvalidArgument, "{text}");
    }
}

#[test]
fn an_ambiguous_beginning_of_an_id_is_an_error() {
    let root = tempfile::tempdir().unwrap();
    let catalog = open(root.path());
    for seed in 0..40 {
        let seed = seed.to_string();
        catalog.enter(image(&seed), &name(&format!("a.io/{seed}")), &Digest::of(seed.as_bytes())).unwrap();
    }
    // Of 40 ids two begin alike.
    let found = (0..16).map(|digit| catalog.find(&format!("sha256:{digit:x}")));
    assert!(found.filter_map(Result::err).any(|error| matches!(error, Error::Ambiguous { .. })));
}

#[test]
fn a_tag_moves_and_the_former_image_stays_by_digest() {
    let root = tempfile::tempdir().unwrap();
    let catalog = open(root.path());
    catalog.enter(image("old"), &name("app"), &Digest::of(b"old target")).unwrap();
    catalog.enter(image("new"), &name("app"), &Digest::of(b"new target")).unwrap();
    for catalog in [&catalog, &open(root.path())] {
        assert_eq!(catalog.find("app").unwrap().unwrap().id, image("new").id);
        assert_eq!(tags(catalog, "old"), [""; 0]);
        assert_eq!(tags(catalog, "new"), ["docker.io/library/app:latest"]);
        assert!(catalog.find(&format!("app@{}", Digest::of(b"old target"))).unwrap().is_some());
    }
}

#[test]
fn of_two_records_with_one_tag_the_later_wins() {
    let root = tempfile::tempdir().unwrap();
    let catalog = open(root.path());
    let old = catalog.enter(image("old"), &name("app"), &Digest::of(b"1")).unwrap();
    catalog.enter(image("new"), &name("app"), &Digest::of(b"2")).unwrap();
    // As a crash between the two writes of a move leaves it.
    catalog.metadata.put(&Record { generation: 1, image: (*old).clone() }).unwrap();
    let catalog = open(root.path());
    assert_eq!(catalog.find("app").unwrap().unwrap().id, image("new").id);
    assert_eq!(tags(&catalog, "old"), [""; 0]);
}

#[test]
fn untagging_removes_the_image_with_its_last_name() {
    let root = tempfile::tempdir().unwrap();
    let catalog = open(root.path());
    let target = Digest::of(b"target");
    catalog.enter(image("a"), &name("app:1"), &target).unwrap();
    catalog.enter(image("a"), &name("app:2"), &target).unwrap();
    let first = catalog.untag(&name("app:1")).unwrap();
    assert_eq!(first.untagged, ["docker.io/library/app:1"]);
    assert_eq!(first.deleted, []);
    let last = catalog.untag(&name("app:2")).unwrap();
    assert_eq!(last.untagged.len(), 2, "the tag and the digest: {last:?}");
    assert_eq!(last.deleted, [image("a").id]);
    assert_eq!(catalog.untag(&name("app:2")).unwrap(), Removed::default());
    assert!(open(root.path()).images().is_empty());
}

#[test]
fn removing_takes_all_names_and_missing_is_nothing() {
    let root = tempfile::tempdir().unwrap();
    let catalog = open(root.path());
    let target = Digest::of(b"target");
    catalog.enter(image("a"), &name("app:1"), &target).unwrap();
    catalog.enter(image("a"), &name("quay.io/app:2"), &target).unwrap();
    assert_eq!(catalog.remove(&image("a").id).unwrap().untagged.len(), 4);
    assert_eq!(catalog.remove(&image("a").id).unwrap(), Removed::default());
    assert_eq!(catalog.find("app:1").unwrap(), None);
    assert!(open(root.path()).images().is_empty());
}

#[test]
fn an_image_whose_layers_are_gone_is_reported_and_not_offered() {
    let root = tempfile::tempdir().unwrap();
    open(root.path()).enter(image("a"), &name("app"), &Digest::of(b"1")).unwrap();
    let (catalog, faults) =
        Catalog::open(root.path(), &[], |_| Err("layer x is missing".to_owned())).unwrap();
    assert!(catalog.images().is_empty());
    assert_eq!(faults, [format!("image {} is not usable: layer x is missing", image("a").id)]);
}
