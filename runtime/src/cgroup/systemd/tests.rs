//! Names and paths. What needs systemd itself is in `tests/systemd`, which the guests of `tests/vm` run.

use super::*;

fn unit(text: &str) -> Unit {
    Unit::parse(text).expect("a unit").unwrap()
}

#[test]
fn a_scope_lies_in_every_level_of_its_slice() {
    for (text, path) in [
        ("system.slice:sampan:abc", "system.slice/sampan-abc.scope"),
        (
            "kubepods-burstable-pod1.slice:cri:x",
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-x.scope",
        ),
        (":sampan:abc", "system.slice/sampan-abc.scope"),
        ("-.slice:sampan:abc", "sampan-abc.scope"),
        ("user.slice::abc", "user.slice/abc.scope"),
    ] {
        assert_eq!(unit(text).path(""), path);
    }
    assert_eq!(unit("user.slice:a:b").path("docker/x"), "docker/x/user.slice/a-b.scope");
}

#[test]
fn paths_are_no_units() {
    for path in ["/a", "/system.slice:a:b", "a/b", "a:b", "a:b:c:d", "a:b:c/d"] {
        assert!(Unit::parse(path).is_none(), "{path}");
    }
}

#[test]
fn names_that_systemd_would_refuse_are_refused_before() {
    for text in [
        "system:a:b",
        "a--b.slice:a:b",
        ".slice:a:b",
        "-a.slice:a:b",
        "system.slice:a:",
        "::x y",
        "::x.slice",
    ] {
        assert!(Unit::parse(text).expect("meant as a unit").unwrap_err().is_invalid_argument(), "{text}");
    }
}

#[test]
fn the_tree_begins_where_systemd_was_started() {
    for (text, root) in [
        ("0::/init.scope\n", ""),
        ("12:cpu:/\n1:name=systemd:/init.scope\n0::/init.scope\n", ""),
        ("1:name=systemd:/docker/abc/init.scope\n", "docker/abc"),
        ("4:memory:/x\n0::/\n", ""),
    ] {
        assert_eq!(root_in(text), root);
    }
}

#[test]
fn versions_are_the_first_number() {
    assert_eq!((version("252.39-1~deb12u1"), version("v249"), version("")), (252, 249, 0));
}
