//! Lines: what belongs to one instruction, put together, with the way back to where each part was written.
//!
//! A line that ends in the escape character goes on in the next; comments and empty lines in between are left out.
//! Documents (heredocs) are read raw, as the instruction asks for them.

use std::ops::Range;

use super::{Span, directive};

/// One instruction's text.
#[derive(Clone, Debug, Default)]
pub(super) struct Logical {
    /// Its lines joined; no blanks at the beginning.
    pub(super) text: String,
    pub(super) first: u32,
    pub(super) last: u32,
    /// Comments above it.
    pub(super) comments: Vec<String>,
    /// An empty line inside it.
    pub(super) empty_line: Option<u32>,
    /// Where in `text` a line begins, which one, and at which of its characters.
    pieces: Vec<(usize, u32, u32)>,
}

impl Logical {
    /// A text that stands in no file; its place is somewhere else.
    pub(super) fn single(text: &str, at: Span) -> Logical {
        Logical { text: text.to_owned(), first: at.line, last: at.last, ..Logical::default() }
    }

    fn push(&mut self, piece: &str, line: u32, column: u32) {
        self.pieces.push((self.text.len(), line, column));
        self.text.push_str(piece);
        self.last = line;
    }

    /// All of it.
    pub(super) fn whole(&self) -> Span {
        Span::lines(self.first, self.last)
    }

    /// The place of a part of the text.
    pub(super) fn span(&self, part: Range<usize>) -> Span {
        let piece = self.pieces.partition_point(|(start, ..)| *start <= part.start).checked_sub(1);
        let Some((start, line, column)) = piece.map(|piece| self.pieces[piece]) else { return self.whole() };
        let end = piece.and_then(|piece| self.pieces.get(piece + 1)).map_or(self.text.len(), |next| next.0);
        let count = |range: Range<usize>| self.text.get(range).map_or(0, |text| text.chars().count() as u32);
        Span {
            line,
            last: self.last,
            column: column + count(start..part.start),
            width: count(part.start..part.end.min(end)),
        }
    }
}

/// What the next lines are.
pub(super) enum Next {
    Instruction(Logical),
    /// A directive, its line, its key and its value.
    Directive(u32, String, String),
    End,
}

/// Reads a file line by line.
pub(super) struct Reader<'t> {
    lines: Vec<&'t str>,
    at: usize,
    directives: bool,
    comments: Vec<String>,
    pub(super) escape: char,
}

impl<'t> Reader<'t> {
    pub(super) fn new(text: &'t str) -> Reader<'t> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines = text.split_inclusive('\n').collect();
        Reader { lines, at: 0, directives: true, comments: Vec::new(), escape: '\\' }
    }

    /// The lines, for excerpts.
    pub(super) fn excerpts(&self) -> Vec<String> {
        self.lines.iter().map(|line| bare(line).to_owned()).collect()
    }

    fn raw(&mut self) -> Option<(u32, &'t str)> {
        let line = *self.lines.get(self.at)?;
        self.at += 1;
        Some((self.at as u32, line))
    }

    pub(super) fn next(&mut self) -> Next {
        while let Some((number, raw)) = self.raw() {
            let line = bare(raw);
            let trimmed = line.trim_start();
            if let Some(comment) = trimmed.strip_prefix('#') {
                if self.directives
                    && let Some(found) = directive::directive(trimmed.trim_end())
                {
                    return Next::Directive(number, found.key, found.value.to_owned());
                }
                // A script's first line may stand above directives.
                self.directives &= number == 1 && comment.starts_with('!');
                match comment.trim() {
                    "" => self.comments.clear(),
                    comment => self.comments.push(comment.to_owned()),
                }
                continue;
            }
            self.directives = false;
            if trimmed.is_empty() {
                continue;
            }
            let column = (line.chars().count() - trimmed.chars().count()) as u32 + 1;
            return Next::Instruction(self.instruction(number, trimmed, column));
        }
        Next::End
    }

    fn instruction(&mut self, number: u32, first: &str, column: u32) -> Logical {
        let mut logical =
            Logical { first: number, comments: std::mem::take(&mut self.comments), ..Logical::default() };
        let (piece, mut more) = continued(first, self.escape);
        logical.push(piece, number, column);
        while more && let Some((number, raw)) = self.raw() {
            let line = bare(raw);
            match line.trim_start() {
                "" => logical.empty_line = Some(number),
                comment if comment.starts_with('#') => {}
                _ => {
                    let (piece, goes_on) = continued(line, self.escape);
                    logical.push(piece, number, 1);
                    more = goes_on;
                }
            }
        }
        logical
    }

    /// The lines up to one that is `end`; `None` if there is none. The number is that of the last line.
    pub(super) fn document(&mut self, end: &str, strip_tabs: bool) -> Option<(String, u32)> {
        let mut content = String::new();
        while let Some((number, raw)) = self.raw() {
            let line = raw.trim_end_matches(['\r', '\n']);
            if (if strip_tabs { line.trim_start_matches('\t') } else { line }) == end {
                return Some((content, number));
            }
            content.push_str(raw);
        }
        None
    }
}

fn bare(raw: &str) -> &str {
    raw.trim_end_matches(['\r', '\n'])
}

/// The line without the mark of a continuation, and whether it had one: the escape character with nothing but blanks
/// after it, and not a second one before it.
fn continued(line: &str, escape: char) -> (&str, bool) {
    match line.trim_end_matches([' ', '\t']).strip_suffix(escape) {
        Some(rest) if !rest.ends_with(escape) => (rest, true),
        _ => (line, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instructions(text: &str) -> Vec<Logical> {
        let mut reader = Reader::new(text);
        let mut found = Vec::new();
        loop {
            match reader.next() {
                Next::Instruction(logical) => found.push(logical),
                Next::Directive(..) => {}
                Next::End => return found,
            }
        }
    }

    #[test]
    fn continuations_are_joined_and_comments_in_them_left_out() {
        let found = instructions("RUN a && \\\n# why\n   # and how\n\n  b \\  \n c\nENV d=\\\\\nUSER e");
        let texts: Vec<&str> = found.iter().map(|line| line.text.as_str()).collect();
        assert_eq!(texts, ["RUN a &&   b  c", "ENV d=\\\\", "USER e"]);
        assert_eq!((found[0].first, found[0].last, found[0].empty_line), (1, 6, Some(4)));
    }

    #[test]
    fn parts_lead_back_to_where_they_were_written() {
        let found = instructions("\n  RUN one \\\n two");
        let two = found[0].text.find("two").unwrap();
        assert_eq!(found[0].span(two..two + 3), Span { line: 3, last: 3, column: 2, width: 3 });
        assert_eq!(found[0].span(0..3), Span { line: 2, last: 3, column: 3, width: 3 });
    }

    #[test]
    fn a_file_may_end_anywhere() {
        assert_eq!(instructions("RUN a \\").len(), 1);
        assert_eq!(instructions("RUN a \\\n# only this").len(), 1);
        assert_eq!(instructions("\u{feff}FROM x\r\nRUN a\\\r\nb\r\n")[1].text, "RUN ab");
        assert!(instructions("# only comments\n\n").is_empty());
        assert!(instructions("").is_empty());
    }
}
