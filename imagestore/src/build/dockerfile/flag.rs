//! Flags: `--name` and `--name=value` between an instruction and its arguments.

use std::ops::Range;

use super::{Span, instruction::Mistake, line::Logical, suggest::nearest};

/// A flag as written, without quotes and escapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flag {
    pub(crate) name: String,
    pub(crate) value: Option<String>,
    at: Range<usize>,
}

/// Cuts the flags off `text[start..]`; gives where the arguments begin. `--` ends them.
pub(super) fn cut(text: &str, start: usize, escape: char) -> (Vec<Flag>, usize) {
    let mut flags = Vec::new();
    let mut at = start;
    loop {
        at += text[at..].len() - text[at..].trim_start().len();
        if !text[at..].starts_with("--") {
            return (flags, at);
        }
        let (word, end) = word(text, at, escape);
        if word == "--" {
            return (flags, end + text[end..].len() - text[end..].trim_start().len());
        }
        let (name, value) = match word[2..].split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (&word[2..], None),
        };
        flags.push(Flag { name: name.to_owned(), value, at: at..end });
        at = end;
    }
}

/// One word without its quotes and escapes, and its end.
fn word(text: &str, start: usize, escape: char) -> (String, usize) {
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text[start..].char_indices();
    while let Some((at, c)) = chars.next() {
        match (c, quote) {
            (c, None) if c.is_whitespace() => return (word, start + at),
            ('\'' | '"', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            (c, _) if c == escape => word.extend(chars.next().map(|(_, next)| next)),
            (c, _) => word.push(c),
        }
    }
    (word, text.len())
}

/// The flags of one instruction, each to be asked for.
pub(super) struct Flags<'l> {
    line: &'l Logical,
    given: Vec<Flag>,
}

impl<'l> Flags<'l> {
    /// Refuses flags that the instruction does not take, and those given twice that count once.
    pub(super) fn new(
        line: &'l Logical,
        instruction: &str,
        given: Vec<Flag>,
        once: &[&str],
        often: &[&str],
    ) -> Result<Flags<'l>, Mistake> {
        for (number, flag) in given.iter().enumerate() {
            let name = flag.name.as_str();
            let span = line.span(flag.at.clone());
            if !once.contains(&name) && !often.contains(&name) {
                let known = once.iter().chain(often).copied();
                let help = match (nearest(name, known.clone()), known.collect::<Vec<_>>().as_slice()) {
                    (Some(meant), _) => format!("did you mean --{meant}?"),
                    (None, []) => {
                        format!("{instruction} takes no flags; -- before an argument that begins with --")
                    }
                    (None, known) => format!("{instruction} takes --{}", known.join(", --")),
                };
                return Err(Mistake::new(span, format!("{instruction} has no flag --{name}"), help));
            }
            if once.contains(&name) && given[..number].iter().any(|other| other.name == name) {
                return Err(Mistake::new(span, format!("--{name} is given twice"), "leave one of them out"));
            }
        }
        Ok(Flags { line, given })
    }

    fn find(&self, name: &str) -> Option<&Flag> {
        self.given.iter().find(|flag| flag.name == name)
    }

    /// Where a flag stands.
    pub(super) fn span(&self, name: &str) -> Span {
        self.find(name).map_or_else(|| self.line.whole(), |flag| self.line.span(flag.at.clone()))
    }

    fn value(&self, flag: &Flag) -> Result<String, Mistake> {
        flag.value.clone().ok_or_else(|| {
            let span = self.line.span(flag.at.clone());
            Mistake::new(
                span,
                format!("--{} has no value", flag.name),
                format!("write --{}=VALUE", flag.name),
            )
        })
    }

    /// A flag that takes a text.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>, Mistake> {
        self.find(name).map(|flag| self.value(flag)).transpose()
    }

    /// A flag that may be given several times.
    pub(super) fn all(&self, name: &str) -> Result<Vec<String>, Mistake> {
        self.given.iter().filter(|flag| flag.name == name).map(|flag| self.value(flag)).collect()
    }

    /// A flag that is yes or no.
    pub(super) fn boolean(&self, name: &str) -> Result<Option<bool>, Mistake> {
        let Some(flag) = self.find(name) else { return Ok(None) };
        match flag.value.as_deref().map(str::to_ascii_lowercase).as_deref() {
            None | Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(other) => Err(Mistake::new(
                self.span(name),
                format!("{other:?} is neither true nor false"),
                format!("write --{name} or --{name}=false"),
            )),
        }
    }
}
