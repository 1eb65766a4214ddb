//! Labels of security modules: an AppArmor profile or an SELinux context for the program to be executed.
//!
//! A label that the kernel can't give is an error: whoever asked relies on it.

use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{CWD, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{Error, Result};
use crate::sys::file;

/// What to write where, at the last moment.
pub(crate) struct Label {
    file: OwnedFd,
    text: String,
}

impl Label {
    /// Opens the file of the label through the host's procfs. None: nothing is asked.
    pub(super) fn open(apparmor: Option<&str>, selinux: Option<&str>) -> Result<Option<Label>> {
        let asked = |label: Option<&str>| label.filter(|label| !label.is_empty()).map(str::to_owned);
        if let Some(profile) = asked(apparmor).filter(|profile| profile != "unconfined" || has_apparmor()) {
            if !has_apparmor() {
                return Err(unsupported("the AppArmor profile", &profile));
            }
            let own = Path::new("/proc/self/attr/apparmor/exec");
            let path = if own.exists() { own } else { Path::new("/proc/self/attr/exec") };
            return Label::at(path, format!("exec {profile}")).map(Some);
        }
        match asked(selinux) {
            Some(context) if has_selinux() => Label::at(Path::new("/proc/self/attr/exec"), context).map(Some),
            Some(context) => Err(unsupported("the SELinux label", &context)),
            None => Ok(None),
        }
    }

    fn at(path: &Path, text: String) -> Result<Label> {
        let opened = file::openat2(CWD, path, OFlags::WRONLY, ResolveFlags::empty());
        Ok(Label { file: opened.map_err(|source| Error::Label { label: text.clone(), source })?, text })
    }

    pub(super) fn set(&self) -> Result<()> {
        file::write(&self.file, self.text.as_bytes()).map_err(|source| {
            match self.text.strip_prefix("exec ") {
                Some(profile) if source.errno() == Errno::NOENT => {
                    Error::ProfileNotLoaded(profile.to_owned())
                }
                _ => Error::Label { label: self.text.clone(), source },
            }
        })
    }
}

/// A context for mounts needs the same.
pub(super) fn check_mount_label(label: Option<&str>) -> Result<()> {
    match label.filter(|label| !label.is_empty()) {
        Some(label) => Err(unsupported("the mount label", label)),
        None => Ok(()),
    }
}

fn unsupported(what: &str, label: &str) -> Error {
    Error::Unsupported { what: format!("{what} {label:?} (the kernel has no such security module)") }
}

fn has_apparmor() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with(b"Y"))
}

fn has_selinux() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}
