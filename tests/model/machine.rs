//! The steps of everything but the processes' threads: time, SLS, Postgres, and what goes wrong.

use std::fmt;

use crate::deciders::{Answered, Deciders, TIMINGS};
use crate::search::Machine;
use crate::setup::{At, Bug, Fault, Setup};
use crate::state::{
    Batch, BatchState, Hold, LANES, NOBODY, OLD_S, Process, ROWS, Request, Row, SHARDS, State,
    Thread, UPLOADER,
};
use crate::threads::Threads;

/// A tick: so long that what is stored in one is visible in the next, where readers are well.
const TICK_S: i8 = 5;

/// Two processes whose clocks are apart by what the code allows for.
const SKEWS_S: [i8; 2] = [1, -1];

/// A step: who, and what of the code.
pub(crate) struct Step {
    pub(crate) who: Who,
    pub(crate) name: &'static str,
    pub(crate) of: u8,
}

#[derive(Clone, Copy)]
pub(crate) enum Who {
    World,
    Process(usize),
    Thread(usize, u8),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.who {
            Who::World => write!(f, "{} {}", self.name, self.of),
            Who::Process(slot) => write!(f, "process {slot}: {} {}", self.name, self.of),
            Who::Thread(slot, UPLOADER) => write!(f, "uploader {slot}: {} {}", self.name, self.of),
            Who::Thread(slot, _) => write!(f, "resolver {slot}: {} {}", self.name, self.of),
        }
    }
}

pub(crate) struct Protocol {
    pub(crate) setup: Setup,
    pub(crate) deciders: Deciders,
}

/// The steps from a state, as they are found.
pub(crate) struct Steps<'a> {
    pub(crate) setup: &'a Setup,
    pub(crate) deciders: &'a Deciders,
    pub(crate) from: &'a State,
    pub(crate) found: Vec<(Step, State)>,
    /// Whether a process has something to do at once. What takes its time sleeps, or is on its way.
    is_busy: bool,
}

impl Steps<'_> {
    pub(crate) fn has(&self, bug: Bug) -> bool {
        self.setup.bugs.contains(&bug)
    }

    /// Something that happens sooner or later and changes the state so.
    pub(crate) fn step(
        &mut self,
        who: Who,
        name: &'static str,
        of: u8,
        change: impl FnOnce(&mut State),
    ) {
        let mut state = self.from.clone();
        change(&mut state);
        tidy(&mut state);
        self.found.push((Step { who, name, of }, state));
    }

    /// Something that is done at once, before time goes by.
    pub(crate) fn at_once(
        &mut self,
        who: Who,
        name: &'static str,
        of: u8,
        change: impl FnOnce(&mut State),
    ) {
        self.is_busy = true;
        self.step(who, name, of, change);
    }

    /// A step that is something gone wrong, if it may.
    pub(crate) fn fault(
        &mut self,
        fault: Fault,
        who: Who,
        name: &'static str,
        of: u8,
        change: impl FnOnce(&mut State),
    ) {
        if self.from.faults_left > 0 && self.setup.kinds.contains(&fault) {
            self.step(who, name, of, |state| {
                state.faults_left -= 1;
                change(state);
            });
        }
    }
}

impl Protocol {
    pub(crate) fn new(setup: Setup) -> Self {
        Self { deciders: Deciders::new(setup.proven), setup }
    }
}

impl Machine for Protocol {
    type State = State;
    type Step = Step;

    fn first(&self) -> State {
        let row =
            |at| Row { version: 0, is_settled: at == At::Finished, is_there: at != At::Nowhere };
        State::new(self.setup.faults, self.setup.rows.map(row))
    }

    fn steps(&self, state: &State) -> Vec<(Step, State)> {
        let Self { setup, deciders } = self;
        let mut steps = Steps { setup, deciders, from: state, found: Vec::new(), is_busy: false };
        for (slot, skew) in (0..setup.processes).zip(SKEWS_S) {
            process(&mut steps, slot);
            if state.processes[slot].runs() && !state.processes[slot].is_starting {
                let mut threads = Threads { slot, skew, steps: &mut steps };
                threads.uploader();
                threads.resolver();
            }
        }
        if !steps.is_busy {
            time(&mut steps);
        }
        sls(&mut steps);
        rows(&mut steps);
        failover(&mut steps);
        audit(&mut steps);
        steps.found
    }

    fn broken(&self, state: &State) -> Option<String> {
        for row in 0..ROWS {
            if state.copies(row) > 1 {
                return Some(format!("row {row} is in SLS twice"));
            }
            // An audit counts what it adopts by itself.
            if state.has_failed_over {
                continue;
            }
            let live = state.live(row as u8).count();
            let accounts = live + usize::from(state.ledger.holds[row] != Hold::None);
            let is_seen = state.ledger.pass > 1 || row < usize::from(state.ledger.position);
            if accounts > 1 || (accounts > 0 && !is_seen) {
                return Some(format!(
                    "row {row} is accounted for {accounts} times, and seen: {is_seen}"
                ));
            }
        }
        None
    }

    fn is_good(&self, state: &State) -> bool {
        // Beyond what the model has room for nothing is claimed.
        if state.made.iter().all(Option::is_some) || usize::from(state.lanes_opened) == LANES {
            return true;
        }
        let is_done = |row: usize| {
            let Row { is_settled, is_there, .. } = state.rows[row];
            let has_one = state.live(row as u8).any(|(_, batch)| batch.state == BatchState::Proved);
            state.copies(row) == usize::from(has_one) && (has_one || !is_settled || !is_there)
        };
        let intents = state.ledger.batches.iter().flatten();
        (0..ROWS).all(is_done) && intents.clone().all(|batch| batch.state != BatchState::Intent)
    }
}

/// What does not matter any more is made alike.
fn tidy(state: &mut State) {
    let batches = &mut state.ledger.batches;
    let has_intent = batches.iter().flatten().any(|batch| batch.state == BatchState::Intent);
    for batch in batches.iter_mut().flatten() {
        if matches!(batch.state, BatchState::Proved | BatchState::Abandoned) {
            let Batch { sent, report, owner, stored, found_late, .. } = batch;
            (*owner, *report) = (NOBODY, Default::default());
            if let Some(sent) = sent {
                sent.signed = OLD_S;
            }
            *found_late = found_late.filter(|age| has_intent && *age <= 3 * TICK_S);
            if !has_intent {
                *stored = stored.map(|_| OLD_S);
            }
        }
    }
    state.sls.requests.sort_unstable();
}

fn time(steps: &mut Steps<'_>) {
    let from = steps.from;
    let late_s = i8::try_from(TIMINGS.late_s).expect("it is short");
    let life_s = i8::try_from(TIMINGS.signature_life_s).expect("it is short");
    // What SLS has taken is stored in time.
    let taken = from.sls.requests.iter().flatten().filter_map(|request| request.taken);
    if taken.max().is_some_and(|taken| taken + TICK_S > late_s) {
        return;
    }
    let lag = steps.setup.lag;
    steps.step(Who::World, "time goes by", 0, |state| {
        for shard in 0..SHARDS {
            if !(lag && is_stuck(state, shard)) {
                let shard = &mut state.sls.shards[shard];
                shard.visible = shard.groups().len() as u8;
            }
        }
        state.age(TICK_S);
        for process in state.processes.iter_mut().filter(|process| process.id != NOBODY) {
            process.looked = OLD_S;
        }
        for number in &mut state.sls.numbers {
            if number.1 > life_s {
                *number = (0, 0);
            }
        }
        for request in &mut state.sls.requests {
            if request
                .is_some_and(|it| it.taken.is_none() && it.waiter.is_none() && it.signed > life_s)
            {
                *request = None;
            }
        }
    });
}

/// Whether readers may stand still: something in front of them was acknowledged.
fn is_stuck(state: &State, shard: usize) -> bool {
    let shard = &state.sls.shards[shard];
    shard.groups()[usize::from(shard.visible)..].iter().any(|batch| {
        let known = state.ledger.batches[usize::from(*batch)].as_ref();
        known.is_some_and(|known| known.state == BatchState::Stored)
    })
}

fn sls(steps: &mut Steps<'_>) {
    let from = steps.from;
    for (nth, shard) in from.sls.shards.iter().enumerate() {
        if usize::from(shard.visible) < shard.groups().len() {
            steps.step(Who::World, "readers see the next group of shard", nth as u8, |state| {
                state.sls.shards[nth].visible += 1;
            });
        }
    }
    // What a repeated number protects from while it is on its way, a child that forgets does not.
    let requests = from.sls.requests.iter().flatten();
    let is_repeated = |one: &Request| {
        let same = |it: &&Request| (it.lane, it.number) == (one.lane, one.number);
        one.number <= from.sls.numbers[usize::from(one.lane)].0
            || requests.clone().filter(same).count() > 1
    };
    if !from.sls.is_split && !requests.clone().any(is_repeated) {
        steps.fault(
            Fault::Split,
            Who::World,
            "shard is split, the child forgets numbers",
            0,
            |state| {
                state.sls.is_split = true;
                state.sls.numbers = Default::default();
            },
        );
    }
    for nth in 0..from.sls.requests.len() {
        if let Some(request) = from.sls.requests[nth] {
            delivery(steps, nth, request);
        }
    }
}

fn delivery(steps: &mut Steps<'_>, nth: usize, request: Request) {
    let deciders = steps.deciders;
    let last = steps.from.sls.numbers[usize::from(request.lane)].0;
    let mut answer = |name, answered| {
        steps.step(Who::World, name, request.batch, |state| {
            state.sls.requests[nth] = None;
            reply(deciders, state, request, answered);
        });
    };
    if request.taken.is_some() {
        steps.step(Who::World, "SLS stores late batch", request.batch, |state| {
            state.sls.requests[nth] = None;
            store(state, request);
            reply(deciders, state, request, Answered::Stored);
        });
        return;
    }
    if i64::from(request.signed) > TIMINGS.signature_life_s {
        answer("SLS refuses the old signature of batch", Answered::Expired);
        return;
    }
    if deciders.proven() && request.number <= last {
        answer("SLS refuses the used number of batch", Answered::NumberUsed);
        return;
    }
    steps.step(Who::World, "SLS stores batch", request.batch, |state| {
        state.sls.requests[nth] = None;
        take(state, request);
        store(state, request);
        reply(deciders, state, request, Answered::Stored);
    });
    steps.fault(
        Fault::Late,
        Who::World,
        "SLS takes, to store it later, batch",
        request.batch,
        |state| {
            take(state, request);
            state.sls.requests[nth] = Some(Request { taken: Some(0), ..request });
        },
    );
    steps.fault(
        Fault::Duplicate,
        Who::World,
        "SLS stores, and hears once more of, batch",
        request.batch,
        |state| {
            state.sls.requests[nth] = Some(Request { waiter: None, ..request });
            take(state, request);
            store(state, request);
            reply(deciders, state, request, Answered::Stored);
        },
    );
}

fn take(state: &mut State, request: Request) {
    state.sls.numbers[usize::from(request.lane)] = (request.number, 0);
}

fn store(state: &mut State, request: Request) {
    state.sls.shards[usize::from(state.sls.is_split)].push(request.batch);
}

/// The thread that waits, if any does, hears the answer.
fn reply(deciders: &Deciders, state: &mut State, request: Request, answered: Answered) {
    let Some((slot, nth)) = request.waiter else { return };
    let thread = &mut state.processes[usize::from(slot)].threads[usize::from(nth)];
    if let Thread::Waiting(sending) = *thread {
        *thread = crate::threads::hear(deciders, sending, answered);
    }
}

fn rows(steps: &mut Steps<'_>) {
    for nth in 0..ROWS {
        let Row { version, is_settled, is_there } = steps.from.rows[nth];
        if !is_settled && is_there {
            steps.step(Who::World, "finishes: row", nth as u8, |state| {
                state.rows[nth].is_settled = true
            });
        }
        if is_there && version == 0 {
            steps.fault(Fault::RowChanges, Who::World, "changes: row", nth as u8, |state| {
                state.rows[nth].version = 1
            });
        }
        if is_there {
            steps.fault(Fault::RowVanishes, Who::World, "vanishes: row", nth as u8, |state| {
                state.rows[nth].is_there = false
            });
        }
    }
    if let Some((intent, id)) = steps.from.commit {
        steps.step(Who::World, "the COMMIT arrives of batch", intent.batch, |state| {
            state.commit = None;
            if crate::ledger::may_write_step(state, &intent, id, false).is_ok() {
                crate::ledger::write_step(state, &intent, id, &[]);
            }
        });
    }
}

fn failover(steps: &mut Steps<'_>) {
    if steps.from.has_failed_over {
        return;
    }
    match steps.from.replica {
        None => steps.fault(Fault::Failover, Who::World, "a replica follows no more", 0, |state| {
            state.replica = Some(Box::new(state.ledger.clone()));
        }),
        Some(_) => steps.step(Who::World, "the replica is promoted", 0, |state| {
            state.ledger = *state.replica.take().expect("it is there");
            state.ledger.timeline += 1;
            state.commit = None;
            state.has_failed_over = true;
        }),
    }
}

/// `recover::audit`: fence, read everything, conclude.
fn audit(steps: &mut Steps<'_>) {
    let State { ledger, sls, processes, .. } = steps.from;
    let nobody_runs = !processes.iter().any(Process::runs);
    if ledger.timeline != ledger.timeline_known && !ledger.is_stopped && nobody_runs {
        steps.step(Who::World, "Ledger::recognise stops the ledger", 0, |state| {
            state.ledger.is_stopped = true
        });
    }
    match ledger.audit {
        None if ledger.is_stopped && nobody_runs => {
            steps.step(Who::World, "Ledger::begin_audit", 0, |state| {
                (0..2).for_each(|slot| state.ledger.end(state.ledger.alive[slot]));
                state.ledger.audit = Some(0);
                state.ledger.read = [0; SHARDS];
                state.ledger.batches.iter_mut().flatten().for_each(|batch| batch.seen = 0);
            });
        }
        None => {}
        Some(fenced) => {
            for shard in 0..SHARDS {
                if ledger.read[shard] < sls.shards[shard].visible {
                    steps.step(Who::World, "Ledger::adopt_page of shard", shard as u8, |state| {
                        crate::ledger::adopt_page(state, shard);
                    });
                }
            }
            let over_s = TIMINGS.look_life_s() + TIMINGS.storable_s() + TIMINGS.look_after_s() + 2;
            if i64::from(fenced) >= over_s && steps.from.is_caught_up() {
                steps.step(Who::World, "Ledger::conclude_audit", 0, crate::ledger::conclude_audit);
            }
        }
    }
}

/// A process comes, goes, sleeps, looks for others, and reads.
fn process(steps: &mut Steps<'_>, slot: usize) {
    let State { ledger, processes, .. } = steps.from;
    let process = &processes[slot];
    let who = Who::Process(slot);
    if process.id == NOBODY {
        let fits = !ledger.is_stopped
            && ledger.audit.is_none()
            && ledger.timeline == ledger.timeline_known;
        if fits {
            steps.step(who, "Ledger::enter, Epoch::claim", 0, |state| {
                state.ledger.end(state.ledger.alive[slot]);
                state.processes_begun += 1;
                let id = state.processes_begun;
                state.ledger.alive[slot] = id;
                let was_behind = state.unseen().next().is_some();
                let timeline = state.ledger.timeline;
                state.processes[slot] =
                    Process { id, is_starting: true, was_behind, timeline, ..Process::NONE };
            });
        }
        return;
    }
    if process.is_paused {
        steps.step(who, "wakes", 0, |state| state.processes[slot].is_paused = false);
        return;
    }
    steps.fault(Fault::Crash, who, "kill -9", 0, |state| crate::ledger::die(state, slot));
    steps.fault(Fault::Pause, who, "sleeps", 0, |state| state.processes[slot].is_paused = true);
    let is_stopped = ledger.is_stopped || ledger.timeline != process.timeline;
    if is_stopped {
        steps.at_once(who, "Epoch::look_again finds the ledger stopped", 0, |state| {
            state.ledger.is_stopped = true;
            crate::ledger::leave(state, slot);
        });
        return;
    }
    if !steps.deciders.may_sign(process.looked) {
        steps.at_once(who, "Epoch::look_again", 0, |state| state.processes[slot].looked = 0);
    }
    if process.is_starting && steps.from.is_caught_up() {
        steps.at_once(who, "Run::read_first has read to the end", 0, |state| {
            let process = &mut state.processes[slot];
            process.is_starting = false;
            process.behind = std::mem::take(&mut process.was_behind).then_some(0);
        });
    }
    for shard in 0..SHARDS {
        if ledger.read[shard] < steps.from.sls.shards[shard].visible && ledger.audit.is_none() {
            steps.at_once(who, "Ledger::add_page of shard", shard as u8, |state| {
                crate::ledger::add_page(state, shard);
            });
        }
    }
    let other = 1 - slot;
    let is_dead = processes[other].is_paused || processes[other].id != ledger.alive[other];
    if ledger.alive[other] != NOBODY && is_dead && ledger.alive[slot] == process.id {
        steps.step(who, "process::bury_the_dead", other as u8, |state| {
            state.ledger.end(state.ledger.alive[other]);
        });
    }
}
