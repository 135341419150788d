//! Finds circles between files: groups of files each of which needs all others of its group.

use std::collections::{BTreeMap, BTreeSet};

use crate::layers::tokens::Token;

/// Which files each file names, by module path: `wire::sign` for src/wire/sign.rs.
#[derive(Default)]
pub(crate) struct Graph(BTreeMap<String, BTreeSet<String>>);

impl Graph {
    /// From the files' module paths and their tokens without tests.
    pub(crate) fn of(files: &[(String, Vec<Token>)]) -> Self {
        let modules: BTreeSet<&str> = files.iter().map(|(module, _)| module.as_str()).collect();
        let named = files.iter().map(|(module, tokens)| {
            let paths = crate_paths(tokens).into_iter().chain(child_paths(module, tokens));
            let files = paths.filter_map(|path| file_of(&modules, &path));
            (module.clone(), files.filter(|file| file != module).collect())
        });
        Self(named.collect())
    }

    /// The groups of two or more files that reach each other, each in alphabetical order.
    pub(crate) fn circles(&self) -> Vec<Vec<String>> {
        let reached: BTreeMap<_, _> = self.0.keys().map(|file| (file, self.reach(file))).collect();
        let mut circles = BTreeSet::new();
        for (file, others) in &reached {
            let is_back = |other: &&&String| reached[**other].contains(*file);
            let circle: Vec<String> = others.iter().filter(is_back).map(|f| (*f).clone()).collect();
            if circle.len() > 1 {
                circles.insert(circle);
            }
        }
        circles.into_iter().collect()
    }

    /// All files that `file` needs, itself included if one of them needs it.
    fn reach(&self, file: &str) -> BTreeSet<&String> {
        let mut reached = BTreeSet::new();
        let mut open: Vec<&String> = self.0[file].iter().collect();
        while let Some(next) = open.pop() {
            if reached.insert(next) {
                open.extend(&self.0[next]);
            }
        }
        reached
    }
}

/// The file that a path leads into: that with the longest name which the path begins with.
fn file_of(modules: &BTreeSet<&str>, path: &[String]) -> Option<String> {
    let names = (1..=path.len()).rev().map(|length| path[..length].join("::"));
    names.into_iter().find(|name| modules.contains(name.as_str()))
}

/// What follows each `crate::`, a path for each name of a group. Who may see an item
/// (`pub(in crate::…)`) is no need of its file.
fn crate_paths(tokens: &[Token]) -> Vec<Vec<String>> {
    let mut paths = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        let is_visibility = index > 0 && tokens[index - 1].text == "in";
        let is_path = tokens.get(index + 1).is_some_and(|next| next.text == "::");
        if token.text == "crate" && is_path && !is_visibility {
            read_path(&tokens[index + 2..], &[], &mut paths);
        }
    }
    paths
}

/// Reads a path, or a group of paths, behind `prefix`; gives how many tokens it has.
fn read_path(tokens: &[Token], prefix: &[String], paths: &mut Vec<Vec<String>>) -> usize {
    let mut path = prefix.to_vec();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        if token.text == "{" {
            at += 1;
            while tokens.get(at).is_some_and(|token| token.text != "}") {
                at += read_path(&tokens[at..], &path, paths).max(1);
            }
            return at + 1;
        }
        path.push(token.text.clone());
        at += 1;
        match tokens.get(at) {
            Some(token) if token.text == "::" => at += 1,
            _ => break,
        }
    }
    paths.push(path);
    at
}

/// The modules that a file declares and names without `crate::`.
fn child_paths(module: &str, tokens: &[Token]) -> Vec<Vec<String>> {
    let text = |index: usize| tokens.get(index).map(|token: &Token| token.text.as_str());
    let is_declared = |index: usize| text(index) == Some("mod") && text(index + 2) == Some(";");
    let declared = (0..tokens.len()).filter(|index| is_declared(*index));
    let children: BTreeSet<&str> = declared.filter_map(|index| text(index + 1)).collect();
    let mut paths = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        let is_first = index == 0 || !["::", "."].contains(&tokens[index - 1].text.as_str());
        if is_first && children.contains(token.text.as_str()) && text(index + 1) == Some("::") {
            let names = module.split("::").chain([token.text.as_str()]);
            paths.push(names.map(str::to_owned).collect());
        }
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::tokens;

    /// Files as `module: source`.
    #[track_caller]
    fn check(files: &[(&str, &str)], expected: &[&str]) {
        let of = |(module, text): &(&str, &str)| {
            ((*module).to_owned(), tokens::without_tests(tokens::of(text)))
        };
        let files: Vec<_> = files.iter().map(of).collect();
        let circles: Vec<String> =
            Graph::of(&files).circles().iter().map(|circle| circle.join(" ")).collect();
        assert_eq!(circles, expected, "{files:?}");
    }

    #[test]
    fn two_files_that_name_each_other_are_a_circle() {
        let below = ("a::c", "fn f() {}");
        check(&[("a", "use crate::a::b::X;"), ("a::b", "use crate::a::c::f;"), below], &[]);
        check(&[("a", "use crate::a::b::X;"), ("a::b", "use crate::a::Y;"), below], &["a a::b"]);
        check(&[("a", "fn f() { crate::b::g() }"), ("b", "use crate::a;")], &["a b"]);
    }

    #[test]
    fn a_longer_circle_is_told_once() {
        let files = [
            ("a", "use crate::b::X;"),
            ("b", "use crate::c::X;"),
            ("c", "use crate::a::X;"),
            ("d", "use crate::a::X;"),
        ];
        check(&files, &["a b c"]);
    }

    #[test]
    fn groups_are_read_to_their_end() {
        let groups = ("a", "use crate::{b::{self, f}, c::{d::{X, Y as Z}, e::*}};");
        check(&[groups, ("b", ""), ("c::d", ""), ("c::e", "use crate::a;")], &["a c::e"]);
        check(&[groups, ("b", ""), ("c::d", "use crate::a::X;"), ("c::e", "")], &["a c::d"]);
        check(&[groups, ("b", "use crate::a;"), ("c::d", ""), ("c::e", "")], &["a b"]);
    }

    #[test]
    fn a_child_named_without_crate_counts() {
        let child = ("a::b", "use crate::a::X;");
        check(&[("a", "mod b; fn f() { b::g() }"), child], &["a a::b"]);
        check(&[("a", "mod b; fn f() { c::b::g(); x.b }"), child], &[]);
        check(&[("a", "mod b; use b::Y;"), child], &["a a::b"]);
    }

    #[test]
    fn tests_and_visibility_make_no_circle() {
        let tests = "fn f() {} #[cfg(test)] mod tests { use crate::a::X; }";
        check(&[("a", "use crate::a::b::f;"), ("a::b", tests)], &[]);
        let visible = ("a::b", "pub(in crate::a) fn f() {}");
        check(&[("a", "use crate::a::b::f;"), visible], &[]);
    }
}
