//! The graph of stages: what each stands on, what it copies and mounts from, and what a target reaches.

use std::collections::BTreeSet;

use crate::{
    Reference,
    build::{
        check,
        diagnostic::{Diagnostic, Span},
        dockerfile::{
            CheckOptions, Command, Dockerfile, StageSource, Text,
            expand::{self, Expanded, Expander, Quotes},
            suggest::nearest,
        },
    },
};

use super::{Base, Options, Origin, Plan, Stage, StageId, environment::Globals, platform};

type Failure = Box<Diagnostic>;

/// A build argument that adds to the file's `# check=`.
const CHECK: &str = "BUILDKIT_DOCKERFILE_CHECK";

/// Sees through the stages.
pub(super) fn plan(mut dockerfile: Dockerfile, options: Options) -> Result<Plan, Failure> {
    if let Some(text) = options.build_args.get(CHECK) {
        let more = CheckOptions::parse(text).map_err(|(message, help)| {
            let message = format!("the build argument {CHECK}: {message}");
            let (file, help) = (dockerfile.text.file.clone(), Some(help));
            Box::new(Diagnostic { file, span: None, excerpt: String::new(), message, help })
        })?;
        dockerfile.check.merge(more);
    }
    let last = dockerfile.stages.last().and_then(StageSource::name);
    let named = options.target.clone().or(last).unwrap_or_else(|| "default".to_owned());
    let predefined = Globals::predefined(&options, &named);
    let globals = globals(&dockerfile, &options, predefined.clone(), false)?;
    let mut plan = Plan {
        findings: check::file(&dockerfile),
        stages: Vec::with_capacity(dockerfile.stages.len()),
        target: StageId(dockerfile.stages.len() - 1),
        epoch: None,
        dockerfile,
        options,
        globals,
    };
    for number in 0..plan.dockerfile.stages.len() {
        let (stage, findings) = stage(&plan, StageId(number))?;
        plan.stages.push(stage);
        plan.findings.extend(findings);
    }
    for number in 0..plan.stages.len() {
        needs(&mut plan, StageId(number))?;
    }
    let findings = check::defaults(&plan, predefined);
    plan.findings.extend(findings);
    plan.target = target(&plan)?;
    plan.epoch = epoch(&plan)?;
    Ok(plan)
}

/// Global arguments with their values; with `defaults`, as if no build argument were given.
pub(crate) fn globals(
    dockerfile: &Dockerfile,
    options: &Options,
    mut globals: Globals,
    defaults: bool,
) -> Result<Globals, Failure> {
    for instruction in &dockerfile.globals {
        let Command::Arg(declarations) = &instruction.command else { continue };
        for declaration in declarations {
            let given = if defaults { None } else { options.build_args.get(&declaration.name) };
            let value = match (given, &declaration.default) {
                (Some(given), _) => Some(given.clone()),
                (None, None) => None,
                (None, Some(text)) => Some(expand(dockerfile, instruction.span, text, &globals)?.text),
            };
            globals.declare(&declaration.name, value);
        }
    }
    Ok(globals)
}

/// Expands a word of a FROM line or of a global ARG.
pub(crate) fn expand(
    dockerfile: &Dockerfile,
    span: Span,
    word: &str,
    globals: &Globals,
) -> Result<Expanded, Failure> {
    let expander = Expander {
        escape: dockerfile.escape,
        quotes: Quotes::Remove,
        keep_escapes: false,
        keep_unset: false,
        values: globals,
    };
    expander.expand(word).map_err(|error| not_expanded(&dockerfile.text, span, &error))
}

/// The diagnostic of a word that cannot be expanded.
pub(super) fn not_expanded(text: &Text, span: Span, error: &expand::Error) -> Failure {
    text.diagnostic(text.point(span, &error.mark()), error.to_string(), None)
}

fn stage(plan: &Plan, id: StageId) -> Result<(Stage, Vec<check::Finding>), Failure> {
    let Plan { dockerfile, globals, options, stages, .. } = plan;
    let source = &dockerfile.stages[id.0];
    let text = &dockerfile.text;
    let name = expand(dockerfile, source.span, &source.base, globals)?;
    let place = text.point(source.span, &source.base);
    let mut findings = check::undefined_in_from(plan, source, &name);
    if name.text.is_empty() {
        let help = match name.missing.iter().next() {
            Some(missing) => declare_help(missing, globals),
            None => "write FROM image".to_owned(),
        };
        return Err(text.diagnostic(place, format!("{} is empty here", source.base), help));
    }
    let base = match name.text.as_str() {
        "scratch" => Base::Scratch,
        name => match before(plan, id, name) {
            Some(stage) => Base::Stage(stage),
            None => Base::Image(
                image(plan, id, name).map_err(|(message, help)| text.diagnostic(place, message, help))?,
            ),
        },
    };
    let platform = match &source.platform {
        Some(word) => {
            let expanded = expand(dockerfile, source.span, word, globals)?;
            findings.extend(check::undefined_in_from(plan, source, &expanded));
            let place = text.point(source.span, "--platform");
            let platform = platform::parse(&expanded.text, &options.platform).ok_or_else(|| {
                let help = match expanded.missing.iter().next() {
                    Some(missing) => declare_help(missing, globals),
                    None => "write os/architecture: linux/amd64, linux/arm64".to_owned(),
                };
                text.diagnostic(place, format!("{:?} is no platform", expanded.text), help)
            })?;
            findings.extend(check::platform_in_from(plan, source, &expanded, &platform));
            platform
        }
        None => match base {
            Base::Stage(below) => stages[below.0].platform.clone(),
            _ => options.platform.clone(),
        },
    };
    let working = |command: &Command| {
        matches!(command, Command::Run(_) | Command::Copy(_) | Command::Add(_) | Command::Workdir(_))
    };
    let stage = Stage {
        id,
        title: source.name().unwrap_or_else(|| format!("stage-{id}")),
        base,
        platform,
        needs: Vec::new(),
        images: Vec::new(),
        span: source.span,
        steps: source.instructions.iter().filter(|instruction| working(&instruction.command)).count(),
    };
    Ok((stage, findings))
}

fn declare_help(missing: &str, globals: &Globals) -> String {
    match nearest(missing, globals.names()) {
        Some(meant) => format!("did you mean ${meant}?"),
        None => format!("declare it above the first FROM: ARG {missing}=VALUE"),
    }
}

/// The stage of this name that comes before `id`, the nearest of several.
fn before(plan: &Plan, id: StageId, name: &str) -> Option<StageId> {
    let lower = name.to_lowercase();
    (0..id.0)
        .rev()
        .find(|number| plan.dockerfile.stages[*number].name().as_ref() == Some(&lower))
        .map(StageId)
}

/// Checks the name of an image. The error is a message and what to write.
fn image(plan: &Plan, id: StageId, name: &str) -> Result<String, (String, Option<String>)> {
    if let Err(error) = name.parse::<Reference>() {
        let names: Vec<String> =
            plan.dockerfile.stages[..id.0].iter().filter_map(StageSource::name).collect();
        let meant = nearest(name, names.iter().map(String::as_str));
        return Err((error.to_string(), meant.map(|meant| format!("did you mean the stage {meant}?"))));
    }
    Ok(name.to_owned())
}

/// Where `--from` and `from=` lead, seen from a stage. The error is a message and what to write.
pub(super) fn origin(plan: &Plan, id: StageId, name: &str) -> Result<Origin, (String, Option<String>)> {
    let stages = &plan.dockerfile.stages;
    if let Some(stage) = before(plan, id, name) {
        return Ok(Origin::Stage(stage));
    }
    let lower = name.to_lowercase();
    let late = stages.iter().skip(id.0).position(|stage| stage.name().as_ref() == Some(&lower));
    if let Some(offset) = late {
        return Err(if offset == 0 {
            (format!("stage {name} would take files from itself"), Some("name another stage".to_owned()))
        } else {
            (format!("stage {name} comes later"), Some(format!("move {name} above this stage")))
        });
    }
    if lower == "scratch" {
        return Ok(Origin::Scratch);
    }
    if !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit()) {
        return match name.parse::<usize>() {
            Ok(number) if number < id.0 => Ok(Origin::Stage(StageId(number))),
            Ok(number) if number < stages.len() => Err((
                format!("stage {number} does not come before this one"),
                Some("stages count from 0".to_owned()),
            )),
            _ => Err((
                format!("there is no stage {name}"),
                Some(match id.0 {
                    0 => "no stage comes before this one".to_owned(),
                    before => format!("those before this one are 0 to {}", before - 1),
                }),
            )),
        };
    }
    image(plan, id, name).map(Origin::Image)
}

/// Finds out what the instructions of a stage take files from.
fn needs(plan: &mut Plan, id: StageId) -> Result<(), Failure> {
    let mut stages = BTreeSet::new();
    let mut images = BTreeSet::new();
    if let Base::Stage(below) = plan.stages[id.0].base {
        stages.insert(below);
    }
    for instruction in &plan.dockerfile.stages[id.0].instructions {
        for name in instruction.command.origins() {
            let text = &plan.dockerfile.text;
            let place = text.point(instruction.span, &format!("from={name}"));
            match origin(plan, id, name).map_err(|(message, help)| text.diagnostic(place, message, help))? {
                Origin::Stage(stage) => drop(stages.insert(stage)),
                Origin::Image(image) => drop(images.insert(image)),
                Origin::Context | Origin::Scratch => {}
            }
        }
    }
    let stage = &mut plan.stages[id.0];
    stage.needs = stages.into_iter().collect();
    stage.images = images.into_iter().collect();
    Ok(())
}

impl Command {
    /// The stages and images that it names as the place of its files.
    pub(super) fn origins(&self) -> Vec<&str> {
        match self {
            Command::Copy(transfer) | Command::Add(transfer) => {
                transfer.from.as_deref().into_iter().collect()
            }
            Command::Run(run) => run.mounts.iter().filter_map(|mount| mount.from()).collect(),
            _ => Vec::new(),
        }
    }
}

fn target(plan: &Plan) -> Result<StageId, Failure> {
    let count = plan.stages.len();
    let Some(name) = &plan.options.target else { return Ok(StageId(count - 1)) };
    if let Some(stage) = before(plan, StageId(count), name) {
        return Ok(stage);
    }
    if let Ok(number) = name.parse::<usize>()
        && number < count
    {
        return Ok(StageId(number));
    }
    let names: Vec<String> = plan.dockerfile.stages.iter().filter_map(StageSource::name).collect();
    let help = match nearest(name, names.iter().map(String::as_str)) {
        Some(meant) => format!("did you mean {meant}?"),
        None if names.is_empty() => "its stages have no names; leave --target out".to_owned(),
        None => format!("there are {}", names.join(", ")),
    };
    Err(Box::new(Diagnostic {
        file: plan.dockerfile.text.file.clone(),
        span: None,
        excerpt: String::new(),
        message: format!("there is no stage {name:?}"),
        help: Some(help),
    }))
}

fn epoch(plan: &Plan) -> Result<Option<i64>, Failure> {
    const NAME: &str = "SOURCE_DATE_EPOCH";
    let given = plan.options.build_args.get(NAME).map(String::as_str);
    match given.or(expand::Values::value(&plan.globals, NAME)).unwrap_or_default() {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| {
            Box::new(Diagnostic {
                file: plan.dockerfile.text.file.clone(),
                span: None,
                excerpt: String::new(),
                message: format!("{NAME} is {text:?} and no number"),
                help: Some("give it seconds since 1970, as in $(git log -1 --format=%ct)".to_owned()),
            })
        }),
    }
}

/// The stages that `target` needs, itself among them, in order.
pub(super) fn reached(stages: &[Stage], target: StageId) -> Vec<StageId> {
    let mut found = BTreeSet::from([target]);
    // What a stage needs comes before it, so one pass backwards finds everything.
    for stage in stages[..=target.0].iter().rev() {
        if found.contains(&stage.id) {
            found.extend(&stage.needs);
        }
    }
    found.into_iter().collect()
}

/// Build arguments that nothing declares.
pub(super) fn unused_arguments(plan: &Plan) -> Vec<&str> {
    let declares = |name: &str| {
        let stages = plan.dockerfile.stages.iter().flat_map(|stage| &stage.instructions);
        plan.dockerfile.globals.iter().chain(stages).any(|instruction| match &instruction.command {
            Command::Arg(declarations) => declarations.iter().any(|declaration| declaration.name == name),
            // A trigger is for another build.
            _ => false,
        })
    };
    let given = plan.options.build_args.keys().map(String::as_str);
    given.filter(|name| !Globals::is_predefined(name) && !declares(name)).collect()
}
