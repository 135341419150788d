//! Rejects files: rows that need attention, as JSON lines that `run --retry` reads.

use std::fs::Permissions;
use std::io::{BufRead as _, BufReader, BufWriter, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use anyhow::Context as _;
use uuid::Uuid;

use crate::ledger::Ledger;
use crate::ledger::hold::Reject;
use crate::record::table::Table;

/// Rows that one statement reads.
const PAGE_ROWS: u32 = 1000;

/// Writes the rejected rows of `tables` into the file, which only its owner may read; gives how
/// many there are. An earlier file of that name is replaced.
pub async fn write(ledger: &Ledger, tables: &[Table], path: &Path) -> anyhow::Result<u64> {
    let context = || format!("write the rejects file {}", path.display());
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    let file = file.with_context(context)?;
    // The mode above counts only for a file that is new.
    file.set_permissions(Permissions::from_mode(0o600)).with_context(context)?;
    let mut file = BufWriter::new(file);
    let mut rows = 0;
    for table in tables {
        let mut after = Uuid::nil();
        loop {
            let page = ledger.rejects(*table, after, PAGE_ROWS).await?;
            let Some(last) = page.last() else { break };
            after = last.id;
            rows += page.len() as u64;
            for reject in &page {
                serde_json::to_writer(&mut file, reject).with_context(context)?;
                file.write_all(b"\n").with_context(context)?;
            }
        }
    }
    file.flush().with_context(context)?;
    Ok(rows)
}

/// Has the rows that the file names tried again; gives how many of them are held.
pub async fn requeue(ledger: &Ledger, path: &Path) -> anyhow::Result<u64> {
    let file = std::fs::File::open(path)
        .with_context(|| format!("read the rejects file {}", path.display()))?;
    let mut asked = 0;
    let mut lines = BufReader::new(file).lines().enumerate().peekable();
    while lines.peek().is_some() {
        let mut page: Vec<(Table, Uuid)> = Vec::new();
        for (number, line) in lines.by_ref().take(PAGE_ROWS as usize) {
            let context = || format!("read line {} of {}", number + 1, path.display());
            let line = line.with_context(context)?;
            if line.trim().is_empty() {
                continue;
            }
            let reject: Reject = serde_json::from_str(&line).with_context(context)?;
            let table = Table::from_name(&reject.table)
                .with_context(|| format!("{} is not a table of Dify's history", reject.table))
                .with_context(context)?;
            page.push((table, reject.id));
        }
        for table in Table::ALL {
            let of_table = page.iter().filter(|(of, _)| *of == table);
            let ids: Vec<Uuid> = of_table.map(|(_, id)| *id).collect();
            if !ids.is_empty() {
                asked += ledger.ask_for(table, &ids).await?;
            }
        }
    }
    Ok(asked)
}
