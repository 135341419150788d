//! Which fields a log has, in which order, and from which column each is made.
//!
//! The lists are those of `_to_logstore_model` in Dify's
//! `logstore_workflow_execution_repository.py` and `logstore_workflow_node_execution_repository.py`
//! (1.11.2 to 1.14.2). Every key is always written, for Dify's readers stumble over a missing one.
//! What Dify does not write, it does not look for: those columns follow under their own names, so
//! that a restore loses nothing.

use std::fmt;

use crate::dify::conversion::{Conversion, VERSIONS};
use crate::record::table::{Column, ColumnKind, Table};

/// A field of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    pub key: String,
    /// The column's name in the source, and which of a row's cells it is; `None` if the field has
    /// no column, or the source lacks it.
    pub column: Option<(String, usize)>,
    pub kind: ColumnKind,
    pub form: Form,
}

/// How a field's value is made from its cell. A column that the source lacks counts as NULL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The number that decides which of a row's logs Dify's readers take.
    LogVersion,
    /// The value as Python prints it.
    Value(Null),
    /// JSON, transcoded; `{}` when there is none.
    Json,
    /// `{}`, whatever the cell holds.
    EmptyJson,
    /// `end-user`, which 1.13.1 wrote, becomes `end_user`.
    CreatedByRole,
    /// The row's id when there is none, since `""` would make Dify's reader take all such nodes of
    /// a run for one.
    NodeExecutionId,
}

/// What is written for NULL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Null {
    /// Nothing: Dify has no such row.
    Refused,
    /// An empty text.
    Empty,
    /// `0`.
    Zero,
    /// The key is left out, so that a restore knows.
    LeftOut,
}

/// The fields of a table's logs, and where the cells stand that decide about a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields {
    pub list: Vec<Field>,
    /// The indices of `list`, sorted by key.
    pub by_key: Vec<usize>,
    /// How many cells a row has.
    pub cells: usize,
    pub id: usize,
    pub status: usize,
    pub created_at: usize,
    pub finished_at: usize,
    /// The columns that arrive as text.
    pub texts: Vec<usize>,
    /// `task_id`, then `graph`, `inputs`, `outputs`: only where runs have a `task_id`.
    pub control: Option<(usize, [usize; 3])>,
}

/// The source's columns are not those of a Dify table that this program knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct UnfitColumns {
    pub table: Table,
    /// One sentence for each problem, at least one.
    pub problems: Vec<String>,
}

impl fmt::Display for UnfitColumns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "table {} cannot be converted: {}", self.table, self.problems.join("; "))
    }
}

/// A field of Dify's own list.
struct Known {
    key: &'static str,
    column: &'static str,
    presence: Presence,
    kinds: &'static [ColumnKind],
    form: Form,
}

/// What it means when the source lacks a column.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    Required,
    /// The field is written as for NULL.
    Optional,
    /// The field is not written.
    FieldToo,
}

const TEXT: &[ColumnKind] = &[ColumnKind::Text];
const UUID: &[ColumnKind] = &[ColumnKind::Uuid];
/// An id that is only carried: as text it would read the same.
const ID: &[ColumnKind] = &[ColumnKind::Uuid, ColumnKind::Text];
const INT: &[ColumnKind] = &[ColumnKind::Int4, ColumnKind::Int8];
const FLOAT: &[ColumnKind] = &[ColumnKind::Float8];
const TIME: &[ColumnKind] = &[ColumnKind::Timestamp];

/// A field that has its column's name and is never NULL.
const fn value(name: &'static str, kinds: &'static [ColumnKind]) -> Known {
    let form = Form::Value(Null::Refused);
    Known { key: name, column: name, presence: Presence::Required, kinds, form }
}

/// A text or an id that may be NULL.
const fn nullable(name: &'static str, kinds: &'static [ColumnKind]) -> Known {
    Known { form: Form::Value(Null::Empty), ..value(name, kinds) }
}

const fn json(name: &'static str) -> Known {
    Known { form: Form::Json, ..value(name, TEXT) }
}

/// A count that may be NULL, or not there.
const fn count(name: &'static str) -> Known {
    let form = Form::Value(Null::Zero);
    Known { presence: Presence::Optional, form, ..value(name, INT) }
}

const fn created_by_role() -> Known {
    Known { form: Form::CreatedByRole, ..value("created_by_role", TEXT) }
}

/// Stands second in both lists; it has no column.
const LOG_VERSION: &str = "log_version";

const RUN: &[Known] = &[
    value("id", UUID),
    value("tenant_id", ID),
    value("app_id", ID),
    value("workflow_id", ID),
    value("triggered_from", TEXT),
    value("type", TEXT),
    value("version", TEXT),
    json("graph"),
    json("inputs"),
    json("outputs"),
    value("status", TEXT),
    Known { key: "error_message", ..nullable("error", TEXT) },
    value("total_tokens", INT),
    count("total_steps"),
    count("exceptions_count"),
    created_by_role(),
    value("created_by", ID),
    // Not `created_at` as well: Dify sorts by it, and live runs have none.
    Known { key: "started_at", ..value("created_at", TIME) },
    nullable("finished_at", TIME),
];

const NODE_EXECUTION: &[Known] = &[
    value("id", UUID),
    value("tenant_id", ID),
    value("app_id", ID),
    value("workflow_id", ID),
    value("triggered_from", TEXT),
    // The next two are in the writer since autumn 2026.
    Known { presence: Presence::FieldToo, ..nullable("triggered_from_workflow_id", ID) },
    Known { presence: Presence::FieldToo, ..nullable("triggered_from_node_execution_id", ID) },
    nullable("workflow_run_id", ID),
    value("index", INT),
    nullable("predecessor_node_id", TEXT),
    Known {
        presence: Presence::Optional,
        form: Form::NodeExecutionId,
        ..value("node_execution_id", TEXT)
    },
    value("node_id", TEXT),
    value("node_type", TEXT),
    value("title", TEXT),
    json("inputs"),
    json("process_data"),
    json("outputs"),
    value("status", TEXT),
    nullable("error", TEXT),
    value("elapsed_time", FLOAT),
    json("execution_metadata"),
    value("created_at", TIME),
    created_by_role(),
    value("created_by", ID),
    nullable("finished_at", TIME),
];

impl Fields {
    /// The fields that `conversion` asks for.
    pub fn of(conversion: &Conversion) -> Result<Self, UnfitColumns> {
        let Some(known) = difys_own(conversion.rules, conversion.table) else {
            let rules = conversion.rules;
            let problem = format!("its rules are {rules}, this program knows {VERSIONS:?}");
            return Err(UnfitColumns { table: conversion.table, problems: vec![problem] });
        };
        let mut problems = Vec::new();
        let mut list = known_fields(known, conversion, &mut problems);
        add_unknown_columns(known, &conversion.columns, &mut list, &mut problems);
        if !problems.is_empty() {
            return Err(UnfitColumns { table: conversion.table, problems });
        }
        let mut by_key: Vec<_> = (0..list.len()).collect();
        by_key.sort_by(|a, b| list[*a].key.cmp(&list[*b].key));
        let find = |name| position(&conversion.columns, name);
        let required = |name| find(name).expect("a required column is there");
        Ok(Self {
            list,
            by_key,
            cells: conversion.columns.len(),
            id: required("id"),
            status: required("status"),
            created_at: required("created_at"),
            finished_at: required("finished_at"),
            texts: (0..conversion.columns.len())
                .filter(|at| conversion.columns[*at].kind == ColumnKind::Text)
                .collect(),
            control: find("task_id")
                .filter(|_| conversion.table == Table::Runs)
                .map(|task_id| (task_id, ["graph", "inputs", "outputs"].map(required))),
        })
    }
}

/// Dify's own list of a table's fields, by a version of the rules; `None`: there is no such version.
fn difys_own(rules: u32, table: Table) -> Option<&'static [Known]> {
    match (rules, table) {
        (1, Table::Runs) => Some(RUN),
        (1, Table::NodeExecutions) => Some(NODE_EXECUTION),
        _ => None,
    }
}

/// The fields of Dify's own list.
fn known_fields(
    known: &[Known],
    conversion: &Conversion,
    problems: &mut Vec<String>,
) -> Vec<Field> {
    let mut list = Vec::new();
    for Known { key, column, presence, kinds, form } in known {
        let at = position(&conversion.columns, column);
        let kind = at.map_or(kinds[0], |at| conversion.columns[at].kind);
        if at.is_none() && *presence == Presence::Required {
            problems.push(format!("column {column} is missing"));
        }
        if !kinds.contains(&kind) {
            problems.push(format!("column {column} is {kind:?}, not {:?}", kinds[0]));
        }
        if at.is_some() || *presence != Presence::FieldToo {
            let put = *key != "graph" || conversion.put_graph;
            list.push(Field {
                key: (*key).to_owned(),
                column: at.map(|at| ((*column).to_owned(), at)),
                kind,
                form: if put { *form } else { Form::EmptyJson },
            });
        }
        if *key == "id" {
            list.push(Field {
                key: LOG_VERSION.to_owned(),
                column: None,
                kind: ColumnKind::Int8,
                form: Form::LogVersion,
            });
        }
    }
    list
}

/// The fields of the columns that Dify does not write. A column whose name would double a key, or
/// looks like one of SLS's own (`__time__`, `__source__`, `__tag__:…`), is a problem: Dify has
/// none, and any other name for it would be an invention that a restore has to undo.
fn add_unknown_columns(
    known: &[Known],
    columns: &[Column],
    list: &mut Vec<Field>,
    problems: &mut Vec<String>,
) {
    for (at, Column { name, kind }) in columns.iter().enumerate() {
        if columns[..at].iter().any(|earlier| earlier.name == *name) {
            problems.push(format!("column {name} is there twice"));
        } else if known.iter().any(|known| known.column == name) {
            // Is in the list already.
        } else if list.iter().any(|field| field.key == *name) {
            problems.push(format!("column {name} has the name of another field of the log"));
        } else if name.starts_with("__") {
            problems.push(format!("column {name} has a name that SLS keeps for itself"));
        } else {
            list.push(Field {
                key: name.clone(),
                column: Some((name.clone(), at)),
                kind: *kind,
                form: Form::Value(Null::LeftOut),
            });
        }
    }
}

fn position(columns: &[Column], name: &str) -> Option<usize> {
    columns.iter().position(|column| column.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dify::conversion::{LogTime, RULES};

    /// The columns of the table's own list, each as it is in Postgres.
    fn conversion(table: Table) -> Conversion {
        let known = if table == Table::Runs { RUN } else { NODE_EXECUTION };
        let columns = known
            .iter()
            .map(|known| Column { name: known.column.to_owned(), kind: known.kinds[0] })
            .collect();
        Conversion { rules: RULES, table, columns, put_graph: true, log_time: LogTime::FinishedAt }
    }

    fn problems(conversion: &Conversion) -> Vec<String> {
        Fields::of(conversion).map_or_else(|unfit| unfit.problems, |_| Vec::new())
    }

    #[test]
    fn a_column_that_is_missing_or_of_another_kind_is_told_by_name() {
        for table in Table::ALL {
            let whole = conversion(table);
            assert_eq!(problems(&whole), Vec::<String>::new());
            for (at, column) in whole.columns.iter().enumerate() {
                let name = column.name.as_str();
                let mut without = whole.clone();
                without.columns.remove(at);
                let optional = [
                    "total_steps",
                    "exceptions_count",
                    "triggered_from_workflow_id",
                    "triggered_from_node_execution_id",
                    "node_execution_id",
                ];
                let missing = format!("column {name} is missing");
                let wanted = if optional.contains(&name) { vec![] } else { vec![missing] };
                assert_eq!(problems(&without), wanted);

                let mut other = whole.clone();
                let kind = if column.kind == ColumnKind::Float8 {
                    ColumnKind::Text
                } else {
                    ColumnKind::Float8
                };
                other.columns[at].kind = kind;
                let unexpected = format!("column {name} is {kind:?}, not {:?}", column.kind);
                assert_eq!(problems(&other), [unexpected]);
            }
        }
    }

    #[test]
    fn a_column_that_would_double_a_key_is_refused() {
        let doubles = [
            (Table::Runs, "log_version", true),
            (Table::Runs, "error_message", true),
            (Table::Runs, "started_at", true),
            (Table::NodeExecutions, "log_version", true),
            (Table::NodeExecutions, "error_message", false),
            (Table::NodeExecutions, "started_at", false),
        ];
        for (table, name, is_refused) in doubles {
            let mut conversion = conversion(table);
            conversion.columns.insert(0, Column { name: name.to_owned(), kind: ColumnKind::Text });
            let told = format!("column {name} has the name of another field of the log");
            assert_eq!(problems(&conversion), if is_refused { vec![told] } else { vec![] });
        }
        for (name, told) in [
            ("__time__", "column __time__ has a name that SLS keeps for itself"),
            ("__tag__:x", "column __tag__:x has a name that SLS keeps for itself"),
            ("graph", "column graph is there twice"),
        ] {
            let mut conversion = conversion(Table::Runs);
            conversion.columns.push(Column { name: name.to_owned(), kind: ColumnKind::Text });
            assert_eq!(problems(&conversion), [told]);
        }
    }

    #[test]
    fn every_version_of_the_rules_has_its_lists_and_no_other_is_taken() {
        for table in [Table::Runs, Table::NodeExecutions] {
            for rules in VERSIONS {
                assert!(Fields::of(&Conversion { rules, ..conversion(table) }).is_ok());
            }
            let unknown = Conversion { rules: RULES + 1, ..conversion(table) };
            assert_eq!(problems(&unknown), ["its rules are 2, this program knows [1]"]);
        }
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let mut conversion = conversion(Table::Runs);
        conversion.columns.retain(|column| column.name != "id" && column.name != "outputs");
        let unfit = Fields::of(&conversion).unwrap_err();
        assert_eq!(
            unfit.to_string(),
            "table workflow_runs cannot be converted: column id is missing; column outputs is \
             missing"
        );
    }
}
