//! Names of entries: normalised, bounded, and told apart from whiteouts.
//!
//! A [`Name`] is a relative path of plain components joined by single slashes; it never holds `.`, `..` or
//! a NUL. That makes it a fit argument for openat2, and nothing more: what lies on the path is the tree's concern.

use super::{Error, error::Refusal};

/// NAME_MAX of Linux.
const COMPONENT: usize = 255;
/// PATH_MAX of Linux without its NUL.
pub(super) const PATH: usize = 4095;

const WHITEOUT: &[u8] = b".wh.";
const METADATA: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// A normalised path beneath the root; empty for the root itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Name(Vec<u8>);

/// What an entry's name asks for.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Meaning {
    /// Lay the entry out.
    Entry,
    /// Hide what lower layers have under this name.
    Whiteout(Name),
    /// Hide all that lower layers have in this directory.
    Opaque(Name),
    /// Bookkeeping of AUFS, which once wrote layers: to be passed over.
    Metadata,
}

impl Name {
    /// `./a//b/` becomes `a/b`, as does `/a/b`.
    pub(super) fn new(raw: &[u8]) -> Result<Name, Error> {
        let refuse = |refusal| Err(Error::refused(raw, refusal));
        let mut path = Vec::with_capacity(raw.len());
        for component in raw.split(|b| *b == b'/') {
            match component {
                b"" | b"." => continue,
                b".." => return refuse(Refusal::Climbs),
                _ if component.contains(&0) => return refuse(Refusal::Nul),
                _ if component.len() > COMPONENT => return refuse(Refusal::LongComponent),
                _ => {}
            }
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(component);
        }
        if path.len() > PATH { refuse(Refusal::LongPath) } else { Ok(Name(path)) }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub(super) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The parent's path and the last component.
    pub(super) fn split(&self) -> (&[u8], &[u8]) {
        match self.0.iter().rposition(|b| *b == b'/') {
            Some(slash) => (&self.0[..slash], &self.0[slash + 1..]),
            None => (b"", &self.0),
        }
    }

    pub(super) fn meaning(&self) -> Result<Meaning, Error> {
        // Hardly any name has the prefix anywhere, and this is asked for each.
        if !self.0.windows(WHITEOUT.len()).any(|part| part == WHITEOUT) {
            return Ok(Meaning::Entry);
        }
        let (parent, last) = self.split();
        for component in parent.split(|b| *b == b'/') {
            if component.starts_with(METADATA) {
                return Ok(Meaning::Metadata);
            }
            if component.starts_with(WHITEOUT) {
                return Err(Error::refused(&self.0, Refusal::Whiteout));
            }
        }
        let Some(hidden) = last.strip_prefix(WHITEOUT) else { return Ok(Meaning::Entry) };
        if last == OPAQUE {
            return Ok(Meaning::Opaque(Name(parent.to_vec())));
        }
        if last.starts_with(METADATA) {
            return Ok(Meaning::Metadata);
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Error::refused(&self.0, Refusal::Whiteout));
        }
        let separator: &[u8] = if parent.is_empty() { b"" } else { b"/" };
        Ok(Meaning::Whiteout(Name([parent, separator, hidden].concat())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(raw: &str) -> Name {
        Name::new(raw.as_bytes()).unwrap()
    }

    fn refusal(raw: &[u8]) -> Refusal {
        let result = Name::new(raw).and_then(|name| name.meaning());
        match result {
            Err(Error::Refused { refusal, .. }) => refusal,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_are_normalised() {
        for (raw, path) in
            [("./a//b/", "a/b"), ("/a", "a"), ("./", ""), ("", ""), ("a/./b", "a/b"), ("...", "...")]
        {
            assert_eq!(name(raw).as_bytes(), path.as_bytes(), "{raw}");
        }
        assert_eq!(name("a/b/c").split(), (&b"a/b"[..], &b"c"[..]));
        assert_eq!(name("c").split(), (&b""[..], &b"c"[..]));
    }

    #[test]
    fn names_that_leave_or_overflow_are_refused() {
        for raw in ["..", "../x", "a/../b", "a/..", "/..", "./../x"] {
            assert_eq!(refusal(raw.as_bytes()), Refusal::Climbs, "{raw}");
        }
        assert_eq!(refusal(&[b'a'; 256]), Refusal::LongComponent);
        assert_eq!(refusal("abc/".repeat(1025).as_bytes()), Refusal::LongPath);
        assert_eq!(refusal(b"a\0b"), Refusal::Nul);
        assert!(Name::new(&[b'a'; 255]).is_ok());
        assert!(Name::new("abc/".repeat(1024).as_bytes()).is_ok());
    }

    #[test]
    fn whiteouts_hide_exactly_one_name() {
        assert_eq!(name("a/.wh.b").meaning().unwrap(), Meaning::Whiteout(name("a/b")));
        assert_eq!(name(".wh.b").meaning().unwrap(), Meaning::Whiteout(name("b")));
        assert_eq!(name(".wh....").meaning().unwrap(), Meaning::Whiteout(name("...")));
        assert_eq!(name("a/.wh..wh..opq").meaning().unwrap(), Meaning::Opaque(name("a")));
        assert_eq!(name(".wh..wh..opq").meaning().unwrap(), Meaning::Opaque(name("")));
        assert_eq!(name(".wh..wh.plnk/12.34").meaning().unwrap(), Meaning::Metadata);
        assert_eq!(name("a.wh.b").meaning().unwrap(), Meaning::Entry);
        for raw in [".wh.", ".wh..", ".wh...", "a/.wh.", "a/.wh..", "a/.wh...", "a/.wh.b/c"] {
            assert_eq!(refusal(raw.as_bytes()), Refusal::Whiteout, "{raw}");
        }
    }
}
