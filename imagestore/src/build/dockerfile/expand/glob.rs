//! Patterns of `${v#p}`, `${v%p}` and `${v/p/w}`: `*`, `?`, and `\` before one of these.
//!
//! No brackets, as Docker has it. Matching takes time proportional to pattern times text, whatever the pattern.

#[derive(Clone, Copy, Debug, PartialEq)]
enum Piece {
    Char(char),
    Any,
    Star,
}

pub(super) struct Glob(Vec<Piece>);

impl Glob {
    /// The error is what follows the backslash.
    pub(super) fn new(pattern: &str) -> Result<Glob, String> {
        let mut pieces = Vec::new();
        let mut chars = pattern.chars();
        while let Some(c) = chars.next() {
            let piece = match c {
                '*' => Piece::Star,
                '?' => Piece::Any,
                // A brace or slash is escaped only to get into the pattern.
                '\\' => match chars.next() {
                    Some(c @ ('*' | '?' | '\\' | '}' | '/')) => Piece::Char(c),
                    other => return Err(other.map(String::from).unwrap_or_default()),
                },
                c => Piece::Char(c),
            };
            if piece != Piece::Star || pieces.last() != Some(&Piece::Star) {
                pieces.push(piece);
            }
        }
        Ok(Glob(pieces))
    }

    /// How many characters match from the first on: as few or as many as possible.
    fn matched(&self, text: &[char], longest: bool) -> Option<usize> {
        let pieces = &self.0;
        // alive[i]: the first i pieces have matched what was read.
        let mut alive = vec![false; pieces.len() + 1];
        let mut next = alive.clone();
        alive[0] = true;
        let mut found = None;
        for at in 0..=text.len() {
            for (i, piece) in pieces.iter().enumerate() {
                alive[i + 1] |= alive[i] && *piece == Piece::Star;
            }
            if alive[pieces.len()] {
                found = Some(at);
                if !longest {
                    break;
                }
            }
            let Some(c) = text.get(at) else { break };
            next.fill(false);
            for (i, piece) in pieces.iter().enumerate().filter(|(i, _)| alive[*i]) {
                match piece {
                    Piece::Char(own) => next[i + 1] |= own == c,
                    Piece::Any => next[i + 1] = true,
                    Piece::Star => next[i] = true,
                }
            }
            std::mem::swap(&mut alive, &mut next);
            if !alive.contains(&true) {
                break;
            }
        }
        found
    }

    pub(super) fn cut_prefix(&self, value: &str, longest: bool) -> String {
        let chars: Vec<char> = value.chars().collect();
        chars[self.matched(&chars, longest).unwrap_or(0)..].iter().collect()
    }

    pub(super) fn cut_suffix(&self, value: &str, longest: bool) -> String {
        let backwards = Glob(self.0.iter().rev().copied().collect());
        let chars: Vec<char> = value.chars().rev().collect();
        chars[backwards.matched(&chars, longest).unwrap_or(0)..].iter().rev().collect()
    }

    /// The first match, or all of them, replaced; the longest at the leftmost place. `None` past `room` bytes.
    pub(super) fn replace(&self, value: &str, with: &str, all: bool, room: usize) -> Option<String> {
        let chars: Vec<char> = value.chars().collect();
        let mut rest = chars.as_slice();
        let mut out = String::new();
        while out.len() <= room {
            match self.matched(rest, true) {
                Some(length) => {
                    out.push_str(with);
                    rest = &rest[length..];
                    // An empty pattern matches everywhere; once is enough.
                    if !all || length == 0 || rest.is_empty() {
                        break;
                    }
                }
                // What a star did not find up to the end, it finds from no later place.
                None if rest.is_empty() || self.star_failed(rest) => break,
                None => {
                    out.push(rest[0]);
                    rest = &rest[1..];
                }
            }
        }
        out.extend(rest);
        (out.len() <= room).then_some(out)
    }

    /// Whether what stands before the first star matches here.
    fn star_failed(&self, text: &[char]) -> bool {
        let Some(star) = self.0.iter().position(|piece| *piece == Piece::Star) else { return false };
        text.len() >= star
            && self.0[..star]
                .iter()
                .zip(text)
                .all(|(piece, c)| *piece == Piece::Any || *piece == Piece::Char(*c))
    }
}
