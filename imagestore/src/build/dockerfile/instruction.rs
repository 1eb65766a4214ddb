//! From lines to typed instructions.
//!
//! One function for each instruction; what they share is cutting a line into its name, its flags and the rest.

use std::{ops::Range, sync::Arc};

use crate::build::plan::Network;

use super::{
    ArgDeclaration, CheckOptions, Command, CommandLine, Diagnostic, Dockerfile, HealthcheckSource, Heredoc,
    Instruction, MAX_INSTRUCTIONS, MAX_SIZE, RunSource, SourceText, Span, StageSource, Text, Transfer,
    directive,
    flag::{self, Flags},
    heredoc,
    line::{Logical, Next, Reader},
    mount::MountText,
    pairs::{pairs, words},
    suggest::nearest,
};

mod healthcheck;

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

/// One instruction, about to be typed.
struct Typed<'l> {
    line: &'l Logical,
    escape: char,
    name: &'static str,
    rest: usize,
}

impl Typed<'_> {
    fn rest(&self) -> &str {
        self.line.text[self.rest..].trim()
    }

    fn mistake(&self, message: impl Into<String>, help: impl Into<String>) -> Mistake {
        let end = self.line.text.trim_end().len();
        let span = if self.rest < end { self.line.span(self.rest..end) } else { self.line.whole() };
        Mistake::new(span, message, help)
    }

    /// The whole rest as one argument.
    fn one(&self, help: &str) -> Result<String, Mistake> {
        match self.rest() {
            "" => Err(self.mistake(format!("{} needs an argument", self.name), help)),
            rest => Ok(rest.to_owned()),
        }
    }

    /// Words parted by blanks, or a JSON array; at least one.
    fn several(&self, help: &str) -> Result<Vec<String>, Mistake> {
        let words = match strings(self.line, self.rest)? {
            Some(words) if self.name == "VOLUME" => words,
            _ => self.rest().split_whitespace().map(str::to_owned).collect(),
        };
        match words.is_empty() {
            true => Err(self.mistake(format!("{} needs an argument", self.name), help)),
            false => Ok(words),
        }
    }

    fn command_line(&self) -> Result<CommandLine, Mistake> {
        Ok(match strings(self.line, self.rest)? {
            Some(list) => CommandLine::Exec(list),
            None => CommandLine::Shell(self.rest().to_owned()),
        })
    }

    fn command(&self, head: Head, documents: Vec<Heredoc>) -> Result<Command, Mistake> {
        match self.name {
            "RUN" => return self.run(head.flags, documents),
            "COPY" | "ADD" => return self.transfer(head.flags, documents),
            "HEALTHCHECK" => return self.healthcheck(head.flags).map(Command::Healthcheck),
            _ => {}
        }
        Flags::new(self.line, self.name, head.flags, &[], &[])?;
        Ok(match self.name {
            "ARG" => Command::Arg(self.arg()?),
            "CMD" => Command::Cmd(self.command_line()?),
            "ENTRYPOINT" => Command::Entrypoint(self.command_line()?),
            "ENV" | "LABEL" => {
                if self.rest().is_empty() {
                    return Err(self.mistake(format!("{} needs an argument", self.name), "write NAME=VALUE"));
                }
                let pairs =
                    pairs(self.rest(), self.escape).map_err(|(message, help)| self.mistake(message, help))?;
                if self.name == "ENV" { Command::Env(pairs) } else { Command::Label(pairs) }
            }
            "EXPOSE" => Command::Expose(self.several("write EXPOSE 80, EXPOSE 53/udp")?),
            "MAINTAINER" => {
                Command::Maintainer(self.one("write LABEL org.opencontainers.image.authors=NAME instead")?)
            }
            "ONBUILD" => self.onbuild(head.trigger, documents)?,
            "SHELL" => match strings(self.line, self.rest)? {
                Some(shell) if !shell.is_empty() => Command::Shell(shell),
                _ => {
                    return Err(
                        self.mistake("SHELL takes a JSON array", "write SHELL [\"/bin/bash\", \"-c\"]")
                    );
                }
            },
            "STOPSIGNAL" => Command::StopSignal(self.one("write STOPSIGNAL SIGTERM")?),
            "USER" => Command::User(self.one("write USER name, or USER 1000:1000")?),
            "VOLUME" => {
                let volumes = self.several("write VOLUME /path")?;
                if volumes.iter().any(|volume| volume.trim().is_empty()) {
                    return Err(self.mistake("a volume has no path", "leave the empty text out"));
                }
                Command::Volume(volumes)
            }
            _ => Command::Workdir(self.one("write WORKDIR /path")?),
        })
    }

    fn arg(&self) -> Result<Vec<ArgDeclaration>, Mistake> {
        let words = words(self.rest(), self.escape);
        if words.is_empty() {
            return Err(self.mistake("ARG needs a name", "write ARG NAME, or ARG NAME=DEFAULT"));
        }
        let declaration = |word: String| match word.split_once('=') {
            Some(("", _)) => Err(self.mistake(format!("{word:?} has no name"), "write ARG NAME=DEFAULT")),
            Some((name, default)) => {
                Ok(ArgDeclaration { name: name.to_owned(), default: Some(default.to_owned()) })
            }
            None => Ok(ArgDeclaration { name: word, default: None }),
        };
        words.into_iter().map(declaration).collect()
    }

    fn onbuild(&self, trigger: Option<Box<Head>>, documents: Vec<Heredoc>) -> Result<Command, Mistake> {
        let Some(trigger) = trigger else {
            return Err(self.mistake("ONBUILD needs an instruction", "write ONBUILD RUN command"));
        };
        let mut text = self.line.text[trigger.keyword.start..].trim().to_owned();
        for document in &documents {
            text = format!("{text}\n{}{}", document.content, document.name);
        }
        finish(self.line, *trigger, documents, self.escape)?;
        Ok(Command::Onbuild(text))
    }

    fn run(&self, flags: Vec<flag::Flag>, heredocs: Vec<Heredoc>) -> Result<Command, Mistake> {
        let flags = Flags::new(self.line, "RUN", flags, &["network", "security"], &["mount"])?;
        let command = self.command_line()?;
        match &command {
            CommandLine::Shell(text) if text.is_empty() => {
                return Err(self.mistake("RUN has no command", "write RUN command"));
            }
            CommandLine::Exec(list) if list.is_empty() => {
                return Err(self.mistake("RUN has no command", "write RUN [\"program\", \"argument\"]"));
            }
            _ => {}
        }
        let network = match flags.text("network")?.as_deref() {
            None | Some("default") => Network::Default,
            Some("none") => Network::None,
            Some("host") => Network::Host,
            Some(other) => {
                let message = format!("there is no network {other:?}");
                return Err(Mistake::new(flags.span("network"), message, "it is default, none or host"));
            }
        };
        let insecure = match flags.text("security")?.as_deref() {
            None | Some("sandbox") => false,
            Some("insecure") => true,
            Some(other) => {
                let message = format!("there is no security {other:?}");
                return Err(Mistake::new(flags.span("security"), message, "it is sandbox or insecure"));
            }
        };
        let mounts = flags.all("mount")?;
        let mounts = mounts.iter().map(|text| MountText::parse(text, flags.span("mount")));
        Ok(Command::Run(RunSource {
            command,
            heredocs,
            mounts: mounts.collect::<Result<_, _>>()?,
            network,
            insecure,
        }))
    }

    fn transfer(&self, flags: Vec<flag::Flag>, mut documents: Vec<Heredoc>) -> Result<Command, Mistake> {
        let add = self.name == "ADD";
        let own: &[&str] = if add {
            &["chown", "chmod", "link", "checksum", "unpack", "keep-git-dir"]
        } else {
            &["chown", "chmod", "link", "from", "parents"]
        };
        let flags = Flags::new(self.line, self.name, flags, own, &["exclude"])?;
        let mut words = match strings(self.line, self.rest)? {
            Some(list) => list,
            // Blanks may stand between << and a name.
            None => join_marks(self.rest().split_whitespace().map(str::to_owned).collect()),
        };
        if words.len() < 2 {
            let what = if words.is_empty() { "no source and no destination" } else { "no destination" };
            return Err(self.mistake(
                format!("{} has {what}", self.name),
                format!("write {} source destination", self.name),
            ));
        }
        let destination = words.pop().unwrap_or_default();
        if heredoc::heredoc(&destination).is_some() {
            return Err(self.mistake(
                format!("{} has a document for its destination", self.name),
                "the destination is a path, and comes last",
            ));
        }
        let sources = words.into_iter().map(|word| match heredoc::heredoc(&word) {
            Some(found) => match documents.iter().position(|document| document.name == found.name) {
                Some(at) => SourceText::Inline(documents.remove(at)),
                None => SourceText::Path(word),
            },
            None => SourceText::Path(word),
        });
        let sources = sources.collect();
        let from = flags.text("from")?;
        if from.as_ref().is_some_and(|from| from.contains('$')) {
            return Err(Mistake::new(
                flags.span("from"),
                "--from takes no variables",
                "give the image a stage of its own, FROM $… AS name, and write --from=name",
            ));
        }
        let transfer = Transfer {
            sources,
            destination,
            from: from.filter(|from| !from.is_empty()),
            owner: flags.text("chown")?,
            mode: flags.text("chmod")?,
            checksum: flags.text("checksum")?,
            exclude: flags.all("exclude")?,
            parents: flags.boolean("parents")?.unwrap_or(false),
            link: flags.boolean("link")?.unwrap_or(false),
            unpack: flags.boolean("unpack")?,
            keep_git_dir: flags.boolean("keep-git-dir")?,
        };
        Ok(if add { Command::Add(transfer) } else { Command::Copy(transfer) })
    }
}

/// `<<` and the name that blanks part from it are one word.
fn join_marks(words: Vec<String>) -> Vec<String> {
    let mut joined: Vec<String> = Vec::with_capacity(words.len());
    for word in words {
        match joined.last_mut() {
            Some(mark) if matches!(mark.trim_start_matches(|c: char| c.is_ascii_digit()), "<<" | "<<-") => {
                mark.push_str(&word);
            }
            _ => joined.push(word),
        }
    }
    joined
}
