//! Progress bars: on stderr, and only if that is a terminal.
//!
//! Invariant: a bar is gone before anything else is written; no bar is ever seen in a file or a pipe.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar that counts bytes, or things.
#[derive(Clone, Debug)]
pub(super) struct Bar(ProgressBar);

impl Bar {
    /// Counts bytes.
    pub(super) fn bytes(what: &'static str) -> Bar {
        Bar::new(what, "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}")
    }

    /// Counts bytes, of which nobody knows how many there will be.
    pub(super) fn bytes_without_end(what: &'static str) -> Bar {
        Bar::new(what, "{msg} {spinner} {binary_bytes} {binary_bytes_per_sec} {elapsed}")
    }

    /// Counts things.
    pub(super) fn things(what: &'static str) -> Bar {
        Bar::new(what, "{msg} {wide_bar} {pos}/{len} {eta}")
    }

    fn new(what: &'static str, template: &str) -> Bar {
        let target = match std::io::stderr().is_terminal() {
            true => ProgressDrawTarget::stderr(),
            false => ProgressDrawTarget::hidden(),
        };
        let bar = ProgressBar::with_draw_target(None, target);
        let style = ProgressStyle::with_template(template);
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(what);
        Bar(bar)
    }

    /// Shows `done` of `total`, which may not be known.
    pub(super) fn show(&self, done: u64, total: Option<u64>) {
        if let Some(total) = total {
            self.0.set_length(total);
        }
        self.0.set_position(done);
    }

    /// Takes the bar away.
    pub(super) fn clear(&self) {
        self.0.finish_and_clear();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.clear();
    }
}
