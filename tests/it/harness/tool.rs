//! Runs the built binary in a clean environment and tells all about it when a test fails.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::harness::{DEADLINE, poll};

/// A command line in the making. Nothing of our environment reaches it but PATH.
pub(crate) struct Tool {
    command: Command,
    deadline: Duration,
}

/// How a process ended, with all that it wrote.
pub(crate) struct Outcome {
    pub(crate) command: String,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A process that has been started. It is killed when this is dropped.
pub(crate) struct Running {
    child: Child,
    command: String,
    deadline: Instant,
    stdout: Output,
    stderr: Output,
}

impl Tool {
    /// The tool with these arguments. It has [`DEADLINE`] unless told otherwise.
    pub(crate) fn new<T: AsRef<OsStr>>(arguments: impl IntoIterator<Item = T>) -> Self {
        Self::other(env!("CARGO_BIN_EXE_dify-sls-backfill"), arguments)
    }

    /// Another program, handled in the same way.
    pub(crate) fn other<T: AsRef<OsStr>>(
        program: &str,
        arguments: impl IntoIterator<Item = T>,
    ) -> Self {
        let mut command = Command::new(program);
        command.args(arguments).env_clear().stdin(Stdio::null());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        Self { command, deadline: DEADLINE }
    }

    pub(crate) fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.command.env(name, value.into());
        self
    }

    pub(crate) fn envs(mut self, pairs: Vec<(&'static str, String)>) -> Self {
        self.command.envs(pairs);
        self
    }

    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// How long it may run, from its start.
    pub(crate) fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs it to its end.
    #[track_caller]
    pub(crate) fn run(self) -> Outcome {
        self.spawn().wait()
    }

    #[track_caller]
    pub(crate) fn spawn(mut self) -> Running {
        // The environment may hold what a log should not: the arguments are enough.
        let program = self.command.get_program().to_string_lossy().into_owned();
        let arguments = self.command.get_args().map(|word| format!(" {}", word.to_string_lossy()));
        let command = format!("{program}{}", arguments.collect::<String>());
        let mut child = self
            .command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("start {command}: {error}"));
        let stdout = Output::read(child.stdout.take().expect("it is piped"));
        let stderr = Output::read(child.stderr.take().expect("it is piped"));
        Running { child, command, deadline: Instant::now() + self.deadline, stdout, stderr }
    }
}

impl Running {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// What it has written to standard output until now.
    pub(crate) fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What it has written to standard error until now.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits until it has written a whole line with `text` in it to either output, and gives that
    /// line without what is before `text`.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        let what = format!("`{text}` from {}", self.command);
        poll(&what, self.deadline.saturating_duration_since(Instant::now()), || {
            let ended = self.has_ended();
            if ended {
                self.stdout.finish();
                self.stderr.finish();
            }
            let written = format!("{}\n{}", self.stdout(), self.stderr());
            if let Some((_, after)) = written.split_once(text)
                && let Some((line, _)) = after.split_once('\n')
            {
                return Some(format!("{text}{line}"));
            }
            assert!(!ended, "{} ended before it wrote `{text}`:\n{written}", self.command);
            None
        })
    }

    /// Sends a signal by its name, such as `INT` or `STOP`.
    pub(crate) fn signal(&self, name: &str) {
        let id = self.id().to_string();
        let status = Command::new("kill").args(["-s", name, &id]).status().unwrap();
        assert!(status.success(), "kill -s {name} {id}");
    }

    /// It, unless it has ended.
    pub(crate) fn alive(&mut self) -> Option<&mut Self> {
        (!self.has_ended()).then_some(self)
    }

    /// Whether it runs longer than it may.
    pub(crate) fn is_late(&mut self) -> bool {
        !self.has_ended() && Instant::now() > self.deadline
    }

    /// `kill -9`, and what it had written.
    pub(crate) fn kill(mut self) -> Outcome {
        self.child.kill().unwrap();
        self.outcome()
    }

    /// Waits for its end; past the deadline it is killed and the test fails.
    #[track_caller]
    pub(crate) fn wait(mut self) -> Outcome {
        while !self.has_ended() {
            if Instant::now() > self.deadline {
                self.child.kill().unwrap();
                panic!("it did not end in time\n{}", self.outcome());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.outcome()
    }

    fn outcome(&mut self) -> Outcome {
        let status = self.child.wait().unwrap();
        self.stdout.finish();
        self.stderr.finish();
        Outcome {
            command: self.command.clone(),
            status,
            stdout: self.stdout.text(),
            stderr: self.stderr.text(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Outcome {
    /// Fails the test, with everything that is known, unless it ended with this exit code.
    #[track_caller]
    pub(crate) fn exits(self, code: i32) -> Self {
        assert!(self.status.code() == Some(code), "expected exit code {code}\n{self}");
        self
    }

    /// Fails the test unless standard output contains `text`.
    #[track_caller]
    pub(crate) fn prints(self, text: &str) -> Self {
        assert!(self.stdout.contains(text), "expected `{text}` on standard output\n{self}");
        self
    }

    /// Fails the test unless standard error contains `text`.
    #[track_caller]
    pub(crate) fn tells(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "expected `{text}` on standard error\n{self}");
        self
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "$ {}", self.command)?;
        match self.status.signal() {
            Some(signal) => writeln!(f, "killed by signal {signal}")?,
            None => writeln!(f, "exit code {}", self.status.code().unwrap_or(-1))?,
        }
        write!(f, "--- stdout\n{}\n--- stderr\n{}", self.stdout, self.stderr)
    }
}

/// A pipe that is read as fast as it is written, so that the process never waits for us.
struct Output {
    bytes: Arc<Mutex<Vec<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Output {
    fn read(mut pipe: impl Read + Send + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let sink = bytes.clone();
        let reader = std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                sink.lock().unwrap().extend_from_slice(&buffer[..length]);
            }
        });
        Self { bytes, reader: Some(reader) }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    fn finish(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;

    fn sh(script: &str) -> Tool {
        Tool::other("sh", ["-c", script])
    }

    fn message_of(failing: impl FnOnce()) -> String {
        let panic = catch_unwind(AssertUnwindSafe(failing)).expect_err("it must fail");
        *panic.downcast::<String>().expect("a message")
    }

    #[test]
    fn a_failing_expectation_tells_everything() {
        let message = message_of(|| {
            sh("echo out; echo err >&2; exit 3").run().exits(0);
        });
        for part in ["expected exit code 0", "$ sh -c echo out", "exit code 3", "out\n", "err\n"] {
            assert!(message.contains(part), "{part:?} is not in {message}");
        }
        sh("echo out; echo err >&2; exit 3").run().exits(3).prints("out").tells("err");
    }

    #[test]
    fn the_environment_is_what_was_given() {
        let outcome = sh("env").env("ONE", "1").envs(vec![("TWO", "2".into())]).run().exits(0);
        let mut names: Vec<_> =
            outcome.stdout.lines().filter_map(|line| line.split_once('=')).collect();
        names.retain(|(name, _)| !["PATH", "PWD", "SHLVL", "_", "OLDPWD"].contains(name));
        names.sort();
        assert_eq!(names, [("ONE", "1"), ("TWO", "2")]);
    }

    #[test]
    fn a_process_can_be_watched_stopped_and_killed() {
        let mut running =
            sh("trap 'kill $!; echo bye; exit 5' INT; sleep 60 & echo the port is 7; wait")
                .deadline(Duration::from_secs(10))
                .spawn();
        assert_eq!(running.wait_for("port is"), "port is 7");
        running.signal("INT");
        assert_eq!(running.wait_for("bye"), "bye");
        assert_eq!(running.stderr(), "");
        running.wait().exits(5);
        let killed = sh("exec sleep 60").arg("unused").spawn().kill();
        assert_eq!(killed.status.signal(), Some(9));
    }

    #[test]
    fn a_process_that_hangs_or_ends_early_fails_the_test() {
        let message = message_of(|| {
            sh("echo so far; exec sleep 60").deadline(Duration::from_millis(300)).run();
        });
        assert!(message.contains("in time") && message.contains("so far"), "{message}");
        let message = message_of(|| {
            sh("echo crashed").spawn().wait_for("listening");
        });
        assert!(message.contains("ended before") && message.contains("crashed"), "{message}");
    }

    #[test]
    fn the_binary_is_there() {
        Tool::new(["--help"]).run().exits(0);
    }
}
