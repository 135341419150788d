//! How both databases are reached: connection options that also a PgBouncer in transaction mode
//! takes, and our types in Postgres's binary format.
//!
//! PgBouncer's transaction mode refuses unknown start-up parameters and mixes up named statements
//! (seen with 1.18). So: no start-up options, no named statements, and every statement inside a
//! transaction, whose settings are `SET LOCAL`.

pub mod identity;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{
    PgArgumentBuffer, PgArguments, PgConnectOptions, PgHasArrayType, PgPoolOptions, PgSslMode,
    PgTypeInfo, PgValueFormat, PgValueRef,
};
use sqlx::query::Query;
use sqlx::{
    AssertSqlSafe, ConnectOptions as _, Connection as _, Decode, Encode, PgConnection, PgPool,
    Postgres, Transaction, Type,
};

use crate::record::timestamp::Timestamp;
use crate::secret::Secret;

/// A transaction: statements outside of one do not exist here.
pub type Tx = Transaction<'static, Postgres>;

/// For the beginning of every transaction: no function, operator or type that somebody has made in
/// `public`, where anybody may on Postgres 14 and before, is taken for Postgres's own. Tables are
/// named with their schema.
pub const OWN_NAMES_ONLY: &str = "SET LOCAL search_path = pg_catalog, pg_temp";

/// How long a connection may take to be made, or a free one to be had.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);

/// Where a database is, and who logs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// A name, an IP address, or the folder of a Unix socket, which begins with a slash.
    pub host: String,
    pub port: u16,
    pub user: String,
    /// `None`: libpq's PGPASSWORD, or none.
    pub password: Option<Secret>,
    pub database: String,
    pub tls: Tls,
    /// Settings of the server for the whole connection. A PgBouncer refuses them.
    pub options: Vec<(String, String)>,
}

/// Whether a connection is encrypted, and who is trusted; as libpq's `ssl…` parameters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    pub mode: TlsMode,
    /// A PEM file of certificates that are trusted beside the system's.
    pub root_certificate: Option<PathBuf>,
    /// PEM files by which the server knows us; both or none.
    pub client_certificate: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
}

/// libpq's `sslmode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TlsMode {
    Disable,
    /// Encrypted if the server can do it; nobody is trusted or distrusted.
    #[default]
    Prefer,
    /// Encrypted; the server's certificate counts only if a root certificate is given.
    Require,
    VerifyCa,
    VerifyFull,
}

/// A database that can be connected to.
#[derive(Clone)]
pub struct Address {
    login: Login,
    options: PgConnectOptions,
}

impl Address {
    pub fn new(login: Login) -> Self {
        let tls = &login.tls;
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(&login.host)
            .port(login.port)
            .username(&login.user)
            .database(&login.database)
            .ssl_mode(ssl_mode(tls))
            .extra_float_digits(None)
            .statement_cache_capacity(0)
            // A slow statement is shown by what waits for it.
            .disable_statement_logging()
            .application_name(env!("CARGO_PKG_NAME"));
        if login.host.starts_with('/') {
            // As in libpq, whose sslmode means nothing there.
            options = options.socket(&login.host).ssl_mode(PgSslMode::Disable);
        }
        options = match &tls.root_certificate {
            Some(path) => options.ssl_root_cert(path),
            // Not even one that sqlx has found in the environment: it was looked at above `pg`.
            None => options.ssl_root_cert_from_pem(Vec::new()),
        };
        if let Some(path) = &tls.client_certificate {
            options = options.ssl_client_cert(path);
        }
        if let Some(path) = &tls.client_key {
            options = options.ssl_client_key(path);
        }
        if !login.options.is_empty() {
            // Even no options would be some to sqlx, and a PgBouncer takes none.
            options = options.options(login.options.iter().map(|(name, value)| (name, value)));
        }
        if let Some(password) = &login.password {
            options = options.password(password.expose());
        }
        Self { login, options }
    }

    /// What it was made from.
    pub fn login(&self) -> &Login {
        &self.login
    }

    /// One connection, without a pool, within half a minute.
    pub async fn connect_plainly(&self) -> Result<PgConnection, sqlx::Error> {
        let connection = tokio::time::timeout(ACQUIRE_TIMEOUT, self.connect_once()).await;
        connection.map_err(|_| sqlx::Error::PoolTimedOut)?
    }

    /// One connection, without a pool.
    pub async fn connect_once(&self) -> Result<PgConnection, sqlx::Error> {
        Ok(self.connect().await?.0)
    }

    /// One connection, and the options with which it could be made: under `prefer` a server whose
    /// TLS, or whose rules for it, do not fit is asked once more without TLS, as libpq does.
    async fn connect(&self) -> Result<(PgConnection, PgConnectOptions), sqlx::Error> {
        let error = match self.options.connect().await {
            Ok(connection) => return Ok((connection, self.options.clone())),
            Err(error) => error,
        };
        let is_refused = code_of(&error).is_some_and(|code| code == NO_SUCH_WAY_IN);
        let may_do_without = matches!(self.options.get_ssl_mode(), PgSslMode::Prefer)
            && (is_refused || is_tls(&error));
        if !may_do_without {
            return Err(error);
        }
        let plain = self.options.clone().ssl_mode(PgSslMode::Disable);
        match plain.connect().await {
            Ok(connection) => {
                tracing::debug!("{self}: {error}; goes on without TLS, as sslmode=prefer allows");
                Ok((connection, plain))
            }
            Err(second) => Err(if is_refused { error } else { second }),
        }
    }

    /// What to do about a connection that could not be made.
    pub fn hint(&self, error: &sqlx::Error) -> String {
        let Login { host, user, database, .. } = &self.login;
        let is_unknown_name = matches!(error, sqlx::Error::Io(_))
            && error.to_string().contains("failed to lookup address");
        match code_of(error).as_deref() {
            Some("28P01") => format!("check DB_USERNAME ({user}) and DB_PASSWORD"),
            Some(NO_SUCH_WAY_IN) => format!(
                "Postgres's pg_hba.conf must let {user} in from here; it may ask for TLS: \
                 PGSSLMODE=require"
            ),
            Some("3D000") => format!("check DB_DATABASE: there is no {database} on this server"),
            Some("53300") => {
                "Postgres has no connection left: wait, use fewer --workers, or raise its \
                 max_connections"
                    .to_owned()
            }
            Some("57P03") => "Postgres is starting or stopping: wait until it is up".to_owned(),
            Some("08P01") if !self.login.options.is_empty() => {
                "leave options out of DB_EXTRAS or the URL: a PgBouncer takes none".to_owned()
            }
            _ if is_unknown_name && !host.contains('.') => format!(
                "{host} looks like a name inside Dify's docker network, which this machine does \
                 not know: start this tool in that network (docker run --network docker_default \
                 …), or let docker publish Postgres's port and say DB_HOST=127.0.0.1"
            ),
            _ if is_unknown_name => format!("check DB_HOST: nobody knows the name {host}"),
            _ if is_tls(error) => {
                "check PGSSLMODE, PGSSLROOTCERT (the file of the CA) and sslmode in DB_EXTRAS"
                    .to_owned()
            }
            _ => "check DB_HOST and DB_PORT, and that Postgres listens there and no firewall \
                  stands in between"
                .to_owned(),
        }
    }
}

/// Host and port; never the password.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.login.host, self.login.port)
    }
}

/// sqlx's own form of it shows the password.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.login.fmt(f)
    }
}

/// SQLSTATE of pg_hba.conf's refusals.
const NO_SUCH_WAY_IN: &str = "28000";

fn ssl_mode(tls: &Tls) -> PgSslMode {
    match tls.mode {
        TlsMode::Disable => PgSslMode::Disable,
        TlsMode::Prefer => PgSslMode::Prefer,
        // As in libpq: whoever names a root certificate wants it to count.
        TlsMode::Require if tls.root_certificate.is_some() => PgSslMode::VerifyCa,
        TlsMode::Require => PgSslMode::Require,
        TlsMode::VerifyCa => PgSslMode::VerifyCa,
        TlsMode::VerifyFull => PgSslMode::VerifyFull,
    }
}

fn code_of(error: &sqlx::Error) -> Option<String> {
    error.as_database_error()?.code().map(|code| code.into_owned())
}

/// Whether TLS is what went wrong. A handshake that fails is invalid data to sqlx.
fn is_tls(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Tls(_) => true,
        sqlx::Error::Io(error) => error.kind() == std::io::ErrorKind::InvalidData,
        _ => false,
    }
}

/// Whether the error says that Postgres has gone away, or takes nobody now, so that the same may
/// succeed later: a restart, a failover, a cut connection.
pub fn is_gone(error: &anyhow::Error) -> bool {
    // Who waits for Postgres with a deadline.
    if error.chain().any(|cause| cause.is::<tokio::time::error::Elapsed>()) {
        return true;
    }
    error.chain().filter_map(|cause| cause.downcast_ref::<sqlx::Error>()).any(|error| match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut | sqlx::Error::WorkerCrashed => true,
        error => code_of(error).is_some_and(|code| {
            // Connection exceptions; shut down, crashed, starting; no connection left; a session that
            // ended because this process was stopped in a transaction.
            code.starts_with("08") || code.starts_with("57P0") || code == "53300" || code == "25P03"
        }),
    })
}

/// Opens a pool of at most `connections_max` connections; a wrong address or password shows here.
pub async fn connect(address: &Address, connections_max: u32) -> Result<PgPool, sqlx::Error> {
    // A pool repeats a refused connection for as long as it may wait, and then only tells of the
    // wait; one connection alone tells at once what is wrong.
    let probe = tokio::time::timeout(ACQUIRE_TIMEOUT, address.connect()).await;
    let (connection, options) = probe.map_err(|_| sqlx::Error::PoolTimedOut)??;
    connection.close().await?;
    PgPoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // A ping before each use would be a statement outside a transaction.
        .test_before_acquire(false)
        .connect_with(options)
        .await
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

/// Names one of Dify's tables, which are in the schema `public`.
pub fn in_public(table: &str) -> String {
    format!("public.{}", quote(table))
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
    fn an_error_of_a_restart_is_told_from_one_of_the_statement() {
        let io = || sqlx::Error::Io(std::io::ErrorKind::ConnectionReset.into());
        assert!(is_gone(&anyhow::Error::from(io()).context("read a page")));
        assert!(is_gone(&sqlx::Error::PoolTimedOut.into()));
        assert!(!is_gone(&sqlx::Error::RowNotFound.into()));
        assert!(!is_gone(&anyhow::anyhow!("connection reset")));
    }

    #[test]
    fn identifiers_are_quoted() {
        assert_eq!(quote("index"), "\"index\"");
        assert_eq!(quote("a\"b; drop"), "\"a\"\"b; drop\"");
    }
}
