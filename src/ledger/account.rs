//! The account of a table: rows seen + adopted = in live batches + lost + of an earlier logstore +
//! held + already there + gone.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::Serialize;
use sqlx::Row as _;

use crate::ledger::Ledger;
use crate::pg;
use crate::record::hold::HoldReason;
use crate::record::table::Table;

/// Where every row that was seen has gone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Account {
    /// Rows read, over all passes.
    pub seen: u64,
    /// Rows of live batches that no pass has seen: an audit found them in SLS.
    pub adopted: u64,
    /// Rows in live batches of the logstore as it is now.
    pub live: u64,
    /// Rows in batches that were in SLS and are not there any more, though the TTL does not tell why.
    pub lost: u64,
    /// Rows in batches that went into the logstore before it was made anew, and are not lost: their
    /// TTL is over, or no audit has looked yet.
    pub earlier: u64,
    /// Those of them that may or may not be in SLS yet.
    #[serde(rename = "in_doubt")]
    pub in_the_air: u64,
    /// Rows held, by reason; most of those that are too old are only counted.
    pub held: BTreeMap<String, u64>,
    /// Rows that a live batch or an open hold had already when they were read.
    pub already: u64,
    /// Rows that were held, and have not been in the table for long.
    pub gone: u64,
    /// Bytes of the live batches before compression.
    pub raw_bytes: u64,
    /// Live batches.
    pub batches: u64,
    /// Rows in two live batches, as an audit has found: SLS holds them twice.
    pub doubled: u64,
    /// JSON columns whose text is not JSON.
    pub not_json: u64,
    /// Rows that a count of Postgres has found in ranges beyond those that were read there: no
    /// reading has seen them yet.
    pub unread: u64,
    /// Rows that were read in ranges and not found by the count afterwards: deleted meanwhile.
    pub vanished: u64,
    /// Up to where (UTC) finished passes without a filter cover the table from its beginning;
    /// `None`: none does.
    pub covered_until: Option<String>,
}

impl Account {
    /// Rows held, whatever the reason.
    pub fn held_rows(&self) -> u64 {
        self.held.values().sum()
    }

    /// Whether every row seen is accounted for.
    pub fn is_balanced(&self) -> bool {
        self.seen + self.adopted
            == self.live + self.lost + self.earlier + self.held_rows() + self.already + self.gone
    }
}

impl Ledger {
    /// The account of `table` over all passes, in one snapshot.
    pub async fn account(&self, table: Table) -> anyhow::Result<Account> {
        let context = || format!("add up the account of {table}");
        let covered = self.covered_until(table).await?;
        let mut tx = self.begin_count().await?;
        let ranges = pg::statement(
            "SELECT coalesce(sum(r.rows_seen), 0)::int8 AS seen, \
             coalesce(sum(r.rows_already), 0)::int8 AS already, \
             coalesce(sum(r.rows_gone), 0)::int8 AS gone, \
             coalesce(sum(r.rows_expired), 0)::int8 AS expired, \
             coalesce(sum(greatest(r.rows_counted - r.rows_read, 0)), 0)::int8 AS unread, \
             coalesce(sum(greatest(r.rows_read - r.rows_counted, 0)), 0)::int8 AS vanished \
             FROM sls_backfill.range r JOIN sls_backfill.pass p ON p.id = r.pass_id \
             WHERE p.table_name = $1",
        )
        .bind(table.name())
        .fetch_one(&mut *tx)
        .await
        .with_context(context)?;
        let batches = pg::statement(
            "SELECT coalesce(sum(rows) FILTER (WHERE kind = 'live'), 0)::int8 AS live, \
             coalesce(sum(rows) FILTER (WHERE kind = 'lost'), 0)::int8 AS lost, \
             coalesce(sum(rows) FILTER (WHERE kind = 'earlier'), 0)::int8 AS earlier, \
             coalesce(sum(adopted_rows), 0)::int8 AS adopted, \
             coalesce(sum(rows) FILTER (WHERE state = 'intent'), 0)::int8 AS in_the_air, \
             coalesce(sum(raw_bytes) FILTER (WHERE kind = 'live'), 0)::int8 AS raw_bytes, \
             coalesce(sum(doubled_rows) FILTER (WHERE kind = 'live'), 0)::int8 AS doubled, \
             coalesce(sum(not_json) FILTER (WHERE kind = 'live'), 0)::int8 AS not_json, \
             count(*) FILTER (WHERE kind = 'live') AS batches \
             FROM sls_backfill.batch b \
             LEFT JOIN (SELECT logstore, max(number) AS number FROM sls_backfill.generation \
               GROUP BY logstore) g ON g.logstore = b.logstore, \
             LATERAL (SELECT CASE WHEN state IN ('split', 'abandoned') THEN 'given up' \
               WHEN state = 'lost' THEN 'lost' \
               WHEN state <> 'intent' AND generation < g.number THEN 'earlier' \
               ELSE 'live' END AS kind) k \
             WHERE table_name = $1 AND (kind <> 'given up' OR adopted_rows <> 0)",
        )
        .bind(table.name())
        .fetch_one(&mut *tx)
        .await
        .with_context(context)?;
        let holds = pg::statement(
            "SELECT reason, count(*) AS rows FROM sls_backfill.hold \
             WHERE table_name = $1 AND state = 'open' GROUP BY reason",
        )
        .bind(table.name())
        .fetch_all(&mut *tx)
        .await
        .with_context(context)?;
        let number = |row: &sqlx::postgres::PgRow, name: &str| -> anyhow::Result<u64> {
            Ok(u64::try_from(row.try_get::<i64, _>(name)?)?)
        };
        let mut held = holds
            .iter()
            .map(|row| Ok((row.try_get("reason")?, number(row, "rows")?)))
            .collect::<anyhow::Result<BTreeMap<String, u64>>>()?;
        let expired = number(&ranges, "expired")?;
        if expired > 0 {
            *held.entry(HoldReason::Expired.name().to_owned()).or_default() += expired;
        }
        Ok(Account {
            covered_until: covered.map(|until| until.to_string()),
            seen: number(&ranges, "seen")?,
            already: number(&ranges, "already")?,
            gone: number(&ranges, "gone")?,
            unread: number(&ranges, "unread")?,
            vanished: number(&ranges, "vanished")?,
            adopted: number(&batches, "adopted")?,
            live: number(&batches, "live")?,
            lost: number(&batches, "lost")?,
            earlier: number(&batches, "earlier")?,
            in_the_air: number(&batches, "in_the_air")?,
            raw_bytes: number(&batches, "raw_bytes")?,
            doubled: number(&batches, "doubled")?,
            not_json: number(&batches, "not_json")?,
            batches: number(&batches, "batches")?,
            held,
        })
    }
}
