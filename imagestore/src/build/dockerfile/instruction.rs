//! From lines to typed instructions.
//!
//! A line is cut into its name, its flags and the rest here; what the rest is, is each instruction's own (see `typed`).

use std::{ops::Range, sync::Arc};

use super::{
    CheckOptions, Diagnostic, Dockerfile, Heredoc, Instruction, MAX_INSTRUCTIONS, MAX_SIZE, Span,
    StageSource, Text, directive,
    flag::{self, Flags},
    heredoc,
    line::{Logical, Next, Reader},
    suggest::nearest,
};

mod healthcheck;
mod typed;

use typed::Typed;

/// What is wrong with a line, before it is known which file it is of.
#[derive(Debug)]
pub(crate) struct Mistake {
    pub(crate) span: Span,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

impl Mistake {
    pub(super) fn new(span: Span, message: impl Into<String>, help: impl Into<String>) -> Mistake {
        Mistake { span, message: message.into(), help: Some(help.into()) }
    }
}

const NAMES: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// Reads a whole file.
pub(super) fn file(name: &str, bytes: &[u8]) -> Result<Dockerfile, Box<Diagnostic>> {
    let file: Arc<str> = name.into();
    let whole = |message: String, help: &str| {
        Box::new(Diagnostic {
            file: file.clone(),
            span: None,
            excerpt: String::new(),
            message,
            help: Some(help.to_owned()),
        })
    };
    if bytes.len() > MAX_SIZE {
        return Err(whole(format!("it has more than {} MiB", MAX_SIZE >> 20), "is this a Dockerfile?"));
    }
    let text =
        text(bytes).map_err(|line| whole(format!("line {line} is not UTF-8 text"), "save it as UTF-8"))?;
    let mut reader = Reader::new(&text);
    let text = Arc::new(Text { file: file.clone(), lines: reader.excerpts() });
    let mut parsed = Parser::default();
    parsed
        .read(&mut reader)
        .map_err(|mistake| text.diagnostic(mistake.span, mistake.message, mistake.help))?;
    if parsed.stages.is_empty() {
        let message = if parsed.globals.is_empty() { "it has no instructions" } else { "it has no stage" };
        return Err(whole(message.to_owned(), "begin with FROM image"));
    }
    Ok(Dockerfile {
        text,
        escape: reader.escape,
        check: parsed.check,
        globals: parsed.globals,
        stages: parsed.stages,
        empty_continuations: parsed.empty_continuations,
    })
}

/// The text; comments may be in any encoding. The error is a line's number.
fn text(bytes: &[u8]) -> Result<String, usize> {
    let mut text = String::with_capacity(bytes.len());
    for (number, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        match std::str::from_utf8(line) {
            Ok(line) if !line.contains('\0') => text.push_str(line),
            _ if line.trim_ascii_start().starts_with(b"#") => {
                text.push_str(&String::from_utf8_lossy(line).replace('\0', " "));
            }
            _ => return Err(number + 1),
        }
    }
    Ok(text)
}

#[derive(Default)]
struct Parser {
    check: CheckOptions,
    seen: Vec<String>,
    globals: Vec<Instruction>,
    stages: Vec<StageSource>,
    empty_continuations: Vec<Span>,
    count: usize,
}

impl Parser {
    fn read(&mut self, reader: &mut Reader<'_>) -> Result<(), Mistake> {
        loop {
            match reader.next() {
                Next::End => return Ok(()),
                Next::Directive(line, key, value) => self.directive(reader, line, key, &value)?,
                Next::Instruction(line) => {
                    self.count += 1;
                    if self.count > MAX_INSTRUCTIONS {
                        let message = format!("there are more than {MAX_INSTRUCTIONS} instructions");
                        return Err(Mistake::new(line.whole(), message, "split the file in two"));
                    }
                    self.instruction(line, reader)?;
                }
            }
        }
    }

    fn directive(
        &mut self,
        reader: &mut Reader<'_>,
        line: u32,
        key: String,
        value: &str,
    ) -> Result<(), Mistake> {
        let span = Span::lines(line, line);
        if self.seen.contains(&key) {
            return Err(Mistake::new(
                span,
                format!("there are two {key} directives"),
                "leave one of them out",
            ));
        }
        match key.as_str() {
            "syntax" if !directive::is_own_syntax(value) => {
                return Err(Mistake::new(
                    span,
                    format!("there is no frontend {value} here; only Docker's own language is built in"),
                    "write # syntax=docker/dockerfile:1, or leave the line out",
                ));
            }
            "escape" => match value {
                "\\" | "`" => reader.escape = value.chars().next().unwrap_or('\\'),
                _ => {
                    let message = format!("{value:?} cannot be the escape character");
                    return Err(Mistake::new(span, message, "it is \\ or `"));
                }
            },
            "check" => {
                self.check = CheckOptions::parse(value)
                    .map_err(|(message, help)| Mistake::new(span, message, help))?;
            }
            _ => {}
        }
        self.seen.push(key);
        Ok(())
    }

    fn instruction(&mut self, mut line: Logical, reader: &mut Reader<'_>) -> Result<(), Mistake> {
        let head = Head::of(&line, reader.escape).map_err(|mistake| self.forgotten_continuation(mistake))?;
        let documents = head.documents(&mut line, reader)?;
        if let Some(empty) = line.empty_line {
            self.empty_continuations.push(Span { line: empty, last: empty, ..Span::default() });
        }
        if head.name == "FROM" {
            self.stages.push(from(&line, head)?);
            return Ok(());
        }
        if self.stages.is_empty() && head.name != "ARG" {
            return Err(Mistake::new(
                line.span(head.keyword.clone()),
                format!("{} stands before the first FROM", head.name),
                "begin with FROM image; only ARG may stand before it",
            ));
        }
        let instruction = finish(&line, head, documents, reader.escape)?;
        match self.stages.last_mut() {
            Some(stage) => stage.instructions.push(instruction),
            None => self.globals.push(instruction),
        }
        Ok(())
    }

    /// A word that is no instruction may be the rest of the line above.
    fn forgotten_continuation(&self, mut mistake: Mistake) -> Mistake {
        let last = self.stages.last().and_then(|stage| stage.instructions.last());
        if mistake.help.is_none() && last.is_some_and(|last| last.span.last + 1 == mistake.span.line) {
            mistake.help = Some("if it belongs to the line above, end that one with \\".to_owned());
        }
        mistake
    }
}

/// Reads an instruction that stands in no file: a trigger of an image, or a change of a commit.
pub(crate) fn instruction(text: &str, at: Span, escape: char) -> Result<Instruction, Mistake> {
    let elsewhere = |mistake: Mistake| Mistake { span: at, ..mistake };
    let mut reader = Reader::new(text);
    reader.escape = escape;
    let Next::Instruction(found) = reader.next() else {
        return Err(Mistake::new(at, "there is no instruction in it", "write an instruction"));
    };
    let mut line = Logical::single(&found.text, at);
    let head = Head::of(&line, escape).map_err(elsewhere)?;
    let documents = head.documents(&mut line, &mut reader).map_err(elsewhere)?;
    if !matches!(reader.next(), Next::End) {
        return Err(Mistake::new(at, "there is more than one instruction in it", "write one"));
    }
    if head.name == "FROM" {
        return Err(Mistake::new(at, "FROM begins a stage", "leave it out"));
    }
    let mut instruction = finish(&line, head, documents, escape).map_err(elsewhere)?;
    instruction.span = at;
    Ok(instruction)
}

/// A line cut into its parts.
struct Head {
    /// In upper case.
    name: &'static str,
    keyword: Range<usize>,
    flags: Vec<flag::Flag>,
    /// Where the arguments begin.
    rest: usize,
    /// Of ONBUILD: the trigger.
    trigger: Option<Box<Head>>,
}

impl Head {
    fn of(line: &Logical, escape: char) -> Result<Head, Mistake> {
        Head::at(line, 0, escape)
    }

    fn at(line: &Logical, start: usize, escape: char) -> Result<Head, Mistake> {
        let text = &line.text;
        let end = text[start..].find(char::is_whitespace).map_or(text.len(), |at| start + at);
        let written = &text[start..end];
        let upper = written.to_ascii_uppercase();
        let Some(name) = NAMES.into_iter().find(|name| *name == upper) else {
            let shown: String = written.chars().take(40).collect();
            return Err(Mistake {
                span: line.span(start..end),
                message: format!("there is no instruction {shown}"),
                help: nearest(&upper, NAMES).map(|meant| format!("did you mean {meant}?")),
            });
        };
        let (flags, rest) = flag::cut(text, end, escape);
        let mut head = Head { name, keyword: start..end, flags, rest, trigger: None };
        if name == "ONBUILD" && rest < text.trim_end().len() {
            let trigger = Head::at(line, rest, escape)?;
            let span = line.span(trigger.keyword.clone());
            if matches!(trigger.name, "ONBUILD" | "FROM" | "MAINTAINER") {
                let message = format!("{} cannot be a trigger", trigger.name);
                return Err(Mistake::new(span, message, "ONBUILD takes any other instruction"));
            }
            head.trigger = Some(Box::new(trigger));
        }
        Ok(head)
    }

    /// Reads the documents that the line names.
    fn documents(&self, line: &mut Logical, reader: &mut Reader<'_>) -> Result<Vec<Heredoc>, Mistake> {
        let own = self.trigger.as_deref().unwrap_or(self);
        let takes = matches!(own.name, "RUN" | "COPY" | "ADD");
        if !takes || json(&line.text[own.rest..]).is_some() {
            return Ok(Vec::new());
        }
        let mut documents = heredoc::named(&line.text[own.rest..]);
        for document in &mut documents {
            let Some((content, last)) = reader.document(&document.name, document.strip_tabs) else {
                let at = line.text.find(&document.name).unwrap_or(0);
                return Err(Mistake::new(
                    line.span(at..at + document.name.len()),
                    format!("the document {} has no end", document.name),
                    format!("end it with a line {} and nothing else on it", document.name),
                ));
            };
            document.content = content;
            line.last = line.last.max(last);
        }
        Ok(documents)
    }
}

/// A JSON array; `None` if it is something else.
fn json(text: &str) -> Option<Vec<serde_json::Value>> {
    let text = text.trim();
    text.starts_with('[').then(|| serde_json::from_str(text).ok()).flatten()
}

/// The texts of a JSON array, `None` if it is none, a mistake if not all of it are texts.
fn strings(line: &Logical, rest: usize) -> Result<Option<Vec<String>>, Mistake> {
    let Some(values) = json(&line.text[rest..]) else { return Ok(None) };
    let texts = values.into_iter().map(|value| match value {
        serde_json::Value::String(text) => Ok(text),
        other => Err(Mistake::new(
            line.span(rest..line.text.len()),
            format!("{other} in the array is no text"),
            "put it in double quotes",
        )),
    });
    texts.collect::<Result<_, _>>().map(Some)
}

fn finish(line: &Logical, head: Head, documents: Vec<Heredoc>, escape: char) -> Result<Instruction, Mistake> {
    let keyword = line.text[head.keyword.clone()].to_owned();
    let command = Typed { line, escape, name: head.name, rest: head.rest }.command(head, documents)?;
    Ok(Instruction {
        span: line.whole(),
        keyword,
        source: line.text.trim().to_owned(),
        comments: line.comments.clone(),
        command,
    })
}

fn from(line: &Logical, head: Head) -> Result<StageSource, Mistake> {
    let flags = Flags::new(line, "FROM", head.flags, &["platform"], &[])?;
    let rest = &line.text[head.rest..];
    let words: Vec<&str> = rest.split_whitespace().collect();
    let alias = match words.as_slice() {
        [_] => None,
        [_, word, name] if word.eq_ignore_ascii_case("as") => {
            let lower = name.to_lowercase();
            let valid = lower.starts_with(|c: char| c.is_ascii_lowercase())
                && lower.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '-' | '_' | '.'));
            if !valid {
                let at = line.text.rfind(name).unwrap_or(0);
                return Err(Mistake::new(
                    line.span(at..at + name.len()),
                    format!("{name:?} cannot be a stage's name"),
                    "a name begins with a letter and has letters, digits, - _ and . only",
                ));
            }
            Some(((*word).to_owned(), (*name).to_owned()))
        }
        [] => {
            return Err(Mistake::new(line.whole(), "FROM has no image", "write FROM image, or FROM scratch"));
        }
        _ => {
            return Err(Mistake::new(
                line.span(head.rest..line.text.len()),
                "FROM takes an image, or an image, AS and a name",
                "write FROM image AS name",
            ));
        }
    };
    Ok(StageSource {
        span: line.whole(),
        keyword: line.text[head.keyword].to_owned(),
        comments: line.comments.clone(),
        base: words[0].to_owned(),
        platform: flags.text("platform")?,
        alias,
        instructions: Vec::new(),
    })
}
