//! The doctor's checks of Postgres: source, tables, ledger.

use crate::commands::connections::Demand;
use crate::commands::doctor::check::Check;
use crate::commands::output::count;
use crate::commands::run_settings::Workers;
use crate::commands::setup::{PostgresSettings, conversion};
use crate::dify::conversion::LogTime;
use crate::dify::fields::Fields;
use crate::ledger::inspection::{Inspection, Standbys, Standing, inspect};
use crate::ledger::stop::Seqid;
use crate::pg::Address;
use crate::pg::identity::Identity;
use crate::pg::pool::{PoolSize, Room, room_at};
use crate::pipeline::read::window::WALK_ROWS_MAX;
use crate::record::key::KeyOrder;
use crate::record::table::Table;
use crate::source::catalog::Shape;
use crate::source::{Limits, Source};

/// Checks the source; gives it, and its identity, if it can be reached.
pub async fn check_source(
    address: &Address,
    checks: &mut Vec<Check>,
    shapes: &mut Vec<Shape>,
) -> Option<(Source, Identity)> {
    let source = match Source::connect(address, PoolSize::few(1), &Limits::default()).await {
        Ok(source) => source,
        Err(error) => {
            checks.push(Check::error("source", &error));
            return None;
        }
    };
    let server = &source.server;
    let at = format!("database {} at {address}, encoding {}", server.database, server.encoding);
    checks.push(match server.encoding.as_str() {
        "SQL_ASCII" => Check::warn(
            "source",
            at,
            "rows whose texts are not UTF-8 are held `invalid`; all others are moved",
        ),
        _ => Check::ok("source", at),
    });
    for table in Table::ALL {
        checks.push(check_table(&source, table, shapes).await);
    }
    match source.identity().await {
        Ok(identity) => Some((source, identity)),
        Err(error) => {
            checks.push(Check::error("source", &error));
            None
        }
    }
}

async fn check_table(source: &Source, table: Table, shapes: &mut Vec<Shape>) -> Check {
    let name = format!("table {table}");
    let shape = match source.shape(table).await {
        Ok(Some(shape)) => shape,
        Ok(None) => return Check::fail(&name, "is not there", "is it Dify's database?"),
        Err(error) => return Check::error(&name, &error),
    };
    if let Err(unfit) = Fields::of(&conversion(&shape, true, LogTime::FinishedAt)) {
        return Check::fail(&name, unfit.to_string(), "is it Dify's database?");
    }
    let order = shape.orders[0];
    let found = format!(
        "{} columns, about {} rows, read in the order {}",
        shape.columns.len(),
        count(u64::try_from(shape.rows_estimated).unwrap_or(0)),
        order.name()
    );
    let is_slow = order == KeyOrder::Walk && shape.rows_estimated > WALK_ROWS_MAX;
    shapes.push(shape);
    match is_slow {
        true => Check::warn(
            &name,
            found,
            &format!(
                "no index helps to find the rows of a window, so every run reads all keys; \
                 create one:  CREATE INDEX CONCURRENTLY ON {table} (created_at, id);"
            ),
        ),
        false => Check::ok(&name, found),
    }
}

/// Checks how many processes the source's server carries; the ledger's, where it is another one, is
/// asked by none but `run`.
pub async fn check_connections(postgres: &PostgresSettings, checks: &mut Vec<Check>) {
    // Who cannot connect was told so.
    let Ok(room) = room_at(&postgres.source).await else { return };
    checks.push(about_room(room));
}

fn about_room(room: Room) -> Check {
    let name = "connections";
    let workers = Workers::BY_NEED;
    let of_process = Demand::run(workers).connections();
    let found = format!("{} of {} are free", room.free, room.allowed);
    let hint = "each process with --connections 4 takes four; or raise max_connections, or wait \
                until others have ended";
    match (room.is_enough(), room.processes(of_process)) {
        (false, _) => Check::fail(name, format!("{found}, too few for a run beside others"), hint),
        (true, 0) => Check::warn(
            name,
            format!("{found}: room for one process with fewer than the usual {of_process}"),
            hint,
        ),
        (true, processes) => Check::ok(
            name,
            format!(
                "{found}: room for {processes} processes of {} workers, with {of_process} \
                 connections each",
                workers.at_first
            ),
        ),
    }
}

/// Checks the ledger; gives how it stands if there is one.
pub async fn check_ledger(
    address: &Address,
    allow_fsync_off: bool,
    source: Option<Identity>,
    checks: &mut Vec<Check>,
) -> Option<Standing> {
    let inspection = match inspect(address).await {
        Ok(inspection) => inspection,
        Err(error) => {
            checks.push(Check::error("ledger", &error));
            return None;
        }
    };
    checks.push(check_server(&inspection, allow_fsync_off));
    checks.push(check_standbys(inspection.standbys));
    let standing = inspection.standing?;
    checks.push(check_standing(&standing, source.as_ref()));
    Some(standing)
}

fn check_server(inspection: &Inspection, allow_fsync_off: bool) -> Check {
    let name = "ledger";
    if inspection.is_replica {
        let hint = "keep the ledger on the primary, or elsewhere: --ledger-url";
        return Check::fail(name, "its Postgres is a replica, which takes no writes", hint);
    }
    if !inspection.fsync && !allow_fsync_off {
        let hint = "set fsync = on, or keep the ledger elsewhere with --ledger-url";
        return Check::fail(name, "its Postgres runs with fsync = off: a crash loses it", hint);
    }
    match (&inspection.standing, inspection.may_write) {
        (_, false) => Check::fail(
            name,
            "this user may not write it",
            "GRANT CREATE ON DATABASE to this user, or keep the ledger elsewhere: --ledger-url",
        ),
        (None, true) => Check::ok(name, "none yet; `dify-sls-backfill init` creates it"),
        (Some(standing), true) => {
            let project = standing.project.as_deref().unwrap_or("no project yet");
            Check::ok(name, format!("{}, for {project}", standing.id))
        }
    }
}

/// What a failover of the ledger's server would cost.
fn check_standbys(standbys: Standbys) -> Check {
    let name = "standbys";
    match (standbys.warning(), standbys.count) {
        (Some((found, hint)), _) => {
            Check::warn(name, format!("the ledger's Postgres {found}"), hint)
        }
        (None, 0) => Check::ok(name, "none follows the ledger's Postgres"),
        (None, count) => Check::ok(name, format!("{count}; commits wait for them")),
    }
}

/// Whether the ledger may send.
fn check_standing(standing: &Standing, source: Option<&Identity>) -> Check {
    let name = "epoch";
    let hint =
        "`dify-sls-backfill audit` reads SLS, records what is there, and lets `run` continue";
    if let Some(because) = &standing.stopped_because {
        return Check::fail(name, because, hint);
    }
    if !standing.own_differences.is_empty() {
        let differences = standing.own_differences.join("; ");
        return Check::fail(name, format!("the ledger is not where it was: {differences}"), hint);
    }
    let differences = source.map(|now| standing.source_then.differences_in_place(now));
    let differences = differences.unwrap_or_default().join("; ");
    if !differences.is_empty() {
        return Check::fail(
            name,
            format!("the source is not the one it was: {differences}"),
            "check DB_HOST, DB_PORT and DB_DATABASE; if Dify's database has moved there, say \
             `run --new-source` once",
        );
    }
    let found = format!("{} processes so far, {} active", standing.epoch, standing.alive);
    Check::ok(name, found)
}

/// Whether SLS is known to refuse a number that it has stored at this place.
pub fn check_seqid(standing: &Standing, place: &str) -> Check {
    let name = "seqid";
    match &standing.seqid {
        Some((Seqid::Proven, of, at)) if of == place => {
            Check::ok(name, format!("proven on {of}, {at}"))
        }
        Some((Seqid::Ignored, of, at)) if of == place => Check::warn(
            name,
            format!("SLS stored a repeated sequence number on {of}, {at}"),
            "a batch in doubt waits 18 min before it is sent again; `doctor --probe` tests again",
        ),
        _ => Check::ok(name, "not tested yet: `run` does it, or `doctor --probe`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::check::State;

    #[test]
    fn room_is_told_in_processes() {
        let of = |free| {
            let check = about_room(Room { allowed: 97, free });
            (check.state, check.found)
        };
        assert_eq!(
            of(90),
            (
                State::Ok,
                "90 of 97 are free: room for 4 processes of 8 workers, with 14 connections each"
                    .to_owned()
            )
        );
        assert_eq!(of(12).0, State::Warn);
        assert_eq!(of(3).0, State::Fail);
    }
}
