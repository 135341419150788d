//! A lane: a random hash key with numbers from 1, made when first needed, and cursors in
//! front of what goes out on it. A number that was given up stays behind: the next one goes on, and
//! once it is stored, SLS would refuse the one before.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rand::RngExt as _;

use crate::ledger::Ledger;
use crate::ledger::lane::{KEYS_PER_DAY_MAX, Lane};
use crate::ledger::process::Process;
use crate::pipeline::retry::with_retries;
use crate::pipeline::shutdown::Shutdown;
use crate::sls::client::Client;
use crate::sls::pull::Shard;

/// A cursor in front of a batch may be older than need be: recovery then reads a bit more.
const CURSORS_LIFE: Duration = Duration::from_secs(10);

/// How often a worker that waits for a hash key asks again.
const KEYS_RETRY: Duration = Duration::from_secs(5);

/// Keeps one lane.
pub struct LaneKeeper {
    client: Client,
    ledger: Ledger,
    process: Process,
    logstore: &'static str,
    wanted: Wanted,
    lane: Option<Lane>,
    /// Which shard takes what goes out on it.
    home: Option<u32>,
    /// The shards that took writes when cursors were taken.
    writable: Vec<u32>,
    cursors: BTreeMap<u32, String>,
    cursors_at: Instant,
}

/// Where a lane is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// In the nth shard, counted round and round.
    Nth(usize),
    /// In this shard, if it still takes writes.
    Shard(u32),
}

/// What a batch needs of its lane.
#[derive(Debug, Clone)]
pub struct LaneSlot {
    pub lane_id: i64,
    pub hash_key: String,
    pub number: u64,
    /// The shard that takes its hash key; `None`: none did.
    pub shard: Option<u32>,
    /// Shard → a cursor that no log of the batch can precede.
    pub cursors: BTreeMap<u32, String>,
}

impl LaneKeeper {
    /// For a lane of `process` on `logstore`.
    pub fn new(
        client: &Client,
        ledger: &Ledger,
        process: &Process,
        logstore: &'static str,
        wanted: Wanted,
    ) -> Self {
        Self {
            client: client.clone(),
            ledger: ledger.clone(),
            process: process.clone(),
            logstore,
            wanted,
            lane: None,
            home: None,
            writable: Vec::new(),
            cursors: BTreeMap::new(),
            cursors_at: Instant::now(),
        }
    }

    /// The next number of the lane. It may be asked for again until it is [`Self::used`]. `None`:
    /// somebody has asked to stop while it was waited for.
    pub async fn next_slot(&mut self, shutdown: &mut Shutdown) -> anyhow::Result<Option<LaneSlot>> {
        let lane = match &self.lane {
            Some(lane) => lane.clone(),
            None => match self.open_lane(shutdown).await? {
                Some(lane) => lane,
                None => return Ok(None),
            },
        };
        if self.cursors.is_empty() || self.cursors_at.elapsed() > CURSORS_LIFE {
            self.cursors_at = Instant::now();
            let shards = self.shards().await?;
            self.home = home(&lane.hash_key, &shards);
            self.writable = writable(&shards);
            self.cursors = self.find_cursors(&lane.hash_key, &shards).await?;
        }
        let slot = LaneSlot {
            lane_id: lane.id,
            hash_key: lane.hash_key.clone(),
            number: lane.last_number + 1,
            shard: self.home,
            cursors: self.cursors.clone(),
        };
        self.lane = Some(lane);
        Ok(Some(slot))
    }

    /// The number is in the ledger: it must never be given out again.
    pub fn used(&mut self, slot: &LaneSlot) {
        if let Some(lane) = &mut self.lane {
            lane.last_number = slot.number;
        }
    }

    /// Takes new cursors for the next batch: the shards may have changed.
    pub fn forget_cursors(&mut self) {
        self.cursors.clear();
    }

    /// The shards that took writes when cursors were taken last.
    pub fn writable(&self) -> &[u32] {
        &self.writable
    }

    /// Opens the lane; says whether it did: not when too many were opened lately.
    pub async fn try_open(&mut self) -> anyhow::Result<bool> {
        self.lane = self.open().await?;
        Ok(self.lane.is_some())
    }

    /// Opens a lane; waits where too many were opened lately. `None`: somebody has asked to stop.
    async fn open_lane(&self, shutdown: &mut Shutdown) -> anyhow::Result<Option<Lane>> {
        let mut is_told = false;
        while !shutdown.is_asked() {
            let lane = self.open().await?;
            if lane.is_some() {
                return Ok(lane);
            }
            if !is_told {
                tracing::warn!(
                    "{}: waiting, {KEYS_PER_DAY_MAX} new hash keys were used in the last day",
                    self.logstore
                );
                is_told = true;
            }
            shutdown.or(tokio::time::sleep(KEYS_RETRY)).await;
        }
        Ok(None)
    }

    async fn open(&self) -> anyhow::Result<Option<Lane>> {
        let mut shards = self.shards().await?;
        shards.retain(Shard::is_writable);
        anyhow::ensure!(
            !shards.is_empty(),
            "logstore {} has no shard that takes writes",
            self.logstore
        );
        let shard = match self.wanted {
            Wanted::Nth(nth) => &shards[nth % shards.len()],
            Wanted::Shard(id) => shards.iter().find(|shard| shard.id == id).unwrap_or(&shards[0]),
        };
        let key = random_key(shard)
            .with_context(|| format!("read the key range of shard {}", shard.id))?;
        self.ledger.open_lane(&self.process, self.logstore, &key).await
    }

    async fn find_cursors(
        &self,
        hash_key: &str,
        shards: &[Shard],
    ) -> anyhow::Result<BTreeMap<u32, String>> {
        let mut cursors = BTreeMap::new();
        for shard in shards.iter().filter(|shard| owns(shard, hash_key)) {
            let cursor = with_retries(|| self.client.cursor(self.logstore, shard.id, "end"))
                .await
                .with_context(|| format!("find the end of shard {}", shard.id))?;
            cursors.insert(shard.id, cursor);
        }
        Ok(cursors)
    }

    async fn shards(&self) -> anyhow::Result<Vec<Shard>> {
        with_retries(|| self.client.shards(self.logstore))
            .await
            .with_context(|| format!("list the shards of {}", self.logstore))
    }
}

/// The shards that take writes.
pub fn writable(shards: &[Shard]) -> Vec<u32> {
    shards.iter().filter(|shard| shard.is_writable()).map(|shard| shard.id).collect()
}

/// The shard that takes writes for `hash_key`.
pub fn home(hash_key: &str, shards: &[Shard]) -> Option<u32> {
    let home = shards.iter().find(|shard| shard.is_writable() && owns(shard, hash_key));
    home.map(|shard| shard.id)
}

/// Whether the shard that now takes writes for `hash_key` did so when `cursors` were taken. If not,
/// it was split or merged, and the new one may not know the numbers of the old.
pub fn is_at_home(hash_key: &str, cursors: &BTreeMap<u32, String>, shards: &[Shard]) -> bool {
    // Read-only shards take no writes ever again, so a writable one of then was writable then.
    home(hash_key, shards).is_some_and(|shard| cursors.contains_key(&shard))
}

/// The shards in which a batch with this key may be, if those of `sent_to` owned the key when it was
/// sent: these, and all that own the key now.
pub fn places(hash_key: &str, sent_to: &BTreeSet<u32>, shards: &[Shard]) -> BTreeSet<u32> {
    let now = shards.iter().filter(|shard| owns(shard, hash_key)).map(|shard| shard.id);
    sent_to.iter().copied().chain(now).collect()
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
    fn after_a_split_a_key_is_not_at_home_any_more() {
        let shard = |id, status: &str, begin: &str, end: &str| Shard {
            id,
            status: status.to_owned(),
            begin_key: begin.repeat(32),
            end_key: end.repeat(32),
        };
        let key = "3".repeat(32);
        let whole = shard(0, "readwrite", "0", "f");
        let cursors = BTreeMap::from([(0, "c".to_owned())]);
        assert!(is_at_home(&key, &cursors, std::slice::from_ref(&whole)));
        let parent = Shard { status: "readonly".to_owned(), ..whole };
        let children = [parent, shard(1, "readwrite", "0", "8"), shard(2, "readwrite", "8", "f")];
        assert!(!is_at_home(&key, &cursors, &children));
        let cursors = BTreeMap::from([(0, "c".to_owned()), (1, "c".to_owned())]);
        assert!(is_at_home(&key, &cursors, &children));
        // What was sent before the split may be in the parent, or in the child that has its key.
        assert_eq!(places(&key, &BTreeSet::from([0]), &children), BTreeSet::from([0, 1]));
        assert_eq!(places(&"9".repeat(32), &BTreeSet::new(), &children), BTreeSet::from([0, 2]));
    }

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
