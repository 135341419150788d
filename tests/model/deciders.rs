//! Asks the code's own deciders: what the model knows is put into the words that they know.
//!
//! The same is asked in many states, so answers are kept.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use dify_sls_backfill::ledger::in_doubt::{AttemptReport, InDoubtBatch, Seen, Sent as CodeSent};
use dify_sls_backfill::ledger::sighting::Moment;
use dify_sls_backfill::pipeline::guard::signing_lease::is_fresh;
use dify_sls_backfill::pipeline::recover::absence::{Look as CodeLook, Scene, Wait, wait};
use dify_sls_backfill::pipeline::recover::rules::{
    ArrivalDeadline, Guarantees, Presence, Timings, arrival_deadline, is_due, is_repeatable,
    presence,
};
use dify_sls_backfill::pipeline::send::lane_keeper::{is_at_home, places};
use dify_sls_backfill::pipeline::send::sender::{Reaction, note, reaction};
use dify_sls_backfill::record::digest::{Digest, Sum};
use dify_sls_backfill::record::table::Table;
use dify_sls_backfill::record::timestamp::Timestamp;
use dify_sls_backfill::sls::answer::{Answer, Failure, NextAction, classify};
use dify_sls_backfill::sls::pull::Shard;
use uuid::Uuid;

use crate::state::{Age, Batch, Look, Report, Sent};

/// Short enough for few ticks; the look that a signature rests on lives as long as a tick's part.
pub(crate) const TIMINGS: Timings = Timings { signature_life_s: 10, late_s: 5, visible_s: 3 };

/// The moment at which all is decided: ages are counted back from here.
const NOW: i64 = 1_790_000_000;

/// What a resolver does with an open batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Round {
    Passed,
    Due,
    Repeatable,
    Waits,
}

/// What a look that has read to the end does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Nothing,
    /// It is there, or something else is: the ledger tells which.
    There,
    Waits,
}

/// What SLS answers, as far as the protocol knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Answered {
    Stored,
    Lost,
    NumberUsed,
    Expired,
}

/// What a sender does after an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reacted {
    Again,
    SignAnew,
    GiveUp,
}

/// All that an open batch is judged by.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct OpenBatch {
    pub(crate) sent: Option<Sent>,
    pub(crate) report: Report,
    pub(crate) seen: u8,
    /// How long ago a later number of its lane was known to be stored.
    pub(crate) passed: Age,
}

#[derive(PartialEq, Eq, Hash)]
struct LookKey {
    open: OpenBatch,
    look: (Age, Age),
    unseen: Vec<(i8, bool)>,
    when: When,
}

/// When a look is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct When {
    /// How long ago it began to read.
    pub(crate) read_from: i8,
    pub(crate) is_split: bool,
    /// How far the process's clock is ahead of SLS's.
    pub(crate) skew: i8,
    /// How long ago something was found late.
    pub(crate) late: Age,
}

pub(crate) struct Deciders {
    guarantees: Guarantees,
    shards: [Vec<Shard>; 2],
    rounds: RefCell<HashMap<(OpenBatch, i8), Round>>,
    looks: RefCell<HashMap<LookKey, (Verdict, Age)>>,
}

/// In the part of the key range that the split gives to shard 1.
fn hash_key() -> String {
    "1".repeat(32)
}

fn shard(id: u32, status: &str, begin: char, end: char) -> Shard {
    Shard {
        id,
        status: status.to_owned(),
        begin_key: begin.to_string().repeat(32),
        end_key: end.to_string().repeat(32),
    }
}

fn ago(age: i8) -> i64 {
    NOW - i64::from(age)
}

impl Deciders {
    pub(crate) fn new(proven: bool) -> Self {
        let whole = vec![shard(0, "readwrite", '0', 'f')];
        let halves = vec![
            shard(0, "readonly", '0', 'f'),
            shard(1, "readwrite", '0', '8'),
            shard(2, "readwrite", '8', 'f'),
        ];
        Self {
            guarantees: Guarantees { proven, timings: TIMINGS },
            shards: [whole, halves],
            rounds: RefCell::default(),
            looks: RefCell::default(),
        }
    }

    pub(crate) fn proven(&self) -> bool {
        self.guarantees.proven
    }

    /// Whether a signature may be dated by who has looked for others so long ago.
    pub(crate) fn may_sign(&self, looked: i8) -> bool {
        is_fresh(NOW, ago(looked), TIMINGS.look_life_s())
    }

    pub(crate) fn is_at_home(&self, sent: Sent, is_split: bool) -> bool {
        is_at_home(&hash_key(), &cursors(sent), &self.shards[usize::from(is_split)])
    }

    fn places(&self, after_split: bool, is_split: bool) -> BTreeSet<u32> {
        places(&hash_key(), &sent_to(after_split), &self.shards[usize::from(is_split)])
    }

    /// What `Resolver::round` does with it, seen from a clock that is `skew` s ahead.
    pub(crate) fn round(&self, open: &OpenBatch, skew: i8) -> Round {
        let key = (open.clone(), skew);
        if let Some(known) = self.rounds.borrow().get(&key) {
            return *known;
        }
        let (batch, seen) = in_code(open);
        let now = NOW + i64::from(skew);
        let round = match arrival_deadline(&batch, &seen, self.guarantees, now) {
            ArrivalDeadline::Passed if seen.found.rows == 0 => Round::Passed,
            deadline if is_due(deadline, self.guarantees, now) => Round::Due,
            _ if is_repeatable(&batch, self.guarantees, now) => Round::Repeatable,
            _ => Round::Waits,
        };
        self.rounds.borrow_mut().insert(key, round);
        round
    }

    /// What a look tells that has read to the end; how long ago it was missing what had been
    /// acknowledged.
    pub(crate) fn look<'a>(
        &self,
        open: OpenBatch,
        look: Look,
        unseen: impl Iterator<Item = &'a Batch>,
        when: When,
    ) -> (Verdict, Age) {
        let unseen = unseen.filter_map(|batch| Some((batch.stored?, batch.sent?.after_split)));
        let When { read_from, is_split, skew, late } = when;
        let key = LookKey { open, look: (look.began, look.behind), unseen: unseen.collect(), when };
        if let Some(known) = self.looks.borrow().get(&key) {
            return *known;
        }
        let (batch, seen) = in_code(&key.open);
        let moment = |age: i8| Moment::from_unix_us(ago(age) * 1_000_000);
        let scene = Scene {
            guarantees: self.guarantees,
            // The code's clock has whole seconds, and takes one for what it does not see.
            read_from: ago(read_from) + i64::from(skew) - 1,
            now: NOW + i64::from(skew),
            unseen: key
                .unseen
                .iter()
                .map(|(age, split)| (moment(*age), self.places(*split, is_split)))
                .collect(),
            shards: &self.shards[usize::from(is_split)],
            caught_up_at: late.map(|age| ago(age) + i64::from(skew)),
        };
        let mut code_look = CodeLook {
            began: moment(look.began.unwrap_or(0)),
            behind_at: look.behind.map(|age| ago(age) + i64::from(skew)),
        };
        let verdict = match (
            presence(&batch.wanted, &seen.found),
            wait(&batch, &seen, &scene, &mut code_look),
        ) {
            (Presence::Nothing, Wait::No) => Verdict::Nothing,
            (Presence::Nothing, _) => Verdict::Waits,
            _ => Verdict::There,
        };
        let behind = code_look
            .behind_at
            .map(|at| i8::try_from(NOW + i64::from(skew) - at).expect("ages are small"));
        self.looks.borrow_mut().insert(key, (verdict, behind));
        (verdict, behind)
    }

    /// What `Sender::send` does after an answer, and what it knows then.
    pub(crate) fn react(
        &self,
        answered: Answered,
        report: Report,
        is_unknown: bool,
    ) -> (Reacted, Report) {
        let failure = failure(answered);
        let mut code = report_in_code(report);
        note(&mut code, &failure, NOW);
        let reacted = match reaction(&failure, &code, self.guarantees.proven, 0) {
            Reaction::Wait => Reacted::Again,
            Reaction::SignAnew if !is_unknown => Reacted::SignAnew,
            Reaction::SignAnew | Reaction::GiveUp(_) | Reaction::Fail => Reacted::GiveUp,
        };
        let unknowns = u8::try_from(code.unknowns).expect("they are few");
        let number_used =
            code.number_used_at.map(|at| i8::try_from(NOW - at).expect("ages are small"));
        (reacted, Report { unknowns, all_refused: code.all_refused, number_used })
    }
}

/// The answer as it comes over the wire, classified by the code.
fn failure(answered: Answered) -> Failure {
    let refused = |status, code: &str| {
        let body = format!(r#"{{"errorCode": "{code}", "errorMessage": "no"}}"#);
        classify(Answer { status, request_id: Some("r"), body: body.as_bytes() })
            .expect_err("it is a refusal")
    };
    match answered {
        Answered::NumberUsed => refused(400, "InvalidSequenceId"),
        Answered::Expired => refused(400, "RequestTimeExpired"),
        Answered::Lost => Failure::unknown("no answer"),
        Answered::Stored => unreachable!("that is no failure"),
    }
}

/// Whether the code takes 200 with a request id for stored, and only that.
pub(crate) fn stored_is_stored() -> bool {
    let answer = Answer { status: 200, request_id: Some("r"), body: b"" };
    let from_a_proxy = classify(Answer { request_id: None, ..answer });
    classify(answer).is_ok()
        && from_a_proxy.is_err_and(|failure| failure.next == NextAction::Unknown)
}

/// The shards that owned the key when it was sent.
fn sent_to(after_split: bool) -> BTreeSet<u32> {
    if after_split { BTreeSet::from([0, 1]) } else { BTreeSet::from([0]) }
}

fn cursors(sent: Sent) -> BTreeMap<u32, String> {
    sent_to(sent.after_split).into_iter().map(|shard| (shard, String::new())).collect()
}

fn report_in_code(report: Report) -> AttemptReport {
    AttemptReport {
        unknowns: report.unknowns.into(),
        all_refused: report.all_refused,
        refusal: None,
        number_used_at: report.number_used.map(ago),
    }
}

fn in_code(open: &OpenBatch) -> (InDoubtBatch, Seen) {
    let one = Sum { rows: 1, digest: Digest::ZERO, groups: 1 };
    let mut found = Sum::default();
    (0..open.seen).for_each(|_| found.add(&one));
    let sent = open.sent.map(|sent| CodeSent {
        lane_id: sent.lane.into(),
        hash_key: hash_key(),
        number: sent.number.into(),
        signed_at: ago(sent.signed),
        cursors: cursors(sent),
    });
    let batch = InDoubtBatch {
        id: Uuid::nil(),
        pass_id: 1,
        range_id: 1,
        table: Table::Runs,
        row_ids: vec![Uuid::nil()],
        created_first: Timestamp::from_unix_s(0),
        wanted: one,
        raw_bytes: 1,
        conversion_id: 1,
        conversion: serde_json::Value::Null,
        ingest_time: 0,
        sendings: 1,
        sent,
        is_revision: false,
        report: report_in_code(open.report),
    };
    let seen = Seen { is_open: true, found, passed_ago_s: open.passed.map(i64::from) };
    (batch, seen)
}
