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

use crate::harness::session::Sessions;
use crate::harness::{needs, poll};

/// Dify's own default user and password, so that the tests log in as Dify's `.env` would.
pub(crate) const USER: &str = "postgres";
pub(crate) const PASSWORD: &str = "difyai123456";

/// A running server. Dropped, it is stopped at once and its files are deleted.
pub(crate) struct Cluster {
    guard: Child,
    directory: PathBuf,
    /// The TCP port on 127.0.0.1, with password authentication (scram).
    pub(crate) port: u16,
    /// In the database `postgres`.
    pub(crate) sessions: Sessions,
}

/// `$1` is the directory, `$2` a command that makes its `data`, the rest the server with its
/// arguments. The first descriptor is kept as the third, because a shell gives its
/// background jobs an empty standard input. It has them ignore SIGQUIT, too: a server that has only
/// just begun would not hear it, but dies of SIGTERM. A server that was restarted is another
/// process than the one begun here, and no child of the guard.
const GUARD: &str = r#"
directory=$1 make=$2
shift 2
exec 3<&0
eval "$make" </dev/null >"$directory/log" 2>&1 || echo "FATAL: $make" >>"$directory/log"
"$@" </dev/null 3<&- >>"$directory/log" 2>&1 &
server=$!
read -r _ <&3
restarted=$(head -n 1 "$directory/data/postmaster.pid" 2>/dev/null)
kill -TERM "$server" $restarted 2>/dev/null
kill -QUIT "$server" $restarted 2>/dev/null
wait "$server"
while [ -n "$restarted" ] && kill -0 "$restarted" 2>/dev/null; do sleep 0.05; done
rm -rf "$directory"
"#;

impl Cluster {
    /// The cluster that the tests of this process share, with Postgres's own settings: `fsync` and
    /// `synchronous_commit` on.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: OnceLock<Arc<Cluster>> = OnceLock::new();
        let start = || {
            Self::start_made_by(&[], |directory| {
                let [initdb, directory] = [binary("initdb"), directory.into()];
                let (initdb, directory) = (initdb.display(), directory.display());
                format!(
                    "{initdb} -D {directory}/new -U {USER} -E UTF8 --locale=C --no-sync \
                     --auth=scram-sha-256 --pwfile={directory}/password && \
                     cp -a {directory}/new {directory}/data"
                )
            })
        };
        SHARED.get_or_init(|| Arc::new(start())).clone()
    }

    /// A cluster for a test that needs one of its own, or other server settings, such as
    /// `("fsync", "off")`.
    pub(crate) fn start(settings: &[(&str, &str)]) -> Self {
        // What initdb has made once is copied: that is ten times faster.
        let new = Self::shared().directory.join("new");
        Self::start_made_by(settings, |directory| {
            format!("cp -a {} {}/data", new.display(), directory.display())
        })
    }

    /// A hot standby that follows this cluster.
    pub(crate) fn start_replica(&self) -> Self {
        Self::start_made_by(&[], |directory| {
            let (basebackup, directory) = (binary("pg_basebackup"), directory.display());
            format!(
                "{} -D {directory}/data -R --no-sync --checkpoint=fast \
                 --dbname=postgres://{USER}:{PASSWORD}@127.0.0.1:{}/postgres",
                basebackup.display(),
                self.port,
            )
        })
    }

    fn start_made_by(settings: &[(&str, &str)], make: impl Fn(&Path) -> String) -> Self {
        // Another process may take the free port before Postgres does.
        for _ in 0..5 {
            if let Some(cluster) = Self::try_start(settings, &make) {
                return cluster;
            }
        }
        panic!("no port on 127.0.0.1 stays free long enough for Postgres");
    }

    /// `None` if the port was taken.
    fn try_start(settings: &[(&str, &str)], make: &impl Fn(&Path) -> String) -> Option<Self> {
        let owner = Owner::of_servers();
        let prefix = "dify-sls-backfill-test-";
        let directory = tempfile::Builder::new().prefix(prefix).tempdir_in(folder());
        let directory = directory.unwrap().keep();
        let data = directory.join("data");
        fs::write(directory.join("password"), PASSWORD).unwrap();
        owner.give(&directory);
        owner.give(&directory.join("password"));

        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut guard = owner.command("sh");
        guard.args(["-c", GUARD, "guard"]).arg(&directory).arg(make(&directory));
        guard.arg(binary("postgres"));
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

        let log = directory.join("log");
        let sessions = Sessions::new(port, "postgres");
        let cluster = Self { guard, directory, port, sessions };
        poll("Postgres to start", Duration::from_secs(60), || {
            let log = fs::read_to_string(&log).unwrap_or_default();
            if log.contains("could not create any TCP/IP sockets") {
                return Some(false);
            }
            assert!(!log.contains("FATAL"), "Postgres does not start:\n{log}");
            // A replica says "read-only connections".
            let is_ready = log.contains("ready to accept connections")
                || log.contains("ready to accept read-only connections");
            is_ready.then_some(true)
        })
        .then_some(cluster)
    }

    /// What the server has written to its log.
    pub(crate) fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.directory.join("log")).unwrap()).into_owned()
    }

    /// Stops the server, cutting all connections, and starts it again.
    pub(crate) fn restart(&self) {
        self.stop_and_start("fast");
    }

    /// The server crashes, and is up again: what was not on its disk is lost.
    pub(crate) fn crash(&self) {
        self.stop_and_start("immediate");
    }

    fn stop_and_start(&self, mode: &str) {
        let mut restart = Owner::of_servers().command(binary("pg_ctl"));
        restart.args(["restart", "-w", "-s", "-m", mode, "-D"]).arg(self.directory.join("data"));
        restart.arg("-l").arg(self.directory.join("log")).current_dir(&self.directory);
        let status = restart.stdin(Stdio::null()).status().unwrap();
        assert!(status.success(), "Postgres does not start again:\n{}", self.log());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Closes the pipe first.
        let _ = self.guard.wait();
    }
}

/// Where clusters are: in memory if there is room, because a database is three hundred files, and
/// each commit waits for a disk. No test pulls the plug, so none shows less for it. Else, and where
/// TMPDIR is set, on a disk.
fn folder() -> &'static Path {
    /// What the clusters of some tests at a time have, and as much again.
    const ROOM_KIB: u64 = 4 << 20;
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let memory = Path::new("/dev/shm");
        let is_roomy = free_kib(memory).is_some_and(|free| free >= ROOM_KIB);
        match std::env::var_os("TMPDIR") {
            None if is_roomy => memory.to_owned(),
            _ => std::env::temp_dir(),
        }
    })
}

/// What may be written into a folder that is in memory; `None` if there is no such folder.
fn free_kib(folder: &Path) -> Option<u64> {
    let df = Command::new("df").args(["-k", "--output=fstype,avail"]).arg(folder).output().ok()?;
    let df = String::from_utf8(df.stdout).ok()?;
    let (kind, free) = df.lines().nth(1)?.split_once(' ')?;
    let free: u64 = free.trim().parse().ok()?;
    let memory = fs::read_to_string("/proc/meminfo").ok()?;
    let memory = memory.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let memory = memory.trim().strip_suffix(" kB")?.parse().ok()?;
    (kind == "tmpfs").then_some(free.min(memory))
}

/// A program of Postgres's, or PgBouncer.
pub(crate) fn binary(name: &str) -> PathBuf {
    needs::check();
    needs::find(name).expect("what is needed is there")
}

/// Whose processes and files a cluster's are: ours, or those of `postgres` if we are root.
pub(crate) enum Owner {
    Us,
    Other { uid: u32, gid: u32 },
}

impl Owner {
    pub(crate) fn of_servers() -> Self {
        needs::check();
        Self::find().expect("what is needed is there")
    }

    /// `None` if we are root and there is no user `postgres`.
    pub(crate) fn find() -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        // The owner of our own entry in /proc is our effective user.
        if fs::metadata("/proc/self").unwrap().uid() != 0 {
            return Some(Self::Us);
        }
        let users = fs::read_to_string("/etc/passwd").unwrap();
        let user = users.lines().find(|line| line.starts_with("postgres:"))?;
        let ids: Vec<u32> = user.split(':').skip(2).take(2).map(|id| id.parse().unwrap()).collect();
        Some(Self::Other { uid: ids[0], gid: ids[1] })
    }

    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        if let Self::Other { uid, gid } = self {
            command.uid(*uid).gid(*gid);
        }
        command.env_remove("PGPORT").env_remove("PGDATA");
        command
    }

    pub(crate) fn give(&self, path: &Path) {
        if let Self::Other { uid, gid } = self {
            std::os::unix::fs::chown(path, Some(*uid), Some(*gid)).unwrap();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_that_was_restarted_leaves_nothing() {
        let cluster = Cluster::start(&[("fsync", "off")]);
        let directory = cluster.directory.clone();
        let pid = || fs::read_to_string(directory.join("data/postmaster.pid")).unwrap();
        let first = pid();
        cluster.restart();
        assert_ne!(first.lines().next(), pid().lines().next());
        let server = PathBuf::from("/proc").join(pid().lines().next().unwrap());
        assert!(server.exists());
        drop(cluster);
        assert!(!directory.exists() && !server.exists());
    }

    #[test]
    fn a_dropped_cluster_leaves_nothing() {
        let cluster = Cluster::start(&[("fsync", "off")]);
        let directory = cluster.directory.clone();
        let server = fs::read_to_string(directory.join("data/postmaster.pid")).unwrap();
        let server = PathBuf::from("/proc").join(server.lines().next().unwrap());
        assert!(server.exists());
        drop(cluster);
        assert!(!directory.exists(), "{} is still there", directory.display());
        assert!(!server.exists(), "{} still runs", server.display());
    }
}
