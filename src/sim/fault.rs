//! Faults that a test orders in advance: which request they hit, and what happens to it.
//!
//! [`Faults::decide`] is pure counting; whoever serves the request carries the action out.

use std::num::NonZeroU32;

use serde::Deserialize;

/// How many faults may be waiting.
pub const FAULTS_MAX: usize = 1_000;

/// The longest delay: ten minutes, more than any client waits.
const DELAY_MS_MAX: u64 = 600_000;

/// One order: "from the `nth` matching request on, do this `times` times".
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    pub kind: Kind,
    /// Which matching request from now is the first to be hit; 1 is the next one.
    #[serde(default = "one")]
    pub nth: NonZeroU32,
    /// How many requests are hit, one after the other.
    #[serde(default = "one")]
    pub times: NonZeroU32,
    pub action: Action,
}

/// What a request is for, as far as faults care.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// PutLogs.
    Put,
    /// PullLogs.
    Pull,
    /// GetCursor and GetCursorTime.
    Cursor,
    /// In an order: every request. Of a request: none of the above.
    Any,
}

/// What happens to a request that is hit.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// The connection is closed without an answer and nothing takes effect.
    CutBefore,
    /// The request takes effect, then the connection is closed without an answer.
    CutAfter,
    /// This error is answered and nothing takes effect.
    Refuse { status: u16, code: String, message: String },
    /// The request is served so much later.
    DelayMs(u64),
    /// The request is served, its answer has no `x-log-requestid`.
    NoRequestId,
    /// 200 with a page of HTML, as from a proxy; nothing takes effect.
    Html,
}

fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}

/// The faults that wait for their request.
#[derive(Debug, Default)]
pub struct Faults {
    waiting: Vec<Fault>,
}

impl Faults {
    /// Adds `fault`; says what is wrong with it otherwise.
    pub fn add(&mut self, fault: Fault) -> Result<(), String> {
        match &fault.action {
            Action::Refuse { status, .. } if !(400..=599).contains(status) => {
                return Err(format!("status {status} is not one of 400 to 599"));
            }
            Action::DelayMs(delay_ms) if *delay_ms > DELAY_MS_MAX => {
                return Err(format!("delay_ms {delay_ms} is over {DELAY_MS_MAX}"));
            }
            _ if self.waiting.len() >= FAULTS_MAX => {
                return Err(format!("{FAULTS_MAX} faults are waiting already"));
            }
            _ => {}
        }
        self.waiting.push(fault);
        Ok(())
    }

    pub fn clear(&mut self) {
        self.waiting.clear();
    }

    /// What happens to the request of `kind` that came now.
    ///
    /// Every matching order counts it. If several are due, the oldest hits and the others wait for
    /// the next request.
    pub fn decide(&mut self, kind: Kind) -> Option<Action> {
        let mut hit = None;
        for (index, fault) in self.waiting.iter_mut().enumerate() {
            if fault.kind != Kind::Any && fault.kind != kind {
                continue;
            }
            match NonZeroU32::new(fault.nth.get() - 1) {
                Some(fewer) => fault.nth = fewer,
                None => hit = hit.or(Some(index)),
            }
        }
        let index = hit?;
        let fault = &mut self.waiting[index];
        match NonZeroU32::new(fault.times.get() - 1) {
            Some(fewer) => {
                fault.times = fewer;
                Some(fault.action.clone())
            }
            None => Some(self.waiting.remove(index).action),
        }
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
                    assert_eq!(faults.decide(Kind::Pull), None);
                    assert_eq!(faults.decide(Kind::Any), None);
                    let due = (nth..nth + times).contains(&request);
                    assert_eq!(faults.decide(Kind::Put), due.then_some(Action::CutBefore));
                }
            }
        }
    }

    #[test]
    fn two_faults_for_one_request_follow_each_other() {
        let mut faults = Faults::default();
        faults.add(fault(r#"{"kind":"any","nth":2,"action":"html"}"#)).unwrap();
        faults.add(fault(r#"{"kind":"put","nth":2,"action":{"delay_ms":5}}"#)).unwrap();
        let decided: Vec<_> = (0..4).map(|_| faults.decide(Kind::Put)).collect();
        assert_eq!(decided, [None, Some(Action::Html), Some(Action::DelayMs(5)), None]);
    }

    #[test]
    fn orders_that_make_no_sense_are_refused() {
        for json in [
            r#"{"kind":"put","nth":0,"action":"html"}"#,
            r#"{"kind":"put","times":0,"action":"html"}"#,
            r#"{"kind":"put","action":"explode"}"#,
            r#"{"kind":"put","action":"html","time":1}"#,
        ] {
            assert!(serde_json::from_str::<Fault>(json).is_err(), "{json}");
        }
        let mut faults = Faults::default();
        for json in [
            r#"{"kind":"put","action":{"refuse":{"status":200,"code":"a","message":""}}}"#,
            r#"{"kind":"put","action":{"delay_ms":600001}}"#,
        ] {
            assert!(faults.add(fault(json)).is_err(), "{json}");
        }
    }
}
