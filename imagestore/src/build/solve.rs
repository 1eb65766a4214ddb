//! A build from its plan to its image: which stages, in which order, and what is told of them.
//!
//! ```text
//!  Plan ─▶ base images, all at once ─▶ evaluation of every stage ─▶ a task for each stage ─▶ image
//!                                                                     │ waits for stages that it copies from
//!                                                                     └ its steps, one after the other
//! ```
//!
//! Nothing runs before every stage was evaluated: a mistake in the last line costs no work. The first failure is the
//! build's; what was under way for this build alone ends with it.

mod base;
mod image;
mod progress;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError, atomic::AtomicU64},
};

use futures_util::future::try_join_all;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::{
    Base, Context, Diagnostic, Dockerfile, Error, Evaluated, Event, Finding, Foundation, Origin, Output,
    Plan, Request, Runner, Span, StageId, Step, StepState, Work,
    builder::Inner,
    step::{Done, Failed, Site, Task, blocking},
};
use crate::{Digest, Held, Image, Kind, Platform, gc::Lease, image::Layer};

use base::Wanted;
use image::Recipe;
use progress::{Reporter, Told};

/// A build that went well.
#[derive(Clone, Debug)]
pub struct Built {
    /// None if only files were wanted.
    pub image: Option<Arc<Image>>,
    /// The steps that did something.
    pub steps: u32,
    /// As many of them as were in the cache.
    pub cached: u32,
    pub(super) layers: Vec<Layer>,
    /// Keeps the layers where there is no image to do so.
    _leases: Vec<Arc<Lease>>,
}

/// A build that did not.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// What went wrong.
    pub error: Box<Error>,
    /// As a compiler would show it.
    pub text: String,
    /// Which Dockerfile.
    pub file: String,
    /// Its line, from 1; 0 for none.
    pub line: u32,
    /// The step that failed.
    pub step: Option<u32>,
    /// What a failed command left, if that was asked for.
    pub debug_image: Option<Digest>,
}

impl Failure {
    /// What a caller can act on.
    pub fn kind(&self) -> Kind {
        self.error.kind()
    }

    /// Of an error that has no place.
    pub fn of(error: Error) -> Failure {
        Failure::plain(error)
    }

    fn plain(error: Error) -> Failure {
        let (mut file, mut line) = (String::new(), 0);
        if let Error::Plan(diagnostic) = &error {
            file = diagnostic.file.to_string();
            line = diagnostic.span.map_or(0, |span| span.line);
        }
        let text = crate::error::chain(&error);
        Failure { text, error: Box::new(error), file, line, step: None, debug_image: None }
    }
}

/// What a stage has come to.
#[derive(Debug)]
struct Outcome {
    layers: Vec<Layer>,
    /// What its own steps add to the history of its base image.
    history: Vec<image::Entry>,
    /// The image that it stands on in the end.
    base: Option<Arc<Image>>,
    leases: Vec<Arc<Lease>>,
}

type Outcomes = watch::Receiver<Option<Result<Arc<Outcome>, ()>>>;

/// Everything that a stage's task needs.
struct Solver {
    site: Arc<Site>,
    plan: Plan,
    reporter: Reporter,
    images: HashMap<Wanted, Held>,
    stages: BTreeMap<StageId, Staged>,
    failure: Mutex<Option<Failure>>,
}

struct Staged {
    evaluated: Evaluated,
    /// What is told of each of its steps; nothing of those that do nothing.
    told: Vec<Option<Told>>,
    outcome: watch::Sender<Option<Result<Arc<Outcome>, ()>>>,
}

/// See [`super::Builder::build`].
pub(super) async fn build(
    builder: &Arc<Inner>,
    id: &str,
    request: Request,
    context: Arc<Context>,
    runner: Arc<dyn Runner>,
    events: mpsc::Sender<Event>,
) -> Result<Built, Failure> {
    let reporter = Reporter::new(events);
    let result = prepared(builder, id, &request, context, runner, &reporter).await;
    let result = match result {
        Ok(solver) => run(Arc::new(solver), &request).await,
        Err(failure) => Err(failure),
    };
    reporter.end().await;
    result
}

/// Reads the Dockerfile, gets the base images and evaluates every stage.
async fn prepared(
    builder: &Arc<Inner>,
    id: &str,
    request: &Request,
    context: Arc<Context>,
    runner: Arc<dyn Runner>,
    reporter: &Reporter,
) -> Result<Solver, Failure> {
    let plan = plan(request, &context).await.map_err(Failure::plain)?;
    for name in plan.unused_arguments() {
        let message = format!("the build argument {name} is used nowhere: no ARG declares it");
        reporter.warn(String::new(), bare_warning(request, message)).await;
    }
    let site = Site {
        builder: builder.clone(),
        runner,
        context,
        secrets: request.secrets.clone(),
        id: id.to_owned(),
        platform: plan.stage(plan.target()).platform.to_string(),
        epoch: plan.epoch(),
        network: request.network,
        hostname: plan.hostname().unwrap_or_default().to_owned(),
        hosts: request.hosts.clone(),
        memory: request.memory,
        cpu_millis: request.cpu_millis,
        no_cache: request.no_cache,
        explain: request.explain,
        debug: request.debug,
        next: AtomicU64::new(0),
    };
    let mut solver = Solver {
        site: Arc::new(site),
        plan,
        reporter: reporter.clone(),
        images: HashMap::new(),
        stages: BTreeMap::new(),
        failure: Mutex::default(),
    };
    solver.evaluate(request).await?;
    Ok(solver)
}

async fn plan(request: &Request, context: &Arc<Context>) -> Result<Plan, Error> {
    let path = if request.path.is_empty() { "Dockerfile" } else { &request.path };
    let text = match &request.dockerfile {
        Some(text) => text.clone(),
        None => context.read(path).await?,
    };
    let dockerfile = Dockerfile::parse(path, &text)?;
    Ok(Plan::new(dockerfile, request.options.clone())?)
}

fn bare_warning(request: &Request, message: String) -> Diagnostic {
    let file = if request.path.is_empty() { "Dockerfile" } else { &request.path };
    Diagnostic { file: file.into(), span: None, excerpt: String::new(), message, help: None }
}

impl Solver {
    /// Gets every image and evaluates every stage that the target needs, those that triggers bring in too.
    async fn evaluate(&mut self, request: &Request) -> Result<(), Failure> {
        let mut wanted: BTreeSet<StageId> = self.plan.reached().into_iter().collect();
        let mut evaluated: BTreeMap<StageId, Evaluated> = BTreeMap::new();
        loop {
            let mut needed = base::needed(&self.plan, &wanted, &evaluated);
            let mut seen = BTreeSet::new();
            needed.retain(|need| !self.images.contains_key(&need.wanted) && seen.insert(need.wanted.clone()));
            let found = try_join_all(needed.into_iter().map(|need| self.get(request, need))).await?;
            self.images.extend(found);
            let before = wanted.len();
            for id in wanted.clone() {
                if evaluated.contains_key(&id) {
                    continue;
                }
                let foundation = match &self.plan.stage(id).base {
                    Base::Scratch => Foundation::scratch(&self.plan.stage(id).platform),
                    Base::Image(name) => self.foundation(name, &self.plan.stage(id).platform)?,
                    Base::Stage(other) => match evaluated.get(other) {
                        Some(other) => Foundation::stage(other),
                        // A trigger brought this stage in; what it stands on comes in the next round.
                        None => {
                            wanted.insert(*other);
                            continue;
                        }
                    },
                };
                let stage =
                    self.plan.evaluate(id, &foundation).map_err(|error| Failure::plain(error.into()))?;
                self.can_run(&stage)?;
                for origin in &stage.origins {
                    if let Origin::Stage(other) = origin {
                        wanted.insert(*other);
                    }
                }
                wanted.extend(&self.plan.stage(id).needs);
                evaluated.insert(id, stage);
            }
            let needed = base::needed(&self.plan, &wanted, &evaluated);
            let all_there = needed.iter().all(|need| self.images.contains_key(&need.wanted));
            if wanted.len() == before && evaluated.len() == wanted.len() && all_there {
                break;
            }
        }
        self.warn(&evaluated).await?;
        for (id, evaluated) in evaluated {
            let total = evaluated.steps.iter().filter(|step| step.work != Work::Metadata).count();
            let (mut number, mut told) = (0, Vec::with_capacity(evaluated.steps.len()));
            for step in &evaluated.steps {
                told.push(if step.work == Work::Metadata {
                    None
                } else {
                    number += 1;
                    let stage = &self.plan.stage(id).title;
                    Some(self.reporter.announce(stage, (number, total), &step.title, step.span.line).await)
                });
            }
            self.stages.insert(id, Staged { evaluated, told, outcome: watch::Sender::new(None) });
        }
        Ok(())
    }

    /// Tells what the checks have found, in the order of the file.
    async fn warn(&self, evaluated: &BTreeMap<StageId, Evaluated>) -> Result<(), Failure> {
        let of_stages = evaluated.values().flat_map(|stage| &stage.findings);
        let mut findings: Vec<&Finding> = self.plan.findings().iter().chain(of_stages).collect();
        findings.sort_by_key(|finding| finding.diagnostic.span);
        for finding in &findings {
            self.reporter.warn(finding.rule.to_string(), finding.diagnostic.clone()).await;
        }
        let Some(first) = findings.first().filter(|_| self.plan.findings_fail()) else { return Ok(()) };
        let mut diagnostic = first.diagnostic.clone();
        diagnostic.message =
            format!("{}: {}; check=error=true lets nothing pass", first.rule, diagnostic.message);
        Err(Failure::plain(Error::Plan(Box::new(diagnostic))))
    }

    /// Whether this machine can run the commands of a stage, if there are any.
    fn can_run(&self, stage: &Evaluated) -> Result<(), Failure> {
        let (own, wanted) = (Platform::default(), &stage.platform);
        let Some(step) = stage.steps.iter().find(|step| matches!(step.work, Work::Run(_))) else {
            return Ok(());
        };
        if wanted.os == own.os && (wanted.architecture == own.architecture || emulates(&wanted.architecture))
        {
            return Ok(());
        }
        let message = format!(
            "commands of {wanted} cannot run here on {own}: leave --platform out, register an emulator in \
             /proc/sys/fs/binfmt_misc (qemu-user-static does), or build on such a machine"
        );
        Err(self.placed(Error::Invalid(message), step.span, None))
    }

    /// An error with its place.
    fn placed(&self, error: Error, span: Span, step: Option<u32>) -> Failure {
        let mut failure = Failure::plain(error);
        failure.step = step;
        if failure.line == 0 {
            let diagnostic = self.plan.dockerfile.text.diagnostic(span, failure.text, None);
            failure.file = diagnostic.file.to_string();
            failure.line = span.line;
            failure.text = diagnostic.to_string();
        }
        failure
    }

    /// Notes the first failure; those that follow from it are not of interest.
    fn fail(&self, failure: Failure) {
        let mut first = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if first.as_ref().is_none_or(|first| first.kind() == Kind::Cancelled) {
            *first = Some(failure);
        }
    }

    /// One stage, from what it stands on to its last step.
    async fn stage(&self, id: StageId) -> Result<Outcome, ()> {
        let mut outcome = match &self.plan.stage(id).base {
            Base::Scratch => {
                Outcome { layers: Vec::new(), history: Vec::new(), base: None, leases: Vec::new() }
            }
            Base::Image(name) => {
                let image = Arc::clone(self.ground(name, &self.plan.stage(id).platform));
                // For the build's result, which outlives the build.
                let lease = Arc::new(self.site.builder.store.leases.take(image.names().collect()));
                Outcome {
                    layers: image.layers.clone(),
                    history: Vec::new(),
                    base: Some(image),
                    leases: vec![lease],
                }
            }
            Base::Stage(other) => {
                let below = self.outcome(*other).await?;
                Outcome {
                    layers: below.layers.clone(),
                    history: below.history.clone(),
                    base: below.base.clone(),
                    leases: below.leases.clone(),
                }
            }
        };
        let staged = &self.stages[&id];
        for (step, told) in staged.evaluated.steps.iter().zip(&staged.told) {
            let Some(told) = told else {
                outcome.history.push(image::Entry { by: step.history.clone(), created: None, layer: false });
                continue;
            };
            let done = self.step(step, told, &outcome, &staged.evaluated).await?;
            let (created, layer) = (Some(done.created), done.layer.is_some());
            outcome.history.push(image::Entry { by: step.history.clone(), created, layer });
            outcome.layers.extend(done.layer);
            outcome.leases.push(done.lease);
        }
        Ok(outcome)
    }

    async fn step(&self, step: &Step, told: &Told, before: &Outcome, stage: &Evaluated) -> Result<Done, ()> {
        let mut places = Vec::new();
        for origin in origins(&step.work) {
            let layers = match origin {
                Origin::Stage(other) => self.outcome(*other).await?.layers.clone(),
                Origin::Image(name) => self.ground(name, &stage.platform).layers.clone(),
                Origin::Context | Origin::Scratch => continue,
            };
            places.push((origin.clone(), layers));
        }
        told.running().await;
        let (sender, mut outputs) = mpsc::channel::<Vec<Output>>(64);
        let task = Task { layers: &before.layers, title: &step.title, places: &places };
        let telling = async {
            while let Some(outputs) = outputs.recv().await {
                for output in outputs {
                    told.log(output).await;
                }
            }
        };
        let (done, ()) = tokio::join!(self.site.perform(&task, &step.work, sender), telling);
        match done {
            Ok(done) => {
                let state = if done.cached { StepState::Cached } else { StepState::Done };
                told.ended(state, "", &done.explanation).await;
                Ok(done)
            }
            Err(failed) => {
                let state = if failed.error.kind() == Kind::Cancelled {
                    StepState::Cancelled
                } else {
                    StepState::Failed
                };
                told.ended(state, &crate::error::chain(&failed.error), &failed.explanation).await;
                let mut failure = self.placed(failed.error.clone(), step.span, Some(told.id()));
                failure.debug_image = self.debug_image(&failed, step, before, stage).await;
                self.fail(failure);
                Err(())
            }
        }
    }

    /// Makes an image of what a failed command left, as the command saw it.
    async fn debug_image(
        &self,
        failed: &Failed,
        step: &Step,
        before: &Outcome,
        stage: &Evaluated,
    ) -> Option<Digest> {
        let (wreck, Work::Run(run)) = (failed.wreck.as_ref()?, &step.work) else { return None };
        let mut config = stage.config.clone();
        config.env = (*run.environment).clone();
        (config.working_dir, config.user) = (run.directory.clone(), run.user.clone());
        (config.entrypoint, config.cmd) = (None, Some(run.arguments.clone()));
        let mut history = before.history.clone();
        let layer = wreck.0.is_some();
        history.push(image::Entry { by: step.history.clone(), created: Some(super::now()), layer });
        let recipe = Recipe {
            base: before.base.clone(),
            layers: before.layers.iter().chain(&wreck.0).cloned().collect(),
            history,
            config,
            platform: stage.platform.clone(),
            author: stage.author.clone(),
            epoch: None,
        };
        let store = self.site.builder.store.clone();
        let made = blocking(move || recipe.make(&store, &[])).await;
        made.inspect_err(|error| tracing::warn!(%error, "no image of what the command left"))
            .ok()
            .map(|image| image.id.clone())
    }

    /// Waits for another stage.
    async fn outcome(&self, id: StageId) -> Result<Arc<Outcome>, ()> {
        let mut outcome: Outcomes = self.stages[&id].outcome.subscribe();
        let ended = outcome.wait_for(Option::is_some).await.map_err(drop)?;
        ended.clone().unwrap_or(Err(()))
    }
}

/// Whether the kernel has an interpreter for programs of this architecture.
fn emulates(architecture: &str) -> bool {
    let machine = match architecture {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        "386" => "i386",
        "loong64" => "loongarch64",
        other => other,
    };
    let entry = std::path::Path::new("/proc/sys/fs/binfmt_misc").join(format!("qemu-{machine}"));
    std::fs::read_to_string(entry).is_ok_and(|text| text.starts_with("enabled"))
}

/// Where the files of a step come from.
fn origins(work: &Work) -> Vec<&Origin> {
    use super::MountKind;
    match work {
        Work::Copy(copy) => vec![&copy.from],
        Work::Run(run) => {
            let from = |mount: &super::Mount| match &mount.kind {
                MountKind::Bind { .. } | MountKind::Cache { .. } => true,
                MountKind::Tmpfs { .. } | MountKind::Secret { .. } => false,
            };
            let mut origins = Vec::new();
            for mount in run.mounts.iter().filter(|mount| from(mount)) {
                if let MountKind::Bind { from, .. } | MountKind::Cache { from, .. } = &mount.kind
                    && !origins.contains(&from)
                {
                    origins.push(from);
                }
            }
            origins
        }
        Work::Directory(_) | Work::Metadata => Vec::new(),
    }
}

/// Runs all stages, and puts the target's image together.
async fn run(solver: Arc<Solver>, request: &Request) -> Result<Built, Failure> {
    let mut tasks = JoinSet::new();
    for id in solver.stages.keys().copied().collect::<Vec<_>>() {
        let solver = solver.clone();
        tasks.spawn(async move {
            let outcome = solver.stage(id).await;
            let ended = outcome.is_ok();
            solver.stages[&id].outcome.send_replace(Some(outcome.map(Arc::new)));
            ended
        });
    }
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok(true) => {}
            Ok(false) => break,
            Err(error) => {
                solver.fail(Failure::plain(Error::Invalid(format!("a stage came to no end: {error}"))));
                break;
            }
        }
    }
    // What is still at work is of no use any more; it ends when its last waiter goes.
    tasks.shutdown().await;
    if let Some(failure) = solver.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
        return Err(failure);
    }
    let target = &solver.stages[&solver.plan.target()];
    let outcome =
        solver.outcome(solver.plan.target()).await.map_err(|()| Failure::plain(Error::Cancelled))?;
    let (steps, cached) = solver.reporter.counts();
    let mut built =
        Built { image: None, steps, cached, layers: outcome.layers.clone(), _leases: outcome.leases.clone() };
    if request.files_only {
        return Ok(built);
    }
    let recipe = Recipe {
        base: outcome.base.clone(),
        layers: outcome.layers.clone(),
        history: outcome.history.clone(),
        config: target.evaluated.config.clone(),
        platform: target.evaluated.platform.clone(),
        author: target.evaluated.author.clone(),
        epoch: solver.plan.epoch(),
    };
    let told = solver.reporter.announce("", (0, 0), "export the image", 0).await;
    told.running().await;
    let (store, names) = (solver.site.builder.store.clone(), request.names.clone());
    match blocking(move || recipe.make(&store, &names)).await {
        Ok(image) => {
            told.ended(StepState::Done, "", "").await;
            built.image = Some(image);
            Ok(built)
        }
        Err(error) => {
            told.ended(StepState::Failed, &crate::error::chain(&error), "").await;
            Err(Failure { step: Some(told.id()), ..Failure::plain(error) })
        }
    }
}
