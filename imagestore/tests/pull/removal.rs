//! Removal: what goes with an image, and what stays because somebody else needs it.

use sampan_imagestore::{Kind, Removed};

use crate::images::{Setup, TestImage, gzip, noise, simple, tar};

#[tokio::test(flavor = "multi_thread")]
async fn removing_an_image_leaves_what_others_share() {
    let setup = Setup::new().await;
    let base = gzip(&tar(&[("base", &noise(10_000, 70))]));
    let (a, b) = (
        TestImage::new(vec![base.clone(), gzip(&tar(&[("a", b"a")])), gzip(&tar(&[("aa", b"a")]))]),
        TestImage::new(vec![base, gzip(&tar(&[("b", b"b")]))]),
    );
    setup.registry.publish("a", "latest", &a);
    setup.registry.publish("b", "latest", &b);
    let pulled = setup.pull("a").await.unwrap();
    setup.pull("b").await.unwrap();
    setup.assert_holds(8, 4);

    let removed = setup.store.remove(&a.id()).unwrap();
    assert_eq!(removed.untagged.len(), 2);
    let above = |index: usize| pulled.layers[index].chain_id.digest().clone();
    assert_eq!(removed.deleted, [a.id(), above(2), above(1)]);
    setup.assert_holds(4, 2);
    assert_eq!(setup.store.remove(&a.id()).unwrap(), Removed::default());

    setup.store.remove(&b.id()).unwrap();
    setup.assert_holds(0, 0);
    assert_eq!(setup.store.usage().unwrap().images.bytes, 0);
    assert!(setup.reopen().images().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_a_container_stands_on_go_after_it() {
    let setup = Setup::new().await;
    let image = simple(10_000, 71);
    setup.registry.publish("app", "latest", &image);
    let pulled = setup.pull("app").await.unwrap();
    setup.store.snapshots().prepare("container", Some(pulled.chain_id())).unwrap();
    assert_eq!(setup.store.remove(&image.id()).unwrap().deleted, [image.id()]);
    setup.assert_holds(0, 1);
    // The image can come back meanwhile.
    setup.pull("app").await.unwrap();
    setup.assert_holds(3, 1);
    setup.store.remove(&image.id()).unwrap();

    setup.store.snapshots().remove("container").unwrap();
    assert_eq!(setup.store.collect().unwrap(), [pulled.chain_id().clone()]);
    setup.assert_holds(0, 0);
    let error = setup.store.snapshots().prepare("next", Some(pulled.chain_id())).unwrap_err();
    assert_eq!(error.kind(), Kind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_goes_with_its_last_name() {
    let setup = Setup::new().await;
    let image = simple(10_000, 72);
    setup.registry.publish("app", "one", &image);
    setup.registry.publish("app", "two", &image);
    setup.pull("app:one").await.unwrap();
    let both = setup.pull("app:two").await.unwrap();
    assert_eq!(both.repo_tags, [setup.registry.name("app:one"), setup.registry.name("app:two")]);
    let first = setup.store.untag(&setup.reference("app:one")).unwrap();
    assert_eq!(first.untagged, [setup.registry.name("app:one")]);
    setup.assert_holds(3, 1);
    let last = setup.store.untag(&setup.reference("app:two")).unwrap();
    assert_eq!(last.deleted.len(), 2);
    setup.assert_holds(0, 0);
}
