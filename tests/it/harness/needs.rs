//! What must be installed for these tests: told once, and all of it, where something is missing.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Once;

use crate::harness::cluster::Owner;

/// Programs, and the packages that have them, by Debian's names.
const PROGRAMS: [(&str, &str); 10] = [
    ("initdb", "postgresql"),
    ("postgres", "postgresql"),
    ("pg_basebackup", "postgresql"),
    ("pg_ctl", "postgresql"),
    ("pg_dump", "postgresql"),
    ("psql", "postgresql"),
    ("pgbouncer", "pgbouncer"),
    ("openssl", "openssl"),
    ("script", "bsdutils"),
    ("pkill", "procps"),
];

/// Ends all tests, with a text that says what to do, unless everything is there. Who needs any of
/// it asks for all of it: what is told is complete, and told before a test fails for it.
pub(crate) fn check() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let missing = missing(|program| find(program).is_some(), Owner::find().is_some());
        if !missing.is_empty() {
            // What a test prints is kept until it ends, and this one does not.
            let _ = std::io::stderr().write_all(text(&missing).as_bytes());
            std::process::exit(1);
        }
    });
}

/// A program: of Postgres's newest version in Debian's folders, else from the PATH. In this order,
/// because what Debian puts on the PATH is a Perl script that looks for the program.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
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
    let postgres = installed.into_iter().rev().map(|(_, folder)| folder);
    // Debian has PgBouncer where only root's PATH leads.
    let mut folders = postgres.chain(std::env::split_paths(&path)).chain(["/usr/sbin".into()]);
    folders.find_map(|folder| Some(folder.join(program)).filter(|path| path.exists()))
}

/// A line for each thing that is not there.
fn missing(is_there: impl Fn(&str) -> bool, has_owner: bool) -> Vec<String> {
    let absent = PROGRAMS.iter().filter(|(program, _)| !is_there(program));
    let lines =
        absent.map(|(program, package)| format!("the program {program} (Debian: {package})"));
    // Debian's package makes it.
    let owner = "a user `postgres`: Postgres refuses to run as root, which you are".to_owned();
    lines.chain((!has_owner).then_some(owner)).collect()
}

fn text(missing: &[String]) -> String {
    format!(
        "\nthese tests need what is not here:\n    {}\nno test was judged\n\
         hint: scripts/test.sh installs it where there is apt-get; `cargo test --lib` needs none \
         of it\n\n",
        missing.join("\n    ")
    )
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn every_missing_thing_has_its_line() {
        assert_eq!(missing(|_| true, true), [""; 0]);
        let lines = missing(|program| program != "pgbouncer", false);
        assert_eq!(lines[0], "the program pgbouncer (Debian: pgbouncer)");
        assert!(lines[1].starts_with("a user `postgres`") && lines.len() == 2, "{lines:?}");
    }

    #[test]
    fn what_is_missing_is_told_once_and_ends_the_tests() {
        // Any tests that use a cluster; `script`, at least, is on the PATH alone.
        let tests = std::env::current_exe().unwrap();
        let ended = Command::new(tests)
            .args(["harness::database::", "--test-threads=2"])
            .env("PATH", "/nowhere")
            .output()
            .unwrap();
        let told = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(1), "{told}");
        assert_eq!(told.matches("the program script (Debian: bsdutils)\n").count(), 1, "{told}");
        assert!(told.contains("hint: scripts/test.sh installs it"), "{told}");
    }
}
