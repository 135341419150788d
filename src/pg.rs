//! How both databases are reached: connection options that also a PgBouncer in transaction mode
//! takes, and our types in Postgres's binary format.
//!
//! PgBouncer's transaction mode refuses unknown start-up parameters and mixes up named statements
//! (seen with 1.18). So: no start-up options, no named statements, and every statement inside a
//! transaction, whose settings are `SET LOCAL`.

pub mod identity;

use std::fmt;
use std::time::Duration;

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{
    PgArgumentBuffer, PgArguments, PgConnectOptions, PgHasArrayType, PgPoolOptions, PgTypeInfo,
    PgValueFormat, PgValueRef,
};
use sqlx::query::Query;
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, Decode, Encode, PgConnection, PgPool,
    Postgres, Type,
};

use crate::record::timestamp::Timestamp;
use crate::secret::Secret;

/// How long a connection may take to be made, or a free one to be had.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);

/// Where a database is, and who logs in.
#[derive(Clone)]
pub struct Address(PgConnectOptions);

impl Address {
    /// From a URL. The error does not quote it: it may hold a password.
    pub fn parse(url: &str) -> Result<Self, NotAnAddress> {
        // SQLAlchemy's spelling names the driver too.
        let url = url.replacen("postgresql+psycopg2://", "postgresql://", 1);
        url.parse().map(Self).map_err(|_| NotAnAddress)
    }

    /// From its parts.
    pub fn new(
        host: &str,
        port: u16,
        user: &str,
        password: Option<&Secret>,
        database: &str,
    ) -> Self {
        let options = PgConnectOptions::new_without_pgpass()
            .host(host)
            .port(port)
            .username(user)
            .database(database);
        Self(match password {
            Some(password) => options.password(password.expose()),
            None => options,
        })
    }

    /// The database's name, if one is given.
    pub fn database(&self) -> Option<&str> {
        self.0.get_database()
    }

    /// One connection, without a pool, that PgBouncer takes, too.
    pub async fn connect_plainly(&self) -> Result<PgConnection, sqlx::Error> {
        let options = options(self);
        tokio::time::timeout(ACQUIRE_TIMEOUT, options.connect())
            .await
            .map_err(|_| sqlx::Error::PoolTimedOut)?
    }

    /// One connection, without a pool.
    pub async fn connect_once(&self) -> Result<PgConnection, sqlx::Error> {
        self.0.connect().await
    }
}

/// Host and port; never the password.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0.get_host(), self.0.get_port())
    }
}

/// The text is not a Postgres URL.
#[derive(Debug, thiserror::Error)]
#[error("it is not a Postgres URL (its text is not shown)")]
pub struct NotAnAddress;

/// Opens a pool of at most `connections_max` connections; a wrong address or password shows here.
pub async fn connect(address: &Address, connections_max: u32) -> Result<PgPool, sqlx::Error> {
    // A pool repeats a refused connection for as long as it may wait, and then only tells of the
    // wait; one connection alone tells at once what is wrong.
    address.connect_plainly().await?.close().await?;
    PgPoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // A ping before each use would be a statement outside a transaction.
        .test_before_acquire(false)
        .connect_with(options(address))
        .await
}

/// As every connection is made.
fn options(address: &Address) -> PgConnectOptions {
    address
        .0
        .clone()
        .extra_float_digits(None)
        .statement_cache_capacity(0)
        // A slow statement is shown by what waits for it.
        .disable_statement_logging()
        .application_name(env!("CARGO_PKG_NAME"))
}

/// A statement that leaves nothing behind on the server.
pub fn statement(sql: &'static str) -> Query<'static, Postgres, PgArguments> {
    sqlx::query(sql).persistent(false)
}

/// The same for a text made at run time. Its identifiers must come through [`quote`].
pub fn made_statement(sql: &str) -> Query<'static, Postgres, PgArguments> {
    sqlx::query(AssertSqlSafe(sql.to_owned())).persistent(false)
}

/// Quotes an identifier.
pub fn quote(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

// From Postgres's pg_type.dat; by name they would cost a query a connection.
const TIMESTAMP_OID: u32 = 1114;
const TIMESTAMP_ARRAY_OID: u32 = 1115;

impl Type<Postgres> for Timestamp {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(TIMESTAMP_OID))
    }
}

impl PgHasArrayType for Timestamp {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(Oid(TIMESTAMP_ARRAY_OID))
    }
}

impl Encode<'_, Postgres> for Timestamp {
    fn encode_by_ref(&self, buf: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buf.extend_from_slice(&self.to_postgres().to_be_bytes());
        Ok(IsNull::No)
    }
}

impl<'r> Decode<'r, Postgres> for Timestamp {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        match value.format() {
            PgValueFormat::Binary => {
                let bytes: [u8; 8] = value.as_bytes()?.try_into()?;
                Ok(Self::from_postgres(i64::from_be_bytes(bytes)))
            }
            PgValueFormat::Text => Err("timestamps are read in the binary format only".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_quoted() {
        assert_eq!(quote("index"), "\"index\"");
        assert_eq!(quote("a\"b; drop"), "\"a\"\"b; drop\"");
    }
}
