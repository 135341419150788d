//! `verify --sample`: a quick look at some batches.

use serde_json::json;

use crate::commands::difference::Difference;
use crate::commands::output::count;
use crate::commands::verify::{Outcome, Verify, number};
use crate::pipeline::progress::Progress;
use crate::pipeline::verify::content::sample::SampleReport;
use crate::pipeline::verify::content::take_sample;
use crate::record::table::Table;
use crate::source::catalog::Shape;

/// So many batches are told one by one.
const TOLD_MAX: usize = 20;

impl Verify<'_> {
    /// Looks at some batches of one table; `None` when asked to stop.
    pub(in crate::commands::verify) async fn sample(
        &mut self,
        shape: &Shape,
        share: u32,
    ) -> anyhow::Result<Option<Outcome>> {
        let parts = self.content_parts(shape).await?;
        let progress = Progress::new(shape.table, 0);
        let shutdown = self.shutdown.clone();
        let work = take_sample(&parts, share, &progress, &shutdown);
        let report = self.shown(&progress, work).await?;
        Ok(report.map(|report| outcome(shape.table, &report)))
    }
}

fn outcome(table: Table, report: &SampleReport) -> Outcome {
    let SampleReport { batches, rows, equal, source, differ, source_differs } = report;
    let mut outcome = Outcome {
        text: vec![
            table.name().to_owned(),
            format!("  a sample of {} batches with {} rows", count(*batches), count(*rows)),
            format!("  as they were sent             {:>9} batches", count(*equal)),
            format!("  the same in Postgres now      {:>9} batches", count(source.batches_equal)),
            "  a sample proves nothing: it sees no double elsewhere, and not the rest".to_owned(),
        ],
        json: json!({
            "batches": number(*batches), "rows": number(*rows), "equal": number(*equal),
            "equal_in_postgres": number(source.batches_equal),
            "differ": differ.iter().map(|(id, ..)| id).collect::<Vec<_>>(),
            "differ_from_postgres": source_differs,
        }),
        ..Outcome::default()
    };
    for (id, rows, found) in differ.iter().take(TOLD_MAX) {
        tracing::error!("{table}: batch {id}: SLS should hold {rows} rows of it, it holds {found}");
    }
    let of = |is_so: fn(u64, u64) -> bool| {
        differ.iter().filter(|(_, rows, found)| is_so(*rows, *found)).count() as u64
    };
    outcome.differs(Difference::Missing, of(|rows, found| found < rows), "batches");
    outcome.differs(Difference::Changed, of(|rows, found| found == rows), "batches");
    outcome.differs(Difference::Doubled, of(|rows, found| found > rows), "batches");
    outcome.differs(
        Difference::SourceChanged,
        source_differs.len() as u64,
        "batches with rows that",
    );
    outcome
}
