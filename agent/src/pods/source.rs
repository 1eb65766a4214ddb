//! What a container's mounts show: each source as it is now, links followed, so that what is checked is what is mounted.

use std::{
    fs::{self, File},
    os::fd::{AsRawFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags};
use sampan_imagestore::{Held, Image, Store};
use sampan_runtime::users::UserNamespace;

use super::{
    config::{ContainerConfig, ImageVolume, MountConfig, PodConfig, Propagation},
    record::ContainerRecord,
};
use crate::{
    context::Context,
    error::{Error, Result, at},
};

/// The images that a container is made of. No clean-up takes them from under it.
#[derive(Debug)]
pub(crate) struct Images {
    /// What its root stands on.
    pub(super) root: Held,
    /// What it mounts, in the order of its mounts.
    pub(super) volumes: Vec<Held>,
}

impl Images {
    /// Finds what the request names, and notes there which images these are. Waits for a collection to end.
    ///
    /// # Errors
    /// `NotFound` for an image that is not here.
    pub(super) fn hold(store: &Store, config: &mut ContainerConfig) -> Result<Images> {
        let hold = |name: &str| {
            let missing = || Error::NotFound { object: "image", id: name.to_owned() };
            store.hold(name)?.ok_or_else(missing)
        };
        let mut images = Images { root: hold(&config.image_ref)?, volumes: Vec::new() };
        for volume in config.mounts.iter_mut().filter_map(|mount| mount.image.as_mut()) {
            let image = hold(&volume.image)?;
            volume.id = image.id.to_string();
            images.volumes.push(image);
        }
        Ok(images)
    }
}

/// Finds the source of every mount that the request names; of those that show an image, `volumes` has the images.
pub(super) fn resolve(
    context: &Context,
    pod: &PodConfig,
    record: &mut ContainerRecord,
    volumes: &[Held],
    users: Option<&UserNamespace>,
) -> Result<()> {
    let mut volumes = volumes.iter();
    for number in 0..record.config.mounts.len() {
        let key = record.image_volume_key(number);
        let mount = &mut record.config.mounts[number];
        let source = match &mount.image {
            Some(volume) => {
                if mount.owners.is_some() && mount.owners != pod.users {
                    let inside = mount.container_path.display();
                    let why = "an image can be mounted with the pod's own id mappings only";
                    return Err(Error::Invalid(format!("mount {inside}: {why}")));
                }
                let missing = || Error::NotFound { object: "image", id: volume.image.clone() };
                mount_image(context, &key, volume, volumes.next().ok_or_else(missing)?, users)?
            }
            None => of_host(mount)?,
        };
        mount.source = Some(source);
    }
    Ok(())
}

fn of_host(mount: &MountConfig) -> Result<PathBuf> {
    let failed = |why: String| {
        let (host, inside) = (mount.host_path.display(), mount.container_path.display());
        Error::Invalid(format!("mount source {host} for {inside}: {why}"))
    };
    let source = mount.host_path.canonicalize().map_err(|error| failed(error.to_string()))?;
    check_propagation(&source, mount.propagation).map_err(failed)?;
    Ok(source)
}

/// Mount events cross only where the host's own mount lets them; what is asked for would silently not happen elsewhere.
fn check_propagation(source: &Path, propagation: Propagation) -> Result<(), String> {
    if propagation == Propagation::Private {
        return Ok(());
    }
    let id = rustix::fs::statx(CWD, source, AtFlags::empty(), StatxFlags::MNT_ID);
    let id = id.map_err(|errno| format!("find its mount: {errno}"))?.stx_mnt_id;
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|error| error.to_string())?;
    let (shared, follows) = peers(&mounts, id);
    match propagation {
        Propagation::Bidirectional if !shared => {
            Err("bidirectional propagation needs a source on a shared mount, and its mount is not shared"
                .into())
        }
        Propagation::HostToContainer if !shared && !follows => Err(
            "propagation from the host needs a source on a shared or slave mount, and its mount is private"
                .into(),
        ),
        _ => Ok(()),
    }
}

/// Whether the mount of that number gives mount events, and whether it takes them.
fn peers(mountinfo: &str, id: u64) -> (bool, bool) {
    let mut lines = mountinfo.lines().map(|line| line.split(' '));
    let Some(fields) = lines.find(|fields| fields.clone().next().is_some_and(|own| own.parse() == Ok(id)))
    else {
        return (false, false);
    };
    // Six fields, then any number of optional ones, then a hyphen.
    let optional: Vec<&str> = fields.skip(6).take_while(|field| *field != "-").collect();
    let has = |word: &str| optional.iter().any(|field| field.starts_with(word));
    (has("shared:"), has("master:"))
}

/// Mounts an image for a container to look at; gives what of it is meant.
fn mount_image(
    context: &Context,
    key: &str,
    volume: &ImageVolume,
    image: &Image,
    users: Option<&UserNamespace>,
) -> Result<PathBuf> {
    let snapshots = context.store.snapshots();
    let mounts = snapshots.view(key, image.chain_id())?;
    let root = snapshots.directories(key)?.merged;
    sampan_runtime::mount::mount_all(&mounts, &root, users)
        .map_err(|source| Error::Mount { container: key.to_owned(), source })?;
    beneath(&root, Path::new(&volume.sub_path)).map_err(|why| {
        Error::Invalid(format!("image_sub_path {:?} of image {:?} {why}", volume.sub_path, volume.image))
    })
}

/// A path of an image, whose links mean what they mean inside. Nobody can change what is found: it is read-only.
fn beneath(root: &Path, path: &Path) -> Result<PathBuf, String> {
    let depth = path.components().try_fold(0_u32, |depth, component| match component {
        Component::ParentDir => depth.checked_sub(1),
        Component::Normal(_) => Some(depth + 1),
        _ => Some(depth),
    });
    if depth.is_none() {
        return Err("leads out of the image".into());
    }
    let root = File::open(root).map_err(|error| error.to_string())?;
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let confined = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = rustix::fs::openat2(&root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), confined);
    let found: OwnedFd = found.map_err(|errno| format!("is not there: {errno}"))?;
    let link = format!("/proc/self/fd/{}", found.as_raw_fd());
    fs::read_link(&link).map_err(|error| at("read", &link)(error).chain())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_what_its_optional_fields_say() {
        let text = "21 1 8:1 / / rw shared:1 master:7 - ext4 /dev/sda1 rw\n22 21 0:5 / /a rw - proc proc rw\n\
                    23 21 0:6 / /b rw master:3 - sysfs sysfs rw\n";
        assert_eq!(peers(text, 21), (true, true));
        assert_eq!(peers(text, 22), (false, false));
        assert_eq!(peers(text, 23), (false, true));
        assert_eq!(peers(text, 2), (false, false));
    }

    #[test]
    fn links_of_an_image_stay_inside() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().canonicalize().unwrap().join(name);
        fs::create_dir_all(path("etc/deep")).unwrap();
        fs::write(path("etc/passwd"), "of the image").unwrap();
        for (name, target) in [("absolute", "/etc/passwd"), ("climbing", "../../../etc/passwd")] {
            std::os::unix::fs::symlink(target, path(name)).unwrap();
        }
        for (asked, found) in [
            ("", ""),
            ("etc", "etc"),
            ("/etc/deep/..", "etc"),
            ("etc/passwd", "etc/passwd"),
            ("absolute", "etc/passwd"),
            ("climbing", "etc/passwd"),
        ] {
            assert_eq!(beneath(root.path(), Path::new(asked)), Ok(path(found)), "{asked:?}");
        }
        assert!(beneath(root.path(), Path::new("no/such")).unwrap_err().contains("not there"));
        assert!(beneath(root.path(), Path::new("etc/../..")).unwrap_err().contains("leads out"));
    }
}
