//! Pools of connections: how many one may have, so that others who live from the same server, Dify
//! first of all, keep theirs.

use std::time::Duration;

use sqlx::postgres::PgPoolOptions;
use sqlx::{Connection as _, PgConnection, PgPool, Row as _};

use crate::pg::{ACQUIRE_TIMEOUT, Address, OWN_NAMES_ONLY, statement};

/// A pool that nobody has given a number takes at most this part of what is free.
const PART: u32 = 3;

/// No statement runs longer: who waits for a connection may wait behind so many of them.
const STATEMENT_MAX: Duration = Duration::from_secs(60);

/// How many connections a pool may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolSize {
    /// So many tasks use it; they stand in line where there are more of them than connections.
    pub users: u32,
    pub bound: Bound,
}

/// What bounds a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// So few that nobody asks the server first.
    Few(u32),
    /// A person has said so many. Refused where the server has not got them, and `beside` more, which
    /// another pool will open.
    Asked { connections: u32, beside: u32 },
    /// At most so many, and at most a third of what the server has left.
    Share { wanted: u32 },
}

impl PoolSize {
    /// A pool with a connection for each of its few users.
    pub fn few(users: u32) -> Self {
        Self { users, bound: Bound::Few(users) }
    }

    /// How many connections there may be at a server with so much room; 0: too little room.
    fn connections(self, room: Room) -> u32 {
        match self.bound {
            Bound::Few(connections) => connections,
            Bound::Asked { connections, beside } if connections + beside <= room.free => {
                connections
            }
            Bound::Asked { .. } => 0,
            Bound::Share { wanted } => wanted.min(room.free / PART),
        }
    }
}

/// How many connections a server takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Its `max_connections`, less those that it keeps for superusers.
    pub allowed: u32,
    /// Those that this user can still open in this database, whatever limits them.
    pub free: u32,
}

impl Room {
    /// How many processes fit that open `connections` each and leave a third of what is free.
    pub fn processes(self, connections: u32) -> u32 {
        (self.free - self.free / PART) / connections.max(1)
    }

    /// Whether a process can begin at all without being told a number.
    pub fn is_enough(self) -> bool {
        self.free > PART
    }
}

/// Why there is no pool.
#[derive(Debug)]
pub enum ConnectError {
    Postgres(sqlx::Error),
    NoRoom { size: PoolSize, room: Room },
}

impl ConnectError {
    /// What to do about it.
    pub fn hint(&self, address: &Address) -> String {
        match self {
            Self::Postgres(error) => address.hint(error),
            Self::NoRoom { room: Room { free: 0..=1, .. }, .. } => {
                "wait until others have ended, or raise max_connections".to_owned()
            }
            Self::NoRoom { room, .. } => format!(
                "wait until others have ended, raise max_connections, or say --connections {}",
                (room.free / 2).max(2)
            ),
        }
    }
}

impl From<sqlx::Error> for ConnectError {
    fn from(error: sqlx::Error) -> Self {
        Self::Postgres(error)
    }
}

impl From<ConnectError> for anyhow::Error {
    fn from(error: ConnectError) -> Self {
        let (size, Room { allowed, free }) = match error {
            ConnectError::Postgres(error) => return error.into(),
            ConnectError::NoRoom { size, room } => (size, room),
        };
        match size.bound {
            Bound::Asked { connections, beside } => anyhow::anyhow!(
                "{} connections are asked for, and the server has {free} of {allowed} left",
                connections + beside
            ),
            Bound::Few(_) | Bound::Share { .. } => anyhow::anyhow!(
                "the server has {free} of {allowed} connections left, and two of three are for others"
            ),
        }
    }
}

/// Opens a pool; a wrong address or password shows here.
pub async fn connect(address: &Address, size: PoolSize) -> Result<PgPool, ConnectError> {
    // A pool repeats a refused connection for as long as it may wait, and then only tells of the
    // wait; one connection alone tells at once what is wrong.
    let probe = tokio::time::timeout(ACQUIRE_TIMEOUT, address.connect()).await;
    let (mut connection, options) = probe.map_err(|_| sqlx::Error::PoolTimedOut)??;
    let connections = match size.bound {
        Bound::Few(connections) => connections,
        Bound::Asked { .. } | Bound::Share { .. } => {
            let room = room(&mut connection).await?;
            match size.connections(room) {
                0 => return Err(ConnectError::NoRoom { size, room }),
                connections => connections,
            }
        }
    };
    connection.close().await?;
    let rounds = size.users.div_ceil(connections).saturating_sub(1);
    let pool = PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT + STATEMENT_MAX * rounds)
        // A ping before each use would be a statement outside a transaction.
        .test_before_acquire(false)
        .connect_with(options)
        .await?;
    Ok(pool)
}

/// How much room the server of `address` has, beside the connection that asks.
pub async fn room_at(address: &Address) -> Result<Room, sqlx::Error> {
    let mut connection = address.connect_plainly().await?;
    let room = room(&mut connection).await?;
    connection.close().await?;
    Ok(room)
}

async fn room(connection: &mut PgConnection) -> Result<Room, sqlx::Error> {
    let begin = format!("BEGIN READ ONLY; {OWN_NAMES_ONLY}");
    let mut tx = connection.begin_with(sqlx::AssertSqlSafe(begin)).await?;
    // Everybody may count sessions, but what kind they are only Postgres's own roles may see: those
    // with a database are clients, and a few workers of Postgres's own. LEAST leaves NULLs out.
    let row = statement(
        "SELECT allowed, greatest(0, least(allowed - used, \
           CASE WHEN datconnlimit >= 0 THEN datconnlimit - of_database END, \
           CASE WHEN rolconnlimit >= 0 THEN rolconnlimit - of_role END)) AS free \
         FROM (SELECT current_setting('max_connections')::int \
             - current_setting('superuser_reserved_connections')::int \
             - coalesce(current_setting('reserved_connections', true)::int, 0) AS allowed) s, \
           (SELECT count(*)::int AS used, \
             count(*) FILTER (WHERE datname = current_database())::int AS of_database, \
             count(*) FILTER (WHERE usename = current_user)::int AS of_role \
           FROM pg_stat_activity WHERE datid IS NOT NULL AND pid <> pg_backend_pid()) a, \
           pg_database, pg_roles WHERE datname = current_database() AND rolname = current_user",
    )
    .fetch_one(&mut *tx)
    .await?;
    let number = |name: &str| -> Result<u32, sqlx::Error> {
        Ok(u32::try_from(row.try_get::<i32, _>(name)?).unwrap_or(0))
    };
    Ok(Room { allowed: number("allowed")?, free: number("free")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_takes_what_it_wants_and_a_third_at_most() {
        let of =
            |bound, free| PoolSize { users: 18, bound }.connections(Room { allowed: 97, free });
        for (free, connections) in [(97, 10), (30, 10), (29, 9), (12, 4), (3, 1), (2, 0), (0, 0)] {
            assert_eq!(of(Bound::Share { wanted: 10 }, free), connections, "{free}");
        }
        let asked = Bound::Asked { connections: 9, beside: 3 };
        assert_eq!((of(asked, 12), of(asked, 11)), (9, 0));
        assert_eq!(of(Bound::Few(2), 0), 2);
    }

    #[test]
    fn processes_leave_a_third() {
        let processes = |free| Room { allowed: 97, free }.processes(14);
        assert_eq!((processes(97), processes(42), processes(20), processes(0)), (4, 2, 1, 0));
    }
}
