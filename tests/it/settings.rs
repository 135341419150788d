//! Settings: env files, secrets, TLS; and that no secret is told.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::harness::bouncer::Bouncer;
use crate::harness::cluster::{Cluster, Owner, binary};
use crate::harness::database::Database;
use crate::harness::fixture::Fixture;
use crate::harness::poll;
use crate::harness::simulator::Simulator;
use crate::harness::tool::{Outcome, Running, Tool};

/// Fewer rows than any limit, more than one.
fn small_world() -> Fixture {
    let fixture = Fixture { database: Database::of_shape("dify-1.12"), sls: Simulator::start() };
    fixture.fill(20, 5);
    fixture
}

/// The settings as lines of an env file.
fn lines(settings: &[(&str, String)]) -> String {
    settings.iter().map(|(name, value)| format!("{name}='{value}'\n")).collect()
}

#[test]
fn an_env_file_is_all_that_is_needed() {
    let fixture = small_world();
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let dify = format!(
        "# Dify\nexport DB_TYPE=postgresql\n{}SECRET_KEY=sk-9f73s3ljTXVcMT3Blb3ljTqtsKiGHXVcMT3Bl\n\
         CELERY_BROKER_URL=redis://:${{REDIS_PASSWORD:-difyai123456}}@redis:6379/1\nDB_HOST=nowhere\n",
        lines(&fixture.database.env())
    );
    fs::write(path(".env"), dify).unwrap();
    fs::write(path("sls.env"), format!("{}DB_HOST=127.0.0.1\n", lines(&fixture.sls.env())))
        .unwrap();
    let tool = |command: &str, first: &str, second: &str| {
        Tool::new(command.split(' '))
            .arg("--env-file")
            .arg(path(first))
            .arg("--env-file")
            .arg(path(second))
    };
    tool("init", ".env", "sls.env").run().exits(0);
    tool("run", ".env", "sls.env").run().exits(0).tells("0 differ");
    fixture.holds_every_finished_row_once();
    // The later file is stronger, the environment stronger than both; an empty variable is none.
    tool("run", "sls.env", ".env").run().exits(3).tells("connect to Postgres at nowhere");
    tool("run", "sls.env", ".env").env("DB_HOST", "127.0.0.1").run().exits(0);
    tool("run", ".env", "sls.env").env("DB_HOST", "").run().exits(0);
    tool("run", ".env", "sls.env").env("DB_TYPE", "mysql").run().exits(2).tells(
        "DB_TYPE is mysql: this tool reads Postgres only, Dify's data in mysql is out of its reach",
    );
    tool("run", ".env", "none.env").run().exits(2).tells("read --env-file").tells("none.env");
    fs::write(path("bad.env"), "A=1\nDB_PASSWORD=\"hush\n").unwrap();
    let bad = tool("run", ".env", "bad.env").run().exits(2);
    let bad = bad.tells("bad.env: line 2: a quotation mark is never closed");
    assert!(!bad.stderr.contains("hush"), "{bad}");
    fs::write(path("dollar.env"), "DB_PASSWORD=pa$word\n").unwrap();
    tool("run --dry-run", ".env", "dollar.env")
        .env("DB_HOST", "127.0.0.1")
        .run()
        .exits(3)
        .tells("DB_PASSWORD in ")
        .tells("names $word, which is not set: nothing stands there now")
        .tells("password authentication failed");
}

/// `status` was let in, and has found that nothing was ever sent from there.
#[track_caller]
fn connects(status: Outcome) -> Outcome {
    status.exits(3).tells("there is no ledger at ")
}

#[test]
fn any_password_works_from_the_environment_a_url_or_a_file() {
    let fixture = small_world();
    let password = "p@:/%25 w?#&=$'\"\\密";
    let encoded = "p%40%3A%2F%2525%20w%3F%23%26%3D%24%27%22%5C%E5%AF%86";
    let role = format!("odd@{}", fixture.database.name);
    fixture
        .database
        .psql(&format!("CREATE ROLE \"{role}\" SUPERUSER LOGIN PASSWORD $pw${password}$pw$"));
    let by_parts = || fixture.tool("status").env("DB_USERNAME", role.as_str());
    connects(by_parts().env("DB_PASSWORD", password).run());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    fs::write(&file, format!("{password}\n")).unwrap();
    connects(by_parts().env("DB_PASSWORD", "").env("DB_PASSWORD_FILE", &file).run());
    by_parts().env("DB_PASSWORD_FILE", &file).run().exits(2).tells("both DB_PASSWORD and ");
    let url = fixture.database.url();
    let (_, host) = url.split_once('@').unwrap();
    let url = format!("postgresql://{}:{encoded}@{host}", role.replace('@', "%40"));
    connects(by_parts().env("DATABASE_URL", &url).run());
    fs::write(&file, &url).unwrap();
    connects(by_parts().env("DATABASE_URL_FILE", &file).run());
    let by_file = by_parts().env("SLS_BACKFILL_LEDGER_URL_FILE", &file);
    connects(by_file.env("DB_USERNAME", "postgres").run());
    // A flag is seen by everybody.
    let flag = connects(fixture.tool("status").arg("--ledger-url").arg(&url).run());
    flag.tells("everybody on this machine can see the password in --ledger-url");
    fixture.database.psql(&format!("DROP OWNED BY \"{role}\"; DROP ROLE \"{role}\""));
}

#[test]
fn options_reach_the_server_and_a_pgbouncer_takes_none() {
    let database = Database::of_shape("dify-1.12");
    let status = |options: &str| {
        let extras = format!("options={options}");
        Tool::new(["status"]).envs(database.env()).env("DB_EXTRAS", extras)
    };
    connects(status("-c%20mine.text=a%5C%20b").run());
    let unknown = status("-c%20mine.text=a%5C%20b%20--no-such-setting=1").run().exits(3);
    unknown.tells("unrecognized configuration parameter \"no_such_setting\"");
    let bouncer = Bouncer::start(&Cluster::shared(), 2);
    let through = status("-c%20mine.text=a").env("DB_PORT", bouncer.port.to_string());
    through.run().exits(3).tells("hint: leave options out of DB_EXTRAS");
}

#[test]
fn the_commit_is_in_the_version_and_verbosity_is_as_asked() {
    let version = Tool::new(["--version"]).run().exits(0).stdout;
    let beginning = format!("dify-sls-backfill {} (commit ", env!("CARGO_PKG_VERSION"));
    assert!(version.starts_with(&beginning), "{version}");
    let fixture = small_world();
    assert_eq!(fixture.tool("init -q").run().exits(0).stderr, "");
    let run = |arguments: &str| fixture.tool(format!("run {arguments}").trim());
    assert!(!run("").run().exits(0).stderr.contains("DEBUG"));
    run("-v").run().exits(0).tells("DEBUG");
    run("").env("SQLALCHEMY_ECHO", "true").run().exits(0).tells("DEBUG");
    run("").env("LOGSTORE_SQL_ECHO", "True").run().exits(0).tells("DEBUG");
    assert_eq!(run("-q").env("SQLALCHEMY_ECHO", "true").run().exits(0).stderr, "");
    let lines = run("--log-format json").run().exits(0).stderr;
    for line in lines.lines() {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|_| panic!("{line}"));
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let fixture = small_world();
    fixture.tool("init").run().exits(0);
    let tool = env!("CARGO_BIN_EXE_dify-sls-backfill");
    for command in ["status", "run", "help run", "--version"] {
        let script = format!("'{tool}' {command} | true; exit ${{PIPESTATUS[0]}}");
        let script = Tool::other("bash", ["-c", &script]);
        let outcome = script.envs(fixture.database.env()).envs(fixture.sls.env()).run().exits(0);
        assert!(!outcome.stderr.contains("panicked"), "{outcome}");
    }
}

/// A CA and what it has signed, made by openssl, in a folder that the server can read.
struct Certificates {
    folder: tempfile::TempDir,
}

impl Certificates {
    /// A certificate for `names`, such as `IP:127.0.0.1`.
    fn new(names: &str) -> Self {
        let owner = Owner::of_servers();
        let certificates = Self { folder: tempfile::tempdir().unwrap() };
        let path = |name: &str| certificates.path(name).display().to_string();
        let new_key = ["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
        let openssl = |begin: &[&str], end: &[&str]| {
            let output = Command::new("openssl").args(begin).args(end).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        openssl(
            &new_key,
            &[
                "-x509",
                "-subj",
                &format!("/CN=CA of {names}"),
                "-keyout",
                &path("ca.key"),
                "-out",
                &path("ca.crt"),
            ],
        );
        openssl(
            &new_key,
            &["-subj", "/CN=server", "-keyout", &path("key"), "-out", &path("request")],
        );
        fs::write(path("extensions"), format!("subjectAltName={names}\n")).unwrap();
        openssl(
            &["x509", "-req", "-in", &path("request"), "-CA", &path("ca.crt"), "-CAcreateserial"],
            &["-CAkey", &path("ca.key"), "-extfile", &path("extensions"), "-out", &path("crt")],
        );
        [certificates.folder.path(), &certificates.path("key"), &certificates.path("crt")]
            .into_iter()
            .for_each(|path| owner.give(path));
        certificates
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A server with this certificate that says how each connection was encrypted.
    fn cluster(&self, more: &[(&str, &str)]) -> Arc<Cluster> {
        let (key, crt) = (self.path("key"), self.path("crt"));
        let mut settings = vec![
            ("ssl", "on"),
            ("ssl_key_file", key.to_str().unwrap()),
            ("ssl_cert_file", crt.to_str().unwrap()),
            ("log_connections", "on"),
        ];
        settings.extend(more);
        Arc::new(Cluster::start(&settings))
    }
}

/// How the tool's connections since `before` were encrypted, as the server's log says.
fn is_encrypted(cluster: &Cluster, before: usize) -> Vec<bool> {
    let log = cluster.log()[before..].to_owned();
    let ours = log.lines().filter(|line| {
        line.contains("connection authorized:")
            && line.contains("application_name=dify-sls-backfill")
    });
    ours.map(|line| line.contains("SSL enabled")).collect()
}

#[test]
fn tls_with_postgres_is_as_strict_as_libpq_would_be() {
    let certificates = Certificates::new("IP:127.0.0.1");
    let cluster = certificates.cluster(&[]);
    let database = Database::fresh_in(&cluster).shape("dify-1.12");
    let (ca, other) = (certificates.path("ca.crt"), Certificates::new("DNS:else.where"));
    let status = |settings: &[(&str, &str)]| {
        let before = cluster.log().len();
        let tool = Tool::new(["status"]).envs(database.env());
        let tool = settings.iter().fold(tool, |tool, (name, value)| tool.env(name, *value));
        let outcome = tool.run();
        // The server writes its log a moment later.
        (outcome, is_encrypted(&cluster, before))
    };
    let ca = ca.to_str().unwrap();
    let foreign = other.path("ca.crt");
    let verified = format!("{}?sslmode=verify-full&sslrootcert={ca}", database.url());
    for settings in [
        &[][..],
        &[("PGSSLMODE", "prefer")],
        &[("PGSSLMODE", "require")],
        &[("DB_EXTRAS", "sslmode=require")],
        &[("PGSSLMODE", "verify-full"), ("PGSSLROOTCERT", ca)],
        &[("PGSSLMODE", "require"), ("PGSSLROOTCERT", ca)],
        &[("DATABASE_URL", &*verified)],
        &[("PGSSLMODE", "verify-full"), ("SSL_CERT_FILE", ca)],
    ] {
        let (outcome, encrypted) = status(settings);
        connects(outcome);
        assert!(!encrypted.is_empty() && encrypted.iter().all(|is| *is), "{settings:?}");
    }
    let (outcome, encrypted) = status(&[("PGSSLMODE", "disable")]);
    connects(outcome);
    assert!(!encrypted.is_empty() && encrypted.iter().all(|is| !*is));
    for settings in [
        &[("PGSSLMODE", "verify-full")][..],
        &[("PGSSLMODE", "verify-ca"), ("PGSSLROOTCERT", foreign.to_str().unwrap())],
        &[("PGSSLMODE", "require"), ("PGSSLROOTCERT", foreign.to_str().unwrap())],
    ] {
        let (outcome, encrypted) = status(settings);
        outcome.exits(3).tells("UnknownIssuer").tells("hint: check PGSSLMODE, PGSSLROOTCERT");
        assert!(encrypted.is_empty(), "{settings:?}");
    }
}

#[test]
fn a_name_that_is_not_the_servers_is_refused_by_verify_full_alone() {
    let certificates = Certificates::new("DNS:else.where");
    let cluster = certificates.cluster(&[]);
    let database = Database::fresh_in(&cluster).shape("dify-1.12");
    let status = |mode| {
        let tool = Tool::new(["status"]).envs(database.env()).env("PGSSLMODE", mode);
        tool.env("PGSSLROOTCERT", certificates.path("ca.crt")).run()
    };
    connects(status("verify-ca"));
    status("verify-full").exits(3).tells("not valid for name").tells("hint: check PGSSLMODE");
}

#[test]
fn a_server_without_fitting_tls_is_preferred_to_none() {
    let certificates = Certificates::new("IP:127.0.0.1");
    let old = certificates
        .cluster(&[("ssl_min_protocol_version", "TLSv1"), ("ssl_max_protocol_version", "TLSv1.1")]);
    for cluster in [old, Cluster::shared()] {
        let database = Database::fresh_in(&cluster).shape("dify-1.12");
        let status = |mode| Tool::new(["status"]).envs(database.env()).env("PGSSLMODE", mode).run();
        connects(status("prefer"));
        status("require").exits(3).tells("hint: check PGSSLMODE");
    }
}

/// Serves TLS with this certificate in front of a port of this machine, until the process ends.
fn tls_in_front_of(port: u16, certificates: &Certificates) -> u16 {
    let chain = vec![CertificateDer::from_pem_file(certificates.path("crt")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(certificates.path("key")).unwrap();
    let provider = tokio_rustls::rustls::crypto::ring::default_provider();
    let config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
    let tls_port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        runtime.block_on(async {
            while let Ok((stream, _)) = listener.accept().await {
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(mut client) = acceptor.accept(stream).await else { return };
                    let mut server = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
    });
    tls_port
}

#[test]
fn sls_is_reached_by_tls_with_an_extra_ca() {
    let fixture = small_world();
    let certificates = Certificates::new("IP:127.0.0.1");
    let port = tls_in_front_of(fixture.sls.port, &certificates);
    let tool = |command: &str| {
        fixture.tool(command).env("ALIYUN_SLS_ENDPOINT", format!("https://127.0.0.1:{port}"))
    };
    for name in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"] {
        tool("init").env(name, certificates.path("ca.crt")).run().exits(0);
    }
    let folder = tempfile::tempdir().unwrap();
    fs::copy(certificates.path("ca.crt"), folder.path().join("ca.pem")).unwrap();
    let file = folder.path().join(".env");
    fs::write(&file, format!("REQUESTS_CA_BUNDLE={}\n", certificates.path("ca.crt").display()))
        .unwrap();
    tool("run").arg("--env-file").arg(&file).run().exits(0).tells("0 differ");
    fixture.holds_every_finished_row_once();
    tool("run").env("SSL_CERT_FILE", "/no/such").run().exits(2).tells("read SSL_CERT_FILE");
    let mut distrustful = tool("run").spawn();
    distrustful.wait_for("UnknownIssuer");
    distrustful.kill();
}

/// What must be found nowhere, in the forms in which it might be.
struct Secrets(Vec<String>);

impl Secrets {
    #[track_caller]
    fn are_not_in(&self, text: &str, place: &str) {
        for secret in &self.0 {
            assert!(!text.contains(secret), "{place} tells {secret:?}:\n{text}");
        }
    }
}

/// The command line as every user of this machine can see it.
fn command_line(running: &Running) -> String {
    let path = format!("/proc/{}/cmdline", running.id());
    poll("the program to be started", Duration::from_secs(10), || {
        let text = String::from_utf8_lossy(&fs::read(&path).ok()?).replace('\0', " ");
        // Before exec it is still the test's own; a process that has ended has none.
        (text.is_empty() || text.contains("dify-sls-backfill ")).then_some(text)
    })
}

#[test]
fn no_secret_is_told_anywhere() {
    let database = Database::of_shape("dify-1.12");
    let password = "hush-1 @:/%\"w";
    let role = format!("secret_{}", database.name);
    database.psql(&format!("CREATE ROLE {role} SUPERUSER LOGIN PASSWORD $pw${password}$pw$"));
    let secrets = Secrets(
        [password, "hush-1%20%40%3A%2F%25%22w", "hush-1", "hush-2", "hush+3", "hush%2B3", "hush-4"]
            .map(str::to_owned)
            .to_vec(),
    );
    let keys = [
        ("ALIYUN_SLS_ACCESS_KEY_ID", "somebody".to_owned()),
        ("ALIYUN_SLS_ACCESS_KEY_SECRET", "hush-2 $%\"'".to_owned()),
        ("ALIYUN_SLS_SECURITY_TOKEN", "hush+3/==".to_owned()),
    ];
    let with_keys = |tool: Tool| tool.envs(keys.to_vec()).env("RUST_BACKTRACE", "full");
    let mut simulator =
        with_keys(Tool::new(["-vv", "simulate", "--listen", "127.0.0.1:0"])).spawn();
    secrets.are_not_in(&command_line(&simulator), "the simulator's command line");
    let line = simulator.wait_for("listening on ");
    let address = line.trim_start_matches("listening on ").trim().to_owned();
    let fixture = Fixture { database, sls: Simulator::start() };
    fixture.fill(20, 5);

    let tool = |arguments: &[&str]| {
        with_keys(Tool::new(arguments).envs(fixture.database.env()).envs(fixture.sls.env()))
            .env("ALIYUN_SLS_ENDPOINT", format!("http://{address}"))
            .env("DB_USERNAME", role.as_str())
            .env("DB_PASSWORD", password)
    };
    let mut told = String::new();
    let mut watch = |tool: Tool, codes: &[i32]| {
        let running = tool.spawn();
        secrets.are_not_in(&command_line(&running), "a command line");
        let outcome = running.wait();
        assert!(codes.contains(&outcome.status.code().unwrap_or(-1)), "{outcome}");
        secrets.are_not_in(&outcome.stdout, "standard output");
        secrets.are_not_in(&outcome.stderr, "standard error");
        told += &outcome.stderr;
    };
    let help = Tool::new(["--help"]).run().exits(0).stdout;
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands = commands.take_while(|line| !line.is_empty());
    let mut commands: Vec<_> = commands.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(commands.contains(&"status"), "{help}");
    // `simulate` runs already; `demo` wants an empty database; `help` comes without settings.
    commands.retain(|command| !["simulate", "demo", "help"].contains(command));
    for format in ["text", "json"] {
        for command in &commands {
            let mut arguments = vec![*command, "-vv", "--log-format", format];
            if *command == "audit" {
                // It waits until no earlier request can arrive: minutes, with SLS's own figures.
                arguments.extend(["--signature-life-s=1", "--late-s=1", "--visible-s=1"]);
            }
            watch(tool(&arguments), &[0, 2, 3]);
        }
        watch(tool(&["run", "--dry-run", "-vv", "--log-format", format]), &[0]);
    }
    // Whatever goes wrong.
    watch(tool(&["run", "-vv"]).env("DB_PASSWORD", "hush-4"), &[3]);
    watch(tool(&["run", "-vv"]).env("ALIYUN_SLS_ACCESS_KEY_SECRET", "hush-4"), &[3]);
    watch(
        tool(&["run", "-vv"])
            .env("ALIYUN_SLS_ACCESS_KEY_SECRET", "hush-4\n\0".trim_end_matches('\0')),
        &[3],
    );
    watch(tool(&["run", "-vv"]).env("ALIYUN_SLS_SECURITY_TOKEN", "hush-4\n"), &[3]);
    watch(tool(&["run", "-vv"]).env("DATABASE_URL", "postgres://u:hush-4/@h/d"), &[2]);
    watch(
        tool(&["run", "-vv"]).env("DATABASE_URL", "postgres://u:hush-4@127.0.0.1:1/d?x=hush-4"),
        &[3],
    );
    watch(tool(&["run", "-vv"]).env("DB_EXTRAS", "password=hush-4&sslpassword=hush-4"), &[3]);
    let empty = Database::fresh();
    watch(tool(&["-vv", "demo", "--rows", "300"]).env("DB_DATABASE", empty.name.as_str()), &[0]);
    assert!(
        told.contains("sqlx") || told.contains("TRACE") || told.contains("DEBUG"),
        "{told:.500}"
    );

    for name in [&fixture.database.name, &empty.name] {
        let dump = Command::new(binary("pg_dump"))
            .args(["-n", "sls_backfill"])
            .arg(fixture.database.url().replace(&fixture.database.name, name))
            .output()
            .unwrap();
        let dump = String::from_utf8_lossy(&dump.stdout).into_owned();
        assert!(dump.contains("sls_backfill.batch"), "{name} has a ledger");
        secrets.are_not_in(&dump, "the ledger");
    }
    let of_simulator = simulator.kill();
    secrets.are_not_in(&of_simulator.stdout, "the simulator's standard output");
    secrets.are_not_in(&of_simulator.stderr, "the simulator's standard error");
    fixture.database.psql(&format!("REASSIGN OWNED BY {role} TO postgres"));
    empty.psql(&format!("REASSIGN OWNED BY {role} TO postgres; DROP ROLE {role}"));
}
