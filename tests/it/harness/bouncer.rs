//! A PgBouncer in transaction mode, between the tool and a cluster.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::harness::cluster::{Cluster, Owner, PASSWORD, USER, binary};
use crate::harness::poll;

/// A running PgBouncer. Dropped, it is stopped and its files are deleted; by the same means as a
/// [`Cluster`], however the test ends.
pub(crate) struct Bouncer {
    guard: Child,
    directory: PathBuf,
    pub(crate) port: u16,
    servers: u32,
}

/// `$1` is the directory, the rest the program with its arguments.
const GUARD: &str = r#"
directory=$1
shift
exec 3<&0
"$@" </dev/null 3<&- >"$directory/log" 2>&1 &
bouncer=$!
read -r _ <&3
kill -TERM "$bouncer" 2>/dev/null
wait "$bouncer"
rm -rf "$directory"
"#;

impl Bouncer {
    /// In front of `cluster`, with at most `servers` connections to each database of it. All else
    /// is as PgBouncer comes: no start-up parameter of a client is let through unknown.
    pub(crate) fn start(cluster: &Cluster, servers: u32) -> Self {
        let owner = Owner::of_servers();
        let directory =
            tempfile::Builder::new().prefix("dify-sls-backfill-test-").tempdir().unwrap().keep();
        let users = directory.join("users");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        fs::write(&users, format!("\"{USER}\" \"{PASSWORD}\"\n")).unwrap();
        [&directory, &users].into_iter().for_each(|path| owner.give(path));
        let settings = write_settings(&directory, port, servers, cluster);
        let mut guard = owner.command("sh");
        guard.args(["-c", GUARD, "guard"]).arg(&directory).arg(binary("pgbouncer")).arg(&settings);
        guard.current_dir(&directory).process_group(0);
        let guard = guard.stdin(Stdio::piped()).spawn().unwrap();
        let bouncer = Self { guard, directory, port, servers };
        poll("PgBouncer to listen", Duration::from_secs(20), || {
            let log = fs::read_to_string(bouncer.directory.join("log")).unwrap_or_default();
            assert!(!log.contains("FATAL"), "PgBouncer does not start:\n{log}");
            TcpStream::connect(("127.0.0.1", port)).ok()
        });
        bouncer
    }

    /// Leads to another cluster from now on, as after a failover: its clients stay connected and
    /// hear nothing of it.
    pub(crate) fn lead_to(&self, cluster: &Cluster) {
        write_settings(&self.directory, self.port, self.servers, cluster);
        let pid = fs::read_to_string(self.directory.join("pid")).unwrap();
        let status = Command::new("kill").args(["-s", "HUP", pid.trim()]).status().unwrap();
        assert!(status.success(), "PgBouncer does not read its settings again");
    }
}

/// Writes the settings of a PgBouncer in front of `cluster`; gives their file.
fn write_settings(directory: &Path, port: u16, servers: u32, cluster: &Cluster) -> PathBuf {
    let settings = directory.join("settings");
    let text = format!(
        "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
         listen_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\n\
         auth_file = {}\npidfile = {}\npool_mode = transaction\ndefault_pool_size = {servers}\n",
        cluster.port,
        directory.join("users").display(),
        directory.join("pid").display(),
    );
    fs::write(&settings, text).unwrap();
    Owner::of_servers().give(&settings);
    settings
}

impl Drop for Bouncer {
    fn drop(&mut self) {
        // Closes the pipe first.
        let _ = self.guard.wait();
    }
}
