//! Overlays of containers that have ended, which wait to be let go of.
//!
//! The end of an overlay has the kernel write out all of the file system beneath it, whoever wrote what (`ovl_sync_fs`, up
//! to Linux 6.18 at least): a container that ends would wait for the image that is pulled meanwhile, and would have written
//! what is deleted with it a moment later. So its overlay is taken from its place at once, and ends a little later, together
//! with those of others, when nobody waits for it. What fsync of a container promises is kept, which the option `volatile`
//! would give up.

use std::{
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use rustix::fs::{CWD, Mode, OFlags};
use sampan_runtime::mount;
use tracing::debug;

/// How long overlays are gathered.
const GATHERING: Duration = Duration::from_secs(1);
/// How many end at once: those that do share one commit of the file system's journal.
const AT_ONCE: usize = 4;
/// Of a thread that closes descriptors.
const STACK: usize = 64 * 1024;

/// The overlays that wait.
#[derive(Debug, Default)]
pub(crate) struct Parting(Arc<Mutex<Waiting>>);

#[derive(Debug, Default)]
struct Waiting {
    overlays: Vec<OwnedFd>,
    /// There is a thread that comes for them. There is never another one, however long the disk takes.
    attended: bool,
}

impl Parting {
    /// Takes away every mount at `target`, as [`mount::unmount`] does, but doesn't wait for the file system beneath.
    ///
    /// # Errors
    /// What `unmount` says.
    pub(crate) fn unmount(&self, target: &Path) -> Result<(), mount::Error> {
        let overlay = open_overlay(target);
        mount::unmount(target)?;
        if let Some(overlay) = overlay {
            self.let_go_later(overlay);
        }
        Ok(())
    }

    fn let_go_later(&self, overlay: OwnedFd) {
        let mut waiting = lock(&self.0);
        waiting.overlays.push(overlay);
        if waiting.attended {
            return;
        }
        let shared = self.0.clone();
        let started =
            thread::Builder::new().name("parting".into()).stack_size(STACK).spawn(move || attend(&shared));
        match started {
            Ok(_) => waiting.attended = true,
            Err(error) => {
                debug!(%error, "overlays end at once");
                waiting.overlays.clear();
            }
        }
    }
}

/// Gathers overlays and lets go of them for as long as there are some.
fn attend(waiting: &Mutex<Waiting>) {
    loop {
        thread::sleep(GATHERING);
        let gathered = {
            let mut waiting = lock(waiting);
            waiting.attended = !waiting.overlays.is_empty();
            if !waiting.attended {
                return;
            }
            std::mem::take(&mut waiting.overlays)
        };
        let_go(gathered);
    }
}

/// Holds the overlay at `target`, if there is one.
fn open_overlay(target: &Path) -> Option<OwnedFd> {
    const OVERLAYFS_SUPER_MAGIC: u64 = 0x794c_7630;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, target, flags, Mode::empty()).ok()?;
    let stat = rustix::fs::fstatfs(&directory).ok()?;
    (stat.f_type as u64 == OVERLAYFS_SUPER_MAGIC).then_some(directory)
}

fn let_go(overlays: Vec<OwnedFd>) {
    let count = overlays.len().min(AT_ONCE);
    let left = Mutex::new(overlays.into_iter());
    let next = || lock(&left).next();
    thread::scope(|scope| {
        for _ in 0..count {
            let work = || while next().is_some() {};
            if thread::Builder::new().stack_size(STACK).spawn_scoped(scope, work).is_err() {
                work();
            }
        }
    });
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that could panic leaves a list half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{ffi::CString, fs, time::Instant};

    use rustix::mount::MountFlags;

    use super::*;

    #[test]
    fn an_overlay_is_gone_from_its_place_at_once_and_ends_later() {
        let folder = tempfile::tempdir().unwrap();
        let [lower, upper, work, merged] = ["lower", "upper", "work", "merged"].map(|name| {
            let path = folder.path().join(name);
            fs::create_dir(&path).unwrap();
            path
        });
        let options =
            format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
        let options = CString::new(options).unwrap();
        rustix::mount::mount("overlay", &merged, "overlay", MountFlags::empty(), Some(options.as_c_str()))
            .unwrap();
        fs::write(merged.join("file"), "kept").unwrap();

        let parting = Parting::default();
        parting.unmount(&merged).unwrap();
        assert!(!merged.join("file").exists());
        // What is no overlay is nothing to wait for.
        parting.unmount(&merged).unwrap();
        parting.unmount(&folder.path().join("missing")).unwrap();
        assert_eq!(lock(&parting.0).overlays.len(), 1);

        let limit = Instant::now() + Duration::from_secs(30);
        while lock(&parting.0).attended {
            assert!(Instant::now() < limit, "nobody lets go of it");
            thread::sleep(Duration::from_millis(20));
        }
        assert!(lock(&parting.0).overlays.is_empty());
        assert_eq!(fs::read_to_string(upper.join("file")).unwrap(), "kept");
    }
}
