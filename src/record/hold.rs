//! Why a row is deliberately not stored, and when it is looked at again.

use serde::{Deserialize, Serialize};

/// The reason of a hold. A row that is held is accounted for, and stays in Postgres.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum HoldReason {
    /// Not in a terminal status, or finished less than the settle time ago.
    #[serde(rename = "running")]
    Running,
    /// Terminal, but without `finished_at`: Dify's readers would not count its log.
    #[serde(rename = "no finish time")]
    NoFinishTime,
    /// A run that newer Dify only keeps to steer it; its data is in SLS alone.
    #[serde(rename = "control row")]
    ControlRow,
    /// Its full payload lies in object storage, the columns hold a shortened copy.
    #[serde(rename = "offloaded")]
    Offloaded,
    /// Dify's own writer has stored it.
    #[serde(rename = "live")]
    Live,
    /// Whether Dify's own writer has stored it could not be found out.
    #[serde(rename = "live?")]
    LiveUnclear,
    /// It was there when its key was read, and not when it was read itself: deleted, or not on the
    /// replica that was asked.
    #[serde(rename = "missing")]
    Missing,
    /// Older than the logstore keeps logs.
    #[serde(rename = "expired")]
    Expired,
    /// Its log was in SLS and is not there any more; somebody wants it sent again.
    #[serde(rename = "lost")]
    Lost,
    /// Larger than a request to SLS may be.
    #[serde(rename = "too large")]
    TooLarge,
    /// A value that no log can carry, or that Dify's readers would stumble over.
    #[serde(rename = "invalid")]
    Invalid,
    /// SLS refused it, alone and for its content.
    #[serde(rename = "refused")]
    Refused,
    /// It was not there when its range was read; `repair` has given it to the next run.
    #[serde(rename = "late")]
    Late,
}

/// When a held row is looked at again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LookAgain {
    /// By every run.
    EveryRun,
    /// By some run, those first that have waited longest: a run looks at so many at most.
    InTurn,
    /// When the logstore keeps logs of its age.
    IfKept,
    /// When a person asks for it.
    IfAsked,
}

impl LookAgain {
    pub const ALL: [Self; 4] = [Self::EveryRun, Self::InTurn, Self::IfKept, Self::IfAsked];

    /// The words that the ledger uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::EveryRun => "every run",
            Self::InTurn => "in turn",
            Self::IfKept => "if kept",
            Self::IfAsked => "if asked",
        }
    }
}

impl HoldReason {
    pub const ALL: [Self; 13] = [
        Self::Running,
        Self::NoFinishTime,
        Self::ControlRow,
        Self::Offloaded,
        Self::Live,
        Self::LiveUnclear,
        Self::Missing,
        Self::Expired,
        Self::Lost,
        Self::TooLarge,
        Self::Invalid,
        Self::Refused,
        Self::Late,
    ];

    /// The word that the ledger and the reports use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::NoFinishTime => "no finish time",
            Self::ControlRow => "control row",
            Self::Offloaded => "offloaded",
            Self::Live => "live",
            Self::LiveUnclear => "live?",
            Self::Missing => "missing",
            Self::Expired => "expired",
            Self::Lost => "lost",
            Self::TooLarge => "too large",
            Self::Invalid => "invalid",
            Self::Refused => "refused",
            Self::Late => "late",
        }
    }

    /// What becomes of the row, for a person.
    pub fn outlook(self) -> &'static str {
        match self {
            Self::Running | Self::NoFinishTime => "a later run looks again",
            Self::ControlRow => "Dify keeps it only to control a run; its data is in SLS",
            Self::Offloaded => "its payload is not in Postgres; a later run looks again",
            Self::Live => "Dify's own writer has stored it",
            Self::LiveUnclear => "Dify's own writer may have stored it; the next run looks again",
            Self::Missing => "it was not there any more; gone, if it stays away for two days",
            Self::Expired => "older than the logstore keeps logs; it stays in Postgres",
            Self::Lost => "its log was lost in SLS; the next run sends it again",
            Self::TooLarge => "over --row-mib-max, or over SLS's 10 MB; it stays in Postgres",
            Self::Invalid => "Dify could not read it; fix it in Postgres and run again",
            Self::Refused => "SLS does not take it; it stays in Postgres",
            Self::Late => "it came after its range was read; the next run takes it",
        }
    }

    /// The reason of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.name() == name)
    }

    /// When a row that is held for this reason is looked at again, as a rule.
    pub fn look_again(self) -> LookAgain {
        match self {
            // It passes by itself, and soon.
            Self::Running | Self::LiveUnclear | Self::Missing | Self::Late | Self::Lost => {
                LookAgain::EveryRun
            }
            // A row may be mended by hand, get its payload back, or fit another limit.
            Self::NoFinishTime | Self::Offloaded | Self::TooLarge | Self::Invalid => {
                LookAgain::InTurn
            }
            Self::Expired => LookAgain::IfKept,
            Self::ControlRow | Self::Live | Self::Refused => LookAgain::IfAsked,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back() {
        for reason in HoldReason::ALL {
            assert_eq!(HoldReason::from_name(reason.name()), Some(reason));
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.name());
        }
        assert_eq!(HoldReason::from_name("because"), None);
    }

    #[test]
    fn the_ledger_knows_when_to_look_again() {
        let names = LookAgain::ALL.map(|look_again| format!("'{}'", look_again.name()));
        let check = format!("look_again IN ({})", names.join(", "));
        assert!(include_str!("../../migrations/0001_ledger.sql").contains(&check), "{check}");
    }
}
