//! Opens what several commands need: the source, the ledger, the SLS client.

use std::cell::Cell;
use std::future::Future;
use std::time::Duration;

use anyhow::Context as _;

use crate::commands::exit::{Ended, Exit, OrExit as _};
use crate::dify::conversion::{Conversion, LogTime, RULES};
use crate::dify::fields::Fields;
use crate::ledger::Ledger;
use crate::ledger::generation::LogstoreFacts;
use crate::pg::Address;
use crate::pipeline::retry::with_retries;
use crate::record::table::Table;
use crate::sls::answer::{Failure, NextAction};
use crate::sls::client::{Client, ClientSettings};
use crate::sls::endpoint::Endpoint;
use crate::source::catalog::Shape;
use crate::source::{Limits, Source};
use crate::wire::sign::{Credentials, SignatureVersion};

/// How SLS is reached.
#[derive(Debug, Clone)]
pub struct SlsSettings {
    pub endpoint: Endpoint,
    pub region: String,
    pub project: String,
    pub credentials: Credentials,
    pub signature: SignatureVersion,
    pub deadline: Duration,
    /// Certificates, in DER, that are trusted beside the system's.
    pub ca_certificates: Vec<Vec<u8>>,
}

impl SlsSettings {
    /// The project and where it is: what a probe of the service holds for.
    pub fn place(&self) -> String {
        format!("{} at {}", self.project, self.endpoint.base_url)
    }
}

/// How Postgres is reached.
#[derive(Debug, Clone)]
pub struct PostgresSettings {
    pub source: Address,
    pub ledger: Address,
}

/// Makes the SLS client; warns of a way to SLS on which everybody can read along.
pub fn client(settings: &SlsSettings) -> anyhow::Result<Client> {
    if settings.endpoint.is_in_clear() {
        tracing::warn!(
            "{}: logs and their signatures travel unencrypted\n\
             hint: leave http:// out of ALIYUN_SLS_ENDPOINT, or say https://",
            settings.endpoint.base_url
        );
    }
    Client::new(ClientSettings {
        endpoint: settings.endpoint.clone(),
        region: settings.region.clone(),
        credentials: settings.credentials.clone(),
        signature: settings.signature,
        deadline: settings.deadline,
        ca_certificates: settings.ca_certificates.clone(),
    })
}

/// Connects to the source.
pub async fn source(settings: &PostgresSettings, readers: u32) -> Result<Source, Ended> {
    let source = Source::connect(&settings.source, readers, &Limits::default()).await;
    source.or_exit(Exit::Preflight)
}

/// Checks the tables of the source: they are there, readable, and have Dify's columns.
pub async fn shapes(source: &Source, tables: &[Table]) -> Result<Vec<Shape>, Ended> {
    let mut shapes = Vec::new();
    for table in tables {
        let shape = source.shape(*table).await.or_exit(Exit::Preflight)?;
        let database = &source.server.database;
        let shape = shape.with_context(|| {
            format!(
                "database {database} has no table {table} in schema public\nnothing was done\n\
                 hint: is it Dify's database? check DB_DATABASE"
            )
        });
        let shape = shape.or_exit(Exit::Preflight)?;
        // Neither `graph` nor the log time decides anything about the columns.
        Fields::of(&conversion(&shape, true, LogTime::FinishedAt))
            .map_err(|unfit| {
                anyhow::anyhow!("{unfit}\nnothing was done\nhint: is it Dify's database?")
            })
            .or_exit(Exit::Preflight)?;
        shapes.push(shape);
    }
    Ok(shapes)
}

/// The conversion of rows of that shape.
pub fn conversion(shape: &Shape, put_graph: bool, log_time: LogTime) -> Conversion {
    Conversion {
        rules: RULES,
        table: shape.table,
        columns: shape.columns.clone(),
        put_graph,
        log_time,
    }
}

/// Whether SLS is there, lets us in, and has the logstores with an index; gives what SLS says of
/// each logstore.
pub async fn check_logstores(
    client: &Client,
    project: &str,
    tables: &[Table],
) -> Result<Vec<LogstoreFacts>, Ended> {
    let mut logstores = Vec::new();
    for table in tables {
        let logstore = table.logstore();
        let error = |failure: Failure| {
            sls_error(&format!("look up logstore {logstore} of project {project}"), &failure)
        };
        let index = look(|| client.index(logstore)).await.map_err(error);
        let index = index.or_exit(Exit::Preflight)?.with_context(|| {
            format!(
                "logstore {logstore} has no index: SLS finds only what is written after there is \
                 one\nnothing was written\nhint: `dify-sls-backfill init` creates it"
            )
        });
        index.or_exit(Exit::Preflight)?;
        logstores.push(known_logstore(client, project, *table).await?);
    }
    Ok(logstores)
}

/// What SLS says of the logstore of `table`, which must be there.
pub async fn known_logstore(
    client: &Client,
    project: &str,
    table: Table,
) -> Result<LogstoreFacts, Ended> {
    let logstore = table.logstore();
    let found = look(|| client.logstore(logstore)).await.map_err(|failure| {
        sls_error(&format!("look up logstore {logstore} of project {project}"), &failure)
    });
    let found = found.or_exit(Exit::Preflight)?.with_context(|| {
        format!("project {project} has no logstore {logstore}\nhint: is it the right project?")
    });
    Ok(facts(table, &found.or_exit(Exit::Preflight)?))
}

/// Binds the ledger to project and service; refuses others, and logstores that were made anew since
/// something was sent to them.
pub async fn bind(
    ledger: &Ledger,
    sls: &SlsSettings,
    logstores: &[LogstoreFacts],
) -> Result<(), Ended> {
    ledger.bind(&sls.project, &sls.endpoint.service).await.or_exit(Exit::Preflight)?;
    let met = ledger.meet(logstores).await?;
    met.stops().map_err(anyhow::Error::from)?;
    Ok(())
}

/// What GetLogstore's answer says of the logstore of `table`.
pub fn facts(table: Table, found: &serde_json::Value) -> LogstoreFacts {
    LogstoreFacts {
        logstore: table.logstore(),
        created_at_s: found["createTime"].as_i64(),
        ttl_days: found["ttl"].as_i64().and_then(|days| i32::try_from(days).ok()),
    }
}

/// After so many answers in a row that are not from SLS there is no SLS.
const FOREIGN_ANSWERS_MAX: u32 = 3;

/// Repeats a call before anything has begun, as [`with_retries`]; but against a web server that is no
/// SLS only a few times.
pub async fn look<T, F: Future<Output = Result<T, Failure>>>(
    mut call: impl FnMut() -> F,
) -> Result<T, Failure> {
    let foreign = Cell::new(0);
    with_retries(|| {
        let (answer, foreign) = (call(), &foreign);
        async move {
            answer.await.map_err(|failure| {
                foreign.set(if failure.is_not_from_sls() { foreign.get() + 1 } else { 0 });
                let is_no_sls = foreign.get() == FOREIGN_ANSWERS_MAX;
                Failure { next: if is_no_sls { NextAction::Stop } else { failure.next }, ..failure }
            })
        }
    })
    .await
}

/// What failed before anything was sent, and what to do about it.
pub fn sls_error(what: &str, failure: &Failure) -> anyhow::Error {
    anyhow::anyhow!("{what}: {failure}\nno log was sent\nhint: {}", sls_hint(failure))
}

fn sls_hint(failure: &Failure) -> &'static str {
    let code = failure.code.to_ascii_lowercase();
    match code.as_str() {
        _ if failure.is_about_absence() => {
            "`dify-sls-backfill init` creates project, logstores and indexes; if they are there, \
             check ALIYUN_SLS_ENDPOINT and ALIYUN_SLS_PROJECT_NAME"
        }
        "invalidaccesskeyid" => {
            "check ALIYUN_SLS_ACCESS_KEY_ID: SLS knows no such key, or it is switched off"
        }
        "signaturenotmatch" => {
            "check ALIYUN_SLS_ACCESS_KEY_SECRET and ALIYUN_SLS_REGION: they sign every request"
        }
        "unauthorized" => {
            "the key is right, but it may not do this: give its user AliyunLogFullAccess, or a \
             policy for this project"
        }
        "projectquotaexceed" => "this account may not make more of it: raise its quota in SLS",
        _ if failure.is_not_from_sls() => {
            "check ALIYUN_SLS_ENDPOINT: what answers there is no SLS, but a proxy or a web server"
        }
        _ if failure.next == NextAction::Stop => {
            "check ALIYUN_SLS_ENDPOINT, ALIYUN_SLS_REGION, ALIYUN_SLS_PROJECT_NAME, \
             ALIYUN_SLS_ACCESS_KEY_ID and ALIYUN_SLS_ACCESS_KEY_SECRET"
        }
        _ => "check ALIYUN_SLS_ENDPOINT, the network, and whether a proxy stands in between",
    }
}

/// This machine's clock, Unix seconds.
pub fn own_now() -> i64 {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(since_epoch.unwrap_or_default().as_secs()).unwrap_or(i64::MAX)
}
