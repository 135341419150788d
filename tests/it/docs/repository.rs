//! What the documents may name: files, tests, items, constants, messages, commands, exit codes.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use dify_sls_backfill::cli::args::Cli;

/// The repository as it is now.
pub(crate) struct Repository {
    pub(crate) root: PathBuf,
    /// Files of src, tests, migrations, scripts and benches, with their texts if they have any.
    files: Vec<(String, String)>,
    /// Paths of all tests, such as `faults::sends::…` and `record::hold::tests::…`.
    tests: BTreeSet<String>,
    /// Every text of the source, on one line, with `…` for what is filled in.
    messages: String,
    flags: BTreeSet<String>,
    commands: BTreeSet<String>,
}

impl Repository {
    pub(crate) fn read() -> Self {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        let mut files = Vec::new();
        for folder in ["src", "tests", "migrations", "scripts", "benches"] {
            add_files(&root, &root.join(folder), &mut files);
        }
        let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
        files.push(("Cargo.toml".to_owned(), manifest));
        let mut tests = integration_tests();
        let sources = || files.iter().filter(|(name, _)| name.starts_with("src/"));
        tests.extend(sources().flat_map(|(name, text)| unit_tests(name, text)));
        let messages: Vec<_> = sources().map(|(_, text)| as_messages(text)).collect();
        let cli = Cli::command();
        let all = || cli.get_subcommands().chain([&cli]);
        let flags = all().flat_map(|command| command.get_arguments());
        let flags = flags.filter_map(|flag| flag.get_long()).chain(["help", "version"]);
        Self {
            flags: flags.map(|name| format!("--{name}")).collect(),
            commands: cli.get_subcommands().map(|command| command.get_name().to_owned()).collect(),
            root,
            tests,
            messages: messages.join("\n"),
            files,
        }
    }

    /// Whether a path is there, from the root or from src; `{a,b}` stands for both. A file's name
    /// alone must be that of one file in src.
    pub(crate) fn has_path(&self, path: &str) -> bool {
        if let Some((before, rest)) = path.split_once('{')
            && let Some((names, after)) = rest.split_once('}')
        {
            return names.split(',').all(|name| self.has_path(&format!("{before}{name}{after}")));
        }
        let is_there = |path: String| self.root.join(path).exists();
        let named = self.files.iter().filter(|(file, _)| file.ends_with(&format!("/{path}")));
        is_there(path.to_owned())
            || is_there(format!("src/{path}"))
            || is_there(format!("src/{path}.rs"))
            || !path.contains('/')
                && named.filter(|(file, _)| file.starts_with("src/")).count() == 1
    }

    /// Whether a test has this path, or part of it; what ends in `…` is the beginning of one.
    pub(crate) fn has_test(&self, path: &str) -> bool {
        let (beginning, is_whole) = match path.strip_suffix('…') {
            Some(beginning) => (beginning, false),
            None => (path, true),
        };
        self.tests.iter().any(|test| {
            let mut ends = test.match_indices("::").map(|(at, _)| &test[at + 2..]);
            let matches = |test: &str| match is_whole {
                true => test == beginning,
                false => test.starts_with(beginning),
            };
            matches(test) || ends.any(matches)
        })
    }

    /// Whether `module::item` or `Type::item` is in the source.
    pub(crate) fn has_item(&self, path: &str) -> bool {
        let Some((owner, item)) = path.rsplit_once("::") else { return false };
        let is_type = owner.starts_with(|first: char| first.is_uppercase());
        let ending = format!("/{}.rs", owner.replace("::", "/"));
        let sources = self.files.iter().filter(|(name, _)| name.starts_with("src/"));
        let mut owners = sources.filter(|(name, text)| match is_type {
            true => ["struct", "enum", "trait"].iter().any(|kind| has_words(text, kind, owner)),
            false => name.ends_with(&ending),
        });
        let kinds = ["fn", "const", "struct", "enum", "trait", "type", "mod"];
        owners.any(|(_, text)| kinds.iter().any(|kind| has_words(text, kind, item)))
    }

    /// Whether the source has `const NAME: … = value;`.
    pub(crate) fn has_constant(&self, name: &str, value: &str) -> bool {
        let begin = format!("const {name}: ");
        let end = format!(" = {value};");
        self.files.iter().flat_map(|(_, text)| text.lines()).any(|line| {
            let rest = line.split_once(&begin).map(|(_, rest)| rest);
            rest.is_some_and(|rest| rest.ends_with(&end) || rest.contains(&format!("{end} ")))
        })
    }

    /// Whether the text stands somewhere in sources, tests, scripts or manifest.
    pub(crate) fn has_text(&self, text: &str) -> bool {
        self.files.iter().any(|(name, content)| {
            !name.starts_with("tests/it/docs")
                && !name.contains("/goldens/")
                && content.contains(text)
        })
    }

    /// Whether the source has this message; `…` stands for what is filled in.
    pub(crate) fn has_message(&self, message: &str) -> bool {
        self.messages.contains(message)
    }

    pub(crate) fn has_flag(&self, flag: &str) -> bool {
        self.flags.contains(flag)
    }

    pub(crate) fn has_command(&self, name: &str) -> bool {
        self.commands.contains(name)
    }

    pub(crate) fn commands(&self) -> impl Iterator<Item = &str> {
        self.commands.iter().map(String::as_str)
    }

    /// Whether a file of src other than `except` contains `text` as a word.
    pub(crate) fn names_in_source(&self, except: &str, text: &str) -> bool {
        let sources = self.files.iter().filter(|(name, _)| name.starts_with("src/"));
        sources.filter(|(name, _)| name != except).any(|(_, content)| {
            content.match_indices(text).any(|(at, _)| {
                !content[at + text.len()..].starts_with(|c: char| c.is_alphanumeric())
            })
        })
    }

    /// Why these arguments are not a command line of the tool.
    pub(crate) fn refusal(&self, arguments: &[&str]) -> Option<String> {
        let named = arguments.iter().map(|word| if *word == "COMMAND" { "run" } else { *word });
        let line = ["dify-sls-backfill"].into_iter().chain(named);
        let error = Cli::try_parse_from(line).err()?;
        let is_help = [ErrorKind::DisplayHelp, ErrorKind::DisplayVersion].contains(&error.kind());
        (!is_help).then(|| error.to_string().lines().next().unwrap_or_default().to_owned())
    }

    /// The text of a file.
    pub(crate) fn text(&self, name: &str) -> &str {
        let found = self.files.iter().find(|(file, _)| file == name);
        &found.unwrap_or_else(|| panic!("there is no {name}")).1
    }

    /// The codes of `commands/exit.rs`.
    pub(crate) fn exit_codes(&self) -> BTreeSet<u8> {
        let text = self.text("src/commands/exit.rs");
        let (_, body) = text.split_once("pub enum Exit {").expect("the exit codes are an enum");
        let body = body.split('}').next().expect("a split has a part");
        let codes =
            body.lines().filter_map(|line| line.trim().strip_suffix(',')?.split_once(" = "));
        codes.map(|(_, code)| code.parse().expect("a code is a number")).collect()
    }

    /// The variables that the tool reads, by the texts in `cli`.
    pub(crate) fn variables(&self) -> BTreeSet<String> {
        let files = self.files.iter().filter(|(name, _)| name.starts_with("src/cli"));
        let mut found = BTreeSet::new();
        for (_, text) in files {
            let text = text.split("#[cfg(test)]\nmod tests").next().expect("a split has a part");
            let texts =
                text.match_indices('"').filter_map(|(at, _)| text[at + 1..].split('"').next());
            found.extend(texts.filter(|text| is_variable(text)).map(str::to_owned));
        }
        // Those are set by the build.
        found.retain(|name| !name.starts_with("CARGO_") && name != "SLS_BACKFILL_VERSION");
        // Beginnings of names are no names.
        let all = found.clone();
        found.retain(|name| !all.iter().any(|other| other != name && other.starts_with(name)));
        found
    }
}

/// Whether a text looks like the name of an environment variable.
pub(crate) fn is_variable(text: &str) -> bool {
    let is_name = text.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_');
    let begins = text.starts_with(|c: char| c.is_ascii_uppercase());
    is_name && begins && !text.ends_with('_') && (text.contains('_') || text.starts_with("PGSSL"))
}

fn add_files(root: &Path, folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if !path.ends_with("target") {
                add_files(root, &path, found);
            }
            continue;
        }
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        found.push((name, fs::read_to_string(&path).unwrap_or_default()));
    }
}

/// As this binary lists them, those that macros make among them.
fn integration_tests() -> BTreeSet<String> {
    let own = std::env::current_exe().unwrap();
    let output = Command::new(own).args(["--list", "--format", "terse"]).output().unwrap();
    let list = String::from_utf8(output.stdout).unwrap();
    list.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect()
}

/// The tests in a file of src.
fn unit_tests(file: &str, text: &str) -> Vec<String> {
    let module = file.strip_prefix("src/").expect("it is in src").trim_end_matches(".rs");
    let module = module.replace('/', "::");
    let module = if text.contains("mod tests {") { format!("{module}::tests") } else { module };
    let mut tests = Vec::new();
    let mut is_test = false;
    for line in text.lines().map(str::trim) {
        is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
        if let Some((_, rest)) = line.split_once("fn ").filter(|_| is_test) {
            let name = rest.split('(').next().expect("a split has a part");
            tests.push(format!("{module}::{name}"));
            is_test = false;
        }
    }
    tests
}

/// Joins the lines of texts, and puts `…` for `{…}`.
fn as_messages(text: &str) -> String {
    let mut joined = String::new();
    let mut parts = text.split("\\\n");
    joined += parts.next().unwrap_or_default();
    for part in parts {
        joined += part.trim_start();
    }
    let mut message = String::new();
    let mut rest = joined.as_str();
    while let Some((before, after)) = rest.split_once('{') {
        message += before;
        let end = after.find(['}', '{', '\n']).unwrap_or(after.len());
        match after[end..].starts_with('}') {
            true => {
                message.push('…');
                rest = &after[end + 1..];
            }
            false => {
                message.push('{');
                rest = after;
            }
        }
    }
    message + rest
}

/// Whether `first` and `second` stand behind each other as words.
fn has_words(text: &str, first: &str, second: &str) -> bool {
    let both = format!("{first} {second}");
    text.match_indices(&both).any(|(at, _)| {
        let is_end = |c: Option<char>| c.is_none_or(|c| c != '_' && !c.is_alphanumeric());
        is_end(text[..at].chars().next_back()) && is_end(text[at + both.len()..].chars().next())
    })
}
