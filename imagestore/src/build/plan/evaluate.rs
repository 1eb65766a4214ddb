//! One stage, instruction by instruction: what each comes to when everything before it has been done.
//!
//! Nothing is run. Each instruction sees one snapshot of the variables: what it sets counts for the next one. An ARG is
//! the exception, as Docker has it: its later declarations see the earlier ones.

use std::sync::Arc;

use crate::{
    Platform,
    build::{
        check::{self, Finding, Rule},
        diagnostic::Diagnostic,
        dockerfile::{
            self, Command, CommandLine, Instruction, RunSource, Text,
            expand::{Expanded, Expander, Quotes},
            mount::clean,
        },
    },
};

use super::{
    Config, Directory, Origin, Plan, Run, Script, StageId, Step, Work,
    environment::{Arguments, MAX_VARIABLES, Visible},
    graph, history, transfer,
};

mod metadata;

type Failure = Box<Diagnostic>;

/// What shells are found with where an image does not say.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Where a heredoc that is a script is mounted.
const SCRIPTS: &str = "/dev/pipes";

/// What a stage stands on, known.
#[derive(Clone, Debug, PartialEq)]
pub struct Foundation {
    /// The configuration to begin with; its triggers are carried out first.
    pub config: Config,
    /// What the base was made for.
    pub platform: Platform,
    /// `author` of the base's document.
    pub author: String,
    /// Whether the configuration is what it really is: without it, checks keep quiet about its variables.
    pub known: bool,
    arguments: Arguments,
    directory_set: bool,
}

impl Foundation {
    /// Nothing: `FROM scratch`.
    pub fn scratch(platform: &Platform) -> Foundation {
        let config = Config { working_dir: "/".to_owned(), ..Config::default() };
        Foundation::image(config, platform.clone(), String::new())
    }

    /// An image.
    pub fn image(config: Config, platform: Platform, author: String) -> Foundation {
        let arguments = Arguments::default();
        Foundation { config, platform, author, known: true, arguments, directory_set: false }
    }

    /// An image that nobody has looked at: for checks.
    pub fn unknown(platform: &Platform) -> Foundation {
        Foundation { known: false, ..Foundation::scratch(platform) }
    }

    /// A stage of the same file. Its triggers are this stage's to carry out, and its arguments stay in effect.
    pub fn stage(below: &Evaluated) -> Foundation {
        Foundation {
            config: below.config.clone(),
            platform: below.platform.clone(),
            author: below.author.clone(),
            known: below.known,
            arguments: below.arguments.clone(),
            directory_set: below.directory_set,
        }
    }
}

/// A stage with nothing left to find out.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluated {
    /// The stage.
    pub id: StageId,
    /// Its steps, triggers of the base first. Those of the base itself are not among them.
    pub steps: Vec<Step>,
    /// Where the steps take files from, once each: wait for the stages, pull the images.
    pub origins: Vec<Origin>,
    /// The result's configuration.
    pub config: Config,
    /// What the result is for.
    pub platform: Platform,
    /// `author` of the result's document; empty without one.
    pub author: String,
    /// What the checks have to say.
    pub findings: Vec<Finding>,
    known: bool,
    arguments: Arguments,
    directory_set: bool,
}

/// Evaluates a stage.
pub(super) fn stage(plan: &Plan, id: StageId, base: &Foundation) -> Result<Evaluated, Failure> {
    let source = &plan.dockerfile.stages[id.0];
    let mut config = base.config.clone();
    if config.variable("PATH").is_none() {
        config.env.push(PATH.to_owned());
    }
    if !config.working_dir.is_empty() {
        config.working_dir = clean("/", &config.working_dir);
    }
    let triggers = std::mem::take(&mut config.on_build);
    let mut evaluator = Evaluator {
        plan,
        id,
        config,
        author: base.author.clone(),
        arguments: base.arguments.clone(),
        directory_set: base.directory_set,
        known: base.known,
        origins: Vec::new(),
        findings: Vec::new(),
        steps: Vec::new(),
        environment: None,
        trigger: false,
        command_set: false,
        unique: check::Unique::default(),
    };
    evaluator.findings.extend(check::base_platform(plan, id, base));
    evaluator.trigger = true;
    for text in &triggers {
        let shown: String = text.lines().next().unwrap_or_default().chars().take(80).collect();
        let instruction = dockerfile::instruction(text, source.span, '\\').map_err(|mistake| {
            let message = format!("the base's trigger {shown:?}: {}", mistake.message);
            plan.dockerfile.text.diagnostic(source.span, message, mistake.help)
        })?;
        evaluator.instruction(&instruction).map_err(|mut failure| {
            failure.message = format!("the base's trigger {shown:?}: {}", failure.message);
            failure
        })?;
    }
    evaluator.trigger = false;
    for instruction in &source.instructions {
        evaluator.instruction(instruction)?;
    }
    let mut config = evaluator.config;
    if id == plan.target {
        config.labels.extend(plan.options.labels.clone());
    }
    Ok(Evaluated {
        id,
        steps: evaluator.steps,
        origins: evaluator.origins,
        config,
        platform: plan.stages[id.0].platform.clone(),
        author: evaluator.author,
        findings: evaluator.findings,
        known: evaluator.known,
        arguments: evaluator.arguments,
        directory_set: evaluator.directory_set,
    })
}

pub(super) struct Evaluator<'p> {
    pub(super) plan: &'p Plan,
    pub(super) id: StageId,
    pub(super) config: Config,
    author: String,
    arguments: Arguments,
    directory_set: bool,
    known: bool,
    origins: Vec<Origin>,
    findings: Vec<Finding>,
    steps: Vec<Step>,
    /// What processes get, until a variable changes.
    environment: Option<Arc<Vec<String>>>,
    trigger: bool,
    /// Whether this stage has a CMD: then an ENTRYPOINT leaves it.
    command_set: bool,
    unique: check::Unique,
}

impl Evaluator<'_> {
    pub(super) fn text(&self) -> &Text {
        &self.plan.dockerfile.text
    }

    fn visible(&self) -> Visible<'_> {
        Visible { config: &self.config, arguments: &self.arguments }
    }

    fn expander<'v>(&self, values: &'v Visible<'v>) -> Expander<'v> {
        Expander {
            escape: self.plan.dockerfile.escape,
            quotes: Quotes::Remove,
            keep_escapes: false,
            keep_unset: false,
            values,
        }
    }

    /// A finding of this instruction, if it is wanted. Nobody can mend a trigger of somebody else's image here.
    pub(super) fn find(
        &mut self,
        rule: Rule,
        instruction: &Instruction,
        part: &str,
        message: String,
        help: String,
    ) {
        let wanted = self.plan.dockerfile.check.with_comments(&instruction.comments).wants(rule);
        if wanted && !self.trigger {
            let place = self.text().point(instruction.span, part);
            let diagnostic = *self.text().diagnostic(place, message, help);
            let finding = Finding { rule, diagnostic };
            if !self.findings.contains(&finding) {
                self.findings.push(finding);
            }
        }
    }

    fn undefined(&mut self, instruction: &Instruction, expanded: &Expanded) {
        for name in &expanded.missing {
            if self.arguments.is_declared(name) {
                continue;
            }
            let known = self.visible().config.env.iter().filter_map(|pair| pair.split('=').next());
            let known: Vec<&str> = known.chain(self.arguments.names()).collect();
            let globals = &self.plan.globals;
            if let Some(help) = check::undefined(name, &known, globals, self.known) {
                let message = format!("${name} is not set here, and stands for nothing");
                let written = if instruction.source.contains(&format!("${{{name}")) { "${" } else { "$" };
                self.find(Rule::UndefinedVar, instruction, &format!("{written}{name}"), message, help);
            }
        }
    }

    fn expanded(&mut self, instruction: &Instruction, word: &str, how: Quotes) -> Result<Expanded, Failure> {
        let visible = self.visible();
        let mut expander = self.expander(&visible);
        expander.quotes = how;
        if how == Quotes::Ignore {
            // A document is read by Docker's own rules, whatever the file's escape character.
            expander.escape = '\\';
        }
        let expanded = expander
            .expand(word)
            .map_err(|error| graph::not_expanded(self.text(), instruction.span, &error))?;
        self.undefined(instruction, &expanded);
        Ok(expanded)
    }

    /// Puts variables into one word.
    pub(super) fn word(&mut self, instruction: &Instruction, word: &str) -> Result<String, Failure> {
        Ok(self.expanded(instruction, word, Quotes::Remove)?.text)
    }

    /// Puts variables into a document.
    pub(super) fn document(&mut self, instruction: &Instruction, text: &str) -> Result<String, Failure> {
        Ok(self.expanded(instruction, text, Quotes::Ignore)?.text)
    }

    pub(super) fn failure(
        &self,
        instruction: &Instruction,
        part: &str,
        message: impl Into<String>,
        help: impl Into<Option<String>>,
    ) -> Failure {
        self.text().diagnostic(self.text().point(instruction.span, part), message, help)
    }

    /// Where a `--from` leads; noted for who waits for it.
    pub(super) fn origin(&mut self, instruction: &Instruction, name: &str) -> Result<Origin, Failure> {
        let origin = graph::origin(self.plan, self.id, name)
            .map_err(|(message, help)| self.failure(instruction, &format!("from={name}"), message, help))?;
        if !self.origins.contains(&origin) && !matches!(origin, Origin::Context | Origin::Scratch) {
            self.origins.push(origin.clone());
        }
        Ok(origin)
    }

    fn push(&mut self, instruction: &Instruction, history: String, work: Work) {
        let title = self.title(instruction);
        self.steps.push(Step { span: instruction.span, trigger: self.trigger, title, history, work });
    }

    /// The instruction in one line, with the variables that are set put in.
    fn title(&self, instruction: &Instruction) -> String {
        let visible = self.visible();
        let mut expander = self.expander(&visible);
        (expander.quotes, expander.keep_unset) = (Quotes::Keep, true);
        let shown = expander.expand(&instruction.source).map(|expanded| expanded.text);
        let shown = shown.unwrap_or_else(|_| instruction.source.clone());
        let mut words: Vec<String> = shown.split_whitespace().skip(1).map(str::to_owned).collect();
        if matches!(instruction.command, Command::Add(_)) {
            words.iter_mut().for_each(|word| *word = transfer::without_password(word));
        }
        let mut title = format!("{} {}", instruction.keyword.to_ascii_uppercase(), words.join(" "));
        if let Command::Run(RunSource { heredocs, .. }) = &instruction.command
            && let [document] = heredocs.as_slice()
        {
            let mut lines = document.content.lines().map(str::trim).filter(|line| !line.is_empty());
            let first = lines.next().unwrap_or_default();
            let more = if lines.next().is_some() { "…" } else { "" };
            title.push_str(&format!(" ({first}{more})"));
        }
        title
    }

    fn instruction(&mut self, instruction: &Instruction) -> Result<(), Failure> {
        match &instruction.command {
            Command::Run(run) => self.run(instruction, run)?,
            Command::Copy(transfer) | Command::Add(transfer) => {
                let add = matches!(instruction.command, Command::Add(_));
                let (copy, history) = self.transfer(instruction, transfer, add)?;
                self.push(instruction, history, Work::Copy(Box::new(copy)));
            }
            Command::Workdir(path) => self.workdir(instruction, path)?,
            _ => {
                let history = self.metadata(instruction)?;
                self.push(instruction, history, Work::Metadata);
            }
        }
        if self.visible().size() > MAX_VARIABLES {
            let message = format!("the variables come to more than {} KiB here", MAX_VARIABLES >> 10);
            return Err(self.failure(instruction, "", message, "no process could be given them".to_owned()));
        }
        Ok(())
    }

    fn run(&mut self, instruction: &Instruction, run: &RunSource) -> Result<(), Failure> {
        let mut script = None;
        let arguments = match &run.command {
            CommandLine::Exec(list) => list.clone(),
            CommandLine::Shell(text) => match run.heredocs.as_slice() {
                [] => self.config.in_shell(text),
                // The document is all there is to run.
                [document] if dockerfile::is_document(text) => {
                    let content = document.text();
                    if content.starts_with("#!") {
                        let path = format!("{SCRIPTS}/{}", document.name.replace('/', "_"));
                        script = Some(Script { path: path.clone(), content });
                        vec![path]
                    } else {
                        self.config.in_shell(&content)
                    }
                }
                documents => {
                    let mut text = text.clone();
                    for document in documents {
                        text = format!("{text}\n{}{}", document.content, document.name);
                    }
                    self.config.in_shell(&text)
                }
            },
        };
        let directory = self.directory();
        let mut mounts = Vec::with_capacity(run.mounts.len());
        for mount in &run.mounts {
            let from = mount.from().map(|name| self.origin(instruction, name)).transpose()?;
            let mut failed = None;
            let resolved = mount.resolve(from, &directory, &mut |word| {
                self.word(instruction, word).map_err(|failure| {
                    let message = failure.message.clone();
                    failed = Some(failure);
                    message
                })
            });
            match (resolved, failed) {
                (Ok(mount), _) => mounts.push(mount),
                (Err(_), Some(failure)) => return Err(failure),
                (Err(message), None) => return Err(self.failure(instruction, "--mount", message, None)),
            }
        }
        let history = history::run(&self.visible().told(), &arguments);
        let environment = match &self.environment {
            Some(environment) => environment.clone(),
            None => self.visible().process(),
        };
        self.environment = Some(environment.clone());
        let work = Run {
            arguments,
            script,
            environment,
            proxies: self.visible().proxies(&self.plan.options.build_args),
            directory,
            user: self.config.user.clone(),
            mounts,
            network: run.network,
            insecure: run.insecure,
        };
        self.push(instruction, history, Work::Run(Box::new(work)));
        Ok(())
    }

    /// Where commands run and relative paths begin.
    pub(super) fn directory(&self) -> String {
        clean("/", &self.config.working_dir)
    }

    fn workdir(&mut self, instruction: &Instruction, written: &str) -> Result<(), Failure> {
        let given = self.word(instruction, written)?;
        if !self.directory_set && !given.starts_with('/') {
            let message = format!("{given:?} begins wherever the base image happens to be");
            let help = format!("write an absolute path first: WORKDIR /{}", given.trim_start_matches("./"));
            self.find(Rule::WorkdirRelativePath, instruction, written, message, help);
        }
        self.directory_set = true;
        let path = clean(&self.config.working_dir, &given);
        self.config.working_dir.clone_from(&path);
        let history = format!("WORKDIR {path}");
        let work = match path.as_str() {
            "/" => Work::Metadata,
            _ => Work::Directory(Directory { path, user: self.config.user.clone() }),
        };
        self.push(instruction, history, work);
        Ok(())
    }
}
