//! Users and groups as an image's own `/etc/passwd` and `/etc/group` know them.
//!
//! The files belong to whoever made the image: they are opened beneath the root's descriptor, must
//! be regular and of a reasonable size, and lines that make no sense are passed over. A number is
//! always an id, even if some line has it as a name.

use std::io::Read;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use crate::{beneath, sys};

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// Larger files are refused.
const MAX_SIZE: u64 = 10 << 20;

/// The kernel takes more, but programs with signed ids don't.
const MAX_ID: u64 = i32::MAX as u64;

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// The groups that list the user as a member, in the order of the file, unless a group was asked for.
    pub additional_gids: Vec<u32>,
    /// Name, when the image knows the user.
    pub name: Option<String>,
    /// Home directory, when the image knows the user.
    pub home: Option<String>,
}

/// Why a user or group can't be told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A name that no line has.
    #[error("user {user:?} is not in the image's /etc/passwd")]
    UnknownUser {
        /// As it was asked for.
        user: String,
    },
    /// A name that no line has.
    #[error("group {group:?} is not in the image's /etc/group")]
    UnknownGroup {
        /// As it was asked for.
        group: String,
    },
    /// A number that is no id.
    #[error("id {id} is not between 0 and {MAX_ID}")]
    OutOfRange {
        /// As it was asked for.
        id: String,
    },
    /// The file can't be opened.
    #[error("open the image's {path}")]
    Open {
        /// Within the image.
        path: &'static str,
        /// Why.
        #[source]
        source: sys::Error,
    },
    /// The file can't be read.
    #[error("read the image's {path}")]
    Read {
        /// Within the image.
        path: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A FIFO, a device, a directory.
    #[error("the image's {path} is not a regular file")]
    NotRegular {
        /// Within the image.
        path: &'static str,
    },
    /// More than 10 MiB.
    #[error("the image's {path} is larger than {MAX_SIZE} bytes")]
    TooLarge {
        /// Within the image.
        path: &'static str,
    },
}

/// Resolves `USER[:GROUP]`, each a name or a number, against the files beneath `root`.
///
/// Nothing at all means root. A user given by number need not be known; its group is then 0 unless
/// one is given. Groups in which the image lists the user are added only when no group is given.
pub fn resolve(root: BorrowedFd<'_>, spec: &str) -> Result<User, Error> {
    let (user_part, group_part) = spec.split_once(':').unwrap_or((spec, ""));
    let wanted = if user_part.is_empty() { Wanted::Id(0) } else { Wanted::parse(user_part)? };
    let wanted_group = if group_part.is_empty() { None } else { Some(Wanted::parse(group_part)?) };

    let mut user = find_user(&read(root, PASSWD)?, &wanted)?;
    match wanted_group {
        Some(Wanted::Id(gid)) => user.gid = gid,
        Some(Wanted::Name(name)) => user.gid = find_group(&read(root, GROUP)?, name)?,
        None => {
            if let Some(name) = &user.name {
                user.additional_gids = groups_with_member(&read(root, GROUP)?, name);
            }
        }
    }
    Ok(user)
}

/// The home directory of a user, by number; None when the image doesn't know it, or can't be read.
pub(crate) fn home(root: BorrowedFd<'_>, uid: u32) -> Option<String> {
    find_user(&read(root, PASSWD).ok()?, &Wanted::Id(uid)).ok()?.home
}

/// The groups that list `name` as a member: what a user gets beside a group that was asked for.
pub fn member_groups(root: BorrowedFd<'_>, name: &str) -> Result<Vec<u32>, Error> {
    Ok(groups_with_member(&read(root, GROUP)?, name))
}

/// The id of a group, by name or number.
pub fn resolve_group(root: BorrowedFd<'_>, spec: &str) -> Result<u32, Error> {
    match Wanted::parse(spec)? {
        Wanted::Id(gid) => Ok(gid),
        Wanted::Name(name) => find_group(&read(root, GROUP)?, name),
    }
}

#[derive(Debug)]
enum Wanted<'a> {
    Id(u32),
    Name(&'a str),
}

impl<'a> Wanted<'a> {
    /// What looks like a number is one, and never falls back to being a name.
    fn parse(text: &'a str) -> Result<Wanted<'a>, Error> {
        let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(Wanted::Name(text));
        }
        match text.parse::<u64>() {
            Ok(id) if id <= MAX_ID && !text.starts_with('+') => Ok(Wanted::Id(id as u32)),
            _ => Err(Error::OutOfRange { id: text.to_owned() }),
        }
    }
}

/// `name:password:uid:gid:comment:home:shell`
fn find_user(passwd: &str, wanted: &Wanted<'_>) -> Result<User, Error> {
    let lines = lines(passwd).filter_map(|fields| {
        let [name, _, uid, gid, rest @ ..] = fields.as_slice() else { return None };
        let home = rest.get(1).filter(|home| !home.is_empty()).map(|&home| home.to_owned());
        let additional_gids = Vec::new();
        Some(User { uid: id(uid)?, gid: id(gid)?, additional_gids, name: Some((*name).to_owned()), home })
    });
    let found = lines.into_iter().find(|user| match wanted {
        Wanted::Id(uid) => user.uid == *uid,
        Wanted::Name(name) => user.name.as_deref() == Some(name),
    });
    match (found, wanted) {
        (Some(user), _) => Ok(user),
        (None, Wanted::Id(uid)) => {
            Ok(User { uid: *uid, gid: 0, additional_gids: Vec::new(), name: None, home: None })
        }
        (None, Wanted::Name(name)) => Err(Error::UnknownUser { user: (*name).to_owned() }),
    }
}

/// `name:password:gid:member,member`
fn find_group(group: &str, name: &str) -> Result<u32, Error> {
    lines(group)
        .filter(|fields| fields.first() == Some(&name))
        .find_map(|fields| id(fields.get(2)?))
        .ok_or_else(|| Error::UnknownGroup { group: name.to_owned() })
}

fn groups_with_member(group: &str, name: &str) -> Vec<u32> {
    let mut groups: Vec<u32> = lines(group)
        .filter(|fields| fields.get(3).is_some_and(|members| members.split(',').any(|member| member == name)))
        .filter_map(|fields| id(fields.get(2)?))
        .collect();
    let mut seen = std::collections::HashSet::new();
    groups.retain(|gid| seen.insert(*gid));
    groups
}

/// The fields of each line that isn't empty or a comment.
fn lines(text: &str) -> impl Iterator<Item = Vec<&str>> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(|line| line.split(':').collect())
}

fn id(field: &str) -> Option<u32> {
    field.parse::<u64>().ok().filter(|&id| id <= MAX_ID).map(|id| id as u32)
}

/// A file's text; a missing one is empty.
fn read(root: BorrowedFd<'_>, path: &'static str) -> Result<String, Error> {
    // A descriptor that can't read is had without side effects, such as waiting for a FIFO's writer.
    let found = match beneath::open(root, Path::new(path), OFlags::PATH) {
        Ok(found) => found,
        Err(error) if matches!(error.errno(), Errno::NOENT | Errno::NOTDIR) => return Ok(String::new()),
        Err(source) => return Err(Error::Open { path, source }),
    };
    let open_error = |source| Error::Open { path, source };
    let stat = sys::file::fstat(&found).map_err(open_error)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(Error::NotRegular { path });
    }
    if stat.st_size as u64 > MAX_SIZE {
        return Err(Error::TooLarge { path });
    }
    let link = format!("/proc/self/fd/{}", found.as_raw_fd());
    let read_error = |source| Error::Read { path, source };
    let file = std::fs::File::open(link).map_err(read_error)?;
    let mut bytes = Vec::new();
    // The size may have changed since; what is read counts.
    file.take(MAX_SIZE + 1).read_to_end(&mut bytes).map_err(read_error)?;
    if bytes.len() as u64 > MAX_SIZE {
        return Err(Error::TooLarge { path });
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests;
