//! For how long a worker waits for nothing but the ledger.
//!
//! A worker has two halves beside each other: one makes the next step ready, one uploads. It waits
//! for the ledger while a half is in a call of it and no half does anything else.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::pipeline::progress::Progress;

/// Measures one worker; its halves share it.
#[derive(Debug)]
pub struct Watch {
    progress: Arc<Progress>,
    halves: Mutex<Halves>,
}

/// What the halves do now.
#[derive(Debug, Default)]
struct Halves {
    /// Halves that do something, calls of the ledger included.
    busy: u32,
    /// Halves in a call of the ledger.
    in_ledger: u32,
    waits_since: Option<Instant>,
}

impl Halves {
    /// Notes what the halves do from `now` on; gives how long they waited until then.
    fn change(&mut self, now: Instant, change: impl FnOnce(&mut Self)) -> Duration {
        let waited = self.waits_since.take().map(|since| now.saturating_duration_since(since));
        change(self);
        if self.in_ledger > 0 && self.in_ledger >= self.busy {
            self.waits_since = Some(now);
        }
        waited.unwrap_or_default()
    }
}

/// Undoes a change when what it stands for is over, or is given up.
struct Until<'a>(&'a Watch, fn(&mut Halves));

impl Drop for Until<'_> {
    fn drop(&mut self) {
        self.0.note(self.1);
    }
}

impl Watch {
    /// Adds to the counters of `progress`.
    pub fn new(progress: &Arc<Progress>) -> Self {
        Self { progress: Arc::clone(progress), halves: Mutex::default() }
    }

    /// Does the work of one half.
    pub async fn work<T>(&self, work: impl Future<Output = T>) -> T {
        self.note(|halves| halves.busy += 1);
        let _until = Until(self, |halves| halves.busy -= 1);
        work.await
    }

    /// Calls the ledger.
    pub async fn ledger<T>(&self, call: impl Future<Output = T>) -> T {
        self.note(|halves| halves.in_ledger += 1);
        let _until = Until(self, |halves| halves.in_ledger -= 1);
        call.await
    }

    fn note(&self, change: fn(&mut Halves)) {
        let mut halves = self.halves.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = halves.change(Instant::now(), change);
        let nanos = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
        self.progress.ledger_ns.fetch_add(nanos, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_of_the_ledger_counts_while_nothing_else_is_done() {
        let start = Instant::now();
        let mut halves = Halves::default();
        let mut waited = |at_s: u64, change: fn(&mut Halves)| {
            halves.change(start + Duration::from_secs(at_s), change).as_secs()
        };
        assert_eq!(waited(0, |halves| halves.busy += 1), 0, "one half uploads");
        assert_eq!(waited(1, |halves| halves.busy += 1), 0, "the other reads");
        assert_eq!(waited(2, |halves| halves.in_ledger += 1), 0);
        assert_eq!(waited(5, |halves| halves.busy -= 1), 0, "until then the other was reading");
        assert_eq!(waited(9, |halves| halves.busy += 1), 4, "nothing was done beside it");
        assert_eq!(waited(10, |halves| halves.in_ledger += 1), 0);
        assert_eq!(waited(12, |halves| halves.in_ledger -= 1), 2, "both were in the ledger");
        assert_eq!(waited(15, |halves| halves.in_ledger -= 1), 0);
        assert_eq!(waited(20, |halves| halves.busy -= 2), 0);
        assert_eq!(waited(21, |halves| halves.in_ledger += 1), 0, "a call between two ranges");
        assert_eq!(waited(24, |halves| halves.in_ledger -= 1), 3);
    }
}
