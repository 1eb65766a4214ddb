//! What is to be said about a place in a Dockerfile, shown as a compiler shows it.
//!
//! An error and the finding of a check look alike: file and line, what is wrong, the line itself with the place
//! marked, and what to write instead. Columns count characters from 1; 0 says that the whole line is meant.

use std::{fmt, sync::Arc};

/// A place in a Dockerfile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// The first line, counted from 1.
    pub line: u32,
    /// The last line, heredocs included.
    pub last: u32,
    /// The first character in the first line, counted from 1; 0 without one.
    pub column: u32,
    /// How many characters from there on; 0 without a column.
    pub width: u32,
}

impl Span {
    /// Whole lines.
    pub(crate) fn lines(line: u32, last: u32) -> Span {
        Span { line, last, column: 0, width: 0 }
    }
}

/// Something about a Dockerfile, with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// The file's name, as the user gave it.
    pub file: Arc<str>,
    /// Where; `None` for what concerns the whole file.
    pub span: Option<Span>,
    /// The text of the line that `span` begins in.
    pub excerpt: String,
    /// What is wrong: lower case, no full stop.
    pub message: String,
    /// What to write or do instead, if that can be told.
    pub help: Option<String>,
}

/// Longer lines are cut in an excerpt: nobody reads them on.
const MAX_EXCERPT: usize = 160;

impl Diagnostic {
    /// One line of text: `Dockerfile:3: message (help)`.
    pub fn line(&self) -> String {
        let mut text = self.head();
        if let Some(help) = &self.help {
            text.push_str(" (");
            text.push_str(help);
            text.push(')');
        }
        text
    }

    fn head(&self) -> String {
        match self.span {
            Some(span) => format!("{}:{}: {}", self.file, span.line, self.message),
            None => format!("{}: {}", self.file, self.message),
        }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.head())?;
        let Some(span) = self.span else {
            return self.help.as_ref().map_or(Ok(()), |help| write!(f, "\n  = {help}"));
        };
        let number = span.line.to_string();
        let margin = " ".repeat(number.len());
        let shown: String = self
            .excerpt
            .chars()
            .take(MAX_EXCERPT)
            .map(|c| if c == '\t' { ' ' } else { c })
            .filter(|c| !c.is_control())
            .collect();
        write!(f, "\n{margin} |\n{number} | {shown}")?;
        if span.column > 0 && (span.column as usize) <= MAX_EXCERPT {
            let before = " ".repeat(span.column as usize - 1);
            let room = shown.chars().count().saturating_sub(span.column as usize - 1).max(1);
            let marks = "^".repeat((span.width.max(1) as usize).min(room));
            write!(f, "\n{margin} | {before}{marks}")?;
        }
        self.help.as_ref().map_or(Ok(()), |help| write!(f, "\n{margin} = {help}"))
    }
}

impl std::error::Error for Diagnostic {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_shown_with_its_line_a_mark_and_the_fix() {
        let diagnostic = Diagnostic {
            file: "Dockerfile".into(),
            span: Some(Span { line: 12, last: 12, column: 1, width: 4 }),
            excerpt: "RUNN\techo".into(),
            message: "there is no instruction RUNN".into(),
            help: Some("write RUN".into()),
        };
        assert_eq!(
            diagnostic.to_string(),
            "Dockerfile:12: there is no instruction RUNN\n   |\n12 | RUNN echo\n   | ^^^^\n   = write RUN"
        );
        assert_eq!(diagnostic.line(), "Dockerfile:12: there is no instruction RUNN (write RUN)");
    }

    #[test]
    fn a_whole_file_has_no_excerpt() {
        let diagnostic = Diagnostic {
            file: "-".into(),
            span: None,
            excerpt: String::new(),
            message: "it has no instructions".into(),
            help: Some("begin with FROM".into()),
        };
        assert_eq!(diagnostic.to_string(), "-: it has no instructions\n  = begin with FROM");
    }
}
