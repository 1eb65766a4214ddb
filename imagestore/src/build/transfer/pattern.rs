//! Patterns of paths: Go's `filepath.Match` for each name, and `**` for any number of directories.
//!
//! Matching takes time in proportion to pattern and path, however many stars there are.

use crate::build::tree::components;

/// Whether a path has to be searched for.
pub(in crate::build) fn is_pattern(path: &[u8]) -> bool {
    path.iter().any(|byte| matches!(byte, b'*' | b'?' | b'[' | b'\\'))
}

/// Whether the pattern is this path.
pub(in crate::build) fn matches(pattern: &[u8], path: &[u8]) -> bool {
    let (pattern, path): (Vec<_>, Vec<_>) = (components(pattern).collect(), components(path).collect());
    whole(&pattern, &path)
}

/// Whether a directory can be on the way to what the pattern matches.
pub(in crate::build) fn leads_to(pattern: &[u8], directory: &[u8]) -> bool {
    let pattern: Vec<_> = components(pattern).collect();
    for (at, name) in components(directory).enumerate() {
        match pattern.get(at) {
            Some(&b"**") => return true,
            Some(part) if name_matches(part, name) => {}
            _ => return false,
        }
    }
    true
}

/// Two places to go back to are enough: after a later `**` an earlier one need not give in any more.
fn whole(pattern: &[&[u8]], path: &[&[u8]]) -> bool {
    let (mut at, mut name, mut back) = (0, 0, None);
    while name < path.len() {
        if pattern.get(at) == Some(&&b"**"[..]) {
            back = Some((at, name));
            at += 1;
        } else if pattern.get(at).is_some_and(|part| name_matches(part, path[name])) {
            (at, name) = (at + 1, name + 1);
        } else if let Some((star, from)) = back {
            back = Some((star, from + 1));
            (at, name) = (star + 1, from + 1);
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(|part| *part == b"**")
}

/// One name. A class that has no end matches nothing.
pub(in crate::build) fn name_matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut byte, mut back) = (0, 0, None);
    loop {
        if pattern.get(at) == Some(&b'*') {
            back = Some((at, byte));
            at += 1;
            continue;
        }
        let stepped = match pattern.get(at) {
            None if byte == name.len() => return true,
            Some(_) if byte < name.len() => step(&pattern[at..], name, byte),
            _ => None,
        };
        match (stepped, back) {
            (Some((length, taken)), _) => (at, byte) = (at + length, byte + taken),
            (None, Some((star, from))) if from < name.len() => {
                back = Some((star, from + 1));
                (at, byte) = (star + 1, from + 1);
            }
            (None, _) => return false,
        }
    }
}

/// How much of the pattern and of the name one element takes; none if it does not match.
fn step(pattern: &[u8], name: &[u8], at: usize) -> Option<(usize, usize)> {
    let character = character(&name[at..]);
    match pattern[0] {
        b'?' => Some((1, character.len())),
        b'[' => {
            let (length, found) = class(pattern, character)?;
            found.then_some((length, character.len()))
        }
        b'\\' => (pattern.get(1) == Some(&name[at])).then_some((2, 1)),
        byte => (byte == name[at]).then_some((1, 1)),
    }
}

/// The first character, or the first byte of what is no UTF-8.
fn character(bytes: &[u8]) -> &[u8] {
    let length = (1..=4.min(bytes.len())).find(|length| std::str::from_utf8(&bytes[..*length]).is_ok());
    &bytes[..length.unwrap_or(1)]
}

/// The length of a class, and whether the character is of it.
fn class(pattern: &[u8], wanted: &[u8]) -> Option<(usize, bool)> {
    let mut at = 1;
    let negated = pattern.get(at) == Some(&b'^');
    at += usize::from(negated);
    let (mut found, mut first) = (false, true);
    while pattern.get(at) != Some(&b']') || first {
        first = false;
        let low = bound(pattern, &mut at)?;
        let high = if pattern.get(at) == Some(&b'-') {
            at += 1;
            bound(pattern, &mut at)?
        } else {
            low
        };
        // UTF-8 sorts as its characters do.
        found |= low <= wanted && wanted <= high;
    }
    Some((at + 1, found != negated))
}

fn bound<'p>(pattern: &'p [u8], at: &mut usize) -> Option<&'p [u8]> {
    *at += usize::from(pattern.get(*at) == Some(&b'\\'));
    if *at >= pattern.len() {
        return None;
    }
    let bound = character(&pattern[*at..]);
    *at += bound.len();
    Some(bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_go_matches_them() {
        for (pattern, name, expected) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "abc", true),
            ("a*b*c*d*e*", "axbxcxdxe", true),
            ("a*b*c*d*e*f", "axbxcxdxexxx", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "a☺b", true),
            ("a[^a]b", "a☺b", true),
            ("[a-ζ]*", "α", true),
            ("*[a-ζ]", "A", false),
            ("[\\]a]", "]", true),
            ("[x\\-]", "-", true),
            ("a[", "a", false),
            ("a[", "ab", false),
            ("*x", "xxx", true),
            ("", "", true),
            ("*", "", true),
        ] {
            assert_eq!(name_matches(pattern.as_bytes(), name.as_bytes()), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn two_stars_stand_for_directories() {
        for (pattern, path, expected) in [
            ("**/*.go", "a.go", true),
            ("**/*.go", "x/y/a.go", true),
            ("x/**", "x/y/z", true),
            ("x/**/z", "x/z", true),
            ("x/**/z", "x/y/y/z", true),
            ("x/*/z", "x/y/y/z", false),
            ("**/a/**/b", "a/a/c/b/b", true),
            ("**/a/**/b", "b/a", false),
        ] {
            assert_eq!(matches(pattern.as_bytes(), path.as_bytes()), expected, "{pattern} {path}");
        }
        assert!(leads_to(b"a/*/c", b"a/b") && leads_to(b"**/c", b"x/y") && leads_to(b"a/b", b""));
        assert!(!leads_to(b"a/*/c", b"b"));
    }

    #[test]
    fn many_stars_take_no_time() {
        let (pattern, name) = ("a*".repeat(60) + "b", "a".repeat(250));
        assert!(!name_matches(pattern.as_bytes(), name.as_bytes()));
        let (pattern, path) = ("**/a/".repeat(60) + "b", "a/".repeat(500));
        assert!(!matches(pattern.as_bytes(), path.as_bytes()));
    }
}
