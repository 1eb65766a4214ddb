//! The instructions that change nothing but the image's configuration.

use crate::build::{
    check::{self, Rule},
    dockerfile::{self, Command, CommandLine, HealthcheckSource, Instruction, Pair, expand::Quotes},
};

use super::super::{Healthcheck, history, port, signal};
use super::{Evaluator, Failure};

impl Evaluator<'_> {
    /// Changes the configuration; gives the entry of the history.
    pub(super) fn metadata(&mut self, instruction: &Instruction) -> Result<String, Failure> {
        Ok(match &instruction.command {
            Command::Arg(_) => self.arg(instruction)?,
            Command::Env(pairs) => {
                let pairs = self.pairs(instruction, "ENV", pairs)?;
                self.environment = None;
                for (name, value) in &pairs {
                    self.config.set_variable(name, value);
                }
                told("ENV", &pairs)
            }
            Command::Label(pairs) => {
                let pairs = self.pairs(instruction, "LABEL", pairs)?;
                let entry = told("LABEL", &pairs);
                self.config.labels.extend(pairs);
                entry
            }
            Command::Cmd(command) => {
                self.once(instruction, "CMD");
                let arguments = self.command_line(instruction, "CMD", command);
                let entry = format!("CMD {}", history::quoted(&arguments));
                self.config.cmd = Some(arguments);
                self.config.args_escaped = true;
                self.command_set = true;
                entry
            }
            Command::Entrypoint(command) => {
                self.once(instruction, "ENTRYPOINT");
                let arguments = self.command_line(instruction, "ENTRYPOINT", command);
                let entry = format!("ENTRYPOINT {}", history::quoted(&arguments));
                self.config.entrypoint = Some(arguments).filter(|arguments| !arguments.is_empty());
                if !self.command_set {
                    self.config.cmd = None;
                }
                entry
            }
            Command::Expose(words) => self.expose(instruction, words)?,
            Command::Healthcheck(source) => {
                self.once(instruction, "HEALTHCHECK");
                let check = healthcheck(source);
                let entry = history::healthcheck(&check);
                self.config.healthcheck = Some(check);
                entry
            }
            Command::Maintainer(name) => {
                self.author.clone_from(name);
                format!("MAINTAINER {name}")
            }
            Command::Onbuild(trigger) => {
                self.config.on_build.push(trigger.clone());
                format!("ONBUILD {trigger}")
            }
            Command::Shell(shell) => {
                self.config.shell.clone_from(shell);
                format!("SHELL {}", history::bare(shell))
            }
            Command::StopSignal(written) => {
                let name = self.word(instruction, written)?;
                if !signal::is_signal(&name) {
                    let help = "write a name as SIGTERM or SIGRTMIN+3, or a number from 1 to 64".to_owned();
                    return Err(self.failure(instruction, written, format!("{name:?} is no signal"), help));
                }
                self.config.stop_signal.clone_from(&name);
                format!("STOPSIGNAL {name}")
            }
            Command::User(written) => {
                let user = self.word(instruction, written)?;
                if user.split(':').any(out_of_range) {
                    let help = "ids go from 0 to 2147483647".to_owned();
                    return Err(self.failure(
                        instruction,
                        written,
                        format!("there is no user {user:?}"),
                        help,
                    ));
                }
                self.config.user.clone_from(&user);
                format!("USER {user}")
            }
            Command::Volume(paths) => {
                let mut volumes = Vec::with_capacity(paths.len());
                for path in paths {
                    let volume = self.word(instruction, path)?;
                    if volume.is_empty() {
                        let help = "write VOLUME /path".to_owned();
                        return Err(self.failure(instruction, path, format!("{path} is empty here"), help));
                    }
                    self.config.volumes.insert(volume.clone(), Default::default());
                    volumes.push(volume);
                }
                format!("VOLUME {}", history::bare(&volumes))
            }
            Command::Run(_) | Command::Copy(_) | Command::Add(_) | Command::Workdir(_) => String::new(),
        })
    }

    fn arg(&mut self, instruction: &Instruction) -> Result<String, Failure> {
        let Command::Arg(declarations) = &instruction.command else { return Ok(String::new()) };
        self.environment = None;
        let mut told = Vec::with_capacity(declarations.len());
        for declaration in declarations {
            let name = &declaration.name;
            if check::is_secret(name) {
                self.secret(instruction, "ARG", name);
            }
            let given = self.plan.options.build_args.get(name).cloned();
            let value = match (given, &declaration.default) {
                (Some(given), _) => Some(given),
                (None, Some(default)) => Some(self.word(instruction, default)?),
                (None, None) => {
                    dockerfile::expand::Values::value(&self.plan.globals, name).map(str::to_owned)
                }
            };
            told.push(value.as_ref().map_or_else(|| name.clone(), |value| format!("{name}={value}")));
            self.arguments.declare(name, value);
        }
        Ok(format!("ARG {}", told.join(" ")))
    }

    fn secret(&mut self, instruction: &Instruction, keyword: &str, name: &str) {
        let message = format!("{keyword} {name} keeps a secret in the image for everyone to read");
        let help = format!("write RUN --mount=type=secret,id={name},env={name} where it is needed");
        self.find(Rule::SecretsUsedInArgOrEnv, instruction, name, message, help);
    }

    fn pairs(
        &mut self,
        instruction: &Instruction,
        keyword: &str,
        pairs: &[Pair],
    ) -> Result<Vec<(String, String)>, Failure> {
        let mut expanded = Vec::with_capacity(pairs.len());
        for pair in pairs {
            let name = self.word(instruction, &pair.name)?;
            let value = self.word(instruction, &pair.value)?;
            if name.is_empty() {
                let help = "write NAME=VALUE".to_owned();
                return Err(self.failure(
                    instruction,
                    &pair.name,
                    format!("{} is empty here", pair.name),
                    help,
                ));
            }
            if pair.legacy {
                let message = format!("{keyword} {} VALUE is an old form", pair.name);
                let help = format!("write {keyword} {}=VALUE", pair.name);
                self.find(Rule::LegacyKeyValueFormat, instruction, &pair.name, message, help);
            }
            if keyword == "ENV" && check::is_secret(&name) {
                self.secret(instruction, keyword, &name);
            }
            expanded.push((name, value));
        }
        Ok(expanded)
    }

    /// Only the last one of a stage counts.
    fn once(&mut self, instruction: &Instruction, keyword: &'static str) {
        if self.trigger {
            return;
        }
        if let Some(earlier) = self.unique.seen(keyword, instruction) {
            let message = format!("only the last {keyword} of a stage counts, and this is not the last");
            let help = format!("leave this {keyword} out");
            self.find(Rule::MultipleInstructionsDisallowed, &earlier, "", message, help);
        }
    }

    fn command_line(
        &mut self,
        instruction: &Instruction,
        keyword: &str,
        command: &CommandLine,
    ) -> Vec<String> {
        match command {
            CommandLine::Exec(list) => list.clone(),
            CommandLine::Shell(text) => {
                if self.config.shell.is_empty() {
                    let message = format!("{keyword} runs in a shell, which does not pass signals on");
                    let list: Vec<&str> = text.split_whitespace().collect();
                    let help = format!("write {keyword} {}", serde_json::Value::from(list));
                    self.find(Rule::JSONArgsRecommended, instruction, "", message, help);
                }
                self.config.in_shell(text)
            }
        }
    }

    fn expose(&mut self, instruction: &Instruction, words: &[String]) -> Result<String, Failure> {
        let mut words = words.to_vec();
        words.sort();
        let mut all = Vec::new();
        for written in &words {
            for word in self.expanded(instruction, written, Quotes::Remove)?.words {
                let exposed = port::expose(&word)
                    .map_err(|message| self.failure(instruction, written, message, None))?;
                if exposed.cased {
                    let message = format!("the protocol of {word} is not in lower case");
                    let help = format!("write {}", word.to_ascii_lowercase());
                    self.find(Rule::ExposeProtoCasing, instruction, written, message, help);
                }
                if exposed.mapped {
                    let message = format!("{word} maps a port of the host, and EXPOSE cannot");
                    let help = format!(
                        "write EXPOSE {}, and publish it when the container is run",
                        exposed.ports[0]
                    );
                    self.find(Rule::ExposeInvalidFormat, instruction, written, message, help);
                }
                all.extend(exposed.ports);
            }
        }
        self.config.exposed_ports.extend(all.iter().map(|port| (port.clone(), Default::default())));
        Ok(format!("EXPOSE {}", history::bare(&all)))
    }
}

fn told(keyword: &str, pairs: &[(String, String)]) -> String {
    let pairs: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    format!("{keyword} {}", pairs.join(" "))
}

/// A number that is no id of a user or group.
fn out_of_range(part: &str) -> bool {
    let digits = part.strip_prefix('-').unwrap_or(part);
    let number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    number && part.parse::<i32>().map_or(true, |id| id < 0)
}

fn healthcheck(source: &HealthcheckSource) -> Healthcheck {
    let test = match &source.command {
        None => vec!["NONE".to_owned()],
        Some(CommandLine::Exec(list)) => ["CMD".to_owned()].into_iter().chain(list.iter().cloned()).collect(),
        Some(CommandLine::Shell(text)) => vec!["CMD-SHELL".to_owned(), text.clone()],
    };
    Healthcheck {
        test,
        interval: source.interval,
        timeout: source.timeout,
        start_period: source.start_period,
        start_interval: source.start_interval,
        retries: source.retries,
    }
}
