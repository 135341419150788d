//! What happened: a run, who started it, and its nodes.

use uuid::Uuid;

use crate::demo::app::{App, Step};

/// What becomes of a run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Succeeded,
    PartialSucceeded,
    Failed,
    Stopped,
    /// Its worker was killed: it says `running` for ever.
    Abandoned,
    Paused,
}

/// Who started a run or a step, and how.
pub(crate) struct Origin<'a> {
    pub(crate) app: &'a App,
    pub(crate) run_id: Option<Uuid>,
    pub(crate) run_triggered_from: &'static str,
    pub(crate) node_triggered_from: &'static str,
    pub(crate) role: &'static str,
    pub(crate) user: Uuid,
    /// Written by a Dify that did not have the columns added later.
    pub(crate) is_old: bool,
}

/// One row of workflow_runs to be.
pub(crate) struct Run<'a> {
    pub(crate) origin: &'a Origin<'a>,
    pub(crate) fate: Fate,
    pub(crate) nodes: &'a [Node<'a>],
    pub(crate) started_us: i64,
    pub(crate) ended_us: i64,
}

/// One row of workflow_node_executions to be.
pub(crate) struct Node<'a> {
    pub(crate) step: &'a Step,
    /// The iteration or loop it is in, and in which round.
    pub(crate) inside: Option<(&'a Step, u32)>,
    pub(crate) predecessor: Option<&'a str>,
    pub(crate) id: Uuid,
    /// Rows of one node that was tried again share it.
    pub(crate) execution_id: Uuid,
    pub(crate) index: i32,
    pub(crate) status: &'static str,
    pub(crate) created_us: i64,
    pub(crate) finished_us: Option<i64>,
    pub(crate) tokens: u32,
}
