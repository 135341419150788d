//! Dify's environment variables, so that Dify's own configuration is all that is needed.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context as _;
use sqlx::postgres::PgConnectOptions;

use crate::commands::setup::{PostgresSettings, SlsSettings};
use crate::secret::Secret;
use crate::sls::endpoint::Endpoint;
use crate::wire::sign::{Credentials, SignatureVersion};

/// The environment, read once.
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// That of this process. Variables that are not UTF-8 are none of ours.
    pub fn of_process() -> Self {
        let variables = std::env::vars_os();
        Self(
            variables
                .filter_map(|(name, value)| {
                    Some((name.into_string().ok()?, value.into_string().ok()?))
                })
                .collect(),
        )
    }

    /// A variable that is set and not empty.
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn required(&self, name: &str) -> anyhow::Result<&str> {
        self.get(name).with_context(|| format!("{name} is not set"))
    }

    fn parsed<T: FromStr>(&self, name: &str) -> anyhow::Result<Option<T>>
    where
        T::Err: std::error::Error + Send + Sync + 'static,
    {
        let parse = |value: &str| value.parse().with_context(|| format!("read {name}"));
        self.get(name).map(parse).transpose()
    }

    /// A truth value as Python's pydantic reads it; `default` when it is not set.
    pub fn truth(&self, name: &str, default: bool) -> anyhow::Result<bool> {
        match self.get(name).map(str::to_ascii_lowercase).as_deref() {
            None => Ok(default),
            Some("true" | "1" | "yes" | "on" | "t" | "y") => Ok(true),
            Some("false" | "0" | "no" | "off" | "f" | "n") => Ok(false),
            Some(other) => anyhow::bail!("{name} is {other:?}, not true or false"),
        }
    }

    /// A number; `default` when it is not set.
    pub fn number(&self, name: &str, default: u32) -> anyhow::Result<u32> {
        Ok(self.parsed(name)?.unwrap_or(default))
    }

    /// Where the source and the ledger are. `ledger_url`: where the ledger is kept, if elsewhere.
    pub fn postgres(&self, ledger_url: Option<&str>) -> anyhow::Result<PostgresSettings> {
        let source = self.source()?;
        let ledger = match ledger_url {
            Some(url) => connect_options(url, "--ledger-url")?,
            None => source.clone(),
        };
        Ok(PostgresSettings { source, ledger })
    }

    fn source(&self) -> anyhow::Result<PgConnectOptions> {
        if let Some(url) = self.get("DATABASE_URL") {
            return connect_options(url, "DATABASE_URL");
        }
        let kind = self.get("DB_TYPE").unwrap_or("postgresql");
        anyhow::ensure!(
            kind == "postgresql",
            "DB_TYPE is {kind}: this tool reads Postgres only, Dify's data in {kind} is out of its \
             reach"
        );
        // Dify's own defaults, but for the password: a wrong guess helps nobody.
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(self.get("DB_HOST").unwrap_or("localhost"))
            .port(self.parsed("DB_PORT")?.unwrap_or(5432))
            .username(self.get("DB_USERNAME").unwrap_or("postgres"))
            .database(self.get("DB_DATABASE").unwrap_or("dify"));
        if let Some(password) = self.get("DB_PASSWORD") {
            options = options.password(password);
        }
        Ok(options)
    }

    /// How SLS is reached.
    pub fn sls(&self, deadline_s: u64) -> anyhow::Result<SlsSettings> {
        let project = self.required("ALIYUN_SLS_PROJECT_NAME")?;
        let endpoint = Endpoint::parse(self.required("ALIYUN_SLS_ENDPOINT")?, project)
            .context("read ALIYUN_SLS_ENDPOINT")?;
        let region = self.get("ALIYUN_SLS_REGION").map(str::to_owned).or(endpoint.region.clone());
        let region = region.context("ALIYUN_SLS_REGION is not set (such as cn-hangzhou)")?;
        let signature = match self.get("SLS_BACKFILL_SIGNATURE") {
            None | Some("v4") => SignatureVersion::V4,
            Some("v1") => SignatureVersion::V1,
            Some(other) => anyhow::bail!("SLS_BACKFILL_SIGNATURE is {other:?}, not v1 or v4"),
        };
        Ok(SlsSettings {
            endpoint,
            region,
            project: project.to_owned(),
            credentials: self.credentials()?,
            signature,
            deadline: Duration::from_secs(deadline_s),
        })
    }

    /// Who signs.
    pub fn credentials(&self) -> anyhow::Result<Credentials> {
        Ok(Credentials {
            access_key_id: self.required("ALIYUN_SLS_ACCESS_KEY_ID")?.to_owned(),
            access_key_secret: Secret::new(self.required("ALIYUN_SLS_ACCESS_KEY_SECRET")?),
            security_token: self.get("ALIYUN_SLS_SECURITY_TOKEN").map(Secret::new),
        })
    }
}

fn connect_options(url: &str, name: &str) -> anyhow::Result<PgConnectOptions> {
    // SQLAlchemy's spelling names the driver too.
    let url = url.replacen("postgresql+psycopg2://", "postgresql://", 1);
    // The parser's own error may quote the URL, and with it the password.
    url.parse().map_err(|_| anyhow::anyhow!("{name} is not a Postgres URL (its text is not shown)"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment(variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn difys_variables_are_understood() {
        let environment = environment(&[
            ("DB_HOST", "db_postgres"),
            ("DB_PORT", "5433"),
            ("DB_PASSWORD", "p@:/%w"),
            ("DB_DATABASE", ""),
            ("ALIYUN_SLS_ENDPOINT", "cn-hangzhou.log.aliyuncs.com"),
            ("ALIYUN_SLS_PROJECT_NAME", "dify-logs"),
            ("ALIYUN_SLS_ACCESS_KEY_ID", "id"),
            ("ALIYUN_SLS_ACCESS_KEY_SECRET", "hush"),
            ("LOGSTORE_ENABLE_PUT_GRAPH_FIELD", "False"),
        ]);
        let source = environment.postgres(None).unwrap().source;
        assert_eq!((source.get_host(), source.get_port()), ("db_postgres", 5433));
        assert_eq!(source.get_database(), Some("dify"), "an empty variable is not set");
        let sls = environment.sls(30).unwrap();
        assert_eq!(sls.region, "cn-hangzhou", "the endpoint names it");
        assert!(!format!("{sls:?}").contains("hush"));
        assert!(!environment.truth("LOGSTORE_ENABLE_PUT_GRAPH_FIELD", true).unwrap());
        assert!(environment.truth("NOT_SET", true).unwrap());
    }

    #[test]
    fn other_databases_and_nonsense_are_refused_in_words() {
        let mysql = environment(&[("DB_TYPE", "mysql")]).postgres(None).unwrap_err();
        assert!(mysql.to_string().contains("Postgres only"), "{mysql}");
        let url = environment(&[("DATABASE_URL", "postgres://u:secret@[")]);
        let error = format!("{:#}", url.postgres(None).unwrap_err());
        assert!(error.contains("DATABASE_URL") && !error.contains("secret"), "{error}");
        assert!(environment(&[("DB_PORT", "many")]).postgres(None).is_err());
        let missing = environment(&[]).sls(30).unwrap_err().to_string();
        assert_eq!(missing, "ALIYUN_SLS_PROJECT_NAME is not set");
        assert!(environment(&[("X", "perhaps")]).truth("X", true).is_err());
    }
}
