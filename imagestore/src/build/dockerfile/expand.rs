//! Expansion: quotes, escapes and variables of one word, as a shell would see them.
//!
//! `$v`, `${v}`, `${v:-w}` and its like (`- + ?`, with and without `:`), `${v#p}` `${v##p}` `${v%p}` `${v%%p}`,
//! `${v/p/w}` `${v//p/w}`, nested as deep as [`MAX_DEPTH`]. Values are not read again: a `$` that came out of a
//! variable is a dollar. What a hostile file can make of little text is bounded by [`MAX_EXPANDED`].

mod glob;

use std::collections::BTreeSet;

use glob::Glob;

/// The longest result, in bytes; the kernel takes no argument of more than 128 KiB.
pub(crate) const MAX_EXPANDED: usize = 1 << 20;
/// How deep substitutions may stand inside one another.
const MAX_DEPTH: usize = 32;

/// Where variables get their values.
pub(crate) trait Values {
    /// The value of a variable; `None` if it is not set.
    fn value(&self, name: &str) -> Option<&str>;
}

/// No variable is set.
pub(crate) struct NoValues;

impl Values for NoValues {
    fn value(&self, _: &str) -> Option<&str> {
        None
    }
}

/// What becomes of quotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Quotes {
    /// They group and are taken away.
    Remove,
    /// They group and stay.
    Keep,
    /// They are characters like others: in a heredoc.
    Ignore,
}

/// How to expand.
#[derive(Clone, Copy)]
pub(crate) struct Expander<'v> {
    pub(crate) escape: char,
    pub(crate) quotes: Quotes,
    /// Escapes stay where they are.
    pub(crate) keep_escapes: bool,
    /// A variable that is not set stays as it is written, rather than becoming nothing.
    pub(crate) keep_unset: bool,
    pub(crate) values: &'v dyn Values,
}

/// A word with its variables put in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Expanded {
    pub(crate) text: String,
    /// The same cut into words at blanks that no quotes hold together, those of values included.
    pub(crate) words: Vec<String>,
    /// Variables that were asked for and have a value.
    pub(crate) used: BTreeSet<String>,
    /// Variables that were asked for and have none.
    pub(crate) missing: BTreeSet<String>,
}

/// Why a word cannot be expanded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Error {
    /// A quote without its second.
    #[error("the quote {0} is not closed")]
    Quote(char),
    /// `${` without its brace.
    #[error("${{ is not closed; it needs a }}")]
    Brace,
    /// `${v/p` without its second slash.
    #[error("${{{0}/pattern is not closed; it is ${{{0}/pattern/replacement}}")]
    Slash(String),
    /// `${}`, `${:x}` and the like.
    #[error("${{…}} names no variable; write \\$ for a dollar")]
    Name,
    /// An operator that is none.
    #[error("{operator:?} after ${{{name} is no operator; known are - :- + :+ ? :? # ## % %% / //")]
    Operator {
        /// The variable.
        name: String,
        /// As written.
        operator: String,
    },
    /// `\x` in a pattern.
    #[error("\\{0} in a pattern has no meaning; only \\* \\? and \\\\ have one")]
    Escape(String),
    /// `${v?message}` of a variable that is not set or empty.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// As the file has it, or ours.
        message: String,
    },
    /// Substitutions inside one another, too deep.
    #[error("substitutions stand inside one another more than {MAX_DEPTH} deep")]
    Depth,
    /// The result is too long.
    #[error("it expands to more than {MAX_EXPANDED} bytes")]
    Size,
}

impl Error {
    /// What to look for in a line to show where it is.
    pub(crate) fn mark(&self) -> String {
        match self {
            Error::Required { name, .. } | Error::Operator { name, .. } | Error::Slash(name) => {
                format!("${{{name}")
            }
            Error::Brace | Error::Name => "${".to_owned(),
            Error::Quote(quote) => quote.to_string(),
            Error::Escape(escape) => format!("\\{escape}"),
            Error::Depth | Error::Size => String::new(),
        }
    }
}

impl Expander<'_> {
    /// Expands one word, which may have blanks in it.
    pub(crate) fn expand(&self, word: &str) -> Result<Expanded, Error> {
        let chars: Vec<char> = word.chars().collect();
        let mut scan = Scan {
            how: self,
            chars: &chars,
            at: 0,
            room: MAX_EXPANDED,
            used: BTreeSet::new(),
            missing: BTreeSet::new(),
        };
        let Output { text, mut words, word, .. } = scan.until(None, self.keep_escapes, 0)?;
        if !word.is_empty() {
            words.push(word);
        }
        Ok(Expanded { text, words, used: scan.used, missing: scan.missing })
    }
}

#[derive(Default)]
struct Output {
    text: String,
    words: Vec<String>,
    word: String,
}

impl Output {
    /// Text in which blanks part words.
    fn open(&mut self, c: char) {
        self.text.push(c);
        if !c.is_whitespace() {
            self.word.push(c);
        } else if !self.word.is_empty() {
            self.words.push(std::mem::take(&mut self.word));
        }
    }

    /// Text that belongs together.
    fn closed(&mut self, text: &str) {
        self.text.push_str(text);
        self.word.push_str(text);
    }
}

struct Scan<'s> {
    how: &'s Expander<'s>,
    chars: &'s [char],
    at: usize,
    room: usize,
    used: BTreeSet<String>,
    missing: BTreeSet<String>,
}

impl Scan<'_> {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek();
        self.at += usize::from(c.is_some());
        c
    }

    fn spend(&mut self, bytes: usize) -> Result<(), Error> {
        self.room = self.room.checked_sub(bytes).ok_or(Error::Size)?;
        Ok(())
    }

    /// Up to `stop`, which is eaten, or to the end.
    fn until(&mut self, stop: Option<char>, keep_escapes: bool, depth: usize) -> Result<Output, Error> {
        let mut out = Output::default();
        while let Some(c) = self.peek() {
            if stop == Some(c) {
                self.at += 1;
                return Ok(out);
            }
            match c {
                '$' => {
                    let value = self.dollar(keep_escapes, depth)?;
                    self.spend(value.len())?;
                    value.chars().for_each(|c| out.open(c));
                }
                '\'' | '"' if self.how.quotes != Quotes::Ignore => {
                    let text = self.quoted(c, keep_escapes, depth)?;
                    self.spend(text.len())?;
                    out.closed(&text);
                }
                '<' if self.chars.get(self.at + 1) == Some(&'<') => {
                    let text = self.heredoc_mark();
                    self.spend(text.len())?;
                    out.closed(&text);
                }
                c if c == self.how.escape => {
                    self.at += 1;
                    let mut text = String::new();
                    if keep_escapes {
                        text.push(c);
                    }
                    text.extend(self.next());
                    self.spend(text.len())?;
                    out.closed(&text);
                }
                c => {
                    self.at += 1;
                    self.spend(c.len_utf8())?;
                    out.open(c);
                }
            }
        }
        match stop {
            None => Ok(out),
            Some(_) => Err(Error::Brace),
        }
    }

    /// `<<`, `<<-` and the blanks after it, which do not part it from its name.
    fn heredoc_mark(&mut self) -> String {
        let start = self.at;
        self.at += 2;
        let blanks = self.at + usize::from(self.peek() == Some('-'));
        let after = self.chars[blanks..].iter().take_while(|c| matches!(c, ' ' | '\t' | '\r')).count();
        if after > 0 {
            self.at = blanks + after;
        }
        self.chars[start..self.at].iter().collect()
    }

    fn quoted(&mut self, quote: char, keep_escapes: bool, depth: usize) -> Result<String, Error> {
        let keep = self.how.quotes == Quotes::Keep;
        let mut text = String::new();
        self.at += 1;
        if keep {
            text.push(quote);
        }
        loop {
            let c = self.peek().ok_or(Error::Quote(quote))?;
            if c == '$' && quote == '"' {
                let value = self.dollar(keep_escapes, depth)?;
                self.spend(value.len())?;
                text.push_str(&value);
                continue;
            }
            self.at += 1;
            if c == quote {
                if keep {
                    text.push(quote);
                }
                return Ok(text);
            }
            if c != self.how.escape || quote == '\'' {
                text.push(c);
                continue;
            }
            if keep_escapes {
                text.push(c);
            }
            match self.peek() {
                None => {}
                Some(next) if next == '"' || next == '$' || next == c => {
                    self.at += 1;
                    text.push(next);
                }
                // Elsewhere it is a character like others; it is there already if escapes are kept.
                Some(_) if keep_escapes => text.extend(self.next()),
                Some(_) => text.push(c),
            }
        }
    }

    /// What stands for a variable; we are at its dollar.
    fn dollar(&mut self, keep_escapes: bool, depth: usize) -> Result<String, Error> {
        if depth >= MAX_DEPTH {
            return Err(Error::Depth);
        }
        let start = self.at;
        self.at += 1;
        if self.peek() == Some('{') {
            self.at += 1;
            return self.braces(start, keep_escapes, depth + 1);
        }
        let name = self.name();
        Ok(match self.look_up(&name) {
            _ if name.is_empty() => "$".to_owned(),
            Some(value) => value,
            None if self.how.keep_unset => format!("${name}"),
            None => String::new(),
        })
    }

    fn look_up(&mut self, name: &str) -> Option<String> {
        if name.is_empty() {
            return None;
        }
        let value = self.how.values.value(name).map(str::to_owned);
        let names = if value.is_some() { &mut self.used } else { &mut self.missing };
        names.insert(name.to_owned());
        value
    }

    /// A name: letters, digits and `_`; digits only; or one of the shell's own marks.
    fn name(&mut self) -> String {
        let rest = &self.chars[self.at..];
        let length = match rest.first() {
            Some(c) if c.is_numeric() => rest.iter().take_while(|c| c.is_numeric()).count(),
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => 1,
            _ => rest.iter().take_while(|c| c.is_alphanumeric() || **c == '_').count(),
        };
        let name = rest[..length].iter().collect();
        self.at += length;
        name
    }

    /// The rest of `${…}`.
    fn braces(&mut self, start: usize, keep_escapes: bool, depth: usize) -> Result<String, Error> {
        match self.peek() {
            None => return Err(Error::Brace),
            Some('{' | '}' | ':') => return Err(Error::Name),
            Some(_) => {}
        }
        let name = self.name();
        if name.is_empty() {
            return Err(Error::Name);
        }
        let colon = self.peek() == Some(':');
        self.at += usize::from(colon);
        let operator = self.next().ok_or(Error::Brace)?;
        let value = match operator {
            '}' if !colon => self.look_up(&name),
            '-' | '+' | '?' => {
                let word = self.until(Some('}'), keep_escapes, depth)?.text;
                return self.conditional(&name, colon, operator, &word);
            }
            '#' | '%' if !colon => {
                let pattern = self.until(Some('}'), true, depth)?.text;
                let longest = pattern.strip_prefix(operator);
                let glob = Glob::new(longest.unwrap_or(&pattern)).map_err(Error::Escape)?;
                let (prefix, longest) = (operator == '#', longest.is_some());
                self.look_up(&name).map(|value| {
                    if prefix { glob.cut_prefix(&value, longest) } else { glob.cut_suffix(&value, longest) }
                })
            }
            '/' if !colon => {
                let all = self.peek() == Some('/');
                self.at += usize::from(all);
                let pattern = self.until(Some('/'), true, depth).map_err(|error| match error {
                    Error::Brace => Error::Slash(name.clone()),
                    error => error,
                })?;
                let with = self.until(Some('}'), true, depth)?.text;
                let glob = Glob::new(&pattern.text).map_err(Error::Escape)?;
                match self.look_up(&name) {
                    Some(value) => Some(glob.replace(&value, &with, all, self.room).ok_or(Error::Size)?),
                    None => None,
                }
            }
            other => {
                let operator = if colon { format!(":{other}") } else { other.to_string() };
                return Err(Error::Operator { name, operator });
            }
        };
        Ok(match value {
            Some(value) => value,
            None if self.how.keep_unset => self.chars[start..self.at].iter().collect(),
            None => String::new(),
        })
    }

    fn conditional(&mut self, name: &str, colon: bool, operator: char, word: &str) -> Result<String, Error> {
        let value = self.look_up(name);
        if value.is_none() && self.how.keep_unset {
            return Ok(format!("${{{name}{}{operator}{word}}}", if colon { ":" } else { "" }));
        }
        let set = value.filter(|value| !(colon && value.is_empty()));
        match (operator, set) {
            ('-', Some(value)) | ('?', Some(value)) => Ok(value),
            ('-', None) | ('+', Some(_)) => Ok(word.to_owned()),
            ('+', None) => Ok(String::new()),
            _ => {
                let own = if colon { "it must be set and not empty" } else { "it must be set" };
                let message = if word.is_empty() { own } else { word };
                Err(Error::Required { name: name.to_owned(), message: message.to_owned() })
            }
        }
    }
}

#[cfg(test)]
mod tests;
