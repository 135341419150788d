//! Where the source and the ledger are, from Dify's variables, libpq's, or a URL.

use std::path::PathBuf;

use anyhow::Context as _;
use percent_encoding::percent_decode_str;
use url::{Url, form_urlencoded};

use crate::cli::environment::Environment;
use crate::commands::setup::PostgresSettings;
use crate::pg::{Address, Login, Tls, TlsMode};
use crate::secret::Secret;

/// Names the ledger's database where a flag would show its password to the whole machine.
const LEDGER_URL: &str = "SLS_BACKFILL_LEDGER_URL";

impl Environment {
    /// Where the source and the ledger are. `ledger_url`: the flag, which is stronger than the
    /// environment.
    pub fn postgres(&self, ledger_url: Option<&str>) -> anyhow::Result<PostgresSettings> {
        let source = self.source()?;
        let ledger = match (ledger_url, self.secret(LEDGER_URL)?) {
            (Some(url), _) => {
                let login = self.of_url(url, "--ledger-url")?;
                if login.password.is_some() {
                    tracing::warn!(
                        "everybody on this machine can see the password in --ledger-url\n\
                         hint: put the URL into {LEDGER_URL}, or into a file that \
                         {LEDGER_URL}_FILE names"
                    );
                }
                Address::new(login)
            }
            (None, Some(url)) => Address::new(self.of_url(url.expose(), LEDGER_URL)?),
            (None, None) => source.clone(),
        };
        Ok(PostgresSettings { source, ledger })
    }

    /// Where rows are deleted and brought back: the source, or the primary that a flag names.
    pub fn target(&self, purge_url: Option<&str>) -> anyhow::Result<Address> {
        match purge_url {
            Some(url) => Ok(Address::new(self.of_url(url, "--purge-url")?)),
            None => self.source(),
        }
    }

    fn source(&self) -> anyhow::Result<Address> {
        if let Some(url) = self.secret("DATABASE_URL")? {
            return Ok(Address::new(self.of_url(url.expose(), "DATABASE_URL")?));
        }
        let kind = self.get("DB_TYPE").unwrap_or("postgresql");
        anyhow::ensure!(
            matches!(kind, "postgresql" | "postgres"),
            "DB_TYPE is {kind}: this tool reads Postgres only, Dify's data in {kind} is out of its \
             reach"
        );
        // Dify's own defaults, but for the password: a wrong guess helps nobody.
        let mut login = Login {
            host: self.get("DB_HOST").unwrap_or("localhost").to_owned(),
            port: self.parsed("DB_PORT")?.unwrap_or(5432),
            user: self
                .secret("DB_USERNAME")?
                .map_or_else(|| "postgres".to_owned(), |user| user.expose().to_owned()),
            password: self.secret("DB_PASSWORD")?,
            database: self.get("DB_DATABASE").unwrap_or("dify").to_owned(),
            tls: self.tls()?,
            options: Vec::new(),
        };
        let extras = self.get("DB_EXTRAS").unwrap_or_default();
        let extras = extras.trim_start_matches(['?', '&']);
        apply(&mut login, form_urlencoded::parse(extras.as_bytes()), "DB_EXTRAS")?;
        Ok(Address::new(login))
    }

    /// libpq's variables; `prefer` when they say nothing.
    fn tls(&self) -> anyhow::Result<Tls> {
        let mut tls = Tls::default();
        for (name, parameter) in [
            ("PGSSLMODE", "sslmode"),
            ("PGSSLROOTCERT", "sslrootcert"),
            ("PGSSLCERT", "sslcert"),
            ("PGSSLKEY", "sslkey"),
        ] {
            if let Some(value) = self.get(name) {
                set_tls(&mut tls, parameter, value).with_context(|| format!("read {name}"))?;
            }
        }
        Ok(tls)
    }

    /// From a URL. No error quotes it: it may hold a password.
    fn of_url(&self, url: &str, name: &str) -> anyhow::Result<Login> {
        let not_a_url = || {
            format!(
                "read {name}: it is not a Postgres URL (its text is not shown)\n\
                 hint: it looks like postgres://user:password@host:5432/database; in user and \
                 password @ is written %40, : %3A, / %2F, % %25, # %23 and ? %3F"
            )
        };
        let url = Url::parse(url.trim()).map_err(|_| anyhow::anyhow!(not_a_url()))?;
        // SQLAlchemy's spelling names the driver too.
        let scheme = url.scheme().split('+').next().unwrap_or_default();
        anyhow::ensure!(
            matches!(scheme, "postgres" | "postgresql"),
            "{name} names {scheme}: this tool reads Postgres only"
        );
        let decoded = |text: &str| percent_decode_str(text).decode_utf8().map(String::from);
        let text = |text: &str| decoded(text).map_err(|_| anyhow::anyhow!(not_a_url()));
        anyhow::ensure!(url.fragment().is_none(), not_a_url());
        let host = url.host_str().unwrap_or_default();
        let user = text(url.username())?;
        let database = text(url.path().trim_start_matches('/'))?;
        let or = |text: String, default: &str| match text.is_empty() {
            true => default.to_owned(),
            false => text,
        };
        let mut login = Login {
            host: or(text(host)?.trim_matches(['[', ']']).to_owned(), "localhost"),
            port: url.port().unwrap_or(5432),
            user: or(user, "postgres"),
            password: url.password().map(text).transpose()?.map(Secret::new),
            database: or(database, "dify"),
            tls: self.tls()?,
            options: Vec::new(),
        };
        apply(&mut login, url.query_pairs(), name)?;
        Ok(login)
    }
}

/// Applies the parameters of a URL or of DB_EXTRAS, which both are libpq's.
fn apply(
    login: &mut Login,
    parameters: form_urlencoded::Parse<'_>,
    source: &str,
) -> anyhow::Result<()> {
    for (name, value) in parameters {
        match &*name {
            "sslmode" | "sslrootcert" | "sslcert" | "sslkey" => {
                let set = set_tls(&mut login.tls, &name, &value);
                set.with_context(|| format!("read {source}"))?;
            }
            "options" => {
                login.options = options(&value).with_context(|| {
                    format!("read {source}: options are not of the form -c name=value")
                })?
            }
            "host" => login.host = value.into_owned(),
            "port" => login.port = value.parse().with_context(|| format!("read {source}: port"))?,
            "user" => login.user = value.into_owned(),
            "password" => login.password = Some(Secret::new(value)),
            "dbname" => login.database = value.into_owned(),
            // How the connection calls itself and waits is this tool's affair.
            "application_name" | "connect_timeout" | "client_encoding" | "charset" => {}
            _ => tracing::warn!("{source}: {name} is not known here, and has no effect"),
        }
    }
    Ok(())
}

fn set_tls(tls: &mut Tls, parameter: &str, value: &str) -> anyhow::Result<()> {
    match parameter {
        "sslmode" => {
            tls.mode = match value {
                "disable" => TlsMode::Disable,
                // `allow` only differs in what is tried first.
                "allow" | "prefer" => TlsMode::Prefer,
                "require" => TlsMode::Require,
                "verify-ca" => TlsMode::VerifyCa,
                "verify-full" => TlsMode::VerifyFull,
                other => anyhow::bail!(
                    "sslmode {other:?} is none of disable, allow, prefer, require, verify-ca and \
                     verify-full"
                ),
            }
        }
        // Trusts the system's certificates; libpq asks for the name, too.
        "sslrootcert" if value == "system" => {
            (tls.mode, tls.root_certificate) = (TlsMode::VerifyFull, None);
        }
        "sslrootcert" => tls.root_certificate = Some(PathBuf::from(value)),
        "sslcert" => tls.client_certificate = Some(PathBuf::from(value)),
        _ => tls.client_key = Some(PathBuf::from(value)),
    }
    Ok(())
}

/// The settings in `-c name=value --name=value`; a backslash keeps a space from dividing.
fn options(text: &str) -> Option<Vec<(String, String)>> {
    let mut words = vec![String::new()];
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        let word = words.last_mut().expect("there is always a last word");
        match c {
            '\\' => word.push(characters.next()?),
            c if c.is_whitespace() => words.push(String::new()),
            c => word.push(c),
        }
    }
    words.retain(|word| !word.is_empty());
    let mut words = words.into_iter();
    let mut settings = Vec::new();
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("--").or_else(|| word.strip_prefix("-c")) {
            Some("") => words.next()?,
            Some(setting) => setting.to_owned(),
            None => return None,
        };
        let (name, value) = setting.split_once('=')?;
        settings.push((name.replace('-', "_"), value.to_owned()));
    }
    Some(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment::of_pairs(variables)
    }

    fn login(variables: &[(&str, &str)]) -> Login {
        environment(variables).postgres(None).unwrap().source.login().clone()
    }

    fn error(variables: &[(&str, &str)]) -> String {
        format!("{:#}", environment(variables).postgres(None).err().unwrap())
    }

    #[test]
    fn a_url_and_difys_variables_say_the_same() {
        let password = "p@:/%w d#?$'\"密";
        let by_url = login(&[(
            "DATABASE_URL",
            "postgresql+psycopg2://us%40er:p%40%3A%2F%25w%20d%23%3F$'%22%E5%AF%86@10.0.0.5:5433/my%2Fdb",
        )]);
        let by_parts = login(&[
            ("DB_HOST", "10.0.0.5"),
            ("DB_PORT", "5433"),
            ("DB_USERNAME", "us@er"),
            ("DB_PASSWORD", password),
            ("DB_DATABASE", "my/db"),
        ]);
        assert_eq!(by_url, by_parts);
        assert_eq!(by_url.password.unwrap().expose(), password);
        let defaults = login(&[]);
        assert_eq!(
            (&*defaults.host, defaults.port, &*defaults.database),
            ("localhost", 5432, "dify")
        );
        assert_eq!(login(&[("DATABASE_URL", "postgres://[::1]/x")]).host, "::1");
        let socket = login(&[("DATABASE_URL", "postgres:///x?host=/var/run/postgresql")]);
        assert_eq!((&*socket.host, &*socket.database), ("/var/run/postgresql", "x"));
    }

    #[test]
    fn tls_is_preferred_unless_somebody_says_more() {
        let mode = |variables: &[(&str, &str)]| login(variables).tls.mode;
        assert_eq!(mode(&[]), TlsMode::Prefer);
        assert_eq!(mode(&[("PGSSLMODE", "require")]), TlsMode::Require);
        assert_eq!(mode(&[("DB_EXTRAS", "sslmode=verify-ca")]), TlsMode::VerifyCa);
        assert_eq!(
            mode(&[("DB_EXTRAS", "?sslmode=disable"), ("PGSSLMODE", "require")]),
            TlsMode::Disable
        );
        let url = ("DATABASE_URL", "postgres://h/d?sslmode=verify-full&sslrootcert=/ca");
        assert_eq!(mode(&[url, ("PGSSLMODE", "disable")]), TlsMode::VerifyFull);
        assert_eq!(login(&[url]).tls.root_certificate, Some(PathBuf::from("/ca")));
        let system = login(&[("PGSSLROOTCERT", "system")]).tls;
        assert_eq!((system.mode, system.root_certificate), (TlsMode::VerifyFull, None));
        let told = error(&[("PGSSLMODE", "perhaps")]);
        assert!(told.contains("read PGSSLMODE: sslmode \"perhaps\" is none of"), "{told}");
    }

    #[test]
    fn options_are_taken_apart() {
        let extras = "options=-c%20search_path%3Dpublic%20--work-mem%3D1MB+-cx.y=a%5C%20b";
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            login(&[("DB_EXTRAS", extras)]).options,
            [pair("search_path", "public"), pair("work_mem", "1MB"), pair("x.y", "a b")]
        );
        for wrong in ["options=x", "options=-c", "options=-c+x", "options=-c+a%5C"] {
            let told = error(&[("DB_EXTRAS", wrong)]);
            assert!(told.contains("read DB_EXTRAS: options"), "{told}");
        }
    }

    #[test]
    fn other_databases_and_nonsense_are_refused_in_words() {
        for kind in ["mysql", "oceanbase", "seekdb", "Postgres"] {
            let told = error(&[("DB_TYPE", kind)]);
            let wanted = format!("DB_TYPE is {kind}: this tool reads Postgres only");
            assert!(told.starts_with(&wanted), "{told}");
        }
        let told = error(&[("DATABASE_URL", "mysql://u:hush@h/d")]);
        assert_eq!(told, "DATABASE_URL names mysql: this tool reads Postgres only");
        for url in ["postgres://u:hush@[", "postgres://u:hu/sh@h/d", "hush", "postgres://h/d#hush"]
        {
            let told = error(&[("DATABASE_URL", url)]);
            assert!(told.contains("read DATABASE_URL") && told.contains("%40"), "{told}");
            assert!(!told.contains("hush"), "{told}");
        }
        assert!(error(&[("DB_PORT", "many")]).contains("read DB_PORT"));
    }

    #[test]
    fn the_ledger_is_where_the_flag_or_the_environment_says() {
        let ledger = |flag, variables: &[(&str, &str)]| {
            environment(variables).postgres(flag).unwrap().ledger.login().host.clone()
        };
        let variable = (LEDGER_URL, "postgres://variable/l");
        assert_eq!(ledger(None, &[("DB_HOST", "source")]), "source");
        assert_eq!(ledger(None, &[("DB_HOST", "source"), variable]), "variable");
        assert_eq!(ledger(Some("postgres://flag/l"), &[variable]), "flag");
    }

    #[test]
    fn rows_are_deleted_in_the_source_or_where_the_flag_says() {
        let target = |flag| environment(&[("DB_HOST", "source")]).target(flag);
        assert_eq!(target(None).unwrap().login().host, "source");
        assert_eq!(target(Some("postgres://primary/d")).unwrap().login().host, "primary");
        let told = target(Some("hush")).unwrap_err().to_string();
        assert!(told.contains("read --purge-url") && !told.contains("hush"), "{told}");
    }
}
