//! How fast requests may go out, and to which shard: rates that the operator sets, and what SLS's
//! quotas have let through so far.
//!
//! ```text
//! rows, bytes   before a batch's intent: what waits here is not in doubt
//! room          before the intent, too: the batch goes to the shard with most of it
//! requests      before every attempt, repetitions too; a repetition stays in its shard
//! ```
//!
//! All workers of the process share one [`Pace`].

pub mod quota;
pub mod quotas;

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use governor::clock::{Clock as _, DefaultClock};
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::Notify;

use crate::pipeline::guard::pace::quotas::{Answer, Limit, Quotas, Ticket};
use crate::pipeline::progress::Progress;
use crate::pipeline::shutdown::Shutdown;
use crate::sls::answer::{Failure, NextAction};

/// Who waits for room asks again after so long at the latest: others may have left some.
const ASK_EVERY: Duration = Duration::from_millis(100);

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
    begun: Instant,
    in_flight_max: u32,
    quotas: Mutex<Quotas>,
    /// Who asks for room first gets it first.
    line: tokio::sync::Mutex<()>,
    freed: Notify,
    in_flight: AtomicU32,
    waiting: AtomicU32,
}

/// The right to make one attempt, to one shard.
pub struct Turn<'a> {
    pace: &'a Pace,
    /// `None`: its end is told.
    ticket: Option<Ticket>,
}

impl Pace {
    /// `burst_bytes`: the largest batch, which goes out in one piece; `in_flight_max`: batches that
    /// can be on their way at the same time.
    pub fn new(rates: Rates, burst_bytes: u64, in_flight_max: u32) -> Self {
        let burst_kib = u32::try_from(burst_bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        Self {
            requests: rates.requests_per_s.map(|rate| Gate::new(rate, rate, "--requests-per-s")),
            rows: rates.rows_per_s.map(|rate| Gate::new(rate, rate, "--rows-per-s")),
            kib: rates.kib_per_s.map(|rate| {
                Gate::new(rate, NonZeroU32::new(burst_kib).unwrap_or(rate), "--bytes-per-s")
            }),
            begun: Instant::now(),
            in_flight_max,
            quotas: Mutex::new(Quotas::new(in_flight_max)),
            line: tokio::sync::Mutex::default(),
            freed: Notify::new(),
            in_flight: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
        }
    }

    /// From now on another logstore is sent to, with these shards that take writes.
    pub fn begin(&self, shards: &[u32]) {
        let mut quotas = self.quotas();
        *quotas = Quotas::new(self.in_flight_max);
        quotas.set_shards(shards);
    }

    /// These shards of the logstore take writes now.
    pub fn set_shards(&self, shards: &[u32]) {
        self.quotas().set_shards(shards);
    }

    /// How large batches should be to fill the shards well.
    pub fn batch_bytes(&self, batch_bytes_max: u64) -> u64 {
        self.quotas().batch_bytes(batch_bytes_max)
    }

    /// Whether a shard has refused a batch for its quota, so that it is known what it takes.
    pub fn is_known(&self) -> bool {
        self.quotas().is_known()
    }

    /// A batch that was to have `asked` bytes has `made`.
    pub fn made(&self, asked: u64, made: u64) {
        self.quotas().made(asked, made);
    }

    /// What the shards take, if they are what the run waits for.
    pub fn limit(&self) -> Option<Limit> {
        self.quotas().limit()
    }

    /// Whether more than `workers` would find work: most of these wait for SLS's answer, and none
    /// for room.
    pub fn wants_workers(&self, workers: u32) -> bool {
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        4 * in_flight >= 3 * workers && self.waiting.load(Ordering::Relaxed) == 0
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

    /// Waits for room for a batch of `bytes` in any shard; `None` when asked to stop meanwhile.
    /// Comes before the intent, which names the shard by its hash key.
    pub async fn room(
        &self,
        bytes: u64,
        progress: &Progress,
        shutdown: &mut Shutdown,
    ) -> Option<Turn<'_>> {
        self.request(progress, shutdown).await?;
        let _waits = Count::up(&self.waiting);
        let mut shown = None;
        let _place = match self.line.try_lock() {
            Ok(place) => place,
            Err(_) => {
                shown = Some(progress.wait(FULL));
                shutdown.or(self.line.lock()).await?
            }
        };
        loop {
            let taken = {
                let mut quotas = self.quotas();
                quotas.take(self.begun.elapsed(), bytes)
            };
            match taken {
                Ok(ticket) => return Some(self.turn(ticket)),
                Err(at) => {
                    shown.get_or_insert_with(|| progress.wait(FULL));
                    self.pause(at, shutdown).await?;
                }
            }
        }
    }

    /// Waits for room for a batch of `bytes` in `shard`, where it must go; `None` when asked to stop
    /// meanwhile.
    pub async fn room_in(
        &self,
        shard: u32,
        bytes: u64,
        progress: &Progress,
        shutdown: &mut Shutdown,
    ) -> Option<Turn<'_>> {
        self.request(progress, shutdown).await?;
        let _bound = Bound::to(self, shard);
        let mut shown = None;
        loop {
            let taken = {
                let mut quotas = self.quotas();
                quotas.take_on(self.begun.elapsed(), shard, bytes)
            };
            match taken {
                Ok(ticket) => return Some(self.turn(ticket)),
                Err(at) => {
                    shown.get_or_insert_with(|| progress.wait(FULL));
                    self.pause(at, shutdown).await?;
                }
            }
        }
    }

    async fn request(&self, progress: &Progress, shutdown: &mut Shutdown) -> Option<()> {
        match &self.requests {
            Some(requests) => requests.pass(1, progress, shutdown).await,
            None => Some(()),
        }
    }

    /// Until `at`, or until something may have changed.
    async fn pause(&self, at: Duration, shutdown: &mut Shutdown) -> Option<()> {
        let pause =
            at.saturating_sub(self.begun.elapsed()).clamp(Duration::from_millis(1), ASK_EVERY);
        let freed = self.freed.notified();
        shutdown.or(tokio::time::timeout(pause, freed)).await.map(drop)
    }

    fn turn(&self, ticket: Ticket) -> Turn<'_> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Turn { pace: self, ticket: Some(ticket) }
    }

    fn quotas(&self) -> MutexGuard<'_, Quotas> {
        // Its numbers are whole whatever panicked.
        self.quotas.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a batch waits for room.
const FULL: &str = "SLS's shards take no more for now";

/// Counts one more as long as it lives.
struct Count<'a>(&'a AtomicU32);

impl<'a> Count<'a> {
    fn up(counter: &'a AtomicU32) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A batch that must go to a shard, and waits: nothing new goes there before.
struct Bound<'a> {
    pace: &'a Pace,
    shard: u32,
}

impl<'a> Bound<'a> {
    fn to(pace: &'a Pace, shard: u32) -> Self {
        pace.quotas().waits_for(shard, true);
        Self { pace, shard }
    }
}

impl Drop for Bound<'_> {
    fn drop(&mut self) {
        self.pace.quotas().waits_for(self.shard, false);
        self.pace.freed.notify_waiters();
    }
}

impl Turn<'_> {
    /// The shard that it is for.
    pub fn shard(&self) -> Option<u32> {
        self.ticket.map(|ticket| ticket.shard)
    }

    /// What came of the attempt decides what may go out next.
    pub fn ended<T>(mut self, answer: &Result<T, Failure>) {
        self.tell(match answer {
            Ok(_) => Answer::Stored,
            Err(failure) if failure.next != NextAction::Later => Answer::Other,
            Err(failure) if failure.is("WriteQuotaExceed") => Answer::ProjectRefused,
            Err(_) => Answer::ShardRefused,
        });
    }

    fn tell(&mut self, answer: Answer) {
        let Some(ticket) = self.ticket.take() else { return };
        self.pace.in_flight.fetch_sub(1, Ordering::Relaxed);
        let changed = {
            let mut quotas = self.pace.quotas();
            quotas.answered(self.pace.begun.elapsed(), ticket, answer)
        };
        if let Some((before, now)) = changed {
            let mib = |bytes: f64| bytes / f64::from(1 << 20);
            tracing::debug!(
                "shard {}: {:.2} MiB/s, no more {:.2} MiB/s",
                ticket.shard,
                mib(now),
                mib(before)
            );
        }
        self.pace.freed.notify_waiters();
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // Nothing was sent, or nobody waited for the answer.
        self.tell(Answer::Other);
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

    #[tokio::test]
    async fn room_is_waited_for_with_its_reason_shown_and_repetitions_come_first() {
        let (pace, progress) = (Pace::new(Rates::default(), 1, 8), Progress::new(Table::Runs, 0));
        pace.begin(&[7]);
        let (_stopper, mut shutdown) = channel();
        let first = pace.room(5_000_000, &progress, &mut shutdown).await.unwrap();
        assert_eq!(first.shard(), Some(7));
        let mut other = shutdown.clone();
        let second = pace.room(1, &progress, &mut other);
        tokio::pin!(second);
        assert!((&mut second).now_or_never().is_none(), "its second is full");
        assert_eq!(progress.waiting(), [(FULL.to_owned(), 1)]);
        let quota = Failure {
            next: NextAction::Later,
            code: "ShardWriteQuotaExceed".to_owned(),
            what: String::new(),
        };
        first.ended(&Err::<(), _>(quota));
        let mut other = shutdown.clone();
        let bound = pace.room_in(7, 1, &progress, &mut other);
        let first = tokio::select! {
            turn = bound => turn.map(|_| "bound"),
            turn = &mut second => turn.map(|_| "new"),
        };
        assert_eq!(first, Some("bound"));
    }

    #[tokio::test]
    async fn a_batch_of_any_size_passes_and_a_stop_ends_the_wait() {
        let one = NonZeroU32::MIN;
        let rates = Rates { kib_per_s: Some(one), ..Rates::default() };
        // Four KiB at once, then one a second.
        let (pace, progress) = (Pace::new(rates, 4096, 8), Progress::new(Table::Runs, 0));
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
