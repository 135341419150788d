//! SQL on a logstore, as SLS answers it: SQLite does the work, and is made to look like Presto.
//!
//! ```text
//! text → token, statement: names, LIMIT, NULLS LAST, FROM → table: only visible logs → SQLite → rows
//! ```
//!
//! SQLite is more lenient than Presto in a way that this does not mend: it compares texts with
//! numbers.

pub mod functions;
pub mod grouping;
pub mod statement;
pub mod table;
pub mod token;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use rusqlite::types::ValueRef;
use rusqlite::{Error, ErrorCode};

use crate::sim::answer::{Code, Refusal};
use crate::sim::sql::statement::Statement;
use crate::sim::sql::table::Table;
use crate::sim::sql_time;
use crate::sim::store::logstore::Logstore;
use crate::sim::store::place::Place;
use crate::sim::switch::Switches;
use crate::sim::sync::lock;

/// A statement may take that long (aliyun, limits of query and analysis).
const QUERY_TIME_MAX: Duration = Duration::from_secs(55);

/// How many of SQLite's instructions lie between two looks at the clock.
const INSTRUCTIONS_A_LOOK: i32 = 100_000;

/// What a statement gives. All values are texts, as in SLS's answers; NULL is the text `null`.
#[derive(Debug, PartialEq, Eq)]
pub struct Rows {
    pub names: Vec<String>,
    /// The columns' types in Presto's words.
    pub types: Vec<&'static str>,
    pub rows: Vec<Vec<String>>,
}

/// Runs `text` on those logs of `logstore` that are at `places`. `kept` is its table, made where
/// there is none for its index.
///
/// Fails with `ParameterInvalid` in SLS's words.
pub fn run(
    logstore: &Logstore,
    kept: &Mutex<Option<Table>>,
    places: &[Place],
    text: &str,
    switches: &Switches,
) -> Result<Rows, Refusal> {
    let statement = statement::rewrite(text, switches.limit_offset)?;
    let zone = sql_time::zone(&switches.sql_time_zone).map_err(invalid)?;
    let (index, edits) = (logstore.index()?, logstore.edits());
    let mut kept = lock(kept);
    let own = |error: Error| invalid(format!("the local SLS's own table: {error}"));
    let table = match kept.take().filter(|table| table.is_of(&index, edits)) {
        Some(table) => kept.insert(table),
        None => kept.insert(Table::new(index, edits).map_err(own)?),
    };
    let end = Instant::now() + QUERY_TIME_MAX;
    let is_late = move || Instant::now() > end;
    table.conn().progress_handler(INSTRUCTIONS_A_LOOK, Some(is_late)).map_err(own)?;
    table.refresh(&logstore.shards()).map_err(own)?;
    table.show(logstore.name(), places, switches.empty_text).map_err(own)?;
    functions::register(table.conn(), &zone).map_err(own)?;
    select(table, &statement).map_err(|error| in_words(&error, &statement))
}

fn select(table: &Table, statement: &Statement) -> Result<Rows, Error> {
    let mut prepared = table.conn().prepare(&statement.sql)?;
    let names: Vec<_> = prepared
        .column_names()
        .into_iter()
        .enumerate()
        .map(|(number, name)| column_name(number, name))
        .collect();
    let mut types = vec![None; names.len()];
    let mut rows = Vec::new();
    let mut found = prepared.query([])?;
    while rows.len() < statement.rows_max
        && let Some(row) = found.next()?
    {
        let mut values = Vec::with_capacity(names.len());
        for (number, kind) in types.iter_mut().enumerate() {
            let value = row.get_ref(number)?;
            *kind = kind.or(type_name(value));
            values.push(shown(value));
        }
        rows.push(values);
    }
    let types = types.into_iter().map(|kind| kind.unwrap_or("varchar")).collect();
    Ok(Rows { names, types, rows })
}

/// Presto numbers columns that are expressions without a name; SQLite gives them their text.
fn column_name(number: usize, name: &str) -> String {
    let is_expression = name.contains(['(', ' ', '\'', '"', '+', '*', '/', '|', '=', '<', '>'])
        || name.starts_with(|first: char| first.is_ascii_digit());
    if is_expression { format!("_col{number}") } else { name.to_owned() }
}

fn type_name(value: ValueRef<'_>) -> Option<&'static str> {
    match value {
        ValueRef::Null => None,
        ValueRef::Integer(_) => Some("bigint"),
        ValueRef::Real(_) => Some("double"),
        ValueRef::Text(_) => Some("varchar"),
        ValueRef::Blob(_) => Some("varbinary"),
    }
}

fn shown(value: ValueRef<'_>) -> String {
    match value {
        ValueRef::Null => "null".to_owned(),
        ValueRef::Integer(number) => number.to_string(),
        // `2.0` and `1494985500.848`.
        ValueRef::Real(number) => format!("{number:?}"),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => {
            String::from_utf8_lossy(bytes).into_owned()
        }
    }
}

/// SQLite's error in SLS's words (aliyun, FAQ on query and analysis errors).
fn in_words(error: &Error, statement: &Statement) -> Refusal {
    let (message, offset) = match error {
        Error::SqlInputError { msg, offset, .. } => (msg, usize::try_from(*offset).unwrap_or(0)),
        Error::SqliteFailure(failure, _) if failure.code == ErrorCode::OperationInterrupted => {
            return invalid("Query exceeded maximum time limit of 55.00s");
        }
        Error::SqliteFailure(_, Some(message)) if message == "incomplete input" => {
            (message, statement.sql.len())
        }
        Error::SqliteFailure(_, Some(message)) => {
            return match message.strip_prefix("no such table: ") {
                Some(name) => invalid(format!("LogStore ({name}) is not found")),
                None => invalid(message.clone()),
            };
        }
        other => return invalid(other.to_string()),
    };
    let (line, column) = statement.place(offset);
    let place = format!("line {line}:{column}");
    if let Some(name) = message.strip_prefix("no such column: ") {
        let (name, is_quoted) = match name.strip_prefix('"').and_then(|name| name.split_once('"')) {
            Some((name, _)) => (name, !statement.has_quoted(offset)),
            None => (name, false),
        };
        return invalid(if is_quoted {
            format!(
                "ErrorType:ColumnNotExists.ErrorPosition,line:{line},column:{column}.ErrorMessage:\
                 {place}: Column '{name}' cannot be resolved; it seems {name} is wrapper by \";if \
                 {name} is a string ,not a key field, please use '{name}'"
            )
        } else {
            format!(
                "{place}: Column '{name}' cannot be resolved;please add the column in the index \
                 attribute"
            )
        });
    }
    if let Some(name) = message.strip_prefix("no such function: ") {
        return invalid(format!("{place}: Function {name} not registered"));
    }
    invalid(format!(
        "ErrorType:SyntaxError.ErrorPosition,line:{line},column:{column}.ErrorMessage:{place}: \
         {message}"
    ))
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(Code::ParameterInvalid, message)
}
