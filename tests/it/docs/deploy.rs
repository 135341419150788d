//! Holds the files in `deploy` to the tool: command lines, variables, exit codes, times and paths.
//!
//! Whether Kubernetes and systemd take them, `scripts/deploy_check.sh` says.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use clap::CommandFactory as _;
use dify_sls_backfill::cli::args::Cli;

use crate::docs::repository::{Repository, is_variable};
use crate::docs::{about_exit_codes, looks_like_path};

/// What looks like a variable of ours and is systemd's.
const OF_SYSTEMD: [&str; 3] = ["AF_INET", "AF_INET6", "AF_UNIX"];

/// What a request may need beyond its deadline until it is acknowledged (seconds).
const ACKNOWLEDGE_S: u64 = 30;

/// The files in `deploy`: path and text.
fn files(repository: &Repository) -> Vec<(String, String)> {
    fn add(root: &Path, folder: &Path, found: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                add(root, &path, found);
                continue;
            }
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            found.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
    let mut found = Vec::new();
    add(&repository.root, &repository.root.join("deploy"), &mut found);
    found
}

/// What is wrong with a file: line and complaint.
fn complaints(repository: &Repository, text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (nth, line) in text.lines().enumerate() {
        let line = line.trim();
        found.extend(about_line(repository, line).into_iter().map(|text| (nth + 1, text)));
    }
    found
}

fn about_line(repository: &Repository, line: &str) -> Vec<String> {
    let mut found = Vec::new();
    let names = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    for name in names.filter(|name| is_variable(name) && !OF_SYSTEMD.contains(name)) {
        if !is_read(repository, name) {
            found.push(format!("no such variable: {name}"));
        }
    }
    if let Some(arguments) = line.strip_prefix("args: ") {
        let arguments: Vec<String> = serde_json::from_str(arguments).unwrap();
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        found.extend(repository.refusal(&arguments));
    }
    if let Some(command) = line.strip_prefix("ExecStart=/usr/local/bin/dify-sls-backfill ") {
        found.extend(repository.refusal(&command.split_whitespace().collect::<Vec<_>>()));
    }
    for code in codes(line) {
        if !repository.exit_codes().contains(&code) {
            found.push(format!("no such exit code: {code}"));
        }
    }
    if let Some(seconds) = grace_s(line)
        && seconds < deadline_s() + ACKNOWLEDGE_S
    {
        found.push(format!("a request may take longer: {line}"));
    }
    // What is indented is a command of others.
    if let Some(prose) = line.strip_prefix("# ").filter(|prose| !prose.starts_with(' ')) {
        found.extend(about_exit_codes(repository, prose));
        let words = prose.split([' ', '(', ')', ',', ':', '`', '"']);
        for word in words.map(|word| word.trim_end_matches('.')) {
            if word.starts_with("--") && !repository.has_flag(word) {
                found.push(format!("no such flag: {word}"));
            }
            if looks_like_path(word) && !repository.has_path(word) {
                found.push(format!("no such path: {word}"));
            }
        }
    }
    found
}

/// Whether the tool reads the variable, or a secret from the file that it names.
fn is_read(repository: &Repository, name: &str) -> bool {
    let variables = repository.variables();
    let Some(secret) = name.strip_suffix("_FILE").filter(|_| !variables.contains(name)) else {
        return variables.contains(name);
    };
    let text = repository.text("src/cli/environment.rs");
    let (_, list) = text.split_once("const IN_FILES").expect("secrets in files are a list");
    list.split("];").next().is_some_and(|list| list.contains(&format!("\"{secret}\"")))
}

/// The exit codes that a line of a pod's policy or of a unit names.
fn codes(line: &str) -> BTreeSet<u8> {
    let numbers = line.strip_prefix("values: [").and_then(|rest| rest.strip_suffix(']'));
    let numbers = numbers.or_else(|| line.strip_prefix("RestartPreventExitStatus="));
    let words = numbers.unwrap_or_default().split([',', ' ']).filter(|word| !word.is_empty());
    words.map(|word| word.parse().unwrap()).collect()
}

/// How long a line gives the tool to end (seconds).
fn grace_s(line: &str) -> Option<u64> {
    let seconds = line.strip_prefix("terminationGracePeriodSeconds: ");
    seconds.or_else(|| line.strip_prefix("TimeoutStopSec="))?.parse().ok()
}

/// The default of `run --deadline-s`.
fn deadline_s() -> u64 {
    let cli = Cli::command();
    let run = cli.find_subcommand("run").expect("there is a run");
    let deadline = run.get_arguments().find(|flag| flag.get_long() == Some("deadline-s"));
    let default = deadline.expect("a request has a deadline").get_default_values();
    default[0].to_str().unwrap().parse().unwrap()
}

#[test]
fn what_the_files_in_deploy_name_is_there() {
    let repository = Repository::read();
    let mut found = Vec::new();
    let files = files(&repository);
    assert!(files.len() > 7, "files are missing");
    for (name, text) in &files {
        for (line, complaint) in complaints(&repository, text) {
            found.push(format!("{name}:{line}: {complaint}"));
        }
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn jobs_and_units_agree_on_what_is_not_repeated() {
    let repository = Repository::read();
    let mut seen = 0;
    for (name, text) in files(&repository) {
        let lines: Vec<_> = text.lines().map(str::trim).collect();
        let mut rules = lines.iter().map(|line| codes(line)).filter(|codes| !codes.is_empty());
        if name.ends_with("job.yaml") {
            assert_eq!(rules.next(), Some(BTreeSet::from([75])), "{name}: work is left");
        }
        if name.ends_with("job.yaml") || name.ends_with(".service") {
            assert_eq!(rules.next(), Some(BTreeSet::from([2, 5])), "{name}");
            assert!(lines.iter().any(|line| grace_s(line).is_some()), "{name}");
            seen += 1;
        }
    }
    assert_eq!(seen, 3);
}

#[test]
fn every_secret_that_a_pod_reads_is_in_the_secret() {
    let repository = Repository::read();
    let files = files(&repository);
    let secret = files.iter().find(|(name, _)| name.ends_with("secret.yaml")).unwrap();
    for (name, text) in files.iter().filter(|(name, _)| name.ends_with("job.yaml")) {
        let keys: Vec<_> = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix("value: /run/secrets/dify-sls-backfill/"))
            .collect();
        assert!(keys.len() > 2, "{name}");
        for key in keys {
            assert!(secret.1.contains(&format!("\n  {key}: ")), "{name}: {key}");
            assert!(text.contains(&format!("- name: {key}_FILE\n")), "{name}: {key}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_tool_does_not_know_is_seen() {
        let repository = Repository::read();
        let about = |line| about_line(&repository, line).join("; ");
        for line in [
            "DB_HOST: postgres",
            "- name: DB_PASSWORD_FILE",
            "args: [\"run\", \"--join\"]",
            "values: [2, 75]",
            "terminationGracePeriodSeconds: 120",
            "# After (--deadline-s, 60 s) see docs/purging.md.",
            "#   docker run --rm image",
        ] {
            assert_eq!(about(line), "", "{line}");
        }
        for (line, complaint) in [
            ("DB_HOSTS: postgres", "no such variable: DB_HOSTS"),
            ("- name: DB_HOST_FILE", "no such variable: DB_HOST_FILE"),
            ("args: [\"run\", \"--joint\"]", "error: unexpected argument '--joint' found"),
            (
                "ExecStart=/usr/local/bin/dify-sls-backfill runs",
                "error: unrecognized subcommand 'runs'",
            ),
            ("values: [2, 74]", "no such exit code: 74"),
            ("RestartPreventExitStatus=1", "no such exit code: 1"),
            ("# Exit code 74: again.", "no such exit code: 74"),
            ("TimeoutStopSec=60", "a request may take longer: TimeoutStopSec=60"),
            ("# A request (--deadline, 60 s).", "no such flag: --deadline"),
            ("# See docs/purge.md.", "no such path: docs/purge.md"),
        ] {
            assert_eq!(about(line), complaint, "{line}");
        }
    }
}
