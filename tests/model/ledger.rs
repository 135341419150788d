//! The ledger's transactions, each under its name in the code.

use crate::deciders::TIMINGS;
use crate::setup::Bug;
use crate::state::{
    Batch, BatchState, Hold, Intent, Ledger, NOBODY, Process, Range, Report, State,
};

/// Why a step was not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotWritten {
    LeaseLost,
    RowsTaken,
}

impl Ledger {
    /// `process::end`: what the process owned is free.
    pub(crate) fn end(&mut self, id: u8) {
        if id == NOBODY {
            return;
        }
        self.alive.iter_mut().filter(|alive| **alive == id).for_each(|alive| *alive = NOBODY);
        self.owners.iter_mut().filter(|owner| **owner == id).for_each(|owner| *owner = NOBODY);
        for batch in self.batches.iter_mut().flatten() {
            if batch.state == BatchState::Intent && batch.owner == id {
                batch.owner = NOBODY;
            }
        }
    }

    pub(crate) fn batch(&self, nth: u8) -> Option<&Batch> {
        self.batches[usize::from(nth)].as_ref()
    }

    pub(crate) fn batch_mut(&mut self, nth: u8) -> Option<&mut Batch> {
        self.batches[usize::from(nth)].as_mut()
    }
}

/// The process is gone, and the ledger does not know.
pub(crate) fn die(state: &mut State, slot: usize) {
    state.processes[slot] = Process::NONE;
    for request in state.sls.requests.iter_mut().flatten() {
        request.waiter = request.waiter.filter(|waiter| usize::from(waiter.0) != slot);
    }
}

/// `Ledger::leave`
pub(crate) fn leave(state: &mut State, slot: usize) {
    state.ledger.end(state.processes[slot].id);
    die(state, slot);
}

/// The conditions of `Ledger::write_step`.
pub(crate) fn may_write_step(
    state: &State,
    intent: &Intent,
    id: u8,
    trusts: bool,
) -> Result<(), NotWritten> {
    let Ledger { owners, position, batches, .. } = &state.ledger;
    let stands = match intent.range {
        Range::Pass => *position == intent.row && owners[0] == id,
        Range::Holds => owners[1] == id,
    };
    if !stands || batches[usize::from(intent.batch)].is_some() {
        return Err(NotWritten::LeaseLost);
    }
    // The entries of live rows.
    if state.live(intent.row).next().is_some() && !trusts {
        return Err(NotWritten::RowsTaken);
    }
    Ok(())
}

/// `Ledger::write_step`: the batch is in the ledger, the position moves, the hold is closed.
pub(crate) fn write_step(state: &mut State, intent: &Intent, id: u8, bugs: &[Bug]) {
    state.ledger.batches[usize::from(intent.batch)] = Some(Batch {
        state: BatchState::Intent,
        owner: id,
        sent: Some(intent.sent),
        report: Report { all_refused: false, ..Report::default() },
        stored: None,
        seen: 0,
        found_late: None,
    });
    match intent.range {
        Range::Pass if bugs.contains(&Bug::PositionOnAcknowledgement) => {}
        Range::Pass => state.ledger.position = intent.row + 1,
        Range::Holds if bugs.contains(&Bug::HoldLeftOpen) => {}
        Range::Holds => state.ledger.holds[usize::from(intent.row)] = Hold::None,
    }
}

/// `Ledger::add_page`, a group a page: proves what is whole, revives what was given up, stops for
/// what the ledger lacks.
pub(crate) fn add_page(state: &mut State, shard: usize) {
    let nth = read_group(state, shard);
    let Some(batch) = state.ledger.batch_mut(nth) else {
        state.ledger.is_stopped = true;
        return;
    };
    batch.seen += 1;
    match batch.state {
        BatchState::Intent | BatchState::Stored if batch.seen == 1 => prove(batch),
        BatchState::Abandoned => revive_if_alone(state, nth),
        _ => {}
    }
}

/// `Ledger::adopt_page`, as an audit reads.
pub(crate) fn adopt_page(state: &mut State, shard: usize) {
    let nth = read_group(state, shard);
    let slot = &mut state.ledger.batches[usize::from(nth)];
    let batch = slot.get_or_insert_with(|| Batch {
        state: BatchState::Stored,
        owner: NOBODY,
        sent: None,
        report: Report::default(),
        stored: Some(0),
        seen: 0,
        found_late: None,
    });
    batch.seen += 1;
    if batch.state != BatchState::Abandoned {
        prove(batch);
    }
}

fn read_group(state: &mut State, shard: usize) -> u8 {
    let at = usize::from(state.ledger.read[shard]);
    state.ledger.read[shard] += 1;
    state.sls.shards[shard].groups()[at]
}

fn prove(batch: &mut Batch) {
    batch.state = BatchState::Proved;
    let is_late = batch.stored.is_some_and(|stored| i64::from(stored) > TIMINGS.visible_s);
    batch.found_late = is_late.then_some(0);
    batch.stored = batch.stored.or(Some(0));
}

/// `audit_conclusion::revive_if_alone`
fn revive_if_alone(state: &mut State, nth: u8) {
    let (row, _) = state.made[usize::from(nth)].expect("it was made");
    if state.live(row).next().is_none() {
        prove(state.ledger.batch_mut(nth).expect("it is given up"));
        state.ledger.holds[usize::from(row)] = Hold::None;
    }
}

/// `Ledger::conclude_audit`, `Ledger::finish_audit`
pub(crate) fn conclude_audit(state: &mut State) {
    let all = 0..u8::try_from(state.made.len()).expect("they are few");
    for nth in all {
        let Some(batch) = state.ledger.batch(nth) else { continue };
        let (kind, seen) = (batch.state, batch.seen);
        let (row, _) = state.made[usize::from(nth)].expect("it was made");
        let is_shared = state.live(row).any(|(other, _)| other != nth);
        match kind {
            BatchState::Intent if seen == 0 && is_shared => {
                give_up_batch(state, nth, row);
            }
            BatchState::Abandoned if seen > 0 => revive_if_alone(state, nth),
            _ => {}
        }
    }
    let ledger = &mut state.ledger;
    (ledger.is_stopped, ledger.audit, ledger.timeline_known) = (false, None, ledger.timeline);
}

/// `audit_conclusion::give_up`
fn give_up_batch(state: &mut State, nth: u8, row: u8) {
    let batch = state.ledger.batch_mut(nth).expect("it is an intent");
    batch.state = BatchState::Abandoned;
    let hold = &mut state.ledger.holds[usize::from(row)];
    if *hold == Hold::None {
        *hold = Hold::Open;
    }
}
