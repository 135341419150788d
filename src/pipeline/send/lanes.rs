//! The lanes of one logstore, shared by all workers: each batch takes a free one in the shard that
//! has room for it, and gives it back when its fate is known.
//!
//! A batch chooses its lane before its intent is recorded, and never again.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::ledger::Ledger;
use crate::ledger::process::Process;
use crate::pipeline::guard::pace::{Pace, Turn};
use crate::pipeline::progress::Progress;
use crate::pipeline::send::lane_keeper::{LaneKeeper, LaneSlot, Wanted};
use crate::pipeline::shutdown::Shutdown;
use crate::sls::client::Client;

/// So many lanes a process has at most: SLS remembers the numbers of few keys, and a run that is
/// started anew makes others.
const LANES_MAX: usize = 96;

/// After too many keys were made in an hour, how long to do with the lanes that there are.
const NO_KEYS_FOR: Duration = Duration::from_secs(60);

/// The lanes of one logstore.
pub struct Lanes {
    client: Client,
    ledger: Ledger,
    process: Process,
    logstore: &'static str,
    state: Mutex<State>,
    given_back: Notify,
}

#[derive(Default)]
struct State {
    /// By shard; those whose last batch has an answer.
    free: BTreeMap<u32, Vec<LaneKeeper>>,
    /// Lanes that are free or in use.
    opened: usize,
    no_keys_until: Option<Instant>,
}

/// A lane in use, with its next number and the right to send it.
///
/// Dropped without [`Lanes::give_back`] it is gone: nobody knows whether its number was recorded.
pub struct TakenLane<'a> {
    pub keeper: LaneKeeper,
    pub slot: LaneSlot,
    pub turn: Turn<'a>,
}

impl TakenLane<'_> {
    /// The number is in the ledger: it must never be given out again.
    pub fn used(&mut self) {
        self.keeper.used(&self.slot);
    }
}

impl Lanes {
    /// None is open yet.
    pub fn new(
        client: &Client,
        ledger: &Ledger,
        process: &Process,
        logstore: &'static str,
    ) -> Self {
        Self {
            client: client.clone(),
            ledger: ledger.clone(),
            process: process.clone(),
            logstore,
            state: Mutex::default(),
            given_back: Notify::new(),
        }
    }

    /// A lane in a shard that has room for a batch of `bytes`; `None`: somebody has asked to stop.
    pub async fn take<'a>(
        &self,
        pace: &'a Pace,
        bytes: u64,
        progress: &Progress,
        shutdown: &mut Shutdown,
    ) -> anyhow::Result<Option<TakenLane<'a>>> {
        let Some(mut turn) = pace.room(bytes, progress, shutdown).await else { return Ok(None) };
        let Some(mut keeper) = self.keeper(turn.shard(), shutdown).await? else {
            return Ok(None);
        };
        let Some(slot) = keeper.next_slot(shutdown).await? else { return Ok(None) };
        pace.set_shards(keeper.writable());
        // The shard was split, or no other lane was free.
        if let Some(shard) = slot.shard.filter(|shard| turn.shard() != Some(*shard)) {
            drop(turn);
            match pace.room_in(shard, bytes, progress, shutdown).await {
                Some(right) => turn = right,
                None => {
                    self.give_back(keeper, &slot, false);
                    return Ok(None);
                }
            }
        }
        Ok(Some(TakenLane { keeper, slot, turn }))
    }

    /// The lane goes on with its next number. `is_moved`: the shards may have changed.
    pub fn give_back(&self, mut keeper: LaneKeeper, slot: &LaneSlot, is_moved: bool) {
        if is_moved {
            keeper.forget_cursors();
        }
        self.state().free.entry(slot.shard.unwrap_or(0)).or_default().push(keeper);
        self.given_back.notify_one();
    }

    async fn keeper(
        &self,
        shard: Option<u32>,
        shutdown: &mut Shutdown,
    ) -> anyhow::Result<Option<LaneKeeper>> {
        let shard = shard.unwrap_or(0);
        loop {
            let may_open = {
                let mut state = self.state();
                if let Some(keeper) = state.free.get_mut(&shard).and_then(Vec::pop) {
                    return Ok(Some(keeper));
                }
                let may_open = state.opened < LANES_MAX
                    && state.no_keys_until.is_none_or(|until| Instant::now() >= until);
                if !may_open && let Some(keeper) = state.free.values_mut().find_map(Vec::pop) {
                    return Ok(Some(keeper));
                }
                state.opened += usize::from(may_open);
                may_open
            };
            if may_open {
                let Self { client, ledger, process, logstore, .. } = self;
                let wanted = Wanted::Shard(shard);
                let mut keeper = LaneKeeper::new(client, ledger, process, logstore, wanted);
                if keeper.try_open().await? {
                    return Ok(Some(keeper));
                }
                let mut state = self.state();
                state.opened -= 1;
                if state.opened == 0 {
                    drop(state);
                    // It waits until a key may be made.
                    self.state().opened += 1;
                    return Ok(Some(keeper));
                }
                state.no_keys_until = Some(Instant::now() + NO_KEYS_FOR);
                continue;
            }
            if shutdown.or(self.given_back.notified()).await.is_none() {
                return Ok(None);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Its lists are whole whatever panicked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
