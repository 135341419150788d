//! Throw-away Postgres clusters, one of them shared by all tests of the process.
//!
//! How a cluster is stopped and deleted even when the test process panics, is killed or exits
//! without running destructors: a shell, the guard, is the server's parent and reads from a pipe
//! whose other end only the test process holds. When that process is gone, the kernel closes the
//! pipe, the guard's `read` ends, and it stops the server and removes the directory. It has its own
//! process group, so that Ctrl-C on a terminal does not take the guard first.
//!
//! Postgres refuses to run as root: then all of it runs as the user `postgres`.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::harness::poll;

/// Dify's own default user and password, so that the tests log in as Dify's `.env` would.
pub(crate) const USER: &str = "postgres";
pub(crate) const PASSWORD: &str = "difyai123456";

/// A running server. Dropped, it is stopped at once and its files are deleted.
pub(crate) struct Cluster {
    guard: Child,
    /// The TCP port on 127.0.0.1, with password authentication (scram).
    pub(crate) port: u16,
}

/// `$1` is the directory, `$2` the server's binary, the rest its arguments. The first descriptor is
/// kept as the third, because a shell gives its background jobs an empty standard input.
const GUARD: &str = r#"
directory=$1 postgres=$2
shift 2
exec 3<&0
"$postgres" "$@" </dev/null 3<&- >"$directory/log" 2>&1 &
server=$!
read -r _ <&3
kill -QUIT "$server" 2>/dev/null
wait "$server"
rm -rf "$directory"
"#;

impl Cluster {
    /// The cluster that the tests of this process share, with Postgres's own settings: `fsync` and
    /// `synchronous_commit` on.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: OnceLock<Arc<Cluster>> = OnceLock::new();
        SHARED.get_or_init(|| Arc::new(Self::start(&[]))).clone()
    }

    /// A cluster for a test that needs other server settings, such as `("fsync", "off")`.
    pub(crate) fn start(settings: &[(&str, &str)]) -> Self {
        // Another process may take the free port before Postgres does.
        for _ in 0..5 {
            if let Some(cluster) = Self::try_start(settings) {
                return cluster;
            }
        }
        panic!("no port on 127.0.0.1 stays free long enough for Postgres");
    }

    /// `None` if the port was taken.
    fn try_start(settings: &[(&str, &str)]) -> Option<Self> {
        let owner = Owner::of_servers();
        let directory =
            tempfile::Builder::new().prefix("dify-sls-backfill-test-").tempdir().unwrap().keep();
        let data = directory.join("data");
        fs::write(directory.join("password"), PASSWORD).unwrap();
        owner.give(&directory);
        owner.give(&directory.join("password"));
        init(&owner, &directory, &data);

        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut guard = owner.command("sh");
        guard.args(["-c", GUARD, "guard"]).arg(&directory).arg(binary("postgres"));
        guard.arg("-D").arg(&data).args(["-p", &port.to_string()]);
        guard.arg("-c").arg(format!("unix_socket_directories={}", directory.display()));
        for (name, value) in
            [("listen_addresses", "127.0.0.1"), ("max_connections", "200"), ("timezone", "UTC")]
                .iter()
                .chain(settings)
        {
            guard.args(["-c", &format!("{name}={value}")]);
        }
        guard.current_dir(&directory).process_group(0);
        let guard = guard.stdin(Stdio::piped()).spawn().unwrap();

        let cluster = Self { guard, port };
        let log = directory.join("log");
        poll("Postgres to start", Duration::from_secs(30), || {
            let log = fs::read_to_string(&log).unwrap_or_default();
            if log.contains("could not create any TCP/IP sockets") {
                return Some(false);
            }
            assert!(!log.contains("FATAL"), "Postgres does not start:\n{log}");
            log.contains("ready to accept connections").then_some(true)
        })
        .then_some(cluster)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Closes the pipe first.
        let _ = self.guard.wait();
    }
}

fn init(owner: &Owner, directory: &Path, data: &Path) {
    let mut initdb = owner.command(binary("initdb"));
    initdb.arg("-D").arg(data).args(["-U", USER, "-E", "UTF8", "--locale=C", "--no-sync"]);
    initdb.args(["--auth=scram-sha-256", "--pwfile"]).arg(directory.join("password"));
    let output = initdb.current_dir(directory).output().unwrap();
    assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
}

/// One of Postgres's programs: of the newest version in Debian's folders, else from the PATH. In
/// this order, because what Debian puts on the PATH is a Perl script that looks for the program.
pub(crate) fn binary(name: &str) -> PathBuf {
    let mut installed: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let folder = entry.ok()?.path();
            Some((folder.file_name()?.to_str()?.parse().ok()?, folder.join("bin")))
        })
        .collect();
    installed.sort();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders =
        installed.into_iter().rev().map(|(_, folder)| folder).chain(std::env::split_paths(&path));
    let found = folders.find_map(|folder| Some(folder.join(name)).filter(|path| path.exists()));
    found.unwrap_or_else(|| panic!("{name} is not installed: install postgresql"))
}

/// Whose processes and files a cluster's are: ours, or those of `postgres` if we are root.
enum Owner {
    Us,
    Other { uid: u32, gid: u32 },
}

impl Owner {
    fn of_servers() -> Self {
        use std::os::unix::fs::MetadataExt;
        // The owner of our own entry in /proc is our effective user.
        if fs::metadata("/proc/self").unwrap().uid() != 0 {
            return Self::Us;
        }
        let users = fs::read_to_string("/etc/passwd").unwrap();
        let user = users.lines().find(|line| line.starts_with("postgres:"));
        let user = user.expect("root needs a user `postgres` to run Postgres as");
        let ids: Vec<u32> = user.split(':').skip(2).take(2).map(|id| id.parse().unwrap()).collect();
        Self::Other { uid: ids[0], gid: ids[1] }
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        if let Self::Other { uid, gid } = self {
            command.uid(*uid).gid(*gid);
        }
        command.env_remove("PGPORT").env_remove("PGDATA");
        command
    }

    fn give(&self, path: &Path) {
        if let Self::Other { uid, gid } = self {
            std::os::unix::fs::chown(path, Some(*uid), Some(*gid)).unwrap();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The directory of the cluster's guard: its first argument after the script's name.
    fn directory(cluster: &Cluster) -> PathBuf {
        let arguments = fs::read(format!("/proc/{}/cmdline", cluster.guard.id())).unwrap();
        let directory = arguments.split(|byte| *byte == 0).nth(4).unwrap();
        PathBuf::from(String::from_utf8(directory.to_vec()).unwrap())
    }

    #[test]
    fn a_dropped_cluster_leaves_nothing() {
        let cluster = Cluster::start(&[("fsync", "off")]);
        let directory = directory(&cluster);
        let server = fs::read_to_string(directory.join("data/postmaster.pid")).unwrap();
        let server = PathBuf::from("/proc").join(server.lines().next().unwrap());
        assert!(server.exists());
        drop(cluster);
        assert!(!directory.exists(), "{} is still there", directory.display());
        assert!(!server.exists(), "{} still runs", server.display());
    }
}
