//! Owners by name: `user[:group]` against the passwd and group files of a tree.
//!
//! As Docker reads `--chown`: a user's name brings its primary group, a number alone is user and group, and a group that
//! is given decides. The files are the image's own and may be anything: only regular ones of a bounded size are read, and
//! links in them lead no further than the tree's root.

use std::io::Read;

use rustix::fs::FileType;

use crate::build::{
    Error,
    tree::{Tree, resolve},
};

/// More than any such file has.
const MAX_FILE: u64 = 10 << 20;

/// The numbers of an owner.
pub(in crate::build) fn resolve_owner(tree: &dyn Tree, text: &str) -> Result<(u32, u32), Error> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let (uid, own) = match number(user)? {
        Some(uid) => (uid, uid),
        None if user.is_empty() => (0, 0),
        None => find(tree, "/etc/passwd", user)?
            .and_then(|fields| Some((fields.first()?.parse().ok()?, fields.get(1)?.parse().ok()?)))
            .ok_or_else(|| unknown("user", user, "/etc/passwd"))?,
    };
    let gid = match group {
        None | Some("") => own,
        Some(group) => match number(group)? {
            Some(gid) => gid,
            None => find(tree, "/etc/group", group)?
                .and_then(|fields| fields.first()?.parse().ok())
                .ok_or_else(|| unknown("group", group, "/etc/group"))?,
        },
    };
    Ok((uid, gid))
}

/// Whether the answer depends on files.
pub(in crate::build) fn has_names(text: &str) -> bool {
    text.split(':').any(|part| !part.is_empty() && !part.bytes().all(|byte| byte.is_ascii_digit()))
}

fn unknown(what: &str, name: &str, file: &str) -> Error {
    Error::Missing(format!(
        "there is no {what} {name:?} in the stage's {file}; make it in a RUN, or give its number"
    ))
}

/// Numbers as the kernel has them: below 2^31, as other tools do not go further.
fn number(text: &str) -> Result<Option<u32>, Error> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    let fit = text.parse::<u32>().ok().filter(|number| *number <= i32::MAX.cast_unsigned());
    fit.map(Some).ok_or_else(|| Error::Invalid(format!("{text} is no owner: it is above {}", i32::MAX)))
}

/// What follows name and password in the line of a name.
fn find(tree: &dyn Tree, file: &str, name: &str) -> Result<Option<Vec<String>>, Error> {
    let Some(path) = resolve(tree, file.as_bytes(), true)? else { return Ok(None) };
    let Some(node) = tree.look(&path)? else { return Ok(None) };
    if node.kind != FileType::RegularFile || node.size > MAX_FILE {
        return Err(Error::Invalid(format!("the stage's {file} is no regular file of at most 10 MiB")));
    }
    let mut bytes = Vec::new();
    tree.open(&path)?.take(MAX_FILE).read_to_end(&mut bytes).map_err(Error::io("read", file.as_bytes()))?;
    let line = String::from_utf8_lossy(&bytes);
    let mut lines = line.lines().map(|line| line.split(':').collect::<Vec<_>>());
    let found = lines.find(|fields| fields.len() >= 3 && fields[0] == name);
    Ok(found.map(|fields| fields[2..].iter().map(|field| (*field).to_owned()).collect()))
}
