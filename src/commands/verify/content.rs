//! `verify --level content`: pulls everything back, and prints what was found.

use serde_json::{Value, json};

use crate::commands::difference::Difference;
use crate::commands::output::count;
use crate::commands::setup;
use crate::commands::verify::{Outcome, Verify, number};
use crate::dify::conversion::LogTime;
use crate::ledger::finding::Finding;
use crate::ledger::verified_batches::VerifiedDay;
use crate::pipeline::progress::Progress;
use crate::pipeline::verify::content::compare::{NOT_COMPARED, SOURCE_CHANGED, SOURCE_GONE};
use crate::pipeline::verify::content::unaccounted::UNACCOUNTED;
use crate::pipeline::verify::content::verdict::Verdict;
use crate::pipeline::verify::content::{self, ContentParts, ContentReport};
use crate::record::day::Day;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;
use crate::source::catalog::Shape;

/// So many findings are told one by one.
const TOLD_MAX: u32 = 20;

/// So many stand in the JSON, each with so many rows.
const LISTED_MAX: u32 = 1000;
const LISTED_ROWS_MAX: usize = 100;

/// All kinds of findings.
fn kinds() -> Vec<&'static str> {
    let mut kinds = Verdict::ALL.map(Verdict::name).to_vec();
    kinds.extend([SOURCE_CHANGED, SOURCE_GONE, NOT_COMPARED, UNACCOUNTED]);
    kinds
}

impl Verify<'_> {
    /// Verifies the content of one table; `None` when asked to stop.
    pub(in crate::commands::verify) async fn content(
        &mut self,
        shape: &Shape,
    ) -> anyhow::Result<Option<Outcome>> {
        let table = shape.table;
        let parts = self.content_parts(shape).await?;
        let verification = content::open(&parts).await?;
        let (rows, _) = self.ledger.scope_size(&verification).await?;
        // Logs are pulled from SLS, rows read from Postgres, and all of the table looked through.
        let progress = Progress::new(table, 2 * rows + Self::rows_estimated(shape));
        let shutdown = self.shutdown.clone();
        let work = content::verify(&parts, verification, &progress, &shutdown);
        let Some(report) = self.shown(&progress, work).await? else { return Ok(None) };
        self.content_outcome(table, &report).await.map(Some)
    }

    /// What a verification of that table is made of.
    pub(in crate::commands::verify) async fn content_parts(
        &self,
        shape: &Shape,
    ) -> anyhow::Result<ContentParts> {
        Ok(ContentParts {
            table: shape.table,
            source: self.source.clone(),
            ledger: self.ledger.clone(),
            client: self.client.clone(),
            // Whether a graph is written, and which time, each batch's own conversion says.
            current: setup::conversion(shape, true, LogTime::FinishedAt),
            shape: shape.clone(),
            scope: self.settings.scope.clone(),
            recheck: self.settings.recheck,
            timings: self.settings.timings,
            ttl_days: self.ttl_days(shape.table).await?,
        })
    }

    async fn content_outcome(
        &self,
        table: Table,
        report: &ContentReport,
    ) -> anyhow::Result<Outcome> {
        let mut outcome = Outcome { text: text(table, report), ..Outcome::default() };
        let verdict = |verdict| report.verdicts.get(&verdict).copied().unwrap_or_default();
        let missing = verdict(Verdict::Missing);
        let is_final = missing.batches - missing.provisional;
        outcome.differs(Difference::Missing, is_final, "batches");
        for (kind, difference) in [
            (Verdict::Doubled, Difference::Doubled),
            (Verdict::Changed, Difference::Changed),
            (Verdict::GivenUp, Difference::GivenUp),
            (Verdict::Foreign, Difference::Foreign),
            (Verdict::Lost, Difference::Lost),
        ] {
            outcome.differs(difference, verdict(kind).batches, "batches");
        }
        for (kind, difference) in [
            (SOURCE_CHANGED, Difference::SourceChanged),
            (SOURCE_GONE, Difference::SourceGone),
            (UNACCOUNTED, Difference::Unaccounted),
        ] {
            let rows = report.findings.get(kind).map_or(0, |(_, rows, _)| *rows);
            outcome.differs(difference, rows, "rows");
        }
        if missing.provisional > 0 {
            outcome.unknown.push(format!(
                "{} batches {}; {}",
                count(missing.provisional),
                Difference::Late.what(),
                Difference::Late.way_on()
            ));
        }
        let findings = self.ledger.findings_of(report.id, &kinds(), 0, LISTED_MAX).await?;
        let is_told = |finding: &Finding| {
            Verdict::from_name(&finding.kind).is_none_or(Verdict::is_difference)
        };
        let told = findings.iter().filter(|(_, finding)| is_told(finding));
        for (_, finding) in told.take(TOLD_MAX as usize) {
            tracing::error!("{table}: {}", in_words(finding));
        }
        if findings.len() > TOLD_MAX as usize {
            tracing::error!("{table}: … and more: --output json lists {LISTED_MAX} of them");
        }
        outcome.json = as_json(report, &findings);
        Ok(outcome)
    }
}

fn text(table: Table, report: &ContentReport) -> Vec<String> {
    let read_until = Timestamp::from_unix_s(report.ended_at);
    let mut lines = vec![
        table.name().to_owned(),
        format!("  pulled back: all that SLS had received by {read_until}"),
    ];
    let line = |what: &str, batches: u64, rows: u64| {
        format!("  {what:<29} {:>9} batches {:>13} rows", count(batches), count(rows))
    };
    for (verdict, what) in [
        (Verdict::Proved, "as they were sent"),
        (Verdict::Missing, "missing, or not all there"),
        (Verdict::Doubled, "doubled"),
        (Verdict::Changed, "changed"),
        (Verdict::GivenUp, "given up, but there"),
        (Verdict::Foreign, "of an unknown tag"),
        (Verdict::Expired, "too old for SLS to keep"),
        (Verdict::Unprovable, "there, but nothing proves it"),
        (Verdict::Lost, "lost before, not sent again"),
        (Verdict::Open, "open: a run is at work"),
    ] {
        let tally = report.verdicts.get(&verdict).copied().unwrap_or_default();
        let rows = if verdict == Verdict::Foreign { tally.found } else { tally.rows };
        if tally.batches > 0 || verdict == Verdict::Proved {
            lines.push(line(what, tally.batches, rows));
        }
        if tally.provisional > 0 {
            let batches = count(tally.provisional);
            lines.push(format!("    a late request could still change that of {batches} of them"));
        }
    }
    let compared = &report.compared;
    let as_sent = match report.is_recheck {
        true => "looked at again in Postgres",
        false => "the same in Postgres now",
    };
    lines.push(line(as_sent, compared.batches_equal, compared.rows_equal));
    for (kind, what) in [
        (SOURCE_CHANGED, "changed in Postgres since"),
        (SOURCE_GONE, "gone from Postgres since"),
        (NOT_COMPARED, "not compared with Postgres"),
        (UNACCOUNTED, "in Postgres, but not known"),
    ] {
        if let Some((findings, rows, _)) = report.findings.get(kind) {
            lines.push(line(what, *findings, *rows));
        }
    }
    if report.read.untagged_logs > 0 {
        lines.push(format!("  {} logs of others are there, too", count(report.read.untagged_logs)));
    }
    lines
}

/// A finding in one line.
fn in_words(finding: &Finding) -> String {
    let Finding { kind, rows, found, detail, .. } = finding;
    let more = if detail.is_empty() { String::new() } else { format!(" ({detail})") };
    let batch = finding.batch_id.map(|id| format!("batch {id}: ")).unwrap_or_default();
    let ids: Vec<_> = finding.row_ids.iter().take(3).map(ToString::to_string).collect();
    let dots = if finding.row_ids.len() > 3 { ", …" } else { "" };
    let ids = if ids.is_empty() { String::new() } else { format!(": {}{dots}", ids.join(", ")) };
    let (rows, found) = (count(*rows), count(*found));
    match Verdict::from_name(kind) {
        Some(Verdict::Foreign) => format!("{batch}SLS holds {found} logs of it{more}"),
        Some(Verdict::GivenUp) => {
            format!("{batch}it was given up, SLS holds {found} logs of it{more}{ids}")
        }
        Some(Verdict::Changed) => {
            format!("{batch}the {found} logs in SLS are not those that were sent{more}{ids}")
        }
        Some(Verdict::Lost) => format!("{batch}its {rows} rows are lost in SLS{more}"),
        Some(_) => format!("{batch}SLS should hold {rows} rows of it, it holds {found}{more}{ids}"),
        None if kind == SOURCE_CHANGED => {
            format!("{batch}{rows} rows have changed in Postgres since{more}{ids}")
        }
        None if kind == SOURCE_GONE => {
            format!("{batch}{rows} rows are not in Postgres any more{more}{ids}")
        }
        None if kind == UNACCOUNTED => {
            format!("{rows} rows are in no batch and not held{more}{ids}")
        }
        None => format!("{batch}{rows} rows were not compared with Postgres{more}"),
    }
}

fn as_json(report: &ContentReport, findings: &[(i64, Finding)]) -> Value {
    let verdicts: serde_json::Map<_, _> = Verdict::ALL
        .into_iter()
        .map(|verdict| {
            let tally = report.verdicts.get(&verdict).copied().unwrap_or_default();
            let tally = json!({
                "batches": number(tally.batches), "rows": number(tally.rows),
                "logs": number(tally.found), "provisional": number(tally.provisional),
            });
            (verdict.name().to_owned(), tally)
        })
        .collect();
    let of = |kind: &str| {
        let (findings, rows, _) = report.findings.get(kind).copied().unwrap_or_default();
        json!({"batches": number(findings), "rows": number(rows)})
    };
    let listed: Vec<_> = findings.iter().map(|(_, finding)| finding_as_json(finding)).collect();
    let day = |(day, of_day): (&Day, &VerifiedDay)| {
        json!({
            "day": day,
            "sent": number(of_day.sent),
            "equal_in_postgres": number(of_day.equal_in_source),
            "proved_in_sls": number(of_day.proved_in_sls),
        })
    };
    let all: u64 = report.findings.values().map(|(findings, ..)| findings).sum();
    json!({
        "verification": number(report.id.unsigned_abs()),
        "is_recheck": report.is_recheck,
        "read_until": Timestamp::from_unix_s(report.ended_at).to_string(),
        "in_sls": verdicts,
        "other_logs": number(report.read.untagged_logs),
        "in_postgres": {
            "equal": {
                "batches": number(report.compared.batches_equal),
                "rows": number(report.compared.rows_equal),
            },
            "changed": of(SOURCE_CHANGED),
            "gone": of(SOURCE_GONE),
            "not_compared": of(NOT_COMPARED),
        },
        "days": report.days.iter().map(day).collect::<Vec<_>>(),
        "rows_looked_for": number(report.rows_accounted),
        "unaccounted_rows": of(UNACCOUNTED)["rows"],
        "findings": listed,
        "findings_left_out": number(all.saturating_sub(listed.len() as u64)),
    })
}

fn finding_as_json(finding: &Finding) -> Value {
    json!({
        "kind": finding.kind,
        "batch": finding.batch_id,
        "ledger": finding.ledger_id,
        "rows": number(finding.rows),
        "logs": number(finding.found),
        "is_provisional": finding.is_provisional,
        "detail": finding.detail,
        "row_ids": finding.row_ids.iter().take(LISTED_ROWS_MAX).collect::<Vec<_>>(),
        "row_ids_left_out": number(finding.row_ids.len().saturating_sub(LISTED_ROWS_MAX) as u64),
    })
}
