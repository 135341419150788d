//! Where progress is shown, and how messages get past it: a bar would be torn by a line written
//! into it.

use std::io::Write as _;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often bars are drawn.
pub const DRAW_EVERY: Duration = Duration::from_millis(200);

/// How progress is shown. Clones share the terminal.
#[derive(Debug, Clone)]
pub enum Screen {
    /// A person watches: bars on the terminal.
    Bars(MultiProgress),
    /// A line now and then.
    Lines,
    /// The same as an event with fields, for a program.
    Events,
    /// Not at all.
    Silent,
}

impl Screen {
    /// Bars on the terminal behind standard error.
    pub fn with_bars() -> Self {
        let draws_per_s = u8::try_from(1000 / DRAW_EVERY.as_millis()).unwrap_or(u8::MAX);
        Self::Bars(MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(draws_per_s)))
    }

    /// Writes a message to standard error, above the bars. That it cannot be written is no error:
    /// there is nobody who could see it.
    pub fn message(&self, text: &[u8]) {
        let write = || {
            let mut out = std::io::stderr().lock();
            let _ = out.write_all(text).and_then(|()| out.flush());
        };
        match self {
            Self::Bars(bars) => bars.suspend(write),
            Self::Lines | Self::Events | Self::Silent => write(),
        }
    }

    /// Takes the bars off the terminal, before the process ends at once.
    pub fn clear(&self) {
        if let Self::Bars(bars) = self {
            let _ = bars.clear();
        }
    }
}

/// The bar of one table: rows against what is expected, and below it all other figures. It leaves
/// the terminal when it is dropped.
pub(in crate::pipeline) struct TableBar {
    bars: MultiProgress,
    rows: ProgressBar,
    details: ProgressBar,
}

impl TableBar {
    /// `is_bounded`: whether it is known about how many rows there are.
    pub(in crate::pipeline) fn new(bars: &MultiProgress, name: &str, is_bounded: bool) -> Self {
        let rows = bars.add(ProgressBar::new(1));
        let template = match is_bounded {
            true => "{prefix} [{wide_bar}] {percent:>3} % {msg}",
            false => "{prefix} {spinner} {msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            rows.set_style(style.progress_chars("=> "));
        }
        rows.set_prefix(name.to_owned());
        let details = bars.add(ProgressBar::new(1));
        if let Ok(style) = ProgressStyle::with_template("  {wide_msg}") {
            details.set_style(style);
        }
        Self { bars: bars.clone(), rows, details }
    }

    /// Shows `rows` of about `rows_expected`; `message` beside the bar, `details` below it.
    pub(in crate::pipeline) fn show(
        &self,
        rows: u64,
        rows_expected: u64,
        message: String,
        details: String,
    ) {
        self.rows.set_message(message);
        self.rows.set_length(rows_expected.max(rows).max(1));
        self.rows.set_position(rows);
        self.details.set_message(details);
        self.rows.tick();
        self.details.tick();
    }
}

impl Drop for TableBar {
    fn drop(&mut self) {
        for bar in [&self.rows, &self.details] {
            bar.finish_and_clear();
            self.bars.remove(bar);
        }
    }
}
