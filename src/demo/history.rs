//! Decides what happened: which runs there were and when, what became of each and of its nodes.
//!
//! The shares of statuses are rough values of a healthy installation; they are dealt out in turn
//! instead of drawn, so that a thousand runs have every fate.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use anyhow::Context;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use uuid::Uuid;

use crate::demo::app::{App, Step, make_apps};
use crate::demo::copy_rows::CopyRows;
use crate::demo::event::{Fate, Node, Origin, Run};
use crate::demo::node_kind::random_uuid;
use crate::demo::rows::RowWriter;
use crate::demo::settings::{HistorySettings, HistorySummary};
use crate::demo::text::{TextPool, pick};

/// A chunk is closed with the run that fills it.
const CHUNK_BYTES: usize = 4 << 20;
/// The longest run there is.
const RUN_NODES_MAX: usize = 40;

/// Rows that belong together: runs, the pauses of those that wait, and their nodes.
pub(crate) struct Chunk {
    pub(crate) runs: CopyRows,
    pub(crate) pauses: CopyRows,
    pub(crate) nodes: CopyRows,
}

/// Makes chunk after chunk.
pub(crate) struct History {
    settings: HistorySettings,
    now_us: i64,
    apps: Arc<Vec<App>>,
    writer: RowWriter,
    rng: StdRng,
    summary: HistorySummary,
}

impl History {
    pub(crate) fn new(settings: &HistorySettings) -> anyhow::Result<Self> {
        let now_us = settings.now.unix_us().context("`now` is not a time")?;
        let mut rng = StdRng::seed_from_u64(settings.seed);
        let pool = Arc::new(TextPool::new(settings.seed));
        let begins = settings.now.plus_s(-86_400 * i64::from(settings.days));
        let apps = Arc::new(make_apps(begins, &pool, &mut rng));
        let writer = RowWriter::new(settings.profile, pool);
        let summary = HistorySummary::default();
        Ok(Self { settings: settings.clone(), now_us, apps, writer, rng, summary })
    }

    /// The next rows, or `None` when all have been made.
    pub(crate) fn next_chunk(&mut self) -> Option<Chunk> {
        let target = self.settings.node_rows;
        if self.summary.node_executions >= target {
            return None;
        }
        let (runs, pauses, nodes) = (CopyRows::new(), CopyRows::new(), CopyRows::new());
        let mut chunk = Chunk { runs, pauses, nodes };
        while self.summary.node_executions < target
            && chunk.runs.len() + chunk.nodes.len() < CHUNK_BYTES
        {
            self.add_run(&mut chunk);
            self.add_loose_nodes(&mut chunk);
        }
        self.summary.bytes += chunk.runs.text_bytes() + chunk.nodes.text_bytes();
        Some(chunk)
    }

    /// What has been made so far.
    pub(crate) fn summary(&self) -> HistorySummary {
        self.summary
    }

    fn room(&self) -> usize {
        let room = self.settings.node_rows - self.summary.node_executions;
        usize::try_from(room).unwrap_or(usize::MAX)
    }

    fn add_run(&mut self, chunk: &mut Chunk) {
        let apps = Arc::clone(&self.apps);
        // The smaller of two: some apps are used far more than others.
        let app = self.rng.random_range(0..apps.len()).min(self.rng.random_range(0..apps.len()));
        let app = &apps[(app * 7 + 4) % apps.len()];
        let started_us = self.start_us();
        let mut fate = fate_of(self.summary.runs.wrapping_add(self.settings.seed));
        let nodes = self.nodes_of_run(app, fate, started_us);
        if nodes.last().is_some_and(|node| node.status == "running") {
            fate = Fate::Abandoned;
        }
        let run_id = random_uuid(&mut self.rng);
        let origin = self.origin(app, run_id, started_us);
        let ended_us = nodes.iter().filter_map(|node| node.finished_us).max().unwrap_or(started_us);
        let ended_us = (ended_us + self.rng.random_range(900..9_000)).min(self.now_us);

        if fate == Fate::Paused {
            self.writer.write_pause(&mut chunk.pauses, app, run_id, ended_us, &mut self.rng);
        }
        let run = Run { origin: &origin, fate, nodes: &nodes, started_us, ended_us };
        self.writer.write_run(&mut chunk.runs, &run, &mut self.rng);
        self.summary.runs += 1;
        for node in &nodes {
            self.add_node(chunk, &origin, node);
        }
    }

    /// Single steps, one node row in a hundred, and orphans, one in a thousand.
    fn add_loose_nodes(&mut self, chunk: &mut Chunk) {
        let apps = Arc::clone(&self.apps);
        while self.room() > 0 {
            let made = self.summary.node_executions;
            let is_orphan = self.summary.orphans <= made / 1_000;
            if !is_orphan && self.summary.single_steps > made / 100 {
                return;
            }
            let app = &apps[self.rng.random_range(0..apps.len())];
            let started_us = self.start_us();
            let run_id = random_uuid(&mut self.rng);
            let mut origin = self.origin(app, run_id, started_us);
            if is_orphan {
                self.summary.orphans += 1;
            } else {
                self.summary.single_steps += 1;
                (origin.run_id, origin.node_triggered_from) = (None, "single-step");
                (origin.role, origin.user) = ("account", app.account);
            }
            let step = &app.steps[self.rng.random_range(1..app.steps.len())];
            let status = if self.rng.random_ratio(1, 12) { "failed" } else { "succeeded" };
            let node = self.node(step, None, status, started_us);
            self.add_node(chunk, &origin, &node);
        }
    }

    fn add_node(&mut self, chunk: &mut Chunk, origin: &Origin<'_>, node: &Node<'_>) {
        self.writer.write_node(&mut chunk.nodes, origin, node, &mut self.rng);
        self.summary.node_executions += 1;
    }

    /// When the next run starts: the history goes on evenly from day to day, busier by day than by
    /// night, and its last rows are minutes or seconds old.
    fn start_us(&mut self) -> i64 {
        let target = self.settings.node_rows;
        let recent = (target / 10).min(24);
        let made = self.summary.node_executions;
        if target - made <= recent {
            return self.now_us - self.rng.random_range(5_000_000..1_200_000_000);
        }
        let days = f64::from(self.settings.days);
        let at_days = days * made as f64 / (target - recent) as f64;
        let at_us = (busy_hours(at_days) * 86_400e6) as i64 + self.rng.random_range(0..30_000_000);
        let span_us = (days * 86_400e6) as i64;
        self.now_us - span_us + at_us.min(span_us)
    }

    fn origin<'a>(&mut self, app: &'a App, run_id: Uuid, started_us: i64) -> Origin<'a> {
        let rng = &mut self.rng;
        let is_pipeline = app.kind == "rag-pipeline";
        let is_debugging = rng.random_ratio(1, 10);
        let by_machine = rng.random_ratio(1, 12);
        let run_triggered_from = match (is_pipeline, is_debugging) {
            (true, true) => "rag-pipeline-debugging",
            (true, false) => "rag-pipeline-run",
            (false, true) => "debugging",
            (false, false) if by_machine => pick(&["webhook", "schedule", "plugin"], rng),
            (false, false) => "app-run",
        };
        let (role, user) = if is_debugging || is_pipeline {
            ("account", app.account)
        } else {
            // Dify 1.13.1 alone wrote `end-user`.
            let role = if rng.random_ratio(1, 40) { "end-user" } else { "end_user" };
            (role, app.end_users[rng.random_range(0..app.end_users.len())])
        };
        let age_us = self.now_us - started_us;
        let span_us = i64::from(self.settings.days) * 86_400_000_000;
        Origin {
            app,
            run_id: Some(run_id),
            run_triggered_from,
            node_triggered_from: if is_pipeline { "rag-pipeline-run" } else { "workflow-run" },
            role,
            user,
            is_old: age_us > span_us - span_us / 50,
        }
    }

    fn nodes_of_run<'a>(&mut self, app: &'a App, fate: Fate, started_us: i64) -> Vec<Node<'a>> {
        let mut visits = self.visits(app);
        if !matches!(fate, Fate::Succeeded | Fate::PartialSucceeded) {
            visits.truncate(self.rng.random_range(1..=visits.len()));
        }
        if fate == Fate::Paused {
            visits.push((&app.pause, None));
        }
        let mut nodes: Vec<Node<'a>> = Vec::with_capacity(visits.len() + 2);
        let mut at_us = started_us + self.rng.random_range(2_000..20_000);
        let nodes_max = self.room().min(RUN_NODES_MAX);
        for (number, (step, inside)) in visits.iter().enumerate() {
            let is_last = number + 1 == visits.len();
            let status = match fate {
                Fate::Failed if is_last => "failed",
                Fate::Stopped if is_last => "stopped",
                Fate::Abandoned if is_last => "running",
                Fate::Paused if is_last => "paused",
                Fate::PartialSucceeded if number == visits.len() / 2 => "exception",
                _ => "succeeded",
            };
            let mut node = self.node(step, *inside, status, at_us);
            node.index = i32::try_from(number + 1).expect("a run has few nodes");
            node.predecessor =
                number.checked_sub(1).map(|before| visits[before].0.node_id.as_str());
            if step.kind.can_retry && node.finished_us.is_some() && self.rng.random_ratio(1, 60) {
                let mut retry = self.node(step, *inside, "retry", at_us);
                (retry.index, retry.predecessor) = (node.index, node.predecessor);
                retry.execution_id = node.execution_id;
                nodes.push(retry);
            }
            nodes.push(node);
            nodes.truncate(nodes_max);
            let last = nodes.last().expect("one was pushed, and there is room for one");
            match last.finished_us {
                Some(finished_us) => at_us = finished_us + self.rng.random_range(300..5_000),
                None => break,
            }
        }
        nodes
    }

    /// The steps that a run goes through: branches leave some out, rounds repeat others.
    fn visits<'a>(&mut self, app: &'a App) -> Vec<(&'a Step, Option<(&'a Step, u32)>)> {
        let mut visits = Vec::new();
        for (position, step) in app.steps.iter().enumerate() {
            let is_end = position == 0 || position + 1 == app.steps.len();
            if !is_end && self.rng.random_ratio(1, 8) {
                continue;
            }
            visits.push((step, None));
            for round in 0..self.rng.random_range(1..4) {
                visits.extend(step.inner.iter().map(|inner| (inner, Some((step, round)))));
            }
        }
        visits.truncate(RUN_NODES_MAX - 2);
        visits
    }

    /// A node that starts then. It still runs if it would end after `now`.
    fn node<'a>(
        &mut self,
        step: &'a Step,
        inside: Option<(&'a Step, u32)>,
        status: &'static str,
        created_us: i64,
    ) -> Node<'a> {
        let (shortest, longest) = step.kind.takes_ms;
        let (shortest, longest) = (i64::from(shortest) * 1_000, i64::from(longest) * 1_000);
        // Squared: most calls are much faster than the slowest.
        let slowness = self.rng.random_range(0.0..1.0_f64).powi(2);
        let takes_us = shortest + ((longest - shortest) as f64 * slowness) as i64;
        let ends_us = created_us + takes_us + self.rng.random_range(0..1_000);
        let status = if ends_us > self.now_us { "running" } else { status };
        let id = random_uuid(&mut self.rng);
        // One in two thousand ended without leaving a time.
        let has_end = !matches!(status, "running" | "paused") && !self.rng.random_ratio(1, 2_000);
        Node {
            step,
            inside,
            predecessor: None,
            id,
            execution_id: id,
            index: 1,
            status,
            created_us,
            finished_us: has_end.then_some(ends_us),
            tokens: if step.kind.has_tokens() { self.rng.random_range(40..6_000) } else { 0 },
        }
    }
}

/// What becomes of the run with this number. 619 has no factor in common with 1000: in a thousand
/// runs every thousandth comes up once, and neighbours differ.
fn fate_of(run: u64) -> Fate {
    match run % 1_000 * 619 % 1_000 {
        0..3 => Fate::Abandoned,
        3..5 => Fate::Paused,
        5..15 => Fate::Stopped,
        15..50 => Fate::Failed,
        50..65 => Fate::PartialSucceeded,
        _ => Fate::Succeeded,
    }
}

/// Shifts a time in days so that of every day's runs as many fall into each hour as the weights
/// say: many at ten and at three, few at night (UTC+8).
fn busy_hours(at_days: f64) -> f64 {
    const WEIGHTS: [u32; 24] =
        [5, 8, 10, 9, 6, 5, 7, 9, 9, 7, 5, 3, 3, 3, 2, 2, 1, 1, 1, 1, 1, 1, 2, 3];
    let total: u32 = WEIGHTS.iter().sum();
    let mut rest = at_days.fract() * f64::from(total);
    for (hour, weight) in WEIGHTS.into_iter().map(f64::from).enumerate() {
        if rest < weight {
            return at_days.floor() + (hour as f64 + rest / weight) / 24.0;
        }
        rest -= weight;
    }
    at_days
}
