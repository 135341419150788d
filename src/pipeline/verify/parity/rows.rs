//! What Dify shows of single rows: its lists of runs, a run by id, the trace of a run's nodes, and
//! the last execution of a node.

use std::collections::BTreeSet;

use uuid::Uuid;

use crate::dify::readers::{self, Node, Owner, TRACE_ORDER, newest};
use crate::pipeline::verify::parity::asking::{Asking, Side};
use crate::pipeline::verify::parity::finding::{Asked, Findings, Question, Quirk, Readers};
use crate::pipeline::verify::parity::judge::{self, Fields, Row, ids, newest_of_each};
use crate::source::twins::TwinOwner;

/// A page of Dify's list, and one more, by which it knows that there are more.
const PAGE_ROWS: u32 = 21;

/// Dify's readers take at most so many nodes of a run.
const NODES_MAX: u32 = 1000;

/// Without LIMIT SLS gives so many rows.
const ROWS_DEFAULT: usize = 100;

/// So many nodes of an owner are asked for their last execution.
const LAST_NODES_MAX: usize = 3;

/// Whose rows are looked at, and how.
pub struct Rows<'a> {
    pub asking: &'a Asking<'a>,
    pub owner: &'a Owner,
    pub twin: &'a TwinOwner,
    /// Whether graphs were written.
    pub has_graph: bool,
}

impl Rows<'_> {
    fn fields(&self, text_bytes_max: Option<usize>) -> Fields {
        Fields { has_graph: self.has_graph, text_bytes_max }
    }

    /// Both lists of runs.
    pub async fn lists(&self, side: &Side, findings: &mut Findings) -> anyhow::Result<()> {
        let newest_ids = self.asking.source.twin_list(&side.shown, self.twin, PAGE_ROWS).await?;
        for (readers, sql) in [
            (Readers::Shipped, readers::list(self.owner, None, PAGE_ROWS)),
            (Readers::Newest, newest::list(self.owner, PAGE_ROWS)),
        ] {
            let Some(page) = self.asking.sql(findings, side, &sql).await? else { continue };
            let asked = Asked { owner: self.owner, readers, question: Question::RunList };
            let is_full = page.len() == PAGE_ROWS as usize;
            let extra = self.compare(&asked, side, &page, findings).await?;
            let shown: Vec<&str> = page
                .iter()
                .filter_map(|row| row.get("id"))
                .map(String::as_str)
                .filter(|id| !extra.contains(*id))
                .collect();
            if readers == Readers::Shipped && is_full {
                // Which rows are on the page is nobody's promise.
                findings.quirk(Quirk::UnorderedList, 1);
                continue;
            }
            let wanted: Vec<&str> = newest_ids.iter().map(String::as_str).collect();
            let (mut shown, mut wanted) = (shown, wanted);
            // What was purged takes places on a page.
            wanted.truncate(if is_full { shown.len() } else { PAGE_ROWS as usize });
            if readers == Readers::Shipped {
                shown.sort_unstable();
                wanted.sort_unstable();
            }
            self.same_order(&asked, &wanted, &shown, findings);
        }
        Ok(())
    }

    /// The first place where two lists of ids differ.
    fn same_order(
        &self,
        asked: &Asked<'_>,
        wanted: &[&str],
        shown: &[&str],
        findings: &mut Findings,
    ) {
        findings.answers += 1;
        for nth in 0..wanted.len().max(shown.len()) {
            let (wanted, shown) = (wanted.get(nth), shown.get(nth));
            if wanted != shown {
                let text = |id: Option<&&str>| id.map(|id| (*id).to_owned());
                let place = format!("row {}", nth + 1);
                findings.push(asked.finding(&place, "id", text(wanted), text(shown)));
                return;
            }
        }
    }

    /// Compares rows of SLS with those of Postgres; gives the ids of those that Postgres lacks.
    async fn compare(
        &self,
        asked: &Asked<'_>,
        side: &Side,
        rows: &[Row],
        findings: &mut Findings,
    ) -> anyhow::Result<BTreeSet<String>> {
        let wanted: Vec<Uuid> = ids(rows).iter().filter_map(|id| id.parse().ok()).collect();
        let twins = self.asking.source.twin_rows(&side.shown, &side.shape, &wanted).await?;
        let (mut extra, mut extra_ids) = (Vec::new(), BTreeSet::new());
        for row in rows {
            let id = row.get("id").cloned().unwrap_or_default();
            match twins.get(&id) {
                Some(twin) => {
                    let fields = self.fields(Some(side.text_bytes_max));
                    judge::row(findings, asked, fields, twin, row);
                }
                None => {
                    extra.push(row.clone());
                    extra_ids.insert(id);
                }
            }
        }
        self.asking.explain(findings, asked, side, &extra).await?;
        Ok(extra_ids)
    }

    /// Runs by id, in all three ways.
    pub async fn runs(
        &self,
        side: &Side,
        run_ids: &[String],
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        let wanted: Vec<Uuid> = run_ids.iter().filter_map(|id| id.parse().ok()).collect();
        let twins = self.asking.source.twin_rows(&side.shown, &side.shape, &wanted).await?;
        for (id, twin) in &twins {
            let sql_fields = self.fields(Some(side.text_bytes_max));
            for (readers, query, fields) in [
                (Readers::Shipped, readers::run_search(self.owner, id), self.fields(None)),
                (Readers::Shipped, format!("* | {}", readers::run_by_id(id)), sql_fields),
                (Readers::Newest, format!("* | {}", newest::run(self.owner, id)), sql_fields),
            ] {
                let window = (side.from, side.to);
                let rows = self.asking.ask(findings, side, window, &query).await?;
                let Some(rows) = rows else { continue };
                let asked = Asked { owner: self.owner, readers, question: Question::RunById };
                // The shipped reader takes the newest version of what a search finds.
                let newest = rows.iter().max_by_key(|row| {
                    row.get("log_version").and_then(|version| version.parse::<i128>().ok())
                });
                match newest {
                    Some(row) => judge::row(findings, &asked, fields, twin, row),
                    None => {
                        let there = Some("there".to_owned());
                        findings.push(asked.finding(id, "row", there, None));
                    }
                }
            }
        }
        Ok(())
    }

    /// The traces of runs, in all three ways, and the last executions of some of their nodes.
    pub async fn traces(
        &self,
        side: &Side,
        run_ids: &[String],
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        let mut nodes: Vec<Node> = Vec::new();
        for run in run_ids {
            let Ok(id) = run.parse::<Uuid>() else { continue };
            let source = self.asking.source;
            let mut twins =
                source.twin_trace(&side.shown, &side.shape, self.twin, id, NODES_MAX).await?;
            // The order of the newest pages.
            twins.sort_by_cached_key(|row| {
                let get = |name: &str| row.get(name).cloned().unwrap_or_default();
                (get("created_at"), get("index").parse::<i64>().unwrap_or(0), get("id"))
            });
            self.trace(side, run, &twins, findings).await?;
            for row in &twins {
                let node = row.get("workflow_id").zip(row.get("node_id"));
                let Some((workflow, node)) = node else { continue };
                let node = Node { workflow: workflow.clone(), node: node.clone() };
                if nodes.len() < LAST_NODES_MAX && !nodes.contains(&node) {
                    nodes.push(node);
                }
            }
        }
        for node in &nodes {
            self.last_of_node(side, node, findings).await?;
        }
        Ok(())
    }

    async fn trace(
        &self,
        side: &Side,
        run: &str,
        twins: &[Row],
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        let (tenant, app) = (&self.owner.tenant, &self.owner.app);
        let newest_of = newest_of_each(twins);
        let shared = twins.len().saturating_sub(newest_of.len());
        findings.quirk(Quirk::RetryCollapse, shared as u64);
        for (readers, sql, is_collapsed) in [
            (Readers::Shipped, readers::nodes_of_run(tenant, app, run), false),
            (Readers::Shipped, readers::trace_of_run(tenant, app, run, TRACE_ORDER), true),
            (Readers::Newest, newest::nodes_of_run(tenant, app, run, 0, NODES_MAX as usize), false),
        ] {
            let Some(rows) = self.asking.sql(findings, side, &sql).await? else { continue };
            let asked = Asked { owner: self.owner, readers, question: Question::NodeTrace };
            let extra = self.compare(&asked, side, &rows, findings).await?;
            let shown: Vec<&str> = rows
                .iter()
                .filter_map(|row| row.get("id"))
                .map(String::as_str)
                .filter(|id| !extra.contains(*id))
                .collect();
            if is_collapsed {
                let is_cut = rows.len() == ROWS_DEFAULT && newest_of.len() > ROWS_DEFAULT;
                findings.quirk(Quirk::HundredRows, u64::from(is_cut));
                for (execution, best) in newest_of.iter().filter(|_| !is_cut) {
                    findings.answers += 1;
                    let id = |row: &&Row| row.get("id").cloned().unwrap_or_default();
                    if !best.iter().any(|row| shown.contains(&id(row).as_str())) {
                        let wanted = best.first().map(id);
                        findings.push(asked.finding(run, execution, wanted, None));
                    }
                }
            } else if readers == Readers::Newest {
                let wanted: Vec<&str> =
                    twins.iter().filter_map(|row| row.get("id")).map(String::as_str).collect();
                self.same_order(&asked, &wanted, &shown, findings);
            } else {
                for id in ids(twins).iter().filter(|id| !shown.contains(*id)) {
                    let there = Some((*id).to_owned());
                    findings.push(asked.finding(run, "node", there, None));
                }
            }
        }
        Ok(())
    }

    async fn last_of_node(
        &self,
        side: &Side,
        node: &Node,
        findings: &mut Findings,
    ) -> anyhow::Result<()> {
        let Ok(workflow) = node.workflow.parse::<Uuid>() else { return Ok(()) };
        let source = self.asking.source;
        let begun = source.twin_last_of_node(&side.shown, self.twin, workflow, &node.node).await?;
        for (readers, sql) in [
            (Readers::Shipped, readers::last_of_node(self.owner, node)),
            (Readers::Newest, newest::last_of_node(self.owner, node)),
        ] {
            let Some(rows) = self.asking.sql(findings, side, &sql).await? else { continue };
            let asked = Asked { owner: self.owner, readers, question: Question::LastOfNode };
            let extra = self.compare(&asked, side, &rows, findings).await?;
            // One that was purged is the last, too.
            if !extra.is_empty() {
                continue;
            }
            // Of several that began at the same time any may be shown.
            let shown = rows.first().and_then(|row| row.get("created_at"));
            if shown != begun.as_ref() {
                let finding =
                    asked.finding(&node.node, "created_at", begun.clone(), shown.cloned());
                findings.push(finding);
            }
        }
        Ok(())
    }
}
