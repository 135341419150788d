//! `report`: what was done and where every row is, from the ledger alone, at any time.

use anyhow::Context as _;
use serde_json::{Map, Value, json};

use crate::commands::exit::{Ended, Exit, OrExit as _};
use crate::commands::output::{self, Format, count};
use crate::commands::page::{self, PageWish};
use crate::commands::setup::PostgresSettings;
use crate::commands::status;
use crate::ledger::Ledger;
use crate::ledger::account::Account;
use crate::ledger::day_counts::LedgerDay;
use crate::ledger::finding::Finding;
use crate::pg::pool::PoolSize;
use crate::pipeline::verify::content::compare::{NOT_COMPARED, SOURCE_CHANGED, SOURCE_GONE};
use crate::pipeline::verify::content::unaccounted::UNACCOUNTED;
use crate::pipeline::verify::content::verdict::Verdict;
use crate::record::day::Day;
use crate::record::table::Table;

/// So many findings are listed.
const LISTED_MAX: u32 = 1000;

/// What `report` needs to know.
pub struct ReportSettings {
    pub postgres: PostgresSettings,
    pub tables: Vec<Table>,
    pub format: Format,
    pub page: Option<PageWish>,
    pub allow_fsync_off: bool,
}

/// Prints the report, and writes its page.
pub async fn report(settings: &ReportSettings) -> Result<Exit, Ended> {
    let ledger = Ledger::open_existing(
        &settings.postgres.ledger,
        PoolSize::few(1),
        settings.allow_fsync_off,
    )
    .await;
    let ledger = ledger.or_exit(Exit::Preflight)?;
    let (mut tables, mut accounts) = (Map::new(), Vec::new());
    for table in &settings.tables {
        let account = ledger.account(*table).await.context("read the ledger")?;
        accounts.push((*table, account));
        tables.insert(table.name().to_owned(), of_table(&ledger, *table, &accounts).await?);
    }
    status::check(&accounts)?;
    let result = json!({"schema_version": 1, "tables": tables});
    match settings.format {
        Format::Json => output::line(&result.to_string()),
        Format::Text => {
            for (table, account) in accounts {
                let account = account.each_once();
                output::line(&format!(
                    "{table}: {} rows in SLS, {} held",
                    count(account.live),
                    count(account.held_rows())
                ));
            }
            output::line("--html FILE writes days, throughput and findings as a page");
        }
    }
    page::write(settings.page.as_ref(), "Report of the migration", || result)?;
    Ok(Exit::Done)
}

async fn of_table(
    ledger: &Ledger,
    table: Table,
    accounts: &[(Table, Account)],
) -> anyhow::Result<Value> {
    let account = accounts.iter().find(|(found, _)| *found == table);
    let account = account.map(|(_, account)| account.clone().each_once()).unwrap_or_default();
    let mut result = serde_json::to_value(account).context("print the account")?;
    let days = ledger.days(table).await?;
    let day = |(day, of_day): (&Option<Day>, &_)| {
        let LedgerDay { stored, open, lost, held, .. } = *of_day;
        json!({
            "day": day, "stored": stored.to_string(), "in_doubt": open.to_string(),
            "held": held.to_string(), "lost": lost.to_string(),
        })
    };
    result["days"] = days.iter().map(day).collect();
    let hours = ledger.hours(table).await?;
    let hour = |(hour, rows, bytes): &(String, u64, u64)| json!({"hour": hour, "rows": rows.to_string(), "raw_bytes": bytes.to_string()});
    result["hours"] = hours.iter().map(hour).collect();
    if let Some(verification) = ledger.last_verification(table).await? {
        let id = verification.id;
        let mut kinds: Vec<_> = Verdict::ALL
            .into_iter()
            .filter(|verdict| verdict.is_difference())
            .map(Verdict::name)
            .collect();
        kinds.extend([SOURCE_CHANGED, SOURCE_GONE, NOT_COMPARED, UNACCOUNTED]);
        let findings = ledger.findings_of(id, &kinds, 0, LISTED_MAX).await?;
        let all: u64 = ledger
            .finding_counts(id)
            .await?
            .iter()
            .filter(|(kind, ..)| kinds.contains(&kind.as_str()))
            .map(|(_, findings, ..)| *findings)
            .sum();
        let finding = |(_, finding): &(i64, Finding)| {
            json!({
                "kind": finding.kind, "batch": finding.batch_id, "rows": finding.rows.to_string(),
                "logs": finding.found.to_string(), "detail": finding.detail,
                "row_ids": finding.row_ids.iter().take(5).collect::<Vec<_>>(),
            })
        };
        result["last_verification"] = id.into();
        result["findings"] = findings.iter().map(finding).collect();
        result["findings_left_out"] = all.saturating_sub(findings.len() as u64).to_string().into();
    }
    Ok(result)
}
