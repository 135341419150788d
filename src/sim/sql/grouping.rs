//! Refuses what SLS refuses beside GROUP BY and aggregates: columns that are neither grouped by nor
//! aggregated (aliyun, GROUP BY clause). SQLite would give any row's value for them.

use crate::sim::answer::Refusal;
use crate::sim::sql::token::{Kind, Token, syntax};

/// The functions that make one value of many rows.
const AGGREGATES: [&str; 17] = [
    "approx_distinct",
    "approx_percentile",
    "arbitrary",
    "array_agg",
    "avg",
    "bool_and",
    "bool_or",
    "count",
    "count_if",
    "geometric_mean",
    "max",
    "max_by",
    "min",
    "min_by",
    "stddev",
    "sum",
    "variance",
];

/// Words of an expression that are no columns; the last line are the types of CAST.
const NO_COLUMNS: [&str; 48] = [
    "all",
    "and",
    "as",
    "asc",
    "between",
    "by",
    "case",
    "cast",
    "current",
    "desc",
    "distinct",
    "else",
    "end",
    "escape",
    "exists",
    "false",
    "filter",
    "first",
    "following",
    "from",
    "in",
    "interval",
    "is",
    "last",
    "like",
    "not",
    "null",
    "nulls",
    "or",
    "order",
    "over",
    "partition",
    "preceding",
    "range",
    "row",
    "rows",
    "then",
    "true",
    "unbounded",
    "when",
    "where",
    "bigint",
    "boolean",
    "date",
    "double",
    "integer",
    "timestamp",
    "varchar",
];

/// What stands behind a select list, or behind the terms of GROUP BY.
const CLAUSES: [&str; 6] = ["from", "where", "group", "having", "order", "limit"];

/// Checks every SELECT of a statement.
pub fn check(text: &str, tokens: &[Token<'_>]) -> Result<(), Refusal> {
    for (at, token) in tokens.iter().enumerate().filter(|(_, token)| token.is("select")) {
        let ends = |other: &Token<'_>| {
            other.depth < token.depth
                || (other.depth == token.depth && other.is_any(&["union", "intersect", "except"]))
        };
        let rest = &tokens[at + 1..];
        let rest = &rest[..rest.iter().position(ends).unwrap_or(rest.len())];
        check_select(text, rest, token.depth)?;
    }
    Ok(())
}

/// Checks one SELECT, given what stands behind the word, at this depth.
fn check_select(text: &str, tokens: &[Token<'_>], depth: usize) -> Result<(), Refusal> {
    let skipped = tokens.first().is_some_and(|first| first.is_any(&["distinct", "all"]));
    let items: Vec<_> =
        terms(&tokens[usize::from(skipped)..], depth).into_iter().map(Item::of).collect();
    let group = tokens.iter().position(|token| token.depth == depth && token.is("group"));
    if group.is_none() && !items.iter().any(|item| item.aggregates()) {
        return Ok(());
    }
    let by = group.map(|at| terms(tokens.get(at + 2..).unwrap_or_default(), depth));
    let mut grouped = Vec::new();
    for term in by.unwrap_or_default() {
        grouped.push(words(term));
        let number = match term {
            [token] if token.kind == Kind::Number => token.text.parse::<usize>().ok(),
            _ => None,
        };
        let named =
            |item: &&Item<'_>| item.alias.is_some_and(|alias| words(&[alias]) == words(term));
        let meant = number.and_then(|number| items.get(number.checked_sub(1)?));
        grouped.extend(meant.or(items.iter().find(named)).map(|item| words(item.expression)));
    }
    match items.iter().find_map(|item| item.stray_column(&grouped)) {
        None => Ok(()),
        Some(column) => {
            let name = column.text.trim_matches('"');
            let message =
                format!("'{name}' must be an aggregate expression or appear in GROUP BY clause");
            Err(syntax(text, column.at, &message))
        }
    }
}

/// What stands between the commas at this depth, up to the next clause.
fn terms<'a, 'b>(tokens: &'a [Token<'b>], depth: usize) -> Vec<&'a [Token<'b>]> {
    let ends = |token: &Token<'_>| token.depth == depth && token.is_any(&CLAUSES);
    let tokens = &tokens[..tokens.iter().position(ends).unwrap_or(tokens.len())];
    let terms = tokens.split(|token| token.depth == depth && token.is_symbol(b','));
    terms.filter(|term| !term.is_empty()).collect()
}

/// A token as it is compared: names without the table that they are of, and without their quotes.
fn words(tokens: &[Token<'_>]) -> Vec<String> {
    named(tokens).map(|(_, word)| word).collect()
}

/// The same, with the token's number.
fn named<'a>(tokens: &'a [Token<'_>]) -> impl Iterator<Item = (usize, String)> + 'a {
    let is_dot = |at: usize| tokens.get(at).is_some_and(|token| token.is_symbol(b'.'));
    let kept = (0..tokens.len()).filter(move |at| !is_dot(*at) && !is_dot(*at + 1));
    kept.map(|at| {
        let text = tokens[at].text;
        let is_text = text.starts_with('\'');
        (at, if is_text { text.to_owned() } else { text.trim_matches('"').to_ascii_lowercase() })
    })
}

/// A term of a select list.
struct Item<'a> {
    expression: &'a [Token<'a>],
    alias: Option<Token<'a>>,
}

impl<'a> Item<'a> {
    fn of(tokens: &'a [Token<'a>]) -> Self {
        if let [expression @ .., keyword, alias] = tokens
            && keyword.is("as")
        {
            return Self { expression, alias: Some(*alias) };
        }
        // An alias without AS stands behind the end of an operand.
        if let [.., before, alias] = tokens
            && (!matches!(before.kind, Kind::Symbol(_) | Kind::Word) || is_end(before))
            && !matches!(alias.kind, Kind::Symbol(_) | Kind::Number)
            && !alias.is_any(&["end", "null", "true", "false"])
        {
            return Self { expression: &tokens[..tokens.len() - 1], alias: Some(*alias) };
        }
        Self { expression: tokens, alias: None }
    }

    fn aggregates(&self) -> bool {
        (0..self.expression.len()).any(|at| self.end_of_aggregate(at).is_some())
    }

    /// Where the aggregate that begins at `at` ends, if one does. Over a window it is none.
    fn end_of_aggregate(&self, at: usize) -> Option<usize> {
        let tokens = self.expression;
        let opens = tokens[at].is_any(&AGGREGATES) && tokens.get(at + 1)?.is_symbol(b'(');
        let mut end = opens.then(|| end_of_pair(tokens, at + 1))?;
        if tokens.get(end).is_some_and(|token| token.is("filter")) {
            end = end_of_pair(tokens, end + 1);
        }
        (!tokens.get(end).is_some_and(|token| token.is("over"))).then_some(end)
    }

    /// The first column that is neither aggregated nor part of what is `grouped` by.
    fn stray_column(&self, grouped: &[Vec<String>]) -> Option<Token<'a>> {
        let tokens = self.expression;
        let all: Vec<_> = named(tokens).collect();
        let mut next = 0;
        while let Some((at, word)) = all.get(next) {
            let token = tokens[*at];
            let same = |group: &&Vec<String>| {
                let here = all[next..].iter().map(|(_, word)| word);
                !group.is_empty() && here.take(group.len()).eq(group.iter())
            };
            let is_subquery =
                token.is_symbol(b'(') && tokens.get(at + 1).is_some_and(|inner| inner.is("select"));
            let end = if is_subquery {
                Some(end_of_pair(tokens, *at))
            } else {
                self.end_of_aggregate(*at)
            };
            if let Some(group) = grouped.iter().filter(same).max_by_key(|group| group.len()) {
                next += group.len();
            } else if let Some(end) = end {
                next += all[next..].iter().take_while(|(at, _)| *at < end).count();
            } else if is_column(token, word, tokens.get(at + 1)) || is_star(tokens) {
                return Some(token);
            } else {
                next += 1;
            }
        }
        None
    }
}

/// Whether an operand can end with this token.
fn is_end(token: &Token<'_>) -> bool {
    let is_value = token.is_any(&["end", "null", "true", "false"]);
    let is_name = token.kind == Kind::Word && !token.is_any(&NO_COLUMNS);
    token.is_symbol(b')') || is_value || is_name
}

/// `*`, or `t.*`.
fn is_star(tokens: &[Token<'_>]) -> bool {
    matches!(tokens, [star] | [_, _, star] if star.is_symbol(b'*'))
}

fn is_column(token: Token<'_>, word: &str, next: Option<&Token<'_>>) -> bool {
    let is_function = next.is_some_and(|next| next.is_symbol(b'('));
    match token.kind {
        Kind::Name => !is_function,
        Kind::Quoted => token.text.starts_with('"'),
        Kind::Word => !is_function && !NO_COLUMNS.contains(&word),
        Kind::Number | Kind::Symbol(_) => false,
    }
}

/// What stands behind the parenthesis that closes the one at `open`.
fn end_of_pair(tokens: &[Token<'_>], open: usize) -> usize {
    let Some(depth) = tokens.get(open).map(|token| token.depth) else { return tokens.len() };
    let closes = |token: &Token<'_>| token.is_symbol(b')') && token.depth == depth;
    let close = tokens[open..].iter().position(closes);
    close.map_or(tokens.len(), |close| open + close + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::sql::token::tokenise;
    use proptest::prelude::*;

    fn stray(text: &str) -> Option<String> {
        let refusal = check(text, &tokenise(text).unwrap()).err()?;
        let (_, message) = refusal.message.rsplit_once("ErrorMessage:").unwrap();
        let message =
            message.strip_suffix(" must be an aggregate expression or appear in GROUP BY clause");
        Some(message.unwrap().to_owned())
    }

    #[test]
    fn columns_are_grouped_by_or_aggregated() {
        for text in [
            "select a, b from log",
            "select * from log order by a",
            "select count(*), max(a), sum(n) / count(*) from log where b = 1",
            "select count(*) as c, 1 as one, 'x'",
            "select a, count(*) from log group by a",
            "select \"a\", log.a, upper(A) from log group by a",
            "select date_trunc('day', from_unixtime(__time__)) as d, count(distinct id) group by d",
            "select date_trunc('day', from_unixtime(__time__)) d, count(1) c from log group by d",
            "select __time__ - __time__ % 86400 as day, count(*) group by 1",
            "select __time__ - __time__ % 86400 as day, count(*) group by __time__ - __time__ % 86400",
            "select case when a = 'x' then a else 'y' end, count(*) from log group by a",
            "select cast(a as varchar), count(*) filter (where b = 1) from log group by log.a",
            "select a, (select count(b) from log), sum(n) from log group by a",
            "select a, sum(count(*)) over (order by a) from log group by a",
            "select a, row_number() over (partition by b order by c desc) as rn from log",
            "select a, sum(n) over (order by b) from log",
            "select distinct a, count(*) from log group by a having count(*) > 1 order by 2 limit 5",
            "select a from log union all select max(b) from log",
            "select t.a, max(n) from (select a, n, b from log) t group by t.a",
            "select index, max(limit) from log group by index",
            "select A, COUNT(*) C, NULL N, CASE WHEN a = 'x' THEN 1 END E FROM log GROUP BY a",
        ] {
            assert_eq!(stray(text), None, "{text}");
        }
        for (text, wanted) in [
            // The documentation's own example of what is not allowed.
            (
                "select status, request_time, count(*) as pv group by status",
                "line 1:16: 'request_time'",
            ),
            ("select a, count(*) from log", "line 1:8: 'a'"),
            ("select upper(\"b\"), max(a) from log", "line 1:14: 'b'"),
            ("select a || b, count(*) from log group by a", "line 1:13: 'b'"),
            ("select *, count(*) from log", "line 1:8: '*'"),
            ("select * from log group by a", "line 1:8: '*'"),
            ("select a from (select b, max(c) from log) t", "line 1:23: 'b'"),
            ("select sum(n), a\nfrom log", "line 1:16: 'a'"),
            (
                "with t as (select id, min(n) from log group by n) select * from t",
                "line 1:19: 'id'",
            ),
            ("select count(*) over (order by b), max(n) from log", "line 1:32: 'b'"),
            ("select index, max(limit) from log group by limit", "line 1:8: 'index'"),
            ("SELECT a = 'x' AND b, COUNT(*) FROM log GROUP BY a", "line 1:20: 'b'"),
        ] {
            assert_eq!(stray(text).as_deref(), Some(wanted), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in r#"(select|from|group by|count\(|\*|as|,|\(|\)|'|"|over|filter|a|1|\.| ){0,40}"#) {
            if let Ok(tokens) = tokenise(&text) {
                let _ = check(&text, &tokens);
            }
        }
    }
}
