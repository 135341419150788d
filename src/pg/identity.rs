//! What tells a Postgres from its copies and from its own past.
//!
//! ```text
//! system    made by initdb, kept by replicas, base backups and snapshots
//! timeline  grows with every promotion of a replica and every recovery to a point in time
//! database  object id of the database: another one after CREATE DATABASE … TEMPLATE or a restore
//! book      object id of the ledger's first table: another one after a restore of the schema
//! ```
//!
//! A snapshot of a disk keeps all four, so being equal proves nothing; being different does.

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use sqlx::{Postgres, Row as _, Transaction};

use crate::pg;

/// Who a database is. What the server does not tell this user stays `None` and is not compared.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub system: Option<String>,
    /// `None` on a replica, too: it follows whoever is its primary.
    pub timeline: Option<String>,
    pub database: Option<String>,
    /// `None` for a database that is asked as a source.
    pub book: Option<String>,
}

impl Identity {
    /// How `now` differs from this, one sentence each; empty when nothing speaks against it.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let parts = [
            ("its Postgres has another system identifier", &self.system, &now.system),
            ("its Postgres is on another timeline", &self.timeline, &now.timeline),
            ("it is in another database", &self.database, &now.database),
            ("its tables were recreated", &self.book, &now.book),
        ];
        parts
            .into_iter()
            .filter_map(|(what, then, now)| {
                let (then, now) = (then.as_ref()?, now.as_ref()?);
                (then != now).then(|| format!("{what} ({now}, it was {then})"))
            })
            .collect()
    }

    /// How `now` is another database than this; a promotion or a recovery in place leaves it the
    /// same one.
    pub fn differences_in_place(&self, now: &Self) -> Vec<String> {
        Self { timeline: None, book: None, ..self.clone() }.differences(now)
    }

    /// This, and what it does not know from `earlier`.
    pub fn or(self, earlier: Self) -> Self {
        Self {
            system: self.system.or(earlier.system),
            timeline: self.timeline.or(earlier.timeline),
            database: self.database.or(earlier.database),
            book: self.book.or(earlier.book),
        }
    }
}

/// The timeline of a server that is no replica: the first 8 of the 24 digits of a WAL file's name.
/// Cheap enough for any statement: 0.2 µs (Postgres 15).
pub const TIMELINE: &str = "left(pg_walfile_name(pg_current_wal_lsn()), 8)";

/// The timeline; `None` on a replica, and where this user may not ask for it.
pub async fn timeline(tx: &mut Transaction<'_, Postgres>) -> anyhow::Result<Option<String>> {
    let context = "ask Postgres for its timeline";
    let row = pg::statement(
        "SELECT NOT pg_is_in_recovery() AND has_function_privilege('pg_walfile_name(pg_lsn)', \
         'EXECUTE') AND has_function_privilege('pg_current_wal_lsn()', 'EXECUTE') AS is_told",
    )
    .fetch_one(&mut **tx)
    .await
    .context(context)?;
    if !row.try_get::<bool, _>("is_told")? {
        return Ok(None);
    }
    let row = pg::made_statement(&format!("SELECT {TIMELINE} AS timeline"));
    Ok(Some(row.fetch_one(&mut **tx).await.context(context)?.try_get("timeline")?))
}

/// Asks the server of `tx` who it is, and where a ledger is in it if there is one.
pub async fn identity(tx: &mut Transaction<'_, Postgres>) -> anyhow::Result<Identity> {
    let context = "ask Postgres who it is";
    let row = pg::statement(
        "SELECT (SELECT oid::text FROM pg_database WHERE datname = current_database()) AS database, \
         to_regclass('sls_backfill.ledger')::oid::text AS book, \
         has_function_privilege('pg_control_system()', 'EXECUTE') AS tells_system",
    )
    .fetch_one(&mut **tx)
    .await
    .context(context)?;
    let mut found = Identity {
        database: row.try_get("database")?,
        book: row.try_get("book")?,
        timeline: timeline(tx).await?,
        ..Identity::default()
    };
    if row.try_get("tells_system")? {
        let row = pg::statement("SELECT system_identifier::text AS it FROM pg_control_system()");
        found.system = Some(row.fetch_one(&mut **tx).await.context(context)?.try_get("it")?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_both_know_is_compared() {
        let known = |text: &str| Some(text.to_owned());
        let then = Identity {
            system: known("7"),
            timeline: known("00000001"),
            database: known("16384"),
            book: None,
        };
        assert_eq!(then.differences(&then), Vec::<String>::new());
        assert_eq!(then.differences(&Identity::default()), Vec::<String>::new());
        let now = Identity { timeline: known("00000002"), book: known("5"), ..Identity::default() };
        assert_eq!(
            then.differences(&now),
            ["its Postgres is on another timeline (00000002, it was 00000001)"]
        );
        assert_eq!(then.differences_in_place(&now), Vec::<String>::new());
        let elsewhere = Identity { system: known("8"), ..now.clone() };
        assert_eq!(then.differences_in_place(&elsewhere).len(), 1);
        let merged = now.or(then.clone());
        assert_eq!((merged.system, merged.book), (known("7"), known("5")));
    }
}
