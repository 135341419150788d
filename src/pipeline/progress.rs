//! What a run has done so far, and telling it: a bar when a person watches, a line now and then
//! when not.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::record::table::Table;

/// How often a line is written when nobody watches.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// How often the bar is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(200);

/// Counters of one table; all workers add to them.
#[derive(Debug)]
pub struct Progress {
    table: Table,
    started: Instant,
    rows_expected: u64,
    /// Rows looked at, in this run.
    pub seen: AtomicU64,
    /// Rows sent, in this run.
    pub sent: AtomicU64,
    /// Bytes sent before compression.
    pub raw_bytes: AtomicU64,
    /// Bytes sent.
    pub body_bytes: AtomicU64,
    pub held: AtomicU64,
    /// Nanoseconds that workers waited for the ledger, together.
    pub ledger_ns: AtomicU64,
    /// Why workers wait, and how many.
    waits: Mutex<BTreeMap<String, u32>>,
}

/// A wait that is shown as long as it lives.
pub struct Wait<'a> {
    progress: &'a Progress,
    reason: String,
}

impl Progress {
    /// `rows_expected`: an estimate for the bar; 0 when there is none.
    pub fn new(table: Table, rows_expected: u64) -> Arc<Self> {
        Arc::new(Self {
            table,
            started: Instant::now(),
            rows_expected,
            seen: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            raw_bytes: AtomicU64::new(0),
            body_bytes: AtomicU64::new(0),
            held: AtomicU64::new(0),
            ledger_ns: AtomicU64::new(0),
            waits: Mutex::default(),
        })
    }

    /// Shows `reason` until the value is dropped.
    pub fn wait(&self, reason: impl Into<String>) -> Wait<'_> {
        let reason = reason.into();
        *self.waits().entry(reason.clone()).or_default() += 1;
        Wait { progress: self, reason }
    }

    /// What is waited for now, and by how many.
    pub fn waiting(&self) -> Vec<(String, u32)> {
        self.waits().iter().map(|(reason, workers)| (reason.clone(), *workers)).collect()
    }

    /// Runs a write to the ledger and counts the time.
    pub async fn timed<T>(&self, write: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let result = write.await;
        let nanos = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.ledger_ns.fetch_add(nanos, Ordering::Relaxed);
        result
    }

    /// Time since the table was begun.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Tells how it goes until it is dropped (aborted) by the caller.
    pub async fn report(self: Arc<Self>) {
        if std::io::stderr().is_terminal() {
            self.draw().await;
        } else {
            let mut ticks = tokio::time::interval(LINE_EVERY);
            ticks.tick().await;
            loop {
                ticks.tick().await;
                tracing::info!("{}", self.line());
            }
        }
    }

    async fn draw(&self) {
        let bar = ProgressBar::new(self.rows_expected.max(1));
        bar.set_draw_target(ProgressDrawTarget::stderr_with_hz(5));
        let template = match self.rows_expected {
            0 => "{prefix} {spinner} {wide_msg}",
            _ => "{prefix} [{bar:30}] {percent:>3}% {wide_msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(self.table.name());
        let clear = ClearOnDrop(bar);
        let mut ticks = tokio::time::interval(DRAW_EVERY);
        loop {
            ticks.tick().await;
            let seen = self.seen.load(Ordering::Relaxed);
            clear.0.set_length(self.rows_expected.max(seen).max(1));
            clear.0.set_position(seen);
            clear.0.tick();
            clear.0.set_message(self.figures());
        }
    }

    fn line(&self) -> String {
        format!("{}: {}", self.table, self.figures())
    }

    fn figures(&self) -> String {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let seconds = self.elapsed().as_secs_f64().max(0.001);
        let (seen, raw) = (get(&self.seen), get(&self.raw_bytes));
        let rows_per_s = seen as f64 / seconds;
        let mut text = format!(
            "{} rows, {}, {}/s",
            HumanCount(seen),
            HumanBytes(raw),
            HumanBytes((raw as f64 / seconds) as u64),
        );
        if self.rows_expected > seen && rows_per_s > 0.0 {
            let left = (self.rows_expected - seen) as f64 / rows_per_s;
            text += &format!(", {} left", indicatif::HumanDuration(Duration::from_secs_f64(left)));
        }
        let held = get(&self.held);
        if held > 0 {
            text += &format!(", {} held", HumanCount(held));
        }
        for (reason, workers) in self.waits().iter() {
            text += &format!("; {workers} waiting: {reason}");
        }
        text
    }

    fn waits(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, u32>> {
        self.waits.lock().expect("nobody panics with the lock held")
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let mut waits = self.progress.waits();
        if let Some(workers) = waits.get_mut(&self.reason) {
            *workers -= 1;
            if *workers == 0 {
                waits.remove(&self.reason);
            }
        }
    }
}

/// The bar leaves the terminal when its task is aborted.
struct ClearOnDrop(ProgressBar);

impl Drop for ClearOnDrop {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_shown_as_long_as_it_lasts() {
        let progress = Progress::new(Table::Runs, 0);
        progress.seen.store(1234, Ordering::Relaxed);
        let first = progress.wait("quota");
        let second = progress.wait("quota");
        assert!(progress.line().ends_with("; 2 waiting: quota"), "{}", progress.line());
        drop(first);
        assert!(progress.line().ends_with("; 1 waiting: quota"), "{}", progress.line());
        drop(second);
        assert!(progress.line().starts_with("workflow_runs: 1,234 rows, "), "{}", progress.line());
        assert!(!progress.line().contains("waiting"));
    }
}
