//! Makes SQLite read a statement as SLS (Presto) would, without parsing it: by its tokens alone.
//!
//! Where Presto and SQLite differ:
//!
//! - NULLs come last in every order, so `NULLS LAST` is added to each term of each `ORDER BY`.
//! - A statement without `FROM` reads the logstore, so `FROM log` is added.
//! - `LIMIT n OFFSET m` is none of SLS's words; without a limit there are 100 rows.
//! - Names that SQLite reserves are put in quotes.
//! - Columns beside GROUP BY and aggregates are refused ([`grouping`]).

use crate::sim::answer::Refusal;
use crate::sim::sql::grouping;
use crate::sim::sql::token::{Kind, Token, line_and_column, syntax, tokenise};
use crate::sim::switch::LimitOffset;

/// Rows without a LIMIT (aliyun, LIMIT clause).
pub const ROWS_DEFAULT: usize = 100;

/// `LIMIT x` and `LIMIT y,x`: x + y may be so large (aliyun, LIMIT clause).
const ROWS_MAX: u64 = 1_000_000;

/// `LIMIT y,x`: x may be so large (aliyun, LIMIT clause).
const PAGE_ROWS_MAX: u64 = 10_000;

/// A statement for SQLite, and how to find a place of it in the original.
#[derive(Debug, PartialEq, Eq)]
pub struct Statement {
    pub sql: String,
    /// At most so many rows are given, whatever SQLite finds.
    pub rows_max: usize,
    original: String,
    /// Where in `sql` text was added, and how much.
    added: Vec<(usize, usize)>,
}

impl Statement {
    /// Line and column, both from 1, in the original, of byte `offset` of [`Self::sql`].
    pub fn place(&self, offset: usize) -> (usize, usize) {
        let before = self.added.iter().filter(|(at, _)| *at < offset);
        let offset = offset.saturating_sub(before.map(|(_, length)| length).sum());
        line_and_column(&self.original, offset)
    }

    /// Whether the name at byte `offset` of [`Self::sql`] has its quotes from us.
    pub fn has_quoted(&self, offset: usize) -> bool {
        self.sql[offset..].starts_with('"') && self.added.contains(&(offset, 1))
    }
}

/// Checks `text` and rewrites it. Only a single SELECT is taken.
pub fn rewrite(text: &str, limit_offset: LimitOffset) -> Result<Statement, Refusal> {
    let mut tokens = tokenise(text)?;
    if tokens.last().is_some_and(|token| token.is_symbol(b';')) {
        tokens.pop();
    }
    let first = tokens.first().ok_or_else(|| syntax(text, 0, "the statement is empty"))?;
    if !first.is_any(&["select", "with"]) {
        let message = format!("mismatched input '{}' expecting {{'SELECT', 'WITH'}}", first.text);
        return Err(syntax(text, first.at, &message));
    }
    if let Some(token) = tokens.iter().find(|token| token.is_symbol(b';')) {
        return Err(syntax(text, token.at, "mismatched input ';' expecting <EOF>"));
    }
    if limit_offset == LimitOffset::Refuse
        && let Some(at) = tokens.windows(3).position(|w| w[0].is("limit") && w[2].is("offset"))
    {
        let message = "mismatched input 'OFFSET' expecting <EOF>, please use limit x,y";
        return Err(syntax(text, tokens[at + 2].at, message));
    }
    grouping::check(text, &tokens)?;
    let rows_max = rows_max(text, &tokens)?;
    let mut additions: Vec<(usize, &str)> = Vec::new();
    let names = tokens.iter().filter(|token| token.kind == Kind::Name);
    additions.extend(names.flat_map(|name| [(name.at, "\""), (name.end(), "\"")]));
    additions.extend(missing_from(&tokens).map(|at| (at, " FROM log")));
    additions.extend(ends_of_order_terms(&tokens).into_iter().map(|at| (at, " NULLS LAST")));
    additions.sort_by_key(|(at, _)| *at);
    let body_end = tokens.last().map_or(0, Token::end);
    let (mut sql, mut added, mut done) = (String::new(), Vec::new(), 0);
    for (at, addition) in additions {
        sql += &text[done..at];
        added.push((sql.len(), addition.len()));
        sql += addition;
        done = at;
    }
    sql += &text[done..body_end];
    Ok(Statement { sql, rows_max, original: text.to_owned(), added })
}

/// Where `FROM log` belongs, if the statement is a SELECT of nothing in particular.
fn missing_from(tokens: &[Token<'_>]) -> Option<usize> {
    let outer = || tokens.iter().filter(|token| token.depth == 0);
    if !tokens.first()?.is("select") || outer().any(|token| token.is("from")) {
        return None;
    }
    let ends = ["where", "group", "having", "order", "limit", "union", "intersect", "except"];
    let next = outer().find(|token| token.is_any(&ends));
    let last = match next {
        None => tokens.last(),
        Some(next) => tokens.iter().take_while(|token| token.at < next.at).last(),
    };
    last.map(Token::end)
}

/// The outermost LIMIT, checked; 100 without one.
fn rows_max(text: &str, tokens: &[Token<'_>]) -> Result<usize, Refusal> {
    let Some(at) = tokens.iter().rposition(|token| token.depth == 0 && token.is("limit")) else {
        return Ok(ROWS_DEFAULT);
    };
    let number = |index: usize| -> Result<u64, Refusal> {
        let place = tokens.get(index).map_or(text.len(), |token| token.at);
        let token = tokens.get(index).filter(|token| token.kind == Kind::Number);
        let number = token.and_then(|token| token.text.parse().ok());
        number.ok_or_else(|| syntax(text, place, "mismatched input after LIMIT"))
    };
    let first = number(at + 1)?;
    let is_page = tokens.get(at + 2).is_some_and(|token| token.is_symbol(b','));
    let (offset, rows) = if is_page { (first, number(at + 3)?) } else { (0, first) };
    if is_page && rows > PAGE_ROWS_MAX {
        let message = format!("limit {offset},{rows}: a page has at most {PAGE_ROWS_MAX} rows");
        return Err(syntax(text, tokens[at].at, &message));
    }
    if rows.saturating_add(offset) > ROWS_MAX {
        let message = format!("limit {rows} is more than {ROWS_MAX}");
        return Err(syntax(text, tokens[at].at, &message));
    }
    Ok(usize::try_from(rows).unwrap_or(usize::MAX))
}

/// Where the terms of all ORDER BY clauses end that do not say themselves where NULLs go.
fn ends_of_order_terms(tokens: &[Token<'_>]) -> Vec<usize> {
    let mut ends = Vec::new();
    for (index, pair) in tokens.windows(2).enumerate() {
        if !(pair[0].is("order") && pair[1].is("by")) {
            continue;
        }
        let depth = pair[0].depth;
        let (mut says, mut last) = (false, None);
        for (at, token) in tokens.iter().enumerate().skip(index + 2) {
            let closes = token.depth < depth;
            // Behind a dot or an operator it is a column.
            let is_behind_term = last.is_some()
                && !matches!(tokens[at - 1].kind, Kind::Symbol(symbol) if symbol != b')');
            let ends_clause =
                closes || (token.depth == depth && is_behind_term && ends_order(token));
            let ends_term = token.depth == depth && token.is_symbol(b',');
            if ends_clause || ends_term {
                ends.extend(last.take().filter(|_| !says));
                says = false;
                if ends_clause {
                    break;
                }
                continue;
            }
            let next = tokens.get(at + 1);
            says |= token.depth == depth
                && token.is("nulls")
                && next.is_some_and(|next| next.is_any(&["first", "last"]));
            last = Some(token.end());
        }
        ends.extend(last.filter(|_| !says));
    }
    ends
}

/// What can follow the terms of an ORDER BY.
fn ends_order(token: &Token<'_>) -> bool {
    token.is_any(&["limit", "rows", "range", "groups", "union", "intersect", "except"])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sql(text: &str) -> String {
        rewrite(text, LimitOffset::Refuse).unwrap().sql
    }

    fn message(text: &str) -> String {
        let refusal = rewrite(text, LimitOffset::Refuse).unwrap_err();
        assert_eq!((refusal.status, refusal.code.as_str()), (400, "ParameterInvalid"));
        refusal.message
    }

    #[test]
    fn nulls_go_last_in_every_order() {
        for (text, wanted) in [
            ("select a from log order by a", "select a from log order by a NULLS LAST"),
            (
                "select a from log order by a desc, f(b, c) limit 5",
                "select a from log order by a desc NULLS LAST, f(b, c) NULLS LAST limit 5",
            ),
            (
                "select a from log order by a nulls first, b",
                "select a from log order by a nulls first, b NULLS LAST",
            ),
            (
                "select sum(a) over (order by b rows unbounded preceding) from log",
                "select sum(a) over (order by b NULLS LAST rows unbounded preceding) from log",
            ),
            (
                "select * from (select a, row_number() over (partition by id order by v desc) rn \
                 from log) where rn = 1 order by a",
                "select * from (select a, row_number() over (partition by id order by v desc \
                 NULLS LAST) rn from log) where rn = 1 order by a NULLS LAST",
            ),
            (
                "select a from (select a from log order by (select 1 order by 2)) t",
                "select a from (select a from log order by (select 1 order by 2 NULLS LAST) \
                 NULLS LAST) t",
            ),
            ("select ' order by ' from log", "select ' order by ' from log"),
            (
                "select a from log order by t.rows desc, nulls, f(range) limit 1",
                "select a from log order by t.rows desc NULLS LAST, nulls NULLS LAST, \
                 f(range) NULLS LAST limit 1",
            ),
            (
                "select index, limit from log order by index limit 1",
                "select \"index\", \"limit\" from log order by \"index\" NULLS LAST limit 1",
            ),
        ] {
            assert_eq!(sql(text), wanted);
        }
    }

    #[test]
    fn without_from_the_logstore_is_read() {
        for (text, wanted) in [
            ("select count(*)", "select count(*) FROM log"),
            ("select a where a > 1 limit 2;", "select a FROM log where a > 1 limit 2"),
            ("SELECT extract(x from y), 1 ", "SELECT extract(x from y), 1 FROM log"),
            ("with a as (select 1) select * from a", "with a as (select 1) select * from a"),
        ] {
            assert_eq!(sql(text), wanted);
        }
    }

    #[test]
    fn limits_are_those_of_sls() {
        let rows = |text: &str| rewrite(text, LimitOffset::Refuse).map(|read| read.rows_max);
        assert_eq!(rows("select 1 from (select 2 from log limit 3)"), Ok(100));
        assert_eq!(rows("select 1 from log limit 1000000"), Ok(1_000_000));
        assert_eq!(rows("select 1 from log limit 20, 10000"), Ok(10_000));
        for text in [
            "select 1 from log limit 1000001",
            "select 1 from log limit 20, 10001",
            "select 1 from log limit 999999, 2",
            "select 1 from log limit -1",
            "select 1 from log limit",
        ] {
            assert!(message(text).contains("line 1:"), "{text}");
        }
    }

    #[test]
    fn limit_with_offset_is_refused_unless_it_is_switched_on() {
        let text = "select a from log\norder by a limit 10 offset 20";
        assert!(
            message(text).contains("line 2:21: mismatched input 'OFFSET'"),
            "{}",
            message(text)
        );
        let read = rewrite(text, LimitOffset::Accept).unwrap();
        assert_eq!(read.sql, "select a from log\norder by a NULLS LAST limit 10 offset 20");
    }

    #[test]
    fn only_one_select_is_taken() {
        for text in [
            "",
            "drop table log",
            "where a = 1",
            "select 1; select 2",
            "select 'x",
            "select 1)",
            "attach 'x' as y",
        ] {
            assert!(message(text).starts_with("ErrorType:SyntaxError"), "{text}");
        }
    }

    #[test]
    fn places_are_those_of_the_original() {
        let text = "select a\nfrom log order by b, nothing";
        let read = rewrite(text, LimitOffset::Refuse).unwrap();
        let at = read.sql.find("nothing").unwrap();
        assert_eq!(read.place(at), (2, 22));
        assert_eq!(read.place(9999), (2, 29));
    }

    proptest! {
        #[test]
        fn no_text_panics(text in r#"(select|with| |order by|limit|,|\(|\)|'|"|offset|1|a|;|-- |é|\n){0,40}"#) {
            let _ = rewrite(&text, LimitOffset::Accept);
            let _ = rewrite(&format!("select {text}"), LimitOffset::Refuse);
        }
    }
}
