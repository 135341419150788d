//! Where the next batch may go: the quotas of all shards of a logstore, and of the project. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::pipeline::guard::pace::quota::{Pass, Quota, SHARD_BYTES, Said};

/// A probe ends with a refused request. So many stored ones pay for it: one in 300 is refused.
const STORED_PER_PROBE: f64 = 300.0;

/// So many probes may be saved up.
const PROBES_MAX: f64 = 2.0;

/// How many batches should fit into a shard's second: where few do, much of the last one is left.
const BATCHES_MIN: f64 = 3.0;
const BATCHES_MAX: f64 = 40.0;

/// About so many a second for all shards together to begin with.
const BATCHES_PER_S: f64 = 640.0;

/// Nothing is said of shards that have not been used for so many of their seconds.
const CYCLES_MIN: u32 = 10;

/// How often their size is thought over.
const SIZE_EVERY: Duration = Duration::from_secs(1);

/// What the batches that should fill a second fill of it: a little less, or the last of them would
/// not fit.
const FILL: f64 = 0.992;

/// A batch is not made smaller than this for fitting.
const BATCH_BYTES_MIN: u64 = 65_536;

/// The quotas of one logstore's shards, and of its project.
#[derive(Debug, Clone)]
pub struct Quotas {
    shards: BTreeMap<u32, Shard>,
    /// Over all shards; without a limit until it is refused.
    project: Quota,
    /// Probes that may begin.
    probes: f64,
    /// What batches have of the size that was asked for, on average.
    made: f64,
    /// How many batches should fit into a shard's second, and how many at most.
    batches: f64,
    batches_max: f64,
    /// Batches that can be on their way at the same time.
    in_flight_max: u32,
    /// Seconds from a batch's turn to its answer, on average.
    delay_s: f64,
    sized: Duration,
    /// Seconds of all shards so far, and those that were used in full.
    cycles: (u32, u32),
}

/// What the shards take that are waited for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limit {
    pub shards: usize,
    /// All of them together.
    pub bytes_per_s: f64,
}

#[derive(Debug, Clone)]
struct Shard {
    quota: Quota,
    /// Batches that must go to this shard, and wait.
    waiting: u32,
    probed: Duration,
}

/// The right to send one batch to a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    pub shard: u32,
    at: Duration,
    of_shard: Pass,
    of_project: Pass,
}

/// What refused an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Stored,
    ShardRefused,
    ProjectRefused,
    /// Nothing that tells of a quota.
    Other,
}

impl Quotas {
    /// No shard is known yet. `in_flight_max`: batches that can be on their way at the same time.
    pub fn new(in_flight_max: u32) -> Self {
        Self {
            shards: BTreeMap::new(),
            project: Quota::of_project(),
            probes: 0.0,
            made: 1.0,
            batches: 0.0,
            batches_max: BATCHES_MAX,
            in_flight_max,
            delay_s: 0.0,
            sized: Duration::ZERO,
            cycles: (0, 0),
        }
    }

    /// The shards that take writes now. A new one, split off from another, is as old ones are.
    pub fn set_shards(&mut self, shards: &[u32]) {
        if self.batches == 0.0 {
            let batches = BATCHES_PER_S / shards.len().max(1) as f64;
            self.batches = batches.clamp(2.0 * BATCHES_MIN, BATCHES_MAX);
        }
        let like = self.typical().map_or_else(|| Quota::of_shard(SHARD_BYTES), Quota::of_shard);
        self.shards.retain(|id, shard| shards.contains(id) || shard.waiting > 0);
        for id in shards {
            self.shards.entry(*id).or_insert_with(|| Shard::new(like.clone()));
        }
    }

    /// A place for a batch of `bytes` in the shard with most room, or when to ask again.
    pub fn take(&mut self, now: Duration, bytes: u64) -> Result<Ticket, Duration> {
        if let Some(at) = self.project.wait(now, bytes) {
            return Err(at);
        }
        let (mut best, mut first) = (None::<(f64, u32)>, Duration::MAX);
        for (id, shard) in &mut self.shards {
            let waits = match shard.quota.wait(now, bytes) {
                // These come first; one of them tells when it has gone.
                None if shard.waiting > 0 => Some(Duration::MAX),
                waits => waits,
            };
            match waits {
                Some(at) => first = first.min(at),
                None => {
                    let fill = shard.quota.fill(now);
                    if best.is_none_or(|(least, _)| fill < least) {
                        best = Some((fill, *id));
                    }
                }
            }
        }
        let Some((_, id)) = best else { return Err(first) };
        self.take_in(now, id, bytes)
    }

    /// A place for a batch that must go to `shard`, or when to ask again.
    pub fn take_on(&mut self, now: Duration, shard: u32, bytes: u64) -> Result<Ticket, Duration> {
        let own =
            self.shards.entry(shard).or_insert_with(|| Shard::new(Quota::of_shard(SHARD_BYTES)));
        match self.project.wait(now, bytes).max(own.quota.wait(now, bytes)) {
            Some(at) => Err(at),
            None => self.take_in(now, shard, bytes),
        }
    }

    /// A batch that must go to `shard` begins to wait, or ends.
    pub fn waits_for(&mut self, shard: u32, is_waiting: bool) {
        if let Some(shard) = self.shards.get_mut(&shard) {
            match is_waiting {
                true => shard.waiting += 1,
                false => shard.waiting = shard.waiting.saturating_sub(1),
            }
        }
    }

    fn take_in(&mut self, now: Duration, id: u32, bytes: u64) -> Result<Ticket, Duration> {
        let next = self.shards.iter().filter(|(_, shard)| shard.quota.wants_probe());
        let is_next =
            next.min_by_key(|(_, shard)| shard.probed).is_some_and(|(next, _)| *next == id);
        let shard = self.shards.get_mut(&id).expect("who asks names a shard of these");
        if shard.quota.wants_probe() && is_next && self.probes >= 1.0 {
            self.probes -= 1.0;
            shard.quota.probe();
            shard.probed = now;
        }
        if now >= self.sized + SIZE_EVERY {
            self.sized = now;
            self.size();
        }
        let shard = self.shards.get_mut(&id).expect("who asks names a shard of these");
        let before = shard.quota.went_through();
        let of_shard = shard.quota.take(now, bytes);
        let through = shard.quota.went_through();
        self.lift(before, through);
        Ok(Ticket { shard: id, at: now, of_shard, of_project: self.project.take(now, bytes) })
    }

    /// What came of a batch.
    ///
    /// Gives the shard's limit before and after, where a refusal has changed it.
    pub fn answered(
        &mut self,
        now: Duration,
        ticket: Ticket,
        answer: Answer,
    ) -> Option<(f64, f64)> {
        let shard = self.shards.get_mut(&ticket.shard)?;
        let limit = shard.quota.limit();
        let was_probing = shard.quota.is_probing() || self.project.is_probing();
        let (of_shard, of_project) = match answer {
            Answer::Stored => (Said::Stored, Said::Stored),
            Answer::ShardRefused => (Said::Refused, Said::Other),
            Answer::ProjectRefused => (Said::Other, Said::Refused),
            Answer::Other => (Said::Other, Said::Other),
        };
        let delay_s = now.saturating_sub(ticket.at).as_secs_f64();
        self.delay_s += (delay_s - self.delay_s) / 64.0;
        let before = shard.quota.went_through();
        shard.quota.answered(now, ticket.of_shard, of_shard);
        let through = shard.quota.went_through();
        let changed = (limit, shard.quota.limit());
        self.lift(before, through);
        self.project.answered(now, ticket.of_project, of_project);
        self.probes += match answer {
            Answer::Stored => 1.0 / STORED_PER_PROBE,
            Answer::Other => 0.0,
            // It was paid for.
            Answer::ShardRefused | Answer::ProjectRefused if was_probing => 0.0,
            Answer::ShardRefused | Answer::ProjectRefused => -1.0,
        };
        self.probes = self.probes.clamp(-PROBES_MAX, PROBES_MAX);
        if self.project.wants_probe() && self.probes >= 1.0 {
            self.probes -= 1.0;
            self.project.probe();
        }
        (answer == Answer::ShardRefused && changed.0 != changed.1).then_some(changed)
    }

    /// Where shards are full, smaller batches fill them better. Where they are not, something else
    /// is the limit, and larger ones cost less.
    fn size(&mut self) {
        let cycles = self.shards.values_mut().map(|shard| shard.quota.take_cycles());
        let (all, full) = cycles.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        self.cycles = (self.cycles.0 + all, self.cycles.1 + full);
        let full = f64::from(full) / f64::from(all.max(1));
        // More than that would not be on their way at the same time.
        let per_s = 0.7 * f64::from(self.in_flight_max) / self.delay_s.max(0.001);
        let most = (per_s / self.shards.len().max(1) as f64).min(self.batches_max);
        let is_known = self.is_known();
        if full < 0.6 && is_known {
            self.batches_max = (0.9 * self.batches).max(BATCHES_MIN);
            self.batches *= 0.85;
        } else if full < 0.1 {
            self.batches *= 0.5;
        } else if full > 0.9 {
            // What was too small once may be tried again, much later.
            self.batches_max = (1.01 * self.batches_max).min(BATCHES_MAX);
            self.batches *= 1.1;
        }
        self.batches = self.batches.min(most).clamp(BATCHES_MIN, BATCHES_MAX);
    }

    /// Where one shard takes more than it did, the others do so, too.
    fn lift(&mut self, before: f64, through: f64) {
        if through > before && before > 0.0 {
            self.shards.values_mut().for_each(|shard| shard.quota.lift(before, through));
        }
    }

    /// Whether a shard has refused a batch.
    pub fn is_known(&self) -> bool {
        self.shards.values().any(|shard| shard.quota.is_known())
    }

    /// What the shards take, if they were full most of the time.
    pub fn limit(&self) -> Option<Limit> {
        let (all, full) = self.cycles;
        let is_limit = self.is_known() && all >= CYCLES_MIN && 10 * full > 6 * all;
        is_limit.then(|| Limit {
            shards: self.shards.len(),
            bytes_per_s: self.shards.values().map(|shard| shard.quota.limit()).sum(),
        })
    }

    /// How large batches should be, so that some of them fill a shard's second well.
    pub fn batch_bytes(&self, batch_bytes_max: u64) -> u64 {
        let Some(asked) = self.asked() else { return batch_bytes_max };
        let bytes = (asked / self.made) as u64;
        bytes.clamp(BATCH_BYTES_MIN.min(batch_bytes_max), batch_bytes_max)
    }

    /// Notes that a batch which was to have `asked` bytes has `made`. Batches are planned ahead, so
    /// that is not what would be asked for now.
    pub fn made(&mut self, asked: u64, made: u64) {
        let part = (made as f64 / asked.max(1) as f64).clamp(0.5, 1.2);
        self.made += (part - self.made) / 256.0;
    }

    /// How large they should turn out.
    fn asked(&self) -> Option<f64> {
        let wanted = self.batches.floor();
        self.typical().map(|limit| FILL * limit / wanted)
    }

    /// What the middle one of the shards takes in a second; `None`: there are none.
    pub fn typical(&self) -> Option<f64> {
        let mut limits: Vec<_> = self.shards.values().map(|shard| shard.quota.limit()).collect();
        limits.sort_by(f64::total_cmp);
        limits.get(limits.len() / 2).copied()
    }
}

impl Shard {
    fn new(quota: Quota) -> Self {
        Self { quota, waiting: 0, probed: Duration::ZERO }
    }
}

#[cfg(test)]
mod simulated;
