//! `verify --level counts`: counts, and prints a table of days.

use serde_json::{Value, json};

use crate::commands::difference::Difference;
use crate::commands::output::count;
use crate::commands::verify::{Outcome, Verify, number};
use crate::ledger::pass::LOOK_BACK_S;
use crate::pipeline::progress::Progress;
use crate::pipeline::send::age::kept_since;
use crate::pipeline::verify::counts::day::{DayVerdict, Side};
use crate::pipeline::verify::counts::{self, CountedDay, CountsParts, CountsReport};
use crate::record::day::Day;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;
use crate::source::catalog::Shape;

/// So many days are printed for a person.
const PRINTED_DAYS_MAX: usize = 50;

impl Verify<'_> {
    /// Counts one table; `None` when asked to stop.
    pub(in crate::commands::verify) async fn counts(
        &mut self,
        shape: &Shape,
    ) -> anyhow::Result<Option<Outcome>> {
        let table = shape.table;
        let now = Timestamp::from_unix_s(self.client.now());
        let ttl_days = self.ttl_days(table).await?;
        // Rows are counted in Postgres, and then their logs in SLS.
        let progress = Progress::new(table, 2 * Self::rows_estimated(shape));
        let scope = &self.settings.scope;
        let parts = CountsParts {
            table,
            source: self.source.clone(),
            ledger: self.ledger.clone(),
            client: self.client.clone(),
            progress: progress.clone(),
            kept_since: ttl_days.and_then(|days| kept_since(days, now)),
            since: scope.since.and_then(Day::of),
            until: scope.until.and_then(Day::of),
        };
        let mut shutdown = self.shutdown.clone();
        let report = self.shown(&progress, counts::count(&parts, &mut shutdown)).await?;
        let Some(report) = report else { return Ok(None) };
        let covered = self.ledger.covered_until(table).await?;
        Ok(Some(outcome(table, &report, covered)))
    }
}

fn outcome(table: Table, report: &CountsReport, covered: Option<Timestamp>) -> Outcome {
    let mut outcome =
        Outcome { json: as_json(report), text: text(table, report), ..Outcome::default() };
    let is_different = |side: Side| side == Side::Differs;
    let sum = |side: fn(&DayVerdict) -> Side, rows: fn(&DayVerdict) -> u64| -> u64 {
        let verdicts = report.days.iter().map(|day| &day.verdict);
        verdicts.filter(|verdict| is_different(side(verdict))).map(rows).sum()
    };
    let (sls, source) = (|day: &DayVerdict| day.sls, |day: &DayVerdict| day.source);
    outcome.differs(Difference::Missing, sum(sls, |day| day.missing), "rows");
    outcome.differs(Difference::Doubled, sum(sls, |day| day.doubled), "logs");
    outcome.differs(Difference::Foreign, sum(sls, |day| day.surplus) + report.dayless_logs, "logs");
    outcome.differs(Difference::Unaccounted, sum(source, |day| day.unaccounted), "rows");
    outcome.differs(Difference::SourceGone, sum(source, |day| day.gone), "rows");
    let lost: u64 = report.days.iter().map(|day| day.counts.lost).sum();
    outcome.differs(Difference::Lost, lost, "rows");
    let unknown = report.count(Side::NotKnown);
    if unknown > 0 {
        outcome.unknown.push(format!(
            "of {} days nobody can tell whether they are equal: answers of SLS stayed incomplete, \
             or a run changed what was counted\nhint: run the same command again, when no run is \
             at work",
            count(unknown)
        ));
    }
    let uncovered: u64 = report.days.iter().map(|day| day.counts.uncovered).sum();
    if uncovered > 0 {
        let since = match covered {
            Some(until) => format!(", created since {}", until.plus_s(-LOOK_BACK_S)),
            None => String::new(),
        };
        outcome.text.push(format!("  not covered yet: {} rows{since}", count(uncovered)));
    }
    if report.is_by_field {
        outcome.text.push(
            "  days are those of finished_at in the logs: their own times are those of sending"
                .to_owned(),
        );
    }
    outcome
}

fn text(table: Table, report: &CountsReport) -> Vec<String> {
    let days = |side| count(report.count(side));
    let mut lines = vec![table.name().to_owned()];
    lines.push(format!(
        "  {} days: {} equal, {} differ, {} not known, {} too old for SLS",
        count(report.days.len() as u64),
        days(Side::Equal),
        days(Side::Differs),
        days(Side::NotKnown),
        days(Side::Expired),
    ));
    lines.push(row(["finished", "Postgres", "held", "ledger", "SLS", ""]));
    let odd = report.days.iter().filter(|day| day.verdict.worst() != Side::Equal);
    for day in odd.clone().take(PRINTED_DAYS_MAX) {
        let words = words(&day.verdict);
        let mut words = words.iter().map(String::as_str);
        lines.push(day_row(day, words.next().unwrap_or_default()));
        lines.extend(words.map(|word| row(["", "", "", "", "", word])));
    }
    let left_out = odd.count().saturating_sub(PRINTED_DAYS_MAX);
    if left_out > 0 {
        lines.push(format!("  … and {left_out} more days: --output json lists all"));
    }
    lines.push(total(report));
    lines
}

fn total(report: &CountsReport) -> String {
    let sum = |rows: fn(&CountedDay) -> u64| -> u64 { report.days.iter().map(rows).sum() };
    let others = sum(|day| day.counts.sls.unwrap_or_default().other_logs);
    let note = match others {
        0 => String::new(),
        logs => format!("+ {} of Dify", count(logs)),
    };
    row([
        "all",
        &count(sum(|day| day.counts.postgres)),
        &count(sum(|day| day.counts.held)),
        &count(sum(|day| day.counts.ledger + day.counts.open)),
        &count(sum(|day| day.counts.sls.unwrap_or_default().logs)),
        &note,
    ])
}

fn day_row(day: &CountedDay, word: &str) -> String {
    let counts = &day.counts;
    let name = day.day.map_or("never".to_owned(), |day| day.to_string());
    let sls = counts.sls.map_or("?".to_owned(), |sls| count(sls.logs));
    row([
        &name,
        &count(counts.postgres),
        &count(counts.held),
        &count(counts.ledger + counts.open),
        &sls,
        word,
    ])
}

/// 80 columns at most.
fn row([day, postgres, held, ledger, sls, word]: [&str; 6]) -> String {
    let line = format!("  {day:<10} {postgres:>11} {held:>9} {ledger:>11} {sls:>11}  {word:<19}");
    line.trim_end().to_owned()
}

/// What is the matter with a day, a few words each.
fn words(verdict: &DayVerdict) -> Vec<String> {
    let mut words = Vec::new();
    let mut add = |is_so: bool, rows: u64, word: &str| {
        if is_so && rows > 0 {
            words.push(format!("{} {word}", count(rows)));
        }
    };
    let is_sls = verdict.sls == Side::Differs;
    let is_source = verdict.source == Side::Differs;
    add(is_sls, verdict.missing, "missing");
    add(is_sls, verdict.doubled, "doubled");
    add(is_sls, verdict.surplus, "too many");
    add(is_source, verdict.unaccounted, "unnamed");
    add(is_source, verdict.gone, "gone");
    if [verdict.sls, verdict.source].contains(&Side::NotKnown) {
        words.push("not known".to_owned());
    }
    if verdict.sls == Side::Expired {
        words.push("too old".to_owned());
    }
    words
}

fn as_json(report: &CountsReport) -> Value {
    let days: Vec<_> = report.days.iter().map(day_as_json).collect();
    json!({
        "days": days,
        "day_of_logs": if report.is_by_field { "finished_at" } else { "__time__" },
        "logs_without_day": number(report.dayless_logs),
    })
}

fn day_as_json(day: &CountedDay) -> Value {
    let CountedDay { day, counts, verdict } = day;
    let sls = counts.sls.map(|sls| {
        json!({
            "logs": number(sls.logs), "ids": number(sls.ids),
            "other_logs": number(sls.other_logs), "other_ids": number(sls.other_ids),
        })
    });
    json!({
        "day": day,
        "verdict": verdict.worst(),
        "sls_verdict": verdict.sls,
        "postgres_verdict": verdict.source,
        "postgres": number(counts.postgres),
        "purged": number(counts.purged),
        "not_covered": number(counts.uncovered),
        "held": number(counts.held),
        "ledger": number(counts.ledger),
        "in_the_air": number(counts.open),
        "lost": number(counts.lost),
        "sls": sls,
        "missing": number(verdict.missing),
        "doubled": number(verdict.doubled),
        "surplus": number(verdict.surplus),
        "unaccounted": number(verdict.unaccounted),
        "gone": number(verdict.gone),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_fits_80_columns() {
        let line = row([
            "2025-01-31",
            "999,999,999",
            "9,999,999",
            "999,999,999",
            "999,999,999",
            "99,999,999 too many",
        ]);
        assert!(line.chars().count() <= 80, "{}: {line}", line.len());
    }
}
