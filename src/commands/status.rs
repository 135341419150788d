//! `status`: the account of each table, from the ledger alone.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::Serialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::commands::exit::{Ended, Exit, OrExit as _};
use crate::commands::output::{self, Format, bytes, count};
use crate::commands::setup::PostgresSettings;
use crate::ledger::Ledger;
use crate::ledger::account::{Account, RunAccount};
use crate::ledger::hold::Reject;
use crate::ledger::live_rows::StrayRow;
use crate::pg::pool::PoolSize;
use crate::record::hold::HoldReason;
use crate::record::table::Table;

/// So many rejected rows are listed.
const LISTED_ROWS_MAX: u32 = 20;

/// What `status` needs to know.
pub struct StatusSettings {
    pub postgres: PostgresSettings,
    pub tables: Vec<Table>,
    pub format: Format,
    pub allow_fsync_off: bool,
}

/// Prints the account of each table.
pub async fn status(settings: &StatusSettings) -> Result<Exit, Ended> {
    let ledger = Ledger::open_existing(
        &settings.postgres.ledger,
        PoolSize::few(1),
        settings.allow_fsync_off,
    )
    .await
    .or_exit(Exit::Preflight)?;
    let mut accounts = Vec::new();
    for table in &settings.tables {
        accounts.push((*table, ledger.account(*table).await.context("read the ledger")?));
    }
    check(&accounts)?;
    let accounts: Vec<_> =
        accounts.into_iter().map(|(table, account)| (table, account.each_once())).collect();
    print(&accounts, settings.format)?;
    if settings.format == Format::Text {
        for table in &settings.tables {
            list_rejects(&ledger, *table).await?;
        }
    }
    let mut exit = Exit::Done;
    for table in &settings.tables {
        let strays = ledger.stray_rows(*table, LISTED_ROWS_MAX + 1).await?;
        if !strays.is_empty() {
            tell_strays(*table, &strays);
            exit = Exit::Difference;
        }
    }
    Ok(exit)
}

/// Tells of rows that are in two live batches, or whose entry is wrong.
fn tell_strays(table: Table, strays: &[StrayRow]) {
    let rows = strays.iter().take(LISTED_ROWS_MAX as usize).map(|stray| {
        let StrayRow { row_id, batch_id, entry } = stray;
        match (batch_id, entry) {
            (Some(batch), Some(entry)) => format!("\n    {row_id} is in {entry} and in {batch}"),
            (Some(batch), None) => format!("\n    {row_id} is in {batch}, but not known as sent"),
            (None, _) => format!("\n    {row_id} is known as sent, but in no batch"),
        }
    });
    let rows: String = rows.collect();
    let more = if strays.len() > LISTED_ROWS_MAX as usize { "\n    … and more" } else { "" };
    tracing::error!(
        "{table}: rows are not in one live batch each{rows}{more}\n\
         what is in two batches is in SLS twice, and Dify counts it twice; nothing was deleted\n\
         hint: in SLS a batch's logs are those with the tag __batch__: <ledger>/<batch>"
    );
}

/// Lists the first rows that need attention.
async fn list_rejects(ledger: &Ledger, table: Table) -> anyhow::Result<()> {
    let rejects = ledger.rejects(table, Uuid::nil(), LISTED_ROWS_MAX + 1).await?;
    let Some(first) = rejects.first() else { return Ok(()) };
    output::line(&format!("{table}: rows that need attention"));
    for Reject { id, reason, detail, .. } in rejects.iter().take(LISTED_ROWS_MAX as usize) {
        output::line(&format!("    {id} {reason}: {detail}"));
    }
    if rejects.len() > LISTED_ROWS_MAX as usize {
        output::line("    … and more: `run --rejects FILE` lists them all");
    }
    tracing::info!(
        "fix them in Postgres, or leave them there; those that SLS refused are tried again with \
         `run --retry FILE`, a line of FILE: {}",
        serde_json::to_string(first).context("print a rejected row")?
    );
    Ok(())
}

/// Prints what one run has done with each table, as text or as JSON.
pub fn print_run(accounts: &[(Table, RunAccount)], format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => output::line(&as_json(accounts)?.to_string()),
        Format::Text => {
            accounts.iter().for_each(|(table, account)| output::line(&run_text(*table, account)));
        }
    }
    Ok(())
}

/// Prints accounts as a table or as JSON.
fn print(accounts: &[(Table, Account)], format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => output::line(&as_json(accounts)?.to_string()),
        Format::Text => {
            accounts.iter().for_each(|(table, account)| output::line(&text(*table, account)));
        }
    }
    Ok(())
}

fn as_json(accounts: &[(Table, impl Serialize)]) -> anyhow::Result<Value> {
    let tables: serde_json::Map<_, _> = accounts
        .iter()
        .map(|(table, account)| Ok((table.name().to_owned(), serde_json::to_value(account)?)))
        .collect::<anyhow::Result<_>>()?;
    Ok(json!({"schema_version": 1, "tables": tables}))
}

/// Fails when an account does not add up.
pub fn check(accounts: &[(Table, Account)]) -> anyhow::Result<()> {
    for (table, account) in accounts {
        anyhow::ensure!(
            account.is_balanced(),
            "the account of {table} does not add up: this is a bug, please report it\n\
             nothing is lost: no row leaves Postgres before it is proved one by one"
        );
    }
    Ok(())
}

/// `+ 3 what`, or nothing for 0.
fn plus(rows: i64, what: &str) -> String {
    if rows == 0 { String::new() } else { format!(" + {} {what}", signed(rows)) }
}

fn signed(number: i64) -> String {
    let sign = if number < 0 { "-" } else { "" };
    format!("{sign}{}", count(number.unsigned_abs()))
}

/// Every row once.
fn text(table: Table, account: &Account) -> String {
    let in_doubt = i64::try_from(account.in_the_air).unwrap_or(i64::MAX);
    let adopted = i64::try_from(account.adopted).unwrap_or(i64::MAX);
    let mut text = format!(
        "{table}: {} rows seen{} = {} in SLS{}{}{} + {} held + {} gone",
        count(account.seen),
        plus(adopted, "adopted by an audit"),
        count(account.live.saturating_sub(account.in_the_air)),
        plus(in_doubt, "in doubt"),
        plus(i64::try_from(account.lost).unwrap_or(i64::MAX), "lost"),
        plus(i64::try_from(account.earlier).unwrap_or(i64::MAX), "of an earlier logstore"),
        count(account.held_rows()),
        count(account.gone),
    );
    text += &format!(
        "\n    {} batches, {} before compression",
        count(account.batches),
        bytes(account.raw_bytes)
    );
    text + &details(&Details {
        covered_until: account.covered_until.as_deref(),
        lost: account.lost,
        held: &account.held,
        doubled: account.doubled,
        revisions: account.revisions,
        not_json: account.not_json,
        unread: account.unread,
        vanished: account.vanished,
    })
}

/// What this run has done.
fn run_text(table: Table, account: &RunAccount) -> String {
    let unsigned = |number: i64| u64::try_from(number).unwrap_or(0);
    let mut text = format!(
        "{table}: {} rows seen{}{}{} = {} in SLS{}{} + {} held + {} already + {} gone",
        signed(account.seen),
        plus(account.held_before, "held before"),
        plus(account.in_doubt_before, "in doubt before"),
        plus(account.adopted, "adopted by an audit"),
        signed(account.stored),
        plus(account.in_doubt, "in doubt"),
        plus(account.past, "lost or of an earlier logstore"),
        count(account.held.values().sum()),
        signed(account.already),
        signed(account.gone),
    );
    text += &format!(
        "\n    {} batches, {} before compression",
        signed(account.batches),
        bytes(unsigned(account.raw_bytes))
    );
    text + &details(&Details {
        covered_until: account.covered_until.as_deref(),
        lost: account.lost,
        held: &account.held,
        doubled: account.doubled,
        revisions: unsigned(account.revisions),
        not_json: unsigned(account.not_json),
        unread: account.unread,
        vanished: unsigned(account.vanished),
    })
}

/// What both accounts tell line by line.
struct Details<'a> {
    covered_until: Option<&'a str>,
    lost: u64,
    held: &'a BTreeMap<String, u64>,
    doubled: u64,
    /// Rows that were sent once more after they had changed.
    revisions: u64,
    not_json: u64,
    unread: u64,
    vanished: u64,
}

fn details(details: &Details<'_>) -> String {
    let mut text = String::new();
    if details.lost > 0 {
        text +=
            "\n    lost: an audit did not find them in SLS; `run --resend-lost` sends them again";
    }
    text += &match details.covered_until {
        Some(until) => format!("\n    covered: all rows created before {until}"),
        None => "\n    covered: no pass from the beginning is done yet".to_owned(),
    };
    for (reason, rows) in details.held {
        text += &format!("\n    {}", held_line(reason, *rows));
    }
    if details.doubled > 0 {
        let rows = count(details.doubled);
        text +=
            &format!("\n    {rows} rows are in SLS twice: `dify-sls-backfill status` lists them");
    }
    if details.revisions > 0 {
        let rows = count(details.revisions);
        text += &format!("\n    {rows} rows were sent once more after they had changed");
    }
    if details.not_json > 0 {
        let columns = count(details.not_json);
        text += &format!("\n    {columns} JSON columns hold no JSON; they went through unchanged");
    }
    if details.unread > 0 {
        let rows = count(details.unread);
        text += &format!(
            "\n    {rows} rows are in Postgres that no reading has seen: the next run reads their \
             ranges once more"
        );
    }
    if details.vanished > 0 {
        let rows = count(details.vanished);
        text += &format!(
            "\n    {rows} rows were there when they were read and not when they were counted: \
             deleted meanwhile"
        );
    }
    text
}

/// How many rows are held for that reason, and what becomes of them.
pub fn held_line(reason: &str, rows: u64) -> String {
    let outlook = HoldReason::from_name(reason).map(HoldReason::outlook);
    let outlook = outlook.map(|outlook| format!(" ({outlook})")).unwrap_or_default();
    format!("held, {reason}: {}{outlook}", count(rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_that_does_not_add_up_is_an_error() {
        let held = [("running".to_owned(), 1)].into();
        let account = Account { seen: 3, live: 1, held, gone: 1, ..Account::default() };
        assert!(account.is_balanced());
        assert!(check(&[(Table::Runs, account.clone())]).is_ok());
        assert!(check(&[(Table::Runs, Account { seen: 4, ..account })]).is_err());
    }
}
