//! The account of a table: rows seen + adopted = in live batches + lost + of an earlier logstore +
//! held + already there + gone.
//!
//! A row that several passes have read is `already` there in all but the first. So what all passes
//! have seen says little after a year of nights; [`Account::each_once`] counts every row once, and
//! [`RunAccount`] what one run has done.

use std::collections::BTreeMap;

use anyhow::Context as _;
use serde::Serialize;
use sqlx::Row as _;
use sqlx::postgres::PgRow;

use crate::ledger::Ledger;
use crate::pg::{self, Tx};
use crate::record::hold::HoldReason;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;

/// The batches of a table that an account counts, with what it counts each as: `kind`.
pub(in crate::ledger) const BATCHES_BY_KIND: &str = "FROM sls_backfill.batch b \
    LEFT JOIN (SELECT logstore, max(number) AS number FROM sls_backfill.generation \
      GROUP BY logstore) g ON g.logstore = b.logstore, \
    LATERAL (SELECT CASE WHEN state IN ('split', 'abandoned') THEN 'given up' \
      WHEN revises IS NOT NULL THEN 'revision' \
      WHEN state = 'lost' THEN 'lost' \
      WHEN state <> 'intent' AND generation < g.number THEN 'earlier' \
      ELSE 'live' END AS kind) k \
    WHERE table_name = $1 AND (kind <> 'given up' OR adopted_rows <> 0)";

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
    /// Newer states of rows that were sent once more; the rows are among `live` once.
    pub revisions: u64,
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

    /// The same with every row counted once, however many passes have read it.
    #[must_use]
    pub fn each_once(self) -> Self {
        Self { seen: self.seen.saturating_sub(self.already), already: 0, ..self }
    }
}

/// What has changed between two accounts: rows seen + held before + in doubt before + adopted = in
/// SLS + in doubt + past + held + already there + gone. A number is below 0 where earlier work was undone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RunAccount {
    /// Rows read by this run.
    pub seen: i64,
    /// Rows that were held when it began.
    pub held_before: i64,
    pub in_doubt_before: i64,
    pub adopted: i64,
    /// Rows that it brought into SLS, or found there.
    pub stored: i64,
    pub in_doubt: i64,
    /// Rows that were lost, or are of an earlier logstore now; below 0: that were.
    pub past: i64,
    /// Rows that are lost, now.
    pub lost: u64,
    /// Rows that are held now, whoever has held them, by reason.
    pub held: BTreeMap<String, u64>,
    /// Rows that it read and that an earlier run had accounted for.
    pub already: i64,
    pub gone: i64,
    /// Rows that are in two live batches, now.
    pub doubled: u64,
    /// Bytes before compression, and batches, of this run.
    pub raw_bytes: i64,
    pub batches: i64,
    /// Rows that were sent once more after they had changed.
    pub revisions: i64,
    pub not_json: i64,
    /// Rows that no reading has seen, now.
    pub unread: u64,
    pub vanished: i64,
    pub covered_until: Option<String>,
}

impl RunAccount {
    /// What lies between `before` and `after`.
    pub fn between(before: &Account, after: &Account) -> Self {
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let more = |after: u64, before: u64| signed(after) - signed(before);
        let (in_doubt_before, in_doubt) = (signed(before.in_the_air), signed(after.in_the_air));
        Self {
            seen: more(after.seen, before.seen),
            held_before: signed(before.held_rows()),
            in_doubt_before,
            adopted: more(after.adopted, before.adopted),
            stored: more(after.live, before.live) + in_doubt_before - in_doubt,
            in_doubt,
            past: more(after.lost + after.earlier, before.lost + before.earlier),
            lost: after.lost,
            held: after.held.clone(),
            already: more(after.already, before.already),
            gone: more(after.gone, before.gone),
            doubled: after.doubled,
            raw_bytes: more(after.raw_bytes, before.raw_bytes),
            batches: more(after.batches, before.batches),
            revisions: more(after.revisions, before.revisions),
            not_json: more(after.not_json, before.not_json),
            unread: after.unread,
            vanished: more(after.vanished, before.vanished),
            covered_until: after.covered_until.clone(),
        }
    }
}

impl Ledger {
    /// The account of `table` over all passes, in one snapshot.
    pub async fn account(&self, table: Table) -> anyhow::Result<Account> {
        let covered = self.covered_until(table).await?;
        let mut tx = self.begin_count().await?;
        account_in(&mut tx, table, covered).await
    }
}

/// The account of `table` as that transaction sees it.
pub(in crate::ledger) async fn account_in(
    tx: &mut Tx,
    table: Table,
    covered: Option<Timestamp>,
) -> anyhow::Result<Account> {
    let context = || format!("add up the account of {table}");
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
    .fetch_one(&mut **tx)
    .await
    .with_context(context)?;
    let batches = pg::made_statement(&format!(
        "SELECT coalesce(sum(rows) FILTER (WHERE kind = 'live'), 0)::int8 AS live, \
         coalesce(sum(rows) FILTER (WHERE kind = 'revision'), 0)::int8 AS revisions, \
         coalesce(sum(rows) FILTER (WHERE kind = 'lost'), 0)::int8 AS lost, \
         coalesce(sum(rows) FILTER (WHERE kind = 'earlier'), 0)::int8 AS earlier, \
         coalesce(sum(adopted_rows), 0)::int8 AS adopted, \
         coalesce(sum(rows) FILTER (WHERE kind = 'live' AND state = 'intent'), 0)::int8 \
           AS in_the_air, \
         coalesce(sum(raw_bytes) FILTER (WHERE kind = 'live'), 0)::int8 AS raw_bytes, \
         coalesce(sum(doubled_rows) FILTER (WHERE kind = 'live'), 0)::int8 AS doubled, \
         coalesce(sum(not_json) FILTER (WHERE kind = 'live'), 0)::int8 AS not_json, \
         count(*) FILTER (WHERE kind = 'live') AS batches {BATCHES_BY_KIND}"
    ))
    .bind(table.name())
    .fetch_one(&mut **tx)
    .await
    .with_context(context)?;
    let holds = pg::statement(
        "SELECT reason, count(*) AS rows FROM sls_backfill.hold \
         WHERE table_name = $1 AND state = 'open' GROUP BY reason",
    )
    .bind(table.name())
    .fetch_all(&mut **tx)
    .await
    .with_context(context)?;
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
        revisions: number(&batches, "revisions")?,
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

pub(in crate::ledger) fn number(row: &PgRow, name: &str) -> anyhow::Result<u64> {
    Ok(u64::try_from(row.try_get::<i64, _>(name)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(seen: u64, live: u64, running: u64, already: u64) -> Account {
        let held = [("running".to_owned(), running)].into();
        Account { seen, live, held, already, ..Account::default() }
    }

    #[test]
    fn what_a_look_back_reads_again_is_counted_once() {
        let night = account(6516, 6100, 50, 366);
        assert!(night.is_balanced());
        let once = night.each_once();
        assert!(once.is_balanced());
        assert_eq!((once.seen, once.already), (6150, 0));
    }

    #[test]
    fn a_run_accounts_for_what_it_has_done_itself() {
        let before = account(6150, 6100, 50, 0);
        let mut after = account(6526, 6135, 25, 366);
        after.in_the_air = 5;
        assert!(before.is_balanced() && after.is_balanced());
        let run = RunAccount::between(&before, &after);
        let held: u64 = run.held.values().sum();
        assert_eq!((run.seen, run.held_before, run.stored, run.in_doubt), (376, 50, 30, 5));
        let right = run.stored + run.in_doubt + held as i64 + run.already + run.gone;
        assert_eq!(run.seen + run.held_before + run.in_doubt_before + run.adopted, right);
    }
}
