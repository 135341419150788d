//! The steps of a process's threads: what both do that send, and the uploader with its reading.

use dify_sls_backfill::pipeline::recover::rules::is_number_kept;

use crate::deciders::{Answered, Deciders, Reacted, TIMINGS};
use crate::ledger::{NotWritten, leave, may_write_step, write_step};
use crate::machine::{Steps, Who};
use crate::setup::{Bug, Fault};
use crate::state::{
    Batch, BatchState, Hold, Intent, LANES, NOBODY, OLD_S, ROWS, Range, Report, Request, Row,
    Sending, Sent, State, Thread, UPLOADER,
};

/// The threads of the process in `slot`, whose clock is `skew` s ahead of SLS's.
pub(crate) struct Threads<'a, 'b> {
    pub(crate) slot: usize,
    pub(crate) skew: i8,
    pub(crate) steps: &'a mut Steps<'b>,
}

/// What a sender does when it hears an answer.
pub(crate) fn hear(deciders: &Deciders, sending: Sending, answered: Answered) -> Thread {
    if answered == Answered::Stored {
        return Thread::Stored { batch: sending.batch };
    }
    let (reacted, report) =
        deciders.react(answered, sending.report, sending.unknown_since.is_some());
    let mut sending = Sending { report, ..sending };
    if answered == Answered::Lost {
        sending.unknown_since = sending.unknown_since.or(Some(sending.sent.signed));
    }
    match reacted {
        Reacted::Again => Thread::Sending(sending),
        Reacted::SignAnew => {
            sending.sent.signed = OLD_S;
            Thread::Sending(sending)
        }
        Reacted::GiveUp => Thread::GivingUp(sending),
    }
}

impl Threads<'_, '_> {
    pub(crate) fn id(&self) -> u8 {
        self.steps.from.processes[self.slot].id
    }

    /// `Ledger::may_send_sql`
    pub(crate) fn may_send(&self) -> bool {
        let State { ledger, processes, .. } = self.steps.from;
        !ledger.is_stopped && ledger.timeline == processes[self.slot].timeline
    }

    pub(crate) fn may_sign(&self) -> bool {
        self.steps.deciders.may_sign(self.steps.from.processes[self.slot].looked)
    }

    pub(crate) fn becomes(&mut self, thread: u8, name: &'static str, of: u8, after: Thread) {
        let slot = self.slot;
        self.steps.at_once(Who::Thread(slot, thread), name, of, |state| {
            state.processes[slot].threads[usize::from(thread)] = after;
        });
    }

    pub(crate) fn ends(&mut self, thread: u8, name: &'static str, of: u8) {
        let slot = self.slot;
        self.steps.at_once(Who::Thread(slot, thread), name, of, |state| leave(state, slot));
    }

    pub(crate) fn uploader(&mut self) {
        match self.steps.from.processes[self.slot].threads[usize::from(UPLOADER)] {
            Thread::Idle => self.next_row(),
            Thread::Ready { range, row, version } => self.record(range, row, version, None),
            Thread::Uncertain(intent) => self.was_recorded(intent),
            thread => self.sender(UPLOADER, thread),
        }
    }

    /// `Ledger::claim_range`, `RangeScan::next`
    fn next_row(&mut self) {
        let State { ledger, rows, .. } = self.steps.from;
        let (slot, id) = (self.slot, self.id());
        if ledger.alive[slot] != id || !self.may_send() {
            return;
        }
        let may_take = |range: usize| [NOBODY, id].contains(&ledger.owners[range]);
        let who = Who::Thread(slot, UPLOADER);
        let trusts = self.steps.has(Bug::RowsNotLookedUp);
        let is_live = |row: usize| !trusts && self.steps.from.live(row as u8).next().is_some();
        let row = usize::from(ledger.position);
        if row == ROWS
            && ledger.pass == 1
            && self.steps.setup.has_second_pass
            && ledger.owners[0] == NOBODY
        {
            self.steps.at_once(who, "window::plan begins pass", 2, |state| {
                (state.ledger.pass, state.ledger.position) = (2, 0);
            });
        }
        if row < ROWS && may_take(0) {
            let known = is_live(row) || ledger.holds[row] == Hold::Open;
            let Row { is_settled, is_there, version } = rows[row];
            let take = is_there && !known && is_settled;
            let name = match take {
                true => "RangeScan::next, to be sent: row",
                false => "Ledger::record, nothing to send of row",
            };
            self.steps.at_once(who, name, row as u8, |state| {
                state.ledger.owners[0] = id;
                if take {
                    let ready = Thread::Ready { range: Range::Pass, row: row as u8, version };
                    state.processes[slot].threads[usize::from(UPLOADER)] = ready;
                    return;
                }
                if is_there && !known {
                    state.ledger.holds[row] = Hold::Open;
                }
                state.ledger.position += 1;
                free_done(state);
            });
        }
        let held = (0..ROWS).find(|row| {
            ledger.holds[*row] == Hold::Open && (rows[*row].is_settled || !rows[*row].is_there)
        });
        if let Some(row) = held.filter(|_| may_take(1)) {
            let Row { is_there, version, .. } = rows[row];
            let is_live = is_live(row);
            self.steps.at_once(who, "RangeScan::fetch_holds, row", row as u8, |state| {
                state.ledger.owners[1] = id;
                if is_there && !is_live {
                    let ready = Thread::Ready { range: Range::Holds, row: row as u8, version };
                    state.processes[slot].threads[usize::from(UPLOADER)] = ready;
                    return;
                }
                state.ledger.holds[row] = if is_live { Hold::None } else { Hold::Gone };
                state.ledger.owners[1] = NOBODY;
            });
        }
    }

    /// `Ledger::record`: the intent, signed now.
    fn record(&mut self, range: Range, row: u8, version: u8, again: Option<Intent>) {
        if !self.may_sign() && again.is_none() {
            return;
        }
        let Some((intent, lane)) = self.intend(range, row, again) else { return };
        if !self.may_send() {
            return self.ends(
                UPLOADER,
                "Ledger::lease_lost finds the ledger stopped, batch",
                intent.batch,
            );
        }
        let (slot, id) = (self.slot, self.id());
        let trusts = self.steps.has(Bug::RowsNotLookedUp);
        let may = may_write_step(self.steps.from, &intent, id, trusts);
        if let Err(why) = may {
            let name = match why {
                NotWritten::LeaseLost => "LeaseLost for row",
                NotWritten::RowsTaken => "RowsTaken for row",
            };
            return self.steps.at_once(Who::Thread(slot, UPLOADER), name, row, |state| {
                state.processes[slot].threads[usize::from(UPLOADER)] = Thread::Idle;
                let owner = &mut state.ledger.owners[range as usize];
                if *owner == id {
                    *owner = NOBODY;
                }
            });
        }
        let bugs = self.steps.setup.bugs;
        let begin = |state: &mut State| {
            state.made[usize::from(intent.batch)] = Some((row, version));
            use_lane(state, slot, UPLOADER, lane);
        };
        let written = |state: &mut State| {
            write_step(state, &intent, id, bugs);
            free_done(state);
            if range == Range::Holds {
                state.ledger.owners[1] = NOBODY;
            }
        };
        let who = Who::Thread(slot, UPLOADER);
        let uncertain = Thread::Uncertain(intent);
        self.steps.at_once(who, "Ledger::record batch", intent.batch, |state| {
            begin(state);
            written(state);
            state.processes[slot].threads[usize::from(UPLOADER)] = first_sending(intent);
        });
        if again.is_some() || self.steps.from.commit.is_some() {
            return;
        }
        self.steps.fault(
            Fault::LostCommit,
            who,
            "Ledger::record, done, but no answer, batch",
            intent.batch,
            |state| {
                begin(state);
                written(state);
                state.processes[slot].threads[usize::from(UPLOADER)] = uncertain;
            },
        );
        self.steps.fault(
            Fault::LostCommit,
            who,
            "Ledger::record, and its COMMIT is late, batch",
            intent.batch,
            |state| {
                begin(state);
                state.commit = Some((intent, id));
                state.processes[slot].threads[usize::from(UPLOADER)] = uncertain;
            },
        );
    }

    fn intend(&self, range: Range, row: u8, again: Option<Intent>) -> Option<(Intent, (u8, u8))> {
        if let Some(intent) = again {
            return Some((intent, (intent.sent.lane, intent.sent.number)));
        }
        let batch = self.steps.from.made.iter().position(Option::is_none)? as u8;
        let sent = self.slot_of(UPLOADER)?;
        Some((Intent { range, row, batch, sent }, (sent.lane, sent.number)))
    }

    /// `LaneKeeper::next_slot`, signed now.
    pub(crate) fn slot_of(&self, thread: u8) -> Option<Sent> {
        let State { lanes_opened, processes, sls, .. } = self.steps.from;
        let (lane, last) = processes[self.slot].lanes[usize::from(thread)];
        let lane = if last == 0 { *lanes_opened } else { lane };
        let sent = Sent { lane, number: last + 1, signed: -self.skew, after_split: sls.is_split };
        (usize::from(lane) < LANES).then_some(sent)
    }

    /// `Ledger::was_recorded`: the ledger itself knows.
    fn was_recorded(&mut self, intent: Intent) {
        if self.steps.from.ledger.batch(intent.batch).is_some() {
            self.becomes(
                UPLOADER,
                "Ledger::was_recorded finds batch",
                intent.batch,
                first_sending(intent),
            );
        } else {
            let (row, version) =
                self.steps.from.made[usize::from(intent.batch)].expect("it was made");
            self.record(intent.range, row, version, Some(intent));
        }
    }

    /// `Sender::send`, step by step.
    pub(crate) fn sender(&mut self, thread: u8, at: Thread) {
        let (slot, id) = (self.slot, self.id());
        let who = Who::Thread(slot, thread);
        let nth = usize::from(thread);
        match at {
            Thread::Sending(sending) => self.put(thread, sending),
            Thread::Waiting(sending) => {
                let after = hear(self.steps.deciders, sending, Answered::Lost);
                self.steps.fault(
                    Fault::LostAnswer,
                    who,
                    "no answer for batch",
                    sending.batch,
                    |state| {
                        for request in state.sls.requests.iter_mut().flatten() {
                            request.waiter =
                                request.waiter.filter(|waiter| *waiter != (slot as u8, thread));
                        }
                        state.processes[slot].threads[nth] = after;
                    },
                );
            }
            Thread::Stored { batch } => {
                let moves = self.steps.has(Bug::PositionOnAcknowledgement);
                self.steps.at_once(who, "Ledger::stored batch", batch, |state| {
                    state.processes[slot].threads[nth] = Thread::Idle;
                    let row = state.made[usize::from(batch)].map_or(0, |made| made.0);
                    if let Some(known) = state.ledger.batch_mut(batch)
                        && known.state == BatchState::Intent
                    {
                        (known.state, known.stored) = (BatchState::Stored, Some(0));
                        known.owner = NOBODY;
                        if moves && state.ledger.position == row {
                            state.ledger.position = row + 1;
                            free_done(state);
                        }
                    }
                });
            }
            Thread::GivingUp(Sending { batch, sent, report, .. }) => {
                if self.steps.has(Bug::NewLane) && report.number_used.is_some() {
                    return self.new_lane(thread, batch, sent);
                }
                self.steps.at_once(who, "Ledger::give_up batch", batch, |state| {
                    state.processes[slot].threads[nth] = Thread::Idle;
                    if let Some(known) = own_intent(state, batch, id) {
                        known.owner = NOBODY;
                        let unknowns = known.report.unknowns + report.unknowns;
                        let number_used = report.number_used.or(known.report.number_used);
                        known.report = Report { unknowns, number_used, ..report };
                    }
                });
            }
            _ => {}
        }
    }

    fn put(&mut self, thread: u8, sending: Sending) {
        let (slot, nth) = (self.slot, usize::from(thread));
        let Sending { batch, sent, unknown_since, .. } = sending;
        let who = Who::Thread(slot, thread);
        let State { sls, .. } = self.steps.from;
        let deciders = self.steps.deciders;
        if let Some(since) = unknown_since {
            let is_kept =
                deciders.proven() && is_number_kept(-i64::from(since), TIMINGS, self.skew.into());
            if !is_kept || !deciders.is_at_home(sent, sls.is_split) {
                return self.becomes(
                    thread,
                    "Sender::is_protected says no for batch",
                    batch,
                    Thread::GivingUp(sending),
                );
            }
        }
        let is_old = i64::from(sent.signed + self.skew) > TIMINGS.renew_after_s();
        let mut signed = sent.signed;
        if is_old && unknown_since.is_none() {
            if !self.steps.has(Bug::WokenSignsNow) {
                return self.sign_anew(thread, sending);
            }
            signed = -self.skew;
        }
        let Some(free) = sls.requests.iter().position(Option::is_none) else { return };
        self.steps.at_once(who, "Client::put batch", batch, |state| {
            let waiter = Some((slot as u8, thread));
            let Sent { lane, number, .. } = sent;
            state.sls.requests[free] =
                Some(Request { batch, lane, number, signed, taken: None, waiter });
            let sending = Sending { sent: Sent { signed, ..sent }, ..sending };
            state.processes[slot].threads[nth] = Thread::Waiting(sending);
        });
    }

    /// `Ledger::signed_anew`: the date is in the ledger before it is on the wire.
    fn sign_anew(&mut self, thread: u8, sending: Sending) {
        if !self.may_sign() {
            return;
        }
        let (slot, id, batch) = (self.slot, self.id(), sending.batch);
        let known = self.steps.from.ledger.batch(batch);
        let is_own =
            known.is_some_and(|known| known.state == BatchState::Intent && known.owner == id);
        let is_done = known.is_some_and(|known| known.state != BatchState::Intent);
        if is_own && self.may_send() {
            let signed = -self.skew;
            self.steps.at_once(
                Who::Thread(slot, thread),
                "Ledger::signed_anew batch",
                batch,
                |state| {
                    if let Some(known) = own_intent(state, batch, id) {
                        known.report.all_refused = false;
                        if let Some(sent) = &mut known.sent {
                            sent.signed = sent.signed.min(signed);
                        }
                    }
                    let sending = Sending { sent: Sent { signed, ..sending.sent }, ..sending };
                    state.processes[slot].threads[usize::from(thread)] = Thread::Sending(sending);
                },
            );
        } else if is_done {
            self.becomes(thread, "Ledger::signed_anew needs not, batch", batch, Thread::Idle);
        } else {
            self.ends(thread, "BatchLost, or stopped, batch", batch);
        }
    }

    /// The bug: another lane at once.
    fn new_lane(&mut self, thread: u8, batch: u8, sent: Sent) {
        let (slot, id, lane) = (self.slot, self.id(), self.steps.from.lanes_opened);
        if usize::from(lane) == LANES || !self.may_sign() {
            return;
        }
        let sent = Sent { lane, number: 1, signed: -self.skew, ..sent };
        self.steps.at_once(
            Who::Thread(slot, thread),
            "sends on a new lane batch",
            batch,
            |state| {
                use_lane(state, slot, thread, (lane, 1));
                if let Some(known) = own_intent(state, batch, id) {
                    known.sent = Some(sent);
                }
                let report = Report { all_refused: true, ..Report::default() };
                let sending = Sending { batch, sent, unknown_since: None, report };
                state.processes[slot].threads[usize::from(thread)] = Thread::Sending(sending);
            },
        );
    }
}

fn first_sending(intent: Intent) -> Thread {
    let Intent { batch, sent, .. } = intent;
    let report = Report { all_refused: true, ..Report::default() };
    Thread::Sending(Sending { batch, sent, unknown_since: None, report })
}

pub(crate) fn own_intent(state: &mut State, batch: u8, id: u8) -> Option<&mut Batch> {
    let known = state.ledger.batch_mut(batch)?;
    (known.state == BatchState::Intent && known.owner == id).then_some(known)
}

/// The number must never be given out again.
pub(crate) fn use_lane(state: &mut State, slot: usize, thread: u8, (lane, number): (u8, u8)) {
    state.processes[slot].lanes[usize::from(thread)] = (lane, number);
    state.lanes_opened = state.lanes_opened.max(lane + 1);
}

/// `Ledger::finish_range`
fn free_done(state: &mut State) {
    if usize::from(state.ledger.position) == ROWS {
        state.ledger.owners[0] = NOBODY;
    }
}
