//! The words in which overlayfs is asked for a stack. Pure: nothing is mounted or looked at here.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use oci_spec::runtime::Mount;

use super::{Access, Directories};

/// One mount: the stack of `directories`, or the only one as it is.
pub(super) fn mounts(directories: &Directories, access: Access) -> Vec<Mount> {
    let bind = |source: &Path, flag: &str| {
        let mut mount = Mount::default();
        mount.set_destination(PathBuf::from("/"));
        mount.set_typ(Some("bind".to_owned()));
        mount.set_source(Some(source.to_owned()));
        mount.set_options(Some(vec!["bind".to_owned(), flag.to_owned()]));
        vec![mount]
    };
    match (access, directories.lower.as_slice()) {
        (Access::View, []) => return bind(&directories.upper, "ro"),
        // Overlayfs stacks no less than two.
        (Access::View, [only]) => return bind(only, "ro"),
        (_, []) => return bind(&directories.upper, "rw"),
        _ => {}
    }
    let mut mount = Mount::default();
    mount.set_destination(PathBuf::from("/"));
    let lower: Vec<String> = directories.lower.iter().map(|path| escape(path)).collect();
    mount.set_typ(Some("overlay".to_owned()));
    mount.set_source(Some(PathBuf::from("overlay")));
    let mut options = vec![format!("lowerdir={}", lower.join(":"))];
    match access {
        Access::View => options.push("ro".to_owned()),
        Access::Write | Access::Volatile => {
            options.push(format!("upperdir={}", escape(&directories.upper)));
            options.push(format!("workdir={}", escape(&directories.work)));
        }
    }
    // Spelled out: what a kernel does without them depends on how it was built.
    options.extend(["redirect_dir=nofollow", "metacopy=off", "index=off"].map(str::to_owned));
    if access == Access::Volatile {
        options.push("volatile".to_owned());
    }
    mount.set_options(Some(options));
    vec![mount]
}

/// As overlayfs reads paths: a backslash takes the next character as it is, a colon separates.
fn escape(path: &Path) -> String {
    let mut escaped = Vec::with_capacity(path.as_os_str().len());
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b'\\' | b':') {
            escaped.push(b'\\');
        }
        escaped.push(*byte);
    }
    // A root that is no UTF-8 was refused when the snapshots were opened.
    OsStr::from_bytes(&escaped).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directories(lower: &[&str]) -> Directories {
        Directories {
            lower: lower.iter().map(PathBuf::from).collect(),
            upper: "/r/a:b/fs".into(),
            work: "/r/a:b/work".into(),
            merged: "/r/a:b/merged".into(),
        }
    }

    #[test]
    fn stack_is_told_from_the_top_and_escaped() {
        let mount = mounts(&directories(&["/x:2", "/y\\1"]), Access::Write).remove(0);
        assert_eq!(mount.typ().as_deref(), Some("overlay"));
        assert_eq!(
            mount.options().as_ref().unwrap(),
            &[
                "lowerdir=/x\\:2:/y\\\\1",
                "upperdir=/r/a\\:b/fs",
                "workdir=/r/a\\:b/work",
                "redirect_dir=nofollow",
                "metacopy=off",
                "index=off"
            ]
        );
    }

    #[test]
    fn snapshot_without_layers_is_bound() {
        let mount = mounts(&directories(&[]), Access::Write).remove(0);
        assert_eq!(mount.typ().as_deref(), Some("bind"));
        assert_eq!(mount.source().as_deref(), Some(Path::new("/r/a:b/fs")));
    }
}
