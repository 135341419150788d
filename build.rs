//! Tells the program which commit it was built from, for `--version`.
//!
//! From git; where there is none, from what `cargo package` leaves in its archives; else nobody
//! knows, and the version says so.

use std::path::Path;
use std::process::Command;

fn main() {
    let root = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let version = std::env::var("CARGO_PKG_VERSION").expect("cargo sets it");
    let commit = of_git(&root).or_else(|| of_package(&root));
    let commit = commit.map_or("commit unknown".to_owned(), |commit| format!("commit {commit}"));
    println!("cargo::rustc-env=SLS_BACKFILL_VERSION={version} ({commit})");
    println!("cargo::rerun-if-changed=build.rs");
}

fn of_git(root: &str) -> Option<String> {
    // An archive that was unpacked inside of another repository is not of its commit.
    let top = git(root, &["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()? != Path::new(root).canonicalize().ok()? {
        return None;
    }
    // Grows with every commit and checkout; a shallow copy may not have it.
    let log = git(root, &["rev-parse", "--git-path", "logs/HEAD"])?;
    let log = Path::new(root).join(log);
    if log.exists() {
        println!("cargo::rerun-if-changed={}", log.display());
    }
    git(root, &["rev-parse", "--short=12", "HEAD"])
}

fn git(root: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// `{"git": {"sha1": "…"}}`, written by `cargo package`.
fn of_package(root: &str) -> Option<String> {
    let text = std::fs::read_to_string(Path::new(root).join(".cargo_vcs_info.json")).ok()?;
    let (_, after) = text.split_once("\"sha1\"")?;
    let sha = after.split('"').nth(1)?;
    sha.chars().all(|c| c.is_ascii_hexdigit()).then(|| sha.chars().take(12).collect())
}
