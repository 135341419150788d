//! Holds the documents to the repository: what they name must be there, and what they promise to
//! list must be complete.

mod deploy;
mod markdown;
mod repository;

use std::collections::BTreeSet;
use std::fs;

use dify_sls_backfill::record::hold::{HoldReason, LookAgain};
use dify_sls_backfill::sim::fault::Fault;
use dify_sls_backfill::sim::switch::Switches;
use dify_sls_backfill::sim::tamper::Order;

use crate::docs::markdown::Page;
use crate::docs::repository::{Repository, is_variable};

/// Dify's and others' variables and words in capitals, which the tool does not read.
const OF_OTHERS: [&str; 11] = [
    "API_WORKFLOW_NODE_EXECUTION_REPOSITORY",
    "API_WORKFLOW_RUN_REPOSITORY",
    "CORE_WORKFLOW_EXECUTION_REPOSITORY",
    "CORE_WORKFLOW_NODE_EXECUTION_REPOSITORY",
    "HTTPS_PROXY",
    "LOGSTORE_DUAL_READ_ENABLED",
    "LOGSTORE_DUAL_WRITE_ENABLED",
    "LOGSTORE_PG_MODE_ENABLED",
    "TRY_CAST",
    "WORKFLOW_NODE_EXECUTION_STORAGE_BACKEND",
    "WORKFLOW_RUN_STORAGE_BACKEND",
];

/// Pages on which all code between backticks must be in the repository, not only what looks like a
/// path, a flag, a variable or a command.
const STRICT: &str = "ARCHITECTURE.md";

/// The pages, by their paths.
fn pages(repository: &Repository) -> Vec<(String, Page)> {
    let mut names: Vec<String> =
        ["README.md", STRICT, "CONTRIBUTING.md"].map(str::to_owned).to_vec();
    for entry in fs::read_dir(repository.root.join("docs")).unwrap() {
        names.push(format!("docs/{}", entry.unwrap().file_name().to_str().unwrap()));
    }
    names.sort();
    let read = |name: String| {
        let text = fs::read_to_string(repository.root.join(&name)).unwrap();
        (name, Page::parse(&text))
    };
    names.into_iter().map(read).collect()
}

/// What is wrong with a page: line and complaint.
fn complaints(repository: &Repository, name: &str, page: &Page) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (line, span) in &page.spans {
        if let Some(complaint) = about_span(repository, name == STRICT, span) {
            found.push((*line, complaint));
        }
    }
    for (line, text) in &page.prose {
        found.extend(about_exit_codes(repository, text).map(|complaint| (*line, complaint)));
        if name == STRICT && has_number(text) {
            let complaint = "a number outside of code: name the constant, flag or test";
            found.push((*line, format!("{complaint}: {text}")));
        }
    }
    for (language, line, text) in &page.blocks {
        let complaint = match language.as_str() {
            "sh" => about_script(repository, text),
            "json" => serde_json::from_str::<serde_json::Value>(text).err().map(|e| e.to_string()),
            _ => None,
        };
        found.extend(complaint.map(|complaint| (*line, complaint)));
    }
    found
}

/// What is wrong with code between backticks.
fn about_span(repository: &Repository, is_strict: bool, span: &str) -> Option<String> {
    let is_wrong = |is_right: bool, what: &str| (!is_right).then(|| format!("{what}: {span}"));
    let words: Vec<&str> = span.split_whitespace().collect();
    if words.contains(&"…") && !span.contains("::") || words.is_empty() {
        return None;
    }
    if words[0].starts_with("--") {
        let mut flags = words.iter().filter(|word| word.starts_with("--"));
        return is_wrong(flags.all(|flag| repository.has_flag(flag)), "no such flag");
    }
    if words[0] == "dify-sls-backfill" || words.len() > 1 && repository.has_command(words[0]) {
        let arguments = if words[0] == "dify-sls-backfill" { &words[1..] } else { &words[..] };
        if arguments.is_empty() {
            return None;
        }
        return repository.refusal(arguments).map(|error| format!("{span}: {error}"));
    }
    if let Some((name, value)) = span.split_once(" = ")
        && is_strict
        && name.chars().all(|c| c.is_ascii_uppercase() || c == '_')
    {
        return is_wrong(repository.has_constant(name, value), "no such constant");
    }
    let variable = span.split('=').next().expect("a split has a part");
    if is_variable(variable) {
        let is_known = OF_OTHERS.contains(&variable) || repository.has_text(variable);
        return is_wrong(is_known, "no such variable");
    }
    if span.contains("::") {
        let is_known = repository.has_test(span) || repository.has_item(span);
        return is_wrong(is_known, "no such test or item");
    }
    if looks_like_path(span) {
        return is_wrong(repository.has_path(span), "no such path");
    }
    let text = span.strip_prefix("\\d+ ").unwrap_or(span);
    let is_known = !is_strict || repository.has_text(text) || repository.has_path(span);
    is_wrong(is_known, "not in the repository")
}

/// A path of ours: others begin with `/` or `docker/`.
fn looks_like_path(span: &str) -> bool {
    let is_ours = !span.starts_with(['/', '.']) && !span.starts_with("docker/");
    let is_path = span.chars().all(|c| c.is_ascii_alphanumeric() || "_-./{},".contains(c));
    let is_file = [".rs", ".md", ".sh", ".sql", ".toml"].iter().any(|end| span.ends_with(end));
    is_ours && is_path && (span.contains('/') || is_file)
}

/// Codes behind these words must be exit codes.
fn about_exit_codes(repository: &Repository, text: &str) -> impl Iterator<Item = String> {
    let mut found = Vec::new();
    for words in ["xit code ", "xits with ", "nds with "] {
        for (at, _) in text.match_indices(words) {
            let rest = &text[at + words.len()..];
            let digits = rest.split(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
            if let Ok(code) = digits.parse::<u8>()
                && !repository.exit_codes().contains(&code)
            {
                found.push(format!("no such exit code: {code}"));
            }
        }
    }
    found.into_iter()
}

/// Whether there is a number that is neither part of a name, of a list, nor an exit code.
fn has_number(text: &str) -> bool {
    let text = text.trim_start();
    let is_list = text.split_once(". ").is_some_and(|(mark, _)| mark.parse::<u8>().is_ok());
    let text = if is_list { text.split_once(". ").map_or(text, |(_, rest)| rest) } else { text };
    let mut before = String::new();
    for c in text.chars() {
        let is_in_name = before.ends_with(|c: char| c.is_alphanumeric());
        if c.is_ascii_digit() && !is_in_name && !before.ends_with("exit code ") {
            return true;
        }
        before.push(c);
    }
    false
}

/// What is wrong with the first wrong line of a script.
fn about_script(repository: &Repository, text: &str) -> Option<String> {
    let joined = text.replace("\\\n", " ");
    for line in joined.lines() {
        for word in line.split_whitespace() {
            let (name, is_set) = word.split_once('=').map_or((word, false), |(n, _)| (n, true));
            let is_known = || OF_OTHERS.contains(&name) || repository.has_text(name);
            if is_set && is_variable(name) && !is_known() {
                return Some(format!("no such variable: {name}"));
            }
        }
        let command = line.split(" #").next().unwrap_or_default();
        if let Some((_, arguments)) = command.split_once("dify-sls-backfill ") {
            let arguments = arguments.split([';', '&', '|', '>']).next().unwrap_or_default();
            let words: Vec<&str> = arguments.split_whitespace().collect();
            if let Some(error) = repository.refusal(&words) {
                return Some(format!("{line}: {error}"));
            }
        }
        if let Some(script) = line.trim().strip_prefix("scripts/") {
            let script =
                format!("scripts/{}", script.split_whitespace().next().unwrap_or_default());
            if !repository.has_path(&script) {
                return Some(format!("no such path: {script}"));
            }
        }
        if let Some((url, rest)) = line.split_once(" -d '") {
            let body = rest.split('\'').next().unwrap_or_default();
            if let Some(error) = refused_by_the_simulator(url, body) {
                return Some(format!("{line}: {error}"));
            }
        }
    }
    None
}

/// Why the local SLS would not take this body at its own paths.
fn refused_by_the_simulator(url: &str, body: &str) -> Option<String> {
    if url.contains("/faults") {
        return serde_json::from_str::<Fault>(body).err().map(|error| error.to_string());
    }
    if url.contains("/tamper") {
        return Order::parse(body.as_bytes()).err();
    }
    assert!(url.contains("/switches"), "{url}");
    let change = serde_json::from_str(body).map_err(|error| error.to_string());
    change.and_then(|change| Switches::default().changed(change)).err()
}

#[test]
fn what_the_documents_name_is_there() {
    let repository = Repository::read();
    let mut found = Vec::new();
    let pages = pages(&repository);
    assert!(pages.len() > 10, "pages are missing");
    for (name, page) in &pages {
        for (line, complaint) in complaints(&repository, name, page) {
            found.push(format!("{name}:{line}: {complaint}"));
        }
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn links_between_documents_lead_somewhere() {
    let repository = Repository::read();
    let pages = pages(&repository);
    let mut found = Vec::new();
    for (name, page) in &pages {
        let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
        for (line, target) in page.links.iter().filter(|(_, target)| !target.contains("://")) {
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let path = match path {
                "" => name.clone(),
                _ if path.starts_with("../") => path[3..].to_owned(),
                _ if folder.is_empty() => path.to_owned(),
                _ => format!("{folder}/{path}"),
            };
            let is_anchor = |page: &Page| page.anchors().iter().any(|name| name == anchor);
            let linked = pages.iter().find(|(name, _)| *name == path);
            let is_right = match (linked, anchor) {
                (_, "") => repository.root.join(&path).exists(),
                (Some((_, linked)), _) => is_anchor(linked),
                (None, _) => false,
            };
            if !is_right {
                found.push(format!("{name}:{line}: {target}"));
            }
        }
    }
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// The first cells of the rows of a page's tables, without backticks.
fn first_cells(repository: &Repository, name: &str) -> BTreeSet<String> {
    let page = Page::parse(&fs::read_to_string(repository.root.join(name)).unwrap());
    page.rows.iter().map(|(_, cells)| cells[0].replace('`', "")).collect()
}

#[test]
fn tables_are_complete() {
    let repository = Repository::read();
    let codes = first_cells(&repository, "docs/exit-codes-and-cron.md");
    let codes: BTreeSet<u8> = codes.iter().filter_map(|cell| cell.parse().ok()).collect();
    assert_eq!(codes, repository.exit_codes());

    let settings = fs::read_to_string(repository.root.join("docs/settings.md")).unwrap();
    for variable in repository.variables() {
        assert!(settings.contains(&format!("`{variable}`")), "{variable} is not in the settings");
    }

    let commands = first_cells(&repository, "README.md");
    let named: BTreeSet<&str> = commands.iter().filter_map(|cell| cell.split(' ').next()).collect();
    for command in repository.commands() {
        assert!(named.contains(command), "{command} is not in README's table");
    }
}

#[test]
fn every_reason_to_hold_a_row_is_explained() {
    let repository = Repository::read();
    let page = fs::read_to_string(repository.root.join("docs/running.md")).unwrap();
    let rows = Page::parse(&page).rows;
    for reason in HoldReason::ALL {
        let row = rows.iter().find(|(_, cells)| cells[0] == format!("`{}`", reason.name()));
        match row {
            Some((_, cells)) => {
                let when = match reason.look_again() {
                    LookAgain::EveryRun => "by every run",
                    LookAgain::InTurn => "in turn",
                    LookAgain::IfKept => "when the logstore keeps",
                    LookAgain::IfAsked => "only with `--retry`",
                };
                assert!(cells[2].starts_with(when), "{cells:?}: {when}");
            }
            None => assert!(!is_given(&repository, reason), "{reason:?} is not explained"),
        }
    }
}

/// Whether some part of the source gives this reason.
fn is_given(repository: &Repository, reason: HoldReason) -> bool {
    repository.names_in_source("src/record/hold.rs", &format!("HoldReason::{reason:?}"))
}

#[test]
fn messages_in_troubleshooting_are_those_of_the_tool() {
    let repository = Repository::read();
    let page = fs::read_to_string(repository.root.join("docs/troubleshooting.md")).unwrap();
    let page = Page::parse(&page);
    let messages: Vec<_> = page.headings.iter().filter(|(_, text)| text.starts_with('`')).collect();
    assert!(messages.len() > 20, "messages are missing");
    for (line, message) in messages {
        let message = message.trim_matches('`');
        assert!(repository.has_message(message), "line {line}: nobody says `{message}`");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn right(name: &str, text: &str) {
        let found = complaints(&Repository::read(), name, &Page::parse(text));
        assert_eq!(found, [], "{text}");
    }

    #[track_caller]
    fn wrong(name: &str, text: &str, expected: &str) {
        let found = complaints(&Repository::read(), name, &Page::parse(text));
        let found: Vec<_> = found.iter().map(|(_, complaint)| complaint.as_str()).collect();
        assert!(found.len() == 1 && found[0].contains(expected), "{text}: {found:?}");
    }

    #[test]
    fn paths_tests_and_items_are_checked() {
        right("x.md", "`wire/sign.rs` `src/wire/{sign,proto}.rs` `sign.rs` `scripts/check.sh`");
        wrong("x.md", "`wire/sing.rs`", "no such path: wire/sing.rs");
        wrong("x.md", "`wire/{sign,prato}.rs`", "no such path");
        // There are two.
        wrong("x.md", "`audit.rs`", "no such path");
        right("x.md", "`docs::tests::paths…` `wire::sign::tests::…` `sign::tests::…`");
        wrong("x.md", "`docs::tests::path_of_…`", "no such test or item");
        right("x.md", "`pg::is_gone` `Progress::wait` `docker/.env` `/run/secrets/db`");
        wrong("x.md", "`pg::is_gone_by`", "no such test or item");
    }

    #[test]
    fn flags_commands_and_variables_are_checked() {
        right(
            "x.md",
            "`--max-rows 10` `run --dry-run` `dify-sls-backfill help COMMAND` `--output json`",
        );
        wrong("x.md", "`--max-row`", "no such flag");
        wrong("x.md", "`run --dry`", "unexpected argument '--dry'");
        right("x.md", "`DB_HOST` `DB_HOST=localhost` `LOGSTORE_DUAL_READ_ENABLED`");
        wrong("x.md", "`DB_HOSTS`", "no such variable");
        right("x.md", "```sh\nDB_HOST=x dify-sls-backfill run \\\n  --dry-run # or\n```");
        wrong("x.md", "```sh\ndify-sls-backfill runs\n```", "unrecognized subcommand");
        wrong("x.md", "```sh\nexport DB_HOSTS=x\n```", "no such variable");
        wrong("x.md", "```sh\nscripts/tests.sh\n```", "no such path");
        wrong("x.md", "```json\n{\"a\": }\n```", "expected value");
    }

    #[test]
    fn orders_to_the_local_sls_are_checked() {
        right(
            "x.md",
            "```sh\ncurl $sim/faults -d '{\"kind\": \"put\", \"action\": \"hold\"}'\n```",
        );
        let odd = "```sh\ncurl $sim/faults -d '{\"kind\": \"put\", \"action\": \"held\"}'\n```";
        wrong("x.md", odd, "unknown variant `held`");
        let odd = "```sh\ncurl -X PATCH $sim/switches -d '{\"seqids\": \"kept\"}'\n```";
        wrong("x.md", odd, "seqids");
    }

    #[test]
    fn numbers_are_checked() {
        right("x.md", "exit code 75, `exit code 4`, ends with 3, after 7 days");
        wrong("x.md", "exit code 74", "no such exit code: 74");
        wrong("x.md", "it ends with 1", "no such exit code: 1");
        right(STRICT, "1. UUIDv7 and exit code 75 and `GROUPS_MAX = 30`");
        wrong(STRICT, "`GROUPS_MAX = 31`", "no such constant");
        wrong(STRICT, "after 7 days", "a number outside of code");
        right(STRICT, "`synchronous_commit = on`");
        wrong(STRICT, "`synchronous_commit = perhaps`", "not in the repository");
    }

    #[test]
    fn a_message_is_found_through_breaks_and_arguments() {
        let repository = Repository::read();
        assert!(repository.has_message("this ledger's rows went to SLS project …, not to …"));
        assert!(!repository.has_message("this ledger's rows went to SLS project …, and to …"));
    }
}
