//! Which files of a tree a COPY means.
//!
//! As Docker has it: a directory stands for what is in it and a file for itself; a source that is a link stands for what
//! it leads to, and links further down are copied as links. Names with wildcards may match nothing, as long as something
//! is left to copy.

use std::collections::HashSet;

use rustix::fs::FileType;

use super::{Pick, pattern};
use crate::build::{
    Error, Ignore,
    error::shown,
    tree::{Node, Tree, components, join, resolve, split},
};

/// More picks than any copy has; a tree of another machine is not to fill our memory.
const PICKS: usize = 2_000_000;
/// Directories nest no deeper than a path is long.
const DEPTH: usize = 2048;

/// One source, and how to look at it.
#[derive(Clone, Debug)]
pub(in crate::build) struct Wanted<'w> {
    /// Absolute and clean; may have wildcards.
    pub(in crate::build) path: &'w str,
    /// The part before `/./`, which the result drops.
    pub(in crate::build) pivot: Option<&'w str>,
    /// Whether the directories of the path are made too.
    pub(in crate::build) parents: bool,
    /// Patterns of what is left out, below the source; `!` takes some of it back.
    pub(in crate::build) exclude: &'w [String],
}

/// Adds what is wanted to `picks`, in order. What it is called in messages is `place`.
pub(in crate::build) fn select(
    tree: &dyn Tree,
    wanted: &Wanted<'_>,
    place: &str,
    picks: &mut Vec<Pick>,
) -> Result<(), Error> {
    let exclude = Ignore::of(wanted.exclude.iter().map(String::as_str))
        .map_err(|problem| Error::Invalid(format!("--exclude: {problem}")))?;
    let mut selection = Selection { tree, wanted, exclude, picks, made: HashSet::new() };
    let path = wanted.path.as_bytes();
    let start = match wanted.pivot {
        Some(pivot) => match resolve(tree, pivot.as_bytes(), true)? {
            Some(start) => start,
            None => return Err(missing(pivot, place)),
        },
        None => Vec::new(),
    };
    if pattern::is_pattern(path) {
        return selection.search(&start, b"", path);
    }
    let trimmed = join_all(path);
    match selection.source(&start, &trimmed)? {
        true => Ok(()),
        false => Err(missing(wanted.path, place)),
    }
}

fn missing(path: &str, place: &str) -> Error {
    Error::Missing(format!("{path} is not in {place}"))
}

fn join_all(path: &[u8]) -> Vec<u8> {
    components(path).fold(Vec::new(), |path, name| join(&path, name))
}

struct Selection<'s> {
    tree: &'s dyn Tree,
    wanted: &'s Wanted<'s>,
    exclude: Ignore,
    picks: &'s mut Vec<Pick>,
    /// Directories above sources that are picked already.
    made: HashSet<Vec<u8>>,
}

impl Selection<'_> {
    /// Looks for what the pattern matches below `start`, in the order of names.
    fn search(&mut self, start: &[u8], at: &[u8], pattern: &[u8]) -> Result<(), Error> {
        let Some(directory) = resolve(self.tree, &join(start, at), true)? else { return Ok(()) };
        if self.tree.look(&directory)?.is_none_or(|node| node.kind != FileType::Directory) {
            return Ok(());
        }
        for name in self.tree.names(&directory)? {
            let path = join(at, &name);
            if pattern::matches(pattern, &path) {
                self.source(start, &path)?;
            } else if pattern::leads_to(pattern, &path) && components(&path).count() < DEPTH {
                // A link is a name like any other, but nobody walks through one in search of `**`.
                let node = self.tree.look(&join(&directory, &name))?;
                let walk = node.is_some_and(|node| {
                    node.kind == FileType::Directory || node.kind == FileType::Symlink && !has_stars(pattern)
                });
                if walk {
                    self.search(start, &path, pattern)?;
                }
            }
        }
        Ok(())
    }

    /// One source that has been found by its name; false if there is nothing.
    fn source(&mut self, start: &[u8], path: &[u8]) -> Result<bool, Error> {
        let Some(from) = resolve(self.tree, &join(start, path), true)? else { return Ok(false) };
        let Some(node) = self.tree.look(&from)? else { return Ok(false) };
        if node.kind == FileType::Socket {
            return Ok(true);
        }
        if self.wanted.parents {
            if node.kind != FileType::Directory && self.excluded(path) {
                return Ok(true);
            }
            self.directories_above(start, path)?;
            return self.take(from, path.to_vec(), path.to_vec(), node, false, 0).map(|()| true);
        }
        if node.kind == FileType::Directory {
            self.take(from, Vec::new(), Vec::new(), node, false, 0)?;
        } else {
            let name = split(path).1;
            if !self.excluded(name) {
                self.take(from, name.to_vec(), name.to_vec(), node, true, 0)?;
            }
        }
        Ok(true)
    }

    /// With `--parents`: what lies on the way is made as it is there, once.
    fn directories_above(&mut self, start: &[u8], path: &[u8]) -> Result<(), Error> {
        let mut at = Vec::new();
        let names: Vec<&[u8]> = components(path).collect();
        for name in names.split_last().map(|(_, above)| above).unwrap_or_default() {
            at = join(&at, name);
            if !self.made.insert(at.clone()) {
                continue;
            }
            let Some(from) = resolve(self.tree, &join(start, &at), true)? else { continue };
            if let Some(node) = self.tree.look(&from)? {
                self.push(Pick { from, to: at.clone(), node, alone: false })?;
            }
        }
        Ok(())
    }

    /// A thing with all that is in it. `relative` is what exclusions are about.
    fn take(
        &mut self,
        from: Vec<u8>,
        to: Vec<u8>,
        relative: Vec<u8>,
        node: Node,
        alone: bool,
        depth: usize,
    ) -> Result<(), Error> {
        if node.kind == FileType::Socket {
            return Ok(());
        }
        if depth > DEPTH {
            return Err(Error::Limit(format!("{:?} nests more than {DEPTH} directories", shown(&from))));
        }
        let directory = node.kind == FileType::Directory;
        let excluded = !relative.is_empty() && self.excluded(&relative);
        if excluded && !(directory && self.exclude.may_include_below(&relative)) {
            return Ok(());
        }
        let before = self.picks.len();
        self.push(Pick { from: from.clone(), to: to.clone(), node, alone })?;
        if !directory {
            return Ok(());
        }
        for name in self.tree.names(&from)? {
            let path = join(&from, &name);
            let Some(node) = self.tree.look(&path)? else { continue };
            self.take(path, join(&to, &name), join(&relative, &name), node, false, depth + 1)?;
        }
        if excluded && self.picks.len() == before + 1 {
            // Nothing of it was taken back.
            self.picks.pop();
        }
        Ok(())
    }

    fn push(&mut self, pick: Pick) -> Result<(), Error> {
        if self.picks.len() >= PICKS {
            return Err(Error::Limit(format!("more than {PICKS} files are to be copied at once")));
        }
        self.picks.push(pick);
        Ok(())
    }

    fn excluded(&self, path: &[u8]) -> bool {
        self.exclude.excludes(path)
    }
}

fn has_stars(pattern: &[u8]) -> bool {
    components(pattern).any(|part| part == b"**")
}
