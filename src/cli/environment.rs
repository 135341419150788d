//! The settings that come by name: Dify's environment variables, so that Dify's own configuration
//! is all that is needed, from env files and from this process's environment.
//!
//! A later env file is stronger than an earlier one, the environment stronger than both, and a
//! flag, where there is one, stronger than all. An empty variable counts as one that is not set. A
//! secret may stand in a file, which `NAME_FILE` names, as Docker and Kubernetes hand out secrets.

pub mod env_file;
pub mod postgres;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context as _;

use crate::commands::setup::SlsSettings;
use crate::secret::Secret;
use crate::sls::endpoint::Endpoint;
use crate::wire::sign::{Credentials, SignatureVersion};

/// Settings that may stand in a file. Its name is the setting's with `_FILE` behind it.
const IN_FILES: [&str; 7] = [
    "DATABASE_URL",
    "DB_USERNAME",
    "DB_PASSWORD",
    "ALIYUN_SLS_ACCESS_KEY_ID",
    "ALIYUN_SLS_ACCESS_KEY_SECRET",
    "ALIYUN_SLS_SECURITY_TOKEN",
    "SLS_BACKFILL_LEDGER_URL",
];

/// Beginnings of the names of settings that this tool reads.
const OURS: [&str; 8] = [
    "ALIYUN_SLS_",
    "DATABASE_URL",
    "DB_",
    "LOGSTORE_",
    "PGSSL",
    "SLS_BACKFILL_",
    "SQLALCHEMY_ECHO",
    "SSL_CERT_",
];

/// No secret is larger; what is, is another file.
const SECRET_FILE_BYTES_MAX: u64 = 64 << 10;

/// The settings, read once.
pub struct Environment {
    variables: BTreeMap<String, String>,
    /// What was odd about the files, for a person.
    pub warnings: Vec<String>,
}

impl Environment {
    /// Those of `files`, the later over the earlier, and of this process over both.
    pub fn read(files: &[PathBuf]) -> anyhow::Result<Self> {
        let own = own_variables()?;
        let mut environment = Self { variables: BTreeMap::new(), warnings: Vec::new() };
        for path in files {
            let name = path.display();
            let bytes = std::fs::read(path).with_context(|| format!("read --env-file {name}"))?;
            let text = String::from_utf8(bytes).ok().with_context(|| {
                format!("read --env-file {name}: it is not UTF-8, as the settings must be")
            })?;
            let outside = |variable: &str| {
                let found = own.iter().find(|(name, _)| name == variable).map(|(_, value)| value);
                found.or(environment.variables.get(variable)).cloned()
            };
            let file = env_file::parse(&text, &outside)
                .with_context(|| format!("read --env-file {name}"))?;
            for (key, unset) in file.unset.iter().filter(|(key, _)| is_ours(key)) {
                environment.warnings.push(format!(
                    "{key} in {name} names ${unset}, which is not set: nothing stands there now \
                     (a $ itself is written $$, or in single quotes)"
                ));
            }
            environment.add(file.variables, &format!("{name}"))?;
        }
        environment.add(own, "the environment")?;
        Ok(environment)
    }

    /// Puts settings over those that are there.
    fn add(&mut self, layer: Vec<(String, String)>, source: &str) -> anyhow::Result<()> {
        // The last of a name counts.
        let layer: BTreeMap<_, _> = layer.into_iter().collect();
        let is_set = |name: &str| layer.get(name).is_some_and(|value| !value.is_empty());
        for name in IN_FILES {
            let file = format!("{name}_FILE");
            match (is_set(name), is_set(&file)) {
                (true, true) => anyhow::bail!("both {name} and {file} are set in {source}"),
                (true, false) => self.variables.remove(&file),
                (false, true) => self.variables.remove(name),
                (false, false) => None,
            };
        }
        self.variables.extend(layer.into_iter().filter(|(_, value)| !value.is_empty()));
        Ok(())
    }

    /// These settings alone.
    #[cfg(test)]
    pub(in crate::cli) fn of_pairs(variables: &[(&str, &str)]) -> Self {
        let pairs = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let mut environment = Self { variables: BTreeMap::new(), warnings: Vec::new() };
        environment.add(pairs, "the test").unwrap();
        environment
    }

    /// A setting that is there and not empty.
    fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// A setting of [`IN_FILES`], from its file if it has one; without the line break at its end.
    fn secret(&self, name: &str) -> anyhow::Result<Option<Secret>> {
        let file = format!("{name}_FILE");
        let Some(path) = self.get(&file) else { return Ok(self.get(name).map(Secret::new)) };
        let what = || format!("read {file}, {path}");
        let bytes = std::fs::metadata(path).with_context(what)?.len();
        anyhow::ensure!(bytes <= SECRET_FILE_BYTES_MAX, "{}: it has over 64 KiB", what());
        let text = std::fs::read_to_string(path).with_context(what)?;
        let text = text.strip_suffix('\n').unwrap_or(&text);
        let text = text.strip_suffix('\r').unwrap_or(text);
        anyhow::ensure!(!text.is_empty(), "{}: it is empty", what());
        Ok(Some(Secret::new(text)))
    }

    fn required_secret(&self, name: &str) -> anyhow::Result<Secret> {
        self.secret(name)?.with_context(|| format!("{name} is not set"))
    }

    /// Whether Dify would log all that it does.
    pub fn wants_echo(&self) -> bool {
        let is_true = |name| self.get(name).is_some_and(|value| value.eq_ignore_ascii_case("true"));
        is_true("SQLALCHEMY_ECHO") || is_true("LOGSTORE_SQL_ECHO")
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
            ca_certificates: self.ca_certificates()?,
        })
    }

    /// Whom the local SLS lets in: the environment's key, or one that is as good.
    #[cfg(feature = "simulator")]
    pub fn simulator_credentials(&self) -> Credentials {
        self.credentials().unwrap_or_else(|_| Credentials {
            access_key_id: "simulator".to_owned(),
            access_key_secret: Secret::new("simulator-secret"),
            security_token: None,
        })
    }

    /// Who signs.
    pub fn credentials(&self) -> anyhow::Result<Credentials> {
        Ok(Credentials {
            access_key_id: self.required_secret("ALIYUN_SLS_ACCESS_KEY_ID")?.expose().to_owned(),
            access_key_secret: self.required_secret("ALIYUN_SLS_ACCESS_KEY_SECRET")?,
            security_token: self.secret("ALIYUN_SLS_SECURITY_TOKEN")?,
        })
    }

    /// Certificates that are trusted beside the system's, each in DER: by OpenSSL's variables, and
    /// by those of Python's `requests`, which Dify uses.
    fn ca_certificates(&self) -> anyhow::Result<Vec<Vec<u8>>> {
        let mut certificates = Vec::new();
        for name in ["SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"] {
            // SSL_CERT_DIR may name several folders, with colons between.
            for path in self.get(name).into_iter().flat_map(std::env::split_paths) {
                let found = match path.is_dir() {
                    true => rustls_native_certs::load_certs_from_paths(None, Some(&path)),
                    false => rustls_native_certs::load_certs_from_paths(Some(&path), None),
                };
                if let Some(error) = found.errors.into_iter().next() {
                    return Err(anyhow::Error::from(error).context(format!("read {name}")));
                }
                certificates.extend(found.certs.into_iter().map(|found| found.to_vec()));
            }
        }
        Ok(certificates)
    }
}

/// The variables of this process. One that is not UTF-8 is none of ours, or an error.
fn own_variables() -> anyhow::Result<Vec<(String, String)>> {
    let mut variables = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => variables.push((name, value)),
            Err(_) => anyhow::ensure!(!is_ours(&name), "{name} is not UTF-8"),
        }
    }
    Ok(variables)
}

fn is_ours(name: &str) -> bool {
    OURS.iter().any(|beginning| name.starts_with(beginning))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment::of_pairs(variables)
    }

    #[test]
    fn difys_variables_are_understood() {
        let environment = environment(&[
            ("DB_HOST", "db_postgres"),
            ("DB_PORT", "5433"),
            ("DB_DATABASE", ""),
            ("ALIYUN_SLS_ENDPOINT", "cn-hangzhou.log.aliyuncs.com"),
            ("ALIYUN_SLS_PROJECT_NAME", "dify-logs"),
            ("ALIYUN_SLS_ACCESS_KEY_ID", "id"),
            ("ALIYUN_SLS_ACCESS_KEY_SECRET", "hush"),
            ("LOGSTORE_ENABLE_PUT_GRAPH_FIELD", "False"),
        ]);
        let source = environment.postgres(None).unwrap().source;
        assert_eq!(source.to_string(), "db_postgres:5433");
        assert_eq!(source.login().database, "dify", "an empty variable is not set");
        let sls = environment.sls(30).unwrap();
        assert_eq!(sls.region, "cn-hangzhou", "the endpoint names it");
        assert!(!format!("{sls:?}").contains("hush"));
        assert!(!environment.truth("LOGSTORE_ENABLE_PUT_GRAPH_FIELD", true).unwrap());
        assert!(environment.truth("NOT_SET", true).unwrap());
    }

    #[test]
    fn nonsense_is_refused_in_words() {
        let missing = environment(&[]).sls(30).unwrap_err().to_string();
        assert_eq!(missing, "ALIYUN_SLS_PROJECT_NAME is not set");
        assert!(environment(&[("X", "perhaps")]).truth("X", true).is_err());
        assert!(environment(&[("X", "-1")]).number("X", 1).is_err());
        let told = environment(&[("REQUESTS_CA_BUNDLE", "/no/such")]).ca_certificates();
        assert!(format!("{:#}", told.unwrap_err()).contains("read REQUESTS_CA_BUNDLE"));
    }

    #[test]
    fn echo_is_asked_for_as_dify_understands_it() {
        for (value, wanted) in [("true", true), ("True", true), ("1", false), ("false", false)] {
            assert_eq!(environment(&[("SQLALCHEMY_ECHO", value)]).wants_echo(), wanted);
            assert_eq!(environment(&[("LOGSTORE_SQL_ECHO", value)]).wants_echo(), wanted);
        }
    }

    #[test]
    fn a_later_layer_is_stronger_and_an_empty_variable_is_none() {
        let layer = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect::<Vec<_>>()
        };
        let mut both = environment(&[("A", "1"), ("B", "2"), ("DB_PASSWORD", "old")]);
        both.add(layer(&[("A", ""), ("B", "3"), ("DB_PASSWORD_FILE", "/f")]), "b").unwrap();
        assert_eq!((both.get("A"), both.get("B")), (Some("1"), Some("3")));
        assert_eq!((both.get("DB_PASSWORD"), both.get("DB_PASSWORD_FILE")), (None, Some("/f")));
        both.add(layer(&[("DB_PASSWORD", "new")]), "c").unwrap();
        assert_eq!(both.secret("DB_PASSWORD").unwrap().unwrap().expose(), "new");
        let told = both.add(layer(&[("DB_PASSWORD", "a"), ("DB_PASSWORD_FILE", "b")]), "d");
        let told = told.unwrap_err().to_string();
        assert_eq!(told, "both DB_PASSWORD and DB_PASSWORD_FILE are set in d");
    }

    #[test]
    fn a_secret_may_stand_in_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        for (content, wanted) in [("p w\n", Some("p w")), ("p\r\n", Some("p")), ("\n", None)] {
            std::fs::write(&path, content).unwrap();
            let environment = environment(&[("DB_PASSWORD_FILE", path.to_str().unwrap())]);
            let found = environment.secret("DB_PASSWORD").ok().flatten();
            assert_eq!(found.as_ref().map(Secret::expose), wanted, "{content:?}");
        }
        let told = environment(&[("DB_PASSWORD_FILE", "/no/such")]).secret("DB_PASSWORD");
        assert!(told.unwrap_err().to_string().contains("read DB_PASSWORD_FILE, /no/such"));
    }

    #[test]
    fn no_settings_print_a_secret_not_even_in_a_panic() {
        let environment = environment(&[
            ("DATABASE_URL", "postgres://u:hush@h/d"),
            ("ALIYUN_SLS_ENDPOINT", "localhost:1"),
            ("ALIYUN_SLS_REGION", "r"),
            ("ALIYUN_SLS_PROJECT_NAME", "p"),
            ("ALIYUN_SLS_ACCESS_KEY_ID", "id"),
            ("ALIYUN_SLS_ACCESS_KEY_SECRET", "hush"),
            ("ALIYUN_SLS_SECURITY_TOKEN", "hush"),
        ]);
        let (postgres, sls) = (environment.postgres(None).unwrap(), environment.sls(1).unwrap());
        let printed = format!("{postgres:?} {:?} {sls:?}", postgres.source.login());
        assert!(printed.contains("***") && !printed.contains("hush"), "{printed}");
    }
}
