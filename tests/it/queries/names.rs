//! Which words a column may be called: all that Presto does not reserve, whatever SQLite does.

use serde_json::{Value, json};

use crate::queries::asking::now_s;
use crate::queries::small::Small;

/// SQLite's keywords (its documentation, "SQLite Keywords").
const OF_SQLITE: &str = "abort action add after all alter always analyze and as asc attach autoincrement before \
    begin between by cascade case cast check collate column commit conflict constraint create \
    cross current current_date current_time current_timestamp database default deferrable \
    deferred delete desc detach distinct do drop each else end escape except exclude exclusive \
    exists explain fail filter first following for foreign from full generated glob group \
    groups having if ignore immediate in index indexed initially inner insert instead intersect \
    into is isnull join key last left like limit match materialized natural no not nothing \
    notnull null nulls of offset on or order others outer over partition plan pragma preceding \
    primary query raise range recursive references regexp reindex release rename replace \
    restrict returning right rollback row rows savepoint select set table temp temporary then \
    ties to transaction trigger unbounded union unique update using vacuum values view virtual \
    when where window with within without";

/// The words that Presto reserves (its documentation, "Reserved Keywords").
const RESERVED: &str = "alter and as between by case cast constraint create cross cube current_date current_time \
    current_timestamp current_user deallocate delete describe distinct drop else end escape \
    except execute exists extract false for from full group grouping having in inner insert \
    intersect into is join left like localtime localtimestamp natural normalize not null on or \
    order outer prepare recursive right rollup select table then true uescape union unnest \
    using values when where with";

fn free_words() -> Vec<&'static str> {
    let reserved: Vec<_> = RESERVED.split(' ').collect();
    OF_SQLITE.split(' ').filter(|word| !reserved.contains(word)).collect()
}

/// A logstore with a log that has each of these words as a field, whose value is the word.
fn filled() -> Small {
    let small = Small::without_index(&[], json!({}));
    let words = free_words();
    assert_eq!(words.len(), 95, "the lists are whole");
    let key = json!({"type": "text", "doc_value": true});
    let keys: serde_json::Map<String, Value> =
        words.iter().map(|word| ((*word).to_owned(), key.clone())).collect();
    small.index(json!({"keys": keys}));
    let fields: Vec<_> = words.iter().map(|word| (*word, *word)).collect();
    small.put(now_s() - 9, &fields);
    small
}

#[test]
fn every_word_that_presto_does_not_reserve_is_a_column() {
    let small = filled();
    for word in free_words() {
        for form in [
            "SELECT w FROM log WHERE w = 'w' GROUP BY w ORDER BY w ASC, w LIMIT 5",
            "SELECT log.w AS w FROM log ORDER BY log.w DESC",
            "SELECT w FROM (SELECT w FROM log) t WHERE t.w LIKE 'w%' AND w IS NOT NULL \
             AND w IN ('w') AND NOT w = 'x' LIMIT 1",
            "SELECT w FROM (SELECT *, ROW_NUMBER() OVER (PARTITION BY w ORDER BY w DESC) AS rn \
             FROM log) t WHERE rn = 1",
            "SELECT max(w) AS w",
            "SELECT CASE WHEN w = 'x' THEN 'x' ELSE w END AS w LIMIT 0, 5",
            "SELECT w",
            "WITH w AS (SELECT w FROM log) SELECT w FROM w LIMIT 1",
        ] {
            let sql = form
                .split(' ')
                .map(|part| if part == "'x'" { part.to_owned() } else { replaced(part, word) })
                .collect::<Vec<_>>()
                .join(" ");
            let rows = small.sql(&sql);
            assert_eq!(rows.len(), 1, "{sql}");
            assert_eq!(rows[0].get(word).map(String::as_str), Some(word), "{sql}: {rows:?}");
        }
        let sql = format!("SELECT count(DISTINCT {word}) AS c, max(lower({word} || {word})) AS d");
        assert_eq!(small.sql(&sql)[0]["d"], word.repeat(2), "{sql}");
    }
}

/// `part` with `word` for each `w` that stands alone in it.
fn replaced(part: &str, word: &str) -> String {
    let is_letter = |at: Option<char>| at.is_some_and(|char| char.is_ascii_alphabetic());
    let mut out = String::new();
    for (at, char) in part.char_indices() {
        let before = part[..at].chars().next_back();
        let behind = part[at + char.len_utf8()..].chars().next();
        if char == 'w' && !is_letter(before) && !is_letter(behind) {
            out += word;
        } else {
            out.push(char);
        }
    }
    out
}

#[test]
fn such_a_word_is_named_in_an_error_as_it_was_written() {
    let small = Small::new(&[]);
    let message = small.refused("* | SELECT id, index FROM log");
    assert!(
        message.starts_with("line 1:12: Column 'index' cannot be resolved;please"),
        "{message}"
    );
    let message = small.refused("* | SELECT id, \"index\" FROM log");
    assert!(
        message.contains("line 1:12: Column 'index' cannot be resolved; it seems"),
        "{message}"
    );
    let message = small.refused("* | SELECT \"id\" AS index FROM log ORDER BY index, oops");
    assert!(message.starts_with("line 1:47: Column 'oops' cannot be resolved;"), "{message}");
    assert!(small.refused("* | SELECT select").contains("SyntaxError"));
}
