//! Writes what happened as rows of Dify's tables.

use std::sync::Arc;

use rand::RngExt;
use rand::rngs::StdRng;
use uuid::Uuid;

use crate::demo::app::App;
use crate::demo::copy_rows::CopyRows;
use crate::demo::event::{Fate, Node, Origin, Run};
use crate::demo::node_kind::{Gaps, random_uuid};
use crate::demo::settings::Profile;
use crate::demo::text::{TextPool, pick};
use crate::record::timestamp::Timestamp;

pub(crate) const RUN_COLUMNS: &str = "id, tenant_id, app_id, workflow_id, type, triggered_from, \
    version, graph, inputs, status, outputs, error, elapsed_time, total_tokens, total_steps, \
    created_by_role, created_by, created_at, finished_at, exceptions_count";
pub(crate) const PAUSE_COLUMNS: &str =
    "id, workflow_id, workflow_run_id, state_object_key, created_at, updated_at";
pub(crate) const NODE_COLUMNS: &str = "id, tenant_id, app_id, workflow_id, triggered_from, \
    workflow_run_id, \"index\", predecessor_node_id, node_id, node_type, title, inputs, \
    process_data, outputs, status, error, elapsed_time, execution_metadata, created_at, \
    created_by_role, created_by, finished_at, node_execution_id";

/// Writes rows; how they look is drawn from the generator that is handed in.
pub(crate) struct RowWriter {
    profile: Profile,
    pool: Arc<TextPool>,
    /// Reused for every text column.
    text: String,
}

impl RowWriter {
    pub(crate) fn new(profile: Profile, pool: Arc<TextPool>) -> Self {
        Self { profile, pool, text: String::new() }
    }

    pub(crate) fn write_run(&mut self, rows: &mut CopyRows, run: &Run<'_>, rng: &mut StdRng) {
        let Run { origin, fate, nodes, started_us, ended_us } = *run;
        let app = origin.app;
        let is_small = self.profile == Profile::Bench;
        let (status, error) = match fate {
            Fate::Succeeded => ("succeeded", ""),
            Fate::PartialSucceeded => ("partial-succeeded", ""),
            Fate::Failed => ("failed", pick(ERRORS, rng)),
            Fate::Stopped => ("stopped", "Workflow execution aborted by user"),
            Fate::Abandoned => ("running", ""),
            Fate::Paused => ("paused", ""),
        };
        let is_over = !matches!(fate, Fate::Abandoned | Fate::Paused);
        let has_end = is_over && !rng.random_ratio(1, 2_000);
        let tokens: i64 = nodes.iter().map(|node| i64::from(node.tokens)).sum();
        let bytes = if is_small { 100 } else { rng.random_range(200..3_000) };

        rows.begin_row(20);
        rows.uuid(origin.run_id.expect("a run has an id"));
        rows.uuid(app.tenant_id);
        rows.uuid(app.app_id);
        rows.uuid(app.workflow_id);
        rows.text(app.kind);
        rows.text(origin.run_triggered_from);
        let is_draft = origin.run_triggered_from.ends_with("debugging");
        rows.text(if is_draft { "draft" } else { &app.version });
        rows.text_or_null(if is_small { "" } else { &app.graph });
        self.json(rows, r#"{"query": "%p", "sys.files": [], "sys.user_id": "%u"}"#, bytes, rng);
        rows.text(status);
        match fate {
            Fate::Succeeded | Fate::PartialSucceeded if app.kind == "chat" => {
                self.json(rows, r#"{"answer": "%m", "files": []}"#, bytes, rng);
            }
            Fate::Succeeded => self.json(rows, r#"{"result": "%m", "score": %d}"#, bytes, rng),
            Fate::PartialSucceeded => rows.text("{}"),
            _ => rows.null(),
        }
        rows.text_or_null(error);
        let elapsed_us = if has_end { ended_us - started_us } else { 0 };
        rows.double(elapsed_us as f64 / 1e6);
        rows.bigint(tokens);
        match origin.is_old {
            true => rows.null(),
            false => rows.integer(nodes.last().map_or(0, |node| node.index)),
        }
        rows.text(origin.role);
        rows.uuid(origin.user);
        rows.timestamp(Some(Timestamp::from_unix_us(started_us)));
        rows.timestamp(has_end.then_some(Timestamp::from_unix_us(ended_us)));
        match origin.is_old {
            true => rows.null(),
            false => rows.integer(i32::from(fate == Fate::PartialSucceeded)),
        }
    }

    pub(crate) fn write_node(
        &mut self,
        rows: &mut CopyRows,
        origin: &Origin<'_>,
        node: &Node<'_>,
        rng: &mut StdRng,
    ) {
        let app = origin.app;
        let kind = node.step.kind;
        let has_failed = matches!(node.status, "failed" | "exception" | "retry");
        rows.begin_row(23);
        rows.uuid(node.id);
        rows.uuid(app.tenant_id);
        rows.uuid(app.app_id);
        rows.uuid(app.workflow_id);
        rows.text(origin.node_triggered_from);
        match origin.run_id {
            Some(run_id) => rows.uuid(run_id),
            None => rows.null(),
        }
        rows.integer(node.index);
        rows.text_or_null(node.predecessor.unwrap_or_default());
        rows.text(&node.step.node_id);
        rows.text(kind.name);
        rows.text(kind.title);
        self.write_payload(rows, node, rng);
        rows.text(node.status);
        rows.text_or_null(if has_failed { pick(ERRORS, rng) } else { "" });
        let elapsed_us = node.finished_us.map_or(0, |finished_us| finished_us - node.created_us);
        rows.double(elapsed_us as f64 / 1e6);
        self.write_metadata(rows, node, rng);
        rows.timestamp(Some(Timestamp::from_unix_us(node.created_us)));
        rows.text(origin.role);
        rows.uuid(origin.user);
        rows.timestamp(node.finished_us.map(Timestamp::from_unix_us));
        match origin.is_old {
            true => rows.null(),
            false => rows.text(&node.execution_id.to_string()),
        }
    }

    /// Inputs, process data and outputs. What did not end well has no outputs.
    fn write_payload(&mut self, rows: &mut CopyRows, node: &Node<'_>, rng: &mut StdRng) {
        let row_bytes = row_bytes(self.profile, rng);
        let has_outputs = matches!(node.status, "succeeded" | "exception");
        for (position, column) in node.step.kind.columns.iter().enumerate() {
            self.text.clear();
            if position < 2 || has_outputs {
                let mut gaps = Gaps { pool: &self.pool, rng, tokens: node.tokens };
                column.write(&mut self.text, row_bytes, &mut gaps);
            }
            // Before 1.9 Dify wrote NULL for nothing, since then `{}` as well.
            match self.text.is_empty() && rng.random_ratio(1, 2) {
                true => rows.text("{}"),
                false => rows.text_or_null(&self.text),
            }
        }
    }

    fn write_metadata(&mut self, rows: &mut CopyRows, node: &Node<'_>, rng: &mut StdRng) {
        self.text.clear();
        self.text.push('{');
        if let Some((container, round)) = node.inside {
            let (word, id) = (container.kind.name, &container.node_id);
            self.text.push_str(&format!(r#""{word}_id": "{id}", "{word}_index": {round}"#));
        }
        if node.status == "exception" {
            let separator = if self.text.len() > 1 { ", " } else { "" };
            self.text.push_str(&format!(r#"{separator}"error_strategy": "fail-branch""#));
        }
        if node.status == "succeeded" && !node.step.kind.metadata.is_empty() {
            let separator = if self.text.len() > 1 { ", " } else { "" };
            self.text.push_str(separator);
            let mut gaps = Gaps { pool: &self.pool, rng, tokens: node.tokens };
            gaps.write(node.step.kind.metadata, &mut self.text, 0);
        }
        self.text.push('}');
        match self.text.len() == 2 && rng.random_ratio(1, 2) {
            true => rows.null(),
            false => rows.text(&self.text),
        }
    }

    fn json(&mut self, rows: &mut CopyRows, template: &str, text_bytes: usize, rng: &mut StdRng) {
        self.text.clear();
        let mut gaps = Gaps { pool: &self.pool, rng, tokens: 0 };
        gaps.write(template, &mut self.text, text_bytes);
        rows.text(&self.text);
    }

    /// A paused run has a row in workflow_pauses, which names the object that keeps its state.
    pub(crate) fn write_pause(
        &mut self,
        rows: &mut CopyRows,
        app: &App,
        run_id: Uuid,
        paused_us: i64,
        rng: &mut StdRng,
    ) {
        rows.begin_row(6);
        rows.uuid(random_uuid(rng));
        rows.uuid(app.workflow_id);
        rows.uuid(run_id);
        rows.text(&format!("workflow-state-{run_id}.json"));
        rows.timestamp(Some(Timestamp::from_unix_us(paused_us)));
        rows.timestamp(Some(Timestamp::from_unix_us(paused_us)));
    }
}

/// Draws how many bytes of text a node row has, between the quantiles of the profile.
fn row_bytes(profile: Profile, rng: &mut StdRng) -> usize {
    let quantiles: &[(u32, usize)] = match profile {
        Profile::Mixed => &[
            (0, 100),
            (250_000, 600),
            (500_000, 1_400),
            (750_000, 2_800),
            (900_000, 5_000),
            (970_000, 9_000),
            (990_000, 16_000),
            (997_000, 40_000),
            (998_000, 100_000),
            (999_000, 1_000_000),
            (1_000_000, 1_400_000),
        ],
        Profile::Bench => &[
            (0, 300),
            (250_000, 1_100),
            (500_000, 2_100),
            (750_000, 4_000),
            (900_000, 7_500),
            (970_000, 15_000),
            (990_000, 28_000),
            (999_000, 100_000),
            (1_000_000, 190_000),
        ],
    };
    let at = rng.random_range(0..1_000_000);
    let above = quantiles.partition_point(|(quantile, _)| *quantile <= at);
    let ((from, low), (to, high)) = (quantiles[above - 1], quantiles[above]);
    low + (high - low) * (at - from) as usize / (to - from) as usize
}

const ERRORS: &[&str] = &[
    "[tongyi] Rate Limit Error, {\"status_code\": 429, \"message\": \"Requests rate limit exceeded\"}",
    "Run failed: Reached maximum retries (0) for URL https://api.example.com/v1/orders",
    "代码执行超时：沙箱在 15 秒内没有返回结果 ⏱",
    "Traceback (most recent call last):\n  File \"<string>\", line 12, in main\nKeyError: '价格'",
    "Failed to parse JSON: Expecting ',' delimiter: line 1 column 2049 (char 2048)",
    "[openai] Server Unavailable Error, \"upstream connect error\\r\\n\"",
];
