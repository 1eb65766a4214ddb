//! How a pull or a push goes, layer by layer, on standard error: bars on a terminal, a line at each change elsewhere.

use std::collections::HashMap;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use sampan_proto::sampan::{LayerProgress, layer_progress::Phase};

use super::{
    human::{decimal_size, short_id},
    output::Output,
};

/// Redraws a second, at most: more is not seen and costs time the pull could have.
const FRAMES: u8 = 10;

pub(super) struct Progress {
    view: View,
    phases: HashMap<String, Phase>,
}

enum View {
    Quiet,
    Lines,
    Bars { all: MultiProgress, layers: HashMap<String, ProgressBar> },
}

impl Progress {
    pub(super) fn new(quiet: bool, out: &Output) -> Self {
        let view = match quiet {
            true => View::Quiet,
            false if out.draws_progress() => {
                let target = ProgressDrawTarget::stderr_with_hz(FRAMES);
                View::Bars { all: MultiProgress::with_draw_target(target), layers: HashMap::new() }
            }
            false => View::Lines,
        };
        Self { view, phases: HashMap::new() }
    }

    pub(super) fn show(&mut self, layer: &LayerProgress, out: &mut Output) {
        let phase = layer.phase();
        let changed = self.phases.insert(layer.digest.clone(), phase) != Some(phase);
        match &mut self.view {
            View::Quiet => {}
            View::Lines if changed => out.note(line(layer)),
            View::Lines => {}
            View::Bars { all, layers } => {
                let bar = layers.entry(layer.digest.clone()).or_insert_with(|| {
                    let bar = all.add(ProgressBar::new(layer.total.max(1)).with_style(style()));
                    bar.set_prefix(short_id(&layer.digest).to_owned());
                    bar
                });
                draw(bar, layer);
            }
        }
    }
}

impl Drop for Progress {
    /// Leaves the bars standing as they are, with the cursor below them.
    fn drop(&mut self) {
        if let View::Bars { layers, .. } = &self.view {
            layers.values().filter(|bar| !bar.is_finished()).for_each(ProgressBar::abandon);
        }
    }
}

fn draw(bar: &ProgressBar, layer: &LayerProgress) {
    let text = phase_text(layer.phase());
    let size = match layer.phase() {
        Phase::Downloading | Phase::Unpacking | Phase::Uploading => amount(layer),
        Phase::Done if layer.total > 0 => decimal_size(layer.total),
        _ => String::new(),
    };
    bar.set_message(format!("{text:<11}  {size}"));
    bar.set_length(layer.total.max(1));
    match layer.phase() {
        Phase::Done | Phase::Exists | Phase::Mounted => {
            bar.set_position(layer.total.max(1));
            bar.abandon();
        }
        _ => bar.set_position(layer.current),
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix:12}  [{bar:32}]  {msg}")
        .expect("the template is valid")
        .progress_chars("=> ")
}

fn line(layer: &LayerProgress) -> String {
    let (digest, phase) = (short_id(&layer.digest), phase_text(layer.phase()));
    match layer.phase() {
        Phase::Downloading | Phase::Done if layer.total > 0 => {
            format!("{digest}: {phase} ({})", decimal_size(layer.total))
        }
        _ => format!("{digest}: {phase}"),
    }
}

fn amount(layer: &LayerProgress) -> String {
    let current = decimal_size(layer.current);
    if layer.total == 0 { current } else { format!("{current} / {}", decimal_size(layer.total)) }
}

fn phase_text(phase: Phase) -> &'static str {
    match phase {
        Phase::Unspecified | Phase::Waiting => "waiting",
        Phase::Downloading => "downloading",
        Phase::Unpacking => "unpacking",
        Phase::Done => "done",
        Phase::Exists => "exists",
        Phase::Uploading => "uploading",
        Phase::Mounted => "mounted",
    }
}
