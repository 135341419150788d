//! Quotas against shards that count as the simulator does, in virtual time: the same seed, the same
//! run.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::pipeline::guard::pace::quotas::{Answer, Quotas, Ticket};

const S: Duration = Duration::from_secs(1);
const MIB: f64 = 1_048_576.0;

/// What is simulated.
#[derive(Clone)]
struct Case {
    shards: u32,
    /// Bytes a second: what a shard takes from this second on.
    quota: Vec<(u64, f64)>,
    /// From the batch's turn to SLS, and back.
    delay_ms: u64,
    /// Another writer takes this part of each shard.
    other: f64,
    workers: usize,
    length_s: u64,
    seed: u64,
}

/// What came of it between the tenth second and the last but five.
#[derive(Debug)]
struct Figures {
    /// Of what was left.
    used: f64,
    refused: f64,
}

enum Event {
    /// Who waits asks again.
    Poll,
    Arrives(Batch, Ticket),
    Answered(Batch, Ticket, Answer),
    /// The other writer's chunk for this shard.
    Other(u32),
}

#[derive(Clone, Copy)]
struct Batch {
    bytes: u64,
    /// It was refused there, and must go there again.
    bound_to: Option<u32>,
}

/// Counts like `ShardQuota` of the simulator.
#[derive(Default, Clone)]
struct Window {
    began: Option<Duration>,
    used: f64,
}

impl Window {
    fn takes(&mut self, now: Duration, bytes: f64, quota: f64) -> bool {
        if self.began.is_none_or(|began| now - began >= S) {
            *self = Self { began: Some(now), used: 0.0 };
        }
        let fits = self.used == 0.0 || self.used + bytes <= quota;
        self.used += if fits { bytes } else { 0.0 };
        fits
    }
}

const CHUNK: f64 = 32_768.0;
const BATCH_MAX: u64 = 2 << 20;

struct World {
    case: Case,
    quotas: Quotas,
    dice: StdRng,
    queue: BinaryHeap<Reverse<(Duration, u64)>>,
    events: BTreeMap<u64, Event>,
    windows: Vec<Window>,
    /// Sizes of batches that were planned a while ago.
    planned: VecDeque<(u64, u64)>,
    pushed: u64,
    /// Batches that wait for room.
    ready: VecDeque<Batch>,
    bound: Vec<Batch>,
    poll_at: Duration,
    counts: [u64; 2],
    ours: f64,
    others: f64,
}

impl World {
    fn push(&mut self, at: Duration, event: Event) {
        self.pushed += 1;
        self.events.insert(self.pushed, event);
        self.queue.push(Reverse((at, self.pushed)));
    }

    fn jitter(&mut self, max_ms: f64) -> Duration {
        Duration::from_secs_f64(self.dice.random_range(0.0..max_ms) / 1000.0)
    }

    fn quota(&self, now: Duration) -> f64 {
        let since = |(from, _): &&(u64, f64)| now >= S * *from as u32;
        self.case.quota.iter().rev().find(since).map_or(0.0, |(_, bytes)| *bytes)
    }

    fn plan(&mut self) -> Batch {
        let wanted = self.quotas.batch_bytes(BATCH_MAX);
        // A batch ends before the row that does not fit any more.
        let row = self.dice.random_range(0.0..12_000.0);
        self.planned.push_back((wanted, wanted.saturating_sub(row as u64)));
        let (asked, bytes) = self.planned.pop_front().unwrap();
        self.quotas.made(asked, bytes);
        Batch { bytes, bound_to: None }
    }

    fn poll(&mut self, now: Duration) {
        let mut next = now + S / 10;
        for batch in std::mem::take(&mut self.bound) {
            let shard = batch.bound_to.unwrap();
            match self.quotas.take_on(now, shard, batch.bytes) {
                Ok(ticket) => {
                    self.quotas.waits_for(shard, false);
                    self.send(now, batch, ticket);
                }
                Err(at) => {
                    next = next.min(at);
                    self.bound.push(batch);
                }
            }
        }
        while let Some(batch) = self.ready.front().copied() {
            match self.quotas.take(now, batch.bytes) {
                Ok(ticket) => {
                    self.ready.pop_front();
                    self.send(now, batch, ticket);
                }
                Err(at) => {
                    next = next.min(at);
                    break;
                }
            }
        }
        if next < self.poll_at {
            self.poll_at = next;
            self.push(next, Event::Poll);
        }
    }

    fn send(&mut self, now: Duration, batch: Batch, ticket: Ticket) {
        // The ledger, signing, and the network.
        let one_way = Duration::from_millis(self.case.delay_ms) / 2;
        let at = now + one_way + Duration::from_millis(3) + self.jitter(8.0);
        self.push(at, Event::Arrives(batch, ticket));
    }

    fn handle(&mut self, now: Duration, event: Event) {
        let one_way = Duration::from_millis(self.case.delay_ms) / 2;
        match event {
            Event::Poll if self.poll_at == now => {
                self.poll_at = Duration::MAX;
                self.poll(now);
            }
            Event::Poll => {}
            Event::Arrives(batch, ticket) => {
                let quota = self.quota(now);
                let window = &mut self.windows[ticket.shard as usize];
                let stored = window.takes(now, batch.bytes as f64, quota);
                if self.counts_at(now) {
                    self.counts[usize::from(!stored)] += 1;
                    self.ours += if stored { batch.bytes as f64 } else { 0.0 };
                }
                let answer = if stored { Answer::Stored } else { Answer::ShardRefused };
                let at = now + one_way + Duration::from_millis(2) + self.jitter(4.0);
                self.push(at, Event::Answered(batch, ticket, answer));
            }
            Event::Answered(batch, ticket, answer) => {
                self.quotas.answered(now, ticket, answer);
                if answer == Answer::Stored {
                    let batch = self.plan();
                    self.ready.push_back(batch);
                } else {
                    self.quotas.waits_for(ticket.shard, true);
                    self.bound.push(Batch { bound_to: Some(ticket.shard), ..batch });
                }
                self.poll(now);
            }
            Event::Other(shard) => {
                let quota = self.quota(now);
                let stored = self.windows[shard as usize].takes(now, CHUNK, quota);
                if self.counts_at(now) && stored {
                    self.others += CHUNK;
                }
                let pause = Duration::from_secs_f64(CHUNK / (quota * self.case.other));
                self.push(now + pause, Event::Other(shard));
            }
        }
    }

    fn counts_at(&self, now: Duration) -> bool {
        // Whatever changes may be learned for ten seconds, as at the beginning.
        let mut changes = self.case.quota.iter();
        let is_new = changes.any(|(at, _)| now >= S * *at as u32 && now < S * (*at + 10) as u32);
        !is_new && now < S * (self.case.length_s - 5) as u32
    }
}

fn run(case: Case) -> Figures {
    let mut quotas = Quotas::new(case.workers as u32);
    quotas.set_shards(&(0..case.shards).collect::<Vec<_>>());
    let mut world = World {
        windows: vec![Window::default(); case.shards as usize],
        dice: StdRng::seed_from_u64(case.seed),
        queue: BinaryHeap::new(),
        events: BTreeMap::new(),
        planned: VecDeque::new(),
        pushed: 0,
        ready: VecDeque::new(),
        bound: Vec::new(),
        poll_at: Duration::MAX,
        counts: [0; 2],
        ours: 0.0,
        others: 0.0,
        quotas,
        case: case.clone(),
    };
    // A worker has three batches planned ahead.
    let ahead = world.quotas.batch_bytes(BATCH_MAX);
    world.planned.extend(vec![(ahead, ahead); 3 * case.workers]);
    for _ in 0..case.workers {
        let batch = world.plan();
        world.ready.push_back(batch);
    }
    world.poll(Duration::ZERO);
    if case.other > 0.0 {
        for shard in 0..case.shards {
            let at = world.jitter(50.0);
            world.push(at, Event::Other(shard));
        }
    }
    let end = S * case.length_s as u32;
    let mut left = 0.0;
    let mut until = Duration::ZERO;
    while let Some(Reverse((now, id))) = world.queue.pop() {
        if now >= end {
            break;
        }
        if world.counts_at(until) {
            left += world.quota(until) * f64::from(case.shards) * (now - until).as_secs_f64();
        }
        until = now;
        let event = world.events.remove(&id).unwrap();
        world.handle(now, event);
    }
    let [stored, refused] = world.counts;
    Figures {
        used: world.ours / (left - world.others),
        refused: refused as f64 / (stored + refused) as f64,
    }
}

fn case(shards: u32) -> Case {
    Case {
        shards,
        quota: vec![(0, 5.0 * MIB)],
        delay_ms: 0,
        other: 0.0,
        workers: 128,
        length_s: 75,
        seed: 1,
    }
}

/// Which part of what is left must be used, and which of the requests may be refused.
#[derive(Clone, Copy)]
struct Bounds {
    used: f64,
    refused: f64,
}

const WELL: Bounds = Bounds { used: 0.95, refused: 0.01 };

fn check(what: &str, case: Case, bounds: Bounds) {
    let figures = run(case.clone());
    let Case { shards, delay_ms, .. } = case;
    assert!(
        figures.used >= bounds.used && figures.refused < bounds.refused,
        "{what}, {shards} shards, {delay_ms} ms: {figures:?}"
    );
}

#[test]
fn nearly_all_of_a_quota_is_used_and_hardly_a_request_refused() {
    for shards in [2, 8] {
        for delay_ms in [0, 100, 300] {
            let base = Case { delay_ms, ..case(shards) };
            check("as documented", base.clone(), WELL);
            for (what, per_s) in [("lower", 2.0), ("higher", 9.0)] {
                check(what, Case { quota: vec![(0, per_s * MIB)], ..base.clone() }, WELL);
            }
        }
    }
}

#[test]
fn another_writer_is_left_its_half() {
    for shards in [2, 8] {
        for delay_ms in [0, 100, 300] {
            let case = Case { delay_ms, other: 0.5, ..case(shards) };
            check("half", case, WELL);
        }
    }
}

#[test]
fn a_quota_that_changes_is_learned_anew() {
    for shards in [2, 8] {
        for delay_ms in [0, 100, 300] {
            let with = |later: f64| Case {
                delay_ms,
                quota: vec![(0, 5.0 * MIB), (35, later * MIB)],
                ..case(shards)
            };
            check("falls", with(2.5), WELL);
            // With few shards few requests pay for probes, so a rise is found late.
            let bounds = if shards == 2 { Bounds { used: 0.92, refused: 0.011 } } else { WELL };
            check("rises", with(7.5), bounds);
        }
    }
}

/// Few batches fit into each shard's second, for so many could not be on their way: the last one
/// often does not fit.
#[test]
fn most_of_the_quota_of_many_shards_is_used() {
    let case = Case { delay_ms: 100, workers: 512, length_s: 40, ..case(64) };
    check("as documented", case, Bounds { used: 0.85, refused: 0.01 });
}

#[test]
fn a_project_that_refuses_everything_is_asked_less_and_less() {
    let mut quotas = Quotas::new(8);
    quotas.set_shards(&[0, 1]);
    let (mut now, mut asked) = (Duration::ZERO, Vec::new());
    while now < 60 * S {
        match quotas.take(now, 1 << 20) {
            Ok(ticket) => {
                asked.push(now);
                let _ = quotas.answered(now + S / 100, ticket, Answer::ProjectRefused);
                now += S / 50;
            }
            Err(at) => now = at.clamp(now + S / 1000, now + S),
        }
    }
    assert!(asked.len() < 8, "{asked:?}");
}
