//! What a person at a terminal sees during long work: a spinner with the stage, and nothing when stderr is not a terminal.
use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::Duration;

/// A line on stderr that says what is being done.
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Starts with a stage; invisible if `quiet` or stderr is not a terminal.
    pub fn start(quiet: bool, stage: &str) -> Progress {
        let bar = if quiet || !std::io::stderr().is_terminal() {
            ProgressBar::hidden()
        } else {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        };
        let progress = Progress { bar };
        progress.stage(stage);
        progress
    }
    /// Names what comes next.
    pub fn stage(&self, stage: &str) {
        self.bar.set_message(stage.to_string());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
