//! One worker: claims ranges, and moves their rows batch by batch on a lane of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rand::RngExt as _;
use uuid::Uuid;

use crate::dify::conversion::Conversion;
use crate::ledger::batch::Lane;
use crate::ledger::claim::{Cutting, Lease, RangeKind};
use crate::ledger::intent::{NewBatch, Step};
use crate::ledger::process::Process;
use crate::ledger::{LeaseLost, Ledger};
use crate::pipeline::assemble::Assembler;
use crate::pipeline::cut::Cut;
use crate::pipeline::deliver::{Courier, Delivery, Intended};
use crate::pipeline::feed::{Feed, FeedSettings};
use crate::pipeline::pace::{MemoryBudget, RowBudget};
use crate::pipeline::patience::patiently;
use crate::pipeline::progress::Progress;
use crate::pipeline::stop::Stop;
use crate::record::key::KeyOrder;
use crate::record::table::Table;
use crate::sls::client::Client;
use crate::sls::tail::Shard;
use crate::source::scope::{Scope, Span};

/// About how many rows a range has.
pub const RANGE_ROWS: u32 = 50_000;

/// About how many nodes a run has; by run, a range is cut by runs.
const NODES_PER_RUN: u32 = 20;

/// A cursor in front of a batch may be older than need be: settling then reads a bit more.
const CURSORS_LIFE: Duration = Duration::from_secs(10);

/// How long a worker without work waits before it asks again.
const IDLE: Duration = Duration::from_millis(500);

/// Ranges whose rows are counted once more when they are done: the check of the reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recount {
    Yes,
    No,
}

/// What the workers of one pass share.
pub struct Shared {
    pub feed: FeedSettings,
    pub ledger: Ledger,
    pub client: Client,
    pub process: Process,
    pub pass_id: i64,
    pub conversion_id: i64,
    pub conversion: Conversion,
    /// The scope of the pass in its own key order.
    pub scope: Scope,
    /// About how many rows a range has.
    pub range_rows: u32,
    pub recount: Recount,
    pub memory: MemoryBudget,
    pub rows: RowBudget,
    pub progress: Arc<Progress>,
    /// Whether only the pass's holds are to be tried, not its key space.
    pub only_holds: bool,
}

/// A worker with what is its own.
pub struct Worker {
    shared: Arc<Shared>,
    stop: Stop,
    assembler: Assembler,
    lane: Option<Lane>,
    cursors: BTreeMap<u32, String>,
    cursors_at: Instant,
    nth: usize,
}

/// Where a worker stands after a range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Progressed {
    /// The range, or the step, is done.
    Done,
    /// Asked to stop, the row budget is spent, or SLS does not answer; the range stays open.
    Halted,
}

impl Worker {
    /// The `nth` worker of the pass; workers spread over the shards by their number.
    pub fn new(shared: Arc<Shared>, stop: Stop, nth: usize) -> anyhow::Result<Self> {
        let assembler = Assembler::new(shared.conversion.clone())?;
        Ok(Self {
            shared,
            stop,
            assembler,
            lane: None,
            cursors: BTreeMap::new(),
            cursors_at: Instant::now(),
            nth,
        })
    }

    /// Works until nothing is left to do for it.
    pub async fn work(mut self) -> anyhow::Result<()> {
        while let Some(lease) = self.next_range().await? {
            let range_id = lease.range_id;
            match self.work_off(lease).await {
                Ok(Progressed::Done) => {}
                Ok(Progressed::Halted) => break,
                // Nothing of ours can have been written there since: somebody else goes on with it.
                Err(error) if error.is::<LeaseLost>() => tracing::warn!("{error:#}"),
                Err(error) => {
                    let table = self.table();
                    return Err(error).with_context(|| format!("move range {range_id} of {table}"));
                }
            }
        }
        Ok(())
    }

    fn table(&self) -> Table {
        self.shared.scope.table
    }

    /// Claims a range, cuts a new one, or waits for the ranges of others that must come first.
    async fn next_range(&mut self) -> anyhow::Result<Option<Lease>> {
        let shared = Arc::clone(&self.shared);
        while !self.stop.is_asked() && !shared.rows.is_spent() {
            if let Some(lease) = shared.ledger.claim(shared.pass_id, &shared.process).await? {
                return Ok(Some(lease));
            }
            if shared.only_holds {
                return Ok(None);
            }
            match shared.ledger.cutting(shared.pass_id).await? {
                Cutting::Done => return Ok(None),
                Cutting::Waits => {
                    self.stop.or(tokio::time::sleep(IDLE)).await;
                }
                Cutting::At(order, after) => {
                    let scope = Scope { order, ..shared.scope.clone() };
                    let step = range_step(order, shared.range_rows);
                    let upto = shared.feed.source.next_cut(&scope, after, step).await?;
                    shared.ledger.add_range(shared.pass_id, order, after, upto).await?;
                }
            }
        }
        Ok(None)
    }

    async fn work_off(&mut self, mut lease: Lease) -> anyhow::Result<Progressed> {
        let shared = Arc::clone(&self.shared);
        let order = match lease.kind {
            RangeKind::Keys(order) => order,
            RangeKind::Holds => KeyOrder::Walk,
        };
        let scope = Scope { order, ..shared.scope.clone() };
        let mut feed = Feed::of_lease(shared.feed.clone(), &lease, scope.clone());
        let logs_max = u64::from(shared.feed.limits.batch_logs_max);
        loop {
            let rows_max = shared.rows.take(logs_max);
            if self.stop.is_asked() || rows_max == 0 {
                shared.rows.give_back(rows_max);
                shared.ledger.release(&lease).await?;
                return Ok(Progressed::Halted);
            }
            let Some(cut) = feed.next(rows_max).await? else {
                shared.rows.give_back(rows_max);
                break;
            };
            shared.rows.give_back(rows_max - cut.take.len() as u64);
            if self.step(&mut lease, cut).await? == Progressed::Halted {
                shared.ledger.release(&lease).await?;
                return Ok(Progressed::Halted);
            }
        }
        let counted = match (shared.recount, lease.kind) {
            (Recount::Yes, RangeKind::Keys(_)) => {
                let span = Span { after: lease.after, upto: lease.upto };
                // Only a check: that it cannot be made must not keep the range from being done.
                shared.feed.source.count(&scope, &span).await.map_or_else(
                    |error| {
                        tracing::warn!("range {} is not counted again: {error:#}", lease.range_id);
                        None
                    },
                    Some,
                )
            }
            _ => None,
        };
        shared.progress.timed(shared.ledger.finish_range(&lease, counted)).await?;
        Ok(Progressed::Done)
    }

    /// Moves the rows of one cut: one batch, or more where rows grew since they were looked at.
    async fn step(&mut self, lease: &mut Lease, cut: Cut) -> anyhow::Result<Progressed> {
        let shared = Arc::clone(&self.shared);
        let _memory = shared.memory.take(cut.take_bytes).await;
        let seen = cut.take.len() + cut.holds.len() + cut.already.len() + cut.gone.len();
        let mut step = Step {
            table: self.table(),
            batch: None,
            holds: cut.holds,
            already: cut.already,
            gone: cut.gone,
            position: None,
        };
        let mut rest = cut.take;
        loop {
            let ingest_time = u32::try_from(shared.client.now()).unwrap_or(u32::MAX);
            let feed = &shared.feed;
            let mut assembled =
                self.assembler.fill(&feed.source, &rest, feed.settled_before, ingest_time).await?;
            rest = std::mem::take(&mut assembled.left_over);
            step.holds.append(&mut assembled.holds);
            step.gone.append(&mut assembled.gone);
            step.position = if rest.is_empty() { cut.position } else { None };
            let held = step.holds.len() as u64;
            if assembled.rows.is_empty() {
                shared.progress.timed(shared.ledger.record(lease, &step)).await?;
            } else {
                let (batch_id, signed_at) = (Uuid::now_v7(), shared.client.now());
                let packed = self.assembler.pack(shared.ledger.id, batch_id, &assembled);
                let rows = assembled.rows.len() as u64;
                let lane = self.lane().await?;
                let (lane_id, number) = (lane.id, lane.last_number + 1);
                step.batch = Some(NewBatch {
                    id: batch_id,
                    rows: assembled.rows,
                    raw_bytes: packed.raw_size as u64,
                    digest: assembled.digest,
                    not_json: assembled.not_json,
                    conversion_id: shared.conversion_id,
                    lane_id,
                    number,
                    signed_at,
                    cursors: self.cursors().await?,
                    ingest_time,
                });
                shared.progress.timed(shared.ledger.record(lease, &step)).await?;
                let hash_key = self.number_taken(number);
                let courier = Courier {
                    client: &shared.client,
                    ledger: &shared.ledger,
                    progress: &shared.progress,
                };
                let intended = Intended {
                    batch_id,
                    logstore: self.shared.scope.table.logstore(),
                    hash_key: &hash_key,
                    number,
                    signed_at,
                    packed: &packed,
                };
                let delivery = courier.deliver(&intended, &mut self.stop).await?;
                if delivery != Delivery::Stored {
                    // The open number stays the lane's last one, so that it can be sent again.
                    self.lane = None;
                    self.cursors.clear();
                }
                if delivery == Delivery::Unanswered {
                    return Ok(Progressed::Halted);
                }
                shared.progress.sent.fetch_add(rows, Ordering::Relaxed);
                let (raw, body) = (packed.raw_size as u64, packed.body.len() as u64);
                shared.progress.raw_bytes.fetch_add(raw, Ordering::Relaxed);
                shared.progress.body_bytes.fetch_add(body, Ordering::Relaxed);
            }
            shared.progress.held.fetch_add(held, Ordering::Relaxed);
            if rest.is_empty() {
                break;
            }
            step = Step {
                table: self.table(),
                batch: None,
                holds: Vec::new(),
                already: Vec::new(),
                gone: Vec::new(),
                position: None,
            };
        }
        if lease.kind != RangeKind::Holds {
            shared.progress.seen.fetch_add(seen as u64, Ordering::Relaxed);
        }
        Ok(Progressed::Done)
    }

    /// The worker's lane; made when first needed, on the worker's share of the shards.
    async fn lane(&mut self) -> anyhow::Result<&mut Lane> {
        if self.lane.is_none() {
            let shared = &self.shared;
            let logstore = shared.scope.table.logstore();
            let shards: Vec<Shard> = patiently(|| shared.client.shards(logstore))
                .await
                .with_context(|| format!("list the shards of {logstore}"))?
                .into_iter()
                .filter(Shard::is_writable)
                .collect();
            anyhow::ensure!(
                !shards.is_empty(),
                "logstore {logstore} has no shard that takes writes"
            );
            let shard = &shards[self.nth % shards.len()];
            let key = random_key(shard)
                .with_context(|| format!("read the key range of shard {}", shard.id))?;
            self.lane = Some(shared.ledger.open_lane(&shared.process, logstore, &key).await?);
        }
        Ok(self.lane.as_mut().expect("it was just made"))
    }

    /// The number is in the ledger; it must never be given out again.
    fn number_taken(&mut self, number: u64) -> String {
        let lane = self.lane.as_mut().expect("a number comes from a lane");
        lane.last_number = number;
        lane.hash_key.clone()
    }

    /// Cursors that no log of the next batch can precede, for each shard that owns the lane's key.
    async fn cursors(&mut self) -> anyhow::Result<BTreeMap<u32, String>> {
        if self.cursors.is_empty() || self.cursors_at.elapsed() > CURSORS_LIFE {
            let client = self.shared.client.clone();
            let logstore = self.table().logstore();
            let key = self.lane().await?.hash_key.clone();
            let shards = patiently(|| client.shards(logstore))
                .await
                .with_context(|| format!("list the shards of {logstore}"))?;
            let mut cursors = BTreeMap::new();
            for shard in shards.iter().filter(|shard| owns(shard, &key)) {
                let cursor = patiently(|| client.cursor(logstore, shard.id, "end"))
                    .await
                    .with_context(|| format!("find the end of shard {}", shard.id))?;
                cursors.insert(shard.id, cursor);
            }
            self.cursors = cursors;
            self.cursors_at = Instant::now();
        }
        Ok(self.cursors.clone())
    }
}

/// How many index entries a range of about `rows` rows has.
pub fn range_step(order: KeyOrder, rows: u32) -> u32 {
    match order {
        KeyOrder::ByRun => (rows / NODES_PER_RUN).max(1),
        KeyOrder::Time | KeyOrder::Walk | KeyOrder::Rest => rows,
    }
}

/// Whether the shard's key range, `[begin, end)`, contains the key.
fn owns(shard: &Shard, key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let (begin, end) = (shard.begin_key.to_ascii_lowercase(), shard.end_key.to_ascii_lowercase());
    // The last shard ends with fff…f, which the documents leave out of every range.
    begin <= key && (key < end || end.bytes().all(|byte| byte == b'f'))
}

/// A random key of the shard. Two workers never draw the same one: there are 2^120 and more.
fn random_key(shard: &Shard) -> anyhow::Result<String> {
    let begin = u128::from_str_radix(&shard.begin_key, 16)?;
    let end = u128::from_str_radix(&shard.end_key, 16)?;
    anyhow::ensure!(begin < end, "its key range is empty");
    Ok(format!("{:032X}", rand::rng().random_range(begin..end)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_key_lies_in_its_shard() {
        let shard = |begin: &str, end: &str| Shard {
            id: 0,
            status: "readwrite".to_owned(),
            begin_key: begin.to_owned(),
            end_key: end.to_owned(),
        };
        let (zero, half, all) = ("0".repeat(32), format!("8{}", "0".repeat(31)), "f".repeat(32));
        let (low, high) = (shard(&zero, &half), shard(&half, &all));
        for _ in 0..1000 {
            let key = random_key(&low).unwrap();
            assert!(owns(&low, &key) && !owns(&high, &key), "{key}");
            let key = random_key(&high).unwrap();
            assert!(owns(&high, &key) && !owns(&low, &key), "{key}");
        }
        assert!(random_key(&shard(&half, &half)).is_err());
    }
}
