//! Says, before the first row goes, which rows are older than the logstores keep logs.

use std::collections::BTreeMap;

use crate::commands::output::count;
use crate::commands::run_settings::RunSettings;
use crate::dify::conversion::LogTime;
use crate::ledger::generation::LogstoreFacts;
use crate::pipeline::send::age::kept_since;
use crate::record::key::KeyOrder;
use crate::record::table::Table;
use crate::record::timestamp::Timestamp;
use crate::source::Source;
use crate::source::catalog::Shape;
use crate::source::scope::Scope;

/// Which rows' logs a logstore keeps, by when the rows finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Those that finished then or later.
    Since(Timestamp),
    /// All, or all are to be sent.
    All,
    /// SLS does not tell how long it keeps logs.
    Unknown,
}

impl Kept {
    /// Rows that finished earlier are not to be sent; `None`: there is no such bound.
    pub fn bound(self) -> Option<Timestamp> {
        match self {
            Self::Since(since) => Some(since),
            Self::All | Self::Unknown => None,
        }
    }

    /// Rows that were too old once and finished then or later are not any more; `None`: nobody
    /// knows.
    pub fn since(self) -> Option<Timestamp> {
        match self {
            Self::Since(since) => Some(since),
            Self::All => Some(Timestamp::NEG_INFINITY),
            Self::Unknown => None,
        }
    }
}

/// Which rows' logs are kept, by table. Warns of rows that are older, if their logs are to have the
/// time when they finished.
pub async fn kept(
    settings: &RunSettings,
    logstores: &[LogstoreFacts],
    source: &Source,
    shapes: &[Shape],
    now: Timestamp,
) -> anyhow::Result<BTreeMap<Table, Kept>> {
    let mut kept = BTreeMap::new();
    for shape in shapes {
        let Some(ttl_days) = ttl_days(logstores, shape.table.logstore()) else {
            kept.insert(shape.table, Kept::Unknown);
            continue;
        };
        let Some(since) = kept_since(ttl_days, now) else {
            kept.insert(shape.table, Kept::All);
            continue;
        };
        let oldest = source.oldest(shape).await?.max(settings.wish.since);
        let by_finish = settings.log_time == LogTime::FinishedAt;
        if by_finish && oldest.is_some_and(|oldest| oldest < since) {
            let older = Scope {
                table: shape.table,
                order: KeyOrder::Walk,
                since: settings.wish.since,
                until: since,
                tenant_id: settings.wish.tenant_id,
                app_id: settings.wish.app_id,
            };
            let rows = source.rows_estimated(&older).await?;
            tracing::warn!("{}", too_short(shape.table, ttl_days, since, rows, settings));
        }
        let of_table =
            if settings.beyond_ttl || !by_finish { Kept::All } else { Kept::Since(since) };
        kept.insert(shape.table, of_table);
    }
    Ok(kept)
}

/// How many days the logstore keeps logs; `None` when SLS does not tell.
fn ttl_days(logstores: &[LogstoreFacts], logstore: &str) -> Option<i64> {
    let facts = logstores.iter().find(|facts| facts.logstore == logstore)?;
    if facts.ttl_days.is_none() {
        tracing::warn!("it is not known how long {logstore} keeps logs");
    }
    facts.ttl_days.map(i64::from)
}

fn too_short(
    table: Table,
    ttl_days: i64,
    since: Timestamp,
    rows: u64,
    settings: &RunSettings,
) -> String {
    let logstore = table.logstore();
    let rows = count(rows);
    let what = format!(
        "{logstore} keeps logs for {ttl_days} days, and {table} has about {rows} rows from before \
         {since}"
    );
    match settings.beyond_ttl {
        true => format!(
            "{what}: they are sent (--beyond-ttl), but SLS may drop them, and its search may not \
             find them"
        ),
        false => format!(
            "{what}: these are held `expired`, and counted\n\
             hint: raise the TTL of {logstore} in SLS's console (3650 days is for ever) and run \
             again, which takes them then; or send them all the same with --beyond-ttl, or with the time of sending as \
             their log time: --log-time ingest"
        ),
    }
}
