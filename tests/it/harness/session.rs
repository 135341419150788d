//! Sessions in a database for the tests' own statements. A process `psql` for each of them would
//! cost more than many a test.

use std::fmt::Write as _;
use std::future::Future;
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};

use sqlx::postgres::{PgConnectOptions, PgRow, PgSslMode};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _, ValueRef as _};
use tokio::runtime::{Builder, Runtime};

use crate::harness::cluster::{PASSWORD, USER};

/// Sessions in one database, opened when they are needed and used again.
pub(crate) struct Sessions {
    port: u16,
    database: String,
    idle: Mutex<Vec<PgConnection>>,
}

impl Sessions {
    /// None is open yet.
    pub(crate) fn new(port: u16, database: &str) -> Self {
        Self { port, database: database.to_owned(), idle: Mutex::default() }
    }

    /// Runs `sql`, statements until the first error, and gives the rows: one a line, columns
    /// between `|`, NULL as nothing. All of it is one transaction unless it says otherwise, and
    /// nothing that it sets for its session lasts.
    pub(crate) fn run(&self, sql: &str) -> Result<String, String> {
        let (session, sql) = (self.take(), sql.to_owned());
        let ran = wait(async move {
            let mut session = session.await?;
            let rows = (&mut session).fetch_all(sqlx::raw_sql(AssertSqlSafe(sql))).await?;
            session.execute("DISCARD ALL").await?;
            Ok((text_of(&rows), session))
        });
        let (text, session) = ran.map_err(|error: sqlx::Error| error.to_string())?;
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(session);
        Ok(text)
    }

    /// A session for the caller alone.
    pub(crate) fn open(&self) -> PgConnection {
        let options = self.options();
        wait(async move { PgConnection::connect_with(&options).await }).unwrap()
    }

    /// Ends those that are not in use.
    pub(crate) fn close(&self) {
        let idle = std::mem::take(&mut *self.idle.lock().unwrap_or_else(PoisonError::into_inner));
        wait(async move {
            for session in idle {
                // Whether the server has ended it before does not matter.
                let _ = session.close().await;
            }
        });
    }

    /// An idle one that still lives, or a new one.
    fn take(&self) -> impl Future<Output = sqlx::Result<PgConnection>> + Send + 'static {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let options = self.options();
        async move {
            if let Some(mut session) = idle
                && session.ping().await.is_ok()
            {
                return Ok(session);
            }
            PgConnection::connect_with(&options).await
        }
    }

    fn options(&self) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port)
            .username(USER)
            .password(PASSWORD)
            .database(&self.database)
            .ssl_mode(PgSslMode::Disable)
    }
}

/// Waits for `work` on the runtime of all sessions. A test may be on a runtime of its own.
pub(crate) fn wait<T: Send + 'static>(work: impl Future<Output = T> + Send + 'static) -> T {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    });
    let (sender, receiver) = mpsc::channel();
    runtime.spawn(async move { sender.send(work.await) });
    receiver.recv().expect("the work does not panic")
}

fn text_of(rows: &[PgRow]) -> String {
    let mut text = String::new();
    for (n, row) in rows.iter().enumerate() {
        text += if n == 0 { "" } else { "\n" };
        for column in 0..row.len() {
            let value = row.try_get_raw(column).unwrap();
            let value = if value.is_null() { "" } else { value.as_str().unwrap() };
            let _ = write!(text, "{}{value}", if column == 0 { "" } else { "|" });
        }
    }
    text.trim_end_matches('\n').to_owned()
}
