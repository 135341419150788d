//! `status`: the account of each table, from the ledger alone.

use anyhow::Context as _;
use serde_json::json;
use uuid::Uuid;

use crate::commands::exit::{Ended, Exit, OrExit as _};
use crate::commands::output::{self, Format, bytes, count};
use crate::commands::setup::PostgresSettings;
use crate::ledger::Ledger;
use crate::ledger::account::Account;
use crate::ledger::hold::Reject;
use crate::ledger::live_rows::StrayRow;
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
    let ledger = Ledger::open(&settings.postgres.ledger, 1, settings.allow_fsync_off)
        .await
        .or_exit(Exit::Preflight)?;
    let mut accounts = Vec::new();
    for table in &settings.tables {
        accounts.push((*table, ledger.account(*table).await.context("read the ledger")?));
    }
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

/// Prints accounts as a table or as JSON; fails when one does not add up.
pub fn print(accounts: &[(Table, Account)], format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => {
            let tables: serde_json::Map<_, _> = accounts
                .iter()
                .map(|(table, account)| {
                    let account = serde_json::to_value(account)?;
                    Ok((table.name().to_owned(), account))
                })
                .collect::<anyhow::Result<_>>()?;
            output::line(&json!({"schema_version": 1, "tables": tables}).to_string());
        }
        Format::Text => {
            for (table, account) in accounts {
                output::line(&text(*table, account));
            }
        }
    }
    for (table, account) in accounts {
        anyhow::ensure!(
            account.is_balanced(),
            "the account of {table} does not add up: this is a bug, please report it\n\
             nothing is lost: no row leaves Postgres before it is proved one by one"
        );
    }
    Ok(())
}

/// How many rows are held for that reason, and what becomes of them.
pub fn held_line(reason: &str, rows: u64) -> String {
    let outlook = HoldReason::from_name(reason).map(HoldReason::outlook);
    let outlook = outlook.map(|outlook| format!(" ({outlook})")).unwrap_or_default();
    format!("held, {reason}: {}{outlook}", count(rows))
}

fn text(table: Table, account: &Account) -> String {
    let in_doubt = match account.in_the_air {
        0 => String::new(),
        rows => format!(" + {} in doubt", count(rows)),
    };
    let adopted = match account.adopted {
        0 => String::new(),
        rows => format!(" + {} adopted by an audit", count(rows)),
    };
    let part = |rows: u64, what: &str| match rows {
        0 => String::new(),
        rows => format!(" + {} {what}", count(rows)),
    };
    let past = part(account.lost, "lost") + &part(account.earlier, "of an earlier logstore");
    let mut text = format!(
        "{table}: {} rows seen{adopted} = {} in SLS{in_doubt}{past} + {} held + {} already + {} gone",
        count(account.seen),
        count(account.live.saturating_sub(account.in_the_air)),
        count(account.held_rows()),
        count(account.already),
        count(account.gone),
    );
    text += &format!(
        "\n    {} batches, {} before compression",
        count(account.batches),
        bytes(account.raw_bytes)
    );
    if account.lost > 0 {
        text +=
            "\n    lost: an audit did not find them in SLS; `run --resend-lost` sends them again";
    }
    text += &match &account.covered_until {
        Some(until) => format!("\n    covered: all rows created before {until}"),
        None => "\n    covered: no pass from the beginning is done yet".to_owned(),
    };
    for (reason, rows) in &account.held {
        text += &format!("\n    {}", held_line(reason, *rows));
    }
    if account.doubled > 0 {
        let rows = count(account.doubled);
        text +=
            &format!("\n    {rows} rows are in SLS twice: `dify-sls-backfill status` lists them");
    }
    if account.not_json > 0 {
        let columns = count(account.not_json);
        text += &format!("\n    {columns} JSON columns hold no JSON; they went through unchanged");
    }
    if account.unread > 0 {
        let rows = count(account.unread);
        text += &format!(
            "\n    {rows} rows are in Postgres that no reading has seen: the next run reads their \
             ranges once more"
        );
    }
    if account.vanished > 0 {
        let rows = count(account.vanished);
        text += &format!(
            "\n    {rows} rows were there when they were read and not when they were counted: \
             deleted meanwhile"
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_that_does_not_add_up_is_an_error() {
        let held = [("running".to_owned(), 1)].into();
        let account = Account { seen: 3, live: 1, held, gone: 1, ..Account::default() };
        assert!(account.is_balanced());
        assert!(print(&[(Table::Runs, account.clone())], Format::Text).is_ok());
        assert!(print(&[(Table::Runs, Account { seen: 4, ..account })], Format::Json).is_err());
    }
}
