//! The options of an OCI mount, sorted into what the kernel takes by different ways.
//!
//! `ro` and its like belong to the mount, `sync` and all that is unknown here to the file system.
//! A bind mount keeps what its source has but for what is named: `nosuid` makes it stricter, and `rw`, `suid`, `dev`
//! and `exec` take away what the source has, as with mount(8).

use crate::sys::mount::Attributes;

/// The options of one mount.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// `bind` or `rbind`.
    pub(crate) bind: Option<Bind>,
    /// Of this mount.
    pub(crate) attributes: Attributes,
    /// Of this mount and all below it.
    pub(crate) recursive: Attributes,
    /// `MS_PRIVATE` and its like, and whether mounts below are meant too.
    pub(crate) propagation: Option<(u64, bool)>,
    /// Changes what is mounted already instead of mounting.
    pub(crate) remount: bool,
    /// Copies what is at the target into a tmpfs.
    pub(crate) copy_up: bool,
    /// Whether ids are mapped, and whether on the mounts below too.
    pub(crate) mapped: Option<Bind>,
    /// For the file system: `key` or `key=value`, in their order.
    pub(crate) data: Vec<(String, Option<String>)>,
}

/// The two kinds of bind mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bind {
    /// One mount.
    Single,
    /// With the mounts below it.
    Recursive,
}

/// An option that changes nothing here.
///
/// Access times are relative unless something else is said. Versions of inodes are kept always by the file systems
/// that can (ext4 since Linux 6.1), and the interface used here has no word for them.
const IGNORED: [&str; 7] =
    ["defaults", "loud", "silent", "norelatime", "rnorelatime", "iversion", "noiversion"];

/// Options whose meaning would be lost if the file system got them.
const REFUSED: [&str; 1] = ["copy-symlink"];

enum Kind {
    Set(u64),
    Clear(u64),
    AccessTime(u64),
}

impl Options {
    /// Sorts the options; Err is one that can't be honoured.
    pub(crate) fn parse<'a>(options: impl IntoIterator<Item = &'a String>) -> Result<Options, String> {
        let mut parsed = Options::default();
        for option in options {
            parsed.add(option)?;
        }
        Ok(parsed)
    }

    fn add(&mut self, option: &str) -> Result<(), String> {
        match option {
            "bind" => self.bind = self.bind.or(Some(Bind::Single)),
            "rbind" => self.bind = Some(Bind::Recursive),
            "remount" => self.remount = true,
            "tmpcopyup" => self.copy_up = true,
            "idmap" => self.mapped = Some(Bind::Single),
            "ridmap" => self.mapped = Some(Bind::Recursive),
            _ if IGNORED.contains(&option) => {}
            _ if REFUSED.contains(&option) => return Err(option.to_owned()),
            _ => {
                if let Some(propagation) = propagation(option) {
                    self.propagation = Some(propagation);
                } else if let Some(kind) = attribute(option) {
                    apply(&mut self.attributes, kind);
                } else if let Some(kind) = option.strip_prefix('r').and_then(attribute) {
                    apply(&mut self.recursive, kind);
                } else {
                    self.data.push(match option.split_once('=') {
                        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                        None => (option.to_owned(), None),
                    });
                }
            }
        }
        Ok(())
    }

    /// Whether the mount is to be read-only.
    pub(crate) fn is_read_only(&self) -> bool {
        (self.attributes.set | self.recursive.set) & libc::MOUNT_ATTR_RDONLY != 0
    }
}

/// `MS_*` of a word for propagation, and whether it is recursive.
pub(crate) fn propagation(word: &str) -> Option<(u64, bool)> {
    let flag = |word| {
        Some(match word {
            "shared" => libc::MS_SHARED,
            "slave" => libc::MS_SLAVE,
            "private" => libc::MS_PRIVATE,
            "unbindable" => libc::MS_UNBINDABLE,
            _ => return None,
        })
    };
    let recursive = word.strip_prefix('r').and_then(flag).map(|flag| (flag, true));
    recursive.or_else(|| flag(word).map(|flag| (flag, false)))
}

fn attribute(word: &str) -> Option<Kind> {
    Some(match word {
        "ro" => Kind::Set(libc::MOUNT_ATTR_RDONLY),
        "rw" => Kind::Clear(libc::MOUNT_ATTR_RDONLY),
        "nosuid" => Kind::Set(libc::MOUNT_ATTR_NOSUID),
        "suid" => Kind::Clear(libc::MOUNT_ATTR_NOSUID),
        "nodev" => Kind::Set(libc::MOUNT_ATTR_NODEV),
        "dev" => Kind::Clear(libc::MOUNT_ATTR_NODEV),
        "noexec" => Kind::Set(libc::MOUNT_ATTR_NOEXEC),
        "exec" => Kind::Clear(libc::MOUNT_ATTR_NOEXEC),
        "nosymfollow" => Kind::Set(libc::MOUNT_ATTR_NOSYMFOLLOW),
        "symfollow" => Kind::Clear(libc::MOUNT_ATTR_NOSYMFOLLOW),
        "nodiratime" => Kind::Set(libc::MOUNT_ATTR_NODIRATIME),
        "diratime" => Kind::Clear(libc::MOUNT_ATTR_NODIRATIME),
        "noatime" => Kind::AccessTime(libc::MOUNT_ATTR_NOATIME),
        "strictatime" => Kind::AccessTime(libc::MOUNT_ATTR_STRICTATIME),
        "relatime" | "atime" | "nostrictatime" => Kind::AccessTime(libc::MOUNT_ATTR_RELATIME),
        _ => return None,
    })
}

fn apply(attributes: &mut Attributes, kind: Kind) {
    let (set, clear) = match kind {
        Kind::Set(bits) => (bits, 0),
        Kind::Clear(bits) => (0, bits),
        // The kernel wants the whole field cleared before one of its values is set.
        Kind::AccessTime(value) => {
            attributes.set = attributes.set & !libc::MOUNT_ATTR__ATIME | value;
            attributes.clear |= libc::MOUNT_ATTR__ATIME;
            return;
        }
    };
    // The last word on a matter counts.
    attributes.set = attributes.set & !clear | set;
    attributes.clear = attributes.clear & !set | clear;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &str) -> Options {
        Options::parse(&options.split(',').map(str::to_owned).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn options_are_sorted_by_who_takes_them() {
        let parsed = parse("rbind,ro,nosuid,rslave,rnoexec,noatime,size=64k,sync");
        assert_eq!(parsed.bind, Some(Bind::Recursive));
        let set = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOATIME;
        assert_eq!(parsed.attributes, Attributes { set, clear: libc::MOUNT_ATTR__ATIME, propagation: 0 });
        assert_eq!(parsed.recursive.set, libc::MOUNT_ATTR_NOEXEC);
        assert_eq!(parsed.propagation, Some((libc::MS_SLAVE, true)));
        assert_eq!(parsed.data, [("size".to_owned(), Some("64k".to_owned())), ("sync".to_owned(), None)]);
        assert!(parsed.is_read_only());
    }

    #[test]
    fn last_word_counts() {
        assert!(!parse("ro,rw").is_read_only());
        assert!(parse("rw,ro").is_read_only());
        let parsed = parse("noatime,strictatime,relatime");
        assert_eq!(parsed.attributes, Attributes { set: 0, clear: libc::MOUNT_ATTR__ATIME, propagation: 0 });
    }

    #[test]
    fn words_that_loosen_clear_what_a_source_has() {
        let loose = libc::MOUNT_ATTR_RDONLY
            | libc::MOUNT_ATTR_NOSUID
            | libc::MOUNT_ATTR_NODEV
            | libc::MOUNT_ATTR_NOEXEC;
        let parsed = parse("bind,rw,suid,dev,exec");
        assert_eq!(parsed.attributes, Attributes { set: 0, clear: loose, propagation: 0 });
        assert!(parse("bind").attributes.is_empty());
        assert_eq!(parse("rbind,rrw").recursive.clear, libc::MOUNT_ATTR_RDONLY);
    }

    #[test]
    fn words_with_r_in_front_are_not_all_recursive() {
        assert_eq!(propagation("rshared"), Some((libc::MS_SHARED, true)));
        assert_eq!(parse("relatime").recursive, Attributes::default());
        assert_eq!(parse("rw").recursive, Attributes::default());
        assert_eq!(parse("rrelatime").recursive.clear, libc::MOUNT_ATTR__ATIME);
    }

    #[test]
    fn options_that_would_be_lost_are_refused() {
        for option in REFUSED {
            assert_eq!(Options::parse(&[option.to_owned()]), Err(option.to_owned()));
        }
    }
}
