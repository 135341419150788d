//! `verify --level parity`: asks what Dify's readers ask, and prints what Dify would show
//! differently.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::commands::exit::{Ended, Exit};
use crate::commands::output::{self, Format, count};
use crate::commands::page;
use crate::commands::verify::{ParityWish, SCHEMA_VERSION, Verify, number, stopped};
use crate::pipeline::retry::with_retries;
use crate::pipeline::send::age::kept_since;
use crate::pipeline::verify::counts::source_days::purged_days;
use crate::pipeline::verify::parity::asking::Side;
use crate::pipeline::verify::parity::charts::Context;
use crate::pipeline::verify::parity::finding::{Finding, Findings, Quirk};
use crate::pipeline::verify::parity::{self, ParityParts, ParityReport};
use crate::record::day::{DAY_S, Day};
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;
use crate::source::catalog::Shape;
use crate::source::twins::Shown;

/// More held rows are not named to Postgres one by one.
const HELD_MAX: u32 = 200_000;

/// So many differences are printed for a person.
const PRINTED_MAX: usize = 50;

/// Bytes of a text that SQL shows unless the index says otherwise.
const TEXT_BYTES_MAX: usize = 2048;

impl Verify<'_> {
    /// Compares what Dify shows of these tables.
    pub(in crate::commands::verify) async fn parity(
        &self,
        wish: &ParityWish,
        shapes: &[Shape],
    ) -> Result<Exit, Ended> {
        let (mut runs, mut nodes, mut is_ingest) = (None, None, false);
        for shape in shapes {
            let times = self.ledger.log_times(shape.table).await?;
            is_ingest |= times.ingest.is_some();
            let Some(side) = self.side(shape, times.ingest.is_some()).await? else {
                tracing::warn!(
                    "{}: no pass from the beginning is done yet, so nobody knows what SLS should \
                     show; nothing was compared\nhint: finish `dify-sls-backfill run` without \
                     a filter first",
                    shape.table
                );
                return Ok(Exit::Unfinished);
            };
            match shape.table {
                Table::Runs => runs = Some(side),
                Table::NodeExecutions => nodes = Some(side),
            }
        }
        let purged = match &runs {
            Some(side) => self.purged(side).await?,
            None => BTreeMap::new(),
        };
        let parts = ParityParts {
            source: self.source.clone(),
            ledger: self.ledger.clone(),
            client: self.client.clone(),
            runs,
            nodes,
            apps: wish.apps.clone(),
            owners_max: wish.apps_max as usize,
            runs_per_app: wish.runs_per_app,
            has_graph: wish.has_graph,
            context: Context { purged, is_ingest },
            tell_every: self.settings.progress_every,
        };
        let report = parity::compare(&parts, &self.shutdown).await?;
        let Some(report) = report else { return Ok(stopped(&self.settings.level)) };
        match self.settings.format {
            Format::Json => output::line(&as_json(&report, &parts).to_string()),
            Format::Text => text(&report, &parts).iter().for_each(|line| output::line(line)),
        }
        let page = self.settings.page.as_ref();
        page::write(page, "Verification: what Dify shows", || as_json(&report, &parts))?;
        Ok(conclude(&report))
    }

    /// What is asked about of one table; `None`: no finished pass covers it from the beginning.
    async fn side(&self, shape: &Shape, is_ingest: bool) -> anyhow::Result<Option<Side>> {
        let table = shape.table;
        let Some(covered) = self.ledger.covered_until(table).await? else { return Ok(None) };
        let now = Timestamp::from_unix_s(self.client.now());
        let held = self.ledger.held_ids(table, HELD_MAX + 1).await?;
        anyhow::ensure!(
            held.len() <= HELD_MAX as usize,
            "more than {HELD_MAX} rows of {table} are held, too many to be left out one by one\n\
             nothing was compared\nhint: `dify-sls-backfill status` shows their reasons; \
             `verify --level counts` compares them as numbers"
        );
        // The first whole day that is kept.
        let ttl_days = self.ttl_days(table).await?;
        let kept = ttl_days.and_then(|days| kept_since(days, now)).and_then(Day::of);
        let kept = kept.map(Day::next);
        let scope = &self.settings.scope;
        let from = kept.into_iter().chain(scope.since.and_then(Day::of)).max();
        let until = scope.until.and_then(Day::of).map(Day::unix_s);
        let covered_s = covered.unix_s().context("the covered window has an end")?;
        let before = until.map_or(covered_s, |until| until.min(covered_s));
        let from_s = from.map(Day::unix_s);
        let shown = Shown {
            from: from_s.map_or(Timestamp::NEG_INFINITY, Timestamp::from_unix_s),
            before: Timestamp::from_unix_s(before),
            held,
        };
        // Logs that bear the time of sending may be of any day.
        let (from, to) = match is_ingest {
            true => (0, self.client.now() + DAY_S),
            false => (from_s.unwrap_or(0).max(0), before),
        };
        Ok(Some(Side {
            text_bytes_max: self.text_bytes_max(table).await?,
            shape: shape.clone(),
            shown,
            from,
            to,
        }))
    }

    /// How many bytes of a text SQL shows, as the logstore's index says.
    async fn text_bytes_max(&self, table: Table) -> anyhow::Result<usize> {
        let index = with_retries(|| self.client.index(table.logstore())).await;
        let index = index.with_context(|| format!("look up the index of {}", table.logstore()))?;
        let bytes = index.and_then(|index| index["max_text_len"].as_u64()).filter(|max| *max > 0);
        Ok(bytes.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(TEXT_BYTES_MAX))
    }

    async fn purged(&self, side: &Side) -> anyhow::Result<BTreeMap<Day, u64>> {
        let mut days = purged_days(&self.source, &self.ledger, side.table()).await?;
        let is_asked = |day: &Day| day.unix_s() >= side.from && day.unix_s() < side.to;
        days.retain(|day, rows| *rows > 0 && is_asked(day));
        Ok(days)
    }
}

fn verdict(findings: &Findings) -> &'static str {
    match (findings.count, findings.not_known.is_empty()) {
        (1.., _) => "differs",
        (0, false) => "not_known",
        (0, true) => "equal",
    }
}

fn window(parts: &ParityParts) -> Vec<(Table, Timestamp, Timestamp)> {
    let sides = parts.runs.iter().chain(&parts.nodes);
    sides.map(|side| (side.table(), side.shown.from, side.shown.before)).collect()
}

fn text(report: &ParityReport, parts: &ParityParts) -> Vec<String> {
    let findings = &report.findings;
    let mut lines = vec![format!(
        "{} apps, {} answers compared, {} differ",
        count(report.owners),
        count(findings.answers),
        count(findings.count)
    )];
    for (table, from, before) in window(parts) {
        let from = match from {
            Timestamp::NEG_INFINITY => "the beginning".to_owned(),
            from => from.to_string(),
        };
        lines.push(format!("  {table}: finished from {from}"));
        lines.push(format!("    to {before}"));
    }
    let mut of: Option<(&str, &str)> = None;
    for finding in findings.list.iter().take(PRINTED_MAX) {
        let owner = (finding.app.as_str(), finding.trigger.as_str());
        if of != Some(owner) {
            of = Some(owner);
            lines.push(fit(&format!("app {} {}", finding.app, finding.trigger), 80));
            lines.push(row("  question", "where", "Postgres", "SLS"));
        }
        lines.extend(finding_rows(finding));
    }
    let more = findings.count.saturating_sub(PRINTED_MAX as u64);
    if more > 0 {
        lines.push(format!("… and {} more: --output json lists them", count(more)));
    }
    if findings.purged_rows + findings.bounded > 0 {
        lines.push(format!(
            "purged: {} rows of answers are in SLS alone, as the ledger says;",
            count(findings.purged_rows)
        ));
        lines.push(format!(
            "  {} numbers have purged rows in them and were compared as bounds",
            count(findings.bounded)
        ));
    }
    if report.owners_left_out > 0 {
        lines.push(format!("{} apps were left out: --apps-max", count(report.owners_left_out)));
    }
    if parts.context.is_ingest {
        lines
            .push("the shipped charts were left out: logs have the time of sending, so".to_owned());
        lines.push("  Dify shows them on the day of the migration".to_owned());
    }
    for (quirk, times) in &findings.quirks {
        lines.extend(wrapped(&format!("not ours, {} times: {}", count(*times), quirk.what())));
    }
    lines
}

/// A difference in one line, and in a second one what does not fit into the first.
fn finding_rows(finding: &Finding) -> Vec<String> {
    let side = |text: &Option<String>| text.clone().unwrap_or_else(|| "–".to_owned());
    let (postgres, sls) = (side(&finding.postgres), side(&finding.sls));
    let question = format!("  {}", finding.question.words());
    if postgres.chars().count() <= 11 && sls.chars().count() <= 11 {
        let mut lines = vec![row(&question, &finding.place, &postgres, &sls)];
        if !["runs", "count", "row", "logs"].contains(&finding.what.as_str()) {
            lines.push(fit(&format!("    {}", finding.what), 80));
        }
        return lines;
    }
    vec![
        row(&question, &finding.place, "", ""),
        fit(&format!("    {}, Postgres: {postgres}", finding.what), 80),
        fit(&format!("    {}, SLS:      {sls}", finding.what), 80),
    ]
}

/// 80 columns at most.
fn row(question: &str, place: &str, postgres: &str, sls: &str) -> String {
    let (question, place) = (fit(question, 19), fit(place, 36));
    format!("{question:<19} {place:<36} {postgres:>11} {sls:>11}").trim_end().to_owned()
}

fn fit(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width - 1).chain(['…']).collect()
}

/// Lines of at most 80 columns.
fn wrapped(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= 80 => {
                *line = format!("{line} {word}");
            }
            Some(_) => lines.push(format!("  {word}")),
            None => lines.push(word.to_owned()),
        }
    }
    lines
}

fn as_json(report: &ParityReport, parts: &ParityParts) -> Value {
    let findings = &report.findings;
    let windows: serde_json::Map<_, _> = window(parts)
        .into_iter()
        .map(|(table, from, before)| {
            let from = (from != Timestamp::NEG_INFINITY).then(|| from.to_string());
            (table.name().to_owned(), json!({"from": from, "before": before.to_string()}))
        })
        .collect();
    let quirk = |(quirk, times): (&Quirk, &u64)| json!({"quirk": quirk, "times": number(*times), "what": quirk.what()});
    let not_known = |(why, times): (&String, &u64)| json!({"why": why, "times": number(*times)});
    json!({
        "schema_version": SCHEMA_VERSION,
        "level": "parity",
        "verdict": verdict(findings),
        "windows": windows,
        "apps": number(report.owners),
        "apps_left_out": number(report.owners_left_out),
        "answers": number(findings.answers),
        "differences": findings.list,
        "differences_left_out": number(findings.count - findings.list.len() as u64),
        "quirks": findings.quirks.iter().map(quirk).collect::<Vec<_>>(),
        "not_known": findings.not_known.iter().map(not_known).collect::<Vec<_>>(),
        "purged_rows": number(findings.purged_rows),
        "compared_as_bounds": number(findings.bounded),
        "shipped_charts_left_out": parts.context.is_ingest,
    })
}

fn conclude(report: &ParityReport) -> Exit {
    let findings = &report.findings;
    for (why, times) in &findings.not_known {
        tracing::warn!("{} answers are not known: {why}", count(*times));
    }
    match verdict(findings) {
        "differs" => {
            tracing::error!(
                "Dify would show {} answers from SLS differently than from Postgres; nothing was \
                 changed\nhint: `dify-sls-backfill verify --level content` names the batches, then \
                 `repair` shows what can be done",
                count(findings.count)
            );
            Exit::Difference
        }
        "not_known" => {
            tracing::warn!(
                "what is known is equal\nhint: run the same command again, or for one --app"
            );
            Exit::Unfinished
        }
        _ => {
            tracing::info!("Dify shows the same from SLS as from Postgres");
            Exit::Done
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::verify::parity::finding::{Question, Readers};

    #[test]
    fn a_difference_fits_80_columns_however_long_its_parts_are() {
        let id = "0190c7f2-0000-7000-8000-000000000000";
        for (place, what, text) in [
            ("2025-01-31", "runs", "12345678"),
            (id, "title", &*"长".repeat(200)),
            (&*"n".repeat(100), &*"w".repeat(90), id),
        ] {
            let finding = Finding {
                tenant: id.to_owned(),
                app: id.to_owned(),
                trigger: "app-run".to_owned(),
                readers: Readers::Shipped,
                question: Question::AverageInteractions,
                place: place.to_owned(),
                what: what.to_owned(),
                postgres: Some(text.to_owned()),
                sls: None,
            };
            for line in finding_rows(&finding) {
                assert!(line.chars().count() <= 80, "{line}");
            }
        }
        for line in wrapped(Quirk::OwnLogs.what()) {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }
}
