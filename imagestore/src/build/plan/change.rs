//! Instructions without a Dockerfile: the changes that a commit makes to a configuration.
//!
//! They are read and carried out as those of a stage are, so that a change means what the same line of a Dockerfile does.

use super::{Config, Foundation, Options, Plan, StageId, evaluate};
use crate::{
    Platform,
    build::{
        Span,
        dockerfile::{self, Command, Dockerfile, Instruction},
    },
};

/// Applies instructions in order. The error is the number of the one that is wrong, from 0, and why.
pub(crate) fn change(config: &Config, written: &[String]) -> Result<Config, (usize, String)> {
    let mut instructions = Vec::with_capacity(written.len());
    for (number, text) in written.iter().enumerate() {
        instructions.push(instruction(number, text).map_err(|reason| (number, reason))?);
    }
    let told = |message: &str, help: &Option<String>| match help {
        Some(help) => format!("{message}; {help}"),
        None => message.to_owned(),
    };
    let stage = Dockerfile::parse("change", b"FROM scratch\n").and_then(|mut dockerfile| {
        dockerfile.stages[0].instructions = instructions;
        let plan = Plan::new(dockerfile, Options::default())?;
        // Triggers are for whoever builds on the image, and this is no build.
        let below = Config { on_build: Vec::new(), ..config.clone() };
        evaluate::stage(&plan, StageId(0), &Foundation::image(below, Platform::default(), String::new()))
    });
    let mut changed = stage.map_err(|wrong| {
        let line = wrong.span.map_or(1, |span| span.line);
        ((line as usize).saturating_sub(1), told(&wrong.message, &wrong.help))
    })?;
    changed.config.on_build = [config.on_build.clone(), changed.config.on_build].concat();
    // What a build adds for its commands.
    let set = |config: &Config| config.variable("PATH").is_some();
    if !set(config) && !written.iter().any(|text| text.contains("PATH=")) {
        changed.config.env.retain(|pair| !pair.starts_with("PATH="));
    }
    if config.working_dir.is_empty() && changed.config.working_dir == "/" {
        changed.config.working_dir.clear();
    }
    Ok(changed.config)
}

fn instruction(number: usize, text: &str) -> Result<Instruction, String> {
    let line = u32::try_from(number + 1).unwrap_or(u32::MAX);
    let read = dockerfile::instruction(text.trim(), Span::lines(line, line), '\\');
    let read = read.map_err(|mistake| match mistake.help {
        Some(help) => format!("{}; {help}", mistake.message),
        None => mistake.message,
    })?;
    match &read.command {
        Command::Cmd(_)
        | Command::Entrypoint(_)
        | Command::Env(_)
        | Command::Expose(_)
        | Command::Healthcheck(_)
        | Command::Label(_)
        | Command::Onbuild(_)
        | Command::StopSignal(_)
        | Command::User(_)
        | Command::Volume(_)
        | Command::Workdir(_) => Ok(read),
        _ => Err(format!(
            "{} is not one of CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME and \
             WORKDIR",
            read.keyword.to_ascii_uppercase()
        )),
    }
}
