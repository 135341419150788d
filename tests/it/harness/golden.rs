//! Compares what the tool says with files under tests/it/goldens; `UPDATE=1` writes them anew.

use std::path::PathBuf;

/// Fails the test unless `actual` is the text of that file. Replace what changes from run to run
/// (ports, times, ids) before.
#[track_caller]
pub(crate) fn check(file: &str, actual: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/goldens").join(file);
    if std::env::var_os("UPDATE").is_some_and(|update| update == "1") {
        std::fs::create_dir_all(path.parent().expect("the file is in a folder")).unwrap();
        std::fs::write(&path, actual).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("read {}: {error}; UPDATE=1 makes it", path.display()));
    if let Some(difference) = difference(&expected, actual) {
        panic!("{file} says otherwise ({difference}); if the new text is right: UPDATE=1");
    }
}

/// The first line that differs.
fn difference(expected: &str, actual: &str) -> Option<String> {
    if expected == actual {
        return None;
    }
    let (mut expected, mut actual) = (expected.split('\n'), actual.split('\n'));
    let mut number = 0;
    loop {
        number += 1;
        let (old, new) = (expected.next(), actual.next());
        if old != new {
            let shown =
                |line: Option<&str>| line.map_or("nothing".into(), |line| format!("{line:?}"));
            return Some(format!("line {number}: expected {}, got {}", shown(old), shown(new)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_difference_is_named() {
        assert_eq!(difference("a\nb\n", "a\nb\n"), None);
        let one = difference("a\nb\n", "a\nc\n").unwrap();
        assert_eq!(one, r#"line 2: expected "b", got "c""#);
        let one = difference("a", "a\n").unwrap();
        assert_eq!(one, r#"line 2: expected nothing, got """#);
    }

    #[test]
    #[should_panic(expected = "UPDATE=1 makes it")]
    fn a_missing_golden_fails() {
        check("no such file", "");
    }
}
