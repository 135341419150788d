//! The page itself.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use crate::commands::page::sections::Section;

const STYLE: &str = include_str!("style.css");

/// What stands above the results.
pub struct Head<'a> {
    pub title: &'a str,
    pub command: &'a str,
    pub now: &'a str,
    pub settings: &'a [(String, String)],
}

/// The whole page.
pub fn page(head: &Head<'_>, sections: &[Section]) -> String {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (head.title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (head.title) }
                    p { (head.now) }
                }
                main {
                    @for section in sections { (one(section)) }
                    section {
                        h2 { "What was asked" }
                        pre { code { (head.command) } }
                        (figures(head.settings))
                    }
                }
                footer { "dify-sls-backfill " (env!("CARGO_PKG_VERSION")) }
            }
        }
    }
    .into_string()
}

fn figures(figures: &[(String, String)]) -> Markup {
    html! {
        ul.figures {
            @for (name, value) in figures {
                li { span { (name) } b { (value) } }
            }
        }
    }
}

fn one(section: &Section) -> Markup {
    html! {
        section {
            h2 { (section.title) }
            @if let Some((kind, text)) = &section.verdict {
                p class={ "verdict " (kind) } { (text) }
            }
            @if !section.figures.is_empty() {
                (figures(&section.figures))
            }
            @for chart in &section.charts { (chart.markup()) }
            @for table in &section.tables {
                h3 { (table.title) }
                div.scroll tabindex="0" {
                    table {
                        thead { tr { @for cell in &table.head { th scope="col" { (cell) } } } }
                        tbody {
                            @for row in &table.rows {
                                tr { @for cell in row { td { (cell) } } }
                            }
                        }
                    }
                }
                @if table.total > table.rows.len() as u64 {
                    p.more {
                        "The first " (table.rows.len()) " of "
                        (indicatif::HumanCount(table.total).to_string())
                        ": `--output json` lists more."
                    }
                }
            }
            @for note in &section.notes { p.note { (note) } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::page::sections::sections;
    use serde_json::json;

    #[test]
    fn a_page_of_a_million_differences_over_ten_years_stays_small_and_says_how_many_there_are() {
        let difference = |nth: u32| json!({"id": nth, "what": "status", "detail": "x".repeat(40)});
        let day = |nth: u32| json!({"day": nth.to_string(), "verdict": "differs", "postgres": "1"});
        let result = json!({"tables": {"workflow_runs": {
            "differences": (0..10_000).map(difference).collect::<Vec<_>>(),
            "differences_left_out": "990000",
            "days": (0..3650).map(day).collect::<Vec<_>>(),
        }}});
        let head = Head { title: "Verification", command: "", now: "", settings: &[] };
        let page = page(&head, &sections(&result));
        assert!(page.len() < 300_000, "{} bytes", page.len());
        assert!(page.contains("The first 500 of 1,000,000"), "{page}");
        assert!(page.contains("The first 500 of 3,650"), "{page}");
    }
}
