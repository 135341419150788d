//! The functions of SLS's SQL that SQLite lacks, as far as Dify and this program use them.

use std::collections::HashSet;

use jiff::tz::TimeZone;
use rusqlite::functions::{Aggregate, Context, FunctionFlags};
use rusqlite::types::{Value, ValueRef};
use rusqlite::{Connection, Error, Result};

use crate::sim::sql_time::SqlTime;

/// Adds all of them to `conn`; times without a zone are in `session`.
pub fn register(conn: &Connection, session: &TimeZone) -> Result<()> {
    let scalar = |name: &str, arguments, function: Scalar| {
        let session = session.clone();
        let flags = FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC;
        conn.create_scalar_function(name, arguments, flags, move |context| {
            // As in Presto, NULL in, NULL out.
            let mut arguments = (0..context.len()).map(|index| context.get_raw(index));
            if arguments.any(|argument| argument == ValueRef::Null) {
                return Ok(Value::Null);
            }
            function(context, &session)
        })
    };
    scalar("from_unixtime", 1, |context, session| {
        Ok(Value::Text(time_of(context, 0, session)?.to_string()))
    })?;
    scalar("from_unixtime", 2, |context, session| {
        let time = time_of(context, 0, session)?.at_zone(&text(context, 1)?);
        Ok(Value::Text(time.map_err(failed)?.to_string()))
    })?;
    scalar("to_unixtime", 1, |context, session| {
        Ok(Value::Real(time_of(context, 0, session)?.to_unix()))
    })?;
    scalar("from_iso8601_timestamp", 1, |context, session| {
        let time = SqlTime::parse_iso8601(&text(context, 0)?, session);
        Ok(Value::Text(time.map_err(failed)?.to_string()))
    })?;
    scalar("date", 1, |context, session| Ok(Value::Text(time_of(context, 0, session)?.date())))?;
    scalar("date_trunc", 2, |context, session| {
        let time = time_of(context, 1, session)?.truncated(&text(context, 0)?);
        Ok(Value::Text(time.map_err(failed)?.to_string()))
    })?;
    scalar("date_format", 2, |context, session| {
        let formatted = time_of(context, 0, session)?.format(&text(context, 1)?);
        Ok(Value::Text(formatted.map_err(failed)?))
    })?;
    conn.create_aggregate_function(
        "approx_distinct",
        1,
        FunctionFlags::SQLITE_UTF8 | FunctionFlags::SQLITE_DETERMINISTIC,
        CountDistinct,
    )
}

type Scalar = fn(&Context<'_>, &TimeZone) -> Result<Value>;

/// A time: seconds since 1970, or a timestamp's text.
fn time_of(context: &Context<'_>, index: usize, session: &TimeZone) -> Result<SqlTime> {
    let time = match context.get_raw(index) {
        ValueRef::Integer(seconds) => SqlTime::from_unix(seconds as f64, session),
        ValueRef::Real(seconds) => SqlTime::from_unix(seconds, session),
        _ => SqlTime::parse(&text(context, index)?, session),
    };
    time.map_err(failed)
}

fn text(context: &Context<'_>, index: usize) -> Result<String> {
    match context.get_raw(index) {
        ValueRef::Text(bytes) => Ok(String::from_utf8_lossy(bytes).into_owned()),
        other => Err(failed(format!("Unexpected parameter of type {}", other.data_type()))),
    }
}

fn failed(message: String) -> Error {
    Error::UserFunctionError(message.into())
}

/// `approx_distinct`: exact here, within 2.3 % there.
struct CountDistinct;

impl Aggregate<HashSet<Vec<u8>>, i64> for CountDistinct {
    fn init(&self, _: &mut Context<'_>) -> Result<HashSet<Vec<u8>>> {
        Ok(HashSet::new())
    }

    fn step(&self, context: &mut Context<'_>, seen: &mut HashSet<Vec<u8>>) -> Result<()> {
        let key = match context.get_raw(0) {
            ValueRef::Null => return Ok(()),
            ValueRef::Integer(number) => number.to_le_bytes().to_vec(),
            ValueRef::Real(number) => number.to_le_bytes().to_vec(),
            ValueRef::Text(bytes) | ValueRef::Blob(bytes) => bytes.to_vec(),
        };
        seen.insert(key);
        Ok(())
    }

    fn finalize(&self, _: &mut Context<'_>, seen: Option<HashSet<Vec<u8>>>) -> Result<i64> {
        Ok(seen.map_or(0, |seen| seen.len() as i64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::sql_time::zone;

    fn shown(session: &str, expression: &str) -> String {
        let conn = Connection::open_in_memory().unwrap();
        register(&conn, &zone(session).unwrap()).unwrap();
        let sql = format!("SELECT CAST(({expression}) AS TEXT)");
        let result = conn.query_row(&sql, [], |row| row.get::<_, Option<String>>(0));
        match result {
            Ok(value) => value.unwrap_or_else(|| "NULL".to_owned()),
            Err(error) => format!("error: {error}"),
        }
    }

    #[test]
    fn functions_give_what_presto_gives() {
        for (expression, wanted) in [
            ("from_unixtime(1592374067)", "2020-06-17 06:07:47.000"),
            ("from_unixtime(1592374067, 'Asia/Shanghai')", "2020-06-17 14:07:47.000 Asia/Shanghai"),
            ("DATE(from_unixtime(1592374067.9))", "2020-06-17"),
            ("to_unixtime(from_iso8601_timestamp('2020-06-17T06:07:47.25'))", "1592374067.25"),
            ("to_unixtime('2017-05-17 09:45:00.848 Asia/Shanghai')", "1494985500.848"),
            ("date_trunc('hour', 1592374067)", "2020-06-17 06:00:00.000"),
            ("date_format(from_unixtime(1592352000, 'Asia/Shanghai'), '%Y-%m-%d')", "2020-06-17"),
            ("date_format(from_unixtime(1592352000), '%Y-%m-%d')", "2020-06-17"),
            ("date_format(from_unixtime(1592351999), '%Y-%m-%d')", "2020-06-16"),
            ("from_unixtime(NULL)", "NULL"),
            ("date_format(NULL, '%Y')", "NULL"),
            ("from_iso8601_timestamp('')", "error: Invalid format: \"\""),
            ("from_unixtime(1, 'Nowhere')", "error: 'Nowhere' is not a valid time zone"),
        ] {
            assert_eq!(shown("UTC", expression), wanted, "{expression}");
        }
        assert_eq!(shown("Asia/Shanghai", "DATE(from_unixtime(1592352000))"), "2020-06-17");
        assert_eq!(shown("Asia/Shanghai", "DATE(from_unixtime(1592323200))"), "2020-06-17");
        assert_eq!(shown("UTC", "DATE(from_unixtime(1592323200))"), "2020-06-16");
    }

    #[test]
    fn distinct_values_are_counted() {
        let count =
            "select approx_distinct(column1) from (values ('a'), (null), ('b'), ('a'), (1))";
        assert_eq!(shown("UTC", count), "3");
        assert_eq!(shown("UTC", "select approx_distinct(1) where false"), "0");
    }
}
