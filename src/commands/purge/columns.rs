//! Which columns keep rows from being purged: what their logs leave out, what came to the table since
//! they were sent, and what it has lost. Pure.

use anyhow::Context as _;

use crate::commands::output::count;
use crate::dify::conversion::Conversion;
use crate::ledger::purge_plan::ConvertedRows;
use crate::record::table::Column;

/// What there is to say of the columns of proved rows, one sentence each. `converted`: how their
/// logs were made; `now`: the table's columns.
pub(in crate::commands::purge) fn column_notes(
    converted: &[ConvertedRows],
    now: &[Column],
) -> anyhow::Result<Vec<String>> {
    let mut notes = Vec::new();
    for ConvertedRows { conversion, rows, .. } in converted {
        let conversion: Conversion = serde_json::from_value(conversion.clone())
            .context("read a conversion from the ledger")?;
        let rows = count(*rows);
        let lost: Vec<_> = conversion
            .columns
            .iter()
            .filter(|column| !now.contains(column))
            .map(|column| column.name.as_str())
            .collect();
        if !lost.is_empty() {
            notes.push(format!(
                "{rows} rows stay: their logs were made of columns that the table has lost, or has \
                 with another type: {}",
                lost.join(", ")
            ));
            continue;
        }
        let dropped = conversion.dropped_columns();
        if !dropped.is_empty() {
            let names = dropped.join(", ");
            notes.push(format!(
                "{rows} rows have logs that leave {names} out \
                 (LOGSTORE_ENABLE_PUT_GRAPH_FIELD=false): they stay unless it is empty, or you say \
                 --drop {names}"
            ));
        }
        let is_new = |column: &&Column| conversion.columns.iter().all(|c| c.name != column.name);
        let new: Vec<_> = now.iter().filter(is_new).map(|column| column.name.as_str()).collect();
        if !new.is_empty() {
            notes.push(format!(
                "{rows} rows were sent before the table had {}: those stay that have a value there",
                new.join(", ")
            ));
        }
    }
    Ok(notes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dify::conversion::{LogTime, RULES};
    use crate::record::table::{ColumnKind, Table};

    fn column(name: &str) -> Column {
        Column { name: name.to_owned(), kind: ColumnKind::Text }
    }

    #[test]
    fn each_change_of_the_columns_is_told_once() {
        let sent = |put_graph| {
            let columns = vec![column("id"), column("graph")];
            let (table, log_time) = (Table::Runs, LogTime::FinishedAt);
            let (rules, revision) = (RULES, 0);
            let conversion = Conversion { rules, table, columns, put_graph, log_time, revision };
            let conversion = serde_json::to_value(conversion).unwrap();
            [ConvertedRows { conversion, rows: 7, batches: 1 }]
        };
        let notes = |put_graph, now: &[Column]| column_notes(&sent(put_graph), now).unwrap();
        assert_eq!(notes(true, &[column("id"), column("graph")]), Vec::<String>::new());
        let dropped = notes(false, &[column("id"), column("graph")]);
        assert!(matches!(dropped.as_slice(), [one] if one.contains("--drop graph")), "{dropped:?}");
        let later = notes(true, &[column("graph"), column("id"), column("later")]);
        assert!(matches!(later.as_slice(), [one] if one.contains("had later:")), "{later:?}");
        let lost = notes(false, &[column("id"), column("later")]);
        assert!(matches!(lost.as_slice(), [one] if one.ends_with("type: graph")), "{lost:?}");
    }
}
