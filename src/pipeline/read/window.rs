//! Which window a pass reads, in which order, and whether an open pass can go on as it is. Pure.

use uuid::Uuid;

use crate::dify::conversion::Conversion;
use crate::ledger::pass::{LOOK_BACK_S, PassPlan};
use crate::record::key::KeyOrder;
use crate::record::timestamp::Timestamp;
use crate::source::catalog::Shape;
use crate::source::scope::Scope;

/// Clocks this far apart are worth a word.
const SKEW_TOLD_S: i64 = 60;

/// A walk over more rows than this is not repeated without being asked for.
pub const WALK_ROWS_MAX: i64 = 5_000_000;

/// What the operator asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    pub tenant_id: Option<Uuid>,
    pub app_id: Option<Uuid>,
    pub order: Option<KeyOrder>,
    /// Read a large table by its primary key again, whatever it costs.
    pub walk: bool,
}

/// The clocks, Unix seconds.
#[derive(Debug, Clone, Copy)]
pub struct Clocks {
    pub own: i64,
    pub postgres: i64,
    /// `None` in a dry run.
    pub sls: Option<i64>,
}

impl Clocks {
    /// The earliest of them: rows are settled only when every clock says so.
    pub fn earliest(&self) -> i64 {
        self.own.min(self.postgres).min(self.sls.unwrap_or(i64::MAX))
    }

    /// Says which clock is off, if one is.
    pub fn skew(&self) -> Option<String> {
        let sls = self.sls.map(|sls| ("SLS", sls));
        [Some(("Postgres", self.postgres)), sls]
            .into_iter()
            .flatten()
            .find(|(_, now)| (now - self.own).abs() > SKEW_TOLD_S)
            .map(|(name, now)| {
                let (by, way) =
                    ((now - self.own).abs(), if now > self.own { "ahead of" } else { "behind" });
                format!("{name}'s clock is {by} s {way} ours; the earliest one counts")
            })
    }
}

/// Why a pass cannot begin or go on: a text for the operator, with a hint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Refusal(pub String);

/// Plans a new pass. `covered_until`: what finished passes cover from the beginning.
pub fn plan(
    wish: &Wish,
    shape: &Shape,
    covered_until: Option<Timestamp>,
    settled_before: Timestamp,
) -> Result<PassPlan, Refusal> {
    let order = wish.order.unwrap_or(shape.orders[0]);
    if !shape.orders.contains(&order) {
        return Err(Refusal(format!(
            "{} has no index for the key order {}\nhint: leave --key-order out; the best order \
             that its indexes allow is {}",
            shape.table,
            order.name(),
            shape.orders[0].name(),
        )));
    }
    let since = wish.since.or(covered_until.map(|until| until.plus_s(-LOOK_BACK_S)));
    let until = wish.until.map_or(settled_before, |until| until.min(settled_before));
    if since.is_some_and(|since| since >= until) && wish.since.is_some() {
        return Err(Refusal(format!(
            "the window is empty: it would begin at {} and end at {until}\nhint: rows are read \
             when they are an hour old (--settle-s)",
            since.unwrap_or(until),
        )));
    }
    if covered_until.is_some()
        && matches!(order, KeyOrder::Walk | KeyOrder::ByRun)
        && shape.rows_estimated > WALK_ROWS_MAX
        && !wish.walk
    {
        return Err(Refusal(repeated_walk(shape)));
    }
    let Wish { tenant_id, app_id, .. } = *wish;
    Ok(PassPlan { table: shape.table, since, until, tenant_id, app_id, order })
}

fn repeated_walk(shape: &Shape) -> String {
    format!(
        "{table} has about {rows} rows and no index on (created_at, id): to find the rows of the \
         new window, all of them would be looked at again, one random page a row\n\
         hint: make the index once:  CREATE INDEX CONCURRENTLY ON {table} (created_at, id);\n\
         hint: or pay the price with --walk",
        table = shape.table,
        rows = shape.rows_estimated,
    )
}

/// Which rows a pass reads.
pub fn scope(plan: &PassPlan) -> Scope {
    let PassPlan { table, order, since, until, tenant_id, app_id } = *plan;
    Scope { table, order, since, until, tenant_id, app_id }
}

/// What stands behind an open pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing: it may be replaced.
    Fresh,
    /// A batch, a hold or a count names it.
    Begun,
    /// The run that is joined: it is not for this process to replace it.
    Joined,
}

/// Whether the open pass `open` can go on under this wish. `Ok(false)`: it may be replaced by a new
/// one.
pub fn can_go_on(
    open: &PassPlan,
    standing: Standing,
    open_conversion: &Conversion,
    wish: &Wish,
    conversion: &Conversion,
) -> Result<bool, Refusal> {
    let mut differences = open_conversion.differences(conversion);
    let mut differs = |what: &str, was: String, is: String| {
        if was != is {
            differences.push(format!("{what} is {is}, not {was}"));
        }
    };
    let id = |id: Option<Uuid>| id.map_or("not set".to_owned(), |id| id.to_string());
    differs("--tenant", id(open.tenant_id), id(wish.tenant_id));
    differs("--app", id(open.app_id), id(wish.app_id));
    if let Some(since) = wish.since {
        let was = open.since.map_or("not set".to_owned(), |since| since.to_string());
        differs("--since", was, since.to_string());
    }
    if let Some(until) = wish.until.filter(|until| *until < open.until) {
        differs("--until", open.until.to_string(), until.to_string());
    }
    if let Some(order) = wish.order {
        differs("--key-order", open.order.name().to_owned(), order.name().to_owned());
    }
    let hint = match standing {
        _ if differences.is_empty() => return Ok(true),
        Standing::Fresh => return Ok(false),
        Standing::Begun => {
            "finish it with the settings it was begun with, then run again; if Dify was upgraded \
             meanwhile, go on with --new-conversion"
        }
        Standing::Joined => {
            "join with the settings of the run that is at work; when it has ended, run without --join"
        }
    };
    Err(Refusal(format!(
        "the open pass of {} was begun with other settings:\n  {}\nhint: {hint}",
        open.table,
        differences.join("\n  "),
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dify::conversion::{LogTime, RULES};
    use crate::record::table::Table;

    fn shape(orders: &[KeyOrder], rows_estimated: i64) -> Shape {
        Shape {
            table: Table::NodeExecutions,
            columns: Vec::new(),
            orders: orders.to_vec(),
            has_offload: false,
            rows_estimated,
        }
    }

    fn conversion() -> Conversion {
        Conversion {
            rules: RULES,
            table: Table::NodeExecutions,
            columns: Vec::new(),
            put_graph: true,
            log_time: LogTime::FinishedAt,
        }
    }

    const NOW: i64 = 1_790_000_000;

    #[test]
    fn the_first_pass_has_no_beginning_and_the_next_looks_back() {
        let (now, shape) = (Timestamp::from_unix_s(NOW), shape(&[KeyOrder::Walk], 10));
        let first = plan(&Wish::default(), &shape, None, now).unwrap();
        assert_eq!((first.since, first.until), (None, now));
        let covered = Timestamp::from_unix_s(NOW - 86_400);
        let next = plan(&Wish::default(), &shape, Some(covered), now).unwrap();
        assert_eq!(next.since, Some(Timestamp::from_unix_s(NOW - 3 * 86_400)));
        let late = Wish { until: Some(now.plus_s(99)), ..Wish::default() };
        assert_eq!(plan(&late, &shape, None, now).unwrap().until, now, "only settled rows");
    }

    #[test]
    fn a_large_table_is_not_walked_twice_unasked() {
        let now = Timestamp::from_unix_s(NOW);
        let wish = Wish::default();
        for order in [KeyOrder::Walk, KeyOrder::ByRun] {
            let large = shape(&[order, KeyOrder::Walk], WALK_ROWS_MAX + 1);
            assert!(plan(&wish, &large, None, now).is_ok(), "the first time is what it is for");
            let refusal = plan(&wish, &large, Some(now), now).unwrap_err().0;
            assert!(refusal.contains("CREATE INDEX CONCURRENTLY ON workflow_node_executions"));
            let asked = Wish { walk: true, ..Wish::default() };
            assert!(plan(&asked, &large, Some(now), now).is_ok());
        }
        let indexed = shape(&[KeyOrder::Time, KeyOrder::Walk], WALK_ROWS_MAX + 1);
        assert_eq!(plan(&wish, &indexed, Some(now), now).unwrap().order, KeyOrder::Time);
    }

    #[test]
    fn an_order_without_an_index_is_refused() {
        let wish = Wish { order: Some(KeyOrder::Time), ..Wish::default() };
        let now = Timestamp::from_unix_s(NOW);
        assert!(plan(&wish, &shape(&[KeyOrder::Walk], 1), None, now).is_err());
    }

    #[test]
    fn an_open_pass_goes_on_as_it_was_begun_or_not_at_all() {
        let now = Timestamp::from_unix_s(NOW);
        let wish = Wish::default();
        let open = plan(&wish, &shape(&[KeyOrder::Walk], 1), None, now).unwrap();
        let go = |standing, wish: &Wish, conversion: &Conversion| {
            can_go_on(&open, standing, &self::conversion(), wish, conversion)
        };
        let without_graph = Conversion { put_graph: false, ..conversion() };
        assert_eq!(go(Standing::Fresh, &wish, &without_graph), Ok(false));
        for standing in [Standing::Begun, Standing::Joined] {
            assert_eq!(go(standing, &wish, &conversion()), Ok(true));
            let refusal = go(standing, &wish, &without_graph).unwrap_err().0;
            assert!(refusal.contains("graph is not written"), "{refusal}");
            let filtered = Wish { tenant_id: Some(Uuid::nil()), ..Wish::default() };
            assert!(go(standing, &filtered, &conversion()).unwrap_err().0.contains("--tenant"));
        }
    }

    #[test]
    fn the_earliest_clock_counts_and_skew_is_told() {
        let clocks = Clocks { own: 1000, postgres: 1010, sls: Some(990) };
        assert_eq!((clocks.earliest(), clocks.skew()), (990, None));
        let off = Clocks { sls: Some(2200), ..clocks };
        assert_eq!(off.earliest(), 1000);
        assert!(off.skew().unwrap().contains("SLS's clock is 1200 s ahead"));
    }
}
