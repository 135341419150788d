//! Holds the source to the map in src/lib.rs: arrows only go down, and each library is named only
//! where it belongs, and no file needs one that needs it.

mod circles;
mod tokens;

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use crate::layers::circles::Graph;
use crate::layers::tokens::{Token, without_tests};

/// The modules beside the map, what each may name, and who alone may name them.
const BESIDE: [(&str, &[&str]); 2] =
    [("sim", &["wire", "secret"]), ("demo", &["record", "pg", "secret"])];
const MAY_NAME_BESIDE: [&str; 2] = ["commands::simulate", "commands::demo"];

/// Libraries and the modules that may name them.
const LIBRARIES: [(&str, &[&str]); 7] = [
    ("rusqlite", &["sim"]),
    ("sqlx", &["source", "ledger", "pg", "demo"]),
    ("prost", &["wire", "sim"]),
    ("reqwest", &["sls", "sim"]),
    ("hyper", &["sls", "sim"]),
    ("hyper_util", &["sls", "sim"]),
    ("http_body_util", &["sls", "sim"]),
];

/// The lines of the map in src/lib.rs, from the top.
struct Map(Vec<Vec<String>>);

#[derive(Debug, PartialEq)]
struct Violation {
    file: String,
    line: usize,
    rule: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.rule)
    }
}

impl Map {
    /// From the text block in lib.rs's docs: names two spaces apart, then a wider gap and words.
    fn of_lib(lib: &str) -> Self {
        let block = lib.lines().skip_while(|line| *line != "//! ```text").skip(1);
        let lines = block.take_while(|line| *line != "//! ```").map(|line| {
            let line = line.strip_prefix("//! ").expect("lib.rs's map has no empty line");
            let names = line.split("   ").next().expect("a split has a part");
            names.split_whitespace().map(str::to_owned).collect()
        });
        Self(lines.collect())
    }

    fn line_of(&self, module: &str) -> Option<usize> {
        self.0.iter().position(|line| line.iter().any(|name| name == module))
    }

    /// Why `file`, which is part of `from`, may not name `crate::to`.
    fn against(&self, file: &str, from: &str, to: &str) -> Option<String> {
        if from == to || from == "main" {
            return None;
        }
        if BESIDE.iter().any(|(name, _)| *name == to) {
            let may = MAY_NAME_BESIDE.iter().any(|module| is_part_of(file, module));
            return (!may).then(|| format!("only {} may name {to}", MAY_NAME_BESIDE.join(" and ")));
        }
        if let Some((_, allowed)) = BESIDE.iter().find(|(name, _)| *name == from) {
            let list = allowed.join(", ");
            return (!allowed.contains(&to))
                .then(|| format!("{from} may name only {list}, not {to}"));
        }
        match (self.line_of(from), self.line_of(to)) {
            (None, _) => Some(format!("{from} is not on the map in src/lib.rs")),
            (_, None) => Some(format!("{to} is not on the map in src/lib.rs")),
            (Some(from_line), Some(to_line)) if from_line >= to_line => {
                Some(format!("{from} may name only modules of lower lines, not {to}"))
            }
            _ => None,
        }
    }
}

/// Whether `src/commands/demo.rs` or `src/commands/demo/x.rs` is part of `commands::demo`.
fn is_part_of(file: &str, module: &str) -> bool {
    let path = format!("src/{}", module.replace("::", "/"));
    file.strip_prefix(&path).is_some_and(|rest| rest.starts_with(['.', '/']))
}

/// The module at the top that a file belongs to: `wire` for src/wire/sign.rs.
fn module_of(file: &str) -> &str {
    let path = file.strip_prefix("src/").expect("sources are in src");
    path.split(['/', '.']).next().expect("a split has a part")
}

/// The path that a file is named by: `wire::sign` for src/wire/sign.rs.
fn path_of(file: &str) -> String {
    let path = file.strip_prefix("src/").expect("sources are in src");
    path.strip_suffix(".rs").expect("sources are Rust").replace('/', "::")
}

/// Whether a file has tests alone.
fn is_tests(file: &str) -> bool {
    file.split(['/', '.']).any(|part| part == "tests")
}

/// All rules that the file with this path and text breaks.
fn violations(map: &Map, file: &str, text: &str) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut report = |line, rule| found.push(Violation { file: file.to_owned(), line, rule });
    if !text.starts_with("//! ") {
        report(1, "the first line says in `//! ` what the file is responsible for".to_owned());
    }
    if file.ends_with("/mod.rs") {
        report(1, "a module's file is `foo.rs`, not `foo/mod.rs`".to_owned());
    }
    if is_tests(file) {
        return found;
    }
    let module = module_of(file);
    let tokens = without_tests(tokens::of(text));
    for (index, token) in tokens.iter().enumerate() {
        let next = |distance| tokens.get(index + distance).map(|token: &Token| token.text.as_str());
        match token.text.as_str() {
            "super" if next(1) == Some("::") => {
                report(token.line, "`super::` only in tests: say `crate::`".to_owned());
            }
            "pub" if is_re_export(&tokens[index..]) => {
                report(token.line, "no re-exports: imports are the arrows of the map".to_owned());
            }
            "crate" if next(1) == Some("::") => {
                for target in named_after_crate(&tokens[index + 2..]) {
                    if let Some(rule) = map.against(file, module, &target.text) {
                        report(target.line, rule);
                    }
                }
            }
            // A field or method of that name is no library.
            name if index == 0 || tokens[index - 1].text != "." => {
                let library = LIBRARIES.iter().find(|(library, _)| *library == name);
                if let Some((library, allowed)) = library
                    && !allowed.contains(&module)
                {
                    report(token.line, format!("only {} may name {library}", allowed.join(", ")));
                }
            }
            _ => {}
        }
    }
    found
}

/// Whether these tokens begin with `pub use` or `pub(…) use`.
fn is_re_export(tokens: &[Token]) -> bool {
    let mut rest = tokens.iter().skip(1).map(|token| token.text.as_str()).peekable();
    if rest.peek() == Some(&"(") {
        rest.find(|text| *text == ")");
    }
    rest.next() == Some("use")
}

/// The modules named by what follows `crate::`: one, or those of a group.
fn named_after_crate(tokens: &[Token]) -> Vec<&Token> {
    if tokens.first().is_none_or(|token| token.text != "{") {
        return tokens.iter().take(1).collect();
    }
    let mut depth = 0;
    let mut named = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        match token.text.as_str() {
            "{" => depth += 1,
            "}" if depth == 1 => break,
            "}" => depth -= 1,
            _ if depth == 1 && ["{", ","].contains(&tokens[index - 1].text.as_str()) => {
                named.push(token);
            }
            _ => {}
        }
    }
    named
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// All files of the source, by name, with their texts.
fn read_sources() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    sources(&root.join("src"), &mut paths);
    paths.sort();
    assert!(paths.len() > 10, "the sources are elsewhere");
    let read = |path: PathBuf| {
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        (name, fs::read_to_string(&path).unwrap())
    };
    paths.into_iter().map(read).collect()
}

#[test]
fn no_file_needs_one_that_needs_it() {
    let files = read_sources().into_iter().filter(|(file, _)| !is_tests(file));
    let files = files.map(|(file, text)| (path_of(&file), without_tests(tokens::of(&text))));
    let circles = Graph::of(&files.collect::<Vec<_>>()).circles();
    let list: Vec<String> = circles.iter().map(|circle| circle.join(", ")).collect();
    assert!(list.is_empty(), "circles, to be opened by a file below both:\n{}", list.join("\n"));
}

#[test]
fn the_source_keeps_to_its_map() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let map = Map::of_lib(&fs::read_to_string(root.join("src/lib.rs")).unwrap());
    let mut found = Vec::new();
    for (file, text) in read_sources() {
        found.extend(violations(&map, &file, &text));
    }
    let list: Vec<String> = found.iter().map(Violation::to_string).collect();
    assert!(list.is_empty(), "\n{}", list.join("\n"));
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIB: &str = "//! A crate.
//!
//! ```text
//! cli                        flags
//! commands                   one file a subcommand
//! pipeline                   moves
//! source  dify  sls  ledger  two · three
//! pg
//! record  wire               rows   and bytes
//! secret
//! ```
pub mod record;
";

    /// The lines and rules that `text`, behind a first line of docs, breaks in that file.
    fn rules(file: &str, text: &str) -> Vec<(usize, String)> {
        let map = Map::of_lib(&LIB.replace("ledger  two", "ledger    two"));
        let found = violations(&map, file, &format!("//! A file.\n{text}"));
        found.into_iter().map(|violation| (violation.line, violation.rule)).collect()
    }

    #[track_caller]
    fn breaks(file: &str, text: &str, line: usize, rule: &str) {
        let found = rules(file, text);
        let hit = found.len() == 1 && found[0].0 == line && found[0].1.contains(rule);
        assert!(hit, "{file}: {text}\nexpected line {line}: {rule}\ngot {found:?}");
    }

    #[track_caller]
    fn keeps(file: &str, text: &str) {
        assert_eq!(rules(file, text), [], "{file}: {text}");
    }

    #[test]
    fn the_real_map_is_understood() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let map = Map::of_lib(&fs::read_to_string(root.join("src/lib.rs")).unwrap());
        let lines: Vec<String> = map.0.iter().map(|line| line.join(" ")).collect();
        let expected =
            "cli|commands|pipeline|source dify sls ledger|pg|record wire|secret error_text"
                .split('|');
        assert_eq!(lines, expected.collect::<Vec<_>>());
    }

    #[test]
    fn arrows_go_down() {
        keeps("src/pipeline.rs", "use crate::source::Page;\nuse crate::{record::table, wire};");
        keeps("src/wire/sign.rs", "use crate::wire::proto;\nuse crate::secret::Secret;");
        keeps("src/main.rs", "use crate::sim;");
        breaks("src/record.rs", "\nuse crate::source;", 3, "lower lines, not source");
        breaks("src/sls/tail.rs", "use crate::ledger::Batch;", 2, "lower lines, not ledger");
        breaks("src/wire.rs", "fn f() { crate::record::g() }", 2, "lower lines, not record");
        breaks("src/pg.rs", "use crate::{record, secret,\n dify::x};", 3, "not dify");
        breaks("src/pg.rs", "use crate::{record::{a, dify}, cli};", 2, "not cli");
        breaks("src/pg.rs", "use crate::helpers;", 2, "helpers is not on the map");
        breaks("src/helpers.rs", "use crate::pg;", 2, "helpers is not on the map");
        breaks("src/cli.rs", "use crate::*;", 2, "* is not on the map");
        breaks("src/lib.rs", "use crate::pg;", 2, "lib is not on the map");
    }

    #[test]
    fn the_modules_beside_the_map_stay_there() {
        keeps("src/commands/demo.rs", "use crate::{demo, sim};");
        keeps("src/commands/simulate/http.rs", "use crate::sim;");
        keeps("src/sim/store.rs", "use crate::sim::x; use crate::wire; use crate::secret;");
        keeps("src/demo.rs", "use crate::record; use crate::pg;");
        breaks("src/commands/demolish.rs", "use crate::demo;", 2, "commands::demo may name demo");
        breaks("src/pipeline.rs", "use crate::sim;", 2, "commands::simulate and");
        breaks("src/sim.rs", "use crate::record;", 2, "sim may name only wire, secret");
        breaks("src/demo/text.rs", "use crate::wire;", 2, "demo may name only record");
    }

    #[test]
    fn libraries_are_named_where_they_belong() {
        keeps("src/source.rs", "use sqlx::Row;");
        keeps("src/demo/fill.rs", "fn f(_: &mut sqlx::PgConnection) {}");
        keeps("src/cli.rs", "// sqlx reads this.\nconst S: &str = \"sqlx::x\"; fn f() { x.sqlx }");
        breaks("src/pipeline.rs", "#[derive(sqlx::FromRow)]\nstruct S;", 2, "may name sqlx");
        breaks("src/sls.rs", "use prost::Message;", 2, "only wire, sim may name prost");
        breaks("src/commands/doctor.rs", "use reqwest as r;", 2, "only sls, sim may name reqwest");
        breaks("src/wire.rs", "use hyper_util::rt;", 2, "only sls, sim may name hyper_util");
    }

    #[test]
    fn the_form_of_a_file_is_checked() {
        breaks("src/sls/mod.rs", "", 1, "not `foo/mod.rs`");
        breaks("src/sls.rs", "pub use x::Y;", 2, "no re-exports");
        breaks("src/sls.rs", "pub(crate) use x::Y;", 2, "no re-exports");
        breaks("src/sls.rs", "mod a {\n use super::x; }", 3, "`super::` only in tests");
        let map = Map::of_lib(LIB);
        let found = violations(&map, "src/sls.rs", "// A file.\n");
        assert_eq!(found.len(), 1);
        assert!(found[0].to_string().starts_with("src/sls.rs:1: the first line says"));
    }

    #[test]
    fn tests_are_free() {
        let body = "use super::*; use crate::cli; use sqlx::x;";
        keeps("src/wire/log_group/tests.rs", body);
        keeps("src/wire.rs", &format!("#[cfg(test)]\nmod tests {{ {body} }}\nfn f() {{}}"));
        keeps("src/wire.rs", &format!("#[cfg(test)]\n#[path = \"x\"]\nmod tests;\n// {body}"));
        breaks("src/wire.rs", "#[cfg(test)] mod tests {}\nuse super::x;", 3, "`super::`");
        breaks("src/wire.rs", "#[cfg(not(test))] mod x { use super::x; }", 2, "`super::`");
    }
}
