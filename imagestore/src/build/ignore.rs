//! `.dockerignore`: which files of a context a build does not get.
//!
//! A line is a pattern of paths below the context: `*`, `?` and `[…]` within a name, `**` for any number of folders, `!`
//! to take back what an earlier line excluded. The last line that matches counts, and a line that matches a folder
//! matches what is in it. Time is in proportion to pattern and path, however many stars there are.

/// Longer files are refused: no person wrote them.
const MAX_SIZE: usize = 1 << 20;

/// The patterns of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ignore {
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Pattern {
    /// Takes back what others exclude.
    negated: bool,
    pieces: Vec<Piece>,
    /// The names before the first that is a pattern.
    fixed: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Byte(u8),
    /// Any but a slash.
    One,
    /// Any number of any but a slash.
    Star,
    /// Any number of any.
    Deep,
    /// What follows may be left out.
    Optional,
    /// Any number of any, and a slash at their end.
    Folders,
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Ignore {
    /// Reads the lines of a file.
    ///
    /// # Errors
    /// A sentence with the line that is wrong.
    pub fn parse(text: &str) -> Result<Ignore, String> {
        if text.len() > MAX_SIZE {
            return Err(format!("it has {} bytes, more than {MAX_SIZE}", text.len()));
        }
        let lines = text.trim_start_matches('\u{feff}').lines();
        Ignore::of(lines.map(|line| if line.starts_with('#') { "" } else { line }))
    }

    /// Takes patterns, those of `COPY --exclude` for example; empty ones are none.
    ///
    /// # Errors
    /// A sentence with the number of the one that is wrong, from 1.
    pub(crate) fn of<'l>(lines: impl Iterator<Item = &'l str>) -> Result<Ignore, String> {
        let mut patterns = Vec::new();
        for (number, line) in lines.enumerate() {
            let line = line.trim();
            let (negated, rest) = match line.strip_prefix('!') {
                Some(rest) => (true, rest.trim()),
                None => (false, line),
            };
            if line.is_empty() {
                continue;
            }
            let problem = |what: &str| format!("line {}: {line:?} {what}", number + 1);
            if rest.is_empty() {
                return Err(problem("takes nothing back; write !PATH"));
            }
            let path = cleaned(rest);
            // What is above the context, or the context itself, is nothing that could be left out.
            if path == "." || path.is_empty() || path == ".." || path.starts_with("../") {
                continue;
            }
            let pieces = pieces(&path).ok_or_else(|| problem("has a [ without its ], or ends in a \\"))?;
            patterns.push(Pattern { negated, fixed: fixed(&path), pieces });
        }
        Ok(Ignore { patterns })
    }

    /// Whether there are no patterns.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether the path, relative to the context and without a slash at its end, is left out.
    pub fn excludes(&self, path: &[u8]) -> bool {
        // Later lines win, so the first that matches from behind has the word.
        let decided = self.patterns.iter().rev().find(|pattern| pattern.matches_or_holds(path));
        decided.is_some_and(|pattern| !pattern.negated)
    }

    /// Whether something in a folder that is left out may be taken back: only then is it to be read.
    pub fn may_include_below(&self, folder: &[u8]) -> bool {
        let below = |fixed: &[u8]| {
            let (short, long) = if fixed.len() < folder.len() { (fixed, folder) } else { (folder, fixed) };
            short.is_empty()
                || (long.starts_with(short) && matches!(long.get(short.len()), None | Some(b'/')))
        };
        self.patterns.iter().any(|pattern| pattern.negated && below(&pattern.fixed))
    }
}

impl Pattern {
    /// Whether it matches the path or a folder that the path is in.
    fn matches_or_holds(&self, path: &[u8]) -> bool {
        // alive[i]: the first i pieces match what was read.
        let mut alive = vec![false; self.pieces.len() + 1];
        alive[0] = true;
        self.skip(&mut alive, true);
        let mut at = 0;
        while at < path.len() {
            if path[at] == b'/' && alive[self.pieces.len()] {
                return true;
            }
            let length = character(&path[at..]);
            let mut next = vec![false; alive.len()];
            for (index, piece) in self.pieces.iter().enumerate().filter(|(index, _)| alive[*index]) {
                match piece {
                    Piece::Byte(byte) => next[index + 1] |= length == 1 && *byte == path[at],
                    Piece::One => next[index + 1] |= path[at] != b'/',
                    Piece::Star => next[index] |= path[at] != b'/',
                    Piece::Deep | Piece::Folders => next[index] = true,
                    Piece::Optional => {}
                    Piece::Class { negated, ranges } => {
                        let text = std::str::from_utf8(&path[at..at + length]).ok();
                        let found = text
                            .and_then(|text| text.chars().next())
                            .is_some_and(|c| ranges.iter().any(|(low, high)| *low <= c && c <= *high));
                        next[index + 1] |= path[at] != b'/' && found != *negated;
                    }
                }
            }
            // Bytes of one character are pieces of their own.
            if length > 1 {
                self.literal(&alive, &path[at..at + length], &mut next);
            }
            at += length;
            let at_name = path[at - 1] == b'/';
            alive = next;
            self.skip(&mut alive, at_name);
            if !alive.contains(&true) {
                return false;
            }
        }
        alive[self.pieces.len()]
    }

    /// A character of several bytes, written as such.
    fn literal(&self, alive: &[bool], character: &[u8], next: &mut [bool]) {
        for (start, _) in alive.iter().enumerate().filter(|(_, alive)| **alive) {
            let Some(window) = self.pieces.get(start..start + character.len()) else { continue };
            if window.iter().zip(character).all(|(piece, byte)| *piece == Piece::Byte(*byte)) {
                next[start + character.len()] = true;
            }
        }
    }

    /// Pieces that may stand for nothing. Folders end where a name begins.
    fn skip(&self, alive: &mut [bool], at_name: bool) {
        for (index, piece) in self.pieces.iter().enumerate() {
            if !alive[index] {
                continue;
            }
            match piece {
                Piece::Star | Piece::Deep => alive[index + 1] = true,
                Piece::Folders if at_name => alive[index + 1] = true,
                Piece::Optional => (alive[index + 1], alive[index + 2]) = (true, true),
                _ => {}
            }
        }
    }
}

/// The length of the first character, or of the first byte of what is no UTF-8.
fn character(bytes: &[u8]) -> usize {
    (1..=4.min(bytes.len())).find(|length| std::str::from_utf8(&bytes[..*length]).is_ok()).unwrap_or(1)
}

/// Without empty names, `.` and `..` where they lead nowhere else, and slashes at both ends.
fn cleaned(path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." if names.last().is_some_and(|last| *last != "..") => drop(names.pop()),
            name => names.push(name),
        }
    }
    names.join("/")
}

fn fixed(path: &str) -> Vec<u8> {
    let names = path.split('/').take_while(|name| !name.contains(['*', '?', '[', '\\']));
    names.collect::<Vec<_>>().join("/").into_bytes()
}

/// `None`: a class or an escape has no end.
fn pieces(path: &str) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut chars = path.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '*' if chars.next_if_eq(&'*').is_some() => {
                // As Docker reads it: a slash belongs to it; at the end it stands for all, before plain text at the
                // beginning for anything that ends so, and elsewhere for folders or nothing, also inside a name.
                let slash = chars.next_if_eq(&'/').is_some();
                let plain = !chars.clone().any(|c| matches!(c, '*' | '?' | '[' | ']' | '\\'));
                if chars.peek().is_none() || pieces.is_empty() && plain && !slash {
                    pieces.push(Piece::Deep);
                } else {
                    pieces.extend([Piece::Optional, Piece::Folders]);
                }
            }
            '*' => pieces.push(Piece::Star),
            '?' => pieces.push(Piece::One),
            '\\' => push(&mut pieces, chars.next()?),
            '[' => {
                let negated = chars.next_if_eq(&'^').is_some();
                let mut ranges = Vec::new();
                loop {
                    let low = match chars.next()? {
                        ']' if !ranges.is_empty() => break,
                        '\\' => chars.next()?,
                        c => c,
                    };
                    let high = match chars.next_if_eq(&'-') {
                        Some(_) => match chars.next()? {
                            '\\' => chars.next()?,
                            c => c,
                        },
                        None => low,
                    };
                    ranges.push((low, high));
                }
                pieces.push(Piece::Class { negated, ranges });
            }
            c => push(&mut pieces, c),
        }
    }
    Some(pieces)
}

fn push(pieces: &mut Vec<Piece>, c: char) {
    let mut buffer = [0; 4];
    pieces.extend(c.encode_utf8(&mut buffer).bytes().map(Piece::Byte));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ignore(lines: &[&str]) -> Ignore {
        Ignore::parse(&lines.join("\n")).unwrap()
    }

    #[test]
    fn patterns_match_as_docker_documents_them() {
        for (pattern, path, excluded) in [
            ("*/temp*", "somedir/temporary.txt", true),
            ("*/temp*", "somedir/temp", true),
            ("*/temp*", "temp", false),
            ("*/*/temp*", "somedir/subdir/temporary.txt", true),
            ("temp?", "tempa", true),
            ("temp?", "temp", false),
            ("temp?", "temp/", false),
            ("**/*.go", "main.go", true),
            ("**/*.go", "a/b/c/main.go", true),
            ("**/*.go", "a/main.go.txt", false),
            ("node_modules", "node_modules/a/b.js", true),
            ("node_modules", "sub/node_modules/a", false),
            ("**/node_modules", "sub/deep/node_modules/a", true),
            ("/foo/bar", "foo/bar", true),
            ("foo/bar/", "foo/bar/baz", true),
            ("./foo/../bar", "bar", true),
            ("a/**/b", "a/b", true),
            ("a/**/b", "a/x/y/b", true),
            ("a/**", "a/x", true),
            ("a/**", "a", false),
            ("a**z", "abc/xyz", false),
            ("a**z", "abc/z", true),
            ("a**z", "az", true),
            ("a**z", "abz", false),
            ("**z", "a/bz", true),
            ("**/z", "a/bz", false),
            ("**z*", "a/bz", false),
            ("**z*", "a/zb", true),
            ("a/**/*.go", "a/x.go", true),
            ("a**", "abc/d", true),
            ("***", "a/b", true),
            ("**", "a/b", true),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("[^a-c]x", "dx", true),
            ("\\*x", "*x", true),
            ("\\*x", "ax", false),
            ("é?", "éa", true),
            ("é*", "é", true),
            ("?", "é", true),
            ("*", "anything/at/all", true),
            ("..", "a", false),
            (".", "a", false),
        ] {
            assert_eq!(ignore(&[pattern]).excludes(path.as_bytes()), excluded, "{pattern} {path}");
        }
    }

    #[test]
    fn the_last_line_that_matches_counts() {
        let ignore = ignore(&["# a note", "", "*.md", "!README*.md", "README-secret.md"]);
        for (path, excluded) in [
            ("a.md", true),
            ("README.md", false),
            ("README-old.md", false),
            ("README-secret.md", true),
            ("a.txt", false),
        ] {
            assert_eq!(ignore.excludes(path.as_bytes()), excluded, "{path}");
        }
    }

    #[test]
    fn a_folder_that_is_left_out_is_read_only_for_what_may_be_taken_back() {
        let ignore = ignore(&["*", "!src/lib", "!docs/*.md"]);
        for (folder, read) in
            [("src", true), ("src/lib", true), ("src/other", false), ("docs", true), ("target", false)]
        {
            assert!(folder == "src/lib" || ignore.excludes(folder.as_bytes()), "{folder}");
            assert_eq!(ignore.may_include_below(folder.as_bytes()), read, "{folder}");
        }
        assert!(!ignore.excludes(b"src/lib/a.rs") && ignore.excludes(b"src/other/a.rs"));
        assert!(!ignore.excludes(b"docs/a.md"));
        assert!(super::tests::ignore(&["*", "!**/x"]).may_include_below(b"any/folder"));
        assert!(!super::tests::ignore(&["target"]).may_include_below(b"target"));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, line) in [("a\n[b", "line 2"), ("!", "line 1"), ("a\\", "line 1"), ("x\n\n! ", "line 3")] {
            let error = Ignore::parse(text).unwrap_err();
            assert!(error.contains(line), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_file_is_too_odd(text in ".{0,200}", path in "[a-c/*.é]{0,40}") {
            if let Ok(ignore) = Ignore::parse(&text) {
                ignore.excludes(path.as_bytes());
                ignore.may_include_below(path.as_bytes());
            }
        }
    }
}
