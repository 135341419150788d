//! Learns how many bytes a shard takes in a second, from its answers. Pure: time is an argument.
//!
//! SLS counts by the second, so this does, too: in a *cycle*, a little longer than a second, go at
//! most `limit` bytes, spread over most of it. A cycle that went through in full may be followed by
//! a larger one, a refusal makes the next ones smaller:
//!
//! ```text
//! limit
//!   │   ╱refused                  probe: + 0.5 %, 1.5 %, 4.5 %, …
//!   │  ╱ │                      ╱refused
//!   │ ╱  └──▶ what was taken ──╱ └─────────────▶   hold
//!   │╱ doubles until the first refusal                              time
//! ```
//!
//! A probe ends with a refused request, so who may probe is decided by how many were not refused
//! lately ([`Quotas`](crate::pipeline::guard::pace::quotas::Quotas)).

use std::time::Duration;

/// What SLS documents a shard to take in a second (aliyun, data read and write). Not more is sent
/// before it was seen that this goes through: Dify may be writing to the same shard.
pub const SHARD_BYTES: f64 = 5_000_000.0;

/// Writes that SLS documents a shard to take in a second, and a project (600,000 a minute).
pub const SHARD_WRITES: u32 = 500;
const PROJECT_WRITES: u32 = 10_000;

/// A cycle; a bit longer than SLS's second, so that two cycles do not begin in one of its seconds.
const CYCLE: Duration = Duration::from_millis(1005);

/// A cycle's bytes are spread over this part of it. What is left absorbs delays.
const SPREAD: f64 = 0.8;

/// No limit is smaller: what was refused for a minute must still be tried.
const LIMIT_MIN: f64 = 65_536.0;

/// A late first answer puts off the next cycle by no more than this.
const LATE_MAX: Duration = Duration::from_millis(250);

/// A refusal that comes before this part of the limit is used is not ours alone.
const LATE: f64 = 0.9;

/// How long to let pass after such a refusal.
const PAUSE: Duration = Duration::from_millis(150);

/// After so many stored batches since its last refusal a shard is believed to be as others are.
const CALM: u32 = 150;

/// The first step of a probe.
const STEP_MIN: f64 = 0.005;

/// What a shard, or a project, takes.
#[derive(Debug, Clone)]
pub struct Quota {
    /// Bytes that may go out in a cycle.
    limit: f64,
    writes_max: u32,
    /// Growth after the next full cycle; `None`: no probe is on.
    step: Option<f64>,
    /// Never refused yet: each full cycle doubles the limit.
    is_new: bool,
    /// Where to grow back to: what was refused may have been another writer's doing.
    ceiling: Option<f64>,
    /// Batches stored since the last refusal.
    stored_since: u32,
    /// Bytes of the last cycle that went through in full.
    went_through: f64,
    /// The last early refusal after which nothing was stored in its cycle.
    early: Option<Early>,
    /// Cycles that are over, and those of them in which somebody found no room.
    cycles: (u32, u32),
    cycle: Cycle,
    /// The cycle before: its last answers come while the next one is on.
    last: Cycle,
    /// The shortest time from a batch's turn to its answer.
    delay_min: Duration,
}

#[derive(Debug, Clone, Default)]
struct Cycle {
    /// Counts them; 0: none has begun.
    nth: u64,
    began: Duration,
    /// When the next one may begin.
    over: Duration,
    bytes: u64,
    writes: u32,
    /// Bytes that SLS has stored.
    stored: u64,
    unanswered: u32,
    /// Somebody found no room in it.
    is_full: bool,
    is_refused: bool,
    /// Nothing more goes in it: it is used up.
    is_shut: bool,
    /// After a refusal that came too early to be ours, the next try.
    try_again: Duration,
    is_answered: bool,
}

/// A refusal before a cycle's limit was used.
#[derive(Debug, Clone, Copy)]
struct Early {
    cycle: u64,
    at: Duration,
    /// Bytes of the cycle until then.
    stored: f64,
}

impl Cycle {
    /// Whether as much as may go has gone, and was not refused; only once, when all of it is known.
    fn went_through(&mut self) -> bool {
        let all = self.is_full && !self.is_refused && self.unanswered == 0;
        self.is_full &= !all;
        all
    }
}

/// The right to send one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass {
    cycle: u64,
    at: Duration,
    bytes: u64,
}

/// What SLS said to an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Said {
    Stored,
    /// Over the quota.
    Refused,
    /// Nothing that tells of a quota.
    Other,
}

impl Quota {
    /// A shard of which nothing is known but `limit`: bytes a second that are tried first.
    pub fn of_shard(limit: f64) -> Self {
        Self::new(limit, SHARD_WRITES)
    }

    /// A project: its bytes have no limit before they were refused.
    pub fn of_project() -> Self {
        Self::new(f64::INFINITY, PROJECT_WRITES)
    }

    fn new(limit: f64, writes_max: u32) -> Self {
        Self {
            limit,
            writes_max,
            step: None,
            is_new: true,
            ceiling: None,
            stored_since: 0,
            went_through: 0.0,
            early: None,
            cycles: (0, 0),
            cycle: Cycle::default(),
            last: Cycle::default(),
            delay_min: Duration::MAX,
        }
    }

    /// Bytes a second, as far as is known.
    pub fn limit(&self) -> f64 {
        self.limit
    }

    /// Whether it was ever refused.
    pub fn is_known(&self) -> bool {
        !self.is_new
    }

    /// How much of the running cycle is used, 0 to 1: who has most room is asked first.
    pub fn fill(&self, now: Duration) -> f64 {
        if now >= self.cycle.over { 0.0 } else { self.cycle.bytes as f64 / self.limit }
    }

    /// `None`: a batch of `bytes` may go now; else when to ask again.
    pub fn wait(&mut self, now: Duration, bytes: u64) -> Option<Duration> {
        let limit = self.limit;
        let cycle = &mut self.cycle;
        // What is larger than a cycle goes alone.
        if now >= cycle.over || cycle.bytes == 0 {
            return None;
        }
        let used = cycle.bytes as f64;
        if cycle.is_shut || used + bytes as f64 > limit || cycle.writes >= self.writes_max {
            cycle.is_full = true;
            return Some(cycle.over);
        }
        let due = cycle.began + CYCLE.mul_f64(SPREAD * used / limit);
        let due = due.max(cycle.try_again);
        (now < due).then_some(due)
    }

    /// Takes a batch that need not wait.
    pub fn take(&mut self, now: Duration, bytes: u64) -> Pass {
        if now >= self.cycle.over {
            self.next_cycle(now);
        }
        let cycle = &mut self.cycle;
        cycle.bytes += bytes;
        cycle.writes += 1;
        cycle.unanswered += 1;
        let share = (cycle.bytes as f64 / self.limit).clamp(1.0, 60.0);
        cycle.over = cycle.over.max(cycle.began + CYCLE.mul_f64(share));
        Pass { cycle: cycle.nth, at: now, bytes }
    }

    fn next_cycle(&mut self, now: Duration) {
        let next =
            Cycle { nth: self.cycle.nth + 1, began: now, over: now + CYCLE, ..Cycle::default() };
        self.last = std::mem::replace(&mut self.cycle, next);
        self.cycles.0 += 1;
        self.cycles.1 += u32::from(self.last.is_full);
        if self.last.went_through() {
            self.grow(self.last.bytes);
        }
    }

    /// After a full cycle.
    fn grow(&mut self, through: u64) {
        self.went_through = through as f64;
        if self.is_new {
            self.limit *= 2.0;
        } else if let Some(ceiling) = self.ceiling {
            self.limit += (ceiling - self.limit) / 2.0;
            if self.limit > 0.99 * ceiling {
                self.ceiling = None;
            }
        } else if let Some(step) = self.step {
            self.limit *= 1.0 + step;
            self.step = Some((3.0 * step).min(1.0));
        }
    }

    /// Whether it waits for a probe, being used in full and at rest.
    pub fn wants_probe(&self) -> bool {
        let is_full = self.cycle.is_full && !self.cycle.is_refused;
        is_full && !self.is_new && self.step.is_none() && self.ceiling.is_none()
    }

    /// Cycles that are over, and how many of them were used in full, since it was asked last.
    pub fn take_cycles(&mut self) -> (u32, u32) {
        std::mem::take(&mut self.cycles)
    }

    /// Bytes of the last cycle that went through in full.
    pub fn went_through(&self) -> f64 {
        self.went_through
    }

    /// Another shard like this one took `bytes` in a cycle, which was more than `before`.
    pub fn lift(&mut self, before: f64, bytes: f64) {
        let is_alike = self.limit > 0.9 * before && self.limit < bytes;
        if is_alike && self.ceiling.is_none() && self.stored_since > CALM {
            self.limit = bytes;
        }
    }

    /// Lets the limit grow until it is refused.
    pub fn probe(&mut self) {
        self.step = Some(STEP_MIN);
    }

    /// Whether it grows until it is refused.
    pub fn is_probing(&self) -> bool {
        self.step.is_some()
    }

    /// What came of a batch.
    pub fn answered(&mut self, now: Duration, pass: Pass, said: Said) {
        let delay = now.saturating_sub(pass.at);
        if said != Said::Other {
            self.delay_min = self.delay_min.min(delay);
        }
        let is_current = pass.cycle == self.cycle.nth;
        if is_current && said != Said::Other && !self.cycle.is_answered {
            self.cycle.is_answered = true;
            // SLS's second began no later than this.
            let late = (delay - self.delay_min).min(LATE_MAX);
            self.cycle.over = self.cycle.over.max(pass.at + late + CYCLE);
        }
        let cycle = match pass.cycle {
            nth if nth == self.cycle.nth => &mut self.cycle,
            nth if nth == self.last.nth => &mut self.last,
            // Long ago: it tells nothing of now.
            _ => return,
        };
        cycle.unanswered -= 1;
        match said {
            Said::Stored => {
                cycle.stored += pass.bytes;
                self.stored_since += 1;
                // So its second is over: it was not ours.
                if self.early.is_some_and(|early| early.cycle == pass.cycle && early.at < pass.at) {
                    self.early = None;
                }
            }
            // What was under way then says the same.
            Said::Refused if cycle.is_shut || pass.at < cycle.try_again => {}
            Said::Refused => {
                cycle.is_refused = true;
                let (stored, bytes) = (cycle.stored as f64, pass.bytes as f64);
                let is_late = stored + bytes > LATE * self.limit;
                let age = |early: &Early| pass.cycle - early.cycle;
                let is_second = self.early.is_some_and(|early| age(&early) == 0);
                let is_again = self.early.is_some_and(|early| {
                    matches!(age(&early), 1 | 2) && (stored - early.stored).abs() < 0.1 * stored
                });
                cycle.is_shut = is_late || is_second || is_again || self.is_new;
                if !cycle.is_shut {
                    cycle.try_again = now + PAUSE;
                    self.cycle.try_again = now + PAUSE;
                }
                if !is_late {
                    self.early = Some(Early { cycle: pass.cycle, at: pass.at, stored });
                }
                let old = self.limit;
                if self.is_new || is_again {
                    self.limited(stored);
                } else if is_late {
                    self.limited(stored.max(self.went_through.min(0.995 * old)).max(0.98 * old));
                } else if is_second {
                    self.limited(stored.max(0.7 * old));
                    self.ceiling = Some(0.98 * old);
                } else {
                    self.limited(0.99 * old);
                }
            }
            Said::Other => {}
        }
        if !is_current && self.last.went_through() {
            self.grow(self.last.bytes);
        }
    }

    fn limited(&mut self, limit: f64) {
        self.is_new = false;
        self.limit = limit.max(LIMIT_MIN);
        self.went_through = self.went_through.min(self.limit);
        self.ceiling = None;
        self.stored_since = 0;
        self.step = None;
    }
}
