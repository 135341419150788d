//! What asking both sides has shown: differences, upstream's own quirks, and what is not known.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::dify::readers::Owner;

/// So many differences are kept; the others are only counted.
pub const FINDINGS_MAX: usize = 10_000;

/// Which of Dify's readers asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Readers {
    /// Those of 1.11.2 to 1.14.2.
    Shipped,
    /// Those from July 2026 on.
    Newest,
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Question {
    RunList,
    RunById,
    CountsByStatus,
    RunningRuns,
    DailyRuns,
    DailyTerminals,
    TokenCost,
    AverageInteractions,
    NodeTrace,
    LastOfNode,
    /// The runs of all apps of a day, against Postgres and what the ledger says was purged.
    RunsOfAllApps,
}

impl Question {
    /// In words that fit a column.
    pub fn words(self) -> &'static str {
        match self {
            Self::RunList => "list of runs",
            Self::RunById => "run by id",
            Self::CountsByStatus => "runs by status",
            Self::RunningRuns => "running runs",
            Self::DailyRuns => "daily runs",
            Self::DailyTerminals => "daily terminals",
            Self::TokenCost => "token cost",
            Self::AverageInteractions => "interactions",
            Self::NodeTrace => "node trace",
            Self::LastOfNode => "last of a node",
            Self::RunsOfAllApps => "runs of all apps",
        }
    }
}

/// A way of Dify's readers or of SLS that shows something else than Postgres's readers do, and is
/// no fault of what was migrated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Quirk {
    UnorderedList,
    OwnLogs,
    RunningCount,
    RetryCollapse,
    HundredRows,
    TextCut,
}

impl Quirk {
    pub fn what(self) -> &'static str {
        match self {
            Self::UnorderedList => {
                "the shipped list of runs has no order: it sorts by created_at, which no run's log has"
            }
            Self::OwnLogs => {
                "Dify's own logs are there beside ours: it logs a run more than once and sums \
                 without looking, so these numbers may be larger"
            }
            Self::RunningCount => "Dify counts every run as running that has ever logged it",
            Self::RetryCollapse => {
                "attempts of a node share its node_execution_id: the shipped trace shows the last"
            }
            Self::HundredRows => {
                "the shipped trace has no LIMIT, and SLS then gives 100 rows at most"
            }
            Self::TextCut => "SQL shows only the beginning of a long text: the index says how much",
        }
    }
}

/// Something that Dify would show differently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub tenant: String,
    pub app: String,
    pub trigger: String,
    pub readers: Readers,
    pub question: Question,
    /// A day, a status, the id of a row.
    pub place: String,
    /// The column or field that differs; `row`: the row as a whole.
    pub what: String,
    /// What Postgres gives; `None`: nothing.
    pub postgres: Option<String>,
    /// What SLS gives; `None`: nothing.
    pub sls: Option<String>,
}

/// Which question of which readers, about whom.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub owner: &'a Owner,
    pub readers: Readers,
    pub question: Question,
}

impl Asked<'_> {
    pub fn finding(
        &self,
        place: &str,
        what: &str,
        postgres: Option<String>,
        sls: Option<String>,
    ) -> Finding {
        Finding {
            tenant: self.owner.tenant.clone(),
            app: self.owner.app.clone(),
            trigger: self.owner.trigger.clone(),
            readers: self.readers,
            question: self.question,
            place: place.to_owned(),
            what: what.to_owned(),
            postgres,
            sls,
        }
    }
}

/// What has come together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// The first ones.
    pub list: Vec<Finding>,
    pub count: u64,
    /// How often each quirk was met.
    pub quirks: BTreeMap<Quirk, u64>,
    /// What could not be found out, with how often.
    pub not_known: BTreeMap<String, u64>,
    /// Rows that SLS shows and that were purged, as the ledger says.
    pub purged_rows: u64,
    /// Numbers that were only compared as bounds: rows of them were purged.
    pub bounded: u64,
    /// Answers that were compared.
    pub answers: u64,
}

impl Findings {
    pub fn push(&mut self, finding: Finding) {
        self.count += 1;
        if self.list.len() < FINDINGS_MAX {
            self.list.push(finding);
        }
    }

    pub fn quirk(&mut self, quirk: Quirk, times: u64) {
        if times > 0 {
            *self.quirks.entry(quirk).or_default() += times;
        }
    }

    pub fn not_known(&mut self, why: impl Into<String>) {
        *self.not_known.entry(why.into()).or_default() += 1;
    }

    pub fn add(&mut self, other: Self) {
        self.count += other.count;
        let room = FINDINGS_MAX.saturating_sub(self.list.len());
        self.list.extend(other.list.into_iter().take(room));
        for (quirk, times) in other.quirks {
            self.quirk(quirk, times);
        }
        for (why, times) in other.not_known {
            *self.not_known.entry(why).or_default() += times;
        }
        self.purged_rows += other.purged_rows;
        self.bounded += other.bounded;
        self.answers += other.answers;
    }
}
