//! What Dify's readers ask SLS, asked of the local SLS about a migrated history, and the same
//! questions asked of Postgres: the answers must be equal.
//!
//! The statements are those that Dify sends, letter by letter but for the line breaks. `runs` and
//! `nodes` number those of its versions 1.11.2 to 1.14.2 (`api/extensions/logstore/repositories`);
//! `newest` has those of the readers that follow them. `traps` are SLS's own ways, which these
//! statements meet sooner or later; `names` are the words that SLS lets a column have,
//! `counts` what is asked about many days at once.

mod asking;
mod counts;
mod names;
mod newest;
mod nodes;
mod runs;
mod small;
mod traps;
