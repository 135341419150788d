//! Faults that are ordered in advance: which request they hit, and what happens to it.
//!
//! [`Faults::decide`] is pure counting and dice; whoever serves the request carries the action out.

use std::num::NonZeroU32;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde::{Deserialize, Serialize};

/// How many faults may be waiting.
pub const FAULTS_MAX: usize = 1_000;

/// The longest delay: an hour, more than any client waits and any signature lives.
const DELAY_MS_MAX: u64 = 3_600_000;

/// One order: "from the `nth` matching request on, do this `times` times", or with a `probability`
/// instead of a certainty.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    pub kind: Kind,
    /// Only requests about this logstore match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logstore: Option<String>,
    /// Which matching request from now is the first to be hit; 1 is the next one.
    #[serde(default = "one")]
    pub nth: NonZeroU32,
    /// How many requests are hit, one after the other; by default 1, with a probability any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<NonZeroU32>,
    /// How likely a request is hit, over 0 to 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probability: Option<f64>,
    /// Decides which requests a probability hits: the same seed, the same ones.
    #[serde(default)]
    pub seed: u64,
    pub action: Action,
}

/// What a request is for, as far as faults care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// PutLogs.
    Put,
    /// PullLogs.
    Pull,
    /// GetCursor and GetCursorTime.
    Cursor,
    /// ListShards.
    Shards,
    /// GetLogs and GetHistograms.
    Search,
    /// Everything else: projects, logstores, indexes, splitting, consumer groups.
    Admin,
    /// In an order: every request.
    Any,
}

/// What happens to a request that is hit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The connection is closed without an answer and nothing takes effect.
    CutBefore,
    /// The request takes effect, then the connection is closed without an answer.
    CutAfter,
    /// The request takes effect, then the connection is closed in the middle of the answer.
    CutMiddle,
    /// This error is answered and nothing takes effect.
    Refuse(Refused),
    /// The request is served so much later, even if its client has gone by then.
    DelayMs(u64),
    /// The request is answered at once, and takes effect so much later.
    StoreLateMs { after_ms: u64, answer: EarlyAnswer },
    /// The same as `hold_before` without `then_cut`.
    Hold,
    /// The request waits for `POST /_sim/release`, and is then served, or with `then_cut` cut off
    /// without effect.
    HoldBefore {
        #[serde(default)]
        then_cut: bool,
    },
    /// The request takes effect; its answer waits for `POST /_sim/release`, and is then sent, or with
    /// `then_cut` never.
    HoldAfter {
        #[serde(default)]
        then_cut: bool,
    },
    /// The request is served, its answer has no `x-log-requestid`.
    NoRequestId,
    /// 200 with a page of HTML, as from a proxy; nothing takes effect.
    Html,
}

impl Action {
    /// As it is ordered.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("an action is plain values")
    }
}

/// An error as SLS answers one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refused {
    /// 400 to 599.
    pub status: u16,
    pub code: String,
    #[serde(default)]
    pub message: String,
}

/// What the client of a request hears that is stored later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EarlyAnswer {
    Cut(CutWord),
    Refuse(Refused),
}

/// The word `cut`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CutWord {
    /// Nothing: the connection is closed.
    Cut,
}

fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}

/// The faults that wait for their request.
#[derive(Debug, Default)]
pub struct Faults {
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    fault: Fault,
    dice: StdRng,
}

impl Faults {
    /// Adds `fault`; says what is wrong with it otherwise.
    pub fn add(&mut self, fault: Fault) -> Result<(), String> {
        if self.waiting.len() >= FAULTS_MAX {
            return Err(format!("{FAULTS_MAX} faults are waiting already"));
        }
        if let Some(probability) = fault.probability
            && !(probability > 0.0 && probability <= 1.0)
        {
            return Err(format!("probability {probability} is not over 0 to 1"));
        }
        let (delay_ms, refused) = match &fault.action {
            Action::Refuse(refused) => (0, Some(refused)),
            Action::DelayMs(delay_ms) => (*delay_ms, None),
            Action::StoreLateMs { after_ms, answer: EarlyAnswer::Refuse(refused) } => {
                (*after_ms, Some(refused))
            }
            Action::StoreLateMs { after_ms, answer: EarlyAnswer::Cut(_) } => (*after_ms, None),
            _ => (0, None),
        };
        if delay_ms > DELAY_MS_MAX {
            return Err(format!("{delay_ms} ms are over {DELAY_MS_MAX}"));
        }
        if let Some(Refused { status, .. }) = refused
            && !(400..=599).contains(status)
        {
            return Err(format!("status {status} is not one of 400 to 599"));
        }
        let dice = StdRng::seed_from_u64(fault.seed);
        self.waiting.push(Waiting { fault, dice });
        Ok(())
    }

    /// Forgets all orders; what was hit already goes on.
    pub fn clear(&mut self) {
        self.waiting.clear();
    }

    /// The orders that still wait, with what is left of `nth` and `times`.
    pub fn waiting(&self) -> impl Iterator<Item = &Fault> {
        self.waiting.iter().map(|waiting| &waiting.fault)
    }

    /// What happens to the request of `kind`, about `logstore`, that came now.
    ///
    /// Every matching order counts it. If several are due, the oldest hits and the others wait for
    /// the next request.
    pub fn decide(&mut self, kind: Kind, logstore: Option<&str>) -> Option<Action> {
        let mut hit = None;
        for (index, Waiting { fault, dice }) in self.waiting.iter_mut().enumerate() {
            let other_kind = fault.kind != Kind::Any && fault.kind != kind;
            if other_kind || (fault.logstore.is_some() && fault.logstore.as_deref() != logstore) {
                continue;
            }
            if let Some(fewer) = NonZeroU32::new(fault.nth.get() - 1) {
                fault.nth = fewer;
            } else if fault.probability.is_none_or(|probability| dice.random_bool(probability)) {
                hit = hit.or(Some(index));
            }
        }
        let index = hit?;
        let fault = &mut self.waiting[index].fault;
        let times = fault.times.or(fault.probability.is_none().then_some(NonZeroU32::MIN));
        let action = fault.action.clone();
        match times.map(|times| NonZeroU32::new(times.get() - 1)) {
            None => {}
            Some(Some(fewer)) => fault.times = Some(fewer),
            Some(None) => drop(self.waiting.remove(index)),
        }
        Some(action)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(json: &str) -> Fault {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn the_nth_matching_request_is_hit_so_many_times() {
        for nth in 1..5u32 {
            for times in 1..4u32 {
                let mut faults = Faults::default();
                let json = format!(
                    r#"{{"kind":"put","nth":{nth},"times":{times},"action":"cut_before"}}"#
                );
                faults.add(fault(&json)).unwrap();
                for request in 1..10 {
                    assert_eq!(faults.decide(Kind::Pull, None), None);
                    assert_eq!(faults.decide(Kind::Admin, None), None);
                    let due = (nth..nth + times).contains(&request);
                    assert_eq!(faults.decide(Kind::Put, None), due.then_some(Action::CutBefore));
                }
            }
        }
    }

    #[test]
    fn two_faults_for_one_request_follow_each_other() {
        let mut faults = Faults::default();
        faults.add(fault(r#"{"kind":"any","nth":2,"action":"html"}"#)).unwrap();
        faults.add(fault(r#"{"kind":"put","nth":2,"action":{"delay_ms":5}}"#)).unwrap();
        let decided: Vec<_> = (0..4).map(|_| faults.decide(Kind::Put, None)).collect();
        assert_eq!(decided, [None, Some(Action::Html), Some(Action::DelayMs(5)), None]);
    }

    #[test]
    fn a_logstore_can_be_meant_alone() {
        let mut faults = Faults::default();
        faults.add(fault(r#"{"kind":"put","logstore":"runs","action":"html"}"#)).unwrap();
        assert_eq!(faults.decide(Kind::Put, Some("nodes")), None);
        assert_eq!(faults.decide(Kind::Put, Some("runs")), Some(Action::Html));
    }

    #[test]
    fn a_probability_hits_the_same_requests_with_the_same_seed() {
        let hits = |seed: u64, more: &str| {
            let mut faults = Faults::default();
            let json = format!(
                r#"{{"kind":"put","probability":0.3,"seed":{seed},"action":"cut_after"{more}}}"#
            );
            faults.add(fault(&json)).unwrap();
            let hits = (0..1000).map(|_| faults.decide(Kind::Put, None).is_some());
            hits.collect::<Vec<_>>()
        };
        let count = |hits: &[bool]| hits.iter().filter(|hit| **hit).count();
        assert_eq!(hits(1, ""), hits(1, ""));
        assert_ne!(hits(1, ""), hits(2, ""));
        assert!((200..400).contains(&count(&hits(1, ""))));
        assert_eq!(count(&hits(1, r#","times":5"#)), 5);
    }

    #[test]
    fn every_action_is_spelt_as_the_readme_says() {
        let refused = Refused { status: 503, code: "ServerBusy".into(), message: String::new() };
        for (json, wanted) in [
            (r#""cut_middle""#, Action::CutMiddle),
            (r#""hold""#, Action::Hold),
            (r#"{"hold_before":{"then_cut":true}}"#, Action::HoldBefore { then_cut: true }),
            (r#"{"hold_after":{}}"#, Action::HoldAfter { then_cut: false }),
            (r#"{"refuse":{"status":503,"code":"ServerBusy"}}"#, Action::Refuse(refused.clone())),
            (
                r#"{"store_late_ms":{"after_ms":5,"answer":"cut"}}"#,
                Action::StoreLateMs { after_ms: 5, answer: EarlyAnswer::Cut(CutWord::Cut) },
            ),
            (
                r#"{"store_late_ms":{"after_ms":5,"answer":{"status":503,"code":"ServerBusy"}}}"#,
                Action::StoreLateMs { after_ms: 5, answer: EarlyAnswer::Refuse(refused) },
            ),
        ] {
            assert_eq!(serde_json::from_str::<Action>(json).unwrap(), wanted, "{json}");
        }
    }

    #[test]
    fn orders_that_make_no_sense_are_refused() {
        for json in [
            r#"{"kind":"put","nth":0,"action":"html"}"#,
            r#"{"kind":"put","times":0,"action":"html"}"#,
            r#"{"kind":"put","action":"explode"}"#,
            r#"{"kind":"put","action":"html","time":1}"#,
            r#"{"kind":"put","action":{"store_late_ms":{"after_ms":5,"answer":"maybe"}}}"#,
        ] {
            assert!(serde_json::from_str::<Fault>(json).is_err(), "{json}");
        }
        let mut faults = Faults::default();
        for json in [
            r#"{"kind":"put","action":{"refuse":{"status":200,"code":"a","message":""}}}"#,
            r#"{"kind":"put","action":{"delay_ms":3600001}}"#,
            r#"{"kind":"put","action":{"store_late_ms":{"after_ms":3600001,"answer":"cut"}}}"#,
            r#"{"kind":"put","probability":0.0,"action":"html"}"#,
            r#"{"kind":"put","probability":1.5,"action":"html"}"#,
        ] {
            assert!(faults.add(fault(json)).is_err(), "{json}");
        }
    }
}
