//! Opens what several commands need: the source, the ledger, the SLS client.

use std::time::Duration;

use anyhow::Context as _;

use crate::commands::exit::{Ended, Exit, OrExit as _};
use crate::dify::conversion::{Conversion, LogTime, RULES};
use crate::dify::fields::Fields;
use crate::pg::Address;
use crate::pipeline::patience::patiently;
use crate::record::table::Table;
use crate::sls::answer::Next;
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
}

impl SlsSettings {
    /// The project and where it is: what a probe of the service holds for.
    pub fn place(&self) -> String {
        format!("{} at {}", self.project, self.endpoint.base_url)
    }
}

/// How Postgres is reached.
#[derive(Clone)]
pub struct PostgresSettings {
    pub source: Address,
    pub ledger: Address,
}

/// Makes the SLS client.
pub fn client(settings: &SlsSettings) -> anyhow::Result<Client> {
    Client::new(ClientSettings {
        endpoint: settings.endpoint.clone(),
        region: settings.region.clone(),
        credentials: settings.credentials.clone(),
        signature: settings.signature,
        deadline: settings.deadline,
    })
}

/// Connects to the source.
pub async fn source(settings: &PostgresSettings, readers: u32) -> Result<Source, Ended> {
    let source = Source::connect(&settings.source, readers, &Limits::default()).await;
    source.or_exit(Exit::Preflight)
}

/// Looks at the tables of the source: they are there, readable, and have Dify's columns.
pub async fn shapes(source: &Source, tables: &[Table]) -> Result<Vec<Shape>, Ended> {
    let mut shapes = Vec::new();
    for table in tables {
        let shape = source.shape(*table).await.or_exit(Exit::Preflight)?;
        let database = &source.server.database;
        let shape = shape.with_context(|| {
            format!(
                "database {database} has no table {table}\nhint: is it Dify's database? check \
                 DB_DATABASE"
            )
        });
        let shape = shape.or_exit(Exit::Preflight)?;
        // Neither `graph` nor the log time decides anything about the columns.
        Fields::of(&conversion(&shape, true, LogTime::FinishedAt))
            .map_err(|unfit| anyhow::anyhow!("{unfit}\nhint: is it Dify's database?"))
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

/// Whether SLS is there, lets us in, and has the logstores with an index.
pub async fn check_logstores(
    client: &Client,
    project: &str,
    tables: &[Table],
) -> Result<(), Ended> {
    for table in tables {
        let logstore = table.logstore();
        let index = patiently(|| client.index(logstore)).await.map_err(|failure| {
            let hint = match failure.next {
                Next::Stop if failure.is("LogStoreNotExist") || failure.is("ProjectNotExist") => {
                    "`dify-sls-backfill init` makes project, logstores and indexes"
                }
                Next::Stop => {
                    "check ALIYUN_SLS_ENDPOINT, ALIYUN_SLS_REGION, ALIYUN_SLS_PROJECT_NAME, \
                     ALIYUN_SLS_ACCESS_KEY_ID and ALIYUN_SLS_ACCESS_KEY_SECRET"
                }
                _ => "check ALIYUN_SLS_ENDPOINT, and whether a proxy stands in between",
            };
            anyhow::anyhow!(
                "look up logstore {logstore} of project {project}: {failure}\n\
                 nothing was written\nhint: {hint}"
            )
        });
        let index = index.or_exit(Exit::Preflight)?.with_context(|| {
            format!(
                "logstore {logstore} has no index: SLS finds only what is written after there is \
                 one\nnothing was written\nhint: `dify-sls-backfill init` makes it"
            )
        });
        index.or_exit(Exit::Preflight)?;
    }
    Ok(())
}

/// This machine's clock, Unix seconds.
pub fn own_now() -> i64 {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(since_epoch.unwrap_or_default().as_secs()).unwrap_or(i64::MAX)
}
