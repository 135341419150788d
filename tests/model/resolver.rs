//! The steps of a process's resolver: what becomes of a batch whose fate is open.

use crate::deciders::{OpenBatch, Round, TIMINGS, Verdict, When};
use crate::machine::Who;
use crate::setup::Bug;
use crate::state::{
    Batch, BatchState, Hold, Look, NOBODY, RESOLVER, Report, Sending, State, Thread,
};
use crate::threads::{Threads, own_intent, use_lane};

impl Threads<'_, '_> {
    pub(crate) fn resolver(&mut self) {
        match self.steps.from.processes[self.slot].threads[usize::from(RESOLVER)] {
            Thread::Idle => self.claim_in_doubt(),
            Thread::Open { batch, look, is_repeatable } => self.round(batch, look, is_repeatable),
            Thread::Looking { batch, look, read_from, ends, unseen } => {
                let read = self.steps.from.ledger.read;
                if read.iter().zip(ends).all(|(read, end)| *read >= end) {
                    self.look_for(batch, look, read_from, unseen);
                }
            }
            Thread::Missing { batch, look } => self.end(batch, look),
            thread => self.sender(RESOLVER, thread),
        }
    }

    fn claim_in_doubt(&mut self) {
        let (slot, id) = (self.slot, self.id());
        if self.steps.from.ledger.alive[slot] != id {
            return;
        }
        for (nth, batch) in (0..).zip(&self.steps.from.ledger.batches) {
            let is_free = |it: &Batch| it.state == BatchState::Intent && it.owner == NOBODY;
            if batch.as_ref().is_some_and(is_free) {
                self.steps.at_once(
                    Who::Thread(slot, RESOLVER),
                    "Ledger::claim_in_doubt batch",
                    nth,
                    |state| {
                        if let Some(batch) = state.ledger.batch_mut(nth) {
                            batch.owner = id;
                        }
                        let open =
                            Thread::Open { batch: nth, look: Look::default(), is_repeatable: true };
                        state.processes[slot].threads[usize::from(RESOLVER)] = open;
                    },
                );
            }
        }
    }

    /// What an open batch is judged by; `None`: it is not open any more.
    fn open(&self, nth: u8) -> Option<OpenBatch> {
        let ledger = &self.steps.from.ledger;
        let batch = ledger
            .batch(nth)
            .filter(|batch| batch.state == BatchState::Intent && batch.owner == self.id())?;
        let later =
            ledger.batches.iter().flatten().filter(|later| match (later.sent, batch.sent) {
                (Some(later), Some(sent)) => later.lane == sent.lane && later.number > sent.number,
                _ => false,
            });
        let passed = later.filter_map(|later| later.stored).max();
        Some(OpenBatch { sent: batch.sent, report: batch.report, seen: batch.seen, passed })
    }

    /// `Resolver::round` for one batch.
    fn round(&mut self, batch: u8, look: Look, is_repeatable: bool) {
        let Some(open) = self.open(batch) else {
            return self.becomes(
                RESOLVER,
                "Resolver::round finds an end of batch",
                batch,
                Thread::Idle,
            );
        };
        let life_s = i8::try_from(TIMINGS.signature_life_s).expect("it is short");
        if self.steps.has(Bug::NoSecondLook) && open.sent.is_none_or(|sent| sent.signed >= life_s) {
            return self.becomes(
                RESOLVER,
                "gives up unseen batch",
                batch,
                Thread::Missing { batch, look },
            );
        }
        match self.steps.deciders.round(&open, self.skew) {
            Round::Passed => {
                self.becomes(
                    RESOLVER,
                    "Resolver::round, never sent, batch",
                    batch,
                    Thread::Missing { batch, look },
                );
            }
            Round::Due => {
                let (slot, is_first) = (self.slot, look.began.is_none());
                let began = look.began.or(Some(0));
                let behind = match look.began {
                    None => self.steps.from.processes[self.slot].behind,
                    Some(_) => look.behind,
                };
                let look = Look { began, behind };
                let unseen = (0..).zip(&self.steps.from.ledger.batches).filter(|(_, batch)| {
                    batch.as_ref().is_some_and(|it| it.state == BatchState::Stored && it.seen == 0)
                });
                let unseen = unseen.fold(0, |bits, (nth, _)| bits | 1 << nth);
                let ends = self.steps.from.ends();
                let looking = Thread::Looking { batch, look, read_from: 0, ends, unseen };
                let who = Who::Thread(self.slot, RESOLVER);
                let name = "Resolver::look_for begins for batch";
                let begin = |state: &mut State| {
                    state.processes[slot].threads[usize::from(RESOLVER)] = looking;
                };
                // After a look that told nothing there is a pause.
                match is_first {
                    true => self.steps.at_once(who, name, batch, begin),
                    false => self.steps.step(who, name, batch, begin),
                }
            }
            Round::Repeatable if is_repeatable => self.sign_same_number(batch, look),
            Round::Repeatable | Round::Waits => {}
        }
    }

    fn look_for(&mut self, batch: u8, look: Look, read_from: i8, unseen: u8) {
        let Some(open) = self.open(batch) else {
            return self.becomes(RESOLVER, "Resolver::look_for finds batch", batch, Thread::Idle);
        };
        let clock_alone = self.steps.has(Bug::ClockAlone);
        let asked = if clock_alone { Look { behind: None, ..look } } else { look };
        let batches = &self.steps.from.ledger.batches;
        let unseen = (0..batches.len()).filter(|nth| !clock_alone && unseen & (1 << nth) != 0);
        let unseen = unseen.filter_map(|nth| batches[nth].as_ref());
        let late = batches.iter().flatten().filter_map(|batch| batch.found_late).min();
        let late = late.filter(|_| !clock_alone && !self.steps.has(Bug::LagForgotten));
        let when =
            When { read_from, is_split: self.steps.from.sls.is_split, skew: self.skew, late };
        let (verdict, behind) = self.steps.deciders.look(open, asked, unseen, when);
        let after = match verdict {
            Verdict::Nothing => Thread::Missing { batch, look },
            Verdict::There | Verdict::Waits => {
                Thread::Open { batch, look: Look { behind, ..look }, is_repeatable: false }
            }
        };
        let name = match verdict {
            Verdict::Nothing => "Resolver::look_for, not there, batch",
            Verdict::There => "Resolver::look_for, there, batch",
            Verdict::Waits => "Resolver::look_for must wait for batch",
        };
        self.becomes(RESOLVER, name, batch, after);
    }

    /// `Resolver::sign_same_number`
    fn sign_same_number(&mut self, batch: u8, look: Look) {
        let State { sls, rows, made, ledger, .. } = self.steps.from;
        let (slot, id) = (self.slot, self.id());
        let sent = ledger.batch(batch).and_then(|batch| batch.sent).expect("it was sent");
        let (row, version) = made[usize::from(batch)].expect("it was made");
        let now = rows[usize::from(row)];
        let is_same = now.is_there && now.version == version;
        if !is_same || !self.steps.deciders.is_at_home(sent, sls.is_split) {
            let wait = Thread::Open { batch, look, is_repeatable: false };
            return self.becomes(RESOLVER, "Resolver::wait_for batch", batch, wait);
        }
        if !self.may_send() {
            return self.ends(RESOLVER, "Stopped, batch", batch);
        }
        let sending =
            Sending { batch, sent, unknown_since: Some(sent.signed), report: Report::default() };
        self.steps.at_once(
            Who::Thread(slot, RESOLVER),
            "Resolver::sign_same_number batch",
            batch,
            |state| {
                if let Some(known) = own_intent(state, batch, id) {
                    known.report.all_refused = false;
                }
                state.processes[slot].threads[usize::from(RESOLVER)] = Thread::Sending(sending);
            },
        );
    }

    /// `Resolver::end`: under another number, or replaced by what the row is now.
    fn end(&mut self, batch: u8, look: Look) {
        let State { rows, made, ledger, .. } = self.steps.from;
        let (slot, id) = (self.slot, self.id());
        let who = Who::Thread(slot, RESOLVER);
        let Some(known) =
            ledger.batch(batch).filter(|it| it.state == BatchState::Intent && it.owner == id)
        else {
            return self.becomes(
                RESOLVER,
                "ledger::in_doubt::absence finds an end of batch",
                batch,
                Thread::Idle,
            );
        };
        // Whoever adds a sighting takes the same lock.
        if known.seen > 0 {
            let open = Thread::Open { batch, look, is_repeatable: false };
            return self.becomes(RESOLVER, "ledger::in_doubt::absence finds batch", batch, open);
        }
        let (row, version) = made[usize::from(batch)].expect("it was made");
        let now = rows[usize::from(row)];
        if now.is_there && now.version == version {
            if !self.may_sign() {
                return;
            }
            let Some(sent) = self.slot_of(RESOLVER) else { return };
            if !self.may_send() {
                return self.ends(RESOLVER, "Stopped, batch", batch);
            }
            let report = Report { all_refused: true, ..Report::default() };
            return self.steps.at_once(who, "Ledger::renumbered batch", batch, |state| {
                use_lane(state, slot, RESOLVER, (sent.lane, sent.number));
                if let Some(known) = own_intent(state, batch, id) {
                    known.sent = Some(sent);
                    known.report = Report { all_refused: false, number_used: None, ..known.report };
                }
                let sending = Sending { batch, sent, unknown_since: None, report };
                state.processes[slot].threads[usize::from(RESOLVER)] = Thread::Sending(sending);
            });
        }
        let Some(fresh) = made.iter().position(Option::is_none) else { return };
        self.steps.at_once(who, "Ledger::replace batch", batch, |state| {
            if let Some(known) = own_intent(state, batch, id) {
                known.state = BatchState::Abandoned;
            }
            if now.is_there && now.is_settled {
                state.made[fresh] = Some((row, now.version));
                state.ledger.batches[fresh] = Some(Batch {
                    state: BatchState::Intent,
                    owner: NOBODY,
                    sent: None,
                    report: Report::default(),
                    stored: None,
                    seen: 0,
                    found_late: None,
                });
            } else {
                state.ledger.holds[usize::from(row)] = Hold::Open;
            }
            state.processes[slot].threads[usize::from(RESOLVER)] = Thread::Idle;
        });
    }
}
