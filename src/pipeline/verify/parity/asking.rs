//! Puts one question to SLS, and looks up why a row is there that Postgres does not have.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use uuid::Uuid;

use crate::dify::readers::{Owner, escaped};
use crate::ledger::Ledger;
use crate::pipeline::retry::with_retries;
use crate::pipeline::verify::parity::finding::{Asked, Findings, Quirk};
use crate::pipeline::verify::parity::judge::Row;
use crate::record::table::Table;
use crate::sls::client::Client;
use crate::sls::tags::LOG_SOURCE;
use crate::source::Source;
use crate::source::catalog::Shape;
use crate::source::twins::{Shown, TwinOwner};

/// An incomplete answer is asked for again so often.
const TRIES_MAX: u32 = 3;

/// After so many incomplete answers in a row SLS cannot answer now, and is not asked any more.
const INCOMPLETE_MAX: u32 = 8;

/// One table of both sides.
#[derive(Debug, Clone)]
pub struct Side {
    pub shape: Shape,
    pub shown: Shown,
    /// Log times that are asked about, Unix seconds: `[from, to)`.
    pub from: i64,
    pub to: i64,
    /// Bytes of a text that SQL shows.
    pub text_bytes_max: usize,
}

impl Side {
    pub fn table(&self) -> Table {
        self.shape.table
    }
}

/// What is asked with.
pub struct Asking<'a> {
    pub source: &'a Source,
    pub ledger: &'a Ledger,
    pub client: &'a Client,
    /// Answers that stayed incomplete, in a row.
    pub incomplete: &'a AtomicU32,
}

impl Asking<'_> {
    /// What SLS answers to `query`, as Dify's SDK mode sends it; `None` if it cannot be known, which
    /// is written down.
    pub async fn ask(
        &self,
        findings: &mut Findings,
        side: &Side,
        (from, to): (i64, i64),
        query: &str,
    ) -> anyhow::Result<Option<Vec<Row>>> {
        let logstore = side.table().logstore();
        let is_hopeless = self.incomplete.load(Ordering::Relaxed) >= INCOMPLETE_MAX;
        for attempt in 1..=if is_hopeless { 0 } else { TRIES_MAX } {
            let answer = with_retries(|| self.client.sql(logstore, from, to, query)).await;
            match answer {
                Ok(answer) if answer.is_complete => {
                    self.incomplete.store(0, Ordering::Relaxed);
                    return Ok(Some(answer.rows));
                }
                Ok(_) => tokio::time::sleep(Duration::from_millis(200) * attempt).await,
                // Dify's reader would get the same.
                Err(failure) if failure.is("ParameterInvalid") => {
                    findings.not_known(format!("SLS refuses a statement: {}", failure.what));
                    return Ok(None);
                }
                Err(failure) => {
                    return Err(anyhow::Error::from(failure))
                        .with_context(|| format!("ask {logstore} as Dify does"));
                }
            }
        }
        self.incomplete.fetch_add(1, Ordering::Relaxed);
        findings.not_known("SLS's answer stays incomplete: Dify would show a part of the truth");
        Ok(None)
    }

    /// `* | ` and SQL over all of the window.
    pub async fn sql(
        &self,
        findings: &mut Findings,
        side: &Side,
        sql: &str,
    ) -> anyhow::Result<Option<Vec<Row>>> {
        self.ask(findings, side, (side.from, side.to), &format!("* | {sql}")).await
    }

    /// All owners of runs that SLS has logs of; `None`: nobody knows.
    pub async fn owners(
        &self,
        findings: &mut Findings,
        side: &Side,
    ) -> anyhow::Result<Option<Vec<TwinOwner>>> {
        let sql = "SELECT tenant_id, app_id, triggered_from, COUNT(*) AS logs \
                   FROM workflow_execution GROUP BY tenant_id, app_id, triggered_from \
                   LIMIT 100000";
        let rows = self.sql(findings, side, sql).await?;
        let owner = |row: &Row| {
            Some(TwinOwner {
                tenant: row.get("tenant_id")?.parse().ok()?,
                app: row.get("app_id")?.parse().ok()?,
                trigger: row.get("triggered_from")?.clone(),
            })
        };
        Ok(rows.map(|rows| rows.iter().filter_map(owner).collect()))
    }

    /// From when to when an owner has logs in SLS, Unix seconds; `None`: it has none.
    pub async fn extent(
        &self,
        findings: &mut Findings,
        side: &Side,
        owner: &Owner,
    ) -> anyhow::Result<Option<(i64, i64)>> {
        let sql = format!(
            "SELECT min(__time__) AS first, max(__time__) AS last FROM {} WHERE {}",
            side.table().logstore(),
            condition(owner)
        );
        let Some(rows) = self.sql(findings, side, &sql).await? else { return Ok(None) };
        let number = |name: &str| -> Option<i64> {
            let text = rows.first()?.get(name)?;
            text.parse::<f64>().ok().map(|number| number as i64)
        };
        Ok(number("first").zip(number("last")))
    }

    /// How many ids of an owner have logs of Dify's own, by day.
    pub async fn own_logs(
        &self,
        findings: &mut Findings,
        side: &Side,
        owner: &Owner,
    ) -> anyhow::Result<BTreeMap<String, u64>> {
        let sql = format!(
            "SELECT DATE(from_unixtime(__time__)) AS date, COUNT(*) AS logs FROM {} \
             WHERE {} AND __source__ <> '{LOG_SOURCE}' GROUP BY date LIMIT 100000",
            side.table().logstore(),
            condition(owner)
        );
        let rows = self.sql(findings, side, &sql).await?.unwrap_or_default();
        rows.iter().map(|row| logs_by(row, "date")).collect()
    }

    /// The ids of an owner of which SLS has several terminal logs, ours or Dify's; at most 100.
    pub async fn doubled(
        &self,
        findings: &mut Findings,
        side: &Side,
        owner: &Owner,
    ) -> anyhow::Result<BTreeMap<String, u64>> {
        let sql = format!(
            "SELECT id, COUNT(*) AS logs FROM {} WHERE {} AND status IN ('succeeded', 'failed', \
             'stopped', 'partial-succeeded') GROUP BY id HAVING COUNT(*) > 1 LIMIT 100",
            side.table().logstore(),
            condition(owner)
        );
        let rows = self.sql(findings, side, &sql).await?.unwrap_or_default();
        rows.iter().map(|row| logs_by(row, "id")).collect()
    }

    /// Says why SLS shows rows that Postgres does not: purged, or Dify's own; else it is a finding.
    /// `rows` are those that Postgres lacks.
    pub async fn explain(
        &self,
        findings: &mut Findings,
        asked: &Asked<'_>,
        side: &Side,
        rows: &[Row],
    ) -> anyhow::Result<()> {
        let (own, others): (Vec<&Row>, Vec<&Row>) =
            rows.iter().partition(|row| row.get("__source__").is_none_or(|it| it == LOG_SOURCE));
        findings.quirk(Quirk::OwnLogs, others.len() as u64);
        let ids: Vec<Uuid> =
            own.iter().filter_map(|row| Uuid::parse_str(row.get("id")?).ok()).collect();
        let there = self.source.rows_by_id(side.table(), &ids).await?;
        let there: BTreeSet<Uuid> = there.iter().map(|row| row.id).collect();
        let known = self.ledger.known(side.table(), &ids, false).await?;
        for row in own {
            let id = row.get("id").map_or("", String::as_str);
            let uuid = Uuid::parse_str(id).ok();
            if uuid.is_some_and(|id| known.contains(&id) && !there.contains(&id)) {
                findings.purged_rows += 1;
            } else {
                findings.push(asked.finding(id, "row", None, Some("there".to_owned())));
            }
        }
        Ok(())
    }
}

/// How many logs a row of an answer counts for what stands in its column `name`. An answer that does
/// not say so must not pass for one without logs.
fn logs_by(row: &Row, name: &str) -> anyhow::Result<(String, u64)> {
    let value = row.get(name).with_context(|| format!("SLS answers without the column {name}"))?;
    let logs = row.get("logs").context("SLS answers without the column logs")?;
    let logs = logs.parse().with_context(|| format!("SLS counts `{logs}` logs"))?;
    Ok((value.clone(), logs))
}

fn condition(owner: &Owner) -> String {
    format!(
        "tenant_id='{}' AND app_id='{}' AND triggered_from='{}'",
        escaped(&owner.tenant),
        escaped(&owner.app),
        escaped(&owner.trigger)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_that_cannot_be_read_is_an_error_and_never_no_logs() {
        let row = |pairs: &[(&str, &str)]| -> Row {
            pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
        };
        let counted = logs_by(&row(&[("date", "2025-01-31"), ("logs", "12")]), "date").unwrap();
        assert_eq!(counted, ("2025-01-31".to_owned(), 12));
        for (odd, why) in [
            (row(&[("logs", "12")]), "SLS answers without the column date"),
            (row(&[("date", "2025-01-31")]), "SLS answers without the column logs"),
            (row(&[("date", "2025-01-31"), ("logs", "")]), "SLS counts `` logs"),
            (row(&[("date", "2025-01-31"), ("logs", "null")]), "SLS counts `null` logs"),
            (row(&[("date", "2025-01-31"), ("logs", "-1")]), "SLS counts `-1` logs"),
            (row(&[("date", "2025-01-31"), ("logs", "1.2E1")]), "SLS counts `1.2E1` logs"),
        ] {
            assert_eq!(logs_by(&odd, "date").unwrap_err().to_string(), why);
        }
    }
}
