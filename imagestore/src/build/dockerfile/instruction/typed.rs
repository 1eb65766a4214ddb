//! The rest of a line, by the instruction that it is of.

use crate::build::plan::Network;

use super::super::{
    ArgDeclaration, Command, CommandLine, Heredoc, RunSource, SourceText, Transfer,
    flag::{self, Flags},
    heredoc,
    line::Logical,
    mount::MountText,
    pairs::{pairs, words},
};
use super::{Head, Mistake, finish, strings};

/// One instruction, about to be typed.
pub(super) struct Typed<'l> {
    pub(super) line: &'l Logical,
    pub(super) escape: char,
    pub(super) name: &'static str,
    pub(super) rest: usize,
}

impl Typed<'_> {
    pub(super) fn rest(&self) -> &str {
        self.line.text[self.rest..].trim()
    }

    pub(super) fn mistake(&self, message: impl Into<String>, help: impl Into<String>) -> Mistake {
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

    pub(super) fn command(&self, head: Head, documents: Vec<Heredoc>) -> Result<Command, Mistake> {
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
