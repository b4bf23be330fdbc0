//! What the demo tells while it runs: a line for each thing that happens, with its time, and on a
//! terminal a bar of progress.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::Instant;

/// Redraws of the bar in a second.
const REDRAWS_PER_S: u8 = 8;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Story {
    began: Instant,
    to_stderr: bool,
    bar: ProgressBar,
}

impl Story {
    /// A story that is told on standard output, or on standard error if that belongs to the report.
    pub(crate) fn begin(to_stderr: bool) -> Self {
        Self { began: Instant::now(), to_stderr, bar: ProgressBar::hidden() }
    }

    /// Tells one thing that has happened.
    pub(crate) fn tell(&self, what: &str) {
        let line = format!("[{:8.3} s] {what}", self.began.elapsed().as_secs_f64());
        self.print(&line);
    }

    /// Prints text as it is.
    pub(crate) fn print(&self, text: &str) {
        // A reader that has gone away does not stop the demo.
        self.bar.suspend(|| {
            let _ = if self.to_stderr {
                writeln!(std::io::stderr(), "{text}")
            } else {
                writeln!(std::io::stdout(), "{text}")
            };
        });
    }

    /// Begins a bar of this many packets, if somebody can see it.
    pub(crate) fn begin_bar(&mut self, packets: u64) {
        if !std::io::stderr().is_terminal() {
            return;
        }
        let style = ProgressStyle::with_template("{bar:40} {percent:>3} %  {pos}/{len} packets")
            .unwrap_or_else(|_| ProgressStyle::default_bar());
        self.bar = ProgressBar::new(packets).with_style(style);
        self.bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(REDRAWS_PER_S));
    }

    /// So many packets are through.
    pub(crate) fn at(&self, packets: u64) {
        self.bar.set_position(packets);
    }

    /// The bar goes away.
    pub(crate) fn end_bar(&mut self) {
        self.bar.finish_and_clear();
        self.bar = ProgressBar::hidden();
    }
}
