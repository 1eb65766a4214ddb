//! Overlay mounts, by the best interface that the kernel has.
//!
//! Linux 6.8 takes each lower layer in a call of its own (`lowerdir+`). Before that all options
//! have to fit in one page: as long as they do they are given as they are, so that the mount table
//! tells them; beyond that the layers go by the numbers of their descriptors, relative to
//! `/proc/thread-self/fd`, from a thread whose working directory is its own.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MountFlags};
use rustix::thread::UnshareFlags;

use super::{Error, Options, on_own_thread};
use crate::sys::{self, mount::Context};
use crate::users::UserNamespace;

/// What an overlay is made of. Paths as they are, nothing escaped.
#[derive(Debug, PartialEq, Eq)]
struct Layers {
    /// Uppermost first.
    lower: Vec<PathBuf>,
    upper: Option<Upper>,
    /// Such as `metacopy=off`.
    rest: Vec<(String, Option<String>)>,
}

#[derive(Debug, PartialEq, Eq)]
struct Upper {
    upper: PathBuf,
    work: PathBuf,
}

pub(super) fn mount(options: &Options, target: &Path, users: Option<&UserNamespace>) -> Result<(), Error> {
    let layers = Layers::of(options)?;
    if let Some(users) = users {
        return mapped::mount(&layers, options, target, users);
    }
    if has_layer_parameters() {
        return with_context(&layers, options, target).map_err(Error::mount("overlay", target));
    }
    classic(&layers, options, target, page_size())
}

impl Layers {
    fn of(options: &Options) -> Result<Layers, Error> {
        let (mut lower, mut upper, mut work, mut rest) = (Vec::new(), None, None, Vec::new());
        for (key, value) in &options.data {
            match (key.as_str(), value) {
                ("lowerdir", Some(value)) => lower.extend(split(value)),
                ("lowerdir+", Some(value)) => lower.push(PathBuf::from(value)),
                ("upperdir", Some(value)) => upper = Some(unescape(value)),
                ("workdir", Some(value)) => work = Some(unescape(value)),
                _ => rest.push((key.clone(), value.clone())),
            }
        }
        if lower.is_empty() {
            return Err(Error::Overlay { missing: "lowerdir" });
        }
        let upper = match (upper, work) {
            (None, None) => None,
            (Some(upper), Some(work)) => Some(Upper { upper, work }),
            (Some(_), None) => return Err(Error::Overlay { missing: "workdir" }),
            (None, Some(_)) => return Err(Error::Overlay { missing: "upperdir" }),
        };
        Ok(Layers { lower, upper, rest })
    }

    /// The option string of the classic call, with `name` giving each path.
    fn data(&self, mut name: impl FnMut(&Path) -> String) -> String {
        let mut data = String::from("lowerdir=");
        for (index, layer) in self.lower.iter().enumerate() {
            if index > 0 {
                data.push(':');
            }
            data.push_str(&name(layer));
        }
        if let Some(Upper { upper, work }) = &self.upper {
            data.push_str(&format!(",upperdir={},workdir={}", name(upper), name(work)));
        }
        for (key, value) in &self.rest {
            data.push(',');
            data.push_str(key);
            if let Some(value) = value {
                data.push('=');
                data.push_str(value);
            }
        }
        data
    }
}

/// Whether overlay knows `lowerdir+`. A kernel whose overlay doesn't use contexts yet takes any
/// word without looking at it, so a word that can't exist is tried as well.
pub(super) fn has_layer_parameters() -> bool {
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        Context::open("overlay").is_ok_and(|context| {
            context.string("lowerdir+", "/").is_ok() && context.string("no-such-parameter", "").is_err()
        })
    })
}

fn with_context(layers: &Layers, options: &Options, target: &Path) -> sys::Result<()> {
    let context = Context::open("overlay")?;
    context.string("source", "overlay")?;
    let mut long = Vec::new();
    for layer in &layers.lower {
        path_parameter(&context, "lowerdir+", layer, &mut long)?;
    }
    if let Some(Upper { upper, work }) = &layers.upper {
        path_parameter(&context, "upperdir", upper, &mut long)?;
        path_parameter(&context, "workdir", work, &mut long)?;
    }
    let detached = finish(&context, layers, options)?;
    sys::mount::attach_at(detached, rustix::fs::CWD, target)
}

/// The mount of a context that knows its layers.
fn finish(context: &Context, layers: &Layers, options: &Options) -> sys::Result<OwnedFd> {
    for (key, value) in &layers.rest {
        match value {
            Some(value) => context.string(key, value)?,
            None => context.flag(key)?,
        }
    }
    let attributes = options.attributes.set | options.recursive.set;
    context.mount(MountAttrFlags::from_bits_retain(attributes as u32))
}

/// A parameter takes 255 bytes, and which of them mean themselves differs between parameters and
/// kernels: a long or an odd path goes by its descriptor, which `open` keeps until the mount is made.
fn path_parameter(context: &Context, key: &str, path: &Path, open: &mut Vec<OwnedFd>) -> sys::Result<()> {
    const MAX_PARAMETER: usize = 255;
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() <= MAX_PARAMETER && !bytes.iter().any(|byte| b":,\\".contains(byte)) {
        return context.string(key, path);
    }
    let directory = sys::mount::open_directory(path)?;
    context.string(key, format!("/proc/self/fd/{}", directory.as_raw_fd()))?;
    open.push(directory);
    Ok(())
}

fn page_size() -> usize {
    rustix::param::page_size()
}

/// The classic call, with paths if they fit in `limit` bytes and with descriptors else.
fn classic(layers: &Layers, options: &Options, target: &Path, limit: usize) -> Result<(), Error> {
    let flags = classic_flags(options);
    let data = layers.data(escape);
    if data.len() < limit {
        return classic_mount(target, flags, data).map_err(Error::mount("overlay", target));
    }
    // chdir is meant for this mount only, and the working directory is shared among threads.
    on_own_thread("overlay", target, || by_descriptor(layers, flags, target, limit))
}

fn by_descriptor(layers: &Layers, flags: MountFlags, target: &Path, limit: usize) -> sys::Result<()> {
    let mut open: Vec<OwnedFd> = Vec::with_capacity(layers.lower.len() + 2);
    let upper = layers.upper.iter().flat_map(|Upper { upper, work }| [upper, work]);
    for path in layers.lower.iter().chain(upper) {
        open.push(sys::mount::open_directory(path)?);
    }
    let mut numbers = open.iter().map(|fd| fd.as_raw_fd().to_string());
    let data = layers.data(|_| numbers.next().unwrap_or_default());
    if data.len() >= limit {
        return Err(sys::Error::new(
            format!("mount overlay of {} layers", layers.lower.len()),
            Errno::TOOBIG,
        ));
    }
    let target = std::path::absolute(target).unwrap_or_else(|_| target.to_owned());
    sys::process::unshare(UnshareFlags::FS)?;
    sys::file::chdir("/proc/thread-self/fd")?;
    classic_mount(&target, flags, data)
}

fn classic_mount(target: &Path, flags: MountFlags, data: String) -> sys::Result<()> {
    let data =
        CString::new(data).map_err(|_| sys::Error::new("mount overlay with a null byte", Errno::INVAL))?;
    sys::mount::mount("overlay", target, "overlay", flags, &data)
}

fn classic_flags(options: &Options) -> MountFlags {
    let set = options.attributes.set | options.recursive.set;
    let pairs = [
        (libc::MOUNT_ATTR_RDONLY, MountFlags::RDONLY),
        (libc::MOUNT_ATTR_NOSUID, MountFlags::NOSUID),
        (libc::MOUNT_ATTR_NODEV, MountFlags::NODEV),
        (libc::MOUNT_ATTR_NOEXEC, MountFlags::NOEXEC),
        (libc::MOUNT_ATTR_NOATIME, MountFlags::NOATIME),
        (libc::MOUNT_ATTR_STRICTATIME, MountFlags::STRICTATIME),
        (libc::MOUNT_ATTR_NODIRATIME, MountFlags::NODIRATIME),
    ];
    pairs.into_iter().filter(|(attribute, _)| set & attribute != 0).map(|(_, flag)| flag).collect()
}

/// The layers of a `lowerdir` option; `\:` is a colon of a path.
fn split(value: &str) -> Vec<PathBuf> {
    let mut layers = vec![String::new()];
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        match (character, layers.last_mut()) {
            (':', _) => layers.push(String::new()),
            ('\\', Some(layer)) => layer.extend(characters.next()),
            (other, Some(layer)) => layer.push(other),
            (_, None) => unreachable!("there is always a last layer"),
        }
    }
    layers.into_iter().map(PathBuf::from).collect()
}

fn unescape(value: &str) -> PathBuf {
    let mut path = String::with_capacity(value.len());
    let mut characters = value.chars();
    while let Some(character) = characters.next() {
        path.extend(if character == '\\' { characters.next() } else { Some(character) });
    }
    PathBuf::from(path)
}

fn escape(path: &Path) -> String {
    let mut escaped = String::new();
    for character in path.to_string_lossy().chars() {
        if matches!(character, ':' | '\\' | ',') {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

mod mapped;

#[cfg(test)]
mod tests;
