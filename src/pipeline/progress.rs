//! What a run has done so far, and showing it: a bar when a person watches, a line or an event now
//! and then when not.

pub mod rate;
pub mod screen;
pub mod watch;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, HumanCount, HumanDuration};

use crate::pipeline::progress::rate::{Meter, Rate};
use crate::pipeline::progress::screen::{DRAW_EVERY, Screen, TableBar};
use crate::record::table::Table;

/// A reason to wait is logged when it comes up, and again only after so long.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// With fewer rows left no worker is added.
const ROWS_PER_WORKER: u64 = 10_000;

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
    /// Nanoseconds that workers waited for nothing but the ledger, together: see [`watch`].
    pub ledger_ns: AtomicU64,
    waits: Mutex<Waits>,
}

/// Why workers wait.
#[derive(Debug, Default)]
struct Waits {
    /// How many wait now, by reason.
    now: BTreeMap<String, u32>,
    /// When each reason was last logged.
    told: BTreeMap<String, Instant>,
}

/// A wait that is shown as long as it lives.
pub struct Wait<'a> {
    progress: &'a Progress,
    reason: String,
}

/// How it goes.
#[derive(Debug, Clone, PartialEq)]
struct Figures {
    rows: u64,
    /// 0: nobody knows.
    rows_expected: u64,
    sent: u64,
    held: u64,
    raw_bytes: u64,
    rate: Rate,
    waiting: Vec<(String, u32)>,
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

    /// Shows `reason` until the value is dropped, and tells it in the log when it is new.
    pub fn wait(&self, reason: impl Into<String>) -> Wait<'_> {
        let reason = reason.into();
        if self.waits().begin(&reason, Instant::now()) {
            tracing::info!("{}: waiting: {reason}", self.table);
        }
        Wait { progress: self, reason }
    }

    /// What is waited for now, and by how many.
    pub fn waiting(&self) -> Vec<(String, u32)> {
        self.waits().now.iter().map(|(reason, workers)| (reason.clone(), *workers)).collect()
    }

    /// About how many rows are still to be looked at; `None`: nobody knows.
    pub fn rows_left(&self) -> Option<u64> {
        let seen = self.seen.load(Ordering::Relaxed);
        (self.rows_expected > 0).then(|| self.rows_expected.saturating_sub(seen))
    }

    /// Whether less is left than a worker that is added now would do.
    pub fn is_ending(&self) -> bool {
        self.rows_left().is_none_or(|rows| rows < ROWS_PER_WORKER)
    }

    /// About how many seconds are left at the pace so far; `None`: nobody knows.
    pub fn rest_s(&self) -> Option<u64> {
        let seen = self.seen.load(Ordering::Relaxed);
        let rows_left = self.rows_left().filter(|left| *left > 0 && seen > 0)?;
        Some((self.elapsed().as_secs_f64() * rows_left as f64 / seen as f64) as u64)
    }

    /// Time since the table was begun.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Tells how it goes until it is dropped (aborted) by the caller; where there are no bars, every
    /// `line_every`.
    pub async fn report(self: Arc<Self>, screen: Screen, line_every: Duration) {
        let bar = match &screen {
            Screen::Bars(bars) => {
                Some(TableBar::new(bars, self.table.name(), self.rows_expected > 0))
            }
            Screen::Lines | Screen::Events => None,
            Screen::Silent => return,
        };
        let mut meter = Meter::new(self.started);
        let now = tokio::time::Instant::now();
        let mut ticks = match &bar {
            Some(_) => tokio::time::interval_at(now, DRAW_EVERY),
            None => tokio::time::interval_at(now + line_every, line_every),
        };
        loop {
            ticks.tick().await;
            let figures = self.figures(&mut meter, Instant::now());
            match &bar {
                Some(bar) => bar.show(
                    figures.rows,
                    figures.rows_expected,
                    figures.rows_text(),
                    figures.details(),
                ),
                None if matches!(screen, Screen::Events) => figures.event(self.table),
                None => tracing::info!("{}", figures.line(self.table)),
            }
        }
    }

    fn figures(&self, meter: &mut Meter, now: Instant) -> Figures {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (rows, raw_bytes) = (get(&self.seen), get(&self.raw_bytes));
        Figures {
            rows,
            rows_expected: self.rows_expected,
            sent: get(&self.sent),
            held: get(&self.held),
            raw_bytes,
            rate: meter.note(now, rows, raw_bytes),
            waiting: self.waiting(),
        }
    }

    fn waits(&self) -> MutexGuard<'_, Waits> {
        self.waits.lock().expect("nobody panics with the lock held")
    }
}

impl Waits {
    /// One more waits; gives whether that should be logged.
    fn begin(&mut self, reason: &str, now: Instant) -> bool {
        *self.now.entry(reason.to_owned()).or_default() += 1;
        let told = self.told.get(reason).copied();
        let is_due = told.is_none_or(|told| now.duration_since(told) >= TELL_EVERY);
        if is_due {
            self.told.insert(reason.to_owned(), now);
        }
        is_due
    }

    fn end(&mut self, reason: &str) {
        if let Some(workers) = self.now.get_mut(reason) {
            *workers -= 1;
            if *workers == 0 {
                self.now.remove(reason);
            }
        }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        self.progress.waits().end(&self.reason);
    }
}

impl Figures {
    /// When it will be done, if it goes on like this; `None`: nobody knows.
    fn left_s(&self) -> Option<u64> {
        let rows_left = self.rows_expected.checked_sub(self.rows).filter(|left| *left > 0)?;
        (self.rate.rows_per_s > 0.0).then(|| (rows_left as f64 / self.rate.rows_per_s) as u64)
    }

    fn line(&self, table: Table) -> String {
        format!("{table}: {}, {}", self.rows_text(), self.details())
    }

    fn rows_text(&self) -> String {
        match self.rows_expected > self.rows {
            true => format!(
                "{} of about {} rows",
                HumanCount(self.rows),
                HumanCount(self.rows_expected)
            ),
            false => format!("{} rows", HumanCount(self.rows)),
        }
    }

    fn details(&self) -> String {
        let mut text = format!(
            "{}, {} rows/s, {}/s",
            HumanBytes(self.raw_bytes),
            HumanCount(self.rate.rows_per_s as u64),
            HumanBytes(self.rate.bytes_per_s as u64),
        );
        if let Some(left_s) = self.left_s() {
            text += &format!(", {} left", HumanDuration(Duration::from_secs(left_s)));
        }
        if self.held > 0 {
            text += &format!(", {} held", HumanCount(self.held));
        }
        for (reason, workers) in &self.waiting {
            text += &format!("; {workers} waiting: {reason}");
        }
        text
    }

    /// The same for a program.
    fn event(&self, table: Table) {
        let waiting: Vec<_> = self.waiting.iter().map(|(reason, _)| reason.as_str()).collect();
        tracing::info!(
            table = table.name(),
            rows = self.rows,
            rows_expected = (self.rows_expected > 0).then_some(self.rows_expected),
            rows_sent = self.sent,
            rows_held = self.held,
            raw_bytes = self.raw_bytes,
            rows_per_s = self.rate.rows_per_s as u64,
            bytes_per_s = self.rate.bytes_per_s as u64,
            left_s = self.left_s(),
            workers_waiting = self.waiting.iter().map(|(_, workers)| *workers).sum::<u32>(),
            waiting = waiting.join("; "),
            "progress"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures() -> Figures {
        Figures {
            rows: 1234,
            rows_expected: 0,
            sent: 1200,
            held: 0,
            raw_bytes: 3 << 20,
            rate: Rate { rows_per_s: 10.4, bytes_per_s: 2048.0 },
            waiting: Vec::new(),
        }
    }

    #[test]
    fn a_line_says_what_is_known() {
        let line = figures().line(Table::Runs);
        assert_eq!(line, "workflow_runs: 1,234 rows, 3.00 MiB, 10 rows/s, 2.00 KiB/s");
        let all = Figures {
            rows_expected: 2274,
            held: 5,
            waiting: vec![("--rows-per-s".to_owned(), 2), ("quota".to_owned(), 1)],
            ..figures()
        };
        assert_eq!(
            all.line(Table::Runs),
            "workflow_runs: 1,234 of about 2,274 rows, 3.00 MiB, 10 rows/s, 2.00 KiB/s, \
             2 minutes left, 5 held; 2 waiting: --rows-per-s; 1 waiting: quota"
        );
        let beyond = Figures { rows_expected: 1000, ..figures() };
        assert_eq!((beyond.left_s(), beyond.rows_text()), (None, "1,234 rows".to_owned()));
        let stands = Figures { rows_expected: 2274, rate: Rate::default(), ..figures() };
        assert_eq!(stands.left_s(), None);
    }

    #[test]
    fn a_wait_is_shown_as_long_as_it_lasts_and_told_once_a_minute() {
        let progress = Progress::new(Table::Runs, 0);
        let first = progress.wait("quota");
        let second = progress.wait("quota");
        assert_eq!(progress.waiting(), [("quota".to_owned(), 2)]);
        drop(first);
        assert_eq!(progress.waiting(), [("quota".to_owned(), 1)]);
        drop(second);
        assert_eq!(progress.waiting(), []);

        let (mut waits, now) = (Waits::default(), Instant::now());
        assert!(waits.begin("quota", now));
        assert!(waits.begin("pace", now));
        assert!(!waits.begin("quota", now + Duration::from_secs(59)));
        assert!(waits.begin("quota", now + Duration::from_secs(60)));
        assert!(!waits.begin("quota", now + Duration::from_secs(61)));
    }
}
