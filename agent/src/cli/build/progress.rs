//! How a build goes, on standard error: steps side by side on a terminal, lines elsewhere, JSON for programs.
//!
//! On a terminal a step that runs has a line with its time and its last words below; when it is done, one line stays of
//! it, and all of its words if it failed. Elsewhere every line of a step is told with the step's number.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use sampan_proto::sampan::{
    BuildFailure, BuildResult, BuildStep, BuildWarning, StepLog, StepPull, build_response::Event,
    build_step::State,
};
use serde_json::json;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::How;
use crate::cli::{
    failure::Failure,
    human::{decimal_size, short_id},
    output::Output,
};

/// Redraws a second, at most.
const FRAMES: u8 = 10;
/// Of a step that runs, so many of its last lines are shown.
const TAIL: usize = 4;
/// Of a step that failed, so many.
const KEPT: usize = 200;
/// Longer lines are told in parts.
const MAX_LINE: usize = 8 << 10;

pub(super) struct View {
    how: Shown,
    steps: BTreeMap<u32, Step>,
    warnings: Vec<BuildWarning>,
    clock: Interval,
}

enum Shown {
    Quiet,
    Plain,
    Json,
    Drawn(MultiProgress),
}

/// A step as far as it is known.
#[derive(Default)]
struct Step {
    state: BuildStep,
    /// What its streams have begun to say: output, then errors.
    begun: [Vec<u8>; 2],
    lines: VecDeque<String>,
    layers: BTreeMap<String, (u64, u64)>,
    bar: Option<ProgressBar>,
}

impl View {
    pub(super) fn new(quiet: bool, how: How, out: &Output) -> View {
        let how = match how {
            _ if quiet => Shown::Quiet,
            How::Json => Shown::Json,
            How::Auto if out.draws_progress() => {
                Shown::Drawn(MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(FRAMES)))
            }
            How::Auto | How::Plain => Shown::Plain,
        };
        let mut clock = interval(Duration::from_millis(100));
        clock.set_missed_tick_behavior(MissedTickBehavior::Skip);
        View { how, steps: BTreeMap::new(), warnings: Vec::new(), clock }
    }

    /// Comes when something is to be drawn anew because time has passed. Never where nothing is drawn.
    pub(super) async fn tick(&mut self) {
        if !matches!(self.how, Shown::Drawn(_)) {
            return std::future::pending().await;
        }
        self.clock.tick().await;
        for step in self.steps.values() {
            if let Some(bar) = &step.bar {
                bar.tick();
            }
        }
    }

    pub(super) fn show(&mut self, event: Event, out: &mut Output) -> Result<(), Failure> {
        if matches!(self.how, Shown::Json) {
            if let Some(value) = as_json(&event) {
                out.note(value);
            }
            if let Event::Warning(warning) = event {
                self.warnings.push(warning);
            }
            return Ok(());
        }
        match event {
            Event::Step(step) => self.step(step, out),
            Event::Log(log) => self.log(&log, out),
            Event::Pull(pull) => self.pull(&pull),
            Event::Warning(warning) => self.warnings.push(warning),
            _ => {}
        }
        Ok(())
    }

    fn step(&mut self, now: BuildStep, out: &mut Output) {
        let step = self.steps.entry(now.id).or_default();
        let before = std::mem::replace(&mut step.state, now).state();
        let state = step.state.state();
        if state == before {
            return;
        }
        let ended = matches!(state, State::Cached | State::Done | State::Failed | State::Cancelled);
        if ended {
            // What has no line end is said nevertheless.
            for stderr in [false, true] {
                if !step.begun[usize::from(stderr)].is_empty() {
                    let rest = std::mem::take(&mut step.begun[usize::from(stderr)]);
                    step.line(rest, &self.how, out);
                }
            }
        }
        match &self.how {
            Shown::Quiet | Shown::Json => {}
            Shown::Plain => {
                for line in step.told(before) {
                    out.note(line);
                }
            }
            Shown::Drawn(all) if state == State::Running => {
                let bar = all.add(ProgressBar::new_spinner().with_style(style()));
                bar.set_message(step.title());
                step.bar = Some(bar);
            }
            Shown::Drawn(all) if ended => {
                if let Some(bar) = step.bar.take() {
                    bar.finish_and_clear();
                    all.remove(&bar);
                }
                let _ = all.println(step.summary());
                if let Some(why) = step.explained() {
                    let _ = all.println(format!("    {why}"));
                }
                if state == State::Failed {
                    for line in &step.lines {
                        let _ = all.println(format!("    {line}"));
                    }
                }
                step.lines.clear();
            }
            Shown::Drawn(_) => {}
        }
    }

    fn log(&mut self, log: &StepLog, out: &mut Output) {
        let step = self.steps.entry(log.step).or_default();
        let place = usize::from(log.stderr);
        for byte in &log.data {
            if *byte == b'\n' || step.begun[place].len() >= MAX_LINE {
                let line = std::mem::take(&mut step.begun[place]);
                step.line(line, &self.how, out);
            }
            if *byte != b'\n' {
                step.begun[place].push(*byte);
            }
        }
        step.redraw();
    }

    fn pull(&mut self, pull: &StepPull) {
        let (Some(layer), step) = (&pull.layer, self.steps.entry(pull.step).or_default()) else { return };
        step.layers.insert(layer.digest.clone(), (layer.current, layer.total));
        step.redraw();
    }

    /// Tells the result, and what the checks have found.
    pub(super) fn finish(&mut self, result: &BuildResult, out: &mut Output) -> Result<(), Failure> {
        self.clear();
        self.tell_warnings(out);
        match &self.how {
            Shown::Quiet => {}
            Shown::Json => out.note(json!({
                "result": {
                    "image": result.image_id, "names": result.names, "digest": result.digest,
                    "steps": result.steps, "cached": result.cached,
                }
            })),
            Shown::Plain | Shown::Drawn(_) => {
                if !result.image_id.is_empty() {
                    out.note(format_args!("Built {}", result.image_id));
                }
                for name in &result.names {
                    out.note(format_args!("Named {name}"));
                }
                out.note(format_args!("{} of {} steps cached", result.cached, result.steps));
            }
        }
        Ok(())
    }

    pub(super) fn failed(&mut self, failure: &BuildFailure, out: &mut Output) -> Result<(), Failure> {
        self.clear();
        self.tell_warnings(out);
        if matches!(self.how, Shown::Json) {
            out.note(json!({
                "failure": {
                    "message": failure.message, "file": failure.file, "line": failure.line,
                    "step": failure.step, "exit_code": failure.exit_code,
                }
            }));
        }
        // In quiet, what the step said is all that there is to go by; elsewhere it stands above.
        if matches!(self.how, Shown::Quiet)
            && let Some(step) = u32::try_from(failure.step).ok().and_then(|id| self.steps.get(&id))
        {
            for line in &step.lines {
                out.note(line);
            }
        }
        Ok(())
    }

    fn tell_warnings(&mut self, out: &mut Output) {
        if matches!(self.how, Shown::Quiet | Shown::Json) {
            return;
        }
        for warning in std::mem::take(&mut self.warnings) {
            out.note(told(&warning));
        }
    }

    fn clear(&mut self) {
        if let Shown::Drawn(all) = &self.how {
            let _ = all.clear();
        }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Step {
    /// A whole line of its output.
    fn line(&mut self, line: Vec<u8>, how: &Shown, out: &mut Output) {
        let text = String::from_utf8_lossy(&line);
        // Of a line that overwrites itself, what stands at the end.
        let text = text.trim_end_matches('\r').rsplit('\r').next().unwrap_or_default();
        if matches!(how, Shown::Plain) {
            out.note(format_args!("#{} {text}", self.state.id));
            return;
        }
        self.lines.push_back(console::strip_ansi_codes(text).into_owned());
        if self.lines.len() > KEPT {
            self.lines.pop_front();
        }
    }

    fn redraw(&self) {
        let Some(bar) = &self.bar else { return };
        let mut text = self.title();
        if !self.layers.is_empty() {
            let (current, total) =
                self.layers.values().fold((0, 0), |sum, layer| (sum.0 + layer.0, sum.1 + layer.1));
            text.push_str(&format!("  {} / {}", decimal_size(current), decimal_size(total)));
        }
        for line in self.lines.iter().skip(self.lines.len().saturating_sub(TAIL)) {
            text.push_str("\n    ");
            text.extend(line.chars().take(160));
        }
        bar.set_message(text);
    }

    /// `[stage 2/5] RUN make`.
    fn title(&self) -> String {
        let BuildStep { stage, number, total, title, .. } = &self.state;
        match (stage.as_str(), number) {
            ("", _) => title.clone(),
            (stage, 0) => format!("[{stage}] {title}"),
            (stage, number) => format!("[{stage} {number}/{total}] {title}"),
        }
    }

    fn seconds(&self) -> f64 {
        let nanoseconds = self.state.finished_at.saturating_sub(self.state.started_at).max(0);
        nanoseconds as f64 / 1e9
    }

    /// What stays on a terminal when it is done.
    fn summary(&self) -> String {
        match self.state.state() {
            State::Cached => format!(" = {}  cached", self.title()),
            State::Failed => format!(" x {}  {:.1}s: {}", self.title(), self.seconds(), self.state.error),
            State::Cancelled => format!(" - {}  cancelled", self.title()),
            _ => format!(" + {}  {:.1}s", self.title(), self.seconds()),
        }
    }

    /// What is told of a change where nothing is drawn.
    fn told(&self, before: State) -> Vec<String> {
        let id = self.state.id;
        let explained = self.explained().map(|why| format!("#{id} {why}"));
        let head = format!("#{id} {}", self.title());
        let lines = match self.state.state() {
            State::Running => vec![head],
            State::Cached if before == State::Running => vec![format!("#{id} CACHED")],
            State::Cached => vec![head, format!("#{id} CACHED")],
            State::Done => vec![format!("#{id} DONE {:.1}s", self.seconds())],
            State::Failed => vec![format!("#{id} ERROR: {}", self.state.error)],
            State::Cancelled => vec![format!("#{id} CANCELLED")],
            State::Unspecified | State::Waiting => Vec::new(),
        };
        explained.into_iter().chain(lines).collect()
    }

    /// Why it was not cached; told with its end, if that was asked for.
    fn explained(&self) -> Option<String> {
        let ended = matches!(self.state.state(), State::Done | State::Failed);
        (ended && !self.state.explanation.is_empty())
            .then(|| format!("not cached: {}", self.state.explanation))
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template(" {spinner} {elapsed:>4} {msg}").expect("the template is valid")
}

/// A warning as a compiler shows it.
pub(super) fn told(warning: &BuildWarning) -> String {
    let text = if warning.text.is_empty() { &warning.message } else { &warning.text };
    match warning.rule.as_str() {
        "" => format!("warning: {text}"),
        rule => format!("warning: {rule}: {text}"),
    }
}

/// One event, for programs; `None`: it is nothing to tell.
fn as_json(event: &Event) -> Option<serde_json::Value> {
    Some(match event {
        Event::Started(started) => json!({ "started": { "build": started.build_id } }),
        Event::Step(step) => json!({
            "step": {
                "id": step.id, "stage": step.stage, "number": step.number, "total": step.total, "title": step.title,
                "state": step.state().as_str_name().trim_start_matches("STATE_").to_lowercase(),
                "started_at": step.started_at, "finished_at": step.finished_at, "error": step.error,
                "explanation": step.explanation, "line": step.line,
            }
        }),
        Event::Log(log) => json!({
            "log": {
                "step": log.step, "stream": if log.stderr { "stderr" } else { "stdout" },
                "text": String::from_utf8_lossy(&log.data), "time": log.time,
            }
        }),
        Event::Warning(warning) => json!({
            "warning": {
                "rule": warning.rule, "message": warning.message, "help": warning.help, "file": warning.file,
                "line": warning.line,
            }
        }),
        Event::Pull(StepPull { step, layer: Some(layer) }) => json!({
            "pull": {
                "step": step, "layer": short_id(&layer.digest), "current": layer.current, "total": layer.total,
            }
        }),
        _ => return None,
    })
}
