//! Why a row is deliberately not stored.

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
}

impl HoldReason {
    pub const ALL: [Self; 11] = [
        Self::Running,
        Self::NoFinishTime,
        Self::ControlRow,
        Self::Offloaded,
        Self::Live,
        Self::LiveUnclear,
        Self::Expired,
        Self::Lost,
        Self::TooLarge,
        Self::Invalid,
        Self::Refused,
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
            Self::Expired => "expired",
            Self::Lost => "lost",
            Self::TooLarge => "too large",
            Self::Invalid => "invalid",
            Self::Refused => "refused",
        }
    }

    /// What becomes of the row, for a person.
    pub fn outlook(self) -> &'static str {
        match self {
            Self::Running | Self::NoFinishTime => "the next run looks again",
            Self::ControlRow => "Dify only steers by it, its data is in SLS",
            Self::Offloaded => "its payload is not in Postgres; the next run looks again",
            Self::Live => "Dify's own writer has stored it",
            Self::LiveUnclear => "Dify's own writer may have stored it; the next run looks again",
            Self::Expired => "older than the logstore keeps logs; it stays in Postgres",
            Self::Lost => "its log was lost in SLS; the next run sends it again",
            Self::TooLarge => "over --row-mib-max, or over SLS's 10 MB; it stays in Postgres",
            Self::Invalid => "Dify could not read it; mend it in Postgres and run again",
            Self::Refused => "SLS does not take it; it stays in Postgres",
        }
    }

    /// The reason of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.name() == name)
    }

    /// Whether the same row may be fit to be stored later, so that the next run tries it again.
    pub fn can_pass(self) -> bool {
        match self {
            // A row may finish, be mended by hand, get its payload back, or its answer.
            Self::Running
            | Self::NoFinishTime
            | Self::Offloaded
            | Self::LiveUnclear
            | Self::Expired
            | Self::Lost
            | Self::TooLarge
            | Self::Invalid => true,
            Self::ControlRow | Self::Live | Self::Refused => false,
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
}
