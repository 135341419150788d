//! How fast requests may go out: rates that the operator sets, and as many at once as SLS's quotas
//! allow.
//!
//! ```text
//! rows, bytes   before a batch's intent: what waits here is not in doubt
//! requests      before every attempt, repetitions too
//! concurrency   halved by a quota answer; one more after every few successes
//! ```
//!
//! All workers of the process share one [`Pace`].

use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::Notify;

use crate::pipeline::progress::Progress;
use crate::pipeline::shutdown::Shutdown;
use crate::sls::answer::{Failure, NextAction};

/// After so many successes in a row one more request may be in flight.
const SUCCESSES_PER_STEP: u32 = 16;

/// Rates of this process; `None`: no bound.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    pub requests_per_s: Option<NonZeroU32>,
    pub rows_per_s: Option<NonZeroU32>,
    /// Before compression, as SLS's quotas count; in KiB, since governor's cells are whole
    /// nanoseconds, and a byte at 100 MB/s is ten of them.
    pub kib_per_s: Option<NonZeroU32>,
}

/// What a batch costs.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub rows: u64,
    pub raw_bytes: u64,
}

/// The pace of this process.
pub struct Pace {
    requests: Option<Gate>,
    rows: Option<Gate>,
    kib: Option<Gate>,
    concurrency: Mutex<Concurrency>,
    freed: Notify,
}

/// The right to make one attempt; the next may begin when it is dropped.
pub struct Turn<'a> {
    pace: &'a Pace,
    generation: u64,
}

impl Pace {
    /// `burst_bytes`: the largest batch, which goes out in one piece; `workers`: how many may be in
    /// flight at most.
    pub fn new(rates: Rates, burst_bytes: u64, workers: u32) -> Self {
        let burst_kib = u32::try_from(burst_bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        Self {
            requests: rates.requests_per_s.map(|rate| Gate::new(rate, rate, "--requests-per-s")),
            rows: rates.rows_per_s.map(|rate| Gate::new(rate, rate, "--rows-per-s")),
            kib: rates.kib_per_s.map(|rate| {
                Gate::new(rate, NonZeroU32::new(burst_kib).unwrap_or(rate), "--bytes-per-s")
            }),
            concurrency: Mutex::new(Concurrency::new(workers)),
            freed: Notify::new(),
        }
    }

    /// Waits until a batch may go out; `None` when asked to stop meanwhile. Comes before the intent.
    pub async fn admit(
        &self,
        load: Load,
        progress: &Progress,
        shutdown: &mut Shutdown,
    ) -> Option<()> {
        let kib = load.raw_bytes.div_ceil(1024);
        for (gate, cells) in [(&self.rows, load.rows), (&self.kib, kib)] {
            if let Some(gate) = gate {
                gate.pass(cells, progress, shutdown).await?;
            }
        }
        Some(())
    }

    /// Waits until one more attempt may be made; `None` when asked to stop meanwhile.
    pub async fn turn(&self, progress: &Progress, shutdown: &mut Shutdown) -> Option<Turn<'_>> {
        if let Some(requests) = &self.requests {
            requests.pass(1, progress, shutdown).await?;
        }
        let mut shown = None;
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // From here on no turn that is given back is missed.
            freed.as_mut().enable();
            let limit = {
                let mut concurrency = self.concurrency();
                if let Some(generation) = concurrency.enter() {
                    return Some(Turn { pace: self, generation });
                }
                concurrency.limit
            };
            shown.get_or_insert_with(|| {
                progress.wait(format!("SLS's quota: {limit} at a time, for now"))
            });
            shutdown.or(freed).await?;
        }
    }

    fn concurrency(&self) -> MutexGuard<'_, Concurrency> {
        // Its numbers are whole whatever panicked.
        self.concurrency.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// What came of the attempt decides how many may be made at once.
    pub fn ended<T>(self, answer: &Result<T, Failure>) {
        let told = {
            let mut concurrency = self.pace.concurrency();
            match answer {
                Ok(_) => concurrency.succeeded(),
                Err(failure) if failure.next == NextAction::Later => {
                    concurrency.refused(self.generation)
                }
                Err(_) => None,
            }
        };
        match (told, answer) {
            (Some(limit), Err(failure)) => {
                tracing::info!("SLS says {}: from now on {limit} requests at a time", failure.code)
            }
            (Some(limit), Ok(_)) => tracing::debug!("{limit} requests at a time again"),
            (None, _) => {}
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.pace.concurrency().leave();
        self.pace.freed.notify_waiters();
    }
}

/// One rate. Who waits stands in line: a large batch is not overtaken for ever by small ones.
struct Gate {
    limiter: DefaultDirectRateLimiter,
    burst: NonZeroU32,
    line: tokio::sync::Mutex<()>,
    reason: &'static str,
}

impl Gate {
    fn new(per_s: NonZeroU32, burst: NonZeroU32, reason: &'static str) -> Self {
        let limiter = RateLimiter::direct(Quota::per_second(per_s).allow_burst(burst));
        Self { limiter, burst, line: tokio::sync::Mutex::default(), reason }
    }

    /// Takes `cells`, in pieces of a burst at most: governor gives no more at once, ever.
    async fn pass(&self, cells: u64, progress: &Progress, shutdown: &mut Shutdown) -> Option<()> {
        let mut left = cells;
        let mut shown = None;
        let _place = match self.line.try_lock() {
            Ok(place) => place,
            Err(_) => {
                shown = Some(progress.wait(self.reason));
                shutdown.or(self.line.lock()).await?
            }
        };
        while left > 0 {
            let piece = u32::try_from(left).unwrap_or(u32::MAX).min(self.burst.get());
            let cells = NonZeroU32::new(piece).expect("neither is zero");
            match self.limiter.check_n(cells).expect("a piece fits into a burst") {
                Ok(()) => left -= u64::from(piece),
                Err(early) => {
                    shown.get_or_insert_with(|| progress.wait(self.reason));
                    let pause = early.wait_time_from(DefaultClock::default().now());
                    shutdown.or(tokio::time::sleep(pause)).await?;
                }
            }
        }
        Some(())
    }
}

/// How many attempts may be in flight at once. Pure: halves after a refusal, grows with success.
#[derive(Debug)]
struct Concurrency {
    limit: u32,
    limit_max: u32,
    in_flight: u32,
    successes: u32,
    /// Grows with each halving: what was in flight before has nothing new to say about it.
    generation: u64,
}

impl Concurrency {
    fn new(limit_max: u32) -> Self {
        let limit_max = limit_max.max(1);
        Self { limit: limit_max, limit_max, in_flight: 0, successes: 0, generation: 0 }
    }

    fn enter(&mut self) -> Option<u64> {
        if self.in_flight >= self.limit {
            return None;
        }
        self.in_flight += 1;
        Some(self.generation)
    }

    fn leave(&mut self) {
        self.in_flight -= 1;
    }

    /// The new limit, if it has changed.
    fn succeeded(&mut self) -> Option<u32> {
        self.successes += 1;
        if self.successes < SUCCESSES_PER_STEP || self.limit == self.limit_max {
            return None;
        }
        self.successes = 0;
        self.limit += 1;
        Some(self.limit)
    }

    /// The new limit, if it has changed.
    fn refused(&mut self, generation: u64) -> Option<u32> {
        self.successes = 0;
        if generation != self.generation || self.limit == 1 {
            return None;
        }
        self.generation += 1;
        self.limit /= 2;
        Some(self.limit)
    }
}

/// How long to wait before attempt `attempt` (1 is the first repetition): 0.2 s, doubled each
/// time, at most 10 s; `jitter` (0 to 1) takes up to half of it away, so that workers that were
/// refused together do not come back together.
pub fn backoff(attempt: u32, jitter: f64) -> Duration {
    let full = 0.2 * f64::from(2u32.saturating_pow(attempt.saturating_sub(1).min(10)));
    Duration::from_secs_f64(full.min(10.0) * (1.0 - jitter / 2.0))
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;
    use crate::pipeline::shutdown::channel;
    use crate::record::table::Table;

    #[test]
    fn waits_grow_and_are_bounded() {
        assert_eq!(backoff(1, 0.0), Duration::from_millis(200));
        assert_eq!(backoff(3, 0.0), Duration::from_millis(800));
        assert_eq!(backoff(3, 1.0), Duration::from_millis(400));
        assert_eq!(backoff(1000, 0.0), Duration::from_secs(10));
    }

    #[test]
    fn a_quota_answer_halves_what_may_be_in_flight_and_successes_creep_back() {
        let mut concurrency = Concurrency::new(8);
        let generations: Vec<_> = (0..8).map(|_| concurrency.enter()).collect();
        assert_eq!(generations, [Some(0); 8]);
        assert_eq!(concurrency.enter(), None);
        assert_eq!(concurrency.refused(0), Some(4));
        assert_eq!(concurrency.refused(0), None, "one burst of refusals is one word of SLS's");
        (0..4).for_each(|_| concurrency.leave());
        assert_eq!(concurrency.enter(), None, "four are still in flight");
        concurrency.leave();
        assert_eq!(concurrency.enter(), Some(1));
        assert_eq!(concurrency.refused(1), Some(2));
        assert_eq!(concurrency.refused(2), Some(1));
        assert_eq!(concurrency.refused(3), None, "one may always go");
        let steps: Vec<_> = (0..200).filter_map(|_| concurrency.succeeded()).collect();
        assert_eq!(steps, [2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(concurrency.refused(3), Some(4));
        (0..SUCCESSES_PER_STEP - 1).for_each(|_| assert_eq!(concurrency.succeeded(), None));
        assert_eq!(concurrency.refused(0), None);
        assert_eq!(concurrency.succeeded(), None, "successes are counted in a row");
    }

    #[tokio::test]
    async fn a_turn_is_waited_for_with_its_reason_shown() {
        let (pace, progress) = (Pace::new(Rates::default(), 1, 1), Progress::new(Table::Runs, 0));
        let (_stopper, mut shutdown) = channel();
        let first = pace.turn(&progress, &mut shutdown).await;
        let mut other = shutdown.clone();
        let second = pace.turn(&progress, &mut other);
        tokio::pin!(second);
        assert!((&mut second).now_or_never().is_none());
        assert_eq!(progress.waiting(), [("SLS's quota: 1 at a time, for now".to_owned(), 1)]);
        drop(first);
        assert!(second.await.is_some());
        assert!(progress.waiting().is_empty());
    }

    #[tokio::test]
    async fn a_batch_of_any_size_passes_and_a_stop_ends_the_wait() {
        let one = NonZeroU32::MIN;
        let rates = Rates { kib_per_s: Some(one), ..Rates::default() };
        // Four KiB at once, then one a second.
        let (pace, progress) = (Pace::new(rates, 4096, 1), Progress::new(Table::Runs, 0));
        let (stopper, mut shutdown) = channel();
        let admit = |raw_bytes| Load { rows: 1, raw_bytes };
        assert!(pace.admit(admit(4096), &progress, &mut shutdown).await.is_some());
        let mut other = shutdown.clone();
        let waits = pace.admit(admit(1 << 40), &progress, &mut other);
        tokio::pin!(waits);
        assert!((&mut waits).now_or_never().is_none());
        assert_eq!(progress.waiting(), [("--bytes-per-s".to_owned(), 1)]);
        stopper.stop();
        assert_eq!(waits.await, None);
        assert_eq!(pace.admit(admit(1), &progress, &mut shutdown).await, None);
    }
}
